// Per target: weights to floats, and the choice of the code that multiplies a format.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// How unpacked weights become floats.
struct Decoding {
  int zero;
  std::size_t scale_columns;
  std::size_t offset_columns;  // 0 if there are no offsets
};

// At most kMaxMatmulRows rows, not from before a multiple of it to after it.
void decode_quantized_rows(const Matrix& w, const Unpacker& unpacker, const Decoding& how,
                           std::size_t first_row, std::size_t n_rows, float* out) {
  const DF df;
  const DI32 d32;
  const hn::Rebind<std::int8_t, DF> d8;
  const hn::Rebind<std::uint8_t, DF> du8;
  const std::size_t n = hn::Lanes(df);
  // Interleaved ones are unpacked with those that they lie with.
  const std::size_t n_before = w.interleaved == 0 ? 0 : first_row % n;
  const std::size_t n_unpacked = w.interleaved == 0 ? n_rows : (n_before + n_rows + n - 1) / n * n;
  TileRows rows;
  HWY_ALIGN std::int8_t q[kTile];
  HWY_ALIGN float scale[kTile];
  HWY_ALIGN float offset[kTile];
  HWY_ALIGN float values[kTile];
  for (std::size_t col = 0; col < w.cols; col += kTile) {
    const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
    LaterTile later(w, unpacker.tile_bytes, first_row - n_before, n_unpacked, col, 1);
    unpack_rows(w, unpacker, first_row - n_before, n_unpacked, col, later, rows);
    for (std::size_t r = 0; r < n_rows; ++r) {
      const TilePart part = rows.part((n_before + r) / n * n);
      const std::size_t lane = (n_before + r) % n;
      for (std::size_t quad = 0; quad < kQuadsPerTile; ++quad) {
        std::memcpy(q + quad * kQuad, part.q + quad * n + lane, kQuad);
      }
      for (std::size_t i = 0; i < kTile; ++i) {
        const std::size_t at = i / kBlock * n + lane, in_block = i % kBlock;
        scale[i] = part.scales.scales[in_block / how.scale_columns][at];
        offset[i] =
            how.offset_columns == 0 ? 0.0f : part.scales.offsets[in_block / how.offset_columns][at];
      }
      for (std::size_t i = 0; i < kTile; i += n) {
        const auto stored = hn::LoadU(d8, q + i);
        const auto whole = kUnsignedDot ? hn::PromoteTo(d32, hn::BitCast(du8, stored))
                                        : hn::PromoteTo(d32, stored);
        const auto number = hn::ConvertTo(df, hn::Sub(whole, hn::Set(d32, how.zero)));
        hn::Store(mul_sub(number, hn::Load(df, scale + i), hn::Load(df, offset + i)), df,
                  values + i);
      }
      std::memcpy(out + r * w.cols + col, values, n_cols * sizeof(float));
    }
  }
}

template <class Format>
void decode_float_row(const Matrix& w, std::size_t row, float* out) {
  if (kInterleaves<Format> && w.interleaved != 0) {
    const std::size_t n = w.interleaved, lane = row % n;
    for (std::size_t c = 0; c < w.cols; ++c) {
      const std::size_t place = place_of_pair(c % kTile / 2) * n + lane;
      const std::uint8_t* pair =
          interleaved_tile(w, kTile * Format::kBytes, row - lane, c) + place * 2 * Format::kBytes;
      out[c] = Format::load_one(pair + c % 2 * Format::kBytes);
    }
    return;
  }
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
  HWY_ALIGN float line[kTile];
  for (std::size_t begin = 0; begin < n_rows; begin += kTile) {
    const std::size_t n = HWY_MIN(kTile, n_rows - begin);
    for (std::size_t c = 0; c < w.cols; ++c) {
      const std::uint8_t* data = w.data + c * w.row_bytes + (first_row + begin) * Format::kBytes;
      unpack_floats<Format>(data, n, kTile, line);
      for (std::size_t r = 0; r < n; ++r) out[(begin + r) * w.cols + c] = line[r];
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
    matmul_floats<Format>(w, first_row, n_rows, x, n_tokens, out);
  }
  template <class Format>
  void quantized() const {
    matmul_rows<Format>(w, first_row, n_rows, x, n_tokens, out);
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
    const Decoding how{kZeroOf<Format>, Format::kScaleColumns, Format::kOffsetColumns};
    for (std::size_t r = 0, n; r < n_rows; r += n) {
      n = HWY_MIN(kMaxMatmulRows - (first_row + r) % kMaxMatmulRows, n_rows - r);
      decode_quantized_rows(w, unpacker<Format>(), how, first_row + r, n, out + r * w.cols);
    }
  }
};

void decode_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows, float* out) {
  visit_format(w.format, DecodeRowsVisitor{w, first_row, n_rows, out});
}

// The bytes of a tile as a format's files have it, 0 if its rows cannot be interleaved.
struct TileBytesVisitor {
  std::size_t& bytes;

  template <class Format>
  void floating() const {
    if (kInterleaves<Format>) bytes = kTile * Format::kBytes;
  }
  template <class Format>
  void quantized() const {
    if (!Format::kByRow) bytes = kBytesPerTile<Format>;
  }
};
inline std::size_t interleaved_tile_bytes(BlockFormat format) {
  std::size_t bytes = 0;
  visit_format(format, TileBytesVisitor{bytes});
  return bytes;
}

std::size_t interleaved_row_bytes(const Matrix& w) {
  if (w.transposed || w.cols % kTile != 0 || w.rows % hn::Lanes(DF()) != 0) return 0;
  return w.cols / kTile * words_of_tile(interleaved_tile_bytes(w.format)) * 4;
}

void interleave(const Matrix& w, std::uint8_t* out) {
  const std::size_t n = hn::Lanes(DU32()), tile_bytes = interleaved_tile_bytes(w.format);
  const std::size_t n_words = words_of_tile(tile_bytes), n_whole = tile_bytes / 4;
  for (std::size_t row = 0; row < w.rows; row += n) {
    for (std::size_t t = 0; t < w.cols / kTile; ++t) {
      const std::uint8_t* data = w.data + row * w.row_bytes + t * tile_bytes;
      auto* words = reinterpret_cast<std::uint32_t*>(out);
      for (std::size_t i = 0; i < n_whole; i += 4) {
        const std::size_t first = HWY_MIN(i, n_whole - 4);
        transpose_words<4>(data + first * 4, w.row_bytes, words + first * n);
      }
      for (std::size_t r = 0; n_whole < n_words && r < n; ++r) {
        words[n_whole * n + r] = 0;
        std::memcpy(words + n_whole * n + r, data + r * w.row_bytes + n_whole * 4, tile_bytes % 4);
      }
      if (w.format == BlockFormat::bf16) order_pairs(words);
      out += n_words * 4 * n;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
