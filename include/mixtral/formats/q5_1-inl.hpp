// Q5_1: 32 weights in 24 bytes { f16 d; f16 m; u32 qh; u8 qs[16] }, weight = d * q + m; bits as in
// Q5_0. Layout: ggml-common.h, block_q5_1.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_1 {
  static constexpr std::size_t kBlockBytes = 24;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_8_blocks(const std::uint8_t* data, std::int8_t* q) {
    unpack_nibbles<kBlockBytes>(data + 8, q,
                                [&](auto d, auto v, std::size_t i, std::size_t half) HWY_ATTR {
                                  return add_fifth_bits<kBlockBytes>(d, v, data + 4, i, half);
                                });
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q5_1>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
