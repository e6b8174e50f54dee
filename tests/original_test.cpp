// The layout of Mistral's and Meta's releases: params.json in three dialects, and the names of tensors.
#include <mixtral/impl/checkpoints/original.hpp>

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

// Configurations in which no number is another's, or a default: of Mistral, and of its first Mixtral release.
Json mistral_keys() {
  return {{"dim", 96},
          {"n_layers", 3},
          {"n_heads", 8},
          {"n_kv_heads", 4},
          {"head_dim", 10},
          {"hidden_dim", 56},
          {"vocab_size", 301},
          {"norm_eps", 0.125},
          {"sliding_window", 99},
          {"rope_theta", 5000.0},
          {"max_seq_len", 777},
          {"moe", {{"num_experts", 6}, {"num_experts_per_tok", 5}}}};
}
Json first_release_keys() {
  return {{"hidden_size", 96},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 4},
          {"head_dim", 10},
          {"intermediate_size", 56},
          {"vocab_size", 301},
          {"rms_norm_eps", 0.125},
          {"_sliding_window", 99},
          {"rope_theta", 5000.0},
          {"max_position_embeddings", 777},
          {"num_local_experts", 6},
          {"num_experts_per_tok", 5}};
}

// Reading tells numbers that are not negative from others; the literals of this file are all signed.
Json as_read(const Json& json) { return Json::parse(json.dump()); }

Config config_of(const Json& json) {
  Config config;
  const auto read = mixtral::detail::read_params(as_read(json), config);
  REQUIRE_MESSAGE(static_cast<bool>(read), (read ? "" : read.error().message()));
  return config;
}

std::string error_of(const Json& json) {
  Config config;
  const auto read = mixtral::detail::read_params(as_read(json), config);
  if (read) return "";
  CHECK(read.error().code() == ErrorCode::bad_format);
  return read.error().message();
}

Json without(Json json, const char* key) {
  json.erase(key);
  return json;
}

}  // namespace

TEST_CASE("original: every key of params.json is read, in either dialect") {
  for (const Json& json : {mistral_keys(), first_release_keys()}) {
    CAPTURE(json.dump());
    const Config config = config_of(json);
    CHECK(config.dim == 96);
    CHECK(config.n_layers == 3);
    CHECK(config.n_heads == 8);
    CHECK(config.n_kv_heads == 4);
    CHECK(config.head_size == 10);
    CHECK(config.hidden_dim == 56);
    CHECK(config.vocab_size == 301);
    CHECK(config.norm_epsilon == 0.125f);
    CHECK(config.sliding_window == 99);
    CHECK(config.rope_theta == 5000.0f);
    CHECK(config.context_length == 777);
    CHECK(config.n_experts == 6);
    CHECK(config.n_experts_used == 5);
    CHECK(config.head_order == mixtral::HeadOrder::interleaved);
    CHECK(config.rope_scale == 1.0f);
  }
  // Where a file has both names, that of Mistral counts.
  Json both = first_release_keys();
  for (const auto& [key, number] : both.items()) {
    if (number.is_number_integer()) both[key] = 7;
  }
  both.update(mistral_keys());
  const Config config = config_of(both);
  CHECK(config.dim == 96);
  CHECK(config.hidden_dim == 56);
  CHECK(config.sliding_window == 99);
  CHECK(config.context_length == 777);
  CHECK(config.n_experts == 6);
  CHECK(config.n_experts_used == 5);
}

