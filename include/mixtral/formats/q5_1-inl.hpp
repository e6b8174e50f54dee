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
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    MIXTRAL_UNROLL
    for (std::size_t block = 0; block < kBlocksPerTile; ++block) {
      scales.set_scale(rows.half(block * kBlockBytes), 0, block);
      scales.set_offset(hn::Neg(rows.half(block * kBlockBytes + 2)), 0, block);
    }
  }

  template <class Quants>
  static HWY_INLINE void unpack_quants(const PackedRows& rows, std::size_t step, Quants& quants) {
    const PackedRows pair = rows.from(step * 2 * kBlockBytes);
    for_constants<2>([&](auto block) MIXTRAL_LAMBDA {
      constexpr std::size_t kBlock = decltype(block)::value, kAt = kBlock * kBlockBytes;
      const auto high = pair.bytes(kAt + 4);
      unpack_nibbles(pair, kAt + 8, [&](VU32 v, std::size_t i) MIXTRAL_LAMBDA {
        quants.store(hn::Or(v, fifth_bits(high, i)), kBlock * 8 + i);
      });
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
