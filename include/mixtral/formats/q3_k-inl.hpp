// Q3_K: 256 weights in 110 bytes { u8 hmask[32]; u8 qs[64]; u8 scales[12]; f16 d }.
// Sub-block s of 16 weights: weight = d * (scale[s] - 32) * (q + 4 * h - 4), where q are two bits
// laid out as in Q2_K and h of weight 32 g + l is bit g of hmask[l]. The sixteen 6-bit scales:
// low nibbles in bytes 0..7 (scales 0..7 low half, 8..15 high half), top two bits of scale s in
// bits 2 (s / 4), 2 (s / 4) + 1 of byte 8 + s % 4. Layout: ggml-common.h, block_q3_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q3_K {
  static constexpr std::size_t kBlockBytes = 110;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 4;
  static constexpr std::size_t kScaleColumns = 16;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    // The low nibbles of scales 0..7 and 8..15, and two more bits for each.
    const std::uint32_t low0 = load_u32(block + 96);
    const std::uint32_t low1 = load_u32(block + 100);
    const std::uint32_t top = load_u32(block + 104);
    const std::uint32_t words[4] = {
        (low0 & 0x0f0f0f0fu) | (top & 0x03030303u) << 4,
        (low1 & 0x0f0f0f0fu) | (top >> 2 & 0x03030303u) << 4,
        (low0 >> 4 & 0x0f0f0f0fu) | (top >> 4 & 0x03030303u) << 4,
        (low1 >> 4 & 0x0f0f0f0fu) | (top >> 6 & 0x03030303u) << 4,
    };
    std::int8_t scales[16];
    std::memcpy(scales, words, sizeof scales);
    for (std::int8_t& scale : scales) scale = static_cast<std::int8_t>(scale - 32);
    multiply_16_bytes(scales, half_to_float(block + 108), tile.scales);
    for_32_bytes([&](auto d, std::size_t i) HWY_ATTR {
      const auto three = hn::Set(d, 3);
      const auto four = hn::Set(d, 4);
      const auto high = hn::LoadU(d, block + i);
      const auto first = hn::LoadU(d, block + 32 + i);
      const auto second = hn::LoadU(d, block + 64 + i);
      std::int8_t* q = tile.q + i;
      const auto join = [&](auto low, auto high_bit) HWY_ATTR {
        return hn::Or(hn::And(low, three), hn::And(high_bit, four));
      };
      store_quants(join(first, hn::ShiftLeft<2>(high)), d, q);
      store_quants(join(hn::ShiftRight<2>(first), hn::ShiftLeft<1>(high)), d, q + 32);
      store_quants(join(hn::ShiftRight<4>(first), high), d, q + 64);
      store_quants(join(hn::ShiftRight<6>(first), hn::ShiftRight<1>(high)), d, q + 96);
      store_quants(join(second, hn::ShiftRight<2>(high)), d, q + 128);
      store_quants(join(hn::ShiftRight<2>(second), hn::ShiftRight<3>(high)), d, q + 160);
      store_quants(join(hn::ShiftRight<4>(second), hn::ShiftRight<4>(high)), d, q + 192);
      store_quants(join(hn::ShiftRight<6>(second), hn::ShiftRight<5>(high)), d, q + 224);
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
