// IQ2_S: 256 weights in 82 bytes { f16 d; u8 qs[32]; u8 signs[32]; u8 qh[8]; u8 scales[8] }. A point
// of the grid has 8 bits in qs and two in qh; scales as in IQ2_XS:
// weight = d * (0.5 + scale) / 4 * +-magnitude. Layout: ggml-common.h, block_iq2_s.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Iq2_S {
  static constexpr std::size_t kBlockBytes = 82;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 16;
  static constexpr bool kByRow = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, const TileRow& tile) {
    const float d_scale = 0.25f * half_to_float(block);
    const std::uint8_t* qs = block + 2;
    const std::uint8_t* signs = block + 34;
    for (std::size_t s = 0; s < 16; ++s) {
      const int scale = block[74 + s / 2] >> (s % 2 * 4) & 15;
      set_scale<16>(tile, s * 16, d_scale * (0.5f + static_cast<float>(scale)));
      const unsigned high = block[66 + s / 2] >> (s % 2 * 4);
      store_points(
          kIq2SGrid[qs[2 * s] | (high & 3u) << 8], kIq2SGrid[qs[2 * s + 1] | (high >> 2 & 3u) << 8],
          signs[2 * s] | static_cast<std::uint32_t>(signs[2 * s + 1]) << 8, tile.q + s * 16);
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
