// Per target: attention of the query heads that share a key/value head.
//
// One pass over the past with a running maximum and sum (Milakov & Gimelshein 2018, "Online normalizer
// calculation for softmax"), a block of positions at a time; each key and value is read from memory once for
// several queries and loaded once for four heads.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// How a row of keys or values is stored: load(d, row, i) loads a vector's columns from i on.
struct KvHalves {
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* row, std::size_t i) const {
    return F16::load(d, row + i * F16::kBytes);
  }
};

// All others share their code, since attention takes long to compile: what is stored is asked at each load.
struct KvOthers {
  BlockFormat format;

  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, const std::uint8_t* row, std::size_t i) const {
    if (format == BlockFormat::f32) return F32::load(d, row + i * F32::kBytes);
    if (format == BlockFormat::bf16) return Bf16::load(d, row + i * Bf16::kBytes);
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

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
// The same in registers, in two steps: the lanes of each 128 bits, of a, b, c and d one after the other, then the
// 128 bits of each.
template <class Sum>
HWY_INLINE VF add_neighbours(VF a, VF b, VF c, VF d, const Sum& sum) {
  return sum(sum(a, b), sum(c, d));
}
HWY_INLINE VF add_lanes(VF a, VF b, VF c, VF d) {
  return add_neighbours(a, b, c, d, [](VF v, VF w) MIXTRAL_LAMBDA {
    return VF{_mm512_add_ps(_mm512_shuffle_ps(v.raw, w.raw, 0x88),
                            _mm512_shuffle_ps(v.raw, w.raw, 0xdd))};
  });
}
HWY_INLINE VF add_128s(VF a, VF b, VF c, VF d) {
  return add_neighbours(a, b, c, d, [](VF v, VF w) MIXTRAL_LAMBDA {
    return VF{_mm512_add_ps(_mm512_shuffle_f32x4(v.raw, w.raw, 0x88),
                            _mm512_shuffle_f32x4(v.raw, w.raw, 0xdd))};
  });
}
#endif

// sums[4 * t + r] is the product of the first n_cols of row r with those of x[t], for 4 rows, of which load(r, i)
// loads columns, and 4 tokens; n_cols is a multiple of kPartialSums, and `sums` has room for so many of each.
template <class Load>
HWY_INLINE void multiply_4_rows_4_tokens(const Load& load, const float* const* x,
                                         std::size_t n_cols, float* sums) {
  const DF df;
  constexpr std::size_t n = kPartialSums;
  for (std::size_t part = 0; part < n; part += hn::Lanes(df)) {
    VF a0 = hn::Zero(df), a1 = a0, a2 = a0, a3 = a0;
    VF b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    VF c0 = a0, c1 = a0, c2 = a0, c3 = a0;
    VF d0 = a0, d1 = a0, d2 = a0, d3 = a0;
    for (std::size_t i = part; i < n_cols; i += n) {
      const auto w0 = load(0, i), w1 = load(1, i), w2 = load(2, i), w3 = load(3, i);
      const auto x0 = hn::LoadU(df, x[0] + i);
      a0 = mul_add(w0, x0, a0), a1 = mul_add(w1, x0, a1);
      a2 = mul_add(w2, x0, a2), a3 = mul_add(w3, x0, a3);
      const auto x1 = hn::LoadU(df, x[1] + i);
      b0 = mul_add(w0, x1, b0), b1 = mul_add(w1, x1, b1);
      b2 = mul_add(w2, x1, b2), b3 = mul_add(w3, x1, b3);
      const auto x2 = hn::LoadU(df, x[2] + i);
      c0 = mul_add(w0, x2, c0), c1 = mul_add(w1, x2, c1);
      c2 = mul_add(w2, x2, c2), c3 = mul_add(w3, x2, c3);
      const auto x3 = hn::LoadU(df, x[3] + i);
      d0 = mul_add(w0, x3, d0), d1 = mul_add(w1, x3, d1);
      d2 = mul_add(w2, x3, d2), d3 = mul_add(w3, x3, d3);
    }
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
    const auto a = add_lanes(a0, a1, a2, a3), b = add_lanes(b0, b1, b2, b3);
    const auto c = add_lanes(c0, c1, c2, c3), d = add_lanes(d0, d1, d2, d3);
    hn::Store(add_128s(a, b, c, d), df, sums);
#else
    float* to = sums + part;
    hn::Store(a0, df, to), hn::Store(a1, df, to + n);
    hn::Store(a2, df, to + 2 * n), hn::Store(a3, df, to + 3 * n);
    hn::Store(b0, df, to + 4 * n), hn::Store(b1, df, to + 5 * n);
    hn::Store(b2, df, to + 6 * n), hn::Store(b3, df, to + 7 * n);
    hn::Store(c0, df, to + 8 * n), hn::Store(c1, df, to + 9 * n);
    hn::Store(c2, df, to + 10 * n), hn::Store(c3, df, to + 11 * n);
    hn::Store(d0, df, to + 12 * n), hn::Store(d1, df, to + 13 * n);
    hn::Store(d2, df, to + 14 * n), hn::Store(d3, df, to + 15 * n);
#endif
  }
#if !(HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3)
  add_partial_sums_of_16(sums);
#endif
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
      a = mul_add(load(0, i), xi, a), b = mul_add(load(1, i), xi, b);
      c = mul_add(load(2, i), xi, c), d = mul_add(load(3, i), xi, d);
    }
    hn::Store(a, df, sums), hn::Store(b, df, sums + n);
    hn::Store(c, df, sums + 2 * n), hn::Store(d, df, sums + 3 * n);
  }
}

