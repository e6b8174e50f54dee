// Q2_K: 256 weights in 84 bytes { u8 scales[16]; u8 qs[64]; f16 d; f16 dmin }.
// Sub-block s of 16 weights: weight = d * (scales[s] & 15) * q - dmin * (scales[s] >> 4).
// Each 32 bytes of qs hold 128 weights: bits 2j, 2j+1 of byte l are weight 32 j + l of those.
// Layout: ggml-common.h, block_q2_K.
//
// Quants times their scales still fit a byte, at most 3 * 15: all that is left is one scale, d. For one token it is
// less work to multiply the dots of sub-blocks, still as integers.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q2_K {
  static constexpr std::size_t kBlockBytes = 84;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kMaxQuant = 3 * 15;
  static constexpr std::size_t kOffsetColumns = 16;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 4;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    const auto d_scale = rows.half(80), d_min = rows.half(82);
    for (std::size_t i = 0; i < 4; ++i) {
      const auto high = shifted_bits<4>(rows.word(i), 0x0f);
      scales.set_scale(d_scale, 0, i * 2);
      scales.set_scale(d_scale, 0, i * 2 + 1);
      for_constants<4>([&](auto byte) MIXTRAL_LAMBDA {
        constexpr std::size_t k = decltype(byte)::value;
        scales.set_offset(hn::Mul(byte_to_float<k>(high), d_min), k % 2, i * 2 + k / 2);
      });
    }
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const auto scales = shifted_bits<0>(rows.word(2 * step + block / 2), 0x0f);
    const auto q = shifted_bits<2 * block>(rows.from(16 + step * 32).word(i), 3);
    constexpr std::size_t k = block % 2 * 2;
    return times(q, i < 4 ? byte_in_halves<k>(scales) : byte_in_halves<k + 1>(scales));
  }

  // Of any block of the tile, with the same code.
  static HWY_INLINE VU32 quad_of_block(const PackedRows& rows, std::size_t block, std::size_t i) {
    const auto q = bits_from(rows.from(16 + block / 4 * 32).word(i), block % 4 * 2, 3);
    // The scales of the two halves in the lowest bytes.
    const auto shift = hn::Set(DU32(), static_cast<std::uint32_t>(block % 2 * 16));
    const auto scales = shifted_bits<0>(hn::Shr(rows.word(block / 2), shift), 0x0f);
    return times(q, i < 4 ? byte_in_halves<0>(scales) : byte_in_halves<1>(scales));
  }

  // For one token (kScalesDots): the quants without their scales, four times as large in odd blocks, which saves
  // shifts, and what makes good for that.
  static constexpr bool kScalesDots = true;
  template <std::size_t block>
  static HWY_INLINE VU32 unscaled_quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    return shifted_bits<block / 2 * 4>(rows.from(16 + step * 32).word(i), block % 2 == 0 ? 3 : 12);
  }
  static HWY_INLINE VF unscaled_scale(VF scale, std::size_t block) {
    return block % 2 == 0 ? scale : hn::Mul(scale, hn::Set(DF(), 0.25f));
  }
  // The scale of a half of a block, as add_scaled_quads() takes it.
  template <std::size_t block>
  static HWY_INLINE VI32 half_scale(const PackedRows& rows, std::size_t step, std::size_t half) {
    const auto scales = shifted_bits<0>(rows.word(2 * step + block / 2), 0x0f);
    constexpr std::size_t k = block % 2 * 2;
    return half == 0 ? byte_to_dot_scale<k>(scales) : byte_to_dot_scale<k + 1>(scales);
  }

 private:
  // Byte k of each lane, in both its halves.
  template <std::size_t k>
  static HWY_INLINE VU32 byte_in_halves(VU32 v) {
    const auto byte = hn::And(hn::ShiftRight<8 * k>(v), hn::Set(DU32(), 0xff));
    return hn::Or(byte, hn::ShiftLeft<16>(byte));
  }

  // The bytes of q times the halves of scale: no product is carried into the next byte.
  static HWY_INLINE VU32 times(VU32 q, VU32 scale) {
    const hn::Repartition<std::uint16_t, DU32> d16;
    return hn::BitCast(DU32(), hn::Mul(hn::BitCast(d16, q), hn::BitCast(d16, scale)));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
