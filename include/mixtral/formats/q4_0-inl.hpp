// Q4_0: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * (q - 8); the low nibbles are the
// first 16 weights, the high nibbles the others. Layout: ggml-common.h, block_q4_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q4_0 {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 8;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_8_blocks(const std::uint8_t* data, std::int8_t* q) {
    unpack_nibbles<kBlockBytes>(data + 2, q,
                                [](auto, auto v, std::size_t, std::size_t) HWY_ATTR { return v; });
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q4_0>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
