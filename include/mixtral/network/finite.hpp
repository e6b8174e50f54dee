// Finds numbers that are infinite, NaN, or too large.
#ifndef MIXTRAL_NETWORK_FINITE_HPP_
#define MIXTRAL_NETWORK_FINITE_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mixtral::detail {

// Returns true if the magnitudes of all n numbers are below 2^(exponent - 127), with `exponent` from 1 to
// 255; none is infinite or NaN then. Two numbers are looked at together: to the exponent of each, what is
// lacking from `exponent` to 256 is added, which carries into the place of its sign, cleared before,
// exactly if the exponent is as large. With 255, for example, infinity: 0x7F800000 + 0x00800000 = 0x80000000.
inline bool all_below(const float* x, std::size_t n, std::uint32_t exponent) noexcept {
  constexpr std::uint64_t kExponents = 0x7F8000007F800000u, kSigns = 0x8000000080000000u;
  const std::uint64_t lacking = 0x0000000100000001u * (std::uint64_t{256 - exponent} << 23);
  std::uint64_t carries = 0;
  std::size_t i = 0;
  for (; i + 2 <= n; i += 2) {
    std::uint64_t pair;
    std::memcpy(&pair, x + i, sizeof pair);
    carries |= (pair & kExponents) + lacking;
  }
  if (i < n) {
    std::uint32_t last;
    std::memcpy(&last, x + i, sizeof last);
    carries |= (last & kExponents) + (lacking & 0xFFFFFFFFu);
  }
  return (carries & kSigns) == 0;
}

// Returns true if no number is infinite or NaN.
inline bool all_finite(const float* x, std::size_t n) noexcept { return all_below(x, n, 255); }

// Returns true if the sum of the squares of all numbers, up to 2^24 of them, is finite as well.
inline bool all_square_finite(const float* x, std::size_t n) noexcept {
  return all_below(x, n, 127 + 50);
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_FINITE_HPP_
