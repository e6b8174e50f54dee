// Per target: attention of the query heads that share a key/value head.
//
// One pass over the past with a running maximum and sum (Milakov & Gimelshein 2018, "Online normalizer
// calculation for softmax"), a block of positions at a time; each key and value is loaded once for four
// heads.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// How a row of keys or values is stored: load(d, row, i) loads a vector's columns from i on.
template <class Format>
struct KvFloats {
  static constexpr std::size_t bytes(std::size_t n) { return n * Format::kBytes; }

  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* row, std::size_t i) {
    return Format::load(d, row + i * Format::kBytes);
  }
};

struct KvQ8_0 {
  static constexpr std::size_t bytes(std::size_t n) { return n / 32 * Q8_0::kBlockBytes; }

  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* row, std::size_t i) {
    const hn::RebindToSigned<D> d32;
    const hn::Rebind<std::int8_t, D> d8;
    const std::uint8_t* block = row + i / 32 * Q8_0::kBlockBytes;
    const auto q = hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(block) + 2 + i % 32);
    return hn::Mul(hn::ConvertTo(d, hn::PromoteTo(d32, q)), hn::Set(d, half_to_float(block)));
  }
};

void store_kv(BlockFormat format, const float* x, std::size_t n, std::uint8_t* out) {
  const auto put = [&](std::size_t i, std::uint16_t bits) { std::memcpy(out + 2 * i, &bits, 2); };
  const auto largest = [](float value) {
    return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
  };
  if (format == BlockFormat::f32) {
    std::memcpy(out, x, n * sizeof(float));
  } else if (format == BlockFormat::bf16) {
    for (std::size_t i = 0; i < n; ++i) put(i, float_to_bfloat16(x[i]));
  } else if (format == BlockFormat::f16) {
    for (std::size_t i = 0; i < n; ++i) put(i, portable_float_to_half(largest(x[i])));
  } else {
    for (std::size_t i = 0; i < n; i += 32) {
      std::uint8_t* block = out + i / 32 * Q8_0::kBlockBytes;
      HWY_ALIGN std::int8_t q[32];
      std::int32_t sums[2];
      const float scale = quantize_32(x + i, full_scale, q, sums);
      const std::uint16_t bits = portable_float_to_half(largest(scale));
      std::memcpy(block, &bits, 2);
      std::memcpy(block + 2, q, 32);
    }
  }
}

// Adds up 16 times kPartialSums at `sums`, neighbours first; sums[i] then has the i-th's.
HWY_INLINE void add_partial_sums_of_16(float* sums) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  for (std::size_t left = 8 * kPartialSums; left >= 16; left /= 2) {
    for (std::size_t i = 0; i < left; i += n) {
      const auto a = hn::Load(df, sums + 2 * i);
      const auto b = hn::Load(df, sums + 2 * i + n);
      hn::Store(hn::Add(hn::ConcatEven(df, b, a), hn::ConcatOdd(df, b, a)), df, sums + i);
    }
  }
}

// The partial sums 4 * t + r are those of the product of the first n_cols of row r with those of x[t],
// for 4 rows, of which load(r, i) loads columns, and 4 tokens; n_cols is a multiple of kPartialSums.
template <class Load>
HWY_INLINE void multiply_4_rows_4_tokens(const Load& load, const float* const* x,
                                         std::size_t n_cols, float* sums) {
  const DF df;
  constexpr std::size_t n = kPartialSums;
  for (std::size_t part = 0; part < n; part += hn::Lanes(df), sums += hn::Lanes(df)) {
    VF a0 = hn::Zero(df), a1 = a0, a2 = a0, a3 = a0;
    VF b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    VF c0 = a0, c1 = a0, c2 = a0, c3 = a0;
    VF d0 = a0, d1 = a0, d2 = a0, d3 = a0;
    for (std::size_t i = part; i < n_cols; i += n) {
      const auto w0 = load(0, i), w1 = load(1, i), w2 = load(2, i), w3 = load(3, i);
      const auto x0 = hn::LoadU(df, x[0] + i);
      a0 = hn::MulAdd(w0, x0, a0), a1 = hn::MulAdd(w1, x0, a1);
      a2 = hn::MulAdd(w2, x0, a2), a3 = hn::MulAdd(w3, x0, a3);
      const auto x1 = hn::LoadU(df, x[1] + i);
      b0 = hn::MulAdd(w0, x1, b0), b1 = hn::MulAdd(w1, x1, b1);
      b2 = hn::MulAdd(w2, x1, b2), b3 = hn::MulAdd(w3, x1, b3);
      const auto x2 = hn::LoadU(df, x[2] + i);
      c0 = hn::MulAdd(w0, x2, c0), c1 = hn::MulAdd(w1, x2, c1);
      c2 = hn::MulAdd(w2, x2, c2), c3 = hn::MulAdd(w3, x2, c3);
      const auto x3 = hn::LoadU(df, x[3] + i);
      d0 = hn::MulAdd(w0, x3, d0), d1 = hn::MulAdd(w1, x3, d1);
      d2 = hn::MulAdd(w2, x3, d2), d3 = hn::MulAdd(w3, x3, d3);
    }
    hn::Store(a0, df, sums), hn::Store(a1, df, sums + n);
    hn::Store(a2, df, sums + 2 * n), hn::Store(a3, df, sums + 3 * n);
    hn::Store(b0, df, sums + 4 * n), hn::Store(b1, df, sums + 5 * n);
    hn::Store(b2, df, sums + 6 * n), hn::Store(b3, df, sums + 7 * n);
    hn::Store(c0, df, sums + 8 * n), hn::Store(c1, df, sums + 9 * n);
    hn::Store(c2, df, sums + 10 * n), hn::Store(c3, df, sums + 11 * n);
    hn::Store(d0, df, sums + 12 * n), hn::Store(d1, df, sums + 13 * n);
    hn::Store(d2, df, sums + 14 * n), hn::Store(d3, df, sums + 15 * n);
  }
}

