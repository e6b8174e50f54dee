// Q4_0: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * (q - 8); the low nibbles are the
// first 16 weights, the high nibbles the others. Layout: ggml-common.h, block_q4_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q4_0 {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 15;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 8;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q4_0>(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    return nibble_quad(rows.blocks<Q4_0>(step), block * kBlockBytes + 2, i);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
