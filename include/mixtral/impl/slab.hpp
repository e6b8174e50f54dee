// Large allocations from the host's memory resource: 64-byte aligned, failing by null, not by throwing.
#ifndef MIXTRAL_IMPL_SLAB_HPP_
#define MIXTRAL_IMPL_SLAB_HPP_

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <utility>

#include "mixtral/error.hpp"
#include "mixtral/impl/compiler.hpp"

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
//
// The address sanitizer sees any use of what lies between the pieces: the bytes that alignment leaves, and
// kGapBytes more after each piece, which are there for it alone. Code that reads past the last number of a
// row has to take room for that.
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
    if (memory_ == nullptr) return;
    MIXTRAL_UNPOISON(memory_, size_);  // the host may use it for something else
    deallocate(resource_, memory_, size_);
  }

  // The bytes that a piece of `bytes` bytes takes.
  static constexpr std::uint64_t room_for(std::uint64_t bytes) noexcept {
    return (bytes + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment + kGapBytes;
  }

  bool reserve(std::pmr::memory_resource* resource, std::size_t size) noexcept {
    memory_ = static_cast<std::uint8_t*>(allocate(resource, size));
    if (memory_ == nullptr) return false;
    advise_large_pages(memory_, size);
    resource_ = resource;
    size_ = size;
    used_ = 0;
    MIXTRAL_POISON(memory_, size_);
    return true;
  }

  // The next `count` elements of type T; null in the measuring pass.
  template <class T>
  T* take(std::size_t count) noexcept {
    std::uint8_t* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += static_cast<std::size_t>(room_for(count * sizeof(T)));
    if (piece != nullptr) MIXTRAL_UNPOISON(piece, count * sizeof(T));
    return reinterpret_cast<T*>(piece);
  }

  std::size_t used() const noexcept { return used_; }

 private:
  static constexpr std::size_t kGapBytes = MIXTRAL_ADDRESS_SANITIZED ? kSlabAlignment : 0;

  std::uint8_t* memory_ = nullptr;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
  std::pmr::memory_resource* resource_ = nullptr;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_SLAB_HPP_
