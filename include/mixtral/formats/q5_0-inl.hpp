// Q5_0: 32 weights in 22 bytes { f16 d; u32 qh; u8 qs[16] }, weight = d * (q - 16); nibbles as in
// Q4_0, bit i of qh is the fifth bit of weight i. Layout: ggml-common.h, block_q5_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Stores the 32 quants of 16 bytes of nibbles and 4 bytes of fifth bits.
HWY_INLINE void unpack_nibbles_and_bits_16(const std::uint8_t* nibbles, const std::uint8_t* bits,
                                           std::int8_t* q) {
  const hn::CappedTag<std::uint8_t, 16> d;
  const auto sixteen = hn::Set(d, 16);
  const auto packed = hn::LoadU(d, nibbles);
  const std::uint32_t low_bits = bits[0] | static_cast<std::uint32_t>(bits[1]) << 8;
  const std::uint32_t high_bits = bits[2] | static_cast<std::uint32_t>(bits[3]) << 8;
  store_quants(
      hn::Or(hn::And(packed, hn::Set(d, 0x0f)), hn::And(spread_bits(d, low_bits), sixteen)), d, q);
  store_quants(hn::Or(hn::ShiftRight<4>(packed), hn::And(spread_bits(d, high_bits), sixteen)), d,
               q + 16);
}

struct Q5_0 {
  static constexpr std::size_t kBlockBytes = 22;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 16;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_block(const std::uint8_t* block, std::size_t first,
                                      const TileRow& tile) {
    set_scale<32>(tile, first, half_to_float(block));
    unpack_nibbles_and_bits_16(block + 6, block + 2, tile.q + first);
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q5_0>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
