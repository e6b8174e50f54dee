// Q3_K: 256 weights in 110 bytes { u8 hmask[32]; u8 qs[64]; u8 scales[12]; f16 d }.
// Sub-block s of 16 weights: weight = d * (scale[s] - 32) * (q + 4 * h - 4), where q are two bits
// laid out as in Q2_K and h of weight 32 g + l is bit g of hmask[l]. The sixteen 6-bit scales:
// low nibbles in bytes 0..7 (scales 0..7 low half, 8..15 high half), top two bits of scale s in
// bits 2 (s / 4), 2 (s / 4) + 1 of byte 8 + s % 4. Layout: ggml-common.h, block_q3_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q3_K {
  static constexpr std::size_t kBlockBytes = 110;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 4;
  static constexpr std::size_t kScaleColumns = 16;

  static HWY_INLINE void unpack_scales(const std::uint8_t* block, const TileRow& tile) {
    const D16Bytes d;
    // Of the scales with even numbers, then of those with odd ones, where in the last 16 bytes of the
    // block (two quants, 12 bytes of scales, d) the nibble and the top bits are.
    alignas(16) static constexpr std::uint8_t kNibble[16] = {2, 4, 6, 8, 2, 4, 6, 8,
                                                             3, 5, 7, 9, 3, 5, 7, 9};
    alignas(16) static constexpr std::uint8_t kTop[16] = {10, 12, 10, 12, 10, 12, 10, 12,
                                                          11, 13, 11, 13, 11, 13, 11, 13};
    // Scales 0 to 7 have the low nibbles; of 4 scales each the top bits are 2 places further up.
    alignas(16) static constexpr std::uint8_t kLow[16] = {15, 15, 15, 15, 0, 0, 0, 0,
                                                          15, 15, 15, 15, 0, 0, 0, 0};
    alignas(16) static constexpr std::uint8_t kHigh[16] = {0, 0, 0, 0, 15, 15, 15, 15,
                                                           0, 0, 0, 0, 15, 15, 15, 15};
    alignas(16) static constexpr std::uint8_t kTop0[16] = {48, 48, 0, 0, 0, 0, 0, 0,
                                                           48, 48, 0, 0, 0, 0, 0, 0};
    alignas(16) static constexpr std::uint8_t kTop1[16] = {0, 0, 48, 48, 0, 0, 0, 0,
                                                           0, 0, 48, 48, 0, 0, 0, 0};
    alignas(16) static constexpr std::uint8_t kTop2[16] = {0, 0, 0, 0, 48, 48, 0, 0,
                                                           0, 0, 0, 0, 48, 48, 0, 0};
    alignas(16) static constexpr std::uint8_t kTop3[16] = {0, 0, 0, 0, 0, 0, 48, 48,
                                                           0, 0, 0, 0, 0, 0, 48, 48};
    const auto tail = hn::LoadU(d, block + 94);
    const auto nibbles = hn::TableLookupBytes(tail, hn::Load(d, kNibble));
    const auto top = hn::TableLookupBytes(tail, hn::Load(d, kTop));
    auto scales = hn::And(nibbles, hn::Load(d, kLow));
    scales = hn::OrAnd(scales, shift_right<4>(d, nibbles), hn::Load(d, kHigh));
    scales = hn::OrAnd(scales, shift_left<4>(d, top), hn::Load(d, kTop0));
    scales = hn::OrAnd(scales, shift_left<2>(d, top), hn::Load(d, kTop1));
    scales = hn::OrAnd(scales, top, hn::Load(d, kTop2));
    scales = hn::OrAnd(scales, shift_right<2>(d, top), hn::Load(d, kTop3));
    const float d_scale = half_to_float(block + 108);
    multiply_bytes<true>(hn::Sub(scales, hn::Set(d, 32)), d_scale, tile.scales[0], d_scale,
                         tile.scales[1]);
  }

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    unpack_scales(block, tile);
    for_64_quants([&](auto quants) MIXTRAL_LAMBDA {
      const auto high = quants.load(block);
      const auto first = quants.load(block + 32);
      const auto second = quants.load(block + 64);
      const auto join = [&](auto low, auto high_bits, std::size_t col) MIXTRAL_LAMBDA {
        quants.store(or_bits(and_bytes(low, 3), high_bits, 4), tile.q + col);
      };
      join(quants.template shift_right<0, 2>(first), quants.template shift_left<2, 1>(high), 0);
      join(quants.template shift_right<4, 6>(first), quants.template shift_right<0, 1>(high), 64);
      join(quants.template shift_right<0, 2>(second), quants.template shift_right<2, 3>(high), 128);
      join(quants.template shift_right<4, 6>(second), quants.template shift_right<4, 5>(high), 192);
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
