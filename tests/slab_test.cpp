// Slabs: large pieces of the host's memory, and what the address sanitizer sees of the gaps between them.
#include "support.hpp"

#include <mixtral/impl/slab.hpp>

using mixtral::detail::kSlabAlignment;
using mixtral::detail::Slab;

namespace {

// Has memory of the host, which it knows the state of when it comes back; refuses what is too large.
struct Host : std::pmr::memory_resource {
  void* do_allocate(std::size_t size, std::size_t alignment) override {
    CHECK(alignment == kSlabAlignment);
    if (size > most) throw std::bad_alloc();
    ++n_taken;
    bytes_now += size;
    return std::pmr::new_delete_resource()->allocate(size, alignment);
  }
  void do_deallocate(void* memory, std::size_t size, std::size_t alignment) override {
    ++n_given_back;
    bytes_now -= size;
    std::memset(memory, 0xAB, size);  // it is the host's again, whole
    std::pmr::new_delete_resource()->deallocate(memory, size, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::size_t most = 1u << 20, bytes_now = 0;
  int n_taken = 0, n_given_back = 0;
};

struct Pieces {
  std::uint8_t* bytes;    // 3
  std::uint32_t* words;   // 16, which fill a line
  std::uint64_t* none;    // 0
  std::uint32_t* others;  // 17

  explicit Pieces(Slab& slab)
      : bytes(slab.take<std::uint8_t>(3)),
        words(slab.take<std::uint32_t>(16)),
        none(slab.take<std::uint64_t>(0)),
        others(slab.take<std::uint32_t>(17)) {}
};

}  // namespace

TEST_CASE(
    "slab: what the measuring pass tells is what the pieces take, aligned and one after the "
    "other") {
  Slab measure;
  const Pieces unreal(measure);
  CHECK(unreal.bytes == nullptr);
  CHECK(unreal.others == nullptr);
  Host host;
  {
    Slab slab;
    REQUIRE(slab.reserve(&host, measure.used()));
    CHECK(host.bytes_now == measure.used());
    const Pieces pieces(slab);
    CHECK(slab.used() == measure.used());
    const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
    for (const void* p :
         {static_cast<const void*>(pieces.bytes), static_cast<const void*>(pieces.words),
          static_cast<const void*>(pieces.none), static_cast<const void*>(pieces.others)}) {
      CHECK(address(p) % kSlabAlignment == 0);
    }
    CHECK(address(pieces.words) == address(pieces.bytes) + Slab::room_for(3));
    CHECK(address(pieces.none) == address(pieces.words) + Slab::room_for(64));
    CHECK(address(pieces.others) == address(pieces.none) + Slab::room_for(0));
    CHECK(slab.used() == address(pieces.others) - address(pieces.bytes) + Slab::room_for(68));
    std::memset(pieces.bytes, 1, 3);
    std::memset(pieces.words, 2, 64);
    std::memset(pieces.others, 3, 68);
    CHECK(pieces.bytes[2] == 1);
    CHECK(pieces.words[15] == 0x02020202);
  }
  CHECK(host.bytes_now == 0);
  if (MIXTRAL_ADDRESS_SANITIZED) return;
  // Nothing but alignment is added.
  CHECK(Slab::room_for(0) == 0);
  CHECK(Slab::room_for(1) == kSlabAlignment);
  CHECK(Slab::room_for(kSlabAlignment) == kSlabAlignment);
  CHECK(Slab::room_for(kSlabAlignment + 1) == 2 * kSlabAlignment);
}

TEST_CASE("slab: a slab that has measured begins at its first byte when it has memory") {
  Host host;
  Slab slab;
  slab.take<std::uint32_t>(100);
  const std::size_t measured = slab.used();
  REQUIRE(slab.reserve(&host, measured));
  CHECK(slab.used() == 0);
  const std::uint32_t* const first = slab.take<std::uint32_t>(50);
  CHECK(slab.take<std::uint32_t>(1) == first + Slab::room_for(200) / sizeof(std::uint32_t));
  CHECK(slab.used() <= measured);
}

TEST_CASE("slab: memory is given back once, whoever has it in the end") {
  Host host;
  {
    Slab slab;
    CHECK(!slab.reserve(&host, host.most + 1));  // refused, without an exception
    CHECK(slab.take<int>(1) == nullptr);
  }
  CHECK(host.n_given_back == 0);
  {
    Slab first, other;
    REQUIRE(first.reserve(&host, 4096));
    int* const piece = first.take<int>(4);
    const std::size_t used = first.used();
    Slab second = std::move(first);
    CHECK(second.used() == used);
    REQUIRE(other.reserve(&host, 8192));
    other = std::move(second);
    piece[3] = 5;
    CHECK(other.take<int>(4) == piece + Slab::room_for(16) / sizeof(int));
  }
  CHECK(host.n_taken == 2);
  CHECK(host.n_given_back == 2);
  CHECK(host.bytes_now == 0);
}

#if MIXTRAL_ADDRESS_SANITIZED
TEST_CASE("slab: with the address sanitizer, what lies between the pieces must not be touched") {
  Slab measure;
  const Pieces unreal(measure);
  Host host;
  Slab slab;
  REQUIRE(slab.reserve(&host, measure.used()));
  const auto is_poisoned = [](const void* at) { return __asan_address_is_poisoned(at) != 0; };
  const Pieces pieces(slab);
  const auto check = [&](const void* piece, std::size_t size, const void* next) {
    const auto* at = static_cast<const std::uint8_t*>(piece);
    for (std::size_t i = 0; i < size; ++i) CHECK(!is_poisoned(at + i));
    const auto* end = static_cast<const std::uint8_t*>(next);
    REQUIRE(at + size < end);
    for (at += size; at < end; ++at) CHECK(is_poisoned(at));
  };
  check(pieces.bytes, 3, pieces.words);
  check(pieces.words, 64, pieces.none);
  check(pieces.none, 0, pieces.others);
  check(pieces.others, 68, pieces.bytes + measure.used());
}
#endif
