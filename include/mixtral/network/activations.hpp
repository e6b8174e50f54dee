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

// What matrices are multiplied with.
enum class InputForm { floats, bf16, quantized };

// That of a matrix; those of BF16 take BF16 if it `rounds`.
inline InputForm input_form(const simd::Matrix& w, bool rounds) noexcept {
  if (is_quantized(w)) return InputForm::quantized;
  return rounds && w.format == BlockFormat::bf16 ? InputForm::bf16 : InputForm::floats;
}

// Those that are wanted.
struct InputForms {
  bool rounds = false;
  bool floats = false, bf16 = false, quantized = false;

  void add(const simd::Matrix& w) noexcept {
    switch (input_form(w, rounds)) {
      case InputForm::floats: floats = true; return;
      case InputForm::bf16: bf16 = true; return;
      case InputForm::quantized: quantized = true; return;
    }
  }
};

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Rows of `width` numbers, each padded with zeros to whole tiles, in the forms that are wanted: as float32, as
// BF16 and quantised to 8 bits, once for each row, for all the matrices that read it.
class Activations {
 public:
  // Plans memory for n_rows rows; quantised, they are in groups or alone.
  void take(Slab& slab, const simd::Kernels& kernels, std::size_t n_rows, std::size_t width,
            InputForms forms) {
    kernels_ = &kernels;
    lanes_ = kernels.lanes();
    width_ = width;
    // A little apart from powers of two, or the same columns of all rows would compete for the same lines of
    // caches.
    stride_ = simd::padded(width) + 64;
    token_bytes_ = simd::token_bytes(width);
    rounds_ = forms.rounds;
    if (forms.floats) floats_ = padded_rows<float>(slab, n_rows);
    if (forms.bf16) bf16_ = padded_rows<std::uint16_t>(slab, n_rows);
    if (forms.quantized) {
      quantized_ = slab.take<std::uint8_t>(round_up(n_rows, lanes_) * token_bytes_);
    }
  }

  std::size_t lanes() const noexcept { return lanes_; }
  bool in_groups(std::size_t n) const noexcept { return kernels_->in_groups(n); }
  float* row(std::size_t i) const noexcept { return floats_ + i * stride_; }

  // Row i, quantised alone; null if that form is not wanted.
  std::uint8_t* token(std::size_t i) const noexcept {
    return quantized_ == nullptr ? nullptr : quantized_ + i * token_bytes_;
  }

  InputForm form(const simd::Matrix& w) const noexcept { return input_form(w, rounds_); }

  // Row i, not in a group, as w is multiplied with it.
  const void* input(const simd::Matrix& w, std::size_t i) const noexcept {
    switch (form(w)) {
      case InputForm::floats: break;
      case InputForm::bf16: return bf16_ + i * stride_;
      case InputForm::quantized: return token(i);
    }
    return row(i);
  }

  // The group that begins with row i, a multiple of lanes(); the next ones follow.
  std::uint8_t* groups(std::size_t i) const noexcept { return token(i); }

  // To be called when row(i) is complete, before it is multiplied with other matrices than of floats.
  // `grouped`: it is quantised as a member of its group, else alone.
  void complete_row(std::size_t i, bool grouped) const {
    if (bf16_ != nullptr) kernels_->to_bf16(row(i), width_, bf16_ + i * stride_);
    if (quantized_ != nullptr) quantize(row(i), 0, width_, i, grouped);
  }

  // Puts the columns [first, first + n) of rows i to i + count, whose values are `stride` apart, in the
  // form that w wants; i is a multiple of lanes().
  void put_rows(const simd::Matrix& w, const float* values, std::size_t stride, std::size_t first,
                std::size_t n, std::size_t i, std::size_t count, bool grouped) const {
    const InputForm wanted = form(w);
    const bool clears = first + n == width_ && simd::padded(width_) != width_;
    if (wanted == InputForm::quantized && grouped && n == simd::kBlock && !clears) {
      for (std::size_t t = 0; t < count; t += lanes_) {
        kernels_->quantize_group(values + t * stride, stride, std::min(lanes_, count - t), first,
                                 groups(i + t));
      }
      return;
    }
    for (std::size_t t = 0; t < count; ++t) {
      const float* from = values + t * stride;
      switch (wanted) {
        case InputForm::floats: std::memcpy(row(i + t) + first, from, n * sizeof(float)); break;
        case InputForm::bf16: kernels_->to_bf16(from, n, bf16_ + (i + t) * stride_ + first); break;
        case InputForm::quantized: quantize(from, first, n, i + t, grouped); break;
      }
    }
  }

  // Row i, read from the form that w wants.
  void read_row(const simd::Matrix& w, std::size_t i, bool grouped, float* out) const {
    const InputForm wanted = form(w);
    const std::size_t n = grouped ? lanes_ : 1;
    const std::size_t token_in_group = grouped ? i % lanes_ : 0;
    for (std::size_t c = 0; c < width_; ++c) {
      if (wanted == InputForm::floats) {
        out[c] = row(i)[c];
      } else if (wanted == InputForm::bf16) {
        const std::uint32_t bits = std::uint32_t{bf16_[i * stride_ + c]} << 16;
        std::memcpy(out + c, &bits, sizeof bits);
      } else {
        const std::uint8_t* tile =
            token(i - token_in_group) + c / simd::kTile * simd::kTokenTileBytes * n;
        const std::size_t quad = c % simd::kTile / simd::kQuad;
        const std::size_t block = c % simd::kTile / simd::kBlock;
        out[c] = simd::tile_scale(tile, n)[block * n + token_in_group] *
                 simd::tile_q(tile)[(quad * n + token_in_group) * simd::kQuad + c % simd::kQuad];
      }
    }
  }

 private:
  // Quantises `values` as the columns [first, first + n) of row i.
  void quantize(const float* values, std::size_t first, std::size_t n, std::size_t i,
                bool grouped) const {
    if (grouped) {
      kernels_->quantize(values, first, n, width_, groups(i - i % lanes_), lanes_, i % lanes_);
    } else {
      kernels_->quantize(values, first, n, width_, token(i), 1, 0);
    }
  }

  template <class T>
  T* padded_rows(Slab& slab, std::size_t n_rows) const {
    T* rows = slab.take<T>(n_rows * stride_);
    if (rows != nullptr && simd::padded(width_) != width_) {
      std::memset(rows, 0, n_rows * stride_ * sizeof(T));
    }
    return rows;
  }

  const simd::Kernels* kernels_ = nullptr;
  std::size_t lanes_ = 1;
  std::size_t width_ = 0;
  std::size_t stride_ = 0;
  std::size_t token_bytes_ = 0;
  bool rounds_ = false;
  float* floats_ = nullptr;
  std::uint16_t* bf16_ = nullptr;
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
    if (groups != nullptr && is_quantized(w)) {
      return kernels.matmul_groups(w, rows.first, rows.n,
                                   groups + begin * simd::token_bytes(w.cols), count, out.values);
    }
    const void* inputs[simd::kMaxMatmulTokens];
    for (std::size_t t = 0; t < count; ++t) inputs[t] = x.input(w, row_of(begin + t));
    const auto matmul = x.form(w) == InputForm::bf16 ? kernels.matmul_bf16 : kernels.matmul;
    matmul(w, rows.first, rows.n, inputs, count, out.values);
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
