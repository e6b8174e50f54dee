// Finds numbers that are infinite or NaN.
#ifndef MIXTRAL_NETWORK_FINITE_HPP_
#define MIXTRAL_NETWORK_FINITE_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mixtral::detail {

// True if all n numbers are finite: no exponent is all ones. Two at a time: adding one to the exponents
// carries into the sign's place, which was cleared, exactly if they are all ones.
inline bool all_finite(const float* x, std::size_t n) noexcept {
  constexpr std::uint64_t kExponents = 0x7F8000007F800000u, kOnes = 0x0080000000800000u;
  std::uint64_t carries = 0;
  std::size_t i = 0;
  for (; i + 2 <= n; i += 2) {
    std::uint64_t pair;
    std::memcpy(&pair, x + i, sizeof pair);
    carries |= (pair & kExponents) + kOnes;
  }
  if (i < n) {
    std::uint32_t last;
    std::memcpy(&last, x + i, sizeof last);
    carries |= (last & kExponents) + kOnes;
  }
  constexpr std::uint64_t kSigns = 0x8000000080000000u;
  return (carries & kSigns) == 0;
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_FINITE_HPP_
