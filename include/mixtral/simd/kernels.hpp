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
// Weights have one scale and one offset for each group of this many columns (some formats repeat).
constexpr std::size_t kGroup = 16;
constexpr std::size_t kGroupsPerTile = kTile / kGroup;
// An 8-bit dot product sums this many columns at a time.
constexpr std::size_t kQuad = 4;
constexpr std::size_t kQuadsPerTile = kTile / kQuad;
// How many activation rows one matmul call takes at most.
constexpr std::size_t kMaxMatmulTokens = 32;

// 256 activations quantised to 8 bits, a scale for every 32: x[i] is about scale[i / 32] * q[i].
struct ActivationTile {
  std::int8_t q[kTile];  // in [-127, 127]
  float scale[kTile / 32];
  std::int32_t q_sum[kGroupsPerTile];  // of each 16 columns
  float sum[kGroupsPerTile];           // scale * q_sum
};

// A matrix of `rows` x `cols` in a block format; points into the model's bytes, unaligned.
struct Matrix {
  const std::uint8_t* data = nullptr;
  std::size_t row_bytes = 0;  // from one row to the next
  std::size_t rows = 0;
  std::size_t cols = 0;
  BlockFormat format = BlockFormat::f32;
  // The columns are what lies in a piece, row_bytes apart, as w2 in Mixtral's original release.
  // Float formats only.
  bool transposed = false;

  std::uint64_t bytes() const noexcept {
    return std::uint64_t{transposed ? cols : rows} * row_bytes;
  }
};

// Attention goes through the past in blocks of this many positions, beginning at its multiples.
constexpr std::size_t kAttentionBlock = 32;

// The keys and values of one head: position p is in slot p % n_slots, slots are `stride` floats
// apart. n_slots is a multiple of kAttentionBlock.
struct KeysAndValues {
  const float* keys;
  const float* values;
  std::size_t stride;
  std::size_t n_slots;
};

constexpr std::size_t padded(std::size_t cols) { return (cols + kTile - 1) / kTile * kTile; }

struct Kernels {
  const char* target;  // Highway's name: "AVX3_DL", "SSE4" ...
  std::int64_t target_bit;

  // out[t * n_rows + r] = dot(row (first_row + r) of w, x[t]) for r < n_rows, t < n_tokens.
  // x[t] points to float[padded(cols)] for a float format, ActivationTile[padded(cols) / kTile]
  // for a quantised one; columns past w.cols are zero. n_tokens <= kMaxMatmulTokens.
  // The result for one (row, token) does not depend on which others are asked for with it.
  void (*matmul)(const Matrix& w, std::size_t first_row, std::size_t n_rows, const void* const* x,
                 std::size_t n_tokens, float* out);

  // out[r * w.cols + c] = element (first_row + r, c) of w as float32, r < n_rows.
  void (*decode_rows)(const Matrix& w, std::size_t first_row, std::size_t n_rows, float* out);

  // Quantises x[0 .. padded(n)) (zeros past n) into padded(n) / kTile tiles.
  void (*quantize)(const float* x, std::size_t n, ActivationTile* out);

  // out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i] (Zhang & Sennrich 2019, RMSNorm).
  void (*rms_norm)(const float* x, const float* weight, float epsilon, std::size_t n, float* out);

  // gate[i] = silu(gate[i]) * up[i] (Shazeer 2020, "GLU Variants Improve Transformer", SwiGLU).
  void (*swiglu)(float* gate, const float* up, std::size_t n);

  // Rotates the n / 2 interleaved pairs (x[2i], x[2i+1]) by angles with the given cosines and
  // sines, each value there twice (Su et al. 2021, RoFormer, eq. 34).
  void (*rotate)(float* x, const float* cos2, const float* sin2, std::size_t n);

  // y[i] += a * x[i].
  void (*add_scaled)(float a, const float* x, std::size_t n, float* y);

  // out = softmax(q K^T * scale) V for one query head over the positions [first, end) of `past`:
  // one pass with a running maximum (Milakov & Gimelshein 2018, "Online normalizer calculation for
  // softmax"). The result depends on the positions only, not on how many slots there are.
  void (*attend)(const float* q, const KeysAndValues& past, std::size_t first, std::size_t end,
                 std::size_t head_size, float scale, float* out);
};

// The best table this CPU runs among those in `allowed` (a mask of Highway target bits, 0 for all);
// null if there is none.
const Kernels* select_kernels(std::int64_t allowed = 0);

// Calls visit(context, kernels) for every table this CPU runs, best first.
void for_each_kernels(void (*visit)(void* context, const Kernels& kernels), void* context);

}  // namespace mixtral::simd

#endif  // MIXTRAL_SIMD_KERNELS_HPP_
