// Q5_1: 32 weights in 24 bytes { f16 d; f16 m; u32 qh; u8 qs[16] }, weight = d * q + m; bits as in
// Q5_0. Layout: ggml-common.h, block_q5_1.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_1 {
  static constexpr std::size_t kBlockBytes = 24;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 31;
  static constexpr std::size_t kOffsetColumns = 32;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q5_1>(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const PackedRows pair = rows.blocks<Q5_1>(step);
    constexpr std::size_t kAt = block * kBlockBytes;
    return hn::Or(nibble_quad(pair, kAt + 8, i), fifth_bits(pair.bytes(kAt + 4), i));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
