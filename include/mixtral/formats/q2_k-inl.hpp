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
    std::uint8_t scales[16], mins[16];
    const hn::CappedTag<std::uint8_t, 16> d16;
    for (std::size_t s = 0; s < 16; s += hn::Lanes(d16)) {
      const auto packed = hn::LoadU(d16, block + s);
      hn::StoreU(hn::And(packed, hn::Set(d16, 0x0f)), d16, scales + s);
      hn::StoreU(hn::ShiftRight<4>(packed), d16, mins + s);
    }
    multiply_16_bytes(scales, half_to_float(block + 80), tile.scales);
    multiply_16_bytes(mins, half_to_float(block + 82), tile.offsets);
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint8_t* qs = block + 16 + half * 32;
      std::int8_t* q = tile.q + half * 128;
      for_32_bytes([&](auto d, std::size_t i) HWY_ATTR {
        const auto packed = hn::LoadU(d, qs + i);
        const auto three = hn::Set(d, 3);
        store_quants(hn::And(packed, three), d, q + i);
        store_quants(hn::And(hn::ShiftRight<2>(packed), three), d, q + 32 + i);
        store_quants(hn::And(hn::ShiftRight<4>(packed), three), d, q + 64 + i);
        store_quants(hn::ShiftRight<6>(packed), d, q + 96 + i);
      });
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