// The partial sums r are those of the product of row r with the first n_cols of x, for 4 rows of which
// load(r, i) loads columns; n_cols is a multiple of kPartialSums.
template <class Load>
HWY_INLINE void multiply_4_rows(const Load& load, const float* x, std::size_t n_cols, float* sums) {
  const DF df;
  constexpr std::size_t n = kPartialSums;
  for (std::size_t part = 0; part < n; part += hn::Lanes(df), sums += hn::Lanes(df)) {
    VF a = hn::Zero(df), b = a, c = a, d = a;
    for (std::size_t i = part; i < n_cols; i += n) {
      const auto xi = hn::LoadU(df, x + i);
      a = hn::MulAdd(load(0, i), xi, a), b = hn::MulAdd(load(1, i), xi, b);
      c = hn::MulAdd(load(2, i), xi, c), d = hn::MulAdd(load(3, i), xi, d);
    }
    hn::Store(a, df, sums), hn::Store(b, df, sums + n);
    hn::Store(c, df, sums + 2 * n), hn::Store(d, df, sums + 3 * n);
  }
}

// scores[h][p] = q[h] . keys[p] for n positions and kHeads (1 or 4) heads.
template <class Kv, std::size_t kHeads>
HWY_INLINE void score_block(const float* const* q, const std::uint8_t* keys, std::size_t stride,
                            std::size_t n, std::size_t head_size,
                            float (*scores)[kAttentionBlock]) {
  const std::size_t n_whole = head_size / kPartialSums * kPartialSums;
  constexpr std::size_t kPositions = 16 / kHeads;  // whose sums are made together
  HWY_ALIGN float sums[16 * kPartialSums];
  for (std::size_t begin = 0; begin < n; begin += kPositions) {
    const auto key = [&](std::size_t p) {  // the last one fills up
      return keys + HWY_MIN(begin + p, n - 1) * stride;
    };
    for (std::size_t p = 0; p < kPositions; p += 4) {
      const std::uint8_t* rows[4] = {key(p), key(p + 1), key(p + 2), key(p + 3)};
      const auto load = [&](std::size_t r, std::size_t i)
                            MIXTRAL_LAMBDA { return Kv::load(DF(), rows[r], i); };
      if (kHeads == 4) {
        multiply_4_rows_4_tokens(load, q, n_whole, sums);
      } else {
        multiply_4_rows(load, q[0], n_whole, sums + p * kPartialSums);
      }
    }
    add_partial_sums_of_16(sums);
    const hn::CappedTag<float, 1> d1;
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t p = 0; p < kPositions; ++p) {
        float score = sums[h * kPositions + p];
        for (std::size_t i = n_whole; i < head_size; ++i) {
          score = multiply_add(q[h][i], hn::GetLane(Kv::load(d1, key(p), i)), score);
        }
        scores[h][begin + p] = score;
      }
    }
  }
}

// out[h] = out[h] * correction[h] + sum of weights[h][p] * values[p] over n positions.
template <class Kv, std::size_t kHeads, class D>
HWY_INLINE void add_values(D d, const float (*weights)[kAttentionBlock], const float* correction,
                           const std::uint8_t* values, std::size_t stride, std::size_t n,
                           std::size_t i, float* const* out) {
  const auto begin = [&](std::size_t h) MIXTRAL_LAMBDA {
    return hn::Mul(hn::LoadU(d, out[h] + i), hn::Set(d, correction[h]));
  };
  constexpr bool kFour = kHeads == 4;
  auto a = begin(0), b = kFour ? begin(1) : a, c = kFour ? begin(2) : a, e = kFour ? begin(3) : a;
  for (std::size_t p = 0; p < n; ++p) {
    const auto value = Kv::load(d, values + p * stride, i);
    a = hn::MulAdd(hn::Set(d, weights[0][p]), value, a);
    if (!kFour) continue;
    b = hn::MulAdd(hn::Set(d, weights[1][p]), value, b);
    c = hn::MulAdd(hn::Set(d, weights[2][p]), value, c);
    e = hn::MulAdd(hn::Set(d, weights[3][p]), value, e);
  }
  hn::StoreU(a, d, out[0] + i);
  if (!kFour) return;
  hn::StoreU(b, d, out[1] + i), hn::StoreU(c, d, out[2] + i), hn::StoreU(e, d, out[3] + i);
}

