// Per target: weights to floats.

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

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
