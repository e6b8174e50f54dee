// Q5_1: 32 weights in 24 bytes { f16 d; f16 m; u32 qh; u8 qs[16] }, weight = d * q + m; bits as in
// Q5_0. Layout: ggml-common.h, block_q5_1.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_1 {
  static constexpr std::size_t kBlockBytes = 24;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kOffsetColumns = 32;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q5_1>(rows, scales);
  }

  template <class Quants>
  static HWY_INLINE void unpack_quants(const PackedRows& rows, std::size_t step, Quants& quants) {
    unpack_pair<Q5_1>(rows, step, [&](auto pair, std::size_t at, std::size_t quad) MIXTRAL_LAMBDA {
      const auto high = pair.bytes(at + 4);
      const auto store = [&](VU32 v, std::size_t i) MIXTRAL_LAMBDA {
        quants.store(hn::Or(v, fifth_bits(high, i)), quad + i);
      };
      unpack_nibbles(pair, at + 8, store);
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
