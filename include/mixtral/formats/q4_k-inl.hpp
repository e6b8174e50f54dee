// Q4_K: 256 weights in 144 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qs[128] }.
// Sub-block s of 32 weights: weight = d * scale[s] * q - dmin * min[s]. Each 32 bytes of qs hold two
// sub-blocks, low nibbles first. Scales and mins have 6 bits: for s < 4 the low six bits of
// scales[s] and scales[s + 4]; for s >= 4 the nibbles of scales[s + 4], topped by the upper two
// bits of scales[s - 4] and scales[s]. Layout: ggml-common.h, block_q4_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Sets the scales and offsets of a Q4_K or Q5_K block, which begin alike.
HWY_INLINE void unpack_scales_and_mins(const std::uint8_t* block, const TileRow& tile) {
  const std::uint32_t low_scales = load_u32(block + 4);
  const std::uint32_t low_mins = load_u32(block + 8);
  const std::uint32_t nibbles = load_u32(block + 12);
  const std::uint32_t words[4] = {
      low_scales & 0x3f3f3f3fu,
      (nibbles & 0x0f0f0f0fu) | (low_scales >> 6 & 0x03030303u) << 4,
      low_mins & 0x3f3f3f3fu,
      (nibbles >> 4 & 0x0f0f0f0fu) | (low_mins >> 6 & 0x03030303u) << 4,
  };
  std::uint8_t bytes[16];
  std::memcpy(bytes, words, sizeof bytes);
  multiply_8_bytes(bytes, half_to_float(block), tile.scales[0]);
  multiply_8_bytes(bytes + 8, half_to_float(block + 2), tile.offsets[0]);
}

struct Q4_K {
  static constexpr std::size_t kBlockBytes = 144;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
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
