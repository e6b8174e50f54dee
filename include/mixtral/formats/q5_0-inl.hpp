// Q5_0: 32 weights in 22 bytes { f16 d; u32 qh; u8 qs[16] }, weight = d * (q - 16); nibbles as in
// Q4_0, bit i of qh is the fifth bit of weight i. Layout: ggml-common.h, block_q5_0.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_0 {
  static constexpr std::size_t kBlockBytes = 22;
  static constexpr bool kSigned = false;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 16;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Q5_0>(rows, scales);
  }

  template <class Quants>
  static HWY_INLINE void unpack_quants(const PackedRows& rows, std::size_t step, Quants& quants) {
    unpack_pair<Q5_0>(rows, step, [&](auto pair, std::size_t at, std::size_t quad) MIXTRAL_LAMBDA {
      const auto high = pair.bytes(at + 2);
      const auto store = [&](VU32 v, std::size_t i) MIXTRAL_LAMBDA {
        quants.store(hn::Or(v, fifth_bits(high, i)), quad + i);
      };
      unpack_nibbles(pair, at + 6, store);
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
