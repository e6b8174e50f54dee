// F32: little-endian IEEE 754 single precision.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct F32 {
  static constexpr std::size_t kBytes = 4;

  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* data) {
    const hn::Repartition<std::uint8_t, D> d8;
    return hn::BitCast(d, hn::LoadU(d8, data));
  }

  static HWY_INLINE float load_one(const std::uint8_t* data) {
    float value;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
