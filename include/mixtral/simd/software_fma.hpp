// a * b + c, rounded once, without an instruction for it.
#ifndef MIXTRAL_SIMD_SOFTWARE_FMA_HPP_
#define MIXTRAL_SIMD_SOFTWARE_FMA_HPP_

#include <cstdint>
#include <cstring>

namespace mixtral::simd {

// The product is exact in double precision. The sum is rounded to an odd last bit if it is not exact, so that
// rounding it to single precision gives what one rounding would have given (Boldo & Melquiond 2008,
// "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd").
inline float software_fma(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  double sum = product + addend;
  const double rest = sum - product;
  const double error = (product - (sum - rest)) + (addend - rest);  // Knuth's TwoSum; NaN if sum is
  std::uint64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  if ((error < 0.0 || error > 0.0) && bits % 2 == 0) {
    bits += (error > 0.0) == (sum > 0.0) ? 1 : ~std::uint64_t{0};
    std::memcpy(&sum, &bits, sizeof bits);
  }
  return static_cast<float>(sum);
}

}  // namespace mixtral::simd

#endif  // MIXTRAL_SIMD_SOFTWARE_FMA_HPP_
