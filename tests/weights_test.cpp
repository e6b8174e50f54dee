// What a GGUF file's keys and tensors make of a model: each key's limits, each tensor's name and shape.
#include <mixtral/checkpoint.hpp>

#include "model_files.hpp"

using namespace support;
using mixtral::Role;

namespace {

Synthetic small(std::uint32_t n_experts = 4) {
  Synthetic s;
  s.n_layers = 1;
  s.n_experts = n_experts;
  s.n_experts_used = std::min(n_experts, 2u);
  s.randomize(1);
  return s;
}

mixtral::Result<mixtral::Checkpoint> read(const GgufWriter& writer) {
  mixtral::Bytes bytes = owned(writer.finish());
  return mixtral::read_gguf({&bytes, 1}, std::pmr::get_default_resource());
}

std::string read_error(const GgufWriter& writer) {
  const auto checkpoint = read(writer);
  return checkpoint ? "" : checkpoint.error().message();
}

std::string model_error(const GgufWriter& writer) {
  const auto model = mixtral::Model::from_bytes(owned(writer.finish()));
  return model ? "" : model.error().message();
}

// The metadata of a model, whose keys can be changed and left out one by one. Without tensors: what
// read_gguf() says of them is tested by themselves.
struct Keys {
  std::map<std::string, std::function<void(GgufWriter&, const std::string&)>> keys;
  std::uint32_t n_pieces = 5;

  Keys() {
    uint("llama.embedding_length", 24);
    uint("llama.block_count", 1);
    uint("llama.feed_forward_length", 40);
    uint("llama.attention.head_count", 4);
    uint("llama.attention.head_count_kv", 2);
    uint("llama.attention.key_length", 10);
    uint("llama.context_length", 64);
    uint("llama.expert_count", 4);
    uint("llama.expert_used_count", 2);
    number("llama.attention.layer_norm_rms_epsilon", 0.25);
    string("general.architecture", "llama");
    string("tokenizer.ggml.model", "llama");
    set("tokenizer.ggml.tokens", [this](GgufWriter& w, const std::string& key) {
      std::vector<std::string> pieces;
      for (std::uint32_t i = 0; i < n_pieces; ++i) pieces.push_back("p" + std::to_string(i));
      w.strings(key, pieces);
    });
    set("tokenizer.ggml.scores", [](GgufWriter& w, const std::string& key) {
      w.array(key, 6, std::vector<float>{0, -1, -2, -3, -4});
    });
    types({2, 3, 3, 1, 1});
  }
  Keys(const Keys&) = delete;
  Keys& operator=(const Keys&) = delete;

  void set(const std::string& key, std::function<void(GgufWriter&, const std::string&)> write) {
    keys[key] = std::move(write);
  }
  void uint(const std::string& key, std::uint64_t v) {
    set(key, [v](GgufWriter& w, const std::string& k) { w.scalar(k, 10, v); });
  }
  void integer(const std::string& key, std::int64_t v) {
    set(key, [v](GgufWriter& w, const std::string& k) { w.scalar(k, 11, v); });
  }
  void number(const std::string& key, double v) {
    set(key, [v](GgufWriter& w, const std::string& k) { w.scalar(k, 12, v); });
  }
  void string(const std::string& key, const std::string& v) {
    set(key, [v](GgufWriter& w, const std::string& k) { w.string(k, v); });
  }
  void boolean(const std::string& key, bool v) {
    set(key, [v](GgufWriter& w, const std::string& k) { w.boolean(k, v); });
  }
  void types(const std::vector<std::int32_t>& v) {
    set("tokenizer.ggml.token_type",
        [v](GgufWriter& w, const std::string& k) { w.array(k, 5, v); });
  }
  void erase(const std::string& key) { keys.erase(key); }

  GgufWriter writer() const {
    GgufWriter w;
    for (const auto& [key, write] : keys) write(w, key);
    return w;
  }
  std::string error() const { return read_error(writer()); }
  mixtral::Checkpoint checkpoint() const { return value(read(writer())); }
  mixtral::Config config() const { return checkpoint().config; }
};

}  // namespace

TEST_CASE("gguf keys: each number is in the configuration, and what is absent has its default") {
  Keys keys;
  mixtral::Config config = keys.config();
  CHECK(config.dim == 24);
  CHECK(config.n_layers == 1);
  CHECK(config.hidden_dim == 40);
  CHECK(config.n_heads == 4);
  CHECK(config.n_kv_heads == 2);
  CHECK(config.head_size == 10);
  CHECK(config.context_length == 64);
  CHECK(config.n_experts == 4);
  CHECK(config.n_experts_used == 2);
  CHECK(config.vocab_size == 5);
  CHECK(config.norm_epsilon == 0.25f);
  CHECK(config.rope_theta == 10000.0f);
  CHECK(config.rope_scale == 1.0f);
  CHECK(config.sliding_window == 0);
  CHECK(config.head_order == mixtral::HeadOrder::interleaved);
  for (const char* key :
       {"llama.attention.head_count_kv", "llama.attention.key_length", "llama.expert_count"}) {
    keys.erase(key);
  }
  keys.uint("llama.attention.sliding_window", 7);
  keys.number("llama.rope.freq_base", 1e6);
  config = keys.config();
  CHECK(config.n_kv_heads == 4);
  CHECK(config.head_size == 6);
  CHECK(config.n_experts == 1);
  CHECK(config.n_experts_used == 1);
  CHECK(config.sliding_window == 7);
  CHECK(config.rope_theta == 1e6f);
}

