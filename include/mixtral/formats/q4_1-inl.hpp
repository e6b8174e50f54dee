// Q4_1: 32 weights in 20 bytes { f16 d; f16 m; u8 qs[16] }, weight = d * q + m; nibbles as in Q4_0.
// Layout: ggml-common.h, block_q4_1.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q4_1 {
  static constexpr std::size_t kBlockBytes = 20;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_block(const std::uint8_t* block, std::size_t first,
                                      const TileRow& tile) {
    set_scale<32>(tile, first, half_to_float(block));
    set_offset<32>(tile, first, -half_to_float(block + 2));
    unpack_nibbles_16(block + 4, tile.q + first);
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q4_1>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
