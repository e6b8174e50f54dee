// Every header of single_include in one unit, as a host without exceptions would have it; as in a unity build,
// other files of the host include them before the one that has the implementation.
#include "mixtral_json_schema.hpp"
#include "mixtral_tools.hpp"
//
#include "mixtral.hpp"

mixtral::Status model_opens(const char* path);

#define MIXTRAL_IMPLEMENTATION
#include "mixtral.hpp"
#include "mixtral_checkpoints.hpp"
#include "mixtral_quantize.hpp"

// Another file that defines it does no harm.
#define MIXTRAL_IMPLEMENTATION
#include "mixtral.hpp"

#include <cstdio>

mixtral::Status model_opens(const char* path) {
  const auto model = mixtral::open_model(path);
  if (!model) return model.error();
  auto session = mixtral::Session::open(*model);
  if (!session) return session.error();
  if (auto status = session->append("Once upon a time"); !status) return status;
  return session->evaluate();
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto opened = model_opens(argv[1]);
  if (!opened) std::fprintf(stderr, "%s\n", opened.error().message());
  return opened && mixtral::tool_list("[]") && mixtral::find_quantization("Q4_K_M") &&
                 mixtral::json_schema_grammar("{}")
             ? 0
             : 1;
}
