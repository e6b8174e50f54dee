// Q8_0: 32 weights in 34 bytes { f16 d; i8 q[32] }, weight = d * q.
// Layout: ggml-common.h, block_q8_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q8_0 {
  static constexpr std::size_t kBlockBytes = 34;
  static constexpr bool kSigned = true;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_block(const std::uint8_t* block, std::size_t first,
                                      const TileRow& tile) {
    set_scale<32>(tile, first, half_to_float(block));
    for_32_bytes([&](auto d, std::size_t i) HWY_ATTR {
      store_signed_quants(hn::LoadU(d, block + 2 + i), d, tile.q + first + i);
    });
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q8_0>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
