// Per target: the 8-bit dot product and half-precision conversion that Highway 1.0.3 lacks.

// What a lambda in a kernel has for a target and for its inlining.
#ifndef MIXTRAL_LAMBDA
#define MIXTRAL_LAMBDA HWY_ATTR MIXTRAL_INLINED
#endif

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most kMaxLanes floats, for which buffers have room; longer vectors (SVE, RVV) use a part of theirs.
using DF = hn::CappedTag<float, 16>;
using DI32 = hn::RebindToSigned<DF>;
using DI16 = hn::Repartition<std::int16_t, DI32>;
using DI8 = hn::Repartition<std::int8_t, DI32>;
using DU8 = hn::Repartition<std::uint8_t, DI32>;
using VF = hn::Vec<DF>;
using VI32 = hn::Vec<DI32>;
using VI16 = hn::Vec<DI16>;
using VI8 = hn::Vec<DI8>;

// Where formats share more of their code, since these CPUs are too old or too few for all that takes to compile.
// (With AVX-512 without VNNI it made prompts faster, too: Q4_K 1.2 times.)
constexpr bool kSmallCode = HWY_ARCH_X86 && (HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_AVX3);

// Sums along float rows are made of so many, in an order that does not depend on the lanes.
constexpr std::size_t kPartialSums = 16;

// The dot product takes weights as unsigned bytes of full range; signed ones are stored 128 higher.
// (AVX-VNNI is no target of Highway's: it is used if the compiler's flags have it.)
#undef MIXTRAL_AVX_VNNI  // differs between targets
#if HWY_TARGET == HWY_AVX2 && defined(__AVXVNNI__)
#define MIXTRAL_AVX_VNNI 1
#else
#define MIXTRAL_AVX_VNNI 0
#endif
#if (HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86) || MIXTRAL_AVX_VNNI
constexpr bool kUnsignedDot = true;
#else
constexpr bool kUnsignedDot = false;
#endif

// v, as a sum that compilers do not put together in another order, for which they would need more registers
// than 16.
template <class V>
HWY_INLINE V in_this_order(V v) {
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
  MIXTRAL_IN_REGISTER("x", v.raw);
#endif
  return v;
}

// v, loaded from memory once, and not again by each instruction that uses it.
template <class V>
HWY_INLINE V loaded_once(V v) {
#if HWY_ARCH_X86
  MIXTRAL_IN_REGISTER("v", v.raw);
#endif
  return v;
}

// The same in code that needs more registers than 16 for it.
HWY_INLINE VI8 in_register(VI8 v) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  return loaded_once(v);
#else
  return v;
#endif
}

// Whether there is an instruction that sums the products of four columns; else two at a time are summed in
// lanes of 16 bits first.
#if (HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86) || MIXTRAL_AVX_VNNI || \
    (HWY_TARGET == HWY_NEON && defined(__ARM_FEATURE_DOTPROD))
constexpr bool kSumsQuads = true;
#else
constexpr bool kSumsQuads = false;
#endif

// In lanes of 16 bits.
HWY_INLINE VI16 even_bytes(VI8 v) {
  return hn::ShiftRight<8>(hn::ShiftLeft<8>(hn::BitCast(DI16(), v)));
}
HWY_INLINE VI16 odd_bytes(VI8 v) { return hn::ShiftRight<8>(hn::BitCast(DI16(), v)); }

// The products of w and x, exact, summed in pairs such that sum_pairs() of them has w[4i + j] * x[4i + j]
// over j < 4 in lane i. `x` is in [-127, 127]; with kSigned false, `w` is in [0, 127].
template <bool kSigned>
HWY_INLINE VI16 pair_dot(VI8 w, VI8 x) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  __m512i uw = w.raw;
  __m512i sx = x.raw;
  if (kSigned) {
    sx = _mm512_mask_sub_epi8(sx, _mm512_movepi8_mask(uw), _mm512_setzero_si512(), sx);
    uw = _mm512_abs_epi8(uw);
  }
  return VI16{_mm512_maddubs_epi16(uw, sx)};
#elif HWY_TARGET == HWY_AVX2
  __m256i uw = w.raw;
  __m256i sx = x.raw;
  if (kSigned) {
    sx = _mm256_sign_epi8(sx, uw);
    uw = _mm256_abs_epi8(uw);
  }
  return VI16{_mm256_maddubs_epi16(uw, sx)};
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  __m128i uw = w.raw;
  __m128i sx = x.raw;
  if (kSigned) {
    sx = _mm_sign_epi8(sx, uw);
    uw = _mm_abs_epi8(uw);
  }
  return VI16{_mm_maddubs_epi16(uw, sx)};
#else
  // Two products of 127 * 128 still fit a lane.
  return hn::Add(hn::Mul(even_bytes(w), even_bytes(x)), hn::Mul(odd_bytes(w), odd_bytes(x)));
#endif
}

// Lane i of the result is the sum of lanes 2i and 2i + 1.
HWY_INLINE VI32 sum_pairs(VI16 v) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  return VI32{_mm512_madd_epi16(v.raw, _mm512_set1_epi16(1))};
#elif HWY_TARGET == HWY_AVX2
  return VI32{_mm256_madd_epi16(v.raw, _mm256_set1_epi16(1))};
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  return VI32{_mm_madd_epi16(v.raw, _mm_set1_epi16(1))};
#elif HWY_TARGET == HWY_NEON
  return VI32{vpaddlq_s16(v.raw)};
