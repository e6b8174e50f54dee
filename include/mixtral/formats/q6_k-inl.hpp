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
  static constexpr bool kOffset = false;
  static constexpr int kZero = 32;
  static constexpr std::size_t kScaleColumns = 16;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    const float d_scale = half_to_float(block + 208);
    multiply_bytes<true>(even_then_odd(hn::LoadU(D16Bytes(), block + 192)), d_scale, tile.scales[0],
                         d_scale, tile.scales[1]);
    for (std::size_t half = 0; half < 2; ++half) {
      for_64_quants([&](auto quants) MIXTRAL_LAMBDA {
        const auto low = quants.load_64(block + half * 64);
        const auto high = quants.load(block + 128 + half * 32);
        std::int8_t* q = tile.q + half * 128;
        quants.store(or_bits(and_bytes(low, 0x0f), quants.template shift_left<4, 2>(high), 0x30),
                     q);
        quants.store(or_bits(and_bytes(quants.template shift_right<4, 4>(low), 0x0f),
                             quants.template shift_right<0, 2>(high), 0x30),
                     q + 64);
      });
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
