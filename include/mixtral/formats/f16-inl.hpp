// F16: IEEE 754 half precision, little-endian.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct F16 {
  static constexpr std::size_t kBytes = 2;

  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* data) {
    return halves_to_float_vector(d, data);
  }

  static HWY_INLINE float load_one(const std::uint8_t* data) { return half_to_float(data); }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
