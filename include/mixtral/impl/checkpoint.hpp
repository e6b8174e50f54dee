#ifndef MIXTRAL_IMPL_CHECKPOINT_HPP_
#define MIXTRAL_IMPL_CHECKPOINT_HPP_

#include "mixtral/checkpoint.hpp"

namespace mixtral {

const char* role_name(Role role) noexcept {
  switch (role) {
    case Role::token_embedding: return "token embedding";
    case Role::output_norm: return "output norm";
    case Role::output: return "output";
    case Role::rope_factors: return "rope factors";
    case Role::attention_norm: return "attention norm";
    case Role::wq: return "wq";
    case Role::wk: return "wk";
    case Role::wv: return "wv";
    case Role::wo: return "wo";
    case Role::ffn_norm: return "ffn norm";
    case Role::router: return "router";
    case Role::w1: return "expert w1 (gate)";
    case Role::w2: return "expert w2 (down)";
    case Role::w3: return "expert w3 (up)";
  }
  return "unknown";
}

Status check_config(const Config& config, const char* where) {
  // More than any model has, and small enough for products of any two to fit 64 bits, and 32 those
  // of heads and head size.
  struct Range {
    const char* name;
    std::uint32_t value, low, high;
  };
  const Range ranges[] = {
      {"width", config.dim, 1, 1u << 20},
      {"number of layers", config.n_layers, 1, 4096},
      {"number of heads", config.n_heads, 1, 65536},
      {"number of key/value heads", config.n_kv_heads, 1, config.n_heads},
      {"head size", config.head_size, 2, 8192},
      {"hidden size", config.hidden_dim, 1, 1u << 20},
      {"number of experts", config.n_experts, 1, 4096},
      {"number of experts used", config.n_experts_used, 1, config.n_experts},
      {"number of experts used", config.n_experts_used, 1, 64},
      {"vocabulary size", config.vocab_size, 1, 1u << 24},
      {"context length", config.context_length, 1, 1u << 28},
      {"sliding window", config.sliding_window, 0, 1u << 28},
  };
  for (const Range& range : ranges) {
    if (range.value < range.low || range.value > range.high) {
      return Error(ErrorCode::bad_format, "%s: the %s is %u; expected %u to %u", where, range.name,
                   static_cast<unsigned>(range.value), static_cast<unsigned>(range.low),
                   static_cast<unsigned>(range.high));
    }
  }
  if (config.n_heads % config.n_kv_heads != 0) {
    return Error(ErrorCode::bad_format,
                 "%s: the number of heads is %u, not a multiple of that of key/value heads, %u",
                 where, static_cast<unsigned>(config.n_heads),
                 static_cast<unsigned>(config.n_kv_heads));
  }
  if (config.head_size % 2 != 0) {
    return Error(ErrorCode::bad_format, "%s: the head size is %u; expected an even one", where,
                 static_cast<unsigned>(config.head_size));
  }
  if (!(config.rope_theta >= 1.0f && config.rope_theta <= 1e12f) ||
      !(config.norm_epsilon >= 0.0f && config.norm_epsilon <= 1.0f)) {
    return Error(ErrorCode::bad_format,
                 "%s: rope theta is %g and the norm's epsilon %g; expected 1 to 1e12 and 0 to 1",
                 where, static_cast<double>(config.rope_theta),
                 static_cast<double>(config.norm_epsilon));
  }
  return {};
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_CHECKPOINT_HPP_
