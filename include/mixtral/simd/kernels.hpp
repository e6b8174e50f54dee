// The numeric kernels as a table of functions, one table for each SIMD target compiled in.
//
// Kernels work on plain pointers and sizes and know no model. They are written once, in
// simd/*-inl.hpp and formats/*-inl.hpp, and compiled for every target by simd/all_targets.hpp.
#ifndef MIXTRAL_SIMD_KERNELS_HPP_
#define MIXTRAL_SIMD_KERNELS_HPP_

#include <cstddef>
#include <cstdint>

#include "mixtral/block_format.hpp"

namespace mixtral::simd {

// Rows are processed in tiles of this many columns; activation rows are padded with zeros to it.
constexpr std::size_t kTile = 256;
// Activations have one scale for each block of this many columns, weights one or one for each half.
constexpr std::size_t kBlock = 32;
constexpr std::size_t kBlocksPerTile = kTile / kBlock;
// An 8-bit dot product sums this many columns at a time.
constexpr std::size_t kQuad = 4;
constexpr std::size_t kQuadsPerTile = kTile / kQuad;
// Float vectors, and so groups of tokens, have at most this many lanes.
constexpr std::size_t kMaxLanes = 16;
// One matmul call computes at most this many rows of the weights times this many tokens.
constexpr std::size_t kMaxMatmulRows = 32;
constexpr std::size_t kMaxMatmulTokens = 256;

constexpr std::size_t padded(std::size_t cols) { return (cols + kTile - 1) / kTile * kTile; }

// Activations quantised to 8 bits, a scale for every 32 columns: x is about scale * q. Scales are powers
// of two, so that multiplying with them is exact: whatever it is joined with, in whatever order, the
// results are the same bits. Those of n tokens lie together, for each tile of columns:
//   std::int8_t  q[kQuadsPerTile][n][kQuad];  in [-127, 127]
//   float        scale[kBlocksPerTile][n];    from 2^-100 to 2^100, or 0 where there is nothing
//   std::int16_t q_sum[2][kBlocksPerTile][n];    the sums of q over 16 columns: first halves of the
//                                             blocks of 32, then second halves
// n is 1, or as many as a vector has lanes (Kernels::lanes); then it is called a group.
constexpr std::size_t kTokenTileBytes = kTile + kBlocksPerTile * 4 + 2 * kBlocksPerTile * 2;

constexpr std::size_t token_bytes(std::size_t cols) {
  return padded(cols) / kTile * kTokenTileBytes;
}
inline std::int8_t* tile_q(std::uint8_t* tile) { return reinterpret_cast<std::int8_t*>(tile); }
inline float* tile_scale(std::uint8_t* tile, std::size_t n) {
  return reinterpret_cast<float*>(tile + n * kTile);
}
inline std::int16_t* tile_q_sum(std::uint8_t* tile, std::size_t n) {
  return reinterpret_cast<std::int16_t*>(tile + n * (kTile + kBlocksPerTile * 4));
}
inline const std::int8_t* tile_q(const std::uint8_t* tile) {
  return reinterpret_cast<const std::int8_t*>(tile);
}
inline const float* tile_scale(const std::uint8_t* tile, std::size_t n) {
  return reinterpret_cast<const float*>(tile + n * kTile);
}
inline const std::int16_t* tile_q_sum(const std::uint8_t* tile, std::size_t n) {
  return reinterpret_cast<const std::int16_t*>(tile + n * (kTile + kBlocksPerTile * 4));
}

// A matrix of `rows` x `cols` in a block format; points into the model's bytes, unaligned unless interleaved.
struct Matrix {
  const std::uint8_t* data = nullptr;
  std::size_t row_bytes = 0;  // from one row to the next
  std::size_t rows = 0;
  std::size_t cols = 0;
  BlockFormat format = BlockFormat::f32;
  // The columns are what lies in a piece, row_bytes apart, as w2 in Mixtral's original release.
  // Float formats only.
  bool transposed = false;
  // If not 0, rows are in another order than in files, by Kernels::interleave: so many lie together, tile
  // after tile, each as words of four bytes, [word][row], of which the last is filled up with zeros; those of
  // BF16 in another order, too.
  std::size_t interleaved = 0;
  // Interleaved ones only: after each kMaxMatmulRows rows there are so many bytes of another matrix.
  std::size_t gap_bytes = 0;

  std::uint64_t bytes() const noexcept {
    return std::uint64_t{transposed ? cols : rows} * row_bytes;
  }
};

// Attention goes through the past in blocks of this many positions, beginning at its multiples.
constexpr std::size_t kAttentionBlock = 32;

// Keys and values lie in pages of this many positions, a multiple of kAttentionBlock.
constexpr std::size_t kPagePositions = 64;

// The keys and values of one head, each row in the format. Position p is row p % kPagePositions of page
// page_of[p / kPagePositions].
struct KeysAndValues {
  const std::uint8_t* pages;
  std::size_t page_bytes;  // from one page to the next
  const std::uint32_t* page_of;
  std::size_t keys;    // where in a page this head's keys begin
  std::size_t values;  // and its values
  std::size_t stride;  // from one row to the next
  BlockFormat format;  // f32, f16, bf16 or q8_0
};

// A token that attends to the positions [first, end), of which there is one at least. Its query heads lie
// together, head_size apart, as do their results.
struct Query {
  const float* q;
  float* out;
  std::size_t first, end;
};
constexpr std::size_t kMaxQueries = 8;

struct Kernels {
  const char* target;  // Highway's name: "AVX3_DL", "AVX2" ...
  std::int64_t target_bit;
  // Products and sums are joined, rounded once: the results of all such targets are the same bits.
  bool fuses;