// Memory that is needed next and fetched little by little, since a CPU does not do much else while it
// waits for many lines. Rows are too short for it to see where they go on.
class Ahead {
 public:
  Ahead(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  // The lines of a call if all are to be fetched in n_times calls.
  HWY_INLINE std::size_t lines_for(std::size_t n_times) const {
    return (static_cast<std::size_t>(end_ - at_) / 64 + n_times) / n_times;
  }
  HWY_INLINE void fetch(std::size_t n_lines) {
    for (std::size_t i = 0; i < n_lines && at_ < end_; ++i, at_ += 64) fetch_line(at_);
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

// scores[h][p] = q[h] . keys[p] for n positions and kHeads (1 or 4) heads.
template <std::size_t kHeads, class Kv>
HWY_INLINE void score_block(Kv kv, const float* const* q, const std::uint8_t* keys,
                            std::size_t stride, std::size_t n, std::size_t head_size, Ahead ahead,
                            float (*scores)[kAttentionBlock]) {
  const std::size_t n_whole = head_size / kPartialSums * kPartialSums;
  constexpr std::size_t kPositions = 16 / kHeads;  // whose sums are made together
  HWY_ALIGN float sums[16 * kPartialSums];
  const std::size_t n_lines = ahead.lines_for((n + kPositions - 1) / kPositions);
  for (std::size_t begin = 0; begin < n; begin += kPositions) {
    ahead.fetch(n_lines);
    const auto key = [&](std::size_t p) {  // the last one fills up
      return keys + HWY_MIN(begin + p, n - 1) * stride;
    };
    for (std::size_t p = 0; p < kPositions; p += 4) {
      const std::uint8_t* rows[4] = {key(p), key(p + 1), key(p + 2), key(p + 3)};
      const auto load = [&](std::size_t r, std::size_t i)
                            MIXTRAL_LAMBDA { return kv.load(DF(), rows[r], i); };
      if (kHeads == 4) {
        multiply_4_rows_4_tokens(load, q, n_whole, sums);
      } else {
        multiply_4_rows(load, q[0], n_whole, sums + p * kPartialSums);
      }
    }
    if (kHeads != 4) add_partial_sums_of_16(sums);
    for (std::size_t h = 0; h < kHeads; ++h) {
      std::memcpy(scores[h] + begin, sums + h * kPositions, kPositions * sizeof(float));
    }
    if (n_whole == head_size) continue;
    const hn::CappedTag<float, 1> d1;
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t p = 0; p < kPositions; ++p) {
        float& score = scores[h][begin + p];
        for (std::size_t i = n_whole; i < head_size; ++i) {
          score = multiply_add(q[h][i], hn::GetLane(kv.load(d1, key(p), i)), score);
        }
      }
    }
  }
}

// out[h] = out[h] * correction[h] + sum of weights[h][p] * values[p] over n positions, for kVectors (1, 2 or
// 4) vectors of columns from i on: with more sums multiplications do not wait for each other, and weights are
// loaded less often.
template <std::size_t kHeads, std::size_t kVectors, class Kv, class D>
HWY_INLINE void add_values(Kv kv, D d, const float (*weights)[kAttentionBlock],
                           const float* correction, const std::uint8_t* values, std::size_t stride,
                           std::size_t n, std::size_t i, std::size_t n_lines, Ahead& ahead,
                           float* const* out) {
  const auto column = [&](std::size_t v) MIXTRAL_LAMBDA { return i + v * hn::Lanes(d); };
  const auto begin = [&](std::size_t h, std::size_t v) MIXTRAL_LAMBDA {
    if (h >= kHeads || v >= kVectors) return hn::Zero(d);
    return hn::Mul(hn::LoadU(d, out[h] + column(v)), hn::Set(d, correction[h]));
  };
  // Of a head and a vector. (Highway has no arrays of vectors.)
  auto a0 = begin(0, 0), a1 = begin(0, 1), a2 = begin(0, 2), a3 = begin(0, 3);
  auto b0 = begin(1, 0), b1 = begin(1, 1), b2 = begin(1, 2), b3 = begin(1, 3);
  auto c0 = begin(2, 0), c1 = begin(2, 1), c2 = begin(2, 2), c3 = begin(2, 3);
  auto e0 = begin(3, 0), e1 = begin(3, 1), e2 = begin(3, 2), e3 = begin(3, 3);
  for (std::size_t p = 0; p < n; ++p) {
    ahead.fetch(n_lines);
    const auto load = [&](std::size_t v) MIXTRAL_LAMBDA {
      return v < kVectors ? kv.load(d, values + p * stride, column(v)) : hn::Zero(d);
    };
    const auto v0 = load(0), v1 = load(1), v2 = load(2), v3 = load(3);
    const auto add = [&](std::size_t h, hn::Vec<D>& s0, hn::Vec<D>& s1, hn::Vec<D>& s2,
                         hn::Vec<D>& s3) MIXTRAL_LAMBDA {
      const auto weight = hn::Set(d, weights[h][p]);
      s0 = mul_add(weight, v0, s0);
      if (kVectors > 1) s1 = mul_add(weight, v1, s1);
      if (kVectors > 2) s2 = mul_add(weight, v2, s2), s3 = mul_add(weight, v3, s3);
    };
    add(0, a0, a1, a2, a3);
    if (kHeads == 4) add(1, b0, b1, b2, b3), add(2, c0, c1, c2, c3), add(3, e0, e1, e2, e3);
  }
  const auto store = [&](std::size_t h, hn::Vec<D> s0, hn::Vec<D> s1, hn::Vec<D> s2, hn::Vec<D> s3)
                         MIXTRAL_LAMBDA {
                           hn::StoreU(s0, d, out[h] + column(0));
                           if (kVectors > 1) hn::StoreU(s1, d, out[h] + column(1));
                           if (kVectors > 2) hn::StoreU(s2, d, out[h] + column(2));
                           if (kVectors > 2) hn::StoreU(s3, d, out[h] + column(3));
                         };
  store(0, a0, a1, a2, a3);
  if (kHeads == 4) store(1, b0, b1, b2, b3), store(2, c0, c1, c2, c3), store(3, e0, e1, e2, e3);
}

HWY_INLINE float largest_of_block(const float* v) {
  const DF df;
  VF most = hn::Load(df, v);
  for (std::size_t p = hn::Lanes(df); p < kAttentionBlock; p += hn::Lanes(df)) {
    most = hn::Max(most, hn::Load(df, v + p));
  }
  return hn::GetLane(hn::MaxOfLanes(df, most));
}

// Halves are added until one is left: an order that does not depend on the lanes.
HWY_INLINE float sum_of_block(const float* v) {
  HWY_ALIGN float sums[kAttentionBlock / 2];
  for (std::size_t left = kAttentionBlock / 2; left > 0; left /= 2, v = sums) {
    for (std::size_t p = 0; p < left; ++p) sums[p] = v[p] + v[p + left];
  }
  return sums[0];
}

// A query's heads that attend together: where they are, and what has come of them so far.
template <std::size_t kHeads>
struct HeadsState {
  const float* q[kHeads];
  float* out[kHeads];
  float largest[kHeads];
  float sum[kHeads];  // of exp(score - largest); out is as much too large
};

// So many vectors of columns are summed together, as registers have room for.
constexpr std::size_t kVectorsTogether = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3 ? 4 : 2;

// One block of positions for one query: n of them, whose keys and values are these; what is `ahead` is needed
// next.
template <class Kv, std::size_t kHeads>
HWY_INLINE void attend_block(Kv kv, const std::uint8_t* keys, const std::uint8_t* values,
                             std::size_t stride, std::size_t n, std::size_t head_size, float scale,
                             Ahead values_ahead, Ahead ahead, HeadsState<kHeads>& state) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  const hn::CappedTag<float, 1> d1;
  HWY_ALIGN float scores[kHeads][kAttentionBlock];
  float correction[kHeads];
  score_block<kHeads>(kv, state.q, keys, stride, n, head_size, values_ahead, scores);
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t p = n; p < kAttentionBlock; ++p) {
      scores[h][p] = -std::numeric_limits<float>::infinity();
    }
    const float largest = HWY_MAX(state.largest[h], largest_of_block(scores[h]) * scale);
    for (std::size_t p = 0; p < kAttentionBlock; p += lanes) {
      const auto shifted =
          mul_sub(hn::Load(df, scores[h] + p), hn::Set(df, scale), hn::Set(df, largest));
      hn::Store(exponential(df, shifted), df, scores[h] + p);
    }
    const auto fall = hn::Set(d1, state.largest[h] - largest);
    correction[h] = hn::GetLane(exponential(d1, fall));  // 0 for the first block
    state.sum[h] = multiply_add(state.sum[h], correction[h], sum_of_block(scores[h]));
    state.largest[h] = largest;
  }
  std::size_t i = 0;
  const std::size_t together = kVectorsTogether * lanes;
  const std::size_t n_lines = ahead.lines_for(n * HWY_MAX(1, head_size / together));
  for (; i + together <= head_size; i += together) {
    add_values<kHeads, kVectorsTogether>(kv, df, scores, correction, values, stride, n, i, n_lines,
                                         ahead, state.out);
  }
  for (; i + lanes <= head_size; i += lanes) {
    add_values<kHeads, 1>(kv, df, scores, correction, values, stride, n, i, 0, ahead, state.out);
  }
  for (; i < head_size; ++i) {
    add_values<kHeads, 1>(kv, d1, scores, correction, values, stride, n, i, 0, ahead, state.out);
  }
}

