// Per target: rows of weights interleaved, as they are multiplied fastest.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

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
      transpose_words(data, w.row_bytes, n_whole, words);
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
