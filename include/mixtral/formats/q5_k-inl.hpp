// Q5_K: 256 weights in 176 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qh[32]; u8 qs[128] }.
// As Q4_K, with a fifth bit: bit s of qh[l] belongs to weight l of sub-block s.
// Layout: ggml-common.h, block_q5_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_K {
  static constexpr std::size_t kBlockBytes = 176;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 31;
  static constexpr std::size_t kOffsetColumns = 32;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_scales_and_mins(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const auto low = rows.from(48 + step * 32).word(i);
    const auto high = hn::ShiftRightSame(rows.word(4 + i), static_cast<int>(2 * step));
    return hn::Or(shifted_bits<4 * block>(low, 0x0f),
                  shifted_bits<static_cast<int>(block) - 4>(high, 0x10));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
