// Q5_K: 256 weights in 176 bytes { f16 d; f16 dmin; u8 scales[12]; u8 qh[32]; u8 qs[128] }.
// As Q4_K, with a fifth bit: bit s of qh[l] belongs to weight l of sub-block s.
// Layout: ggml-common.h, block_q5_K.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Q5_K {
  static constexpr std::size_t kBlockBytes = 176;
  static constexpr bool kSigned = false;
  static constexpr bool kOffset = true;
  static constexpr int kZero = 0;
  static constexpr std::size_t kScaleColumns = 32;

  static HWY_INLINE void unpack(const std::uint8_t* block, std::size_t, const TileRow& tile) {
    unpack_scales_and_mins(block, tile);
    for_64_quants([&](auto quants) MIXTRAL_LAMBDA {
      const auto high = quants.load(block + 16);
      const auto unpack_quarter = [&](std::size_t quarter, auto fifth_bits) MIXTRAL_LAMBDA {
        const auto packed = quants.load(block + 48 + quarter * 32);
        const auto low = and_bytes(quants.template shift_right<0, 4>(packed), 0x0f);
        quants.store(or_bits(low, fifth_bits, 0x10), tile.q + quarter * 64);
      };
      unpack_quarter(0, quants.template shift_left<4, 3>(high));
      unpack_quarter(1, quants.template shift_left<2, 1>(high));
      unpack_quarter(2, quants.template shift_right<0, 1>(high));
      unpack_quarter(3, quants.template shift_right<2, 3>(high));
    });
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
