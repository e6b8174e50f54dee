// Everything that is compiled once for each SIMD target. No include guard: all_targets.hpp includes
// this file several times, with another HWY_TARGET each time.

#include <hwy/cache_control.h>
#include <hwy/highway.h>

// Products of BF16 by instructions; if that is 1, in this target's CPUs there may be some, to be asked for.
#undef MIXTRAL_BF16_DOT  // differs between targets
#define MIXTRAL_BF16_DOT 0
#if HWY_ARCH_X86 && HWY_MAJOR == 1 && HWY_MINOR == 0 && HWY_PATCH < 5
#if HWY_TARGET == HWY_AVX3_DL
// Highway 1.0.3 detects VNNI for its AVX3_DL target but does not tell the compiler to allow it.
#undef HWY_TARGET_STR
#define HWY_TARGET_STR                                            \
  HWY_TARGET_STR_AVX3                                             \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg," \
  "avx512vpopcntdq,avx512vnni,avx512bf16"
#undef MIXTRAL_BF16_DOT
#define MIXTRAL_BF16_DOT 1
#endif
#elif HWY_ARCH_X86 && (HWY_TARGET == HWY_AVX3_ZEN4 || HWY_TARGET == HWY_AVX3_SPR)
#undef MIXTRAL_BF16_DOT
#define MIXTRAL_BF16_DOT 1
#endif
#if !MIXTRAL_GNU_EXTENSIONS  // which it takes to cast a vector to one of BF16
#undef MIXTRAL_BF16_DOT
#define MIXTRAL_BF16_DOT 0
#endif

// Targets with AVX-512 differ in the dot products alone. All else those after the first take from there.
#undef MIXTRAL_TAKES_COMMON
#if HWY_ARCH_X86 && HWY_TARGET < HWY_AVX3 && defined(MIXTRAL_HAS_AVX3)
#define MIXTRAL_TAKES_COMMON 1
namespace mixtral::simd::HWY_NAMESPACE {
namespace common = N_AVX3;
}
#else
#define MIXTRAL_TAKES_COMMON 0
namespace mixtral::simd::HWY_NAMESPACE {
namespace common = HWY_NAMESPACE;
}
#endif
#if HWY_ARCH_X86 && HWY_TARGET == HWY_AVX3
#define MIXTRAL_HAS_AVX3
#endif

#include "mixtral/simd/dot-inl.hpp"
#include "mixtral/simd/rounded_once-inl.hpp"
#include "mixtral/simd/tile-inl.hpp"
//
#include "mixtral/formats/bf16-inl.hpp"
#include "mixtral/formats/f16-inl.hpp"
#include "mixtral/formats/f32-inl.hpp"
#include "mixtral/formats/iq2_s-inl.hpp"
#include "mixtral/formats/iq2_xs-inl.hpp"
#include "mixtral/formats/iq2_xxs-inl.hpp"
#include "mixtral/formats/iq3_s-inl.hpp"
#include "mixtral/formats/iq3_xxs-inl.hpp"
#include "mixtral/formats/iq4_nl-inl.hpp"
#include "mixtral/formats/iq4_xs-inl.hpp"
#include "mixtral/formats/q2_k-inl.hpp"
#include "mixtral/formats/q3_k-inl.hpp"
#include "mixtral/formats/q4_0-inl.hpp"
#include "mixtral/formats/q4_1-inl.hpp"
#include "mixtral/formats/q4_k-inl.hpp"
#include "mixtral/formats/q5_0-inl.hpp"
#include "mixtral/formats/q5_1-inl.hpp"
#include "mixtral/formats/q5_k-inl.hpp"
#include "mixtral/formats/q6_k-inl.hpp"
#include "mixtral/formats/q8_0-inl.hpp"
//
#include "mixtral/simd/activations-inl.hpp"
#include "mixtral/simd/unpack-inl.hpp"
//
#include "mixtral/simd/block_dot-inl.hpp"
//
#include "mixtral/simd/matmul_floats-inl.hpp"
#include "mixtral/simd/matmul_rows-inl.hpp"
//
#include "mixtral/simd/matmul_groups-inl.hpp"
//
#include "mixtral/simd/visit_format-inl.hpp"
//
#include "mixtral/simd/matmul-inl.hpp"
#if !MIXTRAL_TAKES_COMMON
#include "mixtral/simd/decode_rows-inl.hpp"
#include "mixtral/simd/elementwise-inl.hpp"
#include "mixtral/simd/interleave-inl.hpp"
//
#include "mixtral/simd/attention-inl.hpp"
#endif

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

constexpr Kernels kKernels{MIXTRAL_TARGET_NAME(HWY_NAMESPACE),
                           HWY_TARGET,
                           kFuses,
                           lanes,
                           kMinGroupedTokens,
                           matmul,
                           matmul_groups,
                           matmul_bf16,
                           common::interleaved_row_bytes,
                           common::interleave,
                           common::decode_rows,
                           quantize,
                           quantize_group,
                           pack,
                           common::to_bf16,
                           common::rms_norm,
                           common::swiglu,
                           common::rotate,
                           common::add_scaled,
                           common::store_kv,
                           common::attend};

}  // namespace HWY_NAMESPACE

template <>
struct TargetTable<HWY_TARGET> {
  static const Kernels* get() { return &HWY_NAMESPACE::kKernels; }
};

}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
