// Per target: tiles of several rows of weights, unpacked, for the matrix products.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// One tile of each of some rows.
struct TileRows {
  HWY_ALIGN std::int8_t q[kMaxMatmulRows * kTile];              // [row][column]
  HWY_ALIGN float scales[2][kMaxMatmulRows * kBlocksPerTile];   // [half][row][block]
  HWY_ALIGN float offsets[2][kMaxMatmulRows * kBlocksPerTile];  // the same
};

// Where the dot product wants unsigned weights, signed ones are 128 higher.
template <class Format>
constexpr int kZeroOf = Format::kSigned&& kUnsignedDot ? 128 : Format::kZero;

// Zeros are powers of two: the exponent.
constexpr int zero_bits_of(int zero) { return zero <= 1 ? 0 : 1 + zero_bits_of(zero / 2); }

template <class Format>
constexpr std::size_t kBytesPerTile = kTile / kBlockSize<Format>* Format::kBlockBytes;

HWY_INLINE TileRow tile_row(TileRows& rows, std::size_t r) {
  const std::size_t block = r * kBlocksPerTile;
  return {rows.q + r * kTile,
          {rows.scales[0] + block, rows.scales[1] + block},
          {rows.offsets[0] + block, rows.offsets[1] + block}};
}

// Unpacks the tiles of n_cols columns at `data`, one for each of n rows; fetches what is `ahead` of
// each from memory unless that is 0.
template <class Format>
void unpack_rows(const std::uint8_t* data, std::size_t row_bytes, std::size_t n, std::size_t n_cols,
                 std::size_t ahead, TileRows& rows) {
  for (std::size_t r = 0; r < n; ++r, data += row_bytes) {
    if (ahead != 0) {
      for (std::size_t i = 0; i < kBytesPerTile<Format>; i += 64) hwy::Prefetch(data + ahead + i);
    }
    Format::unpack(data, n_cols, tile_row(rows, r));
  }
}

// How a format is unpacked, for code that multiplies several formats.
struct Unpacker {
  void (*unpack)(const std::uint8_t*, std::size_t, std::size_t, std::size_t, std::size_t,
                 TileRows&);
  std::size_t tile_bytes;
  int zero_bits;

  // The tile at column `col` of n rows.
  void rows(const Matrix& w, std::size_t first_row, std::size_t n, std::size_t col,
            std::size_t ahead, TileRows& to) const {
    unpack(w.data + first_row * w.row_bytes + col / kTile * tile_bytes, w.row_bytes, n,
           HWY_MIN(kTile, w.cols - col), ahead, to);
  }

  // How far ahead of it is the tile which is n_tiles later, if after the end of some rows there come
  // those n_rows further.
  std::size_t ahead(const Matrix& w, std::size_t col, std::size_t n_tiles,
                    std::size_t n_rows) const {
    const bool at_end = col + (n_tiles + 1) * kTile > w.cols;
    return n_tiles * tile_bytes + (at_end ? (n_rows - 1) * w.row_bytes : 0);
  }
};

// Fetches the tile after the one at column `col` of n_rows rows from memory, in n_times parts.
class NextTile {
 public:
  NextTile(const Unpacker& unpacker, const Matrix& w, std::size_t first_row, std::size_t n_rows,
           std::size_t col, std::size_t n_times)
      : row_(w.data + first_row * w.row_bytes + col / kTile * unpacker.tile_bytes +
             unpacker.ahead(w, col, 1, kMaxMatmulRows)),
        row_bytes_(w.row_bytes),
        tile_bytes_(unpacker.tile_bytes),
        rows_left_(n_rows),
        rows_a_time_((n_rows + n_times - 1) / n_times) {}

  HWY_INLINE void fetch() {
    for (std::size_t n = HWY_MIN(rows_a_time_, rows_left_); n != 0; --n, --rows_left_) {
      for (std::size_t i = 0; i < tile_bytes_; i += 64) hwy::Prefetch(row_ + i);
      row_ += row_bytes_;
    }
  }

 private:
  const std::uint8_t* row_;
  std::size_t row_bytes_, tile_bytes_, rows_left_, rows_a_time_;
};

template <class Format>
HWY_INLINE Unpacker unpacker() {
  return {unpack_rows<Format>, kBytesPerTile<Format>, zero_bits_of(kZeroOf<Format>)};
}

// Formats that are multiplied by the same code.
template <bool kHasHalves, bool kHasOffset, bool kIsSigned>
struct DotKind {
  static constexpr bool kHalves = kHasHalves;  // the halves of a block have their own scales
  static constexpr bool kOffset = kHasOffset;
  static constexpr bool kSigned = kIsSigned;                // the stored quants are
  static constexpr bool kZero = !kHasOffset && !kIsSigned;  // there is a zero to subtract
};
template <class Format>
using DotKindOf =
    DotKind<Format::kScaleColumns == 16, Format::kOffset, Format::kSigned && !kUnsignedDot>;

// What the quants' zero adds to a dot, to be subtracted.
template <class Kind>
HWY_INLINE VI32 zero_part(VI32 q_sum, int zero_bits) {
  return Kind::kZero ? hn::ShiftLeftSame(q_sum, zero_bits) : hn::Zero(DI32());
}

// scale * dot - offset * q_sum, for a block, or added to what its first half gave. Multiplications and
// additions are joined by hand, with a zero at least, so that no compiler joins others.
template <class Kind>
HWY_INLINE VF scaled_dot(VF dot, VF scale, VF offset, VF q_sum) {
  if (!Kind::kOffset) return hn::MulAdd(dot, scale, hn::Zero(DF()));
  return hn::NegMulAdd(offset, q_sum, hn::Mul(dot, scale));
}
template <class Kind>
HWY_INLINE VF add_scaled_dot(VF first, VF dot, VF scale, VF offset, VF q_sum) {
  const auto sum = hn::MulAdd(dot, scale, first);
  return Kind::kOffset ? hn::NegMulAdd(offset, q_sum, sum) : sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
