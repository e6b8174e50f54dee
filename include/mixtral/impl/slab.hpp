// Large allocations from the host's memory resource: 64-byte aligned, failing by null, not by throwing.
#ifndef MIXTRAL_IMPL_SLAB_HPP_
#define MIXTRAL_IMPL_SLAB_HPP_

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <utility>

#include "mixtral/error.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mixtral::detail {

constexpr std::size_t kSlabAlignment = 64;

inline void* allocate(std::pmr::memory_resource* resource, std::size_t size) noexcept {
#if defined(__cpp_exceptions)
  try {
    return resource->allocate(size, kSlabAlignment);
  } catch (...) {
    return nullptr;
  }
#else
  return resource->allocate(size, kSlabAlignment);
#endif
}

inline void deallocate(std::pmr::memory_resource* resource, void* memory,
                       std::size_t size) noexcept {
  resource->deallocate(memory, size, kSlabAlignment);
}

// Asks for pages of 2 MiB or so where memory lies that was not yet written to; a refusal costs speed only.
inline void advise_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::size_t kLargePage = std::size_t{2} << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t end = (begin + size) / kLargePage * kLargePage;
  if (first >= end) return;
  static_cast<void>(::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE));
#endif
}

// One block of memory handed out in pieces, in two passes over the same code:
// first with no memory to learn the size, then for real.
class Slab {
 public:
  Slab() noexcept = default;
  Slab(Slab&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        used_(other.used_),
        resource_(other.resource_) {}
  Slab& operator=(Slab&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    std::swap(used_, other.used_);
    std::swap(resource_, other.resource_);
    return *this;
  }
  ~Slab() {
    if (memory_ != nullptr) deallocate(resource_, memory_, size_);
  }

  bool reserve(std::pmr::memory_resource* resource, std::size_t size) noexcept {
    memory_ = static_cast<std::uint8_t*>(allocate(resource, size));
    if (memory_ == nullptr) return false;
    advise_large_pages(memory_, size);
    resource_ = resource;
    size_ = size;
    used_ = 0;
    return true;
  }

  // The next `count` elements of type T; null in the measuring pass.
  template <class T>
  T* take(std::size_t count) noexcept {
    const std::size_t bytes =
        (count * sizeof(T) + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
    std::uint8_t* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(piece);
  }

  std::size_t used() const noexcept { return used_; }

 private:
  std::uint8_t* memory_ = nullptr;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
  std::pmr::memory_resource* resource_ = nullptr;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_SLAB_HPP_
