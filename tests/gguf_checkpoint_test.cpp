// The metadata of a GGUF model: each key at the limits of what is read, and beyond them.
#include "written_files.hpp"

using namespace support;

namespace {

bool has(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

// The keys that a small model has; a test sets some of them anew.
struct Keys {
  std::map<std::string, double> numbers = {{"llama.embedding_length", 24},
                                           {"llama.block_count", 1},
                                           {"llama.feed_forward_length", 40},
                                           {"llama.attention.head_count", 4},
                                           {"llama.attention.head_count_kv", 2},
                                           {"llama.attention.key_length", 10},
                                           {"llama.expert_count", 4},
                                           {"llama.expert_used_count", 2},
                                           {"llama.context_length", 64}};
  std::map<std::string, float> floats = {{"llama.attention.layer_norm_rms_epsilon", 1e-5f}};
  std::map<std::string, std::string> texts = {{"general.architecture", "llama"},
                                              {"tokenizer.ggml.model", "llama"}};
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores = {0, 0, 0};
  std::vector<std::int32_t> types = {2, 3, 3};
  GgufWriter more;

  Blob file() const {
    GgufWriter writer = more;
    for (const auto& entry : texts) writer.string(entry.first, entry.second);
    for (const auto& entry : numbers) {
      writer.scalar(entry.first, 10, static_cast<std::uint64_t>(entry.second));
    }
    for (const auto& entry : floats) writer.float32(entry.first, entry.second);
    writer.strings("tokenizer.ggml.tokens", tokens);
    writer.array("tokenizer.ggml.scores", 6, scores);
    writer.array("tokenizer.ggml.token_type", 5, types);
    return writer.finish();
  }

  // Reads the metadata; there are no tensors.
  std::string error() const {
    const Blob blob = file();
    mixtral::Bytes view = mixtral::Bytes::view(bytes(blob));
    const auto checkpoint = mixtral::read_gguf({&view, 1}, std::pmr::get_default_resource());
    return checkpoint ? "" : checkpoint.error().message();
  }
  std::string with(const std::string& key, double number) const {
    Keys changed = *this;
    changed.numbers[key] = number;
    return changed.error();
  }
  std::string with_float(const std::string& key, float number) const {
    Keys changed = *this;
    changed.floats[key] = number;
    return changed.error();
  }
};

}  // namespace

TEST_CASE("gguf metadata: every number is read up to its limits, and no further") {
  const Keys keys;
  REQUIRE(keys.error() == "");
  struct Limits {
    const char* key;
    double low, high;
  };
  for (const Limits& limits : {Limits{"llama.block_count", 1, 4096},
                               {"llama.feed_forward_length", 1, 1 << 20},
                               {"llama.attention.head_count_kv", 1, 4},
                               {"llama.expert_used_count", 1, 4},
                               {"llama.context_length", 1, 1 << 28},
                               {"llama.attention.sliding_window", 0, 1 << 28},
                               {"llama.embedding_length", 1, 1 << 20},
                               {"tokenizer.ggml.bos_token_id", 0, 2},
                               {"tokenizer.ggml.eos_token_id", 0, 2},
                               {"tokenizer.ggml.unknown_token_id", 0, 2},
                               {"llama.attention.key_length", 2, 8192}}) {
    CAPTURE(limits.key);
    CHECK(keys.with(limits.key, limits.low) == "");
    CHECK(keys.with(limits.key, limits.high) == "");
    if (limits.low > 0) CHECK(has(keys.with(limits.key, limits.low - 1), "expected "));
    CHECK(has(keys.with(limits.key, limits.high + 1), "expected "));
    CHECK(has(keys.with(limits.key, 4294967296.0), "4294967296"));
    Keys wrong = keys;
    wrong.numbers.erase(limits.key);
    wrong.texts[limits.key] = "2";
    CHECK(has(wrong.error(), "metadata key '" + std::string(limits.key) +
                                 "': expected a non-negative integer, found string"));
  }
  struct FloatLimits {
    const char* key;
    float low, below, high, above;
  };
  for (const FloatLimits& limits :
       {FloatLimits{"llama.rope.freq_base", 1.0f, 0.99f, 9.99e11f, 1.01e12f},
        {"llama.attention.layer_norm_rms_epsilon", 0.0f, -1e-9f, 1.0f, 1.01f}}) {
    CAPTURE(limits.key);
    CHECK(keys.with_float(limits.key, limits.low) == "");
    CHECK(keys.with_float(limits.key, limits.high) == "");
    for (const float bad : {limits.below, limits.above, std::nanf("")}) {
      CHECK(has(keys.with_float(limits.key, bad),
                "metadata key '" + std::string(limits.key) + "' is "));
    }
  }
  // More than 64 experts for one token are refused, however many there are.
  Keys many = keys;
  many.numbers["llama.expert_count"] = 4096;
  CHECK(many.with("llama.expert_used_count", 64) == "");
  CHECK(has(many.with("llama.expert_used_count", 65), "is 65; expected 1 to 64"));
  CHECK(has(keys.with("llama.expert_count", 4097), "number of experts is 4097"));
  // None and one are dense models.
  for (const double n : {0.0, 1.0}) {
    Keys dense = keys;
    dense.numbers["llama.expert_count"] = n;
    dense.numbers.erase("llama.expert_used_count");
    CHECK(dense.error() == "");
  }
}

TEST_CASE("gguf metadata: what must be there is named when it is missing") {
  const Keys keys;
  for (const char* key :
       {"llama.embedding_length", "llama.block_count", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.expert_used_count", "llama.context_length"}) {
    Keys less = keys;
    less.numbers.erase(key);
    CHECK(has(less.error(), "metadata key '" + std::string(key) + "' is missing"));
  }
  Keys less = keys;
  less.floats.clear();
  CHECK(has(less.error(), "'llama.attention.layer_norm_rms_epsilon' is missing"));
  less = keys;
  less.texts.erase("tokenizer.ggml.model");
  CHECK(has(less.error(), "'tokenizer.ggml.model' is missing"));
  less.texts["tokenizer.ggml.model"] = "gpt2";
  CHECK(has(less.error(), "tokenizer.ggml.model is 'gpt2'; expected 'llama'"));
}

TEST_CASE("gguf metadata: the sizes of values and of rotated elements are the head size") {
  const Keys keys;
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"}) {
    CHECK(keys.with(key, 10) == "");
    for (const double bad : {8.0, 12.0})
      CHECK(has(keys.with(key, bad), "expected the head size, 10"));
  }
  CHECK(has(keys.with("llama.attention.key_length", 11),
            "the head size is 11; expected an even one"));
}

TEST_CASE("gguf metadata: RoPE scaling is linear, by 0.001 to a million, or none") {
  Keys keys;
  keys.texts["llama.rope.scaling.type"] = "none";
  CHECK(keys.error() == "");
  keys.texts["llama.rope.scaling.type"] = "linear";
  CHECK(has(keys.error(), "'llama.rope.scaling.factor' is missing"));
  const char* const key = "llama.rope.scaling.factor";
  for (const float good : {0.0011f, 1.0f, 1e6f}) CHECK(keys.with_float(key, good) == "");
  for (const float bad : {0.0f, 0.0009f, 1.1e6f, -1.0f})
    CHECK(has(keys.with_float(key, bad), "factor' is "));
}

TEST_CASE("gguf metadata: pieces, scores and types are as many, and types are 1 to 6") {
  Keys keys;
  keys.types = {2, 3, 1};
  CHECK(keys.error() == "");
  for (const std::int32_t bad : {0, 7, -1}) {
    keys.types[2] = bad;
    CHECK(keys.error() == "tokenizer.ggml.token_type[2] is not one of 1 to 6");
  }
  keys = {};
  keys.scores.pop_back();
  CHECK(has(keys.error(), "'tokenizer.ggml.scores' has 2 elements; expected 3"));
  keys = {};
  keys.types.push_back(1);
  CHECK(has(keys.error(), "'tokenizer.ggml.token_type' has 4 elements; expected 3"));
  keys = {};
  keys.tokens.clear();
  keys.scores.clear();
  keys.types.clear();
  CHECK(has(keys.error(), "'tokenizer.ggml.tokens' has 0 elements; expected 1 to 16777216"));
}

TEST_CASE("config: every number is in its range, and heads are shared evenly") {
  mixtral::Config good;
  good.dim = 8;
  good.n_layers = good.n_heads = good.n_kv_heads = good.hidden_dim = good.vocab_size =
      good.context_length = 1;
  good.head_size = 2;
  using Member = std::uint32_t mixtral::Config::*;
  struct Range {
    Member member;
    std::uint32_t low, high;
    const char* name;
  };
  const auto error = [](const mixtral::Config& config) {
    const auto status = mixtral::check_config(config, "here");
    return status ? std::string() : std::string(status.error().message());
  };
  REQUIRE(error(good) == "");
  mixtral::Config most = good;  // so that others do not bound what is tried
  most.n_heads = 65536;
  most.n_experts = 4096;
  for (const Range& range : {Range{&mixtral::Config::dim, 1, 1u << 20, "width"},
                             {&mixtral::Config::n_layers, 1, 4096, "number of layers"},
                             {&mixtral::Config::n_heads, 1, 65536, "number of heads"},
                             {&mixtral::Config::n_kv_heads, 1, 65536, "number of key/value heads"},
                             {&mixtral::Config::head_size, 2, 8192, "head size"},
                             {&mixtral::Config::hidden_dim, 1, 1u << 20, "hidden size"},
                             {&mixtral::Config::n_experts, 1, 4096, "number of experts"},
                             {&mixtral::Config::n_experts_used, 1, 64, "number of experts used"},
                             {&mixtral::Config::vocab_size, 1, 1u << 24, "vocabulary size"},
                             {&mixtral::Config::context_length, 1, 1u << 28, "context length"},
                             {&mixtral::Config::sliding_window, 0, 1u << 28, "sliding window"}}) {
    CAPTURE(range.name);
    mixtral::Config config = most;
    for (const std::uint32_t value : {range.low, range.high}) {
      config.*range.member = value;
      CHECK(error(config) == "");
    }
    config.*range.member = range.high + 1;
    CHECK(has(error(config),
              "here: the " + std::string(range.name) + " is " + std::to_string(range.high + 1)));
    if (range.low == 0) continue;
    config.*range.member = range.low - 1;
    CHECK(has(error(config),
              "here: the " + std::string(range.name) + " is " + std::to_string(range.low - 1)));
  }
  mixtral::Config config = good;
  config.n_experts_used = 2;
  CHECK(has(error(config), "number of experts used is 2; expected 1 to 1"));
  config = good;
  config.n_heads = 3;
  config.n_kv_heads = 2;
  CHECK(
      has(error(config), "the number of heads is 3, not a multiple of that of key/value heads, 2"));
  config = good;
  config.head_size = 3;
  CHECK(has(error(config), "the head size is 3; expected an even one"));
  for (const float theta : {1.0f, 9.9e11f}) {
    config = good;
    config.rope_theta = theta;
    CHECK(error(config) == "");
  }
  for (const float theta : {0.99f, 1.1e12f, std::nanf("")}) {
    config.rope_theta = theta;
    CHECK(has(error(config), "rope theta"));
  }
  for (const float epsilon : {-1e-9f, 1.01f, std::nanf("")}) {
    config = good;
    config.norm_epsilon = epsilon;
    CHECK(has(error(config), "epsilon"));
  }
}
