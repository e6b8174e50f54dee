// What a tensor of a model is for, whatever a file calls it.
#ifndef MIXTRAL_ROLE_HPP_
#define MIXTRAL_ROLE_HPP_

#include <cstdint>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

enum class Role : std::uint8_t {
  token_embedding,  // [vocab_size, dim]
  output_norm,      // [dim]
  output,           // [vocab_size, dim]; absent if tied to token_embedding
  rope_factors,     // [head_size / 2], optional: frequencies are divided by these
  attention_norm,   // [dim]
  wq,               // [n_heads * head_size, dim]
  wk,               // [n_kv_heads * head_size, dim]
  wv,               // [n_kv_heads * head_size, dim]
  wo,               // [dim, n_heads * head_size]
  ffn_norm,         // [dim]
  router,           // [n_experts, dim]
  w1,               // [hidden_dim, dim], gate, of one expert
  w2,               // [dim, hidden_dim], down
  w3,               // [hidden_dim, dim], up
};

const char* role_name(Role role) noexcept;

}  // namespace mixtral

#endif  // MIXTRAL_ROLE_HPP_