template <class Kv, std::size_t kHeads>
void attend_heads(const float* const* q, const KeysAndValues& past, std::size_t first,
                  std::size_t end, std::size_t head_size, float scale, float* const* out) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  const hn::CappedTag<float, 1> d1;
  HWY_ALIGN float scores[kHeads][kAttentionBlock];
  float largest[kHeads], sum[kHeads], correction[kHeads];
  for (std::size_t h = 0; h < kHeads; ++h) {
    largest[h] = -std::numeric_limits<float>::infinity();
    sum[h] = 0.0f;
    std::memset(out[h], 0, head_size * sizeof(float));
  }
  const auto row_at = [&](std::size_t position) {
    const std::uint8_t* page =
        past.pages + past.page_of[position / kPagePositions] * past.page_bytes;
    return page + position % kPagePositions * past.stride;
  };
  // Rows are too short for a CPU to see where they go on: what comes next is fetched ahead.
  const auto fetch = [&](const std::uint8_t* rows, std::size_t n) {
    for (std::size_t p = 0; p < n; ++p) {
      for (std::size_t i = 0; i < Kv::bytes(head_size); i += 64) {
        hwy::Prefetch(rows + p * past.stride + i);
      }
    }
  };
  for (std::size_t begin = first; begin < end;) {
    const std::size_t n = HWY_MIN(kAttentionBlock - begin % kAttentionBlock, end - begin);
    const std::uint8_t* keys = row_at(begin) + past.keys;
    const std::uint8_t* values = row_at(begin) + past.values;
    begin += n;
    fetch(values, n);
    if (begin < end) fetch(row_at(begin) + past.keys, HWY_MIN(kAttentionBlock, end - begin));
    score_block<Kv, kHeads>(q, keys, past.stride, n, head_size, scores);
    for (std::size_t h = 0; h < kHeads; ++h) {
      float block_max = scores[h][0];
      for (std::size_t p = 1; p < n; ++p) block_max = HWY_MAX(block_max, scores[h][p]);
      block_max = HWY_MAX(largest[h], block_max * scale);
      for (std::size_t p = n; p < kAttentionBlock; ++p) {
        scores[h][p] = -std::numeric_limits<float>::infinity();
      }
      for (std::size_t p = 0; p < kAttentionBlock; p += lanes) {
        const auto shifted =
            hn::MulSub(hn::Load(df, scores[h] + p), hn::Set(df, scale), hn::Set(df, block_max));
        hn::Store(hn::Exp(df, hn::Max(shifted, hn::Set(df, -200.0f))), df, scores[h] + p);
      }
      const auto fall = hn::Set(d1, HWY_MAX(largest[h] - block_max, -200.0f));
      correction[h] = hn::GetLane(hn::Exp(d1, fall));  // 0 for the first block
      float block_sum = 0.0f;
      for (std::size_t p = 0; p < n; ++p) block_sum += scores[h][p];
      sum[h] = multiply_add(sum[h], correction[h], block_sum);
      largest[h] = block_max;
    }
    for_each_vector(head_size, [&](auto d, std::size_t i) MIXTRAL_LAMBDA {
      add_values<Kv, kHeads>(d, scores, correction, values, past.stride, n, i, out);
    });
  }
  for (std::size_t h = 0; h < kHeads; ++h) {
    if (h > 0 && out[h] == out[h - 1]) break;  // one that only fills up
    const float inverse = 1.0f / sum[h];
    for (std::size_t i = 0; i < head_size; ++i) out[h][i] *= inverse;
  }
}

template <class Kv>
void attend_kv(const float* q, std::size_t n_heads, const KeysAndValues& past, std::size_t first,
               std::size_t end, std::size_t head_size, float scale, float* out) {
  if (n_heads == 1) return attend_heads<Kv, 1>(&q, past, first, end, head_size, scale, &out);
  for (std::size_t h = 0; h < n_heads; h += 4) {
    const float* heads[4];
    float* outs[4];
    for (std::size_t i = 0; i < 4; ++i) {  // the last one fills up
      const std::size_t head = HWY_MIN(h + i, n_heads - 1);
      heads[i] = q + head * head_size;
      outs[i] = out + head * head_size;
    }
    attend_heads<Kv, 4>(heads, past, first, end, head_size, scale, outs);
  }
}

void attend(const float* q, std::size_t n_heads, const KeysAndValues& past, std::size_t first,
            std::size_t end, std::size_t head_size, float scale, float* out) {
  const auto attend_as = past.format == BlockFormat::f32    ? attend_kv<KvFloats<F32>>
                         : past.format == BlockFormat::f16  ? attend_kv<KvFloats<F16>>
                         : past.format == BlockFormat::bf16 ? attend_kv<KvFloats<Bf16>>
                                                            : attend_kv<KvQ8_0>;
  attend_as(q, n_heads, past, first, end, head_size, scale, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
