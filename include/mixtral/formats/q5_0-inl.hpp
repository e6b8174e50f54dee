// Q5_0: 32 weights in 22 bytes { f16 d; u32 qh; u8 qs[16] }, weight = d * (q - 16); nibbles as in
// Q4_0, bit i of qh is the fifth bit of weight i. Layout: ggml-common.h, block_q5_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_0 {
  static constexpr std::size_t kBlockBytes = 22;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 31;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 16;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q5_0>(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const PackedRows pair = rows.blocks<Q5_0>(step);
    constexpr std::size_t kAt = block * kBlockBytes;
    return hn::Or(nibble_quad(pair, kAt + 6, i), fifth_bits(pair.bytes(kAt + 2), i));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
