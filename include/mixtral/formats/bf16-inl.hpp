// BF16: the upper half of an IEEE 754 single (bfloat16), little-endian.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct Bf16 {
  static constexpr std::size_t kBytes = 2;

  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* data) {
    const hn::Rebind<std::uint16_t, D> d16;
    const hn::Repartition<std::uint8_t, decltype(d16)> d8;
    const hn::RebindToUnsigned<D> d32;
    const auto bits = hn::BitCast(d16, hn::LoadU(d8, data));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
  }

  static HWY_INLINE float load_one(const std::uint8_t* data) {
    const std::uint32_t bits =
        static_cast<std::uint32_t>(data[0]) << 16 | static_cast<std::uint32_t>(data[1]) << 24;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