// For kHeads (1 or 4) heads of each query, of which head h is heads[h]. The last ones may be the same:
// they only fill up.
template <std::size_t kHeads, class Kv>
void attend_heads(Kv kv, const Query* queries, std::size_t n_queries, const std::size_t* heads,
                  const KeysAndValues& past, std::size_t head_size, float scale) {
  HeadsState<kHeads> states[kMaxQueries];
  std::size_t first = queries[0].first, end = queries[0].end;
  for (std::size_t t = 0; t < n_queries; ++t) {
    first = HWY_MIN(first, queries[t].first);
    end = HWY_MAX(end, queries[t].end);
    for (std::size_t h = 0; h < kHeads; ++h) {
      HeadsState<kHeads>& state = states[t];
      state.q[h] = queries[t].q + heads[h] * head_size;
      state.out[h] = queries[t].out + heads[h] * head_size;
      state.largest[h] = -std::numeric_limits<float>::infinity();
      state.sum[h] = 0.0f;
      std::memset(state.out[h], 0, head_size * sizeof(float));
    }
  }
  const auto row_at = [&](std::size_t position) {
    const std::uint8_t* page =
        past.pages + past.page_of[position / kPagePositions] * past.page_bytes;
    return page + position % kPagePositions * past.stride;
  };
  for (std::size_t begin = first, next; begin < end; begin = next) {
    next = HWY_MIN(begin - begin % kAttentionBlock + kAttentionBlock, end);
    Ahead values_ahead(row_at(begin) + past.values, (next - begin) * past.stride);
    const std::uint8_t* next_keys = row_at(next < end ? next : begin) + past.keys;
    Ahead ahead(next_keys, HWY_MIN(kAttentionBlock, end - next) * past.stride);
    for (std::size_t t = 0; t < n_queries; ++t) {
      const std::size_t from = HWY_MAX(begin, queries[t].first);
      const std::size_t to = HWY_MIN(next, queries[t].end);
      if (from >= to) continue;
      const std::uint8_t* rows = row_at(from);
      attend_block(kv, rows + past.keys, rows + past.values, past.stride, to - from, head_size,
                   scale, values_ahead, ahead, states[t]);
      values_ahead = ahead = Ahead(nullptr, 0);  // by now they are there
    }
  }
  for (std::size_t t = 0; t < n_queries; ++t) {
    for (std::size_t h = 0; h < kHeads; ++h) {
      if (h > 0 && heads[h] == heads[h - 1]) break;
      const float inverse = 1.0f / states[t].sum[h];
      for (std::size_t i = 0; i < head_size; ++i) states[t].out[h][i] *= inverse;
    }
  }
}

template <class Kv>
void attend_kv(Kv kv, const Query* queries, std::size_t n_queries, std::size_t n_heads,
               const KeysAndValues& past, std::size_t head_size, float scale) {
  for (std::size_t h = 0; h < n_heads; h += 4) {
    std::size_t heads[4];
    for (std::size_t i = 0; i < 4; ++i) heads[i] = HWY_MIN(h + i, n_heads - 1);
    const auto attend = n_heads == 1 ? attend_heads<1, Kv> : attend_heads<4, Kv>;
    attend(kv, queries, n_queries, heads, past, head_size, scale);
  }
}

void attend(const Query* queries, std::size_t n_queries, std::size_t n_heads,
            const KeysAndValues& past, std::size_t head_size, float scale) {
  if (past.format == BlockFormat::f16) {
    attend_kv(KvHalves(), queries, n_queries, n_heads, past, head_size, scale);
  } else {
    attend_kv(KvOthers{past.format}, queries, n_queries, n_heads, past, head_size, scale);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
