// Per target: tiles of several rows of weights, unpacked, for the matrix products.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// A tile of as many rows as a vector has lanes, unpacked.
struct TilePart {
  static constexpr std::size_t kStepBlocks = 1;

  std::uint32_t* q;  // [quad][row]
  TileScales scales;

  // Quad i of a block, here the only one, of a step.
  template <std::size_t block>
  HWY_INLINE VU32 quad(std::size_t step, std::size_t i) const {
    const DU32 d;
    return hn::Load(d, q + (step * 8 + i) * hn::Lanes(d));
  }
  HWY_INLINE VF scale(std::size_t half, std::size_t block) const {
    return hn::Load(DF(), scales.scales[half] + block * hn::Lanes(DF()));
  }
  HWY_INLINE VF offset(std::size_t half, std::size_t block) const {
    return hn::Load(DF(), scales.offsets[half] + block * hn::Lanes(DF()));
  }
};

// One tile of kMaxMatmulRows rows, in parts.
struct TileRows {
  HWY_ALIGN std::uint32_t q[kMaxMatmulRows * kQuadsPerTile];    // [part][quad][row]
  HWY_ALIGN float scales[2][kMaxMatmulRows * kBlocksPerTile];   // [half][part][block][row]
  HWY_ALIGN float offsets[2][kMaxMatmulRows * kBlocksPerTile];  // the same

  // The part that begins with a row.
  HWY_INLINE TilePart part(std::size_t row) {
    const std::size_t block = row * kBlocksPerTile;
    return {q + row * kQuadsPerTile,
            {{scales[0] + block, scales[1] + block}, {offsets[0] + block, offsets[1] + block}}};
  }
};

// Where the dot product wants unsigned weights, signed ones are 128 higher.
template <class Format>
constexpr int kZeroOf = Format::kSigned&& kUnsignedDot ? 128 : Format::kZero;

// Zeros are powers of two: the exponent.
constexpr int zero_bits_of(int zero) { return zero <= 1 ? 0 : 1 + zero_bits_of(zero / 2); }

// How many weights a block of the format has: the longest of 32 takes 34 bytes, the shortest of 256
// takes 66.
template <class Format>
constexpr std::size_t kBlockSize = Format::kBlockBytes < 64 ? 32 : 256;
template <class Format>
constexpr std::size_t kBytesPerTile = kTile / kBlockSize<Format>* Format::kBlockBytes;
constexpr std::size_t words_of_tile(std::size_t tile_bytes) { return (tile_bytes + 3) / 4; }

// The tile at column `col` of interleaved rows from first_row on.
HWY_INLINE const std::uint8_t* interleaved_tile(const Matrix& w, std::size_t tile_bytes,
                                                std::size_t first_row, std::size_t col) {
  return w.data + first_row * w.row_bytes + first_row / kMaxMatmulRows * w.gap_bytes +
         col / kTile * (words_of_tile(tile_bytes) * 4 * w.interleaved);
}

// How many bytes of each row ahead later tiles are fetched from memory, and where to. Measured on x86: into the
// second level of caches, which has room for all that is on its way (AVX-512: up to 1.8 times as fast as half a
// kilobyte ahead into the first level, which a few long tiles fill).
#if HWY_ARCH_X86
constexpr std::size_t kFetchedAhead = 4096;
HWY_INLINE void fetch_line(const std::uint8_t* p) { MIXTRAL_PREFETCH_L2(p); }
#else
constexpr std::size_t kFetchedAhead = 512;
HWY_INLINE void fetch_line(const std::uint8_t* p) { hwy::Prefetch(p); }
#endif

// Whether interleaved tiles are fetched line by line, and not row by row. Measured: with AVX-512 it is up to 1.06
// times as fast; with AVX2 only for the longest tiles, those of BF16, where it is 1.25 times.
constexpr bool kFetchesLines = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3;
constexpr std::size_t kLongTile = 2 * kTile;
// Such lines are fetched once more, so many bytes later, since what is asked for while too much is on its way may be
// dropped (measured in decoding with one thread: Q4_0 1.08 times as fast; with AVX2 it costs more than it gains).
constexpr std::size_t kFetchedAgain =
    kFetchesLines ? (kFetchedAhead - 768) * hn::MaxLanes(DF()) : 0;

