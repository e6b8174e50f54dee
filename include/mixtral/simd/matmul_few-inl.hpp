// Per target: quantised weights times a few tokens, as of sessions that go on together.
//
// A vector goes along the rows: four columns of as many rows as it has lanes, times the same four of a
// token in all lanes. For one token it would not pay to put the weights in that order, for a vector
// full of tokens it is not needed (matmul_groups-inl.hpp). A row's sum runs over the blocks of 32
// columns in their order, as there: the results are the same bits.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

#undef MIXTRAL_FEW  // differs between targets
#if HWY_HAVE_SCALABLE
#define MIXTRAL_FEW 0
#else
#define MIXTRAL_FEW 1

// Quads of as many rows as there are lanes, n: to[quad * n + row] = from[row * kQuadsPerTile + quad] for
// n quads.
HWY_INLINE void transpose_quads(const std::int32_t* from, std::int32_t* to) {
  const DI32 d;
  const hn::Repartition<std::int64_t, DI32> d64;
  const std::size_t n = hn::Lanes(d);
  // Of rows [r, r + 4), vector k has in each 128 bits the k-th of the quads that a row has there.
  const auto inside_blocks = [&](std::size_t r, VI32& v0, VI32& v1, VI32& v2,
                                 VI32& v3) MIXTRAL_LAMBDA {
    const auto load = [&](std::size_t i)
                          MIXTRAL_LAMBDA { return hn::Load(d, from + (r + i) * kQuadsPerTile); };
    const auto a = load(0), b = load(1), c = load(2), e = load(3);
    const auto low_ab = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto high_ab = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto low_ce = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto high_ce = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    v0 = hn::BitCast(d, hn::InterleaveLower(d64, low_ab, low_ce));
    v1 = hn::BitCast(d, hn::InterleaveUpper(d64, low_ab, low_ce));
    v2 = hn::BitCast(d, hn::InterleaveLower(d64, high_ab, high_ce));
    v3 = hn::BitCast(d, hn::InterleaveUpper(d64, high_ab, high_ce));
  };
  VI32 a0, a1, a2, a3;
  inside_blocks(0, a0, a1, a2, a3);
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  VI32 b0, b1, b2, b3, c0, c1, c2, c3, e0, e1, e2, e3;
  inside_blocks(4, b0, b1, b2, b3);
  inside_blocks(8, c0, c1, c2, c3);
  inside_blocks(12, e0, e1, e2, e3);
  const auto join = [&](VI32 a, VI32 b, VI32 c, VI32 e, std::size_t k) MIXTRAL_LAMBDA {
    const auto first_ab = _mm512_shuffle_i32x4(a.raw, b.raw, 0x44);
    const auto last_ab = _mm512_shuffle_i32x4(a.raw, b.raw, 0xee);
    const auto first_ce = _mm512_shuffle_i32x4(c.raw, e.raw, 0x44);
    const auto last_ce = _mm512_shuffle_i32x4(c.raw, e.raw, 0xee);
    hn::Store(VI32{_mm512_shuffle_i32x4(first_ab, first_ce, 0x88)}, d, to + k * n);
    hn::Store(VI32{_mm512_shuffle_i32x4(first_ab, first_ce, 0xdd)}, d, to + (4 + k) * n);
    hn::Store(VI32{_mm512_shuffle_i32x4(last_ab, last_ce, 0x88)}, d, to + (8 + k) * n);
    hn::Store(VI32{_mm512_shuffle_i32x4(last_ab, last_ce, 0xdd)}, d, to + (12 + k) * n);
  };
  join(a0, b0, c0, e0, 0), join(a1, b1, c1, e1, 1);
  join(a2, b2, c2, e2, 2), join(a3, b3, c3, e3, 3);
#elif HWY_TARGET == HWY_AVX2
  VI32 b0, b1, b2, b3;
  inside_blocks(4, b0, b1, b2, b3);
  const auto join = [&](VI32 a, VI32 b, std::size_t k) MIXTRAL_LAMBDA {
    hn::Store(hn::ConcatLowerLower(d, b, a), d, to + k * n);
    hn::Store(hn::ConcatUpperUpper(d, b, a), d, to + (4 + k) * n);
  };
  join(a0, b0, 0), join(a1, b1, 1), join(a2, b2, 2), join(a3, b3, 3);
#else
  static_assert(hn::MaxLanes(DI32()) == 4, "128 bits");
  hn::Store(a0, d, to), hn::Store(a1, d, to + n);
  hn::Store(a2, d, to + 2 * n), hn::Store(a3, d, to + 3 * n);
#endif
}

