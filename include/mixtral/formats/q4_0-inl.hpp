// Q4_0: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * (q - 8); the low nibbles are the
// first 16 weights, the high nibbles the others. Layout: ggml-common.h, block_q4_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q4_0 {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 8;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q4_0>(rows, scales);
  }

  template <class Quants>
  static HWY_INLINE void unpack_quants(const PackedRows& rows, std::size_t step, Quants& quants) {
    unpack_pair<Q4_0>(rows, step, [&](auto pair, std::size_t at, std::size_t quad) MIXTRAL_LAMBDA {
      const auto store = [&](VU32 v, std::size_t i) MIXTRAL_LAMBDA { quants.store(v, quad + i); };
      unpack_nibbles(pair, at + 2, store);
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
