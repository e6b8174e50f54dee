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
    const float d_scale = half_to_float(block);
    const unsigned top_bits = block[2] | static_cast<unsigned>(block[3]) << 8;
    for (std::size_t s = 0; s < 8; ++s) {
      const int low = block[4 + s / 2] >> (s % 2 * 4) & 15;
      const int high = static_cast<int>(top_bits >> (2 * s) & 3);
      set_scale<32>(tile, s * 32, d_scale * static_cast<float>((low | high << 4) - 32));
      unpack_levels_16(block + 8 + s * 16, tile.q + s * 32);
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