// Fetches a later tile of n_rows rows from memory, in n_times parts: what is fetched little by little comes
// sooner (measured in decoding).
class LaterTile {
 public:
  LaterTile() = default;  // none

  LaterTile(const Matrix& w, std::size_t tile_bytes, std::size_t first_row, std::size_t n_rows,
            std::size_t col, std::size_t n_times)
      : row_bytes_(w.row_bytes),
        tile_bytes_(tile_bytes),
        rows_left_(n_rows),
        rows_a_time_((n_rows + n_times - 1) / n_times) {
    const std::size_t n_ahead = 1 + kFetchedAhead / tile_bytes;
    const std::size_t later = col + n_ahead * kTile;
    // After the end of these rows there come those after them.
    const std::size_t n_together = w.interleaved == 0 ? 1 : w.interleaved;
    const std::size_t skipped = later >= w.cols ? n_rows - n_together : 0;
    if (w.interleaved == 0) {
      row_ = w.data + (first_row + skipped) * w.row_bytes + later / kTile * tile_bytes;
      return;
    }
    row_ = interleaved_tile(w, tile_bytes, first_row + skipped, later);
    const std::size_t words = words_of_tile(tile_bytes);
    row_bytes_ = words * 4;
    until_gap_ = n_together_ = n_together;
    if (kFetchesLines || tile_bytes == kLongTile) {  // lines count as rows
      row_bytes_ = 64;
      until_gap_ = n_together_ = n_together * words / 16;
      rows_left_ = n_rows * words / 16;
      rows_a_time_ = (rows_left_ + n_times - 1) / n_times;
    }
    tile_bytes_ = row_bytes_;
    // From the end of a group's tile to the next group's.
    gap_ = n_together * w.row_bytes - n_together_ * row_bytes_;
  }

  HWY_INLINE void fetch() {
    const std::size_t n = HWY_MIN(rows_a_time_, rows_left_), n_bytes = tile_bytes_;
    const std::uint8_t* row = row_;
    const auto skip_gap = [&]() MIXTRAL_LAMBDA {
      if (gap_ != 0 && until_gap_-- == 0) row += gap_, until_gap_ = n_together_ - 1;
    };
    if (kFetchesLines && n_bytes == 64) {
      for (std::size_t r = 0; r < n; ++r, row += 64) {
        skip_gap();
        fetch_line(row), fetch_line(row - kFetchedAgain);
      }
    } else {
      for (std::size_t r = 0; r < n; ++r, row += row_bytes_) {
        skip_gap();
        for (std::size_t i = 0; i < n_bytes; i += 64) fetch_line(row + i);
      }
    }
    row_ = row;
    rows_left_ -= n;
  }

 private:
  const std::uint8_t* row_ = nullptr;
  std::size_t row_bytes_ = 0, tile_bytes_ = 0, rows_left_ = 0, rows_a_time_ = 0;
  std::size_t n_together_ = 1, until_gap_ = 1, gap_ = 0;
};

// The longest tile's words.
constexpr std::size_t kMaxTileWords = words_of_tile(kBytesPerTile<Q8_0>);

// How a format lies in rows that are not interleaved.
struct TileLayout {
  std::size_t tile_bytes, block_size, block_bytes;
};
template <class Format>
constexpr TileLayout kTileLayout{kBytesPerTile<Format>, kBlockSize<Format>, Format::kBlockBytes};

// The tile at column `col` of n_rows rows, as many as there are lanes at most: row r is at data + r * row_bytes, in
// the file or, where that has no whole tile or no more rows, in a copy with zeros after them.
struct PartBytes {
  const std::uint8_t* data;
  std::size_t row_bytes;
  HWY_ALIGN std::uint8_t copy[kMaxLanes * kMaxTileWords * 4];

