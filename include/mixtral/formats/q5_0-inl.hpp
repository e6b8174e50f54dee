// Q5_0: 32 weights in 22 bytes { f16 d; u32 qh; u8 qs[16] }, weight = d * (q - 16); nibbles as in
// Q4_0, bit i of qh is the fifth bit of weight i. Layout: ggml-common.h, block_q5_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_0 {
  static constexpr std::size_t kBlockBytes = 22;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 16;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_8_blocks(const std::uint8_t* data, std::int8_t* q) {
    unpack_nibbles<kBlockBytes>(data + 6, q,
                                [&](auto d, auto v, std::size_t i, std::size_t half) HWY_ATTR {
                                  return add_fifth_bits<kBlockBytes>(d, v, data + 2, i, half);
                                });
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q5_0>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
