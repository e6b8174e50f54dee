// The Hugging Face layout: config.json and tensor names of the transformers library.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_HUGGINGFACE_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_HUGGINGFACE_HPP_

#include "mixtral/impl/checkpoints/json.hpp"
#include "mixtral/impl/checkpoints/stored_tensor.hpp"
#include "mixtral/impl/gguf_names.hpp"

namespace mixtral::detail {

// Where rope_theta and scaling are: at the top, or (transformers 5) in rope_parameters.
inline Status read_huggingface_rope(const JsonKeys& keys, Config& config) {
  MIXTRAL_RETURN_IF_ERROR(keys.read_float("rope_theta", false, config.rope_theta));
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* rope = keys.find(key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) return keys.wrong_type(key, "an object", *rope);
    const JsonKeys inner(*rope, "config.json, rope parameters");
    MIXTRAL_RETURN_IF_ERROR(inner.read_float("rope_theta", false, config.rope_theta));
    const char* type_key = inner.find("rope_type") != nullptr ? "rope_type" : "type";
    const auto type = inner.read_string(type_key, false);
    if (!type) return type.error();
    if (*type == nullptr || **type == "default") continue;
    if (**type != "linear") {
      return Error(ErrorCode::unsupported,
                   "config.json: rope type '%.40s'; 'default' and 'linear' are supported",
                   (*type)->c_str());
    }
    float factor = 1.0f;
    MIXTRAL_RETURN_IF_ERROR(inner.read_float("factor", true, factor));
    if (!(factor >= 1e-3f && factor <= 1e6f)) {
      return Error(ErrorCode::bad_format, "config.json: rope factor %g; expected 0.001 to 1e6",
                   static_cast<double>(factor));
    }
    config.rope_scale = 1.0f / factor;
  }
  return {};
}

inline Status read_huggingface_config(const Json& json, Config& config) {
  const JsonKeys keys(json, "config.json");
  const auto type = keys.read_string("model_type", true);
  if (!type) return type.error();
  if (**type != "mixtral" && **type != "mistral" && **type != "llama") {
    return Error(ErrorCode::unsupported,
                 "config.json: model_type '%.40s'; expected 'mixtral', 'mistral' or 'llama'",
                 (*type)->c_str());
  }
  if (keys.find("quantization_config") != nullptr) {
    return Error(ErrorCode::unsupported,
                 "config.json has a quantization_config: weights quantised by other programs are "
                 "read from GGUF only; take the original weights");
  }
  const auto activation = keys.read_string("hidden_act", false);
  if (!activation) return activation.error();
  if (*activation != nullptr && **activation != "silu") {
    return Error(ErrorCode::unsupported, "config.json: hidden_act '%.40s'; expected 'silu'",
                 (*activation)->c_str());
  }
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("hidden_size", true, config.dim));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("num_hidden_layers", true, config.n_layers));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("num_attention_heads", true, config.n_heads));
  config.n_kv_heads = config.n_heads;
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("num_key_value_heads", false, config.n_kv_heads));
  config.head_size = config.n_heads == 0 ? 0 : config.dim / config.n_heads;
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("head_dim", false, config.head_size));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("intermediate_size", true, config.hidden_dim));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("vocab_size", true, config.vocab_size));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("max_position_embeddings", true, config.context_length));
  MIXTRAL_RETURN_IF_ERROR(keys.read_float("rms_norm_eps", true, config.norm_epsilon));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("sliding_window", false, config.sliding_window));
  // The defaults of MixtralConfig, and of MistralConfig and LlamaConfig.
  config.rope_theta = **type == "mixtral" ? 1e6f : 1e4f;
  MIXTRAL_RETURN_IF_ERROR(read_huggingface_rope(keys, config));
  if (**type == "mixtral") {
    MIXTRAL_RETURN_IF_ERROR(keys.read_uint("num_local_experts", true, config.n_experts));
    MIXTRAL_RETURN_IF_ERROR(keys.read_uint("num_experts_per_tok", true, config.n_experts_used));
  }
  config.head_order = HeadOrder::halves;
  return {};
}

// Adds a tensor under its name in the transformers library.
inline Status add_huggingface_tensor(const StoredTensor& tensor, Checkpoint& checkpoint) {
  struct Name {
    std::string_view name;
    Role role;
  };
  static constexpr Name kGlobal[] = {{"model.embed_tokens.weight", Role::token_embedding},
                                     {"model.norm.weight", Role::output_norm},
                                     {"lm_head.weight", Role::output}};
  static constexpr Name kLayer[] = {{"input_layernorm.weight", Role::attention_norm},
                                    {"self_attn.q_proj.weight", Role::wq},
                                    {"self_attn.k_proj.weight", Role::wk},
                                    {"self_attn.v_proj.weight", Role::wv},
                                    {"self_attn.o_proj.weight", Role::wo},
                                    {"post_attention_layernorm.weight", Role::ffn_norm},
                                    {"block_sparse_moe.gate.weight", Role::router},
                                    {"mlp.gate_proj.weight", Role::w1},
                                    {"mlp.down_proj.weight", Role::w2},
                                    {"mlp.up_proj.weight", Role::w3}};
  static constexpr Name kExpert[] = {
      {"w1.weight", Role::w1}, {"w2.weight", Role::w2}, {"w3.weight", Role::w3}};
  const auto add = [&](Role role, std::uint32_t layer, std::uint32_t expert) -> Status {
    const auto matrix = matrix_of(tensor);
    if (!matrix) return matrix.error();
    add_matrix(tensor, role, layer, expert, *matrix, checkpoint);
    return {};
  };
  std::string_view name = tensor.name;
  for (const Name& known : kGlobal) {
    if (name == known.name) return add(known.role, 0, 0);
  }
  std::uint32_t layer = 0, expert = 0;
  if (!take_prefix(name, "model.layers.") || !take_number(name, layer)) {
    return unknown_tensor(tensor);
  }
  if (name == "self_attn.rotary_emb.inv_freq") return {};  // follows from rope_theta
  for (const Name& known : kLayer) {
    if (name == known.name) return add(known.role, layer, 0);
  }
  if (take_prefix(name, "block_sparse_moe.experts.") && take_number(name, expert)) {
    for (const Name& known : kExpert) {
      if (name == known.name) return add(known.role, layer, expert);
    }
  }
  return unknown_tensor(tensor);
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_HUGGINGFACE_HPP_
