// The Hugging Face layout: every key of config.json, every name of a tensor, and what is refused.
#include <mixtral/impl/checkpoints/huggingface.hpp>

#include "support.hpp"

using namespace support;
using mixtral::Config;
using mixtral::ErrorCode;
using mixtral::Role;
using mixtral::detail::ElementType;
using Json = nlohmann::json;

namespace {

constexpr ElementType kFloat{"F32", 4, mixtral::BlockFormat::f32};
constexpr ElementType kInteger{"I64", 8, std::nullopt};

// A configuration in which no number is another's, or a default.
Json all_keys() {
  return {{"model_type", "mixtral"},  {"hidden_act", "silu"},
          {"hidden_size", 96},        {"num_hidden_layers", 3},
          {"num_attention_heads", 8}, {"num_key_value_heads", 4},
          {"head_dim", 10},           {"intermediate_size", 56},
          {"vocab_size", 301},        {"max_position_embeddings", 777},
          {"rms_norm_eps", 0.125},    {"sliding_window", 99},
          {"rope_theta", 5000.0},     {"num_local_experts", 6},
          {"num_experts_per_tok", 5}};
}

// Reading tells numbers that are not negative from others; the literals of this file are all signed.
Json as_read(const Json& json) { return Json::parse(json.dump()); }

Config config_of(const Json& json) {
  Config config;
  const auto read = mixtral::detail::read_huggingface_config(as_read(json), config);
  REQUIRE_MESSAGE(static_cast<bool>(read), (read ? "" : read.error().message()));
  return config;
}

std::string error_of(const Json& json, ErrorCode code = ErrorCode::bad_format) {
  Config config;
  const auto read = mixtral::detail::read_huggingface_config(as_read(json), config);
  if (read) return "";
  CHECK(read.error().code() == code);
  return read.error().message();
}

Json with(const char* key, const Json& value) {
  Json json = all_keys();
  json[key] = value;
  return json;
}

}  // namespace

TEST_CASE("huggingface: every key of config.json is read") {
  const Config config = config_of(all_keys());
  CHECK(config.dim == 96);
  CHECK(config.n_layers == 3);
  CHECK(config.n_heads == 8);
  CHECK(config.n_kv_heads == 4);
  CHECK(config.head_size == 10);
  CHECK(config.hidden_dim == 56);
  CHECK(config.vocab_size == 301);
  CHECK(config.context_length == 777);
  CHECK(config.norm_epsilon == 0.125f);
  CHECK(config.sliding_window == 99);
  CHECK(config.rope_theta == 5000.0f);
  CHECK(config.rope_scale == 1.0f);
  CHECK(config.n_experts == 6);
  CHECK(config.n_experts_used == 5);
  CHECK(config.head_order == mixtral::HeadOrder::halves);
}

TEST_CASE("huggingface: keys that may be absent have the defaults of the transformers library") {
  for (const char* key :
       {"num_key_value_heads", "head_dim", "sliding_window", "rope_theta", "hidden_act"}) {
    const Json absent = with(key, nullptr);
    Json erased = absent;
    erased.erase(key);
    for (const Json& json : {absent, erased}) {
      CAPTURE(json.dump());
      const Config config = config_of(json);
      CHECK(config.n_kv_heads == (key == std::string("num_key_value_heads") ? 8 : 4));
      CHECK(config.head_size == (key == std::string("head_dim") ? 12 : 10));
      CHECK(config.sliding_window == (key == std::string("sliding_window") ? 0 : 99));
      CHECK(config.rope_theta == (key == std::string("rope_theta") ? 1e6f : 5000.0f));
    }
  }
  for (const char* type : {"mistral", "llama"}) {
    Json json = with("model_type", type);
    json.erase("rope_theta");
    const Config config = config_of(json);
    CHECK(config.rope_theta == 1e4f);
    // Models of one network have no experts, whatever the keys say.
    CHECK(config.n_experts == 1);
    CHECK(config.n_experts_used == 1);
  }
  // No head: the size is not computed, and check_config() says what is wrong.
  Json headless = with("num_attention_heads", 0);
  headless.erase("head_dim");
  CHECK(config_of(headless).head_size == 0);
}

