// Every layout in which models are published: the same model read from each, and broken files.
#include "model_files.hpp"
#include "small_stack.hpp"

#include <mixtral/checkpoints.hpp>

#ifndef _WIN32
#include <sys/stat.h>
#endif

using namespace support;
using mixtral::Token;

namespace {

using Logits = std::vector<std::vector<float>>;

std::vector<Token> some_tokens(std::size_t n = 30) {
  std::vector<Token> tokens;
  for (std::size_t i = 0; i < n; ++i) tokens.push_back(static_cast<Token>((i * 37 + 11) % 300));
  return tokens;
}

Logits logits_of(const std::string& path) {
  const Logits logits = evaluate(value(mixtral::open_model(path.c_str())), some_tokens()).logits;
  mixtral::ModelOptions options;
  options.copy_weights = true;
  CHECK(evaluate(value(mixtral::open_model(path.c_str(), options)), some_tokens()).logits ==
        logits);
  return logits;
}

std::string error_of(const std::string& path) {
  const auto model = mixtral::open_model(path.c_str());
  REQUIRE(!model);
  return model.error().message();
}

Synthetic small(std::uint32_t n_experts = 4) {
  Synthetic s;
  s.n_experts = n_experts;
  s.n_experts_used = std::min(n_experts, 2u);
  s.randomize(5);
  return s;
}

void write_huggingface(const TemporaryFolder& folder, const Synthetic& s) {
  folder.write("config.json", huggingface_config(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  folder.write("model.safetensors", safetensors(huggingface_tensors(s)));
}

// In two shards with an index.
void write_shards(const TemporaryFolder& folder, const std::vector<FloatTensor>& tensors,
                  const std::string& name) {
  nlohmann::json map;
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  const std::vector<FloatTensor> parts[] = {{tensors.begin(), middle}, {middle, tensors.end()}};
  for (int i = 0; i < 2; ++i) {
    const std::string file = name + "-0000" + std::to_string(i + 1) + "-of-00002.safetensors";
    folder.write(file, safetensors(parts[i]));
    for (const auto& t : parts[i]) map[t.name] = file;
  }
  folder.write(name + ".safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
}

}  // namespace

TEST_CASE("checkpoints: the tiny model is the same bits in every format" *
          needs_shared("models/tiny-mixtral")) {
  const std::string base = "models/tiny-mixtral/";
  std::vector<Logits> all;
  for (const char* path : {"gguf/tiny-mixtral-bf16.gguf", "hf", "hf/model.safetensors.index.json",
                           "mistral", "mistral/consolidated.00.pth"}) {
    CAPTURE(std::string(path));
    const auto model = value(mixtral::open_model(shared(base + path).c_str()));
    CHECK(model.chat_format() == mixtral::ChatFormat::mistral_v1);
    CHECK(model.config().context_length == 32768);
    all.push_back(evaluate(model, golden().back()["ids"].get<std::vector<Token>>()).logits);
    CHECK(all.back() == all.front());
  }
}

TEST_CASE("checkpoints: a model written in every layout gives the logits of its GGUF file") {
  for (const std::uint32_t n_experts : {4u, 1u}) {
    CAPTURE(n_experts);
    const Synthetic s = small(n_experts);
    const Logits expected = evaluate(open(s.writer().finish()), some_tokens()).logits;
    {
      const TemporaryFolder folder;
      write_huggingface(folder, s);
      CHECK(logits_of(folder.path()) == expected);
      CHECK(logits_of(folder.path() + "/") == expected);
      CHECK(logits_of(folder.file("model.safetensors")) == expected);
    }
    {
      const TemporaryFolder folder;
      write_huggingface(folder, s);
      std::filesystem::remove(folder.file("model.safetensors"));
      write_shards(folder, huggingface_tensors(s), "model");
      CHECK(logits_of(folder.path()) == expected);
      CHECK(logits_of(folder.file("model.safetensors.index.json")) == expected);
    }
    const TemporaryFolder folder;
    folder.write("params.json", params_json(s).dump());
    folder.write("tokenizer.json", tokenizer_json(s).dump());
    const auto tensors = original_tensors(s, false);
    folder.write("consolidated.00.pth", torch_file(tensors));
    CHECK(logits_of(folder.path()) == expected);
    folder.write("consolidated.00.pth", torch_file(tensors, true));
    CHECK(logits_of(folder.file("consolidated.00.pth")) == expected);
    write_shards(folder, tensors, "consolidated");
    CHECK(logits_of(folder.path()) == expected);
    std::filesystem::remove(folder.file("consolidated.safetensors.index.json"));
    folder.write("consolidated.safetensors", safetensors(tensors));
    CHECK(logits_of(folder.path()) == expected);
  }
}

TEST_CASE("checkpoints: the first release: eight files, merged experts, w2 transposed") {
  Synthetic s = small();
  s.dim = 40;  // not a multiple of how many rows are gathered at once
  s.hidden_dim = 300;
  s.randomize(6);
  const Logits expected = evaluate(open(s.writer().finish()), some_tokens()).logits;
  const TemporaryFolder folder;
  folder.write("params.json", nlohmann::json{{"hidden_size", s.dim},
                                             {"num_hidden_layers", s.n_layers},
                                             {"num_attention_heads", s.n_heads},
                                             {"num_key_value_heads", s.n_kv_heads},
                                             {"head_dim", s.head_size},
                                             {"intermediate_size", s.hidden_dim},
                                             {"vocab_size", s.vocab_size},
                                             {"rms_norm_eps", s.norm_epsilon},
                                             {"rope_theta", s.rope_theta},
                                             {"sliding_window", "4096"},
                                             {"num_local_experts", s.n_experts},
                                             {"num_experts_per_tok", s.n_experts_used}}
                                  .dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  const auto tensors = original_tensors(s, true);
  for (std::size_t part = 0; part < 8; ++part) {
    std::vector<FloatTensor> some;
    for (std::size_t i = part; i < tensors.size(); i += 8) some.push_back(tensors[i]);
    folder.write("consolidated.0" + std::to_string(part) + ".pt", torch_file(some));
  }
  const auto model = value(mixtral::open_model(folder.path().c_str()));
  CHECK(model.config().sliding_window == 4096);
  CHECK(model.n_parameters() == open(s.writer().finish()).n_parameters());
  CHECK(model.weight_bytes() == 4 * model.n_parameters());
  CHECK(evaluate(model, some_tokens()).logits == expected);
  // Many tokens for one expert, and one token alone, are the same sums.
  mixtral::Session alone = session(model, 64, 1);
  const auto tokens = some_tokens();
  REQUIRE(alone.append(span(tokens)));
  Recorder recorder;
  REQUIRE(alone.evaluate(&recorder));
  CHECK(recorder.logits == expected);
}

TEST_CASE("checkpoints: Llama 2's params.json leaves sizes to the weights") {
  Synthetic s = small(1);
  s.n_kv_heads = s.n_heads;
  s.head_size = s.dim / s.n_heads;
  s.randomize(8);
  const Logits expected = evaluate(open(s.writer().finish()), some_tokens()).logits;
  const TemporaryFolder folder;
  folder.write("params.json", nlohmann::json{{"dim", s.dim},
                                             {"multiple_of", 256},
                                             {"n_heads", s.n_heads},
                                             {"n_layers", s.n_layers},
                                             {"norm_eps", s.norm_epsilon},
                                             {"vocab_size", -1}}
                                  .dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  auto tensors = original_tensors(s, false);
  tensors.push_back({"rope.freqs", {3}, {1.0f, 0.1f, 0.01f}});
  folder.write("consolidated.00.pth", torch_file(tensors));
  const auto model = value(mixtral::open_model(folder.path().c_str()));
  CHECK(model.config().context_length == 4096);
  CHECK(model.config().rope_theta == 1e4f);
  CHECK(evaluate(model, some_tokens()).logits == expected);
  folder.write("consolidated.01.pth", torch_file(tensors));
  CHECK(has(error_of(folder.path()), "model parallelism"));
}

TEST_CASE("checkpoints: tied output and vocabularies larger than the tokenizer's") {
  Synthetic s = small();
  s.tied_output = true;
  s.randomize(5);
  const Logits expected = evaluate(open(s.writer().finish()), some_tokens()).logits;
  const TemporaryFolder folder;
  write_huggingface(folder, s);
  CHECK(logits_of(folder.path()) == expected);
  auto config = huggingface_config(s);
  config["tie_word_embeddings"] = false;
  folder.write("config.json", config.dump());
  CHECK(has(error_of(folder.path()), "lm_head.weight"));

  // Ten rows have no piece in the tokenizer; one of them is named by tokenizer_config.json.
  Synthetic shorter = s;
  shorter.vocab_size -= 10;
  folder.write("config.json", huggingface_config(s).dump());
  folder.write("tokenizer.json", tokenizer_json(shorter).dump());
  folder.write("tokenizer_config.json",
               R"({"add_bos_token": false, "chat_template": "<<SYS>>", "added_tokens_decoder":
                   {"292": {"content": "<extra>", "special": true}}})");
  const auto model = value(mixtral::open_model(folder.path().c_str()));
  CHECK(model.tokenizer().size() == s.vocab_size);
  CHECK(model.tokenizer().find("<extra>") == 292);
  CHECK(!model.tokenizer().add_bos());
  CHECK(model.chat_format() == mixtral::ChatFormat::llama2);
  folder.write("tokenizer_config.json",
               R"({"added_tokens_decoder": {"300": {"content": "<extra>"}}})");
  CHECK(has(error_of(folder.path()), "'300'"));
}

TEST_CASE("checkpoints: GGUF in several parts is opened by the first") {
  const Synthetic s = small();
  const auto whole = s.writer();
  const Logits expected = evaluate(open(whole.finish()), some_tokens()).logits;
  const TemporaryFolder folder;
  const auto write_parts = [&](std::uint32_t n_tensors) {
    for (std::uint16_t part = 0; part < 3; ++part) {
      GgufWriter gguf;
      if (part == 0) gguf = whole;
      gguf.tensors.clear();
      gguf.scalar("split.no", 2, part);
      gguf.scalar("split.count", 2, std::uint16_t{3});
      gguf.scalar("split.tensors.count", 5, static_cast<std::int32_t>(n_tensors));
      for (std::size_t i = part; i < whole.tensors.size(); i += 3) {
        gguf.tensors.push_back(whole.tensors[i]);
      }
      folder.write("model-0000" + std::to_string(part + 1) + "-of-00003.gguf", gguf.finish());
    }
  };
  const auto n = static_cast<std::uint32_t>(whole.tensors.size());
  write_parts(n);
  const std::string first = folder.file("model-00001-of-00003.gguf");
  CHECK(evaluate(open(first), some_tokens()).logits == expected);
  CHECK(logits_of(first) == expected);
  CHECK(has(error_of(folder.file("model-00002-of-00003.gguf")), "part 2 of 3"));
  const Blob alone = read_file(first);
  CHECK(!mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(alone))));
  folder.write("other.gguf", alone);
  CHECK(has(error_of(folder.file("other.gguf")), "NAME-00001-of-00003.gguf"));
  std::filesystem::rename(folder.file("model-00003-of-00003.gguf"), folder.file("elsewhere"));
  CHECK(has(error_of(first), "model-00003-of-00003.gguf"));
  std::filesystem::copy(folder.file("model-00002-of-00003.gguf"),
                        folder.file("model-00003-of-00003.gguf"));
  CHECK(has(error_of(first), "given as part 3"));
  write_parts(n + 1);
  CHECK(has(error_of(first), "split.tensors.count"));
}

TEST_CASE("checkpoints: what is missing or wrong in a folder is named") {
  const Synthetic s = small();
  {
    const TemporaryFolder folder;
    CHECK(has(error_of(folder.path()), "config.json"));
    CHECK(has(error_of(folder.file("no-such-file")), "no-such-file"));
    write_huggingface(folder, s);
    std::filesystem::remove(folder.file("tokenizer.json"));
    CHECK(has(error_of(folder.path()), "neither tokenizer.model nor tokenizer.json"));
  }
  const auto with_config = [&](const char* key, const nlohmann::json& v) {
    const TemporaryFolder folder;
    write_huggingface(folder, s);
    auto config = huggingface_config(s);
    config[key] = v;
    if (v.is_null()) config.erase(key);
    folder.write("config.json", config.dump());
    return error_of(folder.path());
  };
  CHECK(has(with_config("model_type", "gpt2"), "'gpt2'"));
  CHECK(has(with_config("hidden_size", nullptr), "'hidden_size' is missing"));
  CHECK(has(with_config("hidden_size", "wide"), "expected a non-negative integer, found string"));
  CHECK(has(with_config("hidden_size", -4), "another number"));
  CHECK(has(with_config("hidden_size", 25), "expected"));
  CHECK(has(with_config("hidden_size", 5000000000), "5000000000"));
  CHECK(has(with_config("num_attention_heads", 0), "number of heads is 0"));
  CHECK(has(with_config("num_key_value_heads", 3), "not a multiple"));
  CHECK(has(with_config("num_local_experts", 5), "(router): expected 5 rows"));
  CHECK(has(with_config("num_experts_per_tok", 5), "experts used is 5"));
  CHECK(has(with_config("hidden_act", "gelu"), "'gelu'"));
  CHECK(has(with_config("rope_scaling", {{"type", "yarn"}}), "'yarn'"));
  CHECK(has(with_config("rope_theta", 0), "rope theta"));
  CHECK(has(with_config("vocab_size", 10), "300 pieces"));
  CHECK(has(with_config("vocab_size", 4000000000u), "4000000000"));
  CHECK(has(with_config("quantization_config", {{"bits", 4}}), "quantization_config"));

  const auto with_tensors = [&](const std::function<void(std::vector<FloatTensor>&)>& change) {
    const TemporaryFolder folder;
    write_huggingface(folder, s);
    auto tensors = huggingface_tensors(s);
    change(tensors);
    folder.write("model.safetensors", safetensors(tensors));
    return error_of(folder.path());
  };
  CHECK(has(with_tensors([](auto& t) { t.pop_back(); }), "expert 3 is missing"));
  CHECK(has(with_tensors([](auto& t) { t[3].name = "model.layers.0.self_attn.q_proj.bias"; }),
            "'model.layers.0.self_attn.q_proj.bias' is not part of"));
  CHECK(has(with_tensors([](auto& t) { t[3].name = "model.layers.77.input_layernorm.weight"; }),
            "layer 77"));
  CHECK(has(with_tensors([](auto& t) {
              for (auto& x : t) {
                if (x.name == "model.layers.1.self_attn.v_proj.weight") x.shape = {24, 20};
              }
            }),
            "expected 20 rows of 24, found 24 rows of 20"));
  CHECK(has(with_tensors([](auto& t) { t[0].shape = {10, 30, 24}; }), "3 dimensions"));

  const TemporaryFolder folder;
  write_huggingface(folder, s);
  std::filesystem::remove(folder.file("model.safetensors"));
  const auto tensors = huggingface_tensors(s);
  write_shards(folder, tensors, "model");
  const std::string index = "model.safetensors.index.json";
  auto map = nlohmann::json::parse(read_file(folder.file(index)));
  auto changed = map;
  changed["weight_map"]["model.norm.weight"] = "../model.safetensors";
  folder.write(index, changed.dump());
  CHECK(has(error_of(folder.path()), "not a plain file name"));
  changed = map;
  changed["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors";
  folder.write(index, changed.dump());
  CHECK(has(error_of(folder.path()), "not where the index says"));
  changed = map;
  changed["weight_map"]["another.weight"] = "model-00002-of-00002.safetensors";
  folder.write(index, changed.dump());
  CHECK(has(error_of(folder.path()), "names"));
  folder.write(index, std::string("{\"weight_map\": []}"));
  CHECK(has(error_of(folder.path()), "weight_map"));
}

TEST_CASE("checkpoints: a path that cannot be opened says why") {
  const TemporaryFolder folder;
  const auto tokenizer_error = [](const std::string& path) {
    const auto tokenizer = mixtral::open_tokenizer(path.c_str());
    REQUIRE(!tokenizer);
    return std::string(tokenizer.error().message());
  };
  folder.write("empty", std::string());
  for (const char* name :
       {"no.gguf", "no/", "config.json", "model.safetensors", "empty/x", "empty"}) {
    CAPTURE(name);
    const std::string path = folder.file(name);
    const auto bytes = mixtral::Bytes::map_file(path.c_str());
    REQUIRE(!bytes);
    CHECK(error_of(path) == bytes.error().message());
    CHECK(tokenizer_error(path) == bytes.error().message());
  }
  const std::string deep = folder.file("no/" + std::string(3000, 'x') + "/config.json");
  CHECK(has(error_of(deep), "x/config.json': "));
  CHECK(!has(error_of(deep), "params.json"));
#ifndef _WIN32
  for (const char* name : {"pipe", "pipe.safetensors"}) {
    REQUIRE(::mkfifo(folder.file(name).c_str(), 0600) == 0);
    CHECK(has(error_of(folder.file(name)), "is a pipe"));
    CHECK(has(tokenizer_error(folder.file(name)), "is a pipe"));
  }
#endif
}

TEST_CASE("checkpoints: a file of a folder that cannot be read is not taken for missing") {
  const Synthetic s = small();
  const auto with_empty = [&](const char* name) {
    const TemporaryFolder folder;
    write_huggingface(folder, s);
    folder.write(name, std::string());
    return error_of(folder.path());
  };
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json",
                           "model.safetensors", "model.safetensors.index.json"}) {
    CAPTURE(name);
    CHECK(has(with_empty(name), std::string(name) + "' is empty"));
  }
#ifndef _WIN32
  const TemporaryFolder folder;
  write_huggingface(folder, s);
  std::filesystem::remove(folder.file("tokenizer.json"));
  REQUIRE(::mkfifo(folder.file("tokenizer.json").c_str(), 0600) == 0);
  CHECK(has(error_of(folder.path()), "tokenizer.json' is a pipe"));
#endif
}

TEST_CASE("checkpoints: a folder of GGUF files says what to name") {
  const TemporaryFolder folder;
  const Blob file = small().writer().finish();
  folder.write("mixtral.Q4_K_M.gguf", file);
  const auto expect = [&](const std::string& what) {
    for (const std::string& path : {folder.path(), folder.path() + "/"}) {
      CHECK(has(error_of(path), what));
      CHECK(has(mixtral::open_tokenizer(path.c_str()).error().message(), what));
    }
  };
  expect("folder of GGUF files; name one of them: 'mixtral.Q4_K_M.gguf'");
  // Files in parts are opened by the first.
  for (int part = 1; part <= 3; ++part) {
    folder.write("a-0000" + std::to_string(part) + "-of-00003.gguf", file);
  }
  expect("name one of them: 'a-00001-of-00003.gguf', 'mixtral.Q4_K_M.gguf'");
  // As those who publish GGUF files leave it.
  folder.write("config.json", std::string("{\"model_type\": \"mixtral\"}"));
  CHECK(has(error_of(folder.path()), "name one of them"));
  for (int i = 0; i < 9; ++i) {
    folder.write(std::to_string(i) + std::string(200, 'n') + ".gguf", file);
  }
  const std::string message = error_of(folder.path());
  CHECK(has(message, "and 8 more"));
  CHECK(has(message, "...nnn"));
  // A model in a layout of its own comes first.
  const TemporaryFolder both;
  write_huggingface(both, small());
  both.write("mixtral.Q4_K_M.gguf", file);
  CHECK(mixtral::open_model(both.path().c_str()));
}

TEST_CASE("checkpoints: errors about files far down leave room for the reason") {
  const Synthetic s = small();
  const TemporaryFolder folder;
  std::string below = folder.path();
  for (int i = 0; i < 10; ++i) below += "/" + std::string(100, 'x');
  std::filesystem::create_directories(below);
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(below + "/" + name, std::ios::binary) << text;
  };
  CHECK(has(error_of(below), "give a GGUF file or a folder with a model"));
  write("config.json", "{");
  CHECK(has(error_of(below), "x/config.json: not valid JSON"));
  write("config.json", huggingface_config(s).dump());
  CHECK(has(error_of(below), "neither tokenizer.model nor tokenizer.json"));
  write("tokenizer.json", "{}");
  CHECK(has(error_of(below), "x/tokenizer.json': "));
  write("tokenizer.json", tokenizer_json(s).dump());
  CHECK(has(error_of(below), "x/model.safetensors': "));
  write("model.safetensors", "broken");
  CHECK(has(error_of(below), "x/model.safetensors: "));
  write("model.safetensors.index.json", R"({"weight_map": []})");
  CHECK(has(error_of(below), "weight_map must be an object"));
  write("model.safetensors.index.json", R"({"weight_map": {"a": "../b"}})");
  CHECK(has(error_of(below), "is not a plain file name"));
}

