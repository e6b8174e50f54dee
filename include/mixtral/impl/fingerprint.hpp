// Sums that tell data and models apart.
#ifndef MIXTRAL_IMPL_FINGERPRINT_HPP_
#define MIXTRAL_IMPL_FINGERPRINT_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mixtral/config.hpp"
#include "mixtral/weights.hpp"

namespace mixtral::detail {

// Changes with any change of one 64-bit word, and with nearly all others: each step is a bijection
// of the sum for a given word, and of the word for a given sum.
class Checksum {
 public:
  void add(const void* bytes, std::size_t size) noexcept {
    const auto* from = static_cast<const std::uint8_t*>(bytes);
    for (; size >= sizeof(std::uint64_t); size -= sizeof(std::uint64_t)) {
      add_word(from, sizeof(std::uint64_t));
      from += sizeof(std::uint64_t);
    }
    if (size != 0) add_word(from, size);
  }
  std::uint64_t value() const noexcept { return sum_; }

 private:
  void add_word(const std::uint8_t* from, std::size_t size) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, from, size);
    sum_ = (sum_ ^ word) * 0x9E3779B97F4A7C15u;
    sum_ ^= sum_ >> 32;
  }
  std::uint64_t sum_ = 0xCBF29CE484222325u;
};

// Returns a number that tells models apart, from the configuration and the shape, format, first and last
// bytes of each matrix. The weights must lie as the file has them: a copy in memory may be in another order.
inline std::uint64_t model_fingerprint(const Config& c, const Weights& weights) noexcept {
  Checksum sum;
  const std::uint32_t sizes[] = {c.dim,        c.n_layers,      c.n_heads,   c.n_kv_heads,
                                 c.head_size,  c.hidden_dim,    c.n_experts, c.n_experts_used,
                                 c.vocab_size, c.sliding_window};
  sum.add(sizes, sizeof sizes);
  const float numbers[] = {c.rope_theta, c.rope_scale, c.norm_epsilon};
  sum.add(numbers, sizeof numbers);
  const auto add = [&](const simd::Matrix& matrix) {
    const std::uint64_t shape[] = {matrix.rows, matrix.cols,
                                   static_cast<std::uint64_t>(matrix.format)};
    sum.add(shape, sizeof shape);
    if (matrix.data == nullptr || matrix.bytes() == 0) return;
    const std::size_t n = matrix.bytes() < 64 ? static_cast<std::size_t>(matrix.bytes()) : 64;
    sum.add(matrix.data, n);
    sum.add(matrix.data + matrix.bytes() - n, n);
  };
  const auto add_floats = [&](const float* floats, std::size_t n) {
    if (floats != nullptr) sum.add(floats, n * sizeof(float));
  };
  add(weights.token_embedding);
  add(weights.output);
  add_floats(weights.output_norm, c.dim);
  add_floats(weights.rope_factors, c.head_size / 2);
  for (const LayerWeights& layer : weights.layers) {
    add_floats(layer.attention_norm, c.dim);
    add_floats(layer.ffn_norm, c.dim);
    for (const simd::Matrix* m : {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.router})
      add(*m);
    for (std::size_t e = 0; e < c.n_experts; ++e) {
      const ExpertWeights& expert = layer.experts[e];
      for (const simd::Matrix* m : {&expert.w1, &expert.w2, &expert.w3}) add(*m);
    }
  }
  return sum.value();
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_FINGERPRINT_HPP_
