// IQ4_NL: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * level[q]; nibbles as in Q4_0. The
// 16 levels are not evenly spaced. Layout and levels: ggml-common.h, block_iq4_nl, kvalues_iq4nl.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// The levels that nibbles stand for.
template <class D>
HWY_INLINE hn::Vec<D> level_quants(D d, hn::Vec<D> nibbles) {
  alignas(16) static constexpr std::int8_t kLevel[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                         1,    13,   25,  38,  53,  69,  89,  113};
  const hn::RebindToSigned<D> di;
  const auto levels = signed_quants(d, hn::BitCast(d, hn::LoadDup128(di, kLevel)));
  return hn::TableLookupBytes(levels, nibbles);
}

struct Iq4_Nl {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = true;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_8_blocks(const std::uint8_t* data, std::int8_t* q) {
    unpack_nibbles<kBlockBytes>(data + 2, q, [](auto d, auto v, std::size_t, std::size_t) HWY_ATTR {
      return level_quants(d, v);
    });
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Iq4_Nl>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