// One tile of kMaxMatmulRows rows, in parts of as many rows as there are lanes.
template <class Kind>
struct RowLanes {
  static constexpr std::size_t kHalves = Kind::kHalves ? 2 : 1;

  HWY_ALIGN std::int32_t q[kMaxMatmulRows * kQuadsPerTile];           // [part][quad][row]
  HWY_ALIGN float scales[kHalves][kMaxMatmulRows * kBlocksPerTile];   // [half][part][block][row]
  HWY_ALIGN float offsets[kHalves][kMaxMatmulRows * kBlocksPerTile];  // the same

  HWY_INLINE void set(const TileRows& rows) {
    const std::size_t n = hn::Lanes(DF());
    for (std::size_t r = 0; r < kMaxMatmulRows; r += n) {
      const auto* from = reinterpret_cast<const std::int32_t*>(rows.q + r * kTile);
      for (std::size_t i = 0; i < kQuadsPerTile; i += n) {
        transpose_quads(from + i, q + r * kQuadsPerTile + i * n);
      }
      for (std::size_t half = 0; half < kHalves; ++half) {
        const std::size_t at = r * kBlocksPerTile;
        transpose_blocks(rows.scales[half] + at, scales[half] + at);
        if (Kind::kOffset) transpose_blocks(rows.offsets[half] + at, offsets[half] + at);
      }
    }
  }

 private:
  static HWY_INLINE void transpose_blocks(const float* from, float* to) {
    const DF d;
    const std::size_t n = hn::Lanes(d);
    VF b0, b1, b2, b3, b4, b5, b6, b7;
    load_blocks(from, b0, b1, b2, b3, b4, b5, b6, b7);
    hn::Store(b0, d, to), hn::Store(b1, d, to + n);
    hn::Store(b2, d, to + 2 * n), hn::Store(b3, d, to + 3 * n);
    hn::Store(b4, d, to + 4 * n), hn::Store(b5, d, to + 5 * n);
    hn::Store(b6, d, to + 6 * n), hn::Store(b7, d, to + 7 * n);
  }
};

