// The shortest useful program: text from a model file.
#define MIXTRAL_IMPLEMENTATION
#include "mixtral.hpp"

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: embed_minimal MODEL.gguf PROMPT\n"), 2;
  const auto fail = [](const mixtral::Error& error) {
    return std::fprintf(stderr, "%s\n", error.message()), 1;
  };
  auto model = mixtral::Model::open(argv[1]);
  if (!model) return fail(model.error());
  auto session = mixtral::Session::open(*model);
  if (!session) return fail(session.error());
  if (auto status = session->append(argv[2]); !status) return fail(status.error());
  mixtral::GenerateOptions options;
  options.max_tokens = 100;
  auto text = session->generate(options);
  for (auto piece : text) std::fwrite(piece.data(), 1, piece.size(), stdout);
  return text.stop_reason() == mixtral::StopReason::error ? fail(text.error()) : 0;
}
