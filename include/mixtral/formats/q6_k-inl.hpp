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
    multiply_16_bytes(reinterpret_cast<const std::int8_t*>(block) + 192, half_to_float(block + 208),
                      tile.scales);
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint8_t* ql = block + half * 64;
      const std::uint8_t* qh = block + 128 + half * 32;
      for_32_bytes([&](auto d, std::size_t i) HWY_ATTR {
        const auto fifteen = hn::Set(d, 0x0f);
        const auto top = hn::Set(d, 0x30);
        const auto low0 = hn::LoadU(d, ql + i);
        const auto low1 = hn::LoadU(d, ql + 32 + i);
        const auto high = hn::LoadU(d, qh + i);
        std::int8_t* q = tile.q + half * 128 + i;
        store_quants(hn::Or(hn::And(low0, fifteen), hn::And(hn::ShiftLeft<4>(high), top)), d, q);
        store_quants(hn::Or(hn::And(low1, fifteen), hn::And(hn::ShiftLeft<2>(high), top)), d,
                     q + 32);
        store_quants(hn::Or(hn::ShiftRight<4>(low0), hn::And(high, top)), d, q + 64);
        store_quants(hn::Or(hn::ShiftRight<4>(low1), hn::And(hn::ShiftRight<2>(high), top)), d,
                     q + 96);
      });
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
