// Q6_K: 256 weights in 210 bytes { u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d }.
// Sub-block s of 16 weights: weight = d * scales[s] * (q - 32). Each half of 128 weights has 64
// bytes of ql and 32 of qh: weight 32 g + l takes its low nibble from ql[l + 32 (g % 2)] (low half
// for g < 2, high half otherwise) and its top bits from bits 2g, 2g+1 of qh[l].
// Layout: ggml-common.h, block_q6_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q6_K {
  static constexpr std::size_t kBlockBytes = 210;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 63;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 32;
  static constexpr std::size_t kScaleColumns = 16;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 4;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    const auto d_scale = rows.half(208);
    for (std::size_t i = 0; i < 4; ++i) {
      for_constants<4>([&](auto byte) MIXTRAL_LAMBDA {
        constexpr std::size_t k = decltype(byte)::value;
        const auto scale = signed_byte_to_float<k>(rows.word(48 + i));
        scales.set_scale(hn::Mul(scale, d_scale), k % 2, i * 2 + k / 2);
      });
    }
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const auto low = rows.from(step * 64).word(block % 2 * 8 + i);
    const auto high = rows.from(128 + step * 32).word(i);
    return hn::Or(shifted_bits<block / 2 * 4>(low, 0x0f),
                  shifted_bits<2 * static_cast<int>(block) - 4>(high, 0x30));
  }

  // Of any block of the tile, with the same code.
  static HWY_INLINE VU32 quad_of_block(const PackedRows& rows, std::size_t block, std::size_t i) {
    const std::size_t step = block / 4, in_step = block % 4;
    const auto low = rows.from(step * 64 + in_step % 2 * 32).word(i);
    const auto high = rows.from(128 + step * 32).word(i);
    return hn::Or(bits_from(low, in_step / 2 * 4, 0x0f),
                  hn::ShiftLeft<4>(bits_from(high, in_step * 2, 3)));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
