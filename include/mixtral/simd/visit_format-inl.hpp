// Per target: from a format's name to its class.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Calls visit.quantized<Format>() or visit.floating<Format>() for the class of `format`.
template <class Visitor>
HWY_INLINE void visit_format(BlockFormat format, const Visitor& visit) {
  switch (format) {
    case BlockFormat::f32: return visit.template floating<F32>();
    case BlockFormat::f16: return visit.template floating<F16>();
    case BlockFormat::bf16: return visit.template floating<Bf16>();
    case BlockFormat::q8_0: return visit.template quantized<Q8_0>();
    case BlockFormat::q4_0: return visit.template quantized<Q4_0>();
    case BlockFormat::q4_1: return visit.template quantized<Q4_1>();
    case BlockFormat::q5_0: return visit.template quantized<Q5_0>();
    case BlockFormat::q5_1: return visit.template quantized<Q5_1>();
    case BlockFormat::q2_k: return visit.template quantized<Q2_K>();
    case BlockFormat::q3_k: return visit.template quantized<Q3_K>();
    case BlockFormat::q4_k: return visit.template quantized<Q4_K>();
    case BlockFormat::q5_k: return visit.template quantized<Q5_K>();
    case BlockFormat::q6_k: return visit.template quantized<Q6_K>();
    case BlockFormat::iq2_xxs: return visit.template quantized<Iq2_Xxs>();
    case BlockFormat::iq2_xs: return visit.template quantized<Iq2_Xs>();
    case BlockFormat::iq2_s: return visit.template quantized<Iq2_S>();
    case BlockFormat::iq3_xxs: return visit.template quantized<Iq3_Xxs>();
    case BlockFormat::iq3_s: return visit.template quantized<Iq3_S>();
    case BlockFormat::iq4_nl: return visit.template quantized<Iq4_Nl>();
    case BlockFormat::iq4_xs: return visit.template quantized<Iq4_Xs>();
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
