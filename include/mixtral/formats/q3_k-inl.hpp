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
  static constexpr std::size_t kMaxQuant = 7;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 4;
  static constexpr std::size_t kScaleColumns = 16;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 4;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    const auto d_scale = rows.half(108);
    const auto a = rows.word(24), b = rows.word(25), top = rows.word(26);
    const auto set_scales = [&](VU32 low, VU32 high, std::size_t block) MIXTRAL_LAMBDA {
      const auto four = hn::Or(low, high);
      for_constants<4>([&](auto byte) MIXTRAL_LAMBDA {
        constexpr std::size_t k = decltype(byte)::value;
        const auto scale = hn::Sub(byte_to_float<k>(four), hn::Set(DF(), 32.0f));
        scales.set_scale(hn::Mul(scale, d_scale), k % 2, block + k / 2);
      });
    };
    set_scales(shifted_bits<0>(a, 0x0f), shifted_bits<-4>(top, 0x30), 0);
    set_scales(shifted_bits<0>(b, 0x0f), shifted_bits<-2>(top, 0x30), 2);
    set_scales(shifted_bits<4>(a, 0x0f), shifted_bits<0>(top, 0x30), 4);
    set_scales(shifted_bits<4>(b, 0x0f), shifted_bits<2>(top, 0x30), 6);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const auto low = rows.from(32 + step * 32).word(i);
    const auto high = hn::ShiftRightSame(rows.word(i), static_cast<int>(4 * step));
    return hn::Or(shifted_bits<2 * block>(low, 3),
                  shifted_bits<static_cast<int>(block) - 2>(high, 4));
  }

  // Of any block of the tile, with the same code.
  static HWY_INLINE VU32 quad_of_block(const PackedRows& rows, std::size_t block, std::size_t i) {
    const auto low = rows.from(32 + block / 4 * 32).word(i);
    return hn::Or(bits_from(low, block % 4 * 2, 3),
                  hn::ShiftLeft<2>(bits_from(rows.word(i), block, 1)));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
