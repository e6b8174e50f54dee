// Activation rows in the forms that matrices are multiplied with.
#ifndef MIXTRAL_NETWORK_ACTIVATIONS_HPP_
#define MIXTRAL_NETWORK_ACTIVATIONS_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mixtral/impl/slab.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

inline bool is_quantized(const simd::Matrix& w) noexcept {
  return block_format_info(w.format)->quantized;
}

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Rows of `width` float32, each padded with zeros to whole tiles, and the same quantised to 8 bits:
// once for each row, for all the matrices that read it.
class Activations {
 public:
  // Plans memory for n_rows rows, in groups or alone, as floats too if `floats`.
  void take(Slab& slab, const simd::Kernels& kernels, std::size_t n_rows, std::size_t width,
            bool floats) {
    kernels_ = &kernels;
    lanes_ = kernels.lanes();
    width_ = width;
    stride_ = simd::padded(width);
    token_bytes_ = simd::token_bytes(width);
    floats_ = floats ? slab.take<float>(n_rows * stride_) : nullptr;
    if (floats_ != nullptr && stride_ != width_) {
      std::memset(floats_, 0, n_rows * stride_ * sizeof(float));
    }
    quantized_ = slab.take<std::uint8_t>(round_up(n_rows, lanes_) * token_bytes_);
  }

  std::size_t lanes() const noexcept { return lanes_; }
  bool in_groups(std::size_t n) const noexcept { return kernels_->in_groups(n); }
  float* row(std::size_t i) const noexcept { return floats_ + i * stride_; }

  // Row i, quantised alone.
  std::uint8_t* token(std::size_t i) const noexcept { return quantized_ + i * token_bytes_; }

  // The group that begins with row i, a multiple of lanes(); the next ones follow.
  std::uint8_t* groups(std::size_t i) const noexcept { return token(i); }

  // Quantises `values` as the columns [first, first + n) of row i. `grouped`: as a member of its
  // group, else alone.
  void quantize(const float* values, std::size_t first, std::size_t n, std::size_t i,
                bool grouped) const {
    if (grouped) {
      kernels_->quantize(values, first, n, width_, groups(i - i % lanes_), lanes_, i % lanes_);
    } else {
      kernels_->quantize(values, first, n, width_, token(i), 1, 0);
    }
  }

  // The same for rows i to i + count, whose values are `stride` apart; i is a multiple of lanes().
  void quantize_rows(const float* values, std::size_t stride, std::size_t first, std::size_t n,
                     std::size_t i, std::size_t count, bool grouped) const {
    const bool clears = first + n == width_ && stride_ != width_;
    if (grouped && n == simd::kBlock && !clears) {
      for (std::size_t t = 0; t < count; t += lanes_) {
        kernels_->quantize_group(values + t * stride, stride, std::min(lanes_, count - t), first,
                                 groups(i + t));
      }
      return;
    }
    for (std::size_t t = 0; t < count; ++t) {
      quantize(values + t * stride, first, n, i + t, grouped);
    }
  }

  // To be called when row(i) is complete, before it is multiplied with a quantised matrix.
  void quantize_row(std::size_t i, bool grouped) const { quantize(row(i), 0, width_, i, grouped); }

  // Row i, read from its quantised form.
  void dequantize_row(std::size_t i, bool grouped, float* out) const {
    const std::size_t n = grouped ? lanes_ : 1;
    const std::size_t token_in_group = grouped ? i % lanes_ : 0;
    const std::uint8_t* tokens = token(i - token_in_group);
    for (std::size_t c = 0; c < width_; ++c) {
      const std::uint8_t* tile = tokens + c / simd::kTile * simd::kTokenTileBytes * n;
      const std::size_t quad = c % simd::kTile / simd::kQuad;
      const std::size_t block = c % simd::kTile / simd::kBlock;
      out[c] = simd::tile_scale(tile, n)[block * n + token_in_group] *
               simd::tile_q(tile)[(quad * n + token_in_group) * simd::kQuad + c % simd::kQuad];
    }
  }

