// Q5_K: 256 weights in 176 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qh[32]; u8 qs[128] }.
// As Q4_K, with a fifth bit: bit s of qh[l] belongs to weight l of sub-block s.
// Layout: ggml-common.h, block_q5_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_K {
  static constexpr std::size_t kBlockBytes = 176;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    unpack_scales_and_mins(block, tile);
    for_32_bytes([&](auto d, std::size_t i) HWY_ATTR {
      const auto fifteen = hn::Set(d, 0x0f);
      const auto sixteen = hn::Set(d, 0x10);
      const auto high = hn::LoadU(d, block + 16 + i);
      const auto unpack_quarter = [&](std::size_t quarter, auto low_bit, auto high_bit) HWY_ATTR {
        const auto packed = hn::LoadU(d, block + 48 + quarter * 32 + i);
        std::int8_t* q = tile.q + quarter * 64 + i;
        store_quants(hn::Or(hn::And(packed, fifteen), hn::And(low_bit, sixteen)), d, q);
        store_quants(hn::Or(hn::ShiftRight<4>(packed), hn::And(high_bit, sixteen)), d, q + 32);
      };
      unpack_quarter(0, hn::ShiftLeft<4>(high), hn::ShiftLeft<3>(high));
      unpack_quarter(1, hn::ShiftLeft<2>(high), hn::ShiftLeft<1>(high));
      unpack_quarter(2, high, hn::ShiftRight<1>(high));
      unpack_quarter(3, hn::ShiftRight<2>(high), hn::ShiftRight<3>(high));
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