  // How many tokens a group has: a power of two, at most kMaxLanes.
  std::size_t (*lanes)();

  // So many tokens or more are multiplied faster in groups, fewer one by one.
  std::size_t min_grouped_tokens;
  bool in_groups(std::size_t n_tokens) const noexcept { return n_tokens >= min_grouped_tokens; }

  // out[t * kMaxMatmulRows + r] = dot(row (first_row + r) of w, x[t]) for r < n_rows, t < n_tokens.
  // x[t] points to float[padded(cols)] for a float format, to quantised activations of one token for
  // a quantised one; columns past w.cols are zero. `out` has room for kMaxMatmulRows rows, whatever
  // n_rows, of whole fours of tokens, and is aligned to 64 bytes. n_rows <= kMaxMatmulRows,
  // n_tokens <= kMaxMatmulTokens. The result for one (row, token) does not depend on which others are
  // asked for with it.
  void (*matmul)(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                 std::size_t n_tokens, float* out);

  // The same, to the bit, for many tokens and a quantised format: the tokens are in groups, one after
  // the other, of which the last may be used in part. `out` has room for whole groups.
  void (*matmul_groups)(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                        const std::uint8_t* groups, std::size_t n_tokens, float* out);

  // As matmul, for BF16 and tokens that to_bf16 rounded: x[t] points to padded(cols) of them.
  void (*matmul_bf16)(const Matrix& w, std::size_t first_row, std::size_t n_rows,
                      const void* const* x, std::size_t n_tokens, float* out);

  // The bytes that a row of w takes once it is interleaved, as the kernels here have it to read
  // fastest, each its own way; 0 if w cannot be: F32, F16, grids of points (IQ2, IQ3), parts of tiles or
  // of groups of lanes() rows. Of an interleaved matrix these are multiplied whole.
  std::size_t (*interleaved_row_bytes)(const Matrix& w);

  // Writes w so, aligned to 64 bytes.
  void (*interleave)(const Matrix& w, std::uint8_t* out);

  // out[r * w.cols + c] = element (first_row + r, c) of w as float32, r < n_rows.
  void (*decode_rows)(const Matrix& w, std::size_t first_row, std::size_t n_rows, float* out);

  // Quantises x[0 .. n) as columns [first, first + n) of token `token` of the n_tokens (1 or lanes())
  // at `out`, which have `cols` columns; after the last one it clears up to padded(cols). `first` is
  // a multiple of 32, and so is n unless these are the last columns.
  void (*quantize)(const float* x, std::size_t first, std::size_t n, std::size_t cols,
                   std::uint8_t* out, std::size_t n_tokens, std::size_t token);

  // The same for 32 columns from `first` on, of the first n_tokens tokens of a group: token t's are
  // x[t * stride .. + 32). Clears nothing after them.
  void (*quantize_group)(const float* x, std::size_t stride, std::size_t n_tokens,
                         std::size_t first, std::uint8_t* group);

  // Makes a group of n <= lanes() tokens that were quantised alone; clears the rest of it.
  void (*pack)(const std::uint8_t* const* tokens, std::size_t n, std::size_t cols,
               std::uint8_t* group);

  // Rounds x[0 .. n) to BF16; what is below 2^-50 becomes 0, as do weights that it is
  // multiplied with.
  void (*to_bf16)(const float* x, std::size_t n, std::uint16_t* out);

  // out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i] (Zhang & Sennrich 2019, RMSNorm).
  void (*rms_norm)(const float* x, const float* weight, float epsilon, std::size_t n, float* out);

  // gate[i] = silu(gate[i]) * up[i] (Shazeer 2020, "GLU Variants Improve Transformer", SwiGLU).
  void (*swiglu)(float* gate, const float* up, std::size_t n);

  // Rotates the n / 2 interleaved pairs (x[2i], x[2i+1]) by angles with the given cosines and
  // sines, each value there twice (Su et al. 2021, RoFormer, eq. 34).
  void (*rotate)(float* x, const float* cos2, const float* sin2, std::size_t n);

  // y[i] += a * x[i].
  void (*add_scaled)(float a, const float* x, std::size_t n, float* y);

  // Writes x[0 .. n) as a row of keys or values in the format: f32, f16, bf16, or q8_0 (then n is a
  // multiple of 32). What is too large for a half becomes the largest.
  void (*store_kv)(BlockFormat format, const float* x, std::size_t n, std::uint8_t* out);

  // out[h] = softmax(q[h] K^T * scale) V for n_heads heads of each query, kMaxQueries at most: one pass over
  // `past` with a running maximum. A query's result does not depend on the others.
  void (*attend)(const Query* queries, std::size_t n_queries, std::size_t n_heads,
                 const KeysAndValues& past, std::size_t head_size, float scale);
};

// The best table this CPU runs among those in `allowed` (a mask of Highway target bits, 0 for all), or
// of these, those that fuse; null if there is none.
const Kernels* select_kernels(std::int64_t allowed = 0, bool fuses_only = false);

// Calls visit(context, kernels) for every table this CPU runs, best first.
void for_each_kernels(void (*visit)(void* context, const Kernels& kernels), void* context);

}  // namespace mixtral::simd

#endif  // MIXTRAL_SIMD_KERNELS_HPP_
