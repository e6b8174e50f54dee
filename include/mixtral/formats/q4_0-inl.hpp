// Q4_0: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * (q - 8); the low nibbles are the
// first 16 weights, the high nibbles the others. Layout: ggml-common.h, block_q4_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Stores the 32 quants of 16 bytes of nibbles, low nibbles first.
HWY_INLINE void unpack_nibbles_16(const std::uint8_t* nibbles, std::int8_t* q) {
  const hn::CappedTag<std::uint8_t, 16> d;
  const auto packed = hn::LoadU(d, nibbles);
  store_quants(hn::And(packed, hn::Set(d, 0x0f)), d, q);
  store_quants(hn::ShiftRight<4>(packed), d, q + 16);
}

struct Q4_0 {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 8;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_block(const std::uint8_t* block, std::size_t first,
                                      const TileRow& tile) {
    set_scale<32>(tile, first, half_to_float(block));
    unpack_nibbles_16(block + 2, tile.q + first);
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q4_0>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
