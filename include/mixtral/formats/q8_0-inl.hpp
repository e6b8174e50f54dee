// Q8_0: 32 weights in 34 bytes { f16 d; i8 q[32] }, weight = d * q.
// Layout: ggml-common.h, block_q8_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q8_0 {
  static constexpr std::size_t kBlockBytes = 34;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q8_0>(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    return signed_quad(rows.blocks<Q8_0>(step).bytes(block * kBlockBytes + 2 + 4 * i));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
