// The numbers that define a model of the family: Mixtral, Mistral, Llama 2.
#ifndef MIXTRAL_CONFIG_HPP_
#define MIXTRAL_CONFIG_HPP_

#include <cstdint>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

// How the rows of wq and wk are ordered within a head, whose elements 2i and 2i + 1 are rotated
// together: as they are, or all even ones before all odd ones (Hugging Face's "rotate half").
enum class HeadOrder : std::uint8_t { interleaved, halves };

// All sizes in elements. Checked when a model is opened: every product used later fits, n_heads is a
// multiple of n_kv_heads, head_size is even, n_experts_used <= n_experts.
struct Config {
  std::uint32_t dim = 0;  // width of the residual stream
  std::uint32_t n_layers = 0;
  std::uint32_t n_heads = 0;     // query heads
  std::uint32_t n_kv_heads = 0;  // key/value heads, each shared by n_heads / n_kv_heads queries
  std::uint32_t head_size = 0;
  std::uint32_t hidden_dim = 0;      // inner width of one expert
  std::uint32_t n_experts = 1;       // 1: a dense model without a router
  std::uint32_t n_experts_used = 1;  // top-k
  std::uint32_t vocab_size = 0;
  std::uint32_t context_length = 0;  // what the model was trained for
  std::uint32_t sliding_window = 0;  // a token sees this many, itself included; 0: all before it
  float rope_theta = 10000.0f;
  float rope_scale = 1.0f;  // positions are multiplied by this (linear scaling)
  float norm_epsilon = 1e-5f;
  HeadOrder head_order = HeadOrder::interleaved;

  bool has_router() const noexcept { return n_experts > 1; }
  std::uint32_t q_dim() const noexcept { return n_heads * head_size; }
  std::uint32_t kv_dim() const noexcept { return n_kv_heads * head_size; }
};

}  // namespace mixtral

#endif  // MIXTRAL_CONFIG_HPP_
