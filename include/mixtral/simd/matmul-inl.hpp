// Per target: matrix times activation rows, for every block format.
//
// A tile of one weight row is unpacked once and used for all tokens of the call. Sums are kept in
// float lanes in a fixed order, so a result does not depend on which other rows or tokens are
// computed in the same call.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

HWY_INLINE float sum_of_lanes(VF v) {
  const DF df;
  return hn::GetLane(hn::SumOfLanes(df, v));
}

// Rows are multiplied in groups of twice as many as a vector has lanes, each in a lane of its own.
// The most there can be:
constexpr std::size_t kMaxGroupRows = 32;

// One tile of each row of a group.
struct RowGroup {
  HWY_ALIGN std::int8_t q[kMaxGroupRows * kTile];                      // [row][column]
  HWY_ALIGN std::int8_t quads[kQuadsPerTile * kMaxGroupRows * kQuad];  // [quad][row][column in it]
  HWY_ALIGN float factors[2 * kGroupsPerTile * kMaxGroupRows];         // [scale or offset][row]
};

// Where the CPU multiplies unsigned bytes of full range, signed weights are stored 128 higher.
template <class Format>
struct DotTraits {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  static constexpr bool kShifted = Format::kSigned;
#else
  static constexpr bool kShifted = false;
#endif
  static constexpr bool kSigned = Format::kSigned && !kShifted;
  static constexpr int kZero = kShifted ? 128 : Format::kZero;
  static constexpr std::size_t kScales = kTile / Format::kScaleColumns;  // in a tile
  static constexpr std::size_t kFactors = Format::kOffset ? 2 * kScales : kScales;
  static constexpr std::size_t kQuadsPerScale = Format::kScaleColumns / kQuad;
};

// out[c * out_stride + r] = in[r * in_stride + c] for a square of as many rows as a vector has lanes.
HWY_INLINE void transpose(const std::int32_t* in, std::size_t in_stride, std::int32_t* out,
                          std::size_t out_stride) {
  const DI32 d;
  const std::size_t n = hn::Lanes(d);
  // Taking all even elements before all odd ones turns the bits of an element's number by one place;
  // as often as a row's number has bits, rows and columns have changed places.
  HWY_ALIGN std::int32_t buffer[2][16 * 16];
  const std::int32_t* from = in;
  std::size_t stride = in_stride;
  std::size_t side = 0;
  for (std::size_t bit = 1; bit < n; bit *= 2, side ^= 1) {
    const bool last = bit * 2 >= n;
    std::int32_t* to = last ? out : buffer[side];
    const std::size_t to_stride = last ? out_stride : n;
    for (std::size_t k = 0; k < n / 2; ++k) {
      const auto a = hn::LoadU(d, from + 2 * k * stride);
      const auto b = hn::LoadU(d, from + (2 * k + 1) * stride);
      hn::StoreU(hn::ConcatEven(d, b, a), d, to + k * to_stride);
      hn::StoreU(hn::ConcatOdd(d, b, a), d, to + (n / 2 + k) * to_stride);
    }
    from = to;
    stride = to_stride;
  }
}

// Unpacks the tile at column `col` of n rows; the other lanes' rows are zero.
template <class Format>
void unpack_group(const Matrix& w, std::size_t first_row, std::size_t n_rows, std::size_t n_lanes,
                  std::size_t col, RowGroup& group) {
  using Traits = DotTraits<Format>;
  QuantTile tile;
  const hn::CappedTag<std::uint8_t, 64> d;
  for (std::size_t r = 0; r < n_lanes; ++r) {
    if (r < n_rows) {
      const std::uint8_t* data = w.data + (first_row + r) * w.row_bytes;
      Format::unpack(data + col / kBlockSize<Format> * Format::kBlockBytes,
                     HWY_MIN(kTile, w.cols - col), tile);
    } else {
      std::memset(&tile, 0, sizeof tile);
    }
    auto* q = reinterpret_cast<std::uint8_t*>(group.q) + r * kTile;
    const auto* from = reinterpret_cast<const std::uint8_t*>(tile.q);
    for (std::size_t i = 0; i < kTile; i += hn::Lanes(d)) {
      const auto v = hn::Load(d, from + i);
      hn::Store(Traits::kShifted ? hn::Xor(v, hn::Set(d, 0x80)) : v, d, q + i);
    }
    for (std::size_t f = 0; f < Traits::kFactors; ++f) {
      group.factors[f * kMaxGroupRows + r] = tile.factors[f];
    }
  }
}

