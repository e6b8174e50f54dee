// The layout in which Mistral and Meta release their models: params.json, consolidated.*.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_ORIGINAL_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_ORIGINAL_HPP_

#include "mixtral/impl/checkpoints/json.hpp"
#include "mixtral/impl/checkpoints/stored_tensor.hpp"
#include "mixtral/impl/gguf_names.hpp"

namespace mixtral::detail {

// params.json in its three dialects: Mistral's (mistral-inference, args.py), Meta's for Llama 2,
// and that of the first Mixtral release, which has Hugging Face's names.
inline Status read_params(const Json& params, Config& config) {
  const JsonKeys keys(params, "params.json");
  const auto read = [&](const char* key, const char* other, bool required,
                        std::uint32_t& value) -> Status {
    if (keys.find(key) == nullptr && keys.find(other) != nullptr) key = other;
    return keys.read_uint(key, required, value);
  };
  MIXTRAL_RETURN_IF_ERROR(read("dim", "hidden_size", true, config.dim));
  MIXTRAL_RETURN_IF_ERROR(read("n_layers", "num_hidden_layers", true, config.n_layers));
  MIXTRAL_RETURN_IF_ERROR(read("n_heads", "num_attention_heads", true, config.n_heads));
  config.n_kv_heads = config.n_heads;
  MIXTRAL_RETURN_IF_ERROR(read("n_kv_heads", "num_key_value_heads", false, config.n_kv_heads));
  config.head_size = config.n_heads == 0 ? 0 : config.dim / config.n_heads;
  MIXTRAL_RETURN_IF_ERROR(read("head_dim", "head_dim", false, config.head_size));
  // Llama 2 leaves these to the weights and the tokenizer; -1 means the same.
  const bool llama2 =
      keys.find("hidden_dim") == nullptr && keys.find("intermediate_size") == nullptr;
  MIXTRAL_RETURN_IF_ERROR(read("hidden_dim", "intermediate_size", false, config.hidden_dim));
  if (const Json* size = keys.find("vocab_size"); size != nullptr && *size != -1) {
    MIXTRAL_RETURN_IF_ERROR(keys.read_uint("vocab_size", false, config.vocab_size));
  }
  const char* epsilon = keys.find("norm_eps") == nullptr ? "rms_norm_eps" : "norm_eps";
  MIXTRAL_RETURN_IF_ERROR(keys.read_float(epsilon, true, config.norm_epsilon));
  MIXTRAL_RETURN_IF_ERROR(read("sliding_window", "_sliding_window", false, config.sliding_window));
  // Not in every file: Llama 2 and Mistral 7B v0.1 have 10000, all later models a million.
  config.rope_theta = llama2 || config.sliding_window != 0 ? 1e4f : 1e6f;
  MIXTRAL_RETURN_IF_ERROR(keys.read_float("rope_theta", false, config.rope_theta));
  config.context_length = llama2 ? 4096 : 32768;
  MIXTRAL_RETURN_IF_ERROR(
      read("max_seq_len", "max_position_embeddings", false, config.context_length));

  const Json* moe = keys.find("moe");
  if (moe != nullptr && !moe->is_object()) return keys.wrong_type("moe", "an object", *moe);
  if (moe != nullptr) {
    const JsonKeys inner(*moe, "params.json, moe");
    MIXTRAL_RETURN_IF_ERROR(inner.read_uint("num_experts", true, config.n_experts));
    MIXTRAL_RETURN_IF_ERROR(inner.read_uint("num_experts_per_tok", true, config.n_experts_used));
  } else if (keys.find("num_local_experts") != nullptr) {
    MIXTRAL_RETURN_IF_ERROR(keys.read_uint("num_local_experts", true, config.n_experts));
    config.n_experts_used = 2;
    MIXTRAL_RETURN_IF_ERROR(
        read("num_experts_per_tok", "num_experts_per_token", false, config.n_experts_used));
  }
  return {};
}

// Adds a tensor under the name it has in these files.
inline Status add_original_tensor(const StoredTensor& tensor, const Config& config,
                                  Checkpoint& checkpoint) {
  struct Name {
    std::string_view name;
    Role role;
  };
  static constexpr Name kGlobal[] = {{"tok_embeddings.weight", Role::token_embedding},
                                     {"norm.weight", Role::output_norm},
                                     {"output.weight", Role::output}};
  static constexpr Name kLayer[] = {{"attention_norm.weight", Role::attention_norm},
                                    {"attention.wq.weight", Role::wq},
                                    {"attention.wk.weight", Role::wk},
                                    {"attention.wv.weight", Role::wv},
                                    {"attention.wo.weight", Role::wo},
                                    {"ffn_norm.weight", Role::ffn_norm},
                                    {"feed_forward.gate.weight", Role::router},
                                    {"block_sparse_moe.gate.weight", Role::router},
                                    {"feed_forward.w1.weight", Role::w1},
                                    {"feed_forward.w2.weight", Role::w2},
                                    {"feed_forward.w3.weight", Role::w3}};
  static constexpr Name kExpert[] = {
      {"w1.weight", Role::w1}, {"w2.weight", Role::w2}, {"w3.weight", Role::w3}};
  static constexpr Name kAllExperts[] = {{"block_sparse_moe.w1", Role::w1},
                                         {"block_sparse_moe.w2", Role::w2},
                                         {"block_sparse_moe.w3", Role::w3}};
  const auto add = [&](Role role, std::uint32_t layer, std::uint32_t expert) -> Status {
    const auto matrix = matrix_of(tensor);
    if (!matrix) return matrix.error();
    add_matrix(tensor, role, layer, expert, *matrix, checkpoint);
    return {};
  };
  std::string_view name = tensor.name;
  if (name == "rope.freqs") return {};  // follows from rope_theta
  for (const Name& known : kGlobal) {
    if (name == known.name) return add(known.role, 0, 0);
  }
  std::uint32_t layer = 0, expert = 0;
  if (!take_prefix(name, "layers.") || !take_number(name, layer)) return unknown_tensor(tensor);
  for (const Name& known : kLayer) {
    if (name == known.name) return add(known.role, layer, 0);
  }
  for (const Name& known : kAllExperts) {
    if (name != known.name) continue;
    // All experts one below the other; w2 lies there transposed.
    auto matrix = matrix_of(tensor, config.n_experts);
    if (!matrix) return matrix.error();
    const std::size_t bytes = matrix->rows * matrix->row_bytes;
    if (known.role == Role::w2) {
      std::swap(matrix->rows, matrix->cols);
      matrix->transposed = true;
    }
    for (std::uint32_t e = 0; e < config.n_experts; ++e) {
      add_matrix(tensor, known.role, layer, e, *matrix, checkpoint);
      matrix->data += bytes;
    }
    return {};
  }
  if (take_prefix(name, "feed_forward.experts.") && take_number(name, expert)) {
    for (const Name& known : kExpert) {
      if (name == known.name) return add(known.role, layer, expert);
    }
  }
  return unknown_tensor(tensor);
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_ORIGINAL_HPP_