TEST_CASE("checkpoints: broken safetensors files are refused") {
  const Synthetic s = small();
  const TemporaryFolder folder;
  write_huggingface(folder, s);
  const auto error_with = [&](const Blob& file) {
    folder.write("model.safetensors", file);
    return error_of(folder.path());
  };
  const auto header = [&](const std::string& text) {
    return error_with(safetensors(text, Blob(16)));
  };
  CHECK(has(error_with({1, 2, 3}), "safetensors header"));
  CHECK(has(error_with(Blob(8, 0xff)), "past the end"));
  CHECK(has(header("{\"a\": "), "not valid JSON at byte"));
  CHECK(has(header("[]"), "expected a JSON object, found array"));
  CHECK(has(header("{\"a\": 1}"), "not an object"));
  CHECK(has(header(R"({"a": {"dtype": 1}})"), "dtype must be a string"));
  CHECK(has(header(R"({"a": {"dtype": "F32"}})"), "shape must be an array"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [4]}})"), "data_offsets"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, -16]}})"),
            "data_offsets"));
  CHECK(has(header(R"({"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}})"), "'X9'"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}})"),
            "past the end"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}})"),
            "do not agree"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296],
                             "data_offsets": [0, 16]}})"),
            "absurd"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}})"), "hole"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})"),
            "belong to no tensor"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                       "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}})"),
            "overlaps"));
  CHECK(has(header(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                       "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})"),
            "'a' is there twice"));
  CHECK(has(header(R"({"model.norm.weight": {"dtype": "I64", "shape": [2],
                       "data_offsets": [0, 16]}})"),
            "element type I64"));
  CHECK(has(header(std::string(100000, '[')), "nested more than"));
  CHECK(has(header(R"({"a": )" + std::string(100000, '{')), "JSON"));
}