HWY_INLINE void interleave(std::size_t n_lanes, RowGroup& group) {
  const std::size_t n = hn::Lanes(DI32());
  const auto* from = reinterpret_cast<const std::int32_t*>(group.q);
  auto* to = reinterpret_cast<std::int32_t*>(group.quads);
  for (std::size_t r = 0; r < n_lanes; r += n) {
    for (std::size_t quad = 0; quad < kQuadsPerTile; quad += n) {
      transpose(from + r * kQuadsPerTile + quad, kQuadsPerTile, to + quad * kMaxGroupRows + r,
                kMaxGroupRows);
    }
  }
}

// sum + scale * dot - offset, for scale number s of a tile and one token: every way of multiplying
// ends here, in this order of s, so that all give the same bits.
template <class Format>
HWY_INLINE VF add_scaled_dot(VF sum, VI32 dot, const float* scale, const float* offset,
                             const ActivationTile& x, std::size_t s) {
  const DF df;
  constexpr std::size_t kStep = Format::kScaleColumns / kGroup;
  const auto factor = hn::Mul(hn::Load(df, scale), hn::Set(df, x.scale[s * kStep / 2]));
  sum = hn::MulAdd(hn::ConvertTo(df, dot), factor, sum);
  if (!Format::kOffset) return sum;
  const float x_sum = kStep == 1 ? x.sum[s] : x.sum[2 * s] + x.sum[2 * s + 1];
  return hn::NegMulAdd(hn::Load(df, offset), hn::Set(df, x_sum), sum);
}

// What dots begin with, for the weights' zero to be kZero.
template <class Format>
HWY_INLINE VI32 dot_begin(const ActivationTile& x, std::size_t s) {
  const DI32 d;
  constexpr int kZero = DotTraits<Format>::kZero;
  if (kZero == 0) return hn::Zero(d);
  constexpr std::size_t kStep = Format::kScaleColumns / kGroup;
  return hn::Set(d, -kZero * (kStep == 1 ? x.q_sum[s] : x.q_sum[2 * s] + x.q_sum[2 * s + 1]));
}

HWY_INLINE VI8 broadcast_quad(const ActivationTile& x, std::size_t quad) {
  std::int32_t four;
  std::memcpy(&four, x.q + quad * kQuad, 4);
  return hn::BitCast(DI8(), hn::Set(DI32(), four));
}

// Adds one tile of a group's rows times four tokens to `sums`, [token][row].
template <class Format>
HWY_INLINE void multiply_4_tokens(const RowGroup& group, const ActivationTile* const* x,
                                  float* sums) {
  using Traits = DotTraits<Format>;
  const DF df;
  const DI8 d8;
  const std::size_t n = hn::Lanes(df);
  VF a0 = hn::Load(df, sums), b0 = hn::Load(df, sums + n);
  VF a1 = hn::Load(df, sums + kMaxGroupRows), b1 = hn::Load(df, sums + kMaxGroupRows + n);
  VF a2 = hn::Load(df, sums + 2 * kMaxGroupRows), b2 = hn::Load(df, sums + 2 * kMaxGroupRows + n);
  VF a3 = hn::Load(df, sums + 3 * kMaxGroupRows), b3 = hn::Load(df, sums + 3 * kMaxGroupRows + n);
  for (std::size_t s = 0; s < Traits::kScales; ++s) {
    VI32 p0 = dot_begin<Format>(*x[0], s), q0 = p0;
    VI32 p1 = dot_begin<Format>(*x[1], s), q1 = p1;
    VI32 p2 = dot_begin<Format>(*x[2], s), q2 = p2;
    VI32 p3 = dot_begin<Format>(*x[3], s), q3 = p3;
    const std::size_t first = s * Traits::kQuadsPerScale;
    for (std::size_t quad = first; quad < first + Traits::kQuadsPerScale; ++quad) {
      const std::int8_t* w = group.quads + quad * kMaxGroupRows * kQuad;
      const auto wa = hn::Load(d8, w);
      const auto wb = hn::Load(d8, w + n * kQuad);
      const auto x0 = broadcast_quad(*x[0], quad);
      p0 = quad_dot_add<Traits::kSigned>(p0, wa, x0);
      q0 = quad_dot_add<Traits::kSigned>(q0, wb, x0);
      const auto x1 = broadcast_quad(*x[1], quad);
      p1 = quad_dot_add<Traits::kSigned>(p1, wa, x1);
      q1 = quad_dot_add<Traits::kSigned>(q1, wb, x1);
      const auto x2 = broadcast_quad(*x[2], quad);
      p2 = quad_dot_add<Traits::kSigned>(p2, wa, x2);
      q2 = quad_dot_add<Traits::kSigned>(q2, wb, x2);
      const auto x3 = broadcast_quad(*x[3], quad);
      p3 = quad_dot_add<Traits::kSigned>(p3, wa, x3);
      q3 = quad_dot_add<Traits::kSigned>(q3, wb, x3);
    }
    const float* scale = group.factors + s * kMaxGroupRows;
    const float* offset = scale + Traits::kScales * kMaxGroupRows;
    a0 = add_scaled_dot<Format>(a0, p0, scale, offset, *x[0], s);
    b0 = add_scaled_dot<Format>(b0, q0, scale + n, offset + n, *x[0], s);
    a1 = add_scaled_dot<Format>(a1, p1, scale, offset, *x[1], s);
    b1 = add_scaled_dot<Format>(b1, q1, scale + n, offset + n, *x[1], s);
    a2 = add_scaled_dot<Format>(a2, p2, scale, offset, *x[2], s);
    b2 = add_scaled_dot<Format>(b2, q2, scale + n, offset + n, *x[2], s);
    a3 = add_scaled_dot<Format>(a3, p3, scale, offset, *x[3], s);
    b3 = add_scaled_dot<Format>(b3, q3, scale + n, offset + n, *x[3], s);
  }
  hn::Store(a0, df, sums);
  hn::Store(b0, df, sums + n);
  hn::Store(a1, df, sums + kMaxGroupRows);
  hn::Store(b1, df, sums + kMaxGroupRows + n);
  hn::Store(a2, df, sums + 2 * kMaxGroupRows);
  hn::Store(b2, df, sums + 2 * kMaxGroupRows + n);
  hn::Store(a3, df, sums + 3 * kMaxGroupRows);
  hn::Store(b3, df, sums + 3 * kMaxGroupRows + n);
}

