// Finding numbers that are infinite or NaN.
#include "support.hpp"

#include <mixtral/network/finite.hpp>

TEST_CASE("finite: one number among many that is not is seen, wherever it is") {
  const float none = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  const float smallest = std::numeric_limits<float>::denorm_min();
  for (std::size_t n = 0; n < 20; ++n) {
    std::vector<float> x(n);
    for (std::size_t i = 0; i < n; ++i) {
      x[i] = i % 4 == 0 ? -largest : i % 4 == 1 ? largest : i % 4 == 2 ? -0.0f : smallest;
    }
    CHECK(mixtral::detail::all_finite(x.data(), n));
    for (std::size_t i = 0; i < n; ++i) {
      for (const float bad : {none, -none, infinity, -infinity}) {
        std::vector<float> y = x;
        y[i] = bad;
        CHECK(!mixtral::detail::all_finite(y.data(), n));
        CHECK(mixtral::detail::all_finite(y.data(), i));
      }
    }
  }
}

TEST_CASE("finite: the tests' own comparison loses no NaN, wherever it is") {
  const float none = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<float> x(3, 1.0f);
    x[i] = none;
    CHECK(std::isnan(support::max_difference(x, {1.0f, 2.0f, 1.0f})));
    CHECK(std::isnan(support::max_difference({5.0f, 2.0f, 1.0f}, x)));
  }
  CHECK(support::max_difference({1.0f, 2.0f, 3.0f}, {1.0f, 5.0f, 2.0f}) == 3.0);
}

TEST_CASE("finite: numbers whose squares are too large to be added up are seen") {
  for (const float small : {0.0f, -1.0f, 1e15f, std::nextafter(0x1p50f, 0.0f)}) {
    const std::vector<float> x(9, small);
    CHECK(mixtral::detail::all_square_finite(x.data(), x.size()));
    for (const float large : {0x1p50f, -1e30f, std::numeric_limits<float>::infinity()}) {
      for (std::size_t i = 0; i < x.size(); ++i) {
        std::vector<float> y = x;
        y[i] = large;
        CHECK(!mixtral::detail::all_square_finite(y.data(), y.size()));
      }
    }
  }
}