#else
  const auto pairs = hn::BitCast(DI32(), v);
  return hn::Add(hn::ShiftRight<16>(hn::ShiftLeft<16>(pairs)), hn::ShiftRight<16>(pairs));
#endif
}

// sum + the products of w and x, four in a lane, as above; where kUnsignedDot, `w` is in [0, 255].
template <bool kSigned>
HWY_INLINE VI32 quad_dot_add(VI32 sum, VI8 w, VI8 x) {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  static_assert(!kSigned, "");
  return VI32{_mm512_dpbusd_epi32(sum.raw, w.raw, x.raw)};
#elif MIXTRAL_AVX_VNNI
  static_assert(!kSigned, "");
  return VI32{_mm256_dpbusd_avx_epi32(sum.raw, w.raw, x.raw)};
#elif HWY_TARGET == HWY_NEON && defined(__ARM_FEATURE_DOTPROD)
  return VI32{vdotq_s32(sum.raw, w.raw, x.raw)};
#else
  return in_this_order(hn::Add(sum, sum_pairs(pair_dot<kSigned>(w, x))));
#endif
}

// dot + scale * sum, for sums of up to four quads that fit 16 bits, signed, and a scale that is not negative: as
// numbers of 32 bits if kSumsQuads, else of 16, as pair_dot() gives them, the scale in both halves of a lane.
HWY_INLINE VI32 add_scaled_quads(VI32 dot, VI32 sum, VI32 scale) {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  return VI32{_mm512_dpwssd_epi32(dot.raw, sum.raw, scale.raw)};
#elif HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  return hn::Add(dot, VI32{_mm512_madd_epi16(sum.raw, scale.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(dot, VI32{_mm256_madd_epi16(sum.raw, scale.raw)});
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  return hn::Add(dot, VI32{_mm_madd_epi16(sum.raw, scale.raw)});
#else
  const auto whole = kSumsQuads ? sum : sum_pairs(hn::BitCast(DI16(), sum));
  return hn::Add(dot, hn::Mul(whole, hn::And(scale, hn::Set(DI32(), 0xffff))));
#endif
}

// The same for even and odd bytes, widened before because both are multiplied many times.
HWY_INLINE VI32 wide_dot_add(VI32 sum, VI16 w_even, VI16 w_odd, VI16 x_even, VI16 x_odd) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  const VI32 even{_mm512_madd_epi16(w_even.raw, x_even.raw)};
  const VI32 odd{_mm512_madd_epi16(w_odd.raw, x_odd.raw)};
#elif HWY_TARGET == HWY_AVX2
  const VI32 even{_mm256_madd_epi16(w_even.raw, x_even.raw)};
  const VI32 odd{_mm256_madd_epi16(w_odd.raw, x_odd.raw)};
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  const VI32 even{_mm_madd_epi16(w_even.raw, x_even.raw)};
  const VI32 odd{_mm_madd_epi16(w_odd.raw, x_odd.raw)};
#else
  return hn::Add(sum, sum_pairs(hn::Add(hn::Mul(w_even, x_even), hn::Mul(w_odd, x_odd))));
#endif
#if HWY_ARCH_X86
  return in_this_order(hn::Add(hn::Add(sum, even), odd));
#endif
}

// IEEE half precision to float32.
HWY_INLINE float half_to_float(const std::uint8_t* bytes) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  std::uint16_t bits;
  std::memcpy(&bits, bytes, 2);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
#else
  return portable_half_to_float(bytes);
#endif
}

// The same for a vector of their bits. Without an instruction for it in integer arithmetic, so that it
// is exact on every target (subnormals too): the magnitude bits are shifted into place and the exponent
// is corrected by a multiplication with 2^112; infinities and NaNs get the largest exponent afterwards.
template <class D>
HWY_INLINE hn::Vec<D> half_bits_to_floats(D d, hn::Vec<hn::RebindToUnsigned<D>> half) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> d_half;
  const auto narrow = hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<D>(), half));
  return hn::PromoteTo(d, hn::BitCast(d_half, narrow));
#else
  const hn::RebindToUnsigned<D> d32;
  const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(d32, 0x8000u)));
  const auto magnitude = hn::And(half, hn::Set(d32, 0x7fffu));
  const auto shifted = hn::BitCast(d, hn::ShiftLeft<13>(magnitude));
  const auto scaled =
      hn::BitCast(d32, hn::Mul(shifted, hn::BitCast(d, hn::Set(d32, (127u + 112u) << 23))));
  const auto special = hn::VecFromMask(d32, hn::Gt(magnitude, hn::Set(d32, 0x7bffu)));
  const auto bits = hn::Or(hn::Or(scaled, sign), hn::And(special, hn::Set(d32, 0x7f800000u)));
  return hn::BitCast(d, bits);
#endif
}

// The same for halves in memory.
template <class D>
HWY_INLINE hn::Vec<D> halves_to_float_vector(D d, const std::uint8_t* data) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Repartition<std::uint8_t, decltype(d16)> d8;
  const auto halves = hn::BitCast(d16, hn::LoadU(d8, data));
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), halves));
#else
  return half_bits_to_floats(d, hn::PromoteTo(hn::RebindToUnsigned<D>(), halves));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
