// Q4_K: 256 weights in 144 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qs[128] }.
// Sub-block s of 32 weights: weight = d * scale[s] * q - dmin * min[s]. Each 32 bytes of qs hold two
// sub-blocks, low nibbles first. Scales and mins have 6 bits: for s < 4 the low six bits of
// scales[s] and scales[s + 4]; for s >= 4 the nibbles of scales[s + 4], topped by the upper two
// bits of scales[s - 4] and scales[s]. Layout: ggml-common.h, block_q4_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Sets the scales and offsets of a Q4_K or Q5_K block, which begin alike.
HWY_INLINE void unpack_scales_and_mins(const PackedRows& rows, const TileScales& scales) {
  const auto d_scale = rows.half(0), d_min = rows.half(2);
  const auto a = rows.word(1), b = rows.word(2), c = rows.word(3);
  const auto scales0 = shifted_bits<0>(a, 0x3f), mins0 = shifted_bits<0>(b, 0x3f);
  const auto scales4 = hn::Or(shifted_bits<0>(c, 0x0f), shifted_bits<2>(a, 0x30));
  const auto mins4 = hn::Or(shifted_bits<4>(c, 0x0f), shifted_bits<2>(b, 0x30));
  for_constants<4>([&](auto byte) MIXTRAL_LAMBDA {
    constexpr std::size_t k = decltype(byte)::value;
    scales.set_scale(hn::Mul(byte_to_float<k>(scales0), d_scale), 0, k);
    scales.set_scale(hn::Mul(byte_to_float<k>(scales4), d_scale), 0, 4 + k);
    scales.set_offset(hn::Mul(byte_to_float<k>(mins0), d_min), 0, k);
    scales.set_offset(hn::Mul(byte_to_float<k>(mins4), d_min), 0, 4 + k);
  });
}

struct Q4_K {
  static constexpr std::size_t kBlockBytes = 144;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 15;
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
    return shifted_bits<4 * block>(rows.from(16 + step * 32).word(i), 0x0f);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
