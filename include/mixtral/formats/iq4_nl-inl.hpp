// IQ4_NL: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * level[q]; nibbles as in Q4_0. The
// 16 levels are not evenly spaced. Layout and levels: ggml-common.h, block_iq4_nl, kvalues_iq4nl.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// The levels that nibbles, one in each byte, stand for.
HWY_INLINE VU32 levels_of(VU32 nibbles) {
  alignas(16) static constexpr std::int8_t kLevel[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                         1,    13,   25,  38,  53,  69,  89,  113};
  const DI8 d;
  const auto levels = hn::LoadDup128(d, kLevel);
  return hn::BitCast(DU32(), hn::TableLookupBytes(levels, hn::BitCast(d, nibbles)));
}

struct Iq4_Nl {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = true;
  static constexpr std::size_t kOffsetColumns = 0;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;
  static constexpr bool kByRow = false;
  static constexpr std::size_t kStepBlocks = 2;

  static HWY_INLINE void unpack_scales(const PackedRows& rows, const TileScales& scales) {
    unpack_block_scales<Iq4_Nl>(rows, scales);
  }

  template <std::size_t block>
  static HWY_INLINE VU32 quad(const PackedRows& rows, std::size_t step, std::size_t i) {
    const PackedRows pair = rows.blocks<Iq4_Nl>(step);
    return signed_quad(levels_of(nibble_quad(pair, block * kBlockBytes + 2, i)));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