// Adds one tile of two parts of the rows, from row `first` on, times kTokens tokens, to `out`.
template <class Kind, std::size_t kTokens>
HWY_INLINE void multiply_few(const RowLanes<Kind>& rows, std::size_t first,
                             const PreparedTile<Kind, 1>* tokens, bool begins, NextTile& next,
                             float* out) {
  const DF df;
  const DI32 d32;
  const DI8 d8;
  const std::size_t n = hn::Lanes(df);
  VF sums[kTokens][2];
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t p = 0; p < 2; ++p) {
      sums[t][p] = begins ? hn::Zero(df) : hn::Load(df, out + t * kMaxMatmulRows + first + p * n);
    }
  }
  for (std::size_t block = 0; block < kBlocksPerTile; ++block) {
    next.fetch();
    VF products[kTokens][2];
    for (std::size_t half = 0; half < RowLanes<Kind>::kHalves; ++half) {
      VI32 dots[kTokens][2];
      MIXTRAL_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        dots[t][0] = dots[t][1] = hn::Set(d32, tokens[t].begin[half][block]);
      }
      constexpr std::size_t kQuads = Kind::kHalves ? 4 : 8;
      MIXTRAL_UNROLL
      for (std::size_t i = 0; i < kQuads; ++i) {
        const std::size_t quad = block * 8 + half * kQuads + i;
        const auto load = [&](std::size_t p) MIXTRAL_LAMBDA {
          const std::size_t at = (first + p * n) * kQuadsPerTile + quad * n;
          return in_register(hn::BitCast(d8, hn::Load(d32, rows.q + at)));
        };
        const auto w0 = load(0), w1 = load(1);
        MIXTRAL_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const auto x = in_register(broadcast_quad(tokens[t].q + quad * kQuad));
          dots[t][0] = quad_dot_add<Kind::kSigned>(dots[t][0], w0, x);
          dots[t][1] = quad_dot_add<Kind::kSigned>(dots[t][1], w1, x);
        }
      }
      MIXTRAL_UNROLL
      for (std::size_t p = 0; p < 2; ++p) {
        const std::size_t at = (first + p * n) * kBlocksPerTile + block * n;
        const auto scale = hn::Load(df, rows.scales[half] + at);
        const auto offset = Kind::kOffset ? hn::Load(df, rows.offsets[half] + at) : hn::Zero(df);
        MIXTRAL_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const auto base = hn::Set(df, tokens[t].base[block]);
          const auto x_sum =
              Kind::kOffset ? hn::Set(df, tokens[t].x_sum[half][block]) : hn::Zero(df);
          const auto dot = hn::Sub(hn::BitCast(df, dots[t][p]), base);
          products[t][p] = half == 0
                               ? scaled_dot<Kind>(dot, scale, offset, x_sum)
                               : add_scaled_dot<Kind>(products[t][p], dot, scale, offset, x_sum);
        }
      }
    }
    MIXTRAL_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      sums[t][0] = hn::Add(sums[t][0], products[t][0]);
      sums[t][1] = hn::Add(sums[t][1], products[t][1]);
    }
  }
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t p = 0; p < 2; ++p) {
      hn::Store(sums[t][p], df, out + t * kMaxMatmulRows + first + p * n);
    }
  }
}

// As Kernels::matmul, for kMaxLanes tokens at most.
template <class Kind>
void matmul_few(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                std::size_t n_rows, const void* const* x, std::size_t n_tokens, float* out) {
  const std::size_t n = hn::Lanes(DF());
  TileRows rows;
  RowLanes<Kind> lanes;
  PreparedTile<Kind, 1> tokens[kMaxLanes];
  const std::size_t n_times =
      kBlocksPerTile * ((n_tokens + 3) / 4) * ((n_rows + 2 * n - 1) / (2 * n));
  if (n_rows < kMaxMatmulRows) std::memset(&rows, 0, sizeof rows);
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    unpacker.rows(w, first_row, n_rows, col, 0, rows);
    lanes.set(rows);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const auto* token = static_cast<const std::uint8_t*>(x[t]);
      tokens[t].set(token + col / kTile * kTokenTileBytes, 1, unpacker.zero_bits);
    }
    NextTile next(unpacker, w, first_row, n_rows, col, n_times);
    for (std::size_t t = 0; t < n_tokens;) {
      const std::size_t left = n_tokens - t, together = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const auto multiply = [&](auto count) MIXTRAL_LAMBDA {
        for (std::size_t r = 0; r < n_rows; r += 2 * n) {
          multiply_few<Kind, decltype(count)::value>(lanes, r, tokens + t, col == 0, next,
                                                     out + t * kMaxMatmulRows);
        }
      };
      if (together == 4) {
        multiply(std::integral_constant<std::size_t, 4>());
      } else if (together == 2) {
        multiply(std::integral_constant<std::size_t, 2>());
      } else {
        multiply(std::integral_constant<std::size_t, 1>());
      }
      t += together;
    }
  }
}
#endif

// Measured: groups cost the same if there are fewer tokens than lanes.
constexpr std::size_t kMinGroupedTokens = MIXTRAL_FEW && hn::MaxLanes(DF()) > 4 ? 14 : 6;

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