TEST_CASE("original: keys that may be absent have the defaults of the models that lack them") {
  for (const Json& json : {mistral_keys(), first_release_keys()}) {
    Json least = json;
    for (const char* key :
         {"n_kv_heads", "num_key_value_heads", "head_dim", "vocab_size", "sliding_window",
          "_sliding_window", "rope_theta", "max_seq_len", "max_position_embeddings", "moe",
          "num_local_experts", "num_experts_per_tok"}) {
      least.erase(key);
    }
    Config config = config_of(least);
    CHECK(config.n_kv_heads == 8);
    CHECK(config.head_size == 12);
    CHECK(config.hidden_dim == 56);
    CHECK(config.vocab_size == 0);
    CHECK(config.sliding_window == 0);
    CHECK(config.rope_theta == 1e6f);
    CHECK(config.context_length == 32768);
    CHECK(config.n_experts == 1);
    CHECK(config.n_experts_used == 1);
    // Mistral 7B v0.1, with its window, was trained with another rotation; Llama 2 has no hidden size.
    least["sliding_window"] = 4096;
    CHECK(config_of(least).rope_theta == 1e4f);
    CHECK(config_of(least).context_length == 32768);
    least.erase("sliding_window");
    least.erase("hidden_dim");
    least.erase("intermediate_size");
    config = config_of(least);
    CHECK(config.rope_theta == 1e4f);
    CHECK(config.context_length == 4096);
    CHECK(config.hidden_dim == 0);
    // A vocabulary of -1 is that of the tokenizer.
    least["vocab_size"] = -1;
    CHECK(config_of(least).vocab_size == 0);
    least["vocab_size"] = nullptr;
    CHECK(config_of(least).vocab_size == 0);
    least["n_heads"] = 0;
    least["num_attention_heads"] = 0;
    CHECK(config_of(least).head_size == 0);
  }
  // The first release has two experts per token, and two names for that.
  Json first = without(first_release_keys(), "num_experts_per_tok");
  CHECK(config_of(first).n_experts == 6);
  CHECK(config_of(first).n_experts_used == 2);
  first["num_experts_per_token"] = 3;
  CHECK(config_of(first).n_experts_used == 3);
}

TEST_CASE("original: each other key is required, and keys are of the right type") {
  for (const char* key : {"dim", "n_layers", "n_heads"}) {
    CHECK(error_of(without(mistral_keys(), key)) ==
          "params.json: key '" + std::string(key) + "' is missing");
  }
  CHECK(error_of(without(mistral_keys(), "norm_eps")) ==
        "params.json: key 'rms_norm_eps' is missing");
  for (const char* key : {"num_experts", "num_experts_per_tok"}) {
    Json json = mistral_keys();
    json["moe"].erase(key);
    CHECK(error_of(json) == "params.json, moe: key '" + std::string(key) + "' is missing");
    json["moe"][key] = -1;
    CHECK(error_of(json) == "params.json, moe: key '" + std::string(key) +
                                "': expected a non-negative integer, found another number");
  }
  for (const Json& json : {mistral_keys(), first_release_keys()}) {
    for (const auto& [key, number] : json.items()) {
      if (number.is_object()) continue;
      Json wrong = json;
      wrong[key] = false;
      CHECK(error_of(wrong) ==
            "params.json: key '" + key + "': expected " +
                (number.is_number_float() ? "a number" : "a non-negative integer") +
                ", found boolean");
    }
  }
  Json json = mistral_keys();
  json["moe"] = 5;
  CHECK(error_of(json) == "params.json: key 'moe': expected an object, found another number");
  json["moe"] = nullptr;
  CHECK(config_of(json).n_experts == 1);
  json["vocab_size"] = -2;
  CHECK(error_of(json) ==
        "params.json: key 'vocab_size': expected a non-negative integer, found another number");
}

