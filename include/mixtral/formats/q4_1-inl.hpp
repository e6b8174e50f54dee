// Q4_1: 32 weights in 20 bytes { f16 d; f16 m; u8 qs[16] }, weight = d * q + m; nibbles as in Q4_0.
// Layout: ggml-common.h, block_q4_1.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q4_1 {
  static constexpr std::size_t kBlockBytes = 20;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 15;
  static constexpr std::size_t kOffsetColumns = 32;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q4_1>(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    return nibble_quad(rows.blocks<Q4_1>(step), block * kBlockBytes + 4, i);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