TEST_CASE("huggingface: each other key is required") {
  for (const char* key : {"model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "vocab_size", "max_position_embeddings",
                          "rms_norm_eps", "num_local_experts", "num_experts_per_tok"}) {
    Json json = all_keys();
    json.erase(key);
    CHECK(error_of(json) == "config.json: key '" + std::string(key) + "' is missing");
  }
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "sliding_window",
        "num_local_experts", "num_experts_per_tok"}) {
    CHECK(error_of(with(key, -1)) ==
          "config.json: key '" + std::string(key) +
              "': expected a non-negative integer, found another number");
  }
  for (const char* key : {"rms_norm_eps", "rope_theta"}) {
    CHECK(error_of(with(key, "1")) ==
          "config.json: key '" + std::string(key) + "': expected a number, found string");
  }
  for (const char* key : {"model_type", "hidden_act"}) {
    CHECK(error_of(with(key, 1)) ==
          "config.json: key '" + std::string(key) + "': expected a string, found another number");
  }
}

TEST_CASE("huggingface: other architectures, activations and quantized weights are refused") {
  const auto unsupported = [](const char* key, const Json& value) {
    return error_of(with(key, value), ErrorCode::unsupported);
  };
  CHECK(unsupported("model_type", std::string(41, 'm')) ==
        "config.json: model_type '" + std::string(40, 'm') +
            "'; expected 'mixtral', 'mistral' or 'llama'");
  CHECK(unsupported("hidden_act", std::string(41, 'a')) ==
        "config.json: hidden_act '" + std::string(40, 'a') + "'; expected 'silu'");
  CHECK(unsupported("quantization_config", Json::object()) ==
        "config.json has a quantization_config: weights quantised by other programs are read from "
        "GGUF "
        "only; take the original weights");
  CHECK(unsupported("quantization_config", nullptr) == "");
}

TEST_CASE("huggingface: rope_theta and linear scaling may be in an object of their own") {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    CAPTURE(key);
    Config config = config_of(with(key, {{"rope_theta", 300.0}}));
    CHECK(config.rope_theta == 300.0f);
    CHECK(config.rope_scale == 1.0f);
    for (const char* type : {"type", "rope_type"}) {
      config = config_of(with(key, {{type, "linear"}, {"factor", 4.0}}));
      CHECK(config.rope_theta == 5000.0f);
      CHECK(config.rope_scale == 0.25f);
      config = config_of(with(key, {{type, "default"}, {"factor", 4.0}}));
      CHECK(config.rope_scale == 1.0f);
      CHECK(error_of(with(key, {{type, std::string(41, 'y')}}), ErrorCode::unsupported) ==
            "config.json: rope type '" + std::string(40, 'y') +
                "'; 'default' and 'linear' are supported");
      CHECK(error_of(with(key, {{type, 1}})) == "config.json, rope parameters: key '" +
                                                    std::string(type) +
                                                    "': expected a string, found another number");
    }
    // Files of both ages have both names; the newer one counts.
    CHECK(config_of(with(key, {{"rope_type", "default"}, {"type", "yarn"}})).rope_scale == 1.0f);
    CHECK(error_of(with(key, Json::array())) ==
          "config.json: key '" + std::string(key) + "': expected an object, found array");
    CHECK(error_of(with(key, {{"rope_theta", true}})) ==
          "config.json, rope parameters: key 'rope_theta': expected a number, found boolean");
    CHECK(error_of(with(key, {{"type", "linear"}})) ==
          "config.json, rope parameters: key 'factor' is missing");
    const auto factor = [&](double number) {
      return error_of(with(key, {{"type", "linear"}, {"factor", number}}));
    };
    CHECK(factor(0.001) == "");
    CHECK(factor(1e6) == "");
    const std::string expected = "; expected 0.001 to 1e6";
    CHECK(factor(0.0009) == "config.json: rope factor 0.0009" + expected);
    CHECK(factor(1000000.5) == "config.json: rope factor 1e+06" + expected);
    CHECK(factor(-1) == "config.json: rope factor -1" + expected);
  }
  Json both = with("rope_parameters", {{"rope_theta", 300.0}});
  both["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  CHECK(config_of(both).rope_theta == 300.0f);
  CHECK(config_of(both).rope_scale == 0.5f);
}

