// Loops that do nothing but read, multiply 8-bit numbers or multiply floats; compiled for every SIMD
// target, as the kernels are.
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#if defined(__x86_64__) && !defined(HWY_BASELINE_TARGETS) && !defined(__SSE4_1__)
#define HWY_BASELINE_TARGETS HWY_SSSE3  // Highway 1.0 would take scalar code; see all_targets.hpp
#endif
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "limits.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>

#include <cstdint>
#include <cstring>
#include <mixtral/simd/half.hpp>
#include <mixtral/simd/kernels.hpp>

// As in mixtral/simd/one_target-inl.hpp.
#if HWY_TARGET == HWY_AVX3_DL && HWY_MAJOR == 1 && HWY_MINOR == 0 && HWY_PATCH < 5
#undef HWY_TARGET_STR
#define HWY_TARGET_STR                                            \
  HWY_TARGET_STR_AVX3                                             \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg," \
  "avx512vpopcntdq,avx512vnni"
#endif

#include <mixtral/simd/dot-inl.hpp>

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Each gives the operations it did; what it computed goes to `sink`, so that it has to be done. There are twelve
// sums, so that none waits for the one before; all have other factors or begin otherwise, or the compiler
// would do one for all.
double multiply_int8(std::size_t n, float* sink) {
  const DI32 d;
  const DI8 d8;
  const std::size_t lanes = hn::Lanes(d8);
  constexpr std::size_t kSums = 12, kTurns = 4;
  HWY_ALIGN std::int8_t factors[kTurns * kSums * kMaxLanes * 4];
  for (std::int8_t& factor : factors) factor = static_cast<std::int8_t>(&factor - factors);
  const auto w = hn::Set(d8, 3);
  VI32 a = hn::Zero(d), b = a, c = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a, m = a;
  for (std::size_t turn = 0; turn < n; ++turn) {
    const std::int8_t* x = factors + turn % kTurns * kSums * lanes;
    const auto add = [&](VI32& sum, std::size_t factor) MIXTRAL_LAMBDA {
      const auto v = hn::Load(d8, x + factor * lanes);
      if (kSumsQuads) {
        sum = quad_dot_add<false>(sum, w, v);
      } else {  // as far as sums of 16 bits go
        const auto pairs = hn::Add(hn::BitCast(DI16(), sum), pair_dot<false>(w, v));
        sum = hn::BitCast(d, in_this_order(pairs));
      }
    };
    add(a, 0), add(b, 1), add(c, 2), add(e, 3), add(f, 4), add(g, 5);
    add(h, 6), add(i, 7), add(j, 8), add(k, 9), add(l, 10), add(m, 11);
  }
  const auto sum_of = [](VI32 x, VI32 y, VI32 z)
                          MIXTRAL_LAMBDA { return hn::Add(hn::Add(x, y), z); };
  a = hn::Add(sum_of(sum_of(a, b, c), sum_of(e, f, g), sum_of(h, i, j)), sum_of(k, l, m));
  *sink = static_cast<float>(hn::GetLane(a));
  return kSums * 8.0 * static_cast<double>(n * hn::Lanes(d));
}

double multiply_f32(std::size_t n, float* sink) {
  const DF d;
  constexpr std::size_t kSums = 12;
  const auto w = hn::Set(d, 0.999f);
  const auto x = hn::Set(d, *sink);
  const auto next = [&](VF sum) MIXTRAL_LAMBDA { return hn::MulAdd(sum, w, x); };
  VF a = x, b = next(a), c = next(b), e = next(c), f = next(e), g = next(f);
  VF h = next(g), i = next(h), j = next(i), k = next(j), l = next(k), m = next(l);
  for (std::size_t turn = 0; turn < n; ++turn) {
    a = next(a), b = next(b), c = next(c), e = next(e), f = next(f), g = next(g);
    h = next(h), i = next(i), j = next(j), k = next(k), l = next(l), m = next(m);
  }
  const auto sum_of = [](VF u, VF v, VF y) MIXTRAL_LAMBDA { return hn::Add(hn::Add(u, v), y); };
  a = hn::Add(sum_of(sum_of(a, b, c), sum_of(e, f, g), sum_of(h, i, j)), sum_of(k, l, m));
  *sink = hn::GetLane(a);
  return kSums * 2.0 * static_cast<double>(n * hn::Lanes(d));
}

// Reads n bytes, a multiple of 256.
void read(const std::uint8_t* data, std::size_t n, float* sink) {
  const DI32 d;
  const DI8 d8;
  VI32 a = hn::Zero(d), b = a;
  for (std::size_t k = 0; k < n; k += 2 * hn::Lanes(d8)) {
    a = hn::Add(a, hn::BitCast(d, hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(data) + k)));
    b = hn::Add(b, hn::BitCast(d, hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(data) + k +
                                                    hn::Lanes(d8))));
  }
  *sink = static_cast<float>(hn::GetLane(hn::Add(a, b)));
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <chrono>
#include <mixtral/impl/slab.hpp>
#include <new>
#include <vector>

#include "limits.hpp"

namespace mixtral::simd {
HWY_EXPORT(multiply_int8);
HWY_EXPORT(multiply_f32);
HWY_EXPORT(read);
}  // namespace mixtral::simd

namespace program {

namespace {

// The best of several runs of `work(chunk)`, which gives how much it did, on all threads.
template <class Work>
double best_rate(mixtral::Executor executor, const Work& work) {
  const std::size_t n_chunks = 8 * executor.concurrency();  // a thread that comes late does fewer
  double best = 0.0;
  for (int run = 0; run < 8; ++run) {
    std::vector<double> done(n_chunks);
    const auto body = [&](std::size_t chunk) { done[chunk] = work(chunk, n_chunks); };
    const auto start = std::chrono::steady_clock::now();
    executor.run(n_chunks, mixtral::Chunks(body));
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double sum = 0.0;
    for (const double d : done) sum += d;
    best = std::max(best, sum / seconds);
  }
  return best;
}

}  // namespace

Limits measure_limits(mixtral::Executor executor) {
  using namespace mixtral::simd;  // HWY_DYNAMIC_DISPATCH wants plain names
  Limits limits;
  // Memory as copied weights have, with large pages.
  constexpr std::size_t kBytes = std::size_t{512} << 20;
  mixtral::detail::Slab slab;
  if (!slab.reserve(std::pmr::new_delete_resource(), kBytes)) throw std::bad_alloc();
  auto* memory = slab.take<std::uint8_t>(kBytes);
  std::memset(memory, 1, kBytes);
  limits.read_bytes = best_rate(executor, [&](std::size_t chunk, std::size_t n_chunks) {
    const std::size_t size = kBytes / n_chunks / 256 * 256;
    float sink;
    HWY_DYNAMIC_DISPATCH(read)(memory + chunk * size, size, &sink);
    volatile float kept = sink;
    static_cast<void>(kept);
    return static_cast<double>(size);
  });
  constexpr std::size_t kLoops = 200000;
  limits.int8_ops = best_rate(executor, [](std::size_t, std::size_t) {
    volatile float kept = 1.0f;
    float sink = kept;
    const double done = HWY_DYNAMIC_DISPATCH(multiply_int8)(kLoops, &sink);
    kept = sink;
    return done;
  });
  limits.f32_ops = best_rate(executor, [](std::size_t, std::size_t) {
    volatile float kept = 1.0f;
    float sink = kept;
    const double done = HWY_DYNAMIC_DISPATCH(multiply_f32)(kLoops, &sink);
    kept = sink;
    return done;
  });
  return limits;
}

}  // namespace program
#endif  // HWY_ONCE
