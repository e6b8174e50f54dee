// IQ2_XXS: 256 weights in 66 bytes { f16 d; u16 qs[32] }. Each 32 weights have 8 bytes: four points
// of the grid, a byte each, then 32 bits with 4 x 7 signs and, on top, a scale of 4 bits:
// weight = d * (0.5 + scale) / 4 * +-magnitude. Layout: ggml-common.h, block_iq2_xxs.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Iq2_Xxs {
  static constexpr std::size_t kBlockBytes = 66;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, const TileRow& tile) {
    const float d_scale = 0.25f * half_to_float(block);
    for (std::size_t s = 0; s < 8; ++s) {
      const std::uint8_t* part = block + 2 + 8 * s;
      const std::uint32_t signs = load_u32(part + 4);
      set_scale<32>(tile, s * 32, d_scale * (0.5f + static_cast<float>(signs >> 28)));
      for (std::size_t l = 0; l < 4; l += 2) {
        store_points(kIq2XxsGrid[part[l]], kIq2XxsGrid[part[l + 1]],
                     even_signs(signs >> (7 * l) & 127) | even_signs(signs >> (7 * l + 7) & 127)
                                                              << 8,
                     tile.q + s * 32 + l * 8);
      }
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
