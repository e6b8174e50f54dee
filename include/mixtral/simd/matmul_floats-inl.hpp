// Per target: unquantised weights times tokens.
//
// A vector goes along the columns of a row. Of a tile's columns, those 16 apart are summed in their order,
// then the 16 sums by a tree, then the tiles in their order: for one token or many, in either
// layout of the matrix and with vectors of any length, the results are the same bits.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

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

// Rows are unpacked this many at a time, a line of the cache or more of a transposed matrix.
constexpr std::size_t kFloatRows = 16;

// The same for rows [0, n_rows) of a transposed matrix, from column `col`: tile r is at
// tiles + r * kTile. n_rows <= kFloatRows.
template <class Format>
HWY_INLINE void unpack_transposed_floats(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                                         std::size_t col, float* tiles) {
  const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
  HWY_ALIGN float line[kTile];
  for (std::size_t c = 0; c < n_cols; ++c) {
    unpack_floats<Format>(w.data + (col + c) * w.row_bytes + first_row * Format::kBytes, n_rows,
                          kFloatRows, line);
    for (std::size_t r = 0; r < n_rows; ++r) tiles[r * kTile + c] = line[r];
  }
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t c = n_cols; c < kTile; ++c) tiles[r * kTile + c] = 0.0f;
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

// As Kernels::matmul, with unpack(row, n, col, tiles) to unpack the tile at `col` of n rows.
template <class Unpack>
void matmul_tiles(const Unpack& unpack, std::size_t cols, std::size_t n_rows, const void* const* x,
                  std::size_t n_tokens, float* out) {
  HWY_ALIGN float tiles[kFloatRows * kTile];
  HWY_ALIGN float sums[16 * kPartialSums];
  for (std::size_t t = 0; t < n_tokens; ++t) {
    std::memset(out + t * kMaxMatmulRows, 0, kMaxMatmulRows * sizeof(float));
  }
  for (std::size_t begin = 0; begin < n_rows; begin += kFloatRows) {
    const std::size_t count = HWY_MIN(kFloatRows, n_rows - begin);
    if (count < kFloatRows) std::memset(tiles, 0, sizeof tiles);
    for (std::size_t col = 0; col < cols; col += kTile) {
      unpack(begin, count, col, tiles);
      for (std::size_t t = 0; t < n_tokens; t += 4) {
        const float* xt[4];
        for (std::size_t i = 0; i < 4; ++i) {  // the last one fills up
          xt[i] = static_cast<const float*>(x[HWY_MIN(t + i, n_tokens - 1)]) + col;
        }
        const std::size_t n_xt = HWY_MIN(std::size_t{4}, n_tokens - t);
        for (std::size_t r = 0; r < count; r += 4) {
          const auto load = [&](std::size_t i, std::size_t c) MIXTRAL_LAMBDA {
            return hn::Load(DF(), tiles + (r + i) * kTile + c);
          };
          multiply_4_rows_4_tokens(load, xt, kTile, sums);
          add_partial_sums_of_16(sums);
          for (std::size_t i = 0; i < n_xt; ++i) {
            float* to = out + (t + i) * kMaxMatmulRows + begin + r;
            for (std::size_t j = 0; j < 4; ++j) to[j] += sums[i * 4 + j];
          }
        }
      }
    }
  }
}

template <class Format>
void matmul_floats(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                   std::size_t n_tokens, float* out) {
  const auto row_data = [&](std::size_t row) { return w.data + (first_row + row) * w.row_bytes; };
  if (n_tokens > 1) {
    const auto unpack = [&](std::size_t row, std::size_t n, std::size_t col,
                            float* tiles) MIXTRAL_LAMBDA {
      for (std::size_t r = 0; r < n; ++r) {
        unpack_floats<Format>(row_data(row + r) + col * Format::kBytes,
                              HWY_MIN(kTile, w.cols - col), kTile, tiles + r * kTile);
      }
    };
    return matmul_tiles(unpack, w.cols, n_rows, x, n_tokens, out);
  }
  HWY_ALIGN float sums[16 * kPartialSums];
  HWY_ALIGN float last[4 * kTile];
  const auto* x0 = static_cast<const float*>(x[0]);
  std::memset(out, 0, kMaxMatmulRows * sizeof(float));
  for (std::size_t begin = 0; begin < n_rows; begin += 16) {
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      LaterTile later(w, kTile * Format::kBytes, first_row + begin, HWY_MIN(16, n_rows - begin),
                      col, 4);
      for (std::size_t r = 0; r < 16; r += 4) {
        later.fetch();
        const std::uint8_t* data[4];  // the last row fills up
        for (std::size_t i = 0; i < 4; ++i) {
          data[i] = row_data(HWY_MIN(begin + r + i, n_rows - 1)) + col * Format::kBytes;
        }
        float* to = sums + r * kPartialSums;
        if (col + kTile <= w.cols) {
          const auto load = [&](std::size_t i, std::size_t c) MIXTRAL_LAMBDA {
            return Format::load(DF(), data[i] + c * Format::kBytes);
          };
          multiply_4_rows(load, x0 + col, kTile, to);
        } else {
          for (std::size_t i = 0; i < 4; ++i) {
            unpack_floats<Format>(data[i], w.cols - col, kTile, last + i * kTile);
          }
          const auto load = [&](std::size_t i, std::size_t c)
                                MIXTRAL_LAMBDA { return hn::Load(DF(), last + i * kTile + c); };
          multiply_4_rows(load, x0 + col, kTile, to);
        }
      }
      add_partial_sums_of_16(sums);
      for (std::size_t r = 0; r < 16; ++r) out[begin + r] += sums[r];
    }
  }
}

template <class Format>
void matmul_transposed_floats(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                              const void* const* x, std::size_t n_tokens, float* out) {
  const auto unpack =
      [&](std::size_t row, std::size_t n, std::size_t col, float* tiles)
          MIXTRAL_LAMBDA { unpack_transposed_floats<Format>(w, first_row + row, n, col, tiles); };
  matmul_tiles(unpack, w.cols, n_rows, x, n_tokens, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