TEST_CASE("checkpoints: broken PyTorch files are refused, and what a pickle asks for is not done") {
  const Synthetic s = small();
  const TemporaryFolder folder;
  folder.write("params.json", params_json(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  const auto error_with = [&](const Blob& file) {
    folder.write("consolidated.00.pth", file);
    return error_of(folder.path());
  };
  const auto tensors = original_tensors(s, false);
  const Blob good = torch_file(tensors);
  folder.write("consolidated.00.pth", good);
  CHECK(mixtral::open_model(folder.path().c_str()));
  CHECK(has(error_with(Blob(100, 0x80)), "not a zip archive"));
  CHECK(has(error_with(Blob(good.begin(), good.end() - 30)), "incomplete download"));
  CHECK(has(error_with(zip({{"archive/version", {'3'}}})), "no data.pkl"));
  CHECK(has(error_with(zip({{"a/data.pkl", {'.'}}, {"a/byteorder", {'b'}}})), "little-endian"));

  const auto pickled = [&](const std::string& text) {
    return error_with(zip({{"a/data.pkl", Blob(text.begin(), text.end())}}));
  };
  CHECK(has(pickled("cos\nsystem\n(X\x04\x00\x00\x00trueltR."), "'os.system'"));
  CHECK(has(pickled("cbuiltins\neval\n."), "'builtins.eval'"));
  CHECK(has(pickled("\x8c\x05posix\x8c\x06system\x93."), "'posix.system'"));
  CHECK(has(pickled("ios\nsystem\n."), "opcode 0x69"));
  CHECK(has(pickled("}"), "ends early"));
  CHECK(has(pickled("h\x07."), "never remembered"));
  CHECK(has(pickled("}u."), "no mark"));
  CHECK(has(pickled("K\x01."), "no dict of tensors"));
  CHECK(has(pickled("}K\x01K\x02s."), "no string"));
  CHECK(has(pickled("}X\x01"), "ends early"));
  CHECK(has(pickled("}}."), "2 values are left"));
  CHECK(has(pickled("}\x8c\x01wK\x02s."), "expected a tensor"));
  CHECK(has(pickled(std::string(5000000, '}')), "more than 4000000 values"));

  // Sizes that the storage does not have, a view that is not contiguous, a storage that is missing.
  auto changed = tensors;
  changed[3].shape[0] += 1;
  CHECK(has(error_with(torch_file(changed)), "larger than its storage"));
  changed = tensors;
  std::vector<std::pair<std::string, Blob>> entries = {{"a/data.pkl", PickleWriter(tensors).bytes}};
  CHECK(has(error_with(zip(entries)), "storage is missing"));
  Blob text = PickleWriter({tensors[0]}).bytes;
  // The stride of the first dimension, 24, becomes 25.
  const std::uint8_t stride[] = {'J', 24, 0, 0, 0, 'J', 1, 0, 0, 0};
  const auto at = std::search(text.begin(), text.end(), stride, stride + 10);
  REQUIRE(at != text.end());
  at[1] = 25;
  CHECK(has(error_with(zip({{"a/data.pkl", text}, {"a/data/0", tensors[0].bytes()}})),
            "not contiguous"));

  // Compressed, encrypted, overlapping.
  const auto patched = [&](std::size_t offset, std::uint8_t v) {
    Blob blob = zip({{"a/data.pkl", {'}', '.'}}});
    const std::uint8_t signature[] = {'P', 'K', 1, 2};
    *(std::search(blob.begin(), blob.end(), signature, signature + 4) +
      static_cast<std::ptrdiff_t>(offset)) = v;
    return error_with(blob);
  };
  CHECK(has(patched(10, 8), "'a/data.pkl' is compressed"));
  CHECK(has(patched(8, 1), "'a/data.pkl' is encrypted"));
  CHECK(has(patched(42, 1), "no header"));
  CHECK(has(patched(30, 200), "runs past"));
}

TEST_CASE("checkpoints: tokenizer.json: merges by rank, normaliser, added tokens") {
  const auto read = [](const nlohmann::json& json) -> mixtral::Result<mixtral::Tokenizer> {
    const std::string text = json.dump();
    const auto vocabulary = mixtral::read_tokenizer_json(
        {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()},
        std::pmr::get_default_resource());
    if (!vocabulary) return vocabulary.error();
    return mixtral::Tokenizer::create(*vocabulary, std::pmr::get_default_resource());
  };
  const auto encode = [](const mixtral::Tokenizer& t, const char* text) {
    const auto tokens = value(t.encode(text));
    std::vector<std::string> pieces;
    for (const Token token : tokens) pieces.emplace_back(t.piece(token).text);
    return pieces;
  };
  using Pieces = std::vector<std::string>;
  Synthetic s;
  s.vocab_size = 259;
  nlohmann::json json = tokenizer_json(s);
  auto& model = json["model"];
  int id = 259;
  for (const char* piece : {"\xE2\x96\x81", "a", "b", "c", "ab", "bc", "abc", "aa", "aaa",
                            "\xE2\x96\x81"
                            "a"}) {
    model["vocab"][piece] = id++;
  }
  // (a, aa) comes before (aa, a), though both are "aaa".
  model["merges"] = {"b c", "a bc", "a b", "ab c", "a a", "a aa", "aa a"};
  auto t = value(read(json));
  CHECK(t.bos() == 1);
  CHECK(t.eos() == 2);
  CHECK(encode(t, "abc") == Pieces{"\xE2\x96\x81", "abc"});
  CHECK(encode(t, "abab") == Pieces{"\xE2\x96\x81", "ab", "ab"});
  CHECK(encode(t, "aaa") == Pieces{"\xE2\x96\x81", "aaa"});
  CHECK(encode(t, "<s>") == Pieces{"\xE2\x96\x81", "<0x3C>", "<0x73>", "<0x3E>"});
  CHECK(encode(t, "x\n") == Pieces{"\xE2\x96\x81", "<0x78>", "<0x0A>"});
  CHECK(encode(t, "") == Pieces{});
  CHECK(std::string(value(t.decode(span({1, 259, 265, 259, 260})))) == "abc a");
  // A merge that is listed is done, one that is not is not, whatever the pieces.
  model["merges"].push_back("\xE2\x96\x81 a");
  t = value(read(json));
  CHECK(encode(t, "ac") == Pieces{"\xE2\x96\x81"
                                  "a",
                                  "c"});

  // The newer spellings.
  auto newer = json;
  newer["normalizer"] = nullptr;
  newer["pre_tokenizer"] = {{"type", "Metaspace"},
                            {"replacement", "\xE2\x96\x81"},
                            {"prepend_scheme", "first"},
                            {"split", false}};
  newer["model"]["merges"] = nlohmann::json::array();
  for (const std::string merge : model["merges"]) {
    const std::size_t space = merge.find(' ');
    newer["model"]["merges"].push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  newer["added_tokens"].push_back({{"id", 300}, {"content", "<tool>"}, {"special", false}});
  t = value(read(newer));
  CHECK(encode(t, "abc") == Pieces{"\xE2\x96\x81", "abc"});
  CHECK(encode(t, "a<tool>") == Pieces{"\xE2\x96\x81"
                                       "a",
                                       "<tool>"});
  CHECK(t.size() == 301);
  CHECK(std::string(t.piece(299).text) == "[PAD299]");

  const auto error = [&](const std::function<void(nlohmann::json&)>& change) {
    auto broken = json;
    change(broken);
    const auto result = read(broken);
    REQUIRE(!result);
    return std::string(result.error().message());
  };
  CHECK(has(error([](auto& j) { j["model"]["type"] = "Unigram"; }), "not of type BPE"));
  CHECK(has(error([](auto& j) { j["model"]["byte_fallback"] = false; }), "byte_fallback"));
  CHECK(has(error([](auto& j) { j["model"]["vocab"]["zz"] = -1; }), "token id"));
  CHECK(has(error([](auto& j) { j["model"]["vocab"]["zz"] = 1; }), "same id"));
  CHECK(has(error([](auto& j) { j["model"]["vocab"]["zz"] = 2000000; }), "token id"));
  // Found by the fuzzer: half a million pieces to fill the hole before one.
  CHECK(has(error([](auto& j) { j["model"]["vocab"]["zz"] = 735218; }), "the most for"));
  CHECK(has(error([](auto& j) { j["model"]["merges"].push_back("a"); }), "merges[8]"));
  CHECK(has(error([](auto& j) { j["model"]["merges"].push_back("a c"); }), "merges[8]"));
  CHECK(has(error([](auto& j) { j["normalizer"] = {{"type", "NFKC"}}; }), "normalizer"));
  CHECK(has(error([](auto& j) { j["normalizer"] = nullptr; }), "U+2581"));
  CHECK(has(error([](auto& j) { j["pre_tokenizer"] = {{"type", "ByteLevel"}}; }), "Metaspace"));
  CHECK(has(error([](auto& j) { j["decoder"] = {{"type", "WordPiece"}}; }), "decoder"));
  CHECK(has(error([](auto& j) { j.erase("model"); }), "BPE"));
}

TEST_CASE("checkpoints: the tokenizer alone, from every kind of file") {
  const Synthetic s = small();
  const TemporaryFolder folder;
  write_huggingface(folder, s);
  folder.write("model.gguf", s.writer().finish());
  for (const std::string& path :
       {folder.path(), folder.file("tokenizer.json"), folder.file("model.gguf"),
        folder.file("model.safetensors"), folder.file("config.json")}) {
    const auto t = value(mixtral::open_tokenizer(path.c_str()));
    CHECK(t.size() == 300);
    CHECK(value(t.encode("ab")).size() == 5);  // U+2581 and two letters, in bytes
  }
  folder.write("broken.json", std::string("{"));
  folder.write("words", std::string("no protocol buffer"));
  for (const char* name : {"broken.json", "words", "none"}) {
    const auto t = mixtral::open_tokenizer(folder.file(name).c_str());
    REQUIRE(!t);
    CHECK(has(t.error().message(), name));
  }
}

TEST_CASE("checkpoints: the tokenizer alone, of the tiny model's folder" *
          needs_shared("models/tiny-mixtral/hf")) {
  const auto hf = value(mixtral::open_tokenizer(shared("models/tiny-mixtral/hf").c_str()));
  CHECK(hf.size() == 4096);
}

TEST_CASE("checkpoints: files of nested values are read or refused on a small stack") {
  const Synthetic s = small();
  const TemporaryFolder folder;
  folder.write("params.json", params_json(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  const auto error_with = [&](const std::string& pickle) {
    folder.write("consolidated.00.pth", zip({{"a/data.pkl", Blob(pickle.begin(), pickle.end())}}));
    std::string error;
    on_small_stack([&] {
      const auto model = mixtral::open_model(folder.path().c_str());
      if (!model) error = model.error().message();
    });
    return error;
  };
  // A million tuples, each in the next; marks; dicts in dicts.
  std::string dicts;
  for (int i = 0; i < 200000; ++i) dicts += "}\x8c\x01w";
  for (int i = 0; i < 200000; ++i) dicts += i == 0 ? "Ns" : "s";
  CHECK(has(error_with("}\x8c\x01w)" + std::string(1000000, '\x85') + "s."), "expected a tensor"));
  CHECK(has(error_with("}" + std::string(1000000, '(') + "."), "values are left"));
  CHECK(has(error_with(dicts + "."), "expected a tensor"));

  // JSON: 32 deep, but no deeper.
  const auto read = [&](std::size_t depth) {
    std::string text = tokenizer_json(s).dump();
    text.insert(1, "\"nested\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + ",");
    std::string error;
    on_small_stack([&] {
      const auto vocabulary = mixtral::read_tokenizer_json(
          {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()},
          std::pmr::get_default_resource());
      if (!vocabulary) error = vocabulary.error().message();
    });
    return error;
  };
  CHECK(read(32) == "");
  CHECK(has(read(33), "nested more than 32 deep"));
  CHECK(has(read(1000000), "nested more than 32 deep"));
}
