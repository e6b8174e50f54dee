// Q4_K: 256 weights in 144 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qs[128] }.
// Sub-block s of 32 weights: weight = d * scale[s] * q - dmin * min[s]. Each 32 bytes of qs hold two
// sub-blocks, low nibbles first. Scales and mins have 6 bits: for s < 4 the low six bits of
// scales[s] and scales[s + 4]; for s >= 4 the nibbles of scales[s + 4], topped by the upper two
// bits of scales[s - 4] and scales[s]. Layout: ggml-common.h, block_q4_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Sets the scales and offsets of a Q4_K or Q5_K block, which begin alike.
HWY_INLINE void unpack_scales_and_mins(const std::uint8_t* block, QuantTile& tile) {
  const float d_scale = half_to_float(block);
  const float d_min = half_to_float(block + 2);
  const std::uint8_t* packed = block + 4;
  for (std::size_t s = 0; s < 8; ++s) {
    const int scale = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | (packed[s - 4] >> 6) << 4;
    const int min = s < 4 ? packed[s + 4] & 63 : packed[s + 4] >> 4 | (packed[s] >> 6) << 4;
    set_scale<32>(tile, s * 32, d_scale * static_cast<float>(scale));
    set_offset<32>(tile, s * 32, d_min * static_cast<float>(min));
  }
}

struct Q4_K {
  static constexpr std::size_t kBlockBytes = 144;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, QuantTile& tile) {
    unpack_scales_and_mins(block, tile);
    for (std::size_t quarter = 0; quarter < 4; ++quarter) {
      for_32_bytes([&](auto d, std::size_t i) HWY_ATTR {
        const auto packed = hn::LoadU(d, block + 16 + quarter * 32 + i);
        store_quants(hn::And(packed, hn::Set(d, 0x0f)), d, tile.q + quarter * 64 + i);
        store_quants(hn::ShiftRight<4>(packed), d, tile.q + quarter * 64 + 32 + i);
      });
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
