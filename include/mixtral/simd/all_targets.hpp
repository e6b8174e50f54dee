// Compiles one_target-inl.hpp for every SIMD target worth having here and picks one at run time.
//
// By default the choice is made at run time and libhwy is needed for CPU detection. With
// MIXTRAL_HEADERS_ONLY (or Highway's own HWY_COMPILE_ONLY_STATIC) there is one target, that of the
// compiler's flags, and nothing to link. SSE4 is left out of the choice: it was 1 to 7 % faster than
// SSSE3 and takes as long to compile as AVX2.
#ifndef MIXTRAL_SIMD_ALL_TARGETS_HPP_
#define MIXTRAL_SIMD_ALL_TARGETS_HPP_

#if defined(MIXTRAL_HEADERS_ONLY) && !defined(HWY_COMPILE_ONLY_STATIC)
#define HWY_COMPILE_ONLY_STATIC
#endif
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL  // Highway 1.0 compiles its AVX-512 VNNI target on request only
#endif

#include <hwy/detect_targets.h>
#include <hwy/targets.h>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "mixtral/impl/compiler.hpp"
#include "mixtral/simd/grids.hpp"
#include "mixtral/simd/half.hpp"
#include "mixtral/simd/kernels.hpp"
#include "mixtral/simd/software_fma.hpp"

#if MIXTRAL_MSVC
#include <intrin.h>
#endif

// Without -march, Highway 1.0.3 falls back to scalar or emulated code on x86-64, for want of a plain
// SSE2 target. The least that it has with vectors is SSSE3 (2006); supported_targets() checks that
// the CPU has it.
#if (HWY_STATIC_TARGET == HWY_SCALAR || HWY_STATIC_TARGET == HWY_EMU128) && HWY_ARCH_X86_64
#undef HWY_BASELINE_TARGETS
#define HWY_BASELINE_TARGETS HWY_SSSE3
#define MIXTRAL_CHECK_SSSE3
#endif
#if HWY_STATIC_TARGET == HWY_SCALAR
#error "Highway has no vectors here: pass a -march with SIMD, or use a newer Highway"
#endif

#define MIXTRAL_STRINGIFY(x) #x
#define MIXTRAL_TARGET_NAME(name) (&MIXTRAL_STRINGIFY(name)[2])  // HWY_NAMESPACE is N_AVX2 ...

namespace mixtral::simd {
// The kernels of one target; specialised by each pass over one_target-inl.hpp.
template <std::int64_t kTarget>
struct TargetTable {
  static const Kernels* get() { return nullptr; }
};
}  // namespace mixtral::simd

