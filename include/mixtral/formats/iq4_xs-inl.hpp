// IQ4_XS: 256 weights in 136 bytes { f16 d; u16 scales_h; u8 scales_l[4]; u8 qs[128] }.
// Sub-block s of 32 weights: weight = d * (scale[s] - 32) * level[q], levels and nibbles as in
// IQ4_NL. The 6-bit scales: low nibble of scale s in nibble s of scales_l, top two bits in bits 2s,
// 2s + 1 of scales_h. Layout: ggml-common.h, block_iq4_xs.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Iq4_Xs {
  static constexpr std::size_t kBlockBytes = 136;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    const DF df;
    const DI32 d32;
    const DU32 du32;
    const auto d_scale = rows.half(0);
    const auto high = hn::ShiftRight<16>(rows.word(0)), low = rows.word(1);
    for_constants<kBlocksPerTile>([&](auto block) MIXTRAL_LAMBDA {
      constexpr std::size_t kBlock = decltype(block)::value;
      const auto low4 = hn::And(hn::ShiftRight<4 * kBlock>(low), hn::Set(du32, 15));
      const auto top2 = hn::And(hn::ShiftRight<2 * kBlock>(high), hn::Set(du32, 3));
      const auto scale = hn::BitCast(d32, hn::Or(low4, hn::ShiftLeft<4>(top2)));
      scales.set_scale(hn::Mul(d_scale, hn::ConvertTo(df, hn::Sub(scale, hn::Set(d32, 32)))), 0,
                       kBlock);
    });
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    return signed_quad(levels_of(nibble_quad(rows.from(8 + step * 32), block * 16, i)));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
