// A host without exceptions and RTTI, made of many translation units that all include mixtral.hpp.
// Prints nothing and starts no thread: the exit status tells what failed. See programs.py.
#include "host.hpp"

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this test is about hosts without them"
#endif

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto model = open_model(argv[1]);
  if (!model) return 10;
  if (open_model(argv[2])) return 11;  // not a model
  auto session = mixtral::Session::open(*model);
  if (!session) return 12;
  if (!session->append("Once upon a time")) return 13;
  mixtral::GenerateOptions options;
  options.max_tokens = 8;
  std::size_t n_bytes = 0;
  auto generation = session->generate(options);
  for (const std::string_view piece : generation) n_bytes += piece.size();
  if (n_bytes == 0 || generation.stop_reason() != mixtral::StopReason::max_tokens) return 14;
  if (session->append(mixtral::Token{-1})) return 15;
  if (mixtral::Session::open(*model, too_long(*model))) return 16;
  return 0;
}