 private:
  const simd::Kernels* kernels_ = nullptr;
  std::size_t lanes_ = 1;
  std::size_t width_ = 0;
  std::size_t stride_ = 0;
  std::size_t token_bytes_ = 0;
  float* floats_ = nullptr;
  std::uint8_t* quantized_ = nullptr;
};

// A chunk of a matrix product: this many rows of the weights.
constexpr std::size_t kRowsPerChunk = simd::kMaxMatmulRows;

constexpr std::size_t n_row_chunks(std::size_t rows) {
  return (rows + kRowsPerChunk - 1) / kRowsPerChunk;
}

// The rows of w in a chunk.
struct RowRange {
  std::size_t first;
  std::size_t n;
};
inline RowRange chunk_rows(const simd::Matrix& w, std::size_t chunk) noexcept {
  const std::size_t first = chunk * kRowsPerChunk;
  return {first, w.rows - first < kRowsPerChunk ? w.rows - first : kRowsPerChunk};
}

// The results of one call of a kernel: token t's for the rows are at + t * kRowsPerChunk.
struct Products {
  alignas(64) float values[simd::kMaxMatmulTokens * kRowsPerChunk];

  float* of(std::size_t t) noexcept { return values + t * kRowsPerChunk; }
};

// Activation rows that a matrix is multiplied with: row_of(0), row_of(1) ... of `x`; `groups` are the
// same rows in groups, null if they are not.
template <class RowOf>
struct Inputs {
  const Activations& x;
  RowOf row_of;
  const std::uint8_t* groups;

  // Multiplies rows of w with the inputs [begin, begin + count), kMaxMatmulTokens at most.
  void multiply(const simd::Kernels& kernels, const simd::Matrix& w, RowRange rows,
                std::size_t begin, std::size_t count, Products& out) const {
    const bool quantized = is_quantized(w);
    if (quantized && groups != nullptr) {
      return kernels.matmul_groups(w, rows.first, rows.n,
                                   groups + begin * simd::token_bytes(w.cols), count, out.values);
    }
    const void* inputs[simd::kMaxMatmulTokens];
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t row = row_of(begin + t);
      inputs[t] = quantized ? static_cast<const void*>(x.token(row)) : x.row(row);
    }
    kernels.matmul(w, rows.first, rows.n, inputs, count, out.values);
  }
};

// The rows from `first` on, n of them, grouped if they are many.
inline auto consecutive_rows(const Activations& x, std::size_t first, std::size_t n) {
  const auto row_of = [first](std::size_t t) { return first + t; };
  return Inputs<decltype(row_of)>{x, row_of, x.in_groups(n) ? x.groups(first) : nullptr};
}

// Calls body(begin, count) for n tokens in parts of as many as kernels take at a time, or a little
// less: all of about the same size, in whole groups, since weights are unpacked for each part.
template <class Body>
void for_each_part(std::size_t n, const Body& body) {
  const std::size_t n_parts = (n + simd::kMaxMatmulTokens - 1) / simd::kMaxMatmulTokens;
  for (std::size_t begin = 0, part = 0; begin < n; ++part) {
    const std::size_t end =
        part + 1 == n_parts ? n : round_up(n * (part + 1) / n_parts, simd::kMaxLanes);
    body(begin, end - begin);
    begin = end;
  }
}

// Multiplies the rows of chunk `chunk` of w with n inputs and gives the results to
// sink(t, first_row, values, n_rows) for each t < n.
template <class RowOf, class Sink>
void multiply_chunk(const simd::Kernels& kernels, const simd::Matrix& w, std::size_t chunk,
                    const Inputs<RowOf>& inputs, std::size_t n, const Sink& sink) {
  const RowRange rows = chunk_rows(w, chunk);
  Products products;
  for_each_part(n, [&](std::size_t begin, std::size_t count) {
    inputs.multiply(kernels, w, rows, begin, count, products);
    for (std::size_t t = 0; t < count; ++t) sink(begin + t, rows.first, products.of(t), rows.n);
  });
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_ACTIVATIONS_HPP_
