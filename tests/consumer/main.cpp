#include <cstdio>
#include <mixtral/mixtral.hpp>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto model = mixtral::Model::open(argv[1]);
  if (!model) return std::fprintf(stderr, "%s\n", model.error().message()), 1;
  std::printf("%u experts on %s\n", static_cast<unsigned>(model->config().n_experts),
              model->simd_target());
}
