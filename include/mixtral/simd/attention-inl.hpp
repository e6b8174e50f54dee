// Per target: attention of the query heads that share a key/value head.
//
// One pass over the past with a running maximum and sum (Milakov & Gimelshein 2018, "Online normalizer
// calculation for softmax"), a block of positions at a time; each key and value is loaded once for four
// heads.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// scores[h][p] = q[h] . keys[p] for n positions and kHeads (1 or 4) heads.
template <std::size_t kHeads>
HWY_INLINE void score_block(const float* const* q, const float* keys, std::size_t stride,
                            std::size_t n, std::size_t head_size,
                            float (*scores)[kAttentionBlock]) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  const std::size_t n_whole = head_size / lanes * lanes;
  constexpr std::size_t kPositions = 16 / kHeads;  // whose sums are made together
  HWY_ALIGN float sums[16 * 16];
  for (std::size_t begin = 0; begin < n; begin += kPositions) {
    const float* rows[kPositions];
    for (std::size_t p = 0; p < kPositions; ++p) {  // the last one fills up
      rows[p] = keys + HWY_MIN(begin + p, n - 1) * stride;
    }
    if (kHeads == 4) {
      multiply_4_rows_4_tokens(rows, q, n_whole, sums);
    } else {
      for (std::size_t p = 0; p < kPositions; p += 4) {
        const auto load = [&](std::size_t r, std::size_t i)
                              MIXTRAL_LAMBDA { return hn::LoadU(DF(), rows[p + r] + i); };
        multiply_4_rows(load, q[0], n_whole, sums + p * lanes);
      }
    }
    sum_lanes_of_16(sums);
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t p = 0; p < kPositions; ++p) {
        float score = sums[h * kPositions + p];
        for (std::size_t i = n_whole; i < head_size; ++i) score += q[h][i] * rows[p][i];
        scores[h][begin + p] = score;
      }
    }
  }
}

// out[h] = out[h] * correction[h] + sum of weights[h][p] * values[p] over n positions.
template <std::size_t kHeads, class D>
HWY_INLINE void add_values(D d, const float (*weights)[kAttentionBlock], const float* correction,
                           const float* values, std::size_t stride, std::size_t n, std::size_t i,
                           float* const* out) {
  const auto begin = [&](std::size_t h) MIXTRAL_LAMBDA {
    return hn::Mul(hn::LoadU(d, out[h] + i), hn::Set(d, correction[h]));
  };
  constexpr bool kFour = kHeads == 4;
  auto a = begin(0), b = kFour ? begin(1) : a, c = kFour ? begin(2) : a, e = kFour ? begin(3) : a;
  for (std::size_t p = 0; p < n; ++p) {
    const auto value = hn::LoadU(d, values + p * stride + i);
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

template <std::size_t kHeads>
void attend_heads(const float* const* q, const KeysAndValues& past, std::size_t first,
                  std::size_t end, std::size_t head_size, float scale, float* const* out) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  HWY_ALIGN float scores[kHeads][kAttentionBlock];
  float largest[kHeads], sum[kHeads], correction[kHeads];
  for (std::size_t h = 0; h < kHeads; ++h) {
    largest[h] = -std::numeric_limits<float>::infinity();
    sum[h] = 0.0f;
    std::memset(out[h], 0, head_size * sizeof(float));
  }
  for (std::size_t begin = first; begin < end;) {
    const std::size_t n = HWY_MIN(kAttentionBlock - begin % kAttentionBlock, end - begin);
    const float* keys = past.keys + begin % past.n_slots * past.stride;
    const float* values = past.values + begin % past.n_slots * past.stride;
    begin += n;
    score_block<kHeads>(q, keys, past.stride, n, head_size, scores);
    for (std::size_t h = 0; h < kHeads; ++h) {
      float block_max = largest[h];
      for (std::size_t p = 0; p < n; ++p) {
        scores[h][p] *= scale;
        block_max = HWY_MAX(block_max, scores[h][p]);
      }
      for (std::size_t p = n; p < kAttentionBlock; ++p) {
        scores[h][p] = -std::numeric_limits<float>::infinity();
      }
      for (std::size_t p = 0; p < kAttentionBlock; p += lanes) {
        const auto shifted = hn::Sub(hn::Load(df, scores[h] + p), hn::Set(df, block_max));
        hn::Store(hn::Exp(df, hn::Max(shifted, hn::Set(df, -200.0f))), df, scores[h] + p);
      }
      correction[h] = std::exp(largest[h] - block_max);  // 0 for the first block
      sum[h] *= correction[h];
      for (std::size_t p = 0; p < n; ++p) sum[h] += scores[h][p];
      largest[h] = block_max;
    }
    for_each_vector(head_size, [&](auto d, std::size_t i) MIXTRAL_LAMBDA {
      add_values<kHeads>(d, scores, correction, values, past.stride, n, i, out);
    });
  }
  for (std::size_t h = 0; h < kHeads; ++h) {
    if (h > 0 && out[h] == out[h - 1]) break;  // one that only fills up
    const float inverse = 1.0f / sum[h];
    for (std::size_t i = 0; i < head_size; ++i) out[h][i] *= inverse;
  }
}

void attend(const float* q, std::size_t n_heads, const KeysAndValues& past, std::size_t first,
            std::size_t end, std::size_t head_size, float scale, float* out) {
  if (n_heads == 1) return attend_heads<1>(&q, past, first, end, head_size, scale, &out);
  for (std::size_t h = 0; h < n_heads; h += 4) {
    const float* heads[4];
    float* outs[4];
    for (std::size_t i = 0; i < 4; ++i) {  // the last one fills up, and is written again
      const std::size_t head = HWY_MIN(h + i, n_heads - 1);
      heads[i] = q + head * head_size;
      outs[i] = out + head * head_size;
    }
    attend_heads<4>(heads, past, first, end, head_size, scale, outs);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
