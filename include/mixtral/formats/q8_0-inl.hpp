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

  static HWY_INLINE void unpack_8_blocks(const std::uint8_t* data, std::int8_t* q) {
    for (std::size_t b = 0; b < 8; b += 2) {
      for_64_quants([&](auto quants) MIXTRAL_LAMBDA {
        const std::uint8_t* first = data + b * kBlockBytes + 2;
        const auto v = quants.load_two(first, first + kBlockBytes);
        quants.store(signed_quants(quants.d(), v), q + b * 32);
      });
    }
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Q8_0>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
