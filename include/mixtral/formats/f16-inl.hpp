// F16: IEEE 754 half precision, little-endian.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

struct F16 {
  static constexpr std::size_t kBytes = 2;

  // In integer arithmetic, so that it is exact on every target (subnormals too): the magnitude
  // bits are shifted into place and the exponent is corrected by a multiplication with 2^112;
  // infinities and NaNs get the largest exponent afterwards.
  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* data) {
    const hn::Rebind<std::uint16_t, D> d16;
    const hn::Repartition<std::uint8_t, decltype(d16)> d8;
    const hn::RebindToUnsigned<D> d32;
    const auto half = hn::PromoteTo(d32, hn::BitCast(d16, hn::LoadU(d8, data)));
    const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(d32, 0x8000u)));
    const auto magnitude = hn::And(half, hn::Set(d32, 0x7fffu));
    const auto shifted = hn::BitCast(d, hn::ShiftLeft<13>(magnitude));
    const auto scaled =
        hn::BitCast(d32, hn::Mul(shifted, hn::BitCast(d, hn::Set(d32, (127u + 112u) << 23))));
    const auto special = hn::VecFromMask(d32, hn::Gt(magnitude, hn::Set(d32, 0x7bffu)));
    const auto bits = hn::Or(hn::Or(scaled, sign), hn::And(special, hn::Set(d32, 0x7f800000u)));
    return hn::BitCast(d, bits);
  }

  static HWY_INLINE float load_one(const std::uint8_t* data) { return half_to_float(data); }
};

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
