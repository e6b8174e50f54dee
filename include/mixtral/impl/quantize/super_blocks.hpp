// Encoders of the formats with blocks of 256, whose sub-blocks have whole-number scales of their own.
// What a block looks like is told in mixtral/formats/.
#ifndef MIXTRAL_IMPL_QUANTIZE_SUPER_BLOCKS_HPP_
#define MIXTRAL_IMPL_QUANTIZE_SUPER_BLOCKS_HPP_

#include "mixtral/impl/quantize/fit.hpp"

namespace mixtral::detail {

using SuperBlock = Numbers<256>;

// After the scales of the sub-blocks are rounded, the levels and the block's own scale are fitted
// again, this many times.
constexpr int kRefinements = 3;

// weight = d * scale[s] * level, sub-blocks of n; scales are whole numbers from kLowScale to
// kHighScale, of which the lowest has the largest magnitude.
template <class Levels, int n, int kLowScale, int kHighScale>
struct ScaledSuperBlock {
  static constexpr int kSubBlocks = 256 / n;

  float d = 0.0f;  // as half precision has it
  int scale[kSubBlocks] = {};
  std::uint8_t code[256] = {};

  void fit(const SuperBlock& x, const SuperBlock& weight) {
    float target[kSubBlocks];
    float peak = 0.0f;
    for (int s = 0; s < kSubBlocks; ++s) {
      target[s] = fit_scale<Levels, 4, n>(x.segment<n>(s * n), weight.segment<n>(s * n));
      if (std::abs(target[s]) > std::abs(peak)) peak = target[s];
    }
    ScaledSuperBlock trial;
    trial.d = rounded_to_half(peak / static_cast<float>(kLowScale));
    if (trial.d == 0.0f) {
      std::fill(code, code + 256, Levels::code(Levels::nearest(Numbers<1>(0.0f))[0]));
      return;
    }
    float best_error = std::numeric_limits<float>::infinity();
    for (int round = 0; round <= kRefinements && trial.d != 0.0f; ++round) {
      SuperBlock step;  // scale * level
      const float error = trial.assign(x, weight, target, step);
      if (!(error < best_error)) return;
      best_error = error;
      *this = trial;
      const float ll = (weight * step * step).sum();
      if (!(ll > 0.0f)) return;
      trial.d = rounded_to_half((weight * step * x).sum() / ll);
    }
  }

 private:
  // The best scales and levels for d; gives the error.
  float assign(const SuperBlock& x, const SuperBlock& weight, const float* target,
               SuperBlock& step) {
    float total = 0.0f;
    for (int s = 0; s < kSubBlocks; ++s) {
      const Numbers<n> xs = x.segment<n>(s * n);
      const Numbers<n> ws = weight.segment<n>(s * n);
      const auto middle = static_cast<int>(std::floor(std::clamp(
          target[s] / d, static_cast<float>(kLowScale), static_cast<float>(kHighScale))));
      float best_error = std::numeric_limits<float>::infinity();
      for (int candidate = middle - 1; candidate <= middle + 2; ++candidate) {
        if (candidate < kLowScale || candidate > kHighScale) continue;
        const float factor = d * static_cast<float>(candidate);
        const Numbers<n> level = Levels::nearest(candidate == 0 ? Numbers<n>(Numbers<n>::Zero())
                                                                : Numbers<n>(xs * (1.0f / factor)));
        const float error = (ws * (xs - factor * level).square()).sum();
        if (!(error < best_error)) continue;
        best_error = error;
        scale[s] = candidate;
        step.segment<n>(s * n) = static_cast<float>(candidate) * level;
        for (int i = 0; i < n; ++i) code[s * n + i] = Levels::code(level[i]);
      }
      total += best_error;
    }
    return total;
  }
};

// weight = d * scale[s] * q - dmin * min[s], sub-blocks of n, q in 0..kHigh, scales and mins in
// 0..kHighScale.
template <int kHigh, int n, int kHighScale>
struct AffineSuperBlock {
  static constexpr int kSubBlocks = 256 / n;
  using Levels = EvenLevels<0, kHigh>;

  float d = 0.0f;  // as half precision has them
  float dmin = 0.0f;
  int scale[kSubBlocks] = {};
  int min[kSubBlocks] = {};
  std::uint8_t code[256] = {};

  void fit(const SuperBlock& x, const SuperBlock& weight) {
    AffineFit target[kSubBlocks];
    float most_scale = 0.0f;
    float most_min = 0.0f;
    for (int s = 0; s < kSubBlocks; ++s) {
      target[s] = fit_affine<kHigh, true, 4, n>(x.segment<n>(s * n), weight.segment<n>(s * n));
      most_scale = std::max(most_scale, target[s].scale);
      most_min = std::max(most_min, target[s].min);
    }
    AffineSuperBlock trial;
    trial.d = rounded_to_half(most_scale / static_cast<float>(kHighScale));
    trial.dmin = rounded_to_half(most_min / static_cast<float>(kHighScale));
    float best_error = std::numeric_limits<float>::infinity();
    for (int round = 0; round <= kRefinements; ++round) {
      SuperBlock step;  // scale * q
      SuperBlock mins;
      const float error = trial.assign(x, weight, target, step, mins);
      if (!(error < best_error)) return;
      best_error = error;
      *this = trial;
      if (!trial.refine(x, weight, step, mins)) return;
    }
  }