// Sums of 16 columns of a tile of one row, as many as a vector has lanes, from column 4 * `quad` on.
template <class Format>
HWY_INLINE VI32 sums_of_16(const std::int8_t* q, const ActivationTile& x, std::size_t quad) {
  using Traits = DotTraits<Format>;
  const DI8 d8;
  const DI32 d32;
  const std::size_t n = hn::Lanes(d32);
  const auto dots = [&](std::size_t i) HWY_ATTR {
    auto w = hn::Load(d8, q + i * kQuad);
    if (Traits::kShifted) w = hn::Xor(w, hn::Set(d8, -128));
    return quad_dot<Traits::kSigned>(w, hn::LoadU(d8, x.q + i * kQuad));
  };
  const auto add_neighbours = [&](VI32 first, VI32 second) HWY_ATTR {
    return hn::Add(hn::ConcatEven(d32, second, first), hn::ConcatOdd(d32, second, first));
  };
  return add_neighbours(add_neighbours(dots(quad), dots(quad + n)),
                        add_neighbours(dots(quad + 2 * n), dots(quad + 3 * n)));
}

// The dots of one row's tile, one for each scale.
template <class Format>
HWY_INLINE void row_dots(const std::int8_t* q, const ActivationTile& x, std::int32_t* dots) {
  const DI32 d32;
  const std::size_t n = hn::Lanes(d32);
  if (Format::kScaleColumns == 16) {
    for (std::size_t quad = 0; quad < kQuadsPerTile; quad += 4 * n) {
      hn::Store(sums_of_16<Format>(q, x, quad), d32, dots + quad / 4);
    }
    return;
  }
  for (std::size_t quad = 0; quad < kQuadsPerTile; quad += 8 * n) {
    const auto a = sums_of_16<Format>(q, x, quad);
    const auto b = quad + 4 * n < kQuadsPerTile ? sums_of_16<Format>(q, x, quad + 4 * n) : a;
    hn::Store(hn::Add(hn::ConcatEven(d32, b, a), hn::ConcatOdd(d32, b, a)), d32, dots + quad / 8);
  }
}

