// IQ2_XS: 256 weights in 74 bytes { f16 d; u16 qs[32]; u8 scales[8] }. Each of qs is a point of the
// grid (9 bits) and 7 signs; each nibble of scales is for 16 weights, low ones first:
// weight = d * (0.5 + scale) / 4 * +-magnitude. Layout: ggml-common.h, block_iq2_xs.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Iq2_Xs {
  static constexpr std::size_t kBlockBytes = 74;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 16;
  static constexpr bool kByRow = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, const TileRow& tile) {
    const float d_scale = 0.25f * half_to_float(block);
    for (std::size_t s = 0; s < 16; ++s) {
      const int scale = block[66 + s / 2] >> (s % 2 * 4) & 15;
      set_scale<16>(tile, s * 16, d_scale * (0.5f + static_cast<float>(scale)));
      const std::uint32_t pair = load_u32(block + 2 + 4 * s);
      store_points(kIq2XsGrid[pair & 511], kIq2XsGrid[pair >> 16 & 511],
                   even_signs(pair >> 9 & 127) | even_signs(pair >> 25) << 8, tile.q + s * 16);
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
