#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cstddef>

#include <atomic>
#include <cstdlib>
#include <new>

// Every allocation of the test program that is not from a memory resource of a test's own is counted.
namespace {
std::atomic<std::size_t> n_heap_allocations{0};

void* count_and_allocate(std::size_t size, std::size_t alignment) {
  ++n_heap_allocations;
  if (size == 0) size = 1;
  void* memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(size)
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

namespace support {
std::size_t heap_allocations() { return n_heap_allocations; }
}  // namespace support

// Not inlined, or g++ sees free() of what it takes for memory of another operator new.
#if defined(__GNUC__)
#define MIXTRAL_TESTS_NOINLINE __attribute__((noinline))
#else
#define MIXTRAL_TESTS_NOINLINE
#endif

void* operator new(std::size_t size) { return count_and_allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return count_and_allocate(size, static_cast<std::size_t>(alignment));
}
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory) noexcept { std::free(memory); }
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