// One token: rows are not interleaved, but the dots of each, which then change places with the rows.
template <class Format>
void matmul_1_token(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                    const ActivationTile* x, float* out) {
  using Traits = DotTraits<Format>;
  const DF df;
  const DI32 d32;
  const std::size_t n = hn::Lanes(df);
  QuantTile tiles[16] = {};
  HWY_ALIGN std::int32_t dots[16 * 16] = {};                // [row][scale]
  HWY_ALIGN std::int32_t by_scale[kGroupsPerTile * 16];     // [scale][row]
  HWY_ALIGN std::int32_t factors[2 * kGroupsPerTile * 16];  // [scale or offset][row]
  HWY_ALIGN float sums[16];
  for (std::size_t begin = 0; begin < n_rows; begin += n) {
    const std::size_t count = HWY_MIN(n, n_rows - begin);
    VF sum = hn::Zero(df);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      const ActivationTile& x_tile = x[col / kTile];
      // All rows are unpacked before any is read: longer loads soon after shorter stores would wait.
      // So many rows at a time are more than the hardware foresees; the tile after the next is fetched.
      constexpr std::size_t kTileBytes = kTile / kBlockSize<Format> * Format::kBlockBytes;
      for (std::size_t r = 0; r < count; ++r) {
        const std::uint8_t* data = w.data + (first_row + begin + r) * w.row_bytes +
                                   col / kBlockSize<Format> * Format::kBlockBytes;
        if (col + 3 * kTile <= w.cols) {
          for (std::size_t i = 0; i < kTileBytes; i += 64) hwy::Prefetch(data + 2 * kTileBytes + i);
        }
        Format::unpack(data, HWY_MIN(kTile, w.cols - col), tiles[r]);
      }
      for (std::size_t r = 0; r < count; ++r) {
        row_dots<Format>(tiles[r].q, x_tile, dots + r * 16);
      }
      for (std::size_t s = 0; s < Traits::kScales; s += n) {
        transpose(dots + s, 16, by_scale + s * 16, 16);
      }
      for (std::size_t f = 0; f < Traits::kFactors; f += n) {
        transpose(reinterpret_cast<const std::int32_t*>(tiles[0].factors) + f,
                  sizeof(QuantTile) / sizeof(std::int32_t), factors + f * 16, 16);
      }
      const auto* scale = reinterpret_cast<const float*>(factors);
      for (std::size_t s = 0; s < Traits::kScales; ++s) {
        const auto dot = hn::Add(hn::Load(d32, by_scale + s * 16), dot_begin<Format>(x_tile, s));
        sum = add_scaled_dot<Format>(sum, dot, scale + s * 16, scale + (Traits::kScales + s) * 16,
                                     x_tile, s);
      }
    }
    hn::Store(sum, df, sums);
    std::memcpy(out + begin, sums, count * sizeof(float));
  }
}

template <class Format>
void matmul_quantized(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                      const void* const* x, std::size_t n_tokens, float* out) {
  if (n_tokens == 1) {
    return matmul_1_token<Format>(w, first_row, n_rows, static_cast<const ActivationTile*>(x[0]),
                                  out);
  }
  const DF df;
  const std::size_t n = hn::Lanes(df);
  RowGroup group;
  HWY_ALIGN float sums[kMaxMatmulTokens * kMaxGroupRows];
  const ActivationTile* tiles[kMaxMatmulTokens];
  for (std::size_t begin = 0; begin < n_rows; begin += 2 * n) {
    const std::size_t count = HWY_MIN(2 * n, n_rows - begin);
    std::memset(sums, 0, sizeof sums);
    for (std::size_t col = 0; col < w.cols; col += kTile) {
      unpack_group<Format>(w, first_row + begin, count, 2 * n, col, group);
      interleave(2 * n, group);
      // Four at a time; the last one fills up.
      for (std::size_t t = 0; t < (n_tokens + 3) / 4 * 4; ++t) {
        tiles[t] = static_cast<const ActivationTile*>(x[HWY_MIN(t, n_tokens - 1)]) + col / kTile;
      }
      for (std::size_t t = 0; t < n_tokens; t += 4) {
        multiply_4_tokens<Format>(group, tiles + t, sums + t * kMaxGroupRows);
      }
    }
    for (std::size_t t = 0; t < n_tokens; ++t) {
      std::memcpy(out + t * n_rows + begin, sums + t * kMaxGroupRows, count * sizeof(float));
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
    for (std::size_t i = 0; i < kTile; ++i) scale[i] = tile.factors[i / Format::kScaleColumns];
    for (std::size_t i = 0; i < kTile; ++i) {
      offset[i] = Format::kOffset
                      ? tile.factors[kTile / Format::kScaleColumns + i / Format::kScaleColumns]
                      : 0.0f;
    }
    for (std::size_t i = 0; i < kTile; i += n) {
      const auto whole = hn::PromoteTo(d32, hn::LoadU(d8, tile.q + i));
      const auto q = hn::ConvertTo(df, hn::Sub(whole, hn::Set(d32, Format::kZero)));
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
