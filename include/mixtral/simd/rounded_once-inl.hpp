// Per target: products and sums that are rounded once, and what is made of them.
//
// These are what results depend on, so they are the same bits on every target that has an instruction for
// them, and with MIXTRAL_STRICT_EVERYWHERE on all others, too.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

#undef MIXTRAL_SOFTWARE_FMA  // differs between targets
#if !HWY_NATIVE_FMA && defined(MIXTRAL_STRICT_EVERYWHERE)
#define MIXTRAL_SOFTWARE_FMA 1
#else
#define MIXTRAL_SOFTWARE_FMA 0
#endif
constexpr bool kFuses = HWY_NATIVE_FMA || MIXTRAL_SOFTWARE_FMA;

// a * b + c.
template <class V>
HWY_INLINE V mul_add(V a, V b, V c) {
#if MIXTRAL_SOFTWARE_FMA
  const hn::DFromV<V> d;
  HWY_ALIGN float x[kMaxLanes], y[kMaxLanes], z[kMaxLanes];
  hn::Store(a, d, x), hn::Store(b, d, y), hn::Store(c, d, z);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) z[i] = software_fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
#else
  return hn::MulAdd(a, b, c);
#endif
}

// c - a * b.
template <class V>
HWY_INLINE V neg_mul_add(V a, V b, V c) {
#if MIXTRAL_SOFTWARE_FMA
  return mul_add(hn::Neg(a), b, c);
#else
  return hn::NegMulAdd(a, b, c);
#endif
}

// a * b - c.
template <class V>
HWY_INLINE V mul_sub(V a, V b, V c) {
#if MIXTRAL_SOFTWARE_FMA
  return mul_add(a, b, hn::Neg(c));
#else
  return hn::MulSub(a, b, c);
#endif
}

// a * b + c. Compilers may join what is written as a product and a sum, or not; here, too, it is joined
// where the target can.
HWY_INLINE float multiply_add(float a, float b, float c) {
  const hn::CappedTag<float, 1> d;
  return hn::GetLane(mul_add(hn::Set(d, a), hn::Set(d, b), hn::Set(d, c)));
}

// e^x, within two units in the last place; e^88 for what is larger, 0 for what is below the least normal
// number. Range reduction and polynomial of Cephes' expf (Moshier 1992); Highway's own function may change
// from one version to the next, and results with it.
template <class D>
HWY_INLINE hn::Vec<D> exponential(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> d32;
  x = hn::Min(x, hn::Set(d, 88.0f));
  // x = n ln 2 + r. Near 1.5 * 2^23 a float's last bit is worth 1, so that its bits end in those of n.
  const auto shift = hn::Set(d, 12582912.0f);
  const auto shifted = mul_add(x, hn::Set(d, 1.44269504f), shift);
  const auto n = hn::Sub(shifted, shift);
  auto r = neg_mul_add(n, hn::Set(d, 0.693359375f), x);
  r = neg_mul_add(n, hn::Set(d, -2.12194440e-4f), r);
  auto p = mul_add(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
  p = mul_add(p, r, hn::Set(d, 8.3334519073e-3f));
  p = mul_add(p, r, hn::Set(d, 4.1665795894e-2f));
  p = mul_add(p, r, hn::Set(d, 1.6666665459e-1f));
  p = mul_add(p, r, hn::Set(d, 5.0000001201e-1f));
  p = mul_add(p, hn::Mul(r, r), hn::Add(r, hn::Set(d, 1.0f)));
  const auto exponent =
      hn::Add(hn::ShiftLeft<23>(hn::BitCast(d32, shifted)), hn::Set(d32, std::int32_t{127} << 23));
  const auto result = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -87.3f)), result);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
