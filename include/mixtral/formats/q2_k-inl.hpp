// Q2_K: 256 weights in 84 bytes { u8 scales[16]; u8 qs[64]; f16 d; f16 dmin }.
// Sub-block s of 16 weights: weight = d * (scales[s] & 15) * q - dmin * (scales[s] >> 4).
// Each 32 bytes of qs hold 128 weights: bits 2j, 2j+1 of byte l are weight 32 j + l of those.
// Layout: ggml-common.h, block_q2_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q2_K {
  static constexpr std::size_t kBlockBytes = 84;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 16;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 4;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    const auto d_scale = rows.half(80), d_min = rows.half(82);
    for (std::size_t i = 0; i < 4; ++i) {
      const auto low = shifted_bits<0>(rows.word(i), 0x0f);
      const auto high = shifted_bits<4>(rows.word(i), 0x0f);
      for_constants<4>([&](auto byte) MIXTRAL_LAMBDA {
        constexpr std::size_t k = decltype(byte)::value;
        scales.set_scale(hn::Mul(byte_to_float<k>(low), d_scale), k % 2, i * 2 + k / 2);
        scales.set_offset(hn::Mul(byte_to_float<k>(high), d_min), k % 2, i * 2 + k / 2);
      });
    }
  }

  template <class Quants>
  static HWY_INLINE void unpack_quants(const PackedRows& rows, std::size_t step, Quants& quants) {
    const PackedRows packed = rows.from(16 + step * 32);
    MIXTRAL_UNROLL
    for (std::size_t i = 0; i < 8; ++i) {
      quants.store(shifted_bits<0>(packed.word(i), 3), i);
      quants.store(shifted_bits<2>(packed.word(i), 3), 8 + i);
      quants.store(shifted_bits<4>(packed.word(i), 3), 16 + i);
      quants.store(shifted_bits<6>(packed.word(i), 3), 24 + i);
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