  PartBytes(const Matrix& w, const TileLayout& layout, std::size_t first_row, std::size_t n_rows,
            std::size_t col)
      : data(w.data + first_row * w.row_bytes + col / kTile * layout.tile_bytes),
        row_bytes(w.row_bytes) {
    const std::size_t n_cols = HWY_MIN(kTile, w.cols - col);
    // The last word may begin before the end of the block and end after it.
    const bool ends = first_row + n_rows == w.rows && col + kTile >= w.cols;
    if (n_rows == hn::Lanes(DF()) && n_cols == kTile && (layout.tile_bytes % 4 == 0 || !ends))
      return;
    const std::size_t n_bytes = n_cols / layout.block_size * layout.block_bytes;
    const std::size_t copy_bytes = words_of_tile(layout.tile_bytes) * 4;
    std::memset(copy, 0, kMaxLanes * copy_bytes);
    for (std::size_t r = 0; r < n_rows; ++r) {
      std::memcpy(copy + r * copy_bytes, data + r * row_bytes, n_bytes);
    }
    data = copy;
    row_bytes = copy_bytes;
  }
};

// The same as words, [word][row].
MIXTRAL_TILE_INLINE void part_words(const Matrix& w, const TileLayout& layout,
                                    std::size_t first_row, std::size_t n_rows, std::size_t col,
                                    std::uint32_t* out) {
  const PartBytes bytes(w, layout, first_row, n_rows, col);
  transpose_words(bytes.data, bytes.row_bytes, words_of_tile(layout.tile_bytes), out);
}

// The same where they lie so, or else in `buffer`.
template <class Format>
HWY_INLINE PackedRows packed_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                                  std::size_t col, std::uint32_t* buffer) {
  if (w.interleaved != 0) {
    const auto* tile = interleaved_tile(w, kBytesPerTile<Format>, first_row, col);
    return {reinterpret_cast<const std::uint32_t*>(tile)};
  }
  part_words(w, kTileLayout<Format>, first_row, n_rows, col, buffer);
  return {buffer};
}

// A part whose quads are unpacked where they are used, and so are scales that lie beside them.
template <class Format>
class PackedPart {
 public:
  static constexpr std::size_t kStepBlocks = Format::kStepBlocks;

  // The tile at column `col` of n_rows rows.
  HWY_INLINE void set(const Matrix& w, std::size_t first_row, std::size_t n_rows, std::size_t col) {
    words_ = packed_rows<Format>(w, first_row, n_rows, col, buffer_).words;
    const TileScales scales{{values_[0], values_[1]}, {values_[2], values_[3]}};
    if (!kScalesInBlocks) Format::unpack_scales(rows(), scales);
  }

  HWY_INLINE PackedRows rows() const { return {words_}; }

  template <std::size_t block>
  HWY_INLINE VU32 quad(std::size_t step, std::size_t i) const {
    return Format::template quad<block>(rows(), step, i);
  }
  HWY_INLINE VF scale(std::size_t half, std::size_t block) const {
    if (kScalesInBlocks) return block_scale<Format>(rows(), block);
    return hn::Load(DF(), values_[half] + block * hn::Lanes(DF()));
  }
  HWY_INLINE VF offset(std::size_t half, std::size_t block) const {
    if (kScalesInBlocks) return block_offset<Format>(rows(), block);
    return hn::Load(DF(), values_[2 + half] + block * hn::Lanes(DF()));
  }

 private:
  static constexpr bool kScalesInBlocks = kBlockSize<Format> == 32;

  const std::uint32_t* words_;
  HWY_ALIGN std::uint32_t buffer_[words_of_tile(kBytesPerTile<Format>) * kMaxLanes];
  HWY_ALIGN float values_[4][kMaxLanes * kBlocksPerTile];  // scales, offsets: [half][block][row]
};

