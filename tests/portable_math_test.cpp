// Exponential, logarithm, sine and cosine, against the C library's in long double where that is longer.
#include "support.hpp"

#include <mixtral/network/portable_math.hpp>

namespace portable = mixtral::portable;
using support::keep_largest;

TEST_CASE("portable_math: errors are below three units in the last place") {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> any(0.0, 1.0);
  const auto ulps = [](double value, long double expected) {
    const double nearest = static_cast<double>(expected);
    const double unit = std::nextafter(std::abs(nearest), 1e308) - std::abs(nearest);
    return static_cast<double>(std::abs(static_cast<long double>(value) - expected)) / unit;
  };
  double exponential = 0.0, logarithm = 0.0, sine = 0.0, cosine = 0.0, power = 0.0;
  for (int i = 0; i < 100000; ++i) {
    const double x = any(random) * 1400.0 - 700.0;
    keep_largest(exponential, ulps(portable::exp(x), std::exp(static_cast<long double>(x))));
    const double y = std::exp(x / 10.0);
    if (std::abs(y - 1.0) > 0.01) {
      keep_largest(logarithm, ulps(portable::log(y), std::log(static_cast<long double>(y))));
    }
    const double angle = any(random) * (i % 2 == 0 ? 40000.0 : 1e9);
    double s = 0.0, c = 0.0;
    portable::sin_and_cos(angle, s, c);
    // Of one, since results near zero lose to the angle's reduction.
    keep_largest(sine, std::abs(s - std::sin(angle)));
    keep_largest(cosine, std::abs(c - std::cos(angle)));
    const double exponent = -any(random);
    keep_largest(power, ulps(portable::pow(1e6, exponent),
                             std::pow(static_cast<long double>(1e6), exponent)));
  }
  CHECK(exponential < 2.0);
  CHECK(logarithm < 3.0);
  CHECK(sine < 4e-16);
  CHECK(cosine < 4e-16);
  CHECK(power < 20.0);  // of which each unit of the logarithm makes ten
}

TEST_CASE("portable_math: the ends of the range") {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(portable::exp(0.0) == 1.0);
  CHECK(portable::exp(-infinity) == 0.0);
  CHECK(portable::exp(-746.0) == 0.0);
  CHECK(portable::exp(-745.0) == std::exp(-745.0));  // the least there is
  CHECK(portable::exp(infinity) == infinity);
  CHECK(portable::exp(709.7) == doctest::Approx(std::exp(709.7)));
  CHECK(std::isnan(portable::exp(std::nan(""))));
  CHECK(portable::log(1.0) == 0.0);
  CHECK(portable::log(5e-324) == doctest::Approx(std::log(5e-324)));
  CHECK(portable::log(std::numeric_limits<double>::max()) == doctest::Approx(709.782712893384));
  double s = 1.0, c = 0.0;
  portable::sin_and_cos(0.0, s, c);
  CHECK(s == 0.0);
  CHECK(c == 1.0);
}
