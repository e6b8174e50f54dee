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

template <class Format>
constexpr std::size_t kBytesPerTile = kTile / kBlockSize<Format>* Format::kBlockBytes;

HWY_INLINE TileRow tile_row(TileRows& rows, std::size_t r) {
  const std::size_t block = r * kBlocksPerTile;
  return {rows.q + r * kTile,
          {rows.scales[0] + block, rows.scales[1] + block},
          {rows.offsets[0] + block, rows.offsets[1] + block}};
}

// Unpacks the tile at column `col` of n_rows rows; those from there to n_padded get scales of zero.
template <class Format>
void unpack_rows(const Matrix& w, std::size_t first_row, std::size_t n_rows, std::size_t n_padded,
                 std::size_t col, TileRows& rows) {
  const std::uint8_t* data = w.data + first_row * w.row_bytes + col / kTile * kBytesPerTile<Format>;
  // So many rows at a time are more than the hardware foresees; the tile after the next is fetched.
  const bool more = col + 3 * kTile <= w.cols;
  for (std::size_t r = 0; r < n_rows; ++r, data += w.row_bytes) {
    if (more) {
      for (std::size_t i = 0; i < kBytesPerTile<Format>; i += 64) {
        hwy::Prefetch(data + 2 * kBytesPerTile<Format> + i);
      }
    }
    Format::unpack(data, HWY_MIN(kTile, w.cols - col), tile_row(rows, r));
  }
  for (std::size_t r = n_rows; r < n_padded; ++r) {
    const TileRow row = tile_row(rows, r);
    std::memset(row.q, 0, kTile);
    for (std::size_t half = 0; half < 2; ++half) {
      std::memset(row.scales[half], 0, kBlocksPerTile * sizeof(float));
      std::memset(row.offsets[half], 0, kBlocksPerTile * sizeof(float));
    }
  }
}

using UnpackRows = void (*)(const Matrix&, std::size_t, std::size_t, std::size_t, std::size_t,
                            TileRows&);

// Formats that are multiplied by the same code.
template <bool kHasHalves, bool kHasOffset, bool kIsSigned>
struct DotKind {
  static constexpr bool kHalves = kHasHalves;  // the halves of a block have their own scales
  static constexpr bool kOffset = kHasOffset;
  static constexpr bool kSigned = kIsSigned;  // the stored quants are
};
template <class Format>
using DotKindOf =
    DotKind<Format::kScaleColumns == 16, Format::kOffset, Format::kSigned && !kUnsignedDot>;

// scale * dot - offset * q_sum: the dot of a block, in units of the activations' scale. Multiplications
// and additions are joined by hand, so that no compiler joins others.
template <class Kind>
HWY_INLINE VF scaled_dot(VI32 dot, VF scale, VF offset, VI32 q_sum) {
  const DF df;
  const auto product = hn::Mul(hn::ConvertTo(df, dot), scale);
  if (!Kind::kOffset) return product;
  return hn::NegMulAdd(offset, hn::ConvertTo(df, q_sum), product);
}

// The same for the second half of a block, added to `first`.
template <class Kind>
HWY_INLINE VF add_scaled_dot(VF first, VI32 dot, VF scale, VF offset, VI32 q_sum) {
  const DF df;
  const auto sum = hn::MulAdd(hn::ConvertTo(df, dot), scale, first);
  if (!Kind::kOffset) return sum;
  return hn::NegMulAdd(offset, hn::ConvertTo(df, q_sum), sum);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
