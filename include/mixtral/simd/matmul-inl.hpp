// Per target: weights to floats, and the choice of the code that multiplies a format.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

template <class Format>
void decode_quantized_row(const Matrix& w, std::size_t row, float* out) {
  const DF df;
  const DI32 d32;
  const hn::Rebind<std::int8_t, DF> d8;
  const hn::Rebind<std::uint8_t, DF> du8;
  const std::size_t n = hn::Lanes(d8);
  const std::uint8_t* data = w.data + row * w.row_bytes;
  TileRows rows;
  const TileRow tile = tile_row(rows, 0);
  HWY_ALIGN float scale[kTile];
  HWY_ALIGN float offset[kTile];
  HWY_ALIGN float values[kTile];
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
    Format::unpack(data + col / kTile * kBytesPerTile<Format>, n_cols, tile);
    for (std::size_t i = 0; i < kTile; ++i) {
      const std::size_t half = i % kBlock / Format::kScaleColumns;
      scale[i] = tile.scales[half][i / kBlock];
      offset[i] = Format::kOffset ? tile.offsets[half][i / kBlock] : 0.0f;
    }
    for (std::size_t i = 0; i < kTile; i += n) {
      const auto stored = hn::LoadU(d8, tile.q + i);
      const auto whole =
          kUnsignedDot ? hn::PromoteTo(d32, hn::BitCast(du8, stored)) : hn::PromoteTo(d32, stored);
      const auto q = hn::ConvertTo(df, hn::Sub(whole, hn::Set(d32, kZeroOf<Format>)));
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
  HWY_ALIGN float tiles[kFloatRows * kTile];
  for (std::size_t begin = 0; begin < n_rows; begin += kFloatRows) {
    const std::size_t n = HWY_MIN(kFloatRows, n_rows - begin);
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
      matmul_transposed_floats<Format>(w, first_row, n_rows, x, n_tokens, out);
    } else {
      matmul_floats<Format>(w, first_row, n_rows, x, n_tokens, out);
    }
  }
  template <class Format>
  void quantized() const {
    using Kind = DotKindOf<Format>;
#if MIXTRAL_FEW
    if (n_tokens > 1) {
      for (std::size_t t = 0; t < n_tokens; t += kMaxLanes) {
        matmul_few<Kind>(w, unpacker<Format>(), first_row, n_rows, x + t,
                         HWY_MIN(kMaxLanes, n_tokens - t), out + t * kMaxMatmulRows);
      }
      return;
    }
#endif
    matmul_rows<Kind>(w, unpacker<Format>(), first_row, n_rows, x, n_tokens, out);
  }
};

void matmul(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
            std::size_t n_tokens, float* out) {
  visit_format(w.format, MatmulVisitor{w, first_row, n_rows, x, n_tokens, out});
}

struct MatmulGroupsVisitor {
  const Matrix& w;
  std::size_t first_row, n_rows;
  const std::uint8_t* groups;
  std::size_t n_tokens;
  float* out;

  template <class Format>
  void floating() const {}  // there are no groups of floats
  template <class Format>
  void quantized() const {
    matmul_groups_of<DotKindOf<Format>>(w, unpacker<Format>(), first_row, n_rows, groups, n_tokens,
                                        out);
  }
};

void matmul_groups(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                   const std::uint8_t* groups, std::size_t n_tokens, float* out) {
  visit_format(w.format, MatmulGroupsVisitor{w, first_row, n_rows, groups, n_tokens, out});
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