// Highway's headers look at this toggle to see that a new target has begun (hwy/foreach_target.h,
// whose loop this one replaces because it cannot find a file that includes itself).
#if (HWY_TARGETS & HWY_EMU128) && HWY_STATIC_TARGET != HWY_EMU128
#undef HWY_TARGET
#define HWY_TARGET HWY_EMU128
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_SSE2) && HWY_STATIC_TARGET != HWY_SSE2
#undef HWY_TARGET
#define HWY_TARGET HWY_SSE2
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_SSSE3) && HWY_STATIC_TARGET != HWY_SSSE3
#undef HWY_TARGET
#define HWY_TARGET HWY_SSSE3
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_AVX2) && HWY_STATIC_TARGET != HWY_AVX2
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX2
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_AVX3) && HWY_STATIC_TARGET != HWY_AVX3
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_AVX3_DL) && HWY_STATIC_TARGET != HWY_AVX3_DL
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3_DL
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_AVX3_ZEN4) && HWY_STATIC_TARGET != HWY_AVX3_ZEN4
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3_ZEN4
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_AVX3_SPR) && HWY_STATIC_TARGET != HWY_AVX3_SPR
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3_SPR
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_AVX10_2) && HWY_STATIC_TARGET != HWY_AVX10_2
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX10_2
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_NEON_WITHOUT_AES) && HWY_STATIC_TARGET != HWY_NEON_WITHOUT_AES
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON_WITHOUT_AES
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_NEON) && HWY_STATIC_TARGET != HWY_NEON
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_NEON_BF16) && HWY_STATIC_TARGET != HWY_NEON_BF16
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON_BF16
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_SVE) && HWY_STATIC_TARGET != HWY_SVE
#undef HWY_TARGET
#define HWY_TARGET HWY_SVE
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_SVE2) && HWY_STATIC_TARGET != HWY_SVE2
#undef HWY_TARGET
#define HWY_TARGET HWY_SVE2
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_SVE_256) && HWY_STATIC_TARGET != HWY_SVE_256
#undef HWY_TARGET
#define HWY_TARGET HWY_SVE_256
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_SVE2_128) && HWY_STATIC_TARGET != HWY_SVE2_128
#undef HWY_TARGET
#define HWY_TARGET HWY_SVE2_128
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_RVV) && HWY_STATIC_TARGET != HWY_RVV
#undef HWY_TARGET
#define HWY_TARGET HWY_RVV
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_WASM) && HWY_STATIC_TARGET != HWY_WASM
#undef HWY_TARGET
#define HWY_TARGET HWY_WASM
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_WASM_EMU256) && HWY_STATIC_TARGET != HWY_WASM_EMU256
#undef HWY_TARGET
#define HWY_TARGET HWY_WASM_EMU256
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_LSX) && HWY_STATIC_TARGET != HWY_LSX
#undef HWY_TARGET
#define HWY_TARGET HWY_LSX
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_LASX) && HWY_STATIC_TARGET != HWY_LASX
#undef HWY_TARGET
#define HWY_TARGET HWY_LASX
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_PPC8) && HWY_STATIC_TARGET != HWY_PPC8
#undef HWY_TARGET
#define HWY_TARGET HWY_PPC8
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_PPC9) && HWY_STATIC_TARGET != HWY_PPC9
#undef HWY_TARGET
#define HWY_TARGET HWY_PPC9
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_PPC10) && HWY_STATIC_TARGET != HWY_PPC10
#undef HWY_TARGET
#define HWY_TARGET HWY_PPC10
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_Z14) && HWY_STATIC_TARGET != HWY_Z14
#undef HWY_TARGET
#define HWY_TARGET HWY_Z14
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#if (HWY_TARGETS & HWY_Z15) && HWY_STATIC_TARGET != HWY_Z15
#undef HWY_TARGET
#define HWY_TARGET HWY_Z15
#include "mixtral/simd/one_target-inl.hpp"
#ifdef HWY_TARGET_TOGGLE
#undef HWY_TARGET_TOGGLE
#else
#define HWY_TARGET_TOGGLE
#endif
#endif

#undef HWY_TARGET
#define HWY_TARGET HWY_STATIC_TARGET
#include "mixtral/simd/one_target-inl.hpp"

namespace mixtral::simd {

namespace detail {

// The tables compiled in, best first: Highway numbers better targets with lower bits.
template <std::size_t... kBits>
inline void list_tables(const Kernels** tables, std::index_sequence<kBits...>) {
  ((tables[kBits] = TargetTable<std::int64_t{1} << kBits>::get()), ...);
}

inline std::int64_t supported_targets() {
#if defined(HWY_COMPILE_ONLY_STATIC) && defined(MIXTRAL_CHECK_SSSE3)
  return MIXTRAL_CPU_HAS_SSSE3() ? HWY_STATIC_TARGET : 0;
#elif defined(HWY_COMPILE_ONLY_STATIC)
  return HWY_STATIC_TARGET;
#else
  return hwy::SupportedTargets();
#endif
}

}  // namespace detail

void for_each_kernels(void (*visit)(void* context, const Kernels& kernels), void* context) {
  const Kernels* tables[63];
  detail::list_tables(tables, std::make_index_sequence<63>());
  const std::int64_t supported = detail::supported_targets();
  for (const Kernels* table : tables) {
    if (table != nullptr && (table->target_bit & supported) != 0) visit(context, *table);
  }
}

const Kernels* select_kernels(std::int64_t allowed, bool fuses_only) {
  struct Choice {
    std::int64_t allowed;
    bool fuses_only;
    const Kernels* best;
  } choice{allowed == 0 ? -1 : allowed, fuses_only, nullptr};
  for_each_kernels(
      [](void* context, const Kernels& kernels) {
        auto& c = *static_cast<Choice*>(context);
        const bool suits =
            (kernels.target_bit & c.allowed) != 0 && (kernels.fuses || !c.fuses_only);
        if (c.best == nullptr && suits) c.best = &kernels;
      },
      &choice);
  return choice.best;
}

}  // namespace mixtral::simd

#endif  // MIXTRAL_SIMD_ALL_TARGETS_HPP_
