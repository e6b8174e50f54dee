// Per target: matrix times activation rows, for every block format.
//
// A tile of one weight row is unpacked once and used for all tokens of the call. Sums are kept in
// float lanes in a fixed order, so a result does not depend on which other rows or tokens are
// computed in the same call.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Sum of one tile's products; lane-wise, to be added up at the end of the row.
template <class Format>
HWY_INLINE VF tile_dot(const QuantTile& tile, const ActivationTile& x, VF sum) {
  const DF df;
  const DI8 d8;
  const std::size_t n = hn::Lanes(df);
  for (std::size_t i = 0; i < kQuadsPerTile; i += n) {
    const auto w = hn::Load(d8, tile.q + i * kQuad);
    const auto q = hn::LoadU(d8, x.q + i * kQuad);
    const auto scale = hn::Mul(hn::Load(df, tile.scale + i), hn::LoadU(df, x.scale + i));
    sum = hn::MulAdd(hn::ConvertTo(df, quad_dot<Format::kSigned>(w, q)), scale, sum);
  }
  if (Format::kOffset) {
    for (std::size_t i = 0; i < kGroupsPerTile; i += n) {
      sum = hn::NegMulAdd(hn::Load(df, tile.offset + i), hn::LoadU(df, x.sum + i), sum);
    }
  }
  return sum;
}

HWY_INLINE float sum_of_lanes(VF v) {
  const DF df;
  return hn::GetLane(hn::SumOfLanes(df, v));
}

template <class Format>
void matmul_quantized(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                      const void* const* x, std::size_t n_tokens, float* out) {
  const DF df;
  QuantTile tile;
  HWY_ALIGN float sums[kMaxMatmulTokens * 16];
  for (std::size_t r = 0; r < n_rows; ++r) {
    const std::uint8_t* data = w.data + (first_row + r) * w.row_bytes;
    if (n_tokens == 1) {
      const auto* tiles = static_cast<const ActivationTile*>(x[0]);
      VF sum = hn::Zero(df);
      for (std::size_t col = 0; col < w.cols; col += kTile, ++tiles) {
        Format::unpack(data + col / kBlockSize<Format> * Format::kBlockBytes,
                       HWY_MIN(kTile, w.cols - col), tile);
        sum = tile_dot<Format>(tile, *tiles, sum);
      }
      out[r] = sum_of_lanes(sum);
      continue;
    }
    for (std::size_t t = 0; t < n_tokens; ++t) hn::Store(hn::Zero(df), df, sums + t * 16);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      Format::unpack(data + col / kBlockSize<Format> * Format::kBlockBytes,
                     HWY_MIN(kTile, w.cols - col), tile);
      for (std::size_t t = 0; t < n_tokens; ++t) {
        const auto* tiles = static_cast<const ActivationTile*>(x[t]);
        const VF sum = tile_dot<Format>(tile, tiles[col / kTile], hn::Load(df, sums + t * 16));
        hn::Store(sum, df, sums + t * 16);
      }
    }
    for (std::size_t t = 0; t < n_tokens; ++t) {
      out[t * n_rows + r] = sum_of_lanes(hn::Load(df, sums + t * 16));
    }
  }
}

// Unpacks n_cols weights to float32 and clears the rest of the n_padded at `tile`.
template <class Format>
HWY_INLINE void unpack_floats(const std::uint8_t* data, std::size_t n_cols, std::size_t n_padded,
                              float* tile) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  std::size_t i = 0;
  for (; i + n <= n_cols; i += n) {
    hn::Store(Format::load(df, data + i * Format::kBytes), df, tile + i);
  }
  for (; i < n_cols; ++i) tile[i] = Format::load_one(data + i * Format::kBytes);
  for (; i < n_padded; ++i) tile[i] = 0.0f;
}

// Rows of a transposed matrix are gathered this many at a time, a line of the cache or more.
constexpr std::size_t kTransposedRows = 16;

