// IQ3_XXS: 256 weights in 98 bytes { f16 d; u8 qs[64]; u32 signs[8] }. Each of qs is a point of four
// magnitudes; each 32 weights have 4 x 7 signs and, on top, a scale of 4 bits:
// weight = d * (0.5 + scale) / 2 * +-magnitude. Layout: ggml-common.h, block_iq3_xxs.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Iq3_Xxs {
  static constexpr std::size_t kBlockBytes = 98;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, const TileRow& tile) {
    const float d_scale = 0.5f * half_to_float(block);
    const auto eight = [](const std::uint8_t* q) {
      return kIq3XxsGrid[q[0]] | static_cast<std::uint64_t>(kIq3XxsGrid[q[1]]) << 32;
    };
    for (std::size_t s = 0; s < 8; ++s) {
      const std::uint32_t signs = load_u32(block + 66 + 4 * s);
      set_scale<32>(tile, s * 32, d_scale * (0.5f + static_cast<float>(signs >> 28)));
      for (std::size_t l = 0; l < 4; l += 2) {
        const std::uint8_t* q = block + 2 + 8 * s + 2 * l;
        store_points(eight(q), eight(q + 2),
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
