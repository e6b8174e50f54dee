// Memory behind which nothing can be read.
#ifndef MIXTRAL_TESTS_EXACT_MEMORY_HPP_
#define MIXTRAL_TESTS_EXACT_MEMORY_HPP_

#include "support.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace support {

// Memory of exactly `size` bytes, of which the next one cannot be read: under Linux it lies in a page that no
// one may touch, elsewhere the address sanitizer guards the end.
class ExactMemory {
 public:
  explicit ExactMemory(std::size_t size) {
#if defined(__linux__)
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t usable = (size + page - 1) / page * page;
    mapped_ = usable + page;
    void* begin =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(begin != MAP_FAILED);
    begin_ = static_cast<std::uint8_t*>(begin);
    REQUIRE(mprotect(begin_ + usable, page, PROT_NONE) == 0);
    data_ = begin_ + usable - size;
#else
    blob_.resize(size);
    data_ = blob_.data();
#endif
  }
  ExactMemory(const ExactMemory&) = delete;
  ExactMemory& operator=(const ExactMemory&) = delete;
  ~ExactMemory() {
#if defined(__linux__)
    munmap(begin_, mapped_);
#endif
  }
  std::uint8_t* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  std::uint8_t* data_ = nullptr;
#if defined(__linux__)
  std::uint8_t* begin_ = nullptr;
  std::size_t mapped_ = 0;
#else
  Blob blob_;
#endif
};

}  // namespace support

#endif  // MIXTRAL_TESTS_EXACT_MEMORY_HPP_