// The same for rows [0, n_rows) of a transposed matrix, from column `col`: tile r is at
// tiles + r * kTile. n_rows <= kTransposedRows.
template <class Format>
HWY_INLINE void unpack_transposed_floats(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                                         std::size_t col, float* tiles) {
  const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
  HWY_ALIGN float line[kTile];
  for (std::size_t c = 0; c < n_cols; ++c) {
    unpack_floats<Format>(w.data + (col + c) * w.row_bytes + first_row * Format::kBytes, n_rows,
                          kTransposedRows, line);
    for (std::size_t r = 0; r < n_rows; ++r) tiles[r * kTile + c] = line[r];
  }
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t c = n_cols; c < kTile; ++c) tiles[r * kTile + c] = 0.0f;
  }
}

// Four independent sums hide the latency of the multiply-add.
struct FloatSums {
  VF a, b, c, d;
};

template <class LoadW>
HWY_INLINE VF float_tile_dot(const LoadW& load_w, const float* x, VF sum) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  FloatSums s{sum, hn::Zero(df), hn::Zero(df), hn::Zero(df)};
  for (std::size_t i = 0; i < kTile; i += 4 * n) {
    s.a = hn::MulAdd(load_w(i), hn::LoadU(df, x + i), s.a);
    s.b = hn::MulAdd(load_w(i + n), hn::LoadU(df, x + i + n), s.b);
    s.c = hn::MulAdd(load_w(i + 2 * n), hn::LoadU(df, x + i + 2 * n), s.c);
    s.d = hn::MulAdd(load_w(i + 3 * n), hn::LoadU(df, x + i + 3 * n), s.d);
  }
  return hn::Add(hn::Add(s.a, s.b), hn::Add(s.c, s.d));
}

template <class Format>
void matmul_float(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                  std::size_t n_tokens, float* out) {
  const DF df;
  HWY_ALIGN float tile[kTile];
  HWY_ALIGN float sums[kMaxMatmulTokens * 16];
  const auto load_tile = [&](std::size_t i) HWY_ATTR { return hn::Load(DF(), tile + i); };
  for (std::size_t r = 0; r < n_rows; ++r) {
    const std::uint8_t* data = w.data + (first_row + r) * w.row_bytes;
    for (std::size_t t = 0; t < n_tokens; ++t) hn::Store(hn::Zero(df), df, sums + t * 16);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      const std::uint8_t* from = data + col * Format::kBytes;
      const bool direct = n_tokens == 1 && col + kTile <= w.cols;
      if (!direct) unpack_floats<Format>(from, HWY_MIN(kTile, w.cols - col), kTile, tile);
      for (std::size_t t = 0; t < n_tokens; ++t) {
        const float* xt = static_cast<const float*>(x[t]) + col;
        const VF sum = hn::Load(df, sums + t * 16);
        const auto load_direct = [&](std::size_t i) HWY_ATTR {
          return Format::load(DF(), from + i * Format::kBytes);
        };
        hn::Store(
            direct ? float_tile_dot(load_direct, xt, sum) : float_tile_dot(load_tile, xt, sum), df,
            sums + t * 16);
      }
    }
    for (std::size_t t = 0; t < n_tokens; ++t) {
      out[t * n_rows + r] = sum_of_lanes(hn::Load(df, sums + t * 16));
    }
  }
}

// Row by row the same sums as matmul_float, so that a model gives the same bits in either layout.
template <class Format>
void matmul_transposed(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                       const void* const* x, std::size_t n_tokens, float* out) {
  const DF df;
  HWY_ALIGN float tiles[kTransposedRows * kTile];
  HWY_ALIGN float sums[kTransposedRows * kMaxMatmulTokens * 16];
  for (std::size_t begin = 0; begin < n_rows; begin += kTransposedRows) {
    const std::size_t n = HWY_MIN(kTransposedRows, n_rows - begin);
    for (std::size_t i = 0; i < n * n_tokens; ++i) hn::Store(hn::Zero(df), df, sums + i * 16);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      unpack_transposed_floats<Format>(w, first_row + begin, n, col, tiles);
      for (std::size_t r = 0; r < n; ++r) {
        const auto load_tile = [&](std::size_t i)
                                   HWY_ATTR { return hn::Load(DF(), tiles + r * kTile + i); };
        for (std::size_t t = 0; t < n_tokens; ++t) {
          float* sum = sums + (r * n_tokens + t) * 16;
          const float* xt = static_cast<const float*>(x[t]) + col;
          hn::Store(float_tile_dot(load_tile, xt, hn::Load(df, sum)), df, sum);
        }
      }
    }
    for (std::size_t r = 0; r < n; ++r) {
      for (std::size_t t = 0; t < n_tokens; ++t) {
        out[t * n_rows + begin + r] = sum_of_lanes(hn::Load(df, sums + (r * n_tokens + t) * 16));
      }
    }
  }
}

