// IQ4_NL: 32 weights in 18 bytes { f16 d; u8 qs[16] }, weight = d * level[q]; nibbles as in Q4_0. The
// 16 levels are not evenly spaced. Layout and levels: ggml-common.h, block_iq4_nl, kvalues_iq4nl.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Stores the levels of 16 bytes of nibbles, low nibbles first.
HWY_INLINE void unpack_levels_16(const std::uint8_t* nibbles, std::int8_t* q) {
  alignas(16) static constexpr std::int8_t kLevel[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                         1,    13,   25,  38,  53,  69,  89,  113};
  const hn::CappedTag<std::uint8_t, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto levels = signed_quants(d, hn::BitCast(d, hn::LoadDup128(di, kLevel)));
  const auto packed = hn::LoadU(d, nibbles);
  store_quants(hn::TableLookupBytes(levels, hn::And(packed, hn::Set(d, 0x0f))), d, q);
  store_quants(hn::TableLookupBytes(levels, hn::ShiftRight<4>(packed)), d, q + 16);
}

struct Iq4_Nl {
  static constexpr std::size_t kBlockBytes = 18;
  static constexpr bool kSigned = true;
  static constexpr bool kOffset = false;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack_block(const std::uint8_t* block, std::size_t first,
                                      const TileRow& tile) {
    set_scale<32>(tile, first, half_to_float(block));
    unpack_levels_16(block + 2, tile.q + first);
  }

  static HWY_INLINE void unpack(const std::uint8_t* data, std::size_t n_cols, const TileRow& tile) {
    unpack_small_blocks<Iq4_Nl>(data, n_cols / 32, tile);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