TEST_CASE("original: a tensor has the role, layer and expert that its name says") {
  const std::uint8_t data[4 * 6 * 5] = {};
  Config config;
  config.n_experts = 3;
  mixtral::Checkpoint checkpoint(std::pmr::get_default_resource());
  const auto add = [&](const std::string& name, const ElementType& type = kFloat,
                       std::uint64_t rows = 6) -> std::string {
    mixtral::detail::StoredTensor tensor(std::pmr::get_default_resource());
    tensor.name = name;
    tensor.type = &type;
    tensor.n_dims = 2;
    tensor.shape = {rows, 5};
    tensor.bytes = 5 * rows * type.bytes;
    tensor.data = data;
    const auto added = mixtral::detail::add_original_tensor(tensor, config, checkpoint);
    return added ? "" : added.error().message();
  };
  struct Known {
    const char* name;
    Role role;
    std::uint32_t layer, expert;
  };
  for (const Known& known :
       {Known{"tok_embeddings.weight", Role::token_embedding, 0, 0},
        Known{"norm.weight", Role::output_norm, 0, 0}, Known{"output.weight", Role::output, 0, 0},
        Known{"layers.0.attention_norm.weight", Role::attention_norm, 0, 0},
        Known{"layers.12.attention.wq.weight", Role::wq, 12, 0},
        Known{"layers.1.attention.wk.weight", Role::wk, 1, 0},
        Known{"layers.2.attention.wv.weight", Role::wv, 2, 0},
        Known{"layers.3.attention.wo.weight", Role::wo, 3, 0},
        Known{"layers.4.ffn_norm.weight", Role::ffn_norm, 4, 0},
        Known{"layers.5.feed_forward.gate.weight", Role::router, 5, 0},
        Known{"layers.5.block_sparse_moe.gate.weight", Role::router, 5, 0},
        Known{"layers.6.feed_forward.w1.weight", Role::w1, 6, 0},
        Known{"layers.7.feed_forward.w2.weight", Role::w2, 7, 0},
        Known{"layers.8.feed_forward.w3.weight", Role::w3, 8, 0},
        Known{"layers.9.feed_forward.experts.0.w1.weight", Role::w1, 9, 0},
        Known{"layers.9.feed_forward.experts.7.w2.weight", Role::w2, 9, 7},
        Known{"layers.9.feed_forward.experts.10.w3.weight", Role::w3, 9, 10}}) {
    CAPTURE(known.name);
    const std::size_t n = checkpoint.tensors.size();
    CHECK(add(known.name) == "");
    REQUIRE(checkpoint.tensors.size() == n + 1);
    const mixtral::NamedTensor& added = checkpoint.tensors.back();
    CHECK(added.name == known.name);
    CHECK(added.role == known.role);
    CHECK(added.layer == known.layer);
    CHECK(added.expert == known.expert);
    CHECK(added.matrix.rows == 6);
    CHECK(!added.matrix.transposed);
  }
  // The experts of one tensor lie one below the other; w2 lies there transposed.
  for (const Known& known : {Known{"layers.4.block_sparse_moe.w1", Role::w1, 4, 0},
                             Known{"layers.5.block_sparse_moe.w2", Role::w2, 5, 0},
                             Known{"layers.6.block_sparse_moe.w3", Role::w3, 6, 0}}) {
    CAPTURE(known.name);
    const std::size_t n = checkpoint.tensors.size();
    CHECK(add(known.name) == "");
    REQUIRE(checkpoint.tensors.size() == n + 3);
    for (std::uint32_t e = 0; e < 3; ++e) {
      const mixtral::NamedTensor& added = checkpoint.tensors[n + e];
      CHECK(added.name == known.name);
      CHECK(added.role == known.role);
      CHECK(added.layer == known.layer);
      CHECK(added.expert == e);
      CHECK(added.matrix.transposed == (known.role == Role::w2));
      CHECK(added.matrix.rows == (known.role == Role::w2 ? 5 : 2));
      CHECK(added.matrix.cols == (known.role == Role::w2 ? 2 : 5));
      CHECK(added.matrix.data == data + e * 2 * 5 * 4);
    }
  }
  const std::size_t n = checkpoint.tensors.size();
  CHECK(add("rope.freqs", kInteger) == "");  // follows from rope_theta
  for (const char* name :
       {"norm.weights", "model.norm.weight", "layers.attention_norm.weight",
        "layers.0attention_norm.weight", "layers.0.attention_norm.bias", "layers.0",
        "layers.0.feed_forward.experts.0.w4.weight", "layers.0.feed_forward.experts.w1.weight",
        "layers.0.block_sparse_moe.w4", "layers.0.block_sparse_moe.w1.weight", "layers.0.w1.weight",
        "rope.freq", ""}) {
    CAPTURE(name);
    CHECK(add(name).find("tensor '" + std::string(name) + "' is not part of a Mixtral") == 0);
  }
  for (const char* name :
       {"output.weight", "layers.0.ffn_norm.weight", "layers.0.block_sparse_moe.w2"}) {
    CHECK(add(name, kInteger) ==
          "tensor '" + std::string(name) +
              "' has the element type I64; weights in F32, F16 or BF16 are read");
  }
  CHECK(add("layers.0.block_sparse_moe.w1", kFloat, 4) ==
        "tensor 'layers.0.block_sparse_moe.w1' has 2 dimensions, the first of 4; expected one or "
        "two, and "
        "a multiple of 3");
  CHECK(checkpoint.tensors.size() == n);
}
