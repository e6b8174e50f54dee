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

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    const auto packed_scales = even_then_odd(hn::LoadU(D16Bytes(), block));
    const auto fifteen = hn::Set(D16Bytes(), 0x0f);
    const float d_scale = half_to_float(block + 80);
    const float d_min = half_to_float(block + 82);
    multiply_bytes<false>(hn::And(packed_scales, fifteen), d_scale, tile.scales[0], d_scale,
                          tile.scales[1]);
    multiply_bytes<false>(hn::And(shift_right<4>(D16Bytes(), packed_scales), fifteen), d_min,
                          tile.offsets[0], d_min, tile.offsets[1]);
    for (std::size_t half = 0; half < 2; ++half) {
      for_64_quants([&](auto quants) MIXTRAL_LAMBDA {
        const auto packed = quants.load(block + 16 + half * 32);
        std::int8_t* q = tile.q + half * 128;
        quants.store(and_bytes(quants.template shift_right<0, 2>(packed), 3), q);
        quants.store(and_bytes(quants.template shift_right<4, 6>(packed), 3), q + 64);
      });
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
