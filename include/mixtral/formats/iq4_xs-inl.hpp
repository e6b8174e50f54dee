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
  static constexpr bool kOffset = false;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    const hn::CappedTag<std::uint32_t, 8> d32;
    const hn::RebindToSigned<decltype(d32)> di32;
    const hn::RebindToFloat<decltype(d32)> df;
    alignas(32) static constexpr std::uint32_t kLowShift[8] = {0, 4, 8, 12, 16, 20, 24, 28};
    alignas(32) static constexpr std::uint32_t kHighShift[8] = {0, 2, 4, 6, 8, 10, 12, 14};
    const auto low_bits = hn::Set(d32, load_u32(block + 4));
    const auto high_bits = hn::Set(d32, block[2] | static_cast<std::uint32_t>(block[3]) << 8);
    const auto d_scale = hn::Set(df, half_to_float(block));
    for (std::size_t s = 0; s < 8; s += hn::Lanes(d32)) {
      const auto low = hn::And(hn::Shr(low_bits, hn::Load(d32, kLowShift + s)), hn::Set(d32, 15));
      const auto high = hn::And(hn::Shr(high_bits, hn::Load(d32, kHighShift + s)), hn::Set(d32, 3));
      const auto both = hn::BitCast(di32, hn::Or(low, hn::ShiftLeft<4>(high)));
      const auto scale = hn::ConvertTo(df, hn::Sub(both, hn::Set(di32, 32)));
      hn::StoreU(hn::Mul(d_scale, scale), df, tile.scales[0] + s);
    }
    unpack_nibbles<16>(block + 8, tile.q, [](auto d, auto v, std::size_t, std::size_t) HWY_ATTR {
      return level_quants(d, v);
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
