// Every header of single_include in one unit, as a host without exceptions would have it.
#define MIXTRAL_IMPLEMENTATION
#include "mixtral.hpp"
#include "mixtral_checkpoints.hpp"
#include "mixtral_json_schema.hpp"
#include "mixtral_quantize.hpp"
#include "mixtral_tools.hpp"

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto model = mixtral::open_model(argv[1]);
  if (!model) std::fprintf(stderr, "%s\n", model.error().message());
  return model && mixtral::tool_list("[]") && mixtral::find_quantization("Q4_K_M") &&
                 mixtral::json_schema_grammar("{}")
             ? 0
             : 1;
}
