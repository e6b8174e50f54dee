// IQ3_S: 256 weights in 110 bytes { f16 d; u8 qs[64]; u8 qh[8]; u8 signs[32]; u8 scales[4] }. A point
// of four magnitudes has 8 bits in qs and one in qh; each nibble of scales is for 32 weights:
// weight = d * (1 + 2 * scale) * +-magnitude. Layout: ggml-common.h, block_iq3_s.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Iq3_S {
  static constexpr std::size_t kBlockBytes = 110;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, const TileRow& tile) {
    const float d_scale = half_to_float(block);
    for (std::size_t s = 0; s < 8; ++s) {
      const int scale = block[106 + s / 2] >> (s % 2 * 4) & 15;
      set_scale<32>(tile, s * 32, d_scale * static_cast<float>(1 + 2 * scale));
      const unsigned high = block[66 + s];
      const std::uint8_t* qs = block + 2 + 8 * s;
      const std::uint8_t* signs = block + 74 + 4 * s;
      const auto eight = [&](std::size_t l) {
        const unsigned first = qs[2 * l] | (high >> (2 * l) & 1u) << 8;
        const unsigned second = qs[2 * l + 1] | (high >> (2 * l + 1) & 1u) << 8;
        return kIq3SGrid[first] | static_cast<std::uint64_t>(kIq3SGrid[second]) << 32;
      };
      for (std::size_t l = 0; l < 4; l += 2) {
        store_points(eight(l), eight(l + 1),
                     signs[l] | static_cast<std::uint32_t>(signs[l + 1]) << 8,
                     tile.q + s * 32 + l * 8);
      }
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
