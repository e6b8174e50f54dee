// Encoders of the formats with blocks of 32. What a block looks like is told in mixtral/formats/.
#ifndef MIXTRAL_IMPL_QUANTIZE_SMALL_BLOCKS_HPP_
#define MIXTRAL_IMPL_QUANTIZE_SMALL_BLOCKS_HPP_

#include "mixtral/impl/quantize/fit.hpp"

namespace mixtral::detail {

// 32 codes of four bits, or of five with the fifth bits in `bits`: weights 0..15 in the low nibbles.
inline void put_nibbles(const std::uint8_t* code, std::uint8_t* nibbles) {
  for (int i = 0; i < 16; ++i) {
    nibbles[i] = static_cast<std::uint8_t>((code[i] & 15) | (code[i + 16] & 15) << 4);
  }
}
inline void put_fifth_bits(const std::uint8_t* code, std::uint8_t* bits) {
  std::memset(bits, 0, 4);
  for (int i = 0; i < 32; ++i) {
    bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | (code[i] >> 4 & 1) << (i % 8));
  }
}

// The codes of x for scale * level - min, and none of x where the scale is 0.
template <class Levels, int n>
void put_codes(const Numbers<n>& x, float scale, float min, std::uint8_t* code) {
  const Numbers<n> level = Levels::nearest(scale == 0.0f ? Numbers<n>(Numbers<n>::Zero())
                                                         : Numbers<n>((x + min) * (1.0f / scale)));
  for (int i = 0; i < n; ++i) code[i] = Levels::code(level[i]);
}

// weight = d * level.
template <class Levels, int kReach>
struct ScaledBlock {
  std::uint8_t code[32];
  void fit(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* d) {
    const float scale = fit_scale<Levels, kReach>(x, weight);
    put_half(scale, d);
    put_codes<Levels>(x, simd::portable_half_to_float(d), 0.0f, code);
  }
};

// weight = d * q + m.
template <int kHigh>
struct AffineBlock {
  std::uint8_t code[32];
  void fit(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* d, std::uint8_t* m) {
    const AffineFit best = fit_affine<kHigh, false, 4>(x, weight);
    put_half(best.scale, d);
    put_half(-best.min, m);
    put_codes<EvenLevels<0, kHigh>>(x, simd::portable_half_to_float(d),
                                    -simd::portable_half_to_float(m), code);
  }
};

struct EncodeQ8_0 {
  static constexpr int kBlockSize = 32;
  static void encode(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* block) {
    ScaledBlock<EvenLevels<-127, 127>, 1> best;
    best.fit(x, weight, block);
    for (int i = 0; i < 32; ++i) block[2 + i] = static_cast<std::uint8_t>(best.code[i] - 127);
  }
};

template <class Levels>
struct EncodeScaledNibbles {
  static constexpr int kBlockSize = 32;
  static void encode(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* block) {
    ScaledBlock<Levels, 4> best;
    best.fit(x, weight, block);
    put_nibbles(best.code, block + 2);
  }
};
using EncodeQ4_0 = EncodeScaledNibbles<EvenLevels<-8, 7>>;
using EncodeIq4_Nl = EncodeScaledNibbles<Iq4Levels>;

struct EncodeQ5_0 {
  static constexpr int kBlockSize = 32;
  static void encode(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* block) {
    ScaledBlock<EvenLevels<-16, 15>, 4> best;
    best.fit(x, weight, block);
    put_fifth_bits(best.code, block + 2);
    put_nibbles(best.code, block + 6);
  }
};

struct EncodeQ4_1 {
  static constexpr int kBlockSize = 32;
  static void encode(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* block) {
    AffineBlock<15> best;
    best.fit(x, weight, block, block + 2);
    put_nibbles(best.code, block + 4);
  }
};

struct EncodeQ5_1 {
  static constexpr int kBlockSize = 32;
  static void encode(const Numbers<32>& x, const Numbers<32>& weight, std::uint8_t* block) {
    AffineBlock<31> best;
    best.fit(x, weight, block, block + 2);
    put_fifth_bits(best.code, block + 4);
    put_nibbles(best.code, block + 8);
  }
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_QUANTIZE_SMALL_BLOCKS_HPP_
