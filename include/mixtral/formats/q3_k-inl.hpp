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
  static constexpr bool kOffset = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, QuantTile& tile) {
    const std::uint8_t* packed_scales = block + 96;
    const float d_scale = half_to_float(block + 108);
    for (std::size_t s = 0; s < 16; ++s) {
      const int low = s < 8 ? packed_scales[s] & 15 : packed_scales[s - 8] >> 4;
      const int high = (packed_scales[8 + s % 4] >> (2 * (s / 4))) & 3;
      const float scale = d_scale * static_cast<float>((low | high << 4) - 32);
      set_scale<16>(tile, s * 16, scale);
      tile.offset[s] = 4.0f * scale;
    }
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
