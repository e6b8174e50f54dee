// Least-squares fits of numbers to scaled levels: what the encoders of all block formats are made of.
//
// All minimise the weighted squared error sum of weight[i] * (x[i] - y[i])^2 by trying several
// scales and, for each, alternating between the nearest levels and the best scale for them (Lloyd
// 1982, "Least squares quantization in PCM", with levels tied to one scale).
#ifndef MIXTRAL_IMPL_QUANTIZE_FIT_HPP_
#define MIXTRAL_IMPL_QUANTIZE_FIT_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "mixtral/simd/half.hpp"

namespace mixtral::detail {

template <int n>
using Numbers = Eigen::Array<float, n, 1>;

// Rounds of alternation from the best scale tried.
constexpr int kRounds = 3;

// Spreads below this are taken for none: half precision has no such scale.
constexpr float kLeastSpread = 1e-12f;

// The whole numbers from kLow to kHigh.
template <int kLow, int kHigh>
struct EvenLevels {
  static constexpr float kLowest = kLow;
  static constexpr float kHighest = kHigh;

  template <int n>
  static Numbers<n> nearest(const Numbers<n>& x) {
    // Nothing is negative when it is truncated.
    const auto shifted = (x + (0.5f - kLowest)).max(0.0f).min(kHighest - kLowest);
    return shifted.template cast<int>().template cast<float>() + kLowest;
  }
  static std::uint8_t code(float level) { return static_cast<std::uint8_t>(level - kLowest); }
};

// The uneven levels of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl).
struct Iq4Levels {
  static constexpr float kLevel[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                       1,    13,   25,  38,  53,  69,  89,  113};
  static constexpr float kLowest = kLevel[0];
  static constexpr float kHighest = kLevel[15];

  template <int n>
  static Numbers<n> nearest(const Numbers<n>& x) {
    Numbers<n> level = Numbers<n>::Constant(kLowest);
    for (int k = 0; k < 15; ++k) {
      const float middle = (kLevel[k] + kLevel[k + 1]) / 2.0f;
      const float step = kLevel[k + 1] - kLevel[k];
      for (int i = 0; i < n; ++i) level[i] += x[i] > middle ? step : 0.0f;
    }
    return level;
  }
  static std::uint8_t code(float level) {
    std::uint8_t i = 0;
    while (i < 15 && kLevel[i] < level) ++i;
    return i;
  }
};

inline void put_half(float value, std::uint8_t* out) {
  const std::uint16_t half = simd::portable_float_to_half(value);
  out[0] = static_cast<std::uint8_t>(half);
  out[1] = static_cast<std::uint8_t>(half >> 8);
}

inline float rounded_to_half(float value) {
  std::uint8_t bytes[2];
  put_half(value, bytes);
  return simd::portable_half_to_float(bytes);
}

// The s for which s * level comes nearest to x, with a level of `Levels` for each. Tries to put the
// largest x at either end of the levels, and up to kReach / 4 levels inside or outside of it.
template <class Levels, int kReach, int n>
float fit_scale(const Numbers<n>& x, const Numbers<n>& weight) {
  Eigen::Index peak_at;
  if (x.abs().maxCoeff(&peak_at) < kLeastSpread) return 0.0f;
  const float peak = x[peak_at];
  const Numbers<n> wx = weight * x;
  float best_scale = 0.0f;
  float best_gain = 0.0f;  // by how much the error is less than with s = 0
  // The levels for a scale of 1 / inverse, and the best scale for these; false if that is no better.
  const auto consider = [&](float inverse) {
    const Numbers<n> level = Levels::nearest(Numbers<n>(x * inverse));
    const float xl = (wx * level).sum();
    const float ll = (weight * level * level).sum();
    if (!(std::abs(xl) > 1e-20f * ll)) return false;
    const float gain = xl * (xl / ll);
    if (!(gain > best_gain)) return false;
    best_gain = gain;
    best_scale = xl / ll;
    return true;
  };
  for (int i = -kReach; i <= kReach; ++i) {
    const float beyond = 0.25f * static_cast<float>(i);
    consider((Levels::kLowest - beyond) / peak);
    if (Levels::kLowest != -Levels::kHighest) consider((Levels::kHighest + beyond) / peak);
  }
  for (int round = 0; round < kRounds && best_scale != 0.0f; ++round) {
    if (!consider(1.0f / best_scale)) break;
  }
  return best_scale;
}

struct AffineFit {
  float scale = 0.0f;
  float min = 0.0f;  // x is about scale * q - min
};

// The same for scale * q - min with q in 0..kHigh; min >= 0 if kMinNotNegative.
template <int kHigh, bool kMinNotNegative, int kReach, int n>
AffineFit fit_affine(const Numbers<n>& x, const Numbers<n>& weight) {
  const float high = x.maxCoeff();
  const float low = kMinNotNegative ? std::min(x.minCoeff(), 0.0f) : x.minCoeff();
  AffineFit best;
  if (high - low < kLeastSpread) {
    best.min = -low;
    return best;
  }
  float best_error = std::numeric_limits<float>::infinity();
  const float w = weight.sum();
  const Numbers<n> wx = weight * x;
  const float sum_x = wx.sum();
  // The numbers q for this scale and base, and the best scale and base for these; false if they are
  // no better.
  const auto consider = [&](float scale, float base) {
    const Numbers<n> q = EvenLevels<0, kHigh>::nearest(Numbers<n>((x - base) * (1.0f / scale)));
    const Numbers<n> wq = weight * q;
    const float sum_q = wq.sum();
    const float qq = (wq * q).sum();
    const float xq = (wx * q).sum();
    const float determinant = w * qq - sum_q * sum_q;
    if (!(qq > 0.0f)) return false;
    const bool distinct = determinant > 1e-6f * w * qq;  // not all q the same
    if (!distinct && !kMinNotNegative) return false;
    if (distinct) {
      scale = (w * xq - sum_x * sum_q) / determinant;
      base = (qq * sum_x - sum_q * xq) / determinant;
    }
    if (!distinct || (kMinNotNegative && base > 0.0f)) {
      base = 0.0f;
      scale = xq / qq;
    }
    if (!(scale > kLeastSpread)) return false;
    const float error = (weight * (x - scale * q - base).square()).sum();
    if (!(error < best_error)) return false;
    best_error = error;
    best.scale = scale;
    best.min = -base;
    return true;
  };
  for (int i = -kReach; i <= kReach; ++i) {
    consider((high - low) / (static_cast<float>(kHigh) + 0.25f * static_cast<float>(i)), low);
  }
  for (int round = 0; round < kRounds && best.scale != 0.0f; ++round) {
    if (!consider(best.scale, -best.min)) break;
  }
  return best;
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_QUANTIZE_FIT_HPP_
