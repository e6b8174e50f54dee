// One fuzz target as a libFuzzer program; FUZZ_TARGET is its name in targets.cpp.
#include <cstddef>
#include <cstdint>

namespace fuzz {
int FUZZ_TARGET(const std::uint8_t* data, std::size_t size);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::FUZZ_TARGET(data, size);
}
