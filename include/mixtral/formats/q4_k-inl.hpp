// Q4_K: 256 weights in 144 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qs[128] }.
// Sub-block s of 32 weights: weight = d * scale[s] * q - dmin * min[s]. Each 32 bytes of qs hold two
// sub-blocks, low nibbles first. Scales and mins have 6 bits: for s < 4 the low six bits of
// scales[s] and scales[s + 4]; for s >= 4 the nibbles of scales[s + 4], topped by the upper two
// bits of scales[s - 4] and scales[s]. Layout: ggml-common.h, block_q4_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Sets the scales and offsets of a Q4_K or Q5_K block, which begin alike.
HWY_INLINE void unpack_scales_and_mins(const std::uint8_t* block, const TileRow& tile) {
  const D16Bytes d;
  // Four bytes each: scales 0 to 3, nibbles for scales 4 to 7, mins 0 to 3, nibbles for mins 4 to 7.
  alignas(16) static constexpr std::uint8_t kLow[16] = {4, 5, 6,  7,  12, 13, 14, 15,
                                                        8, 9, 10, 11, 12, 13, 14, 15};
  // Whose upper two bits top scales 4 to 7 and mins 4 to 7; 0x80 gives 0.
  alignas(16) static constexpr std::uint8_t kTop[16] = {128, 128, 128, 128, 4, 5, 6,  7,
                                                        128, 128, 128, 128, 8, 9, 10, 11};
  alignas(16) static constexpr std::uint8_t kLowMask[16] = {63, 63, 63, 63, 15, 15, 15, 15,
                                                            63, 63, 63, 63, 0,  0,  0,  0};
  alignas(16) static constexpr std::uint8_t kHighMask[16] = {0, 0, 0, 0, 0,  0,  0,  0,
                                                             0, 0, 0, 0, 15, 15, 15, 15};
  const auto head = hn::LoadU(d, block);
  const auto low = hn::TableLookupBytes(head, hn::Load(d, kLow));
  const auto top = hn::TableLookupBytesOr0(head, hn::Load(d, kTop));
  const auto bits = hn::OrAnd(hn::And(low, hn::Load(d, kLowMask)), shift_right<4>(d, low),
                              hn::Load(d, kHighMask));
  const auto all = hn::OrAnd(bits, shift_right<2>(d, top), hn::Set(d, 0x30));
  multiply_bytes<false>(all, half_to_float(block), tile.scales[0], half_to_float(block + 2),
                        tile.offsets[0]);
}

struct Q4_K {
  static constexpr std::size_t kBlockBytes = 144;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    unpack_scales_and_mins(block, tile);
    for (std::size_t quarter = 0; quarter < 4; ++quarter) {
      for_64_quants([&](auto quants) MIXTRAL_LAMBDA {
        const auto packed = quants.load(block + 16 + quarter * 32);
        const auto low_or_high = quants.template shift_right<0, 4>(packed);
        quants.store(and_bytes(low_or_high, 0x0f), tile.q + quarter * 64);
      });
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
