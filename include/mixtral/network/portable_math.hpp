// Functions of the C library that the tokens depend on, with the same bits on every platform: made of
// operations that IEEE 754 defines to the last bit, products and sums joined by std::fma, which leaves
// compilers nothing to join. Errors are below three units in the last place.
#ifndef MIXTRAL_NETWORK_PORTABLE_MATH_HPP_
#define MIXTRAL_NETWORK_PORTABLE_MATH_HPP_

#include <cmath>
#include <cstddef>
#include <limits>

namespace mixtral::portable {

// c[0] + c[1] x + ... + c[n - 1] x^(n - 1) (Horner).
template <std::size_t n>
inline double polynomial(const double (&c)[n], double x) noexcept {
  double value = c[n - 1];
  for (std::size_t i = n - 1; i > 0; --i) value = std::fma(value, x, c[i - 1]);
  return value;
}

// In two parts, of which the first has zeros at its end.
constexpr double kLn2High = 0x1.62e42fefa3800p-1;
constexpr double kLn2Low = 0x1.ef35793c76730p-45;

inline double exp(double x) noexcept {
  if (!(x <= 710.0)) return x > 710.0 ? std::numeric_limits<double>::infinity() : x;  // NaN, too
  if (x < -745.0) return 0.0;
  // x = k ln 2 + r; the Taylor series of exp(r).
  constexpr double kInverseLn2 = 0x1.71547652b82fep0;
  static constexpr double kFactorials[] = {1.0,
                                           1.0,
                                           1.0 / 2,
                                           1.0 / 6,
                                           1.0 / 24,
                                           1.0 / 120,
                                           1.0 / 720,
                                           1.0 / 5040,
                                           1.0 / 40320,
                                           1.0 / 362880,
                                           1.0 / 3628800,
                                           1.0 / 39916800,
                                           1.0 / 479001600,
                                           1.0 / 6227020800};
  const double k = std::floor(std::fma(x, kInverseLn2, 0.5));
  const double r = std::fma(-k, kLn2Low, std::fma(-k, kLn2High, x));
  return std::ldexp(polynomial(kFactorials, r), static_cast<int>(k));
}

// Of a positive, finite number.
inline double log(double x) noexcept {
  // x = 2^k m with m about 1; ln m = 2 artanh(s).
  int k = 0;
  double m = std::frexp(x, &k);
  if (m < 0x1.6a09e667f3bcdp-1) {
    m *= 2.0;
    --k;
  }
  static constexpr double kOdd[] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9, 1.0 / 11,
                                    1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
  const double s = (m - 1.0) / (m + 1.0);
  const double artanh = s * polynomial(kOdd, s * s);
  return std::fma(k, kLn2High, std::fma(k, kLn2Low, 2.0 * artanh));
}

// base^exponent of a positive base.
inline double pow(double base, double exponent) noexcept { return exp(exponent * log(base)); }

// Takes 0 <= x < 2^62, and is as exact as the other functions here below 2^40.
inline void sin_and_cos(double x, double& sine, double& cosine) noexcept {
  // x = k pi / 2 + r; the Taylor series of sin(r) / r and cos(r) in r^2.
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
  constexpr double kHalfPi[] = {0x1.921fb54442d18p0, 0x1.1a62633145c07p-54,
                                -0x1.f1976b7ed8fbcp-110};
  static constexpr double kSine[] = {
      1.0,          -1.0 / 6,        1.0 / 120,        -1.0 / 5040,
      1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000};
  static constexpr double kCosine[] = {1.0,
                                       -1.0 / 2,
                                       1.0 / 24,
                                       -1.0 / 720,
                                       1.0 / 40320,
                                       -1.0 / 3628800,
                                       1.0 / 479001600,
                                       -1.0 / 87178291200,
                                       1.0 / 20922789888000};
  const double k = std::floor(std::fma(x, kTwoOverPi, 0.5));
  const double r = std::fma(-k, kHalfPi[2], std::fma(-k, kHalfPi[1], std::fma(-k, kHalfPi[0], x)));
  const double square = r * r;
  const double s = r * polynomial(kSine, square);
  const double c = polynomial(kCosine, square);
  switch (static_cast<long long>(k) & 3) {
    case 0: sine = s, cosine = c; return;
    case 1: sine = c, cosine = -s; return;
    case 2: sine = -s, cosine = -c; return;
    default: sine = -c, cosine = s; return;
  }
}

}  // namespace mixtral::portable

#endif  // MIXTRAL_NETWORK_PORTABLE_MATH_HPP_
