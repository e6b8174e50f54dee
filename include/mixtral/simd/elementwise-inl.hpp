// Per target: the network's vector operations.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Calls body(tag, i) over [0, n) in whole vectors, then one element at a time.
template <class Body>
HWY_INLINE void for_each_vector(std::size_t n, const Body& body) {
  const DF df;
  const hn::CappedTag<float, 1> d1;
  const std::size_t lanes = hn::Lanes(df);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) body(df, i);
  for (; i < n; ++i) body(d1, i);
}

// Column i of n counts to sum i % 16; then neighbours are added until one is left.
HWY_INLINE float dot(const float* a, const float* b, std::size_t n) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  const std::size_t whole = n / kPartialSums * kPartialSums;
  HWY_ALIGN float sums[kPartialSums];
  for (std::size_t part = 0; part < kPartialSums; part += lanes) {
    VF sum = hn::Zero(df);
    for (std::size_t i = part; i < whole; i += kPartialSums) {
      sum = mul_add(hn::LoadU(df, a + i), hn::LoadU(df, b + i), sum);
    }
    hn::Store(sum, df, sums + part);
  }
  for (std::size_t i = whole; i < n; ++i) {
    sums[i - whole] = multiply_add(a[i], b[i], sums[i - whole]);
  }
  for (std::size_t left = kPartialSums / 2; left > 0; left /= 2) {
    for (std::size_t i = 0; i < left; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  }
  return sums[0];
}

void rms_norm(const float* x, const float* weight, float epsilon, std::size_t n, float* out) {
  const float mean = dot(x, x, n) / static_cast<float>(n);
  const float scale = 1.0f / std::sqrt(mean + epsilon);
  for_each_vector(n, [&](auto d, std::size_t i) HWY_ATTR {
    const auto normalized = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale));
    hn::StoreU(hn::Mul(normalized, hn::LoadU(d, weight + i)), d, out + i);
  });
}

void swiglu(float* gate, const float* up, std::size_t n) {
  for_each_vector(n, [&](auto d, std::size_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, gate + i);
    const auto sigmoid_denominator = hn::Add(hn::Set(d, 1.0f), exponential(d, hn::Neg(g)));
    const auto silu = hn::Div(g, sigmoid_denominator);
    hn::StoreU(hn::Mul(silu, hn::LoadU(d, up + i)), d, gate + i);
  });
}

void rotate(float* x, const float* cos2, const float* sin2, std::size_t n) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  std::size_t i = 0;
  if (lanes >= 2) {
    for (; i + lanes <= n; i += lanes) {
      const auto v = hn::LoadU(df, x + i);
      const auto swapped = hn::Reverse2(df, v);  // (x1, x0, x3, x2 ...)
      const auto turned = hn::Mul(swapped, hn::LoadU(df, sin2 + i));
      const auto cosine = hn::LoadU(df, cos2 + i);
      // even lanes: x0 cos - x1 sin; odd lanes: x1 cos + x0 sin
      hn::StoreU(hn::OddEven(mul_add(v, cosine, turned), mul_sub(v, cosine, turned)), df, x + i);
    }
  }
  for (; i + 1 < n; i += 2) {
    const float a = x[i];
    const float b = x[i + 1];
    x[i] = multiply_add(a, cos2[i], -(b * sin2[i]));
    x[i + 1] = multiply_add(b, cos2[i], a * sin2[i]);
  }
}

void add_scaled(float a, const float* x, std::size_t n, float* y) {
  for_each_vector(n, [&](auto d, std::size_t i) HWY_ATTR {
    hn::StoreU(mul_add(hn::Set(d, a), hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
  });
}

// Rounds to the nearest BF16, of two to the even one; what is tiny becomes 0: see kLeastBf16.
void to_bf16(const float* x, std::size_t n, std::uint16_t* out) {
  const DF df;
  const DU32 d32;
  const hn::RebindToSigned<DU32> di32;
  const hn::Rebind<std::uint16_t, DF> d16;
  const std::size_t lanes = hn::Lanes(df);
  HWY_ALIGN float rest[kMaxLanes] = {};
  HWY_ALIGN std::uint16_t rounded[kMaxLanes];
  for (std::size_t i = 0; i < n; i += lanes) {
    const bool whole = i + lanes <= n;
    if (!whole) std::memcpy(rest, x + i, (n - i) * sizeof(float));
    const auto v = hn::LoadU(df, whole ? x + i : rest);
    const auto bits = hn::BitCast(d32, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
    const auto sum = hn::Add(hn::Add(bits, odd), hn::Set(d32, 0x7fff));
    const auto big_enough = hn::Ge(hn::Abs(v), hn::Set(df, 0x1p-50f));
    const auto number = hn::IfThenElseZero(hn::RebindMask(d32, big_enough), sum);
    const auto kept =
        hn::IfThenElse(hn::RebindMask(d32, hn::Eq(v, v)), number, hn::Set(d32, 0x7fc00000u));
    const auto narrow = hn::DemoteTo(d16, hn::BitCast(di32, hn::ShiftRight<16>(kept)));
    hn::StoreU(narrow, d16, whole ? out + i : rounded);
    if (!whole) std::memcpy(out + i, rounded, (n - i) * sizeof *out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