 private:
  // The best scales, mins and levels for d and dmin; gives the error.
  float assign(const SuperBlock& x, const SuperBlock& weight, const AffineFit* target,
               SuperBlock& step, SuperBlock& mins) {
    float total = 0.0f;
    for (int s = 0; s < kSubBlocks; ++s) {
      const Numbers<n> xs = x.segment<n>(s * n);
      const Numbers<n> ws = weight.segment<n>(s * n);
      const int scale_middle = whole_part(target[s].scale, d);
      const int min_middle = whole_part(target[s].min, dmin);
      float best_error = std::numeric_limits<float>::infinity();
      for (int m = min_middle; m <= std::min(min_middle + 1, dmin == 0.0f ? 0 : kHighScale); ++m) {
        const Numbers<n> above = xs + dmin * static_cast<float>(m);
        const int last = d == 0.0f ? 0 : std::min(scale_middle + 2, kHighScale);
        for (int a = std::max(scale_middle - 1, 0); a <= last; ++a) {
          const float factor = d * static_cast<float>(a);
          const Numbers<n> q =
              Levels::nearest(factor == 0.0f ? Numbers<n>(Numbers<n>::Zero())
                                             : Numbers<n>(above * (1.0f / factor)));
          const float error = (ws * (above - factor * q).square()).sum();
          if (!(error < best_error)) continue;
          best_error = error;
          scale[s] = a;
          min[s] = m;
          step.segment<n>(s * n) = static_cast<float>(a) * q;
          mins.segment<n>(s * n).setConstant(static_cast<float>(m));
          for (int i = 0; i < n; ++i) code[s * n + i] = Levels::code(q[i]);
        }
      }
      total += best_error;
    }
    return total;
  }

  static int whole_part(float value, float unit) {
    if (unit == 0.0f) return 0;
    return static_cast<int>(std::min(value / unit, static_cast<float>(kHighScale)));
  }

  // The best d and dmin for these steps and mins; false if they make no sense.
  bool refine(const SuperBlock& x, const SuperBlock& weight, const SuperBlock& step,
              const SuperBlock& mins) {
    const double aa = static_cast<double>((weight * step * step).sum());
    const double am = static_cast<double>((weight * step * mins).sum());
    const double mm = static_cast<double>((weight * mins * mins).sum());
    const double xa = static_cast<double>((weight * x * step).sum());
    const double xm = static_cast<double>((weight * x * mins).sum());
    const double determinant = aa * mm - am * am;
    double new_d = 0.0;
    double new_dmin = 0.0;
    if (determinant > 1e-9 * aa * mm) {
      new_d = (xa * mm - xm * am) / determinant;
      new_dmin = (new_d * am - xm) / mm;
    } else if (aa > 0.0) {
      new_d = (xa + static_cast<double>(dmin) * am) / aa;
      new_dmin = static_cast<double>(dmin);
    }
    if (!(new_d > 0.0 && new_dmin >= 0.0)) return false;
    d = rounded_to_half(static_cast<float>(new_d));
    dmin = rounded_to_half(static_cast<float>(new_dmin));
    return true;
  }
};

// 256 codes, bits `shift` and `shift` + 1 of each, laid out as in Q2_K.
inline void put_bit_pairs(const std::uint8_t* code, int shift, std::uint8_t* qs) {
  for (int half = 0; half < 2; ++half) {
    for (int l = 0; l < 32; ++l) {
      int byte = 0;
      for (int j = 0; j < 4; ++j) byte |= (code[half * 128 + j * 32 + l] >> shift & 3) << (2 * j);
      qs[half * 32 + l] = static_cast<std::uint8_t>(byte);
    }
  }
}

struct EncodeQ2_K {
  static constexpr int kBlockSize = 256;
  static void encode(const SuperBlock& x, const SuperBlock& weight, std::uint8_t* block) {
    AffineSuperBlock<3, 16, 15> best;
    best.fit(x, weight);
    for (int s = 0; s < 16; ++s) {
      block[s] = static_cast<std::uint8_t>(best.scale[s] | best.min[s] << 4);
    }
    put_bit_pairs(best.code, 0, block + 16);
    put_half(best.d, block + 80);
    put_half(best.dmin, block + 82);
  }
};

struct EncodeQ3_K {
  static constexpr int kBlockSize = 256;
  static void encode(const SuperBlock& x, const SuperBlock& weight, std::uint8_t* block) {
    ScaledSuperBlock<EvenLevels<-4, 3>, 16, -32, 31> best;
    best.fit(x, weight);
    std::memset(block, 0, 110);
    for (int i = 0; i < 256; ++i) {
      block[i % 32] = static_cast<std::uint8_t>(block[i % 32] | (best.code[i] >> 2) << (i / 32));
    }
    put_bit_pairs(best.code, 0, block + 32);
    std::uint8_t* scales = block + 96;
    for (int s = 0; s < 16; ++s) {
      const int scale = best.scale[s] + 32;
      scales[s % 8] = static_cast<std::uint8_t>(scales[s % 8] | (scale & 15) << (s / 8 * 4));
      scales[8 + s % 4] = static_cast<std::uint8_t>(scales[8 + s % 4] | scale >> 4 << (s / 4 * 2));
    }
    put_half(best.d, block + 108);
  }
};

// How Q4_K and Q5_K begin.
template <class Best>
void put_scales_and_mins(const Best& best, std::uint8_t* block) {
  put_half(best.d, block);
  put_half(best.dmin, block + 2);
  std::uint8_t* packed = block + 4;
  for (int s = 0; s < 4; ++s) {
    packed[s] = static_cast<std::uint8_t>(best.scale[s] | best.scale[s + 4] >> 4 << 6);
    packed[s + 4] = static_cast<std::uint8_t>(best.min[s] | best.min[s + 4] >> 4 << 6);
    packed[s + 8] =
        static_cast<std::uint8_t>((best.scale[s + 4] & 15) | (best.min[s + 4] & 15) << 4);
  }
}

// Low nibbles as in Q4_K: each 32 bytes hold two sub-blocks of 32.
inline void put_nibble_quarters(const std::uint8_t* code, std::uint8_t* qs) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    for (int l = 0; l < 32; ++l) {
      const std::uint8_t* pair = code + quarter * 64 + l;
      qs[quarter * 32 + l] = static_cast<std::uint8_t>((pair[0] & 15) | (pair[32] & 15) << 4);
    }
  }
}