TEST_CASE("gguf keys: what is required is missed by name, and a wrong type is named") {
  for (const char* key :
       {"general.architecture", "llama.embedding_length", "llama.block_count",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.expert_used_count",
        "llama.context_length", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.model",
        "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    CAPTURE(key);
    Keys keys;
    keys.erase(key);
    CHECK(has(keys.error(), "metadata key '" + std::string(key) + "' is missing"));
  }
  const auto wrong = [](const std::string& key, const std::string& expected) {
    CAPTURE(key);
    Keys keys;
    keys.string("llama.rope.scaling.type", "linear");
    keys.number("llama.rope.scaling.factor", 2.0);
    CHECK(keys.error() == "");
    if (expected == "a string") {
      keys.uint(key, 1);
      CHECK(has(keys.error(), "metadata key '" + key + "': expected a string, found u64"));
    } else {
      keys.string(key, "1");
      CHECK(
          has(keys.error(), "metadata key '" + key + "': expected " + expected + ", found string"));
    }
  };
  for (const char* key :
       {"llama.embedding_length", "llama.block_count", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.head_count_kv", "llama.attention.key_length",
        "llama.attention.value_length", "llama.rope.dimension_count", "llama.expert_count",
        "llama.expert_used_count", "llama.context_length", "llama.attention.sliding_window",
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id", "split.count", "split.no", "split.tensors.count"}) {
    wrong(key, "a non-negative integer");
  }
  for (const char* key : {"llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon",
                          "llama.rope.scaling.factor"}) {
    wrong(key, "a number");
  }
  for (const char* key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix",
                          "tokenizer.ggml.remove_extra_whitespaces"}) {
    wrong(key, "a bool");
  }
  for (const char* key :
       {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    wrong(key, "an array");
  }
  for (const char* key :
       {"general.architecture", "llama.rope.scaling.type", "tokenizer.ggml.model"}) {
    wrong(key, "a string");
  }
  Keys keys;
  keys.integer("llama.context_length", -1);
  CHECK(has(keys.error(), "'llama.context_length': expected a non-negative integer, found i64"));
}

TEST_CASE("gguf keys: each number has limits, which are allowed") {
  const std::uint64_t none = ~std::uint64_t{0};
  struct Limits {
    const char* key;
    std::uint64_t low, high;                // both allowed
    std::uint64_t below, above;             // both refused; `none`: nothing is beyond
    const char* what;                       // in the error
    std::uint32_t mixtral::Config::*value;  // where it is found
  };
  using C = mixtral::Config;
  const Limits all[] = {
      {"llama.embedding_length", 1, 1u << 20, 0, (1u << 20) + 1, "llama.embedding_length", &C::dim},
      {"llama.block_count", 1, 4096, 0, 4097, "", &C::n_layers},
      {"llama.feed_forward_length", 1, 1u << 20, 0, (1u << 20) + 1, "", &C::hidden_dim},
      {"llama.attention.head_count", 2, 65536, 0, 65538, "llama.attention.head_count", &C::n_heads},
      {"llama.attention.head_count", 4, 6, 3, 65537, "llama.attention.head_count", &C::n_heads},
      {"llama.attention.head_count_kv", 1, 4, 0, 5, "head_count_kv", &C::n_kv_heads},
      {"llama.attention.head_count_kv", 2, 4, 3, 8, "head_count_kv", &C::n_kv_heads},
      {"llama.attention.key_length", 2, 8192, 0, 8194, "", &C::head_size},
      {"llama.attention.key_length", 4, 6, 1, 5, "", &C::head_size},
      {"llama.attention.value_length", 10, 10, 8, 12, "expected the head size, 10", &C::head_size},
      {"llama.rope.dimension_count", 10, 10, 8, 12, "expected the head size, 10", &C::head_size},
      {"llama.expert_count", 2, 4096, none, 4097, "", &C::n_experts},
      {"llama.expert_used_count", 1, 4, 0, 5, "llama.expert_used_count", &C::n_experts_used},
      {"llama.context_length", 1, 1u << 28, 0, (1u << 28) + 1, "", &C::context_length},
      {"llama.attention.sliding_window", 0, 1u << 28, none, (1u << 28) + 1, "", &C::sliding_window},
  };
  for (const Limits& limits : all) {
    CAPTURE(limits.key);
    Keys keys;
    for (const std::uint64_t v : {limits.low, limits.high}) {
      CAPTURE(v);
      keys.uint(limits.key, v);
      CHECK(keys.error() == "");
      CHECK(keys.config().*limits.value == v);
    }
    // 2^32 more is no other number.
    for (const std::uint64_t v :
         {limits.below, limits.above, (std::uint64_t{1} << 32) + limits.low}) {
      if (v == none) continue;
      CAPTURE(v);
      keys.uint(limits.key, v);
      CHECK(has(keys.error(), v >> 32 != 0 ? limits.key : limits.what));
      CHECK(keys.error() != "");
    }
  }
  // No more than 64 experts are used, however many there are.
  Keys keys;
  keys.uint("llama.expert_count", 100);
  keys.uint("llama.expert_used_count", 64);
  CHECK(keys.config().n_experts_used == 64);
  keys.uint("llama.expert_used_count", 65);
  CHECK(has(keys.error(), "'llama.expert_used_count' is 65; expected 1 to 64"));
  // One expert, or none, is a dense model, which uses it.
  for (const std::uint64_t n : {0u, 1u}) {
    keys.uint("llama.expert_count", n);
    CHECK(keys.config().n_experts == 1);
    CHECK(keys.config().n_experts_used == 1);
  }
  // A head is even in size also where it follows from the width, and has two numbers.
  keys.erase("llama.attention.key_length");
  keys.uint("llama.embedding_length", 20);
  CHECK(has(keys.error(), "the head size is 5; expected an even one"));
  keys.uint("llama.embedding_length", 4);
  CHECK(has(keys.error(), "the head size is 1; expected 2 to 8192"));
  keys.uint("llama.embedding_length", 8);
  CHECK(keys.config().head_size == 2);
}

TEST_CASE("gguf keys: numbers with a fraction have limits, which are allowed; NaN is refused") {
  const double nan = std::nan("");
  const auto check = [&](const char* key, double low, double high, double below, double above) {
    CAPTURE(key);
    Keys keys;
    keys.string("llama.rope.scaling.type", "linear");
    keys.number("llama.rope.scaling.factor", 1.0);
    for (const double v : {low, high}) {
      keys.number(key, v);
      CHECK(keys.error() == "");
    }
    for (const double v : {below, above, nan}) {
      keys.number(key, v);
      CHECK(has(keys.error(), "metadata key '" + std::string(key) + "' is "));
      CHECK(has(keys.error(), "; expected "));
    }
  };
  check("llama.rope.freq_base", 1.0, 1e12, 0.999999, 1.000001e12);
  check("llama.attention.layer_norm_rms_epsilon", 0.0, 1.0, -1e-9, 1.000001);
  check("llama.rope.scaling.factor", 1e-3, 1e6, 0.999e-3, 1.001e6);

  Keys keys;
  keys.number("llama.rope.scaling.factor", 4.0);
  CHECK(keys.config().rope_scale == 1.0f);  // of no type
  keys.string("llama.rope.scaling.type", "none");
  CHECK(keys.config().rope_scale == 1.0f);
  keys.string("llama.rope.scaling.type", "linear");
  CHECK(keys.config().rope_scale == 0.25f);
  keys.uint("llama.rope.scaling.factor", 2);  // an integer is a number
  CHECK(keys.config().rope_scale == 0.5f);
  keys.erase("llama.rope.scaling.factor");
  CHECK(has(keys.error(), "'llama.rope.scaling.factor' is missing"));
  keys.string("llama.rope.scaling.type", "yarn");
  CHECK(has(keys.error(), "llama.rope.scaling.type is 'yarn'"));
}

TEST_CASE("model: check_config() accepts every limit and refuses what is beyond, saying which") {
  using C = mixtral::Config;
  C good;
  good.dim = 24;
  good.n_layers = 2;
  good.n_heads = 4;
  good.n_kv_heads = 2;
  good.head_size = 10;
  good.hidden_dim = 40;
  good.n_experts = 128;
  good.n_experts_used = 2;
  good.vocab_size = 300;
  good.context_length = 64;
  CHECK(mixtral::check_config(good, "file"));
  struct Range {
    std::uint32_t C::*member;
    std::uint32_t low, high, below, above;
    const char* name;
  };
  const Range ranges[] = {
      {&C::dim, 1, 1u << 20, 0, (1u << 20) + 1, "width"},
      {&C::n_layers, 1, 4096, 0, 4097, "number of layers"},
      {&C::n_heads, 2, 65536, 0, 65538, "number of heads"},
      {&C::n_kv_heads, 1, 4, 0, 5, "number of key/value heads"},
      {&C::head_size, 2, 8192, 1, 8193, "head size"},
      {&C::hidden_dim, 1, 1u << 20, 0, (1u << 20) + 1, "hidden size"},
      {&C::n_experts, 2, 4096, 1, 4097, "number of experts"},
      {&C::n_experts_used, 1, 64, 0, 65, "number of experts used"},
      {&C::vocab_size, 1, 1u << 24, 0, (1u << 24) + 1, "vocabulary size"},
      {&C::context_length, 1, 1u << 28, 0, (1u << 28) + 1, "context length"},
      {&C::sliding_window, 0, 1u << 28, ~0u, (1u << 28) + 1, "sliding window"},
  };
  for (const Range& range : ranges) {
    CAPTURE(range.name);
    for (const std::uint32_t v : {range.low, range.high}) {
      C config = good;
      config.*range.member = v;
      CHECK(mixtral::check_config(config, "file"));
    }
    for (const std::uint32_t v : {range.below, range.above}) {
      C config = good;
      config.*range.member = v;
      const auto status = mixtral::check_config(config, "file");
      REQUIRE(!status);
      CHECK(status.error().code() == mixtral::ErrorCode::bad_format);
      CHECK(has(status.error().message(), "file: the " + std::string(range.name)));
    }
  }
  const auto error = [&](const std::function<void(C&)>& change) {
    C config = good;
    change(config);
    const auto status = mixtral::check_config(config, "file");
    return std::string(status ? "" : status.error().message());
  };
  for (const std::uint32_t n : {1u, 65536u}) {
    CHECK(error([&](C& c) {
            c.n_heads = n;
            c.n_kv_heads = 1;
          }) == "");
  }
  CHECK(has(error([](C& c) {
              c.n_heads = 65537;
              c.n_kv_heads = 1;
            }),
            "the number of heads is 65537"));
  CHECK(has(error([](C& c) { c.n_experts = 0; }), "the number of experts is 0"));
  CHECK(has(error([](C& c) { c.n_kv_heads = 3; }), "the number of heads is 4, not a multiple"));
  CHECK(has(error([](C& c) { c.head_size = 7; }), "the head size is 7; expected an even one"));
  const float inf = std::numeric_limits<float>::infinity();
  for (const float theta : {1.0f, 1e12f}) CHECK(error([&](C& c) { c.rope_theta = theta; }) == "");
  for (const float theta :
       {std::nextafter(1.0f, 0.0f), std::nextafter(1e12f, inf), std::nanf("")}) {
    CHECK(has(error([&](C& c) { c.rope_theta = theta; }), "file: rope theta is "));
  }
  for (const float e : {0.0f, 1.0f}) CHECK(error([&](C& c) { c.norm_epsilon = e; }) == "");
  for (const float e : {-1e-30f, std::nextafter(1.0f, 2.0f), std::nanf("")}) {
    CHECK(has(error([&](C& c) { c.norm_epsilon = e; }), "and the norm's epsilon "));
  }
}

TEST_CASE("gguf keys: the vocabulary has a text, a score and a type of 1 to 6 for every piece") {
  Keys keys;
  keys.types({1, 2, 3, 4, 6});
  {
    const mixtral::Checkpoint checkpoint = keys.checkpoint();
    const auto& pieces = checkpoint.vocabulary.pieces;
    REQUIRE(pieces.size() == 5);
    const int types[] = {1, 2, 3, 4, 6};
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(pieces[i].text == "p" + std::to_string(i));
      CHECK(pieces[i].score == -static_cast<float>(i));
      CHECK(static_cast<int>(pieces[i].type) == types[i]);
    }
  }
  keys.set("tokenizer.ggml.token_type", [](GgufWriter& w, const std::string& k) {
    w.array(k, 4, std::vector<std::uint32_t>{1, 1, 1, 5, 1});
  });
  CHECK(keys.error() == "");
  keys.types({1, 1, 0, 1, 1});
  CHECK(has(keys.error(), "tokenizer.ggml.token_type[2] is not one of 1 to 6"));
  keys.types({1, 1, 1, 1, 7});
  CHECK(has(keys.error(), "tokenizer.ggml.token_type[4] is not one of 1 to 6"));
  keys.types({-1, 1, 1, 1, 7});
  CHECK(has(keys.error(), "tokenizer.ggml.token_type[0] is not one of 1 to 6"));
  for (const std::size_t n : {0u, 4u, 6u}) {
    CAPTURE(n);
    const std::string count = std::to_string(n) + " elements; expected 5";
    Keys scores;
    scores.set("tokenizer.ggml.scores",
               [&](GgufWriter& w, const std::string& k) { w.array(k, 6, std::vector<float>(n)); });
    CHECK(has(scores.error(), "'tokenizer.ggml.scores' has " + count));
    Keys types;
    types.types(std::vector<std::int32_t>(n, 1));
    CHECK(has(types.error(), "'tokenizer.ggml.token_type' has " + count));
  }
  const auto typed = [](const char* key, std::uint32_t type) {
    Keys k;
    k.set(key, [&](GgufWriter& w, const std::string& name) {
      type == 4 ? w.array(name, type, std::vector<std::uint32_t>(5, 1))
                : w.array(name, type, std::vector<std::uint64_t>(5, 1));
    });
    return k.error();
  };
  CHECK(has(typed("tokenizer.ggml.tokens", 4), "expected an array of strings, found one of u32"));
  CHECK(has(typed("tokenizer.ggml.scores", 4), "expected an array of f32, found one of u32"));
  CHECK(has(typed("tokenizer.ggml.token_type", 10), "expected an array of i32, found one of u64"));
  keys.string("tokenizer.ggml.model", "gpt2");
  CHECK(has(keys.error(), "tokenizer.ggml.model is 'gpt2'; expected 'llama'"));
}

TEST_CASE("gguf keys: a vocabulary without pieces is refused, whatever its scores and types") {
  Keys keys;
  keys.n_pieces = 0;
  // Scores and types for five pieces that are not there.
  CHECK(has(keys.error(), "'tokenizer.ggml.tokens' has 0 elements; expected 1 to 16777216"));
  keys.n_pieces = 1;
  keys.set("tokenizer.ggml.scores",
           [](GgufWriter& w, const std::string& k) { w.array(k, 6, std::vector<float>(1)); });
  keys.types({1});
  CHECK(keys.config().vocab_size == 1);
}

TEST_CASE("gguf keys: special tokens are pieces; flags and the chat template are read") {
  Keys keys;
  {
    const mixtral::Checkpoint checkpoint = keys.checkpoint();
    CHECK(checkpoint.vocabulary.unknown == 0);
    CHECK(checkpoint.vocabulary.bos == 1);
    CHECK(checkpoint.vocabulary.eos == 2);
    CHECK(checkpoint.vocabulary.add_bos);
    CHECK(checkpoint.vocabulary.add_dummy_prefix);
    CHECK(!checkpoint.vocabulary.remove_extra_whitespaces);
    CHECK(checkpoint.chat_template.empty());
  }
  for (const char* name : {"unknown", "bos", "eos"}) {
    const std::string key = "tokenizer.ggml." + std::string(name) + "_token_id";
    for (const std::uint32_t id : {0u, 4u}) {
      Keys special;
      special.uint(key, id);
      const mixtral::Checkpoint checkpoint = special.checkpoint();
      const auto& v = checkpoint.vocabulary;
      const std::map<std::string, mixtral::Token> found = {
          {"unknown", v.unknown}, {"bos", v.bos}, {"eos", v.eos}};
      CHECK(found.at(name) == static_cast<mixtral::Token>(id));
    }
    Keys beyond;
    beyond.uint(key, 5);
    CHECK(has(beyond.error(), "'" + key + "' is 5; expected 0 to 4"));
  }
  keys.boolean("tokenizer.ggml.add_bos_token", false);
  keys.boolean("tokenizer.ggml.add_space_prefix", false);
  keys.boolean("tokenizer.ggml.remove_extra_whitespaces", true);
  keys.string("tokenizer.chat_template", "<<SYS>>");
  {
    const mixtral::Checkpoint checkpoint = keys.checkpoint();
    CHECK(!checkpoint.vocabulary.add_bos);
    CHECK(!checkpoint.vocabulary.add_dummy_prefix);
    CHECK(checkpoint.vocabulary.remove_extra_whitespaces);
    CHECK(checkpoint.chat_template == "<<SYS>>");
  }
  keys.uint("tokenizer.chat_template", 1);  // of another type: none
  CHECK(keys.checkpoint().chat_template.empty());
}

TEST_CASE("gguf keys: parts are numbered from 0, below their number, which is 1 to 65535") {
  Keys keys;
  keys.uint("split.count", 1);
  keys.uint("split.no", 0);
  keys.uint("split.tensors.count", 0);  // unknown
  CHECK(keys.error() == "");
  keys.uint("split.tensors.count", 1);
  CHECK(has(keys.error(), "'split.tensors.count' is 1, but the 1 parts have 0 tensors"));
  keys.uint("split.tensors.count", (1u << 30) + 1);
  CHECK(has(keys.error(), "expected 0 to 1073741824"));
  keys.uint("split.no", 1);
  CHECK(has(keys.error(), "'split.no' is 1; expected 0 to 0"));
  keys.uint("split.no", 0);
  keys.uint("split.count", 0);
  CHECK(has(keys.error(), "'split.count' is 0; expected 1 to 65535"));
  keys.uint("split.count", 65536);
  CHECK(has(keys.error(), "'split.count' is 65536; expected 1 to 65535"));
  keys.uint("split.count", 65535);
  keys.uint("split.no", 65534);
  CHECK(has(keys.error(), "this is part 65535 of 65535 of a GGUF file, given as part 1 of 1"));
}

TEST_CASE("gguf keys: all parts of a file, in order, have as many tensors as the first one says") {
  const Synthetic s = small();
  const GgufWriter whole = s.writer();
  const std::size_t n = whole.tensors.size();
  const auto parts_error = [&](std::size_t n_told, std::size_t first, std::size_t second) {
    mixtral::Bytes parts[2];
    const std::size_t numbers[] = {first, second};
    for (std::size_t i = 0; i < 2; ++i) {
      GgufWriter part;
      if (numbers[i] == 0) part = whole;
      part.tensors.clear();
      part.uint32("split.count", 2);
      part.uint32("split.no", static_cast<std::uint32_t>(numbers[i]));
      part.uint32("split.tensors.count", static_cast<std::uint32_t>(n_told));
      for (std::size_t t = numbers[i]; t < n; t += 2) part.tensors.push_back(whole.tensors[t]);
      parts[i] = owned(part.finish());
    }
    auto checkpoint = mixtral::read_gguf({parts, 2}, std::pmr::get_default_resource());
    if (!checkpoint) return std::string(checkpoint.error().message());
    CHECK(checkpoint->files.size() == 2);
    CHECK(mixtral::Model::from_checkpoint(*std::move(checkpoint)));
    return std::string();
  };
  CHECK(parts_error(n, 0, 1) == "");
  CHECK(parts_error(0, 0, 1) == "");
  const std::string found = "but the 2 parts have " + std::to_string(n) + " tensors";
  CHECK(has(parts_error(n - 1, 0, 1), found));
  CHECK(has(parts_error(n + 1, 0, 1), found));
  CHECK(has(parts_error(n, 1, 0), "this is part 2 of 2 of a GGUF file, given as part 1 of 2"));
  CHECK(has(parts_error(n, 0, 0), "this is part 1 of 2 of a GGUF file, given as part 2 of 2"));
}

TEST_CASE("gguf tensors: every name has its role, layer and expert") {
  struct Name {
    const char* name;
    Role role;
    std::uint32_t layer, expert, n_experts;
  };
  const Name names[] = {
      {"token_embd.weight", Role::token_embedding, 0, 0, 1},
      {"output_norm.weight", Role::output_norm, 0, 0, 1},
      {"output.weight", Role::output, 0, 0, 1},
      {"rope_freqs.weight", Role::rope_factors, 0, 0, 1},
      {"blk.0.attn_norm.weight", Role::attention_norm, 0, 0, 1},
      {"blk.1.attn_q.weight", Role::wq, 1, 0, 1},
      {"blk.12.attn_k.weight", Role::wk, 12, 0, 1},
      {"blk.345.attn_v.weight", Role::wv, 345, 0, 1},
      {"blk.4294967295.attn_output.weight", Role::wo, 4294967295u, 0, 1},
      {"blk.6.ffn_norm.weight", Role::ffn_norm, 6, 0, 1},
      {"blk.7.ffn_gate_inp.weight", Role::router, 7, 0, 1},
      {"blk.8.ffn_gate.weight", Role::w1, 8, 0, 1},
      {"blk.8.ffn_down.weight", Role::w2, 8, 0, 1},
      {"blk.8.ffn_up.weight", Role::w3, 8, 0, 1},
      {"blk.9.ffn_gate.0.weight", Role::w1, 9, 0, 1},
      {"blk.9.ffn_down.7.weight", Role::w2, 9, 7, 1},
      {"blk.9.ffn_up.4294967295.weight", Role::w3, 9, 4294967295u, 1},
      {"blk.10.ffn_gate_exps.weight", Role::w1, 10, 0, 3},
      {"blk.10.ffn_down_exps.weight", Role::w2, 10, 0, 3},
      {"blk.10.ffn_up_exps.weight", Role::w3, 10, 0, 3},
      // Old converters wrote it; it follows from rope_theta, and is passed over.
      {"blk.0.attn_rot_embd.weight", Role::rope_factors, 0, 0, 0},
  };
  const Keys keys;
  GgufWriter writer = keys.writer();
  for (const Name& name : names) {
    GgufWriter::Tensor tensor{name.name, {4, 2}, 0, Blob(4 * 2 * 4)};
    if (name.n_experts > 1) {
      tensor.shape.push_back(name.n_experts);
      tensor.data.resize(4 * 2 * 4 * name.n_experts);
    }
    writer.tensors.push_back(tensor);
  }
  const mixtral::Checkpoint checkpoint = value(read(writer));
  auto tensor = checkpoint.tensors.begin();
  for (const Name& name : names) {
    CAPTURE(name.name);
    for (std::uint32_t e = 0; e < name.n_experts; ++e, ++tensor) {
      REQUIRE(tensor != checkpoint.tensors.end());
      CHECK(tensor->name == name.name);
      CHECK(tensor->role == name.role);
      CHECK(tensor->layer == name.layer);
      CHECK(tensor->expert == name.expert + e);
      CHECK(tensor->matrix.cols == 4);
      CHECK(tensor->matrix.rows == 2);
      CHECK(tensor->matrix.row_bytes == 16);
      if (e > 0) CHECK(tensor->matrix.data == (tensor - 1)->matrix.data + 32);
    }
  }
  CHECK(tensor == checkpoint.tensors.end());

  for (const char* name : {"token_embd",
                           "token_embd.weight.weight",
                           "xtoken_embd.weight",
                           "blk.",
                           "blk.0",
                           "blk.0.",
                           "blk.x.attn_q.weight",
                           "blk..attn_q.weight",
                           "blk.-1.attn_q.weight",
                           "blk.0attn_q.weight",
                           "blx.0.attn_q.weight",
                           "blk.4294967296.attn_q.weight",
                           "blk.0.attn_q",
                           "blk.0.attn_q.bias",
                           "blk.0.attn_qq.weight",
                           "blk.0.ffn_up",
                           "blk.0.ffn_up_exps",
                           "blk.0.ffn_upexps.weight",
                           "blk.0.ffn_up_exps.bias",
                           "blk.0.ffn_up..weight",
                           "blk.0.ffn_up.1.bias",
                           "blk.0.ffn_up.1weight",
                           "blk.0.ffn_up.1.",
                           "blk.0.ffn_up.1",
                           "blk.0.ffn_up_1.weight",
                           "blk.0.ffn_up.x.weight",
                           "blk.0.ffn_up.4294967296.weight",
                           "output_norm.weight "}) {
    CAPTURE(name);
    GgufWriter other = keys.writer();
    other.tensors = {{name, {4, 2}, 0, Blob(32)}};
    CHECK(has(read_error(other), "tensor '" + std::string(name) + "' is not part of a Mixtral"));
  }
}

TEST_CASE(
    "gguf tensors: a matrix has 1 or 2 dimensions, one of all experts 3, with at most 4096 "
    "experts") {
  const Keys keys;
  const auto error = [&](const char* name, const std::vector<std::uint64_t>& shape) {
    GgufWriter writer = keys.writer();
    std::size_t n = 1;
    for (const std::uint64_t d : shape) n *= static_cast<std::size_t>(d);
    writer.tensors = {{name, shape, 0, Blob(4 * n)}};
    return read_error(writer);
  };
  for (const char* name : {"output.weight", "blk.0.ffn_up.weight", "blk.0.ffn_up.3.weight"}) {
    CAPTURE(name);
    CHECK(error(name, {4}) == "");
    CHECK(error(name, {4, 3}) == "");
    CHECK(has(error(name, {4, 3, 1}),
              "tensor '" + std::string(name) + "' has 3 dimensions; expected 2"));
    CHECK(has(error(name, {4, 3, 1, 1}), "has 4 dimensions; expected 2"));
  }
  const char* merged = "blk.0.ffn_up_exps.weight";
  CHECK(has(error(merged, {4}), "tensor 'blk.0.ffn_up_exps.weight' has 1 dimensions; expected 3"));
  CHECK(has(error(merged, {4, 3}), "has 2 dimensions; expected 3"));
  CHECK(error(merged, {4, 3, 1}) == "");
  CHECK(has(error(merged, {4, 3, 2, 1}), "has 4 dimensions; expected 3"));
  CHECK(error(merged, {1, 1, 4096}) == "");
  CHECK(has(error(merged, {1, 1, 4097}),
            "tensor 'blk.0.ffn_up_exps.weight' holds 4097 experts; at most 4096"));
}

TEST_CASE("weights: every tensor has the rows and columns that the configuration says") {
  const Synthetic s = small();
  const GgufWriter good = s.writer();
  CHECK(model_error(good) == "");
  for (std::size_t i = 0; i < good.tensors.size(); ++i) {
    const auto& tensor = good.tensors[i];
    CAPTURE(tensor.name);
    for (std::size_t d = 0; d < tensor.shape.size(); ++d) {
      if (d == 2) continue;  // of experts, below
      for (const int change : {-1, 1}) {
        GgufWriter writer = good;
        auto& changed = writer.tensors[i];
        changed.shape[d] += static_cast<std::uint64_t>(change);
        std::size_t n = 4;
        for (const std::uint64_t size : changed.shape) n *= static_cast<std::size_t>(size);
        changed.data.resize(n);
        const auto rows = [](const GgufWriter::Tensor& t) {
          return std::to_string(t.shape.size() < 2 ? 1 : t.shape[1]) + " rows of " +
                 std::to_string(t.shape[0]);
        };
        if (tensor.name == "token_embd.weight" && d == 1) continue;  // says how many pieces: below
        CHECK(has(model_error(writer), "tensor '" + tensor.name + "' ("));
        CHECK(has(model_error(writer), "expected " + rows(tensor) + ", found " + rows(changed)));
      }
    }
  }
  GgufWriter writer = good;
  writer.tensors[0].shape[1] -= 1;
  writer.tensors[0].data.resize(24 * 299 * 4);
  CHECK(
      has(model_error(writer), "(token embedding): expected 300 rows of 24, found 299 rows of 24"));
}

TEST_CASE("weights: every tensor is missed by its role, layer and expert") {
  Synthetic s = small();
  s.n_layers = 2;
  s.merged_experts = false;
  s.randomize(1);
  const GgufWriter good = s.writer();
  CHECK(model_error(good) == "");
  const std::map<std::string, std::string> roles = {{"token_embd", "token embedding"},
                                                    {"output_norm", "output norm"},
                                                    {"attn_norm", "attention norm"},
                                                    {"attn_q", "wq"},
                                                    {"attn_k", "wk"},
                                                    {"attn_v", "wv"},
                                                    {"attn_output", "wo"},
                                                    {"ffn_norm", "ffn norm"},
                                                    {"ffn_gate_inp", "router"},
                                                    {"ffn_gate", "expert w1 (gate)"},
                                                    {"ffn_down", "expert w2 (down)"},
                                                    {"ffn_up", "expert w3 (up)"}};
  for (std::size_t i = 0; i < good.tensors.size(); ++i) {
    const std::string& name = good.tensors[i].name;
    CAPTURE(name);
    GgufWriter writer = good;
    writer.tensors.erase(writer.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    if (name == "output.weight") {  // then it is the embedding
      CHECK(model_error(writer) == "");
      continue;
    }
    std::vector<std::string> parts;
    std::istringstream in(name);
    for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
    const bool of_layer = parts[0] == "blk";
    const std::string layer = of_layer ? parts[1] : "0";
    const std::string expert = parts.size() > 4 ? parts[3] : "0";
    CHECK(model_error(writer) == "the " + roles.at(parts[of_layer ? 2 : 0]) + " tensor of layer " +
                                     layer + ", expert " + expert +
                                     " is missing; the file is incomplete");
  }
}

TEST_CASE("weights: no tensor is of a layer or an expert that is not there") {
  Synthetic s = small();
  s.merged_experts = false;
  const auto renamed = [&](const char* name) {
    GgufWriter writer = s.writer();
    writer.tensors.push_back(writer.tensors.back());  // an expert's w3
    writer.tensors.back().name = name;
    return model_error(writer);
  };
  CHECK(has(
      renamed("blk.1.ffn_up.0.weight"),
      "'blk.1.ffn_up.0.weight' is of layer 1, expert 0; the metadata says 1 layers, 4 experts"));
  CHECK(has(
      renamed("blk.0.ffn_up.4.weight"),
      "'blk.0.ffn_up.4.weight' is of layer 0, expert 4; the metadata says 1 layers, 4 experts"));
  CHECK(has(renamed("blk.4294967295.ffn_up.4294967295.weight"), "expert 4294967295; the metadata"));
  // All experts in one tensor that has one more.
  s.merged_experts = true;
  GgufWriter writer = s.writer();
  writer.tensors.back().shape[2] = 5;
  writer.tensors.back().data.resize(writer.tensors.back().data.size() / 4 * 5);
  CHECK(
      has(model_error(writer), "'blk.0.ffn_up_exps.weight' is of layer 0, expert 4; the metadata"));
  writer.tensors.back().shape[2] = 3;
  CHECK(has(model_error(writer), "the expert w3 (up) tensor of layer 0, expert 3 is missing"));

  // A router makes no sense without experts to choose from.
  const Synthetic dense = small(1);
  writer = dense.writer();
  CHECK(model_error(writer) == "");
  writer.tensors.push_back({"blk.0.ffn_gate_inp.weight", {24, 1}, 0, Blob(24 * 4)});
  CHECK(
      has(model_error(writer), "'blk.0.ffn_gate_inp.weight' is a router, but the metadata has no"));
}

TEST_CASE("weights: a tensor that is given twice, by two names, is refused") {
  // Numbers in names may have zeros before them.
  const Synthetic s = small();
  for (const auto& original : s.writer().tensors) {
    if (original.name.substr(0, 4) != "blk.") continue;
    CAPTURE(original.name);
    GgufWriter writer = s.writer();
    writer.tensors.push_back(original);
    writer.tensors.back().name.insert(4, "0");
    CHECK(has(model_error(writer), "tensor '" + writer.tensors.back().name + "' gives a "));
    CHECK(has(model_error(writer), " that another tensor gave already"));
  }
  // All experts in one, and one of them by itself.
  GgufWriter writer = s.writer();
  writer.tensors.push_back(writer.tensors.back());
  auto& one = writer.tensors.back();
  one = {"blk.0.ffn_up.3.weight", {24, 40}, 0, Blob(24 * 40 * 4)};
  CHECK(has(model_error(writer),
            "'blk.0.ffn_up.3.weight' gives a expert w3 (up) that another tensor gave already"));
}

TEST_CASE("weights: a header that lies about layers and experts takes no memory for them") {
  // Gives out no more than a little at once.
  struct Bounded : std::pmr::memory_resource {
    void* do_allocate(std::size_t size, std::size_t alignment) override {
      most = std::max(most, size);
      if (size > std::size_t{1} << 22) throw std::bad_alloc();
      return std::pmr::get_default_resource()->allocate(size, alignment);
    }
    void do_deallocate(void* p, std::size_t size, std::size_t alignment) override {
      std::pmr::get_default_resource()->deallocate(p, size, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override {
      return this == &other;
    }
    std::size_t most = 0;
  } memory;
  mixtral::ModelOptions options;
  options.memory = &memory;
  const auto error = [&](const GgufWriter& writer) {
    const auto model = mixtral::Model::from_bytes(owned(writer.finish()), options);
    REQUIRE(!model);
    CHECK(model.error().code() == mixtral::ErrorCode::bad_format);
    return std::string(model.error().message());
  };
  const Synthetic s = small();
  const auto with_counts = [&](std::uint32_t layers, std::uint32_t experts, std::size_t n_tensors) {
    Synthetic lying = s;
    lying.n_layers = layers;
    lying.n_experts = experts;
    GgufWriter writer = lying.writer();
    writer.tensors.resize(n_tensors);
    return error(writer);
  };
  CHECK(has(with_counts(4096, 4096, 9), "9 tensors are too few for 4096 layers of 4096 experts"));
  CHECK(memory.most < std::size_t{1} << 20);
  // There must be as many tensors as experts, at least; then it is said which one is missing.
  CHECK(has(with_counts(3, 3, 8), "8 tensors are too few for 3 layers of 3 experts"));
  CHECK(has(with_counts(1, 9, 9), "the router tensor of layer 0, expert 0 is missing"));
  CHECK(has(with_counts(3, 3, 9), "the router tensor of layer 0, expert 0 is missing"));
  CHECK(has(with_counts(2, 4, 8), "the wo tensor of layer 0, expert 0 is missing"));
}

TEST_CASE("weights: what a model has in all, and multiplies with one token") {
  for (const std::uint32_t n_experts : {1u, 4u}) {
    for (const bool tied : {false, true}) {
      CAPTURE(n_experts);
      CAPTURE(tied);
      Synthetic s = small(n_experts);
      s.n_layers = 2;
      s.tied_output = tied;
      s.randomize(2);
      const mixtral::Model model = open(s.writer().finish());
      const std::uint64_t embedding = 300 * 24;
      const std::uint64_t router = n_experts > 1 ? 24 * n_experts : 0;
      const std::uint64_t layer = 24 * 40 * 2 + 24 * 20 * 2 + 2 * 24 + router;
      const std::uint64_t expert = 3 * 24 * 40;
      const std::uint64_t used = std::min(n_experts, 2u);
      CHECK(model.n_parameters() ==
            (tied ? 1 : 2) * embedding + 24 + 2 * (layer + n_experts * expert));
      CHECK(model.n_active_parameters() == embedding + 24 + 2 * (layer + used * expert));
      CHECK(model.weight_bytes() == 4 * model.n_parameters());
    }
  }
}

TEST_CASE("weights: rope factors divide the frequencies") {
  Synthetic s = small();
  const std::vector<mixtral::Token> tokens = {5, 260, 7, 9, 11, 290};
  s.rope_linear_factor = 4.0f;  // divides all of them
  const auto expected = evaluate(open(s.writer().finish()), tokens).logits;
  s.rope_linear_factor = 1.0f;
  const auto plain = evaluate(open(s.writer().finish()), tokens).logits;
  CHECK(plain != expected);
  const auto with_factors = [&](const std::vector<float>& factors) {
    GgufWriter writer = s.writer();
    GgufWriter::Tensor tensor{"rope_freqs.weight", {factors.size()}, 0, {}};
    for (const float v : factors) GgufWriter::put(v, tensor.data);
    writer.tensors.push_back(tensor);
    return writer;
  };
  const auto logits = [&](const std::vector<float>& factors) {
    return evaluate(open(with_factors(factors).finish()), tokens).logits;
  };
  CHECK(logits({4, 4, 4, 4, 4}) == expected);
  CHECK(logits({1, 1, 1, 1, 1}) == plain);
  CHECK(logits({1, 1, 1, 1, 4}) != plain);
  CHECK(logits({1, 1, 1, 1, 4}) != logits({4, 1, 1, 1, 1}));
  // One for each pair of a head's ten numbers.
  CHECK(has(model_error(with_factors({1, 1, 1, 1})),
            "'rope_freqs.weight' (rope factors): expected 1 rows of 5, found 1 rows of 4"));
  CHECK(has(model_error(with_factors({1, 1, 1, 1, 1, 1})),
            "expected 1 rows of 5, found 1 rows of 6"));
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float good : {std::nextafter(0.001f, 1.0f), 1e6f}) {
    CHECK(logits({1, 1, 1, 1, good}).size() == tokens.size());
  }
  for (const float bad : {0.0f, -1.0f, std::nextafter(0.001f, 0.0f), std::nextafter(1e6f, infinity),
                          infinity, std::nanf("")}) {
    CAPTURE(bad);
    CHECK(has(model_error(with_factors({1, 1, bad, 1, 1})), "rope factor 2 is "));
  }
}

TEST_CASE("weights: every small vector is decoded from its own format and used in its own place") {
  // In BF16, which holds these numbers exactly; each vector is another one.
  Synthetic s = small();
  const auto round = [](std::vector<float>& v, float shift) {
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = shift + static_cast<float>(i % 7) * 0.0625f;
  };
  round(s.output_norm, 0.5f);
  round(s.layers[0].attention_norm, 0.75f);
  round(s.layers[0].ffn_norm, 1.0f);
  const std::vector<mixtral::Token> tokens = {5, 260, 7};
  GgufWriter writer = s.writer();
  const auto expected = evaluate(open(writer.finish()), tokens).logits;
  for (auto& tensor : writer.tensors) {
    if (tensor.shape.size() > 1) continue;
    Blob halves;
    for (std::size_t i = 0; i < tensor.data.size(); i += 4) {
      halves.insert(halves.end(), {tensor.data[i + 2], tensor.data[i + 3]});
    }
    tensor.data = halves;
    tensor.type = 30;
  }
  const mixtral::Model model = open(writer.finish());
  CHECK(evaluate(model, tokens).logits == expected);
  CHECK(max_difference(expected.back(), s.reference(tokens).back()) < 1e-4);
}