template <class Format>
void decode_quantized_row(const Matrix& w, std::size_t row, float* out) {
  const DF df;
  const DI32 d32;
  const hn::Rebind<std::int8_t, DF> d8;
  const std::size_t n = hn::Lanes(d8);
  const std::uint8_t* data = w.data + row * w.row_bytes;
  QuantTile tile;
  HWY_ALIGN float scale[kTile];
  HWY_ALIGN float offset[kTile];
  HWY_ALIGN float values[kTile];
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
    Format::unpack(data + col / kBlockSize<Format> * Format::kBlockBytes, n_cols, tile);
    for (std::size_t i = 0; i < kTile; ++i) scale[i] = tile.scale[i / kQuad];
    for (std::size_t i = 0; i < kTile; ++i) {
      offset[i] = Format::kOffset ? tile.offset[i / kGroup] : 0.0f;
    }
    for (std::size_t i = 0; i < kTile; i += n) {
      const auto q = hn::ConvertTo(df, hn::PromoteTo(d32, hn::LoadU(d8, tile.q + i)));
      hn::Store(hn::MulSub(q, hn::Load(df, scale + i), hn::Load(df, offset + i)), df, values + i);
    }
    std::memcpy(out + col, values, n_cols * sizeof(float));
  }
}

template <class Format>
void decode_float_row(const Matrix& w, std::size_t row, float* out) {
  HWY_ALIGN float tile[kTile];
  const std::uint8_t* data = w.data + row * w.row_bytes;
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
    unpack_floats<Format>(data + col * Format::kBytes, n_cols, kTile, tile);
    std::memcpy(out + col, tile, n_cols * sizeof(float));
  }
}

template <class Format>
void decode_transposed_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                            float* out) {
  HWY_ALIGN float tiles[kTransposedRows * kTile];
  for (std::size_t begin = 0; begin < n_rows; begin += kTransposedRows) {
    const std::size_t n = HWY_MIN(kTransposedRows, n_rows - begin);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      unpack_transposed_floats<Format>(w, first_row + begin, n, col, tiles);
      for (std::size_t r = 0; r < n; ++r) {
        std::memcpy(out + (begin + r) * w.cols + col, tiles + r * kTile,
                    HWY_MIN(kTile, w.cols - col) * sizeof(float));
      }
    }
  }
}

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

struct MatmulVisitor {
  const Matrix& w;
  std::size_t first_row, n_rows;
  const void* const* x;
  std::size_t n_tokens;
  float* out;

  template <class Format>
  void floating() const {
    if (w.transposed) {
      matmul_transposed<Format>(w, first_row, n_rows, x, n_tokens, out);
    } else {
      matmul_float<Format>(w, first_row, n_rows, x, n_tokens, out);
    }
  }
  template <class Format>
  void quantized() const {
    matmul_quantized<Format>(w, first_row, n_rows, x, n_tokens, out);
  }
};

void matmul(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
            std::size_t n_tokens, float* out) {
  visit_format(w.format, MatmulVisitor{w, first_row, n_rows, x, n_tokens, out});
}

struct DecodeRowsVisitor {
  const Matrix& w;
  std::size_t first_row, n_rows;
  float* out;

  template <class Format>
  void floating() const {
    if (w.transposed) return decode_transposed_rows<Format>(w, first_row, n_rows, out);
    for (std::size_t r = 0; r < n_rows; ++r) {
      decode_float_row<Format>(w, first_row + r, out + r * w.cols);
    }
  }
  template <class Format>
  void quantized() const {
    for (std::size_t r = 0; r < n_rows; ++r) {
      decode_quantized_row<Format>(w, first_row + r, out + r * w.cols);
    }
  }
};

void decode_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows, float* out) {
  visit_format(w.format, DecodeRowsVisitor{w, first_row, n_rows, out});
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