struct EncodeQ4_K {
  static constexpr int kBlockSize = 256;
  static void encode(const SuperBlock& x, const SuperBlock& weight, std::uint8_t* block) {
    AffineSuperBlock<15, 32, 63> best;
    best.fit(x, weight);
    put_scales_and_mins(best, block);
    put_nibble_quarters(best.code, block + 16);
  }
};

struct EncodeQ5_K {
  static constexpr int kBlockSize = 256;
  static void encode(const SuperBlock& x, const SuperBlock& weight, std::uint8_t* block) {
    AffineSuperBlock<31, 32, 63> best;
    best.fit(x, weight);
    put_scales_and_mins(best, block);
    for (int l = 0; l < 32; ++l) {
      int bits = 0;
      for (int s = 0; s < 8; ++s) bits |= best.code[s * 32 + l] >> 4 << s;
      block[16 + l] = static_cast<std::uint8_t>(bits);
    }
    put_nibble_quarters(best.code, block + 48);
  }
};

struct EncodeQ6_K {
  static constexpr int kBlockSize = 256;
  static void encode(const SuperBlock& x, const SuperBlock& weight, std::uint8_t* block) {
    ScaledSuperBlock<EvenLevels<-32, 31>, 16, -128, 127> best;
    best.fit(x, weight);
    put_bit_pairs(best.code, 4, block + 128);
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* code = best.code + half * 128;
      for (int l = 0; l < 64; ++l) {
        block[half * 64 + l] = static_cast<std::uint8_t>((code[l] & 15) | (code[l + 64] & 15) << 4);
      }
    }
    for (int s = 0; s < 16; ++s) block[192 + s] = static_cast<std::uint8_t>(best.scale[s]);
    put_half(best.d, block + 208);
  }
};

struct EncodeIq4_Xs {
  static constexpr int kBlockSize = 256;
  static void encode(const SuperBlock& x, const SuperBlock& weight, std::uint8_t* block) {
    ScaledSuperBlock<Iq4Levels, 32, -32, 31> best;
    best.fit(x, weight);
    std::memset(block, 0, 136);
    put_half(best.d, block);
    for (int s = 0; s < 8; ++s) {
      const int scale = best.scale[s] + 32;
      block[2 + s / 4] = static_cast<std::uint8_t>(block[2 + s / 4] | scale >> 4 << (s % 4 * 2));
      block[4 + s / 2] = static_cast<std::uint8_t>(block[4 + s / 2] | (scale & 15) << (s % 2 * 4));
      const std::uint8_t* code = best.code + s * 32;
      for (int l = 0; l < 16; ++l) {
        block[8 + s * 16 + l] = static_cast<std::uint8_t>(code[l] | code[l + 16] << 4);
      }
    }
  }
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_QUANTIZE_SUPER_BLOCKS_HPP_
