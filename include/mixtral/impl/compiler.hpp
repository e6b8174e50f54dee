// What differs between compilers beside the standard. This header alone asks which compiler it is; all
// others use its macros, so that a compiler that knows none of GNU's extensions needs changes here only.
// Each public header includes it: a mode older than C++17 is told once, whichever header comes first.
#ifndef MIXTRAL_IMPL_COMPILER_HPP_
#define MIXTRAL_IMPL_COMPILER_HPP_

// MSVC keeps __cplusplus at 199711 unless it is told otherwise.
#if defined(_MSVC_LANG)
#define MIXTRAL_CPLUSPLUS _MSVC_LANG
#else
#define MIXTRAL_CPLUSPLUS __cplusplus
#endif
#if MIXTRAL_CPLUSPLUS < 201703L
#error "mixtral.hpp needs C++17: compile with -std=c++17 or later (MSVC: /std:c++17)"
// Compilers go on after an #error, but not after a file that does not exist: this one spares the reader
// the pages of errors that would follow.
#include "mixtral.hpp needs C++17"
#endif

// MSVC and clang-cl: the former knows none of what follows, the latter has no run-time library for some.
#if defined(_MSC_VER)
#define MIXTRAL_MSVC 1
#else
#define MIXTRAL_MSVC 0
#endif

// Whether GNU's extensions are known: attributes, statements of assembler, casts between vectors.
#if defined(__GNUC__) || defined(__clang__)
#define MIXTRAL_GNU_EXTENSIONS 1
#else
#define MIXTRAL_GNU_EXTENSIONS 0
#endif

// Has calls of a function checked like those of printf. Parameters are counted from 1, and `this` counts.
// (MinGW's GCC means Windows' own printf by that name, which knows no %zu, but calls its own in C++.)
#if defined(__MINGW32__) && !defined(__clang__)
#define MIXTRAL_PRINTF_LIKE(format_index, first_argument) \
  __attribute__((format(gnu_printf, format_index, first_argument)))
#elif MIXTRAL_GNU_EXTENSIONS
#define MIXTRAL_PRINTF_LIKE(format_index, first_argument) \
  __attribute__((format(printf, format_index, first_argument)))
#else
#define MIXTRAL_PRINTF_LIKE(format_index, first_argument)
#endif

// Sanitizers check each load, so that compilers take minutes for what is inlined and unrolled.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MIXTRAL_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MIXTRAL_SANITIZED 1
#endif

// The address sanitizer: memory that is poisoned must not be touched until it is unpoisoned again. Where code
// is not compiled for it, both macros do nothing, and MIXTRAL_ADDRESS_SANITIZED is 0.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MIXTRAL_ADDRESS_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(MIXTRAL_ADDRESS_SANITIZED)
#define MIXTRAL_ADDRESS_SANITIZED 1
#endif
#if defined(MIXTRAL_ADDRESS_SANITIZED)
#include <sanitizer/asan_interface.h>
#define MIXTRAL_POISON(memory, size) __asan_poison_memory_region(memory, size)
#define MIXTRAL_UNPOISON(memory, size) __asan_unpoison_memory_region(memory, size)
#else
#define MIXTRAL_ADDRESS_SANITIZED 0
#define MIXTRAL_POISON(memory, size) static_cast<void>(0)
#define MIXTRAL_UNPOISON(memory, size) static_cast<void>(0)
#endif

// Behind the parameters of a lambda that has to be inlined, which compilers do not always see the worth of.
#if MIXTRAL_GNU_EXTENSIONS && !defined(MIXTRAL_SANITIZED)
#define MIXTRAL_INLINED __attribute__((always_inline))
#else
#define MIXTRAL_INLINED
#endif

// Before a loop that is to be unrolled whole.
#if defined(MIXTRAL_SANITIZED)
#define MIXTRAL_UNROLL
#elif defined(__clang__)
#define MIXTRAL_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MIXTRAL_UNROLL _Pragma("GCC unroll 8")
#else
#define MIXTRAL_UNROLL
#endif

// A statement that does nothing to the variable v but to have it in a register of the kind that the letter
// means ("x", "v"): optimisers do not know its value afterwards.
#if MIXTRAL_GNU_EXTENSIONS
#define MIXTRAL_IN_REGISTER(letter, v) asm("" : "+" letter(v))
#else
#define MIXTRAL_IN_REGISTER(letter, v) static_cast<void>(v)
#endif

// clang 16 and 17 recurse until the stack is used up when they ask what a shuffle of BF16 costs on x86
// (llvm-project issue 68117). Apple gives its compilers other numbers: its 15 is one of these.
#if defined(__clang__) && __clang_major__ < 19 && \
    (__clang_major__ >= 16 || defined(__apple_build_version__))
#define MIXTRAL_BF16_SHUFFLES_CRASH 1
#else
#define MIXTRAL_BF16_SHUFFLES_CRASH 0
#endif

// x86 only: fetches the line of memory at p into the second level of caches.
#if MIXTRAL_GNU_EXTENSIONS
#define MIXTRAL_PREFETCH_L2(p) __builtin_prefetch(p, 0, 2)
#else
#define MIXTRAL_PREFETCH_L2(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1)
#endif

// x86 only: whether the CPU has the instructions. Where MIXTRAL_MSVC is 1, <intrin.h> has to be included.
#if MIXTRAL_MSVC
#define MIXTRAL_CPUID_BIT(leaf, subleaf, word, bit) \
  ([] {                                             \
    int words[4];                                   \
    __cpuidex(words, leaf, subleaf);                \
    return (words[word] >> bit & 1) != 0;           \
  }())
#define MIXTRAL_CPU_HAS_SSSE3() MIXTRAL_CPUID_BIT(1, 0, 2, 9)
#define MIXTRAL_CPU_HAS_AVX512_BF16() MIXTRAL_CPUID_BIT(7, 1, 0, 5)
#else
#define MIXTRAL_CPU_HAS_SSSE3() (__builtin_cpu_supports("ssse3") != 0)
#define MIXTRAL_CPU_HAS_AVX512_BF16() (__builtin_cpu_supports("avx512bf16") != 0)
#endif

#endif  // MIXTRAL_IMPL_COMPILER_HPP_
