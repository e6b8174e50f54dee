// Activation rows in the two forms that matrices are multiplied with.
#ifndef MIXTRAL_NETWORK_ACTIVATIONS_HPP_
#define MIXTRAL_NETWORK_ACTIVATIONS_HPP_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "mixtral/impl/slab.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

// Rows of `width` float32, each padded with zeros to whole tiles, and the same quantised to 8 bits:
// once for each row, for all the matrices that read it.
class Activations {
 public:
  void take(Slab& slab, std::size_t n_rows, std::size_t width) {
    width_ = width;
    stride_ = simd::padded(width);
    floats_ = slab.take<float>(n_rows * stride_);
    tiles_ = slab.take<simd::ActivationTile>(n_rows * stride_ / simd::kTile);
  }

  float* row(std::size_t i) const noexcept { return floats_ + i * stride_; }

  // To be called when row(i) is complete, before it is multiplied with a quantised matrix.
  void quantize_row(const simd::Kernels& kernels, std::size_t i) const {
    kernels.quantize(row(i), width_, tiles_row(i));
  }

  // Row i as simd::Kernels::matmul wants it for `w`.
  const void* input(const simd::Matrix& w, std::size_t i) const noexcept {
    if (block_format_info(w.format)->quantized) return tiles_row(i);
    return row(i);
  }

 private:
  simd::ActivationTile* tiles_row(std::size_t i) const noexcept {
    return tiles_ + i * (stride_ / simd::kTile);
  }

  std::size_t width_ = 0;
  std::size_t stride_ = 0;
  float* floats_ = nullptr;
  simd::ActivationTile* tiles_ = nullptr;
};

// A chunk of a matrix product: this many rows of the weights.
constexpr std::size_t kRowsPerChunk = 32;

constexpr std::size_t n_row_chunks(std::size_t rows) {
  return (rows + kRowsPerChunk - 1) / kRowsPerChunk;
}

// Multiplies the rows of chunk `chunk` of w with the activation rows row_of(0) .. row_of(n - 1) and
// gives the results to sink(t, first_row, values, n_rows) for each t < n.
template <class RowOf, class Sink>
void multiply_chunk(const simd::Kernels& kernels, const simd::Matrix& w, std::size_t chunk,
                    const Activations& x, std::size_t n, const RowOf& row_of, const Sink& sink) {
  const std::size_t first_row = chunk * kRowsPerChunk;
  const std::size_t n_rows =
      w.rows - first_row < kRowsPerChunk ? w.rows - first_row : kRowsPerChunk;
  const void* inputs[simd::kMaxMatmulTokens];
  alignas(64) float out[simd::kMaxMatmulTokens * kRowsPerChunk];
  for (std::size_t begin = 0; begin < n; begin += simd::kMaxMatmulTokens) {
    const std::size_t count =
        n - begin < simd::kMaxMatmulTokens ? n - begin : simd::kMaxMatmulTokens;
    for (std::size_t t = 0; t < count; ++t) inputs[t] = x.input(w, row_of(begin + t));
    kernels.matmul(w, first_row, n_rows, inputs, count, out);
    for (std::size_t t = 0; t < count; ++t) sink(begin + t, first_row, out + t * n_rows, n_rows);
  }
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_ACTIVATIONS_HPP_