TEST_CASE("huggingface: a tensor has the role, layer and expert that its name says") {
  mixtral::Checkpoint checkpoint(std::pmr::get_default_resource());
  const auto add = [&](const std::string& name, const ElementType& type = kFloat) -> std::string {
    mixtral::detail::StoredTensor tensor(std::pmr::get_default_resource());
    tensor.name = name;
    tensor.type = &type;
    tensor.n_dims = 2;
    tensor.shape = {3, 5};
    tensor.bytes = 15 * type.bytes;
    const auto added = mixtral::detail::add_huggingface_tensor(tensor, checkpoint);
    if (!added) CHECK(added.error().code() == ErrorCode::unsupported);
    return added ? "" : added.error().message();
  };
  struct Known {
    const char* name;
    Role role;
    std::uint32_t layer, expert;
  };
  for (const Known& known :
       {Known{"model.embed_tokens.weight", Role::token_embedding, 0, 0},
        Known{"model.norm.weight", Role::output_norm, 0, 0},
        Known{"lm_head.weight", Role::output, 0, 0},
        Known{"model.layers.0.input_layernorm.weight", Role::attention_norm, 0, 0},
        Known{"model.layers.12.self_attn.q_proj.weight", Role::wq, 12, 0},
        Known{"model.layers.1.self_attn.k_proj.weight", Role::wk, 1, 0},
        Known{"model.layers.2.self_attn.v_proj.weight", Role::wv, 2, 0},
        Known{"model.layers.3.self_attn.o_proj.weight", Role::wo, 3, 0},
        Known{"model.layers.4.post_attention_layernorm.weight", Role::ffn_norm, 4, 0},
        Known{"model.layers.5.block_sparse_moe.gate.weight", Role::router, 5, 0},
        Known{"model.layers.6.mlp.gate_proj.weight", Role::w1, 6, 0},
        Known{"model.layers.7.mlp.down_proj.weight", Role::w2, 7, 0},
        Known{"model.layers.8.mlp.up_proj.weight", Role::w3, 8, 0},
        Known{"model.layers.9.block_sparse_moe.experts.0.w1.weight", Role::w1, 9, 0},
        Known{"model.layers.9.block_sparse_moe.experts.7.w2.weight", Role::w2, 9, 7},
        Known{"model.layers.9.block_sparse_moe.experts.10.w3.weight", Role::w3, 9, 10}}) {
    CAPTURE(known.name);
    CHECK(add(known.name) == "");
    REQUIRE(!checkpoint.tensors.empty());
    const mixtral::NamedTensor& added = checkpoint.tensors.back();
    CHECK(added.name == known.name);
    CHECK(added.role == known.role);
    CHECK(added.layer == known.layer);
    CHECK(added.expert == known.expert);
    CHECK(added.matrix.rows == 3);
  }
  const std::size_t n = checkpoint.tensors.size();
  // This one follows from rope_theta; old files have it.
  CHECK(add("model.layers.0.self_attn.rotary_emb.inv_freq", kInteger) == "");
  for (const char* name :
       {"model.norm.weights", "norm.weight", "model.layers.input_layernorm.weight",
        "model.layers.0input_layernorm.weight", "model.layers.0.input_layernorm.bias",
        "model.layers.0", "layers.0.input_layernorm.weight",
        "model.layers.0.block_sparse_moe.experts.0.w4.weight",
        "model.layers.0.block_sparse_moe.experts.w1.weight", "model.layers.0.w1.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freqs", "self_attn.rotary_emb.inv_freq", ""}) {
    CAPTURE(name);
    CHECK(add(name).find("tensor '" + std::string(name) + "' is not part of a Mixtral") == 0);
  }
  CHECK(add("lm_head.weight", kInteger) ==
        "tensor 'lm_head.weight' has the element type I64; weights in F32, F16 or BF16 are read");
  CHECK(add("model.layers.0.mlp.up_proj.weight", kInteger).find("has the element type I64") !=
        std::string::npos);
  CHECK(checkpoint.tensors.size() == n);
}