// The same for code that takes one block after the other, where a step of all its blocks is long.
template <class Format>
class PackedBlocks : public PackedPart<Format> {
 public:
  static constexpr std::size_t kStepBlocks = 1;

  template <std::size_t>
  HWY_INLINE VU32 quad(std::size_t block, std::size_t i) const {
    return Format::quad_of_block(this->rows(), block, i);
  }
};

// Unpacks the tile at column `col` of n_rows rows, as many as there are lanes at most; the rest becomes
// zeros.
template <class Format>
void unpack_part(const Matrix& w, std::size_t first_row, std::size_t n_rows, std::size_t col,
                 TilePart part) {
  static_assert(words_of_tile(kBytesPerTile<Format>) <= kMaxTileWords, "PartBytes has no room");
  const std::size_t n = hn::Lanes(DF());
  if constexpr (Format::kByRow) {
    const PartBytes bytes(w, kTileLayout<Format>, first_row, n_rows, col);
    HWY_ALIGN std::int8_t q[kMaxLanes * kTile];
    HWY_ALIGN float scales[2][kMaxLanes * kBlocksPerTile];
    for (std::size_t r = 0; r < n; ++r) {
      const std::size_t block = r * kBlocksPerTile;
      Format::unpack(bytes.data + r * bytes.row_bytes,
                     {q + r * kTile, {scales[0] + block, scales[1] + block}});
    }
    const auto transpose = [](std::size_t n_words, const void* from, void* to) MIXTRAL_LAMBDA {
      transpose_words(static_cast<const std::uint8_t*>(from), n_words * 4, n_words,
                      static_cast<std::uint32_t*>(to));
    };
    transpose(kQuadsPerTile, q, part.q);
    transpose(kBlocksPerTile, scales[0], part.scales.scales[0]);
    if (Format::kScaleColumns == 16) transpose(kBlocksPerTile, scales[1], part.scales.scales[1]);
  } else {
    HWY_ALIGN std::uint32_t buffer[words_of_tile(kBytesPerTile<Format>) * kMaxLanes];
    const PackedRows rows = packed_rows<Format>(w, first_row, n_rows, col, buffer);
    Format::unpack_scales(rows, part.scales);
    constexpr std::size_t kQuads = Format::kStepBlocks * 8;
    for (std::size_t step = 0; step < kQuadsPerTile / kQuads; ++step) {
      std::uint32_t* q = part.q + step * kQuads * n;
      MIXTRAL_UNROLL
      for (std::size_t i = 0; i < 8; ++i) {
        for_constants<Format::kStepBlocks>([&](auto block) MIXTRAL_LAMBDA {
          constexpr std::size_t b = decltype(block)::value;
          hn::Store(Format::template quad<b>(rows, step, i), DU32(), q + (b * 8 + i) * n);
        });
      }
    }
  }
}

// How a format is unpacked, for code that multiplies several formats.
struct Unpacker {
  void (*part)(const Matrix&, std::size_t first_row, std::size_t n_rows, std::size_t col, TilePart);
  std::size_t tile_bytes;
  int zero_bits;
};
template <class Format>
HWY_INLINE Unpacker unpacker() {
  return {unpack_part<Format>, kBytesPerTile<Format>, zero_bits_of(kZeroOf<Format>)};
}

// How many times fetch() is called while a part is unpacked.
constexpr std::size_t kFetchesPerPart = 2;

// Unpacks the tile at column `col` of n_rows rows.
inline void unpack_rows(const Matrix& w, const Unpacker& unpacker, std::size_t first_row,
                        std::size_t n_rows, std::size_t col, LaterTile& later, TileRows& rows) {
  const std::size_t n = hn::Lanes(DF());
  for (std::size_t r = 0; r < n_rows; r += n) {
    later.fetch();
    unpacker.part(w, first_row + r, HWY_MIN(n, n_rows - r), col, rows.part(r));
    later.fetch();
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
