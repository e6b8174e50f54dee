// From a path to a checkpoint: which layout a folder has, which of its files are read, and what is refused.
#include "model_files.hpp"

#include <mixtral/checkpoints.hpp>

using namespace support;
using mixtral::ErrorCode;
using mixtral::PieceType;
using Json = nlohmann::json;

namespace {

mixtral::Result<mixtral::Checkpoint> read(const std::string& path) {
  return mixtral::open_checkpoint(path.c_str());
}
mixtral::Checkpoint checkpoint(const TemporaryFolder& folder) { return value(read(folder.path())); }

template <class T>
std::string message(const mixtral::Result<T>& result, ErrorCode code) {
  REQUIRE(!result);
  CHECK(result.error().code() == code);
  return result.error().message();
}
std::string error_of(const std::string& path, ErrorCode code = ErrorCode::bad_format) {
  return message(read(path), code);
}
std::string error_of(const TemporaryFolder& folder, ErrorCode code = ErrorCode::bad_format) {
  return error_of(folder.path(), code);
}

const Synthetic& small() {
  static const Synthetic synthetic = [] {
    Synthetic s;
    s.n_layers = 1;
    s.n_experts = 2;
    s.randomize(5);
    return s;
  }();
  return synthetic;
}

void write_huggingface(const TemporaryFolder& folder) {
  folder.write("config.json", huggingface_config(small()).dump());
  folder.write("tokenizer.json", tokenizer_json(small()).dump());
  folder.write("model.safetensors", safetensors(huggingface_tensors(small())));
}

void write_original(const TemporaryFolder& folder) {
  folder.write("params.json", params_json(small()).dump());
  folder.write("tokenizer.json", tokenizer_json(small()).dump());
  folder.write("consolidated.00.pth", torch_file(original_tensors(small(), false)));
}

// All tensors in one file, with an index.
void write_index(const TemporaryFolder& folder, const Json& map) {
  folder.write("model.safetensors.index.json", Json{{"weight_map", map}}.dump());
}
Json whole_map() {
  Json map;
  for (const FloatTensor& tensor : huggingface_tensors(small()))
    map[tensor.name] = "model.safetensors";
  return map;
}

bool is_huggingface(const mixtral::Checkpoint& checkpoint) {
  return checkpoint.config.head_order == mixtral::HeadOrder::halves;
}

}  // namespace

TEST_CASE("open: a folder has the layout that its configuration and weights show") {
  {
    const TemporaryFolder folder;
    write_huggingface(folder);
    CHECK(is_huggingface(checkpoint(folder)));
    // Where both layouts are there, that of Hugging Face is read ...
    write_original(folder);
    CHECK(is_huggingface(checkpoint(folder)));
    // ... if its weights are there, with or without an index.
    write_index(folder, whole_map());
    CHECK(is_huggingface(checkpoint(folder)));
    std::filesystem::rename(folder.file("model.safetensors"), folder.file("other.safetensors"));
    CHECK(has(error_of(folder, ErrorCode::io), "model.safetensors'"));
    std::filesystem::remove(folder.file("model.safetensors.index.json"));
    CHECK(!is_huggingface(checkpoint(folder)));
    // Without config.json, weights do not make that layout.
    std::filesystem::rename(folder.file("other.safetensors"), folder.file("model.safetensors"));
    std::filesystem::remove(folder.file("config.json"));
    CHECK(!is_huggingface(checkpoint(folder)));
    std::filesystem::remove(folder.file("params.json"));
    CHECK(error_of(folder, ErrorCode::unsupported) ==
          "'" + folder.path() +
              "': neither config.json (Hugging Face) nor params.json (original release) is there; "
              "give a "
              "GGUF file or a folder with a model");
  }
  const TemporaryFolder folder;
  write_huggingface(folder);
  std::filesystem::remove(folder.file("model.safetensors"));
  CHECK(has(error_of(folder, ErrorCode::io), "model.safetensors'"));
}

TEST_CASE("open: GGUF files are named where a folder has no other weights") {
  const auto with = [](const std::vector<std::string>& names) {
    const TemporaryFolder folder;
    for (const std::string& name : names) folder.write(name, std::string("x"));
    return error_of(folder, ErrorCode::invalid_argument);
  };
  const auto ends = [](const std::string& text, const std::string& end) {
    INFO(text);
    return text.size() > end.size() && text.substr(text.size() - end.size()) == end;
  };
  CHECK(ends(with({"a.gguf"}), "' is a folder of GGUF files; name one of them: 'a.gguf'"));
  CHECK(ends(with({"c.gguf", "a.gguf", "b.gguf"}), "them: 'a.gguf', 'b.gguf', 'c.gguf'"));
  CHECK(ends(with({"c.gguf", "a.gguf", "b.gguf", "d.gguf"}),
             "'a.gguf', 'b.gguf', 'c.gguf' and 1 more"));
  CHECK(ends(with({"a.gguf", "b.ggu", "c.gguf.part", "gguf"}), "them: 'a.gguf'"));
  // The first part of a file in parts is named; what only looks like a part is a file of its own.
  CHECK(ends(with({"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}),
             "them: 'm-00001-of-00002.gguf'"));
  CHECK(ends(with({"a-of-b.gguf", "-00001-of-00002.gguf", "-00002-of-00002.gguf"}),
             "them: '-00001-of-00002.gguf', 'a-of-b.gguf'"));
  for (const char* name :
       {"m00002-of-00002.gguf", "00002-of-00002.gguf", "0002-of-00002.gguf", "m-0002-of-00002.gguf",
        "m-00002-of-0002.gguf", "m-00002-of-000002.gguf", "best-of-00002.gguf",
        "-00002-of-0002.gguf", "m-00002-or-00002.gguf", "-of-00002.gguf"}) {
    CAPTURE(name);
    CHECK(ends(with({name}), "them: '" + std::string(name) + "'"));
  }
  // Names of up to 50 bytes are shown whole.
  const std::string fits = std::string(45, 'n') + ".gguf", longer = std::string(46, 'n') + ".gguf";
  CHECK(ends(with({fits}), "them: '" + fits + "'"));
  CHECK(ends(with({longer}),
             "them: '" + std::string(15, 'n') + "..." + std::string(27, 'n') + ".gguf'"));
  // The error tells 80 bytes of the folder's path.
  const TemporaryFolder above;
  const std::string deep = above.file(std::string(100, 'x'));
  std::filesystem::create_directory(deep);
  std::ofstream(deep + "/a.gguf") << "x";
  CHECK(error_of(deep, ErrorCode::invalid_argument) ==
        "'" + deep.substr(0, 25) + "..." + std::string(52, 'x') +
            "' is a folder of GGUF files; name one of them: 'a.gguf'");
  // A configuration beside them is often all that there is of another layout.
  const TemporaryFolder folder;
  write_original(folder);
  folder.write("a.gguf", std::string("x"));
  CHECK(!is_huggingface(checkpoint(folder)));
  std::filesystem::remove(folder.file("tokenizer.json"));
  CHECK(has(error_of(folder, ErrorCode::invalid_argument), "folder of GGUF files"));
  std::filesystem::remove(folder.file("a.gguf"));
  CHECK(error_of(folder, ErrorCode::io) ==
        "'" + folder.path() + "': there is neither tokenizer.model nor tokenizer.json");
  CHECK(message(mixtral::open_tokenizer(folder.path().c_str()), ErrorCode::io) ==
        "'" + folder.path() + "': there is neither tokenizer.model nor tokenizer.json");
}

TEST_CASE(
    "open: a tokenizer.model comes before those with numbers, and those before tokenizer.json") {
  const TemporaryFolder folder;
  const auto tokenizer = [&] { return mixtral::open_tokenizer(folder.path().c_str()); };
  folder.write("tokenizer.json", tokenizer_json(small()).dump());
  CHECK(value(tokenizer()).size() == 300);
  const std::size_t pieces = value(mixtral::Tokenizer::from_sentencepiece(
                                       bytes(sentencepiece()), std::pmr::get_default_resource()))
                                 .size();
  REQUIRE(pieces != 300);
  for (const char* name :
       {"tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1", "tokenizer.model"}) {
    CAPTURE(name);
    folder.write(name, sentencepiece());
    CHECK(value(tokenizer()).size() == pieces);
    folder.write(name, std::string("broken"));
    CHECK(has(message(tokenizer(), ErrorCode::bad_format), "/" + std::string(name) + "': "));
    folder.write(name, std::string());
    CHECK(has(message(tokenizer(), ErrorCode::io), "/" + std::string(name) + "' is empty"));
  }
}

TEST_CASE("open: tokenizer_config.json says whether texts begin with BOS") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  CHECK(checkpoint(folder).vocabulary.add_bos);
  const auto with = [&](const char* text) {
    folder.write("tokenizer_config.json", std::string(text));
    return checkpoint(folder).vocabulary.add_bos;
  };
  CHECK(with("{}"));
  CHECK(with(R"({"add_bos_token": null})"));
  CHECK(with(R"({"add_bos_token": true})"));
  CHECK(!with(R"({"add_bos_token": false})"));
  folder.write("tokenizer_config.json", std::string(R"({"add_bos_token": 0})"));
  CHECK(error_of(folder) ==
        "tokenizer_config.json: key 'add_bos_token': expected true or false, found another number");
  folder.write("tokenizer_config.json", std::string("["));
  CHECK(has(error_of(folder), "/tokenizer_config.json: not valid JSON at byte 2"));
}

TEST_CASE("open: a chat template has a file of its own, or else is in tokenizer_config.json") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  const auto with = [&](const Json& found) {
    folder.write("tokenizer_config.json", Json{{"chat_template", found}}.dump());
    return std::string(checkpoint(folder).chat_template);
  };
  const auto named = [](const Json& name, const Json& text) {
    return Json{{"name", name}, {"template", text}};
  };
  CHECK(checkpoint(folder).chat_template.empty());
  CHECK(with("text") == "text");
  CHECK(with(nullptr) == "");
  CHECK(with(5) == "");
  CHECK(with(Json{{"a", named("default", "text")}}) == "");
  // The one called "default" is taken of several; what is of another kind is passed over.
  CHECK(with(Json::array(
            {named("tool_use", "tools"), named("default", "text"), named("rag", "r")})) == "text");
  CHECK(with(Json::array({named("tool_use", "tools")})) == "");
  CHECK(with(Json::array({"default", 5, nullptr, Json::array({"default"}), named("default", 5),
                          named(5, "number"), Json{{"name", "default"}},
                          Json{{"template", "nameless"}}})) == "");
  folder.write("chat_template.jinja", std::string());
  CHECK(with("text") == "text");
  folder.write("chat_template.jinja", std::string("j"));
  CHECK(with("text") == "j");
  std::filesystem::remove(folder.file("tokenizer_config.json"));
  CHECK(checkpoint(folder).chat_template == "j");
  std::filesystem::remove(folder.file("chat_template.jinja"));
  std::filesystem::create_directory(folder.file("chat_template.jinja"));
  CHECK(has(error_of(folder, ErrorCode::io), "chat_template.jinja' is a folder"));
}

TEST_CASE("open: tokenizer_config.json adds tokens that the tokenizer does not have") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  Synthetic shorter = small();
  shorter.vocab_size = 290;
  folder.write("tokenizer.json", tokenizer_json(shorter).dump());
  const auto write = [&](const Json& added) {
    folder.write("tokenizer_config.json", Json{{"added_tokens_decoder", added}}.dump());
  };
  write({{"289", {{"content", "known"}}},
         {"290", {{"content", "first"}}},
         {"292", {{"content", "special"}, {"special", true}}},
         {"293", {{"content", "plain"}, {"special", false}}},
         {"299", {{"content", "last"}, {"special", 1}}}});
  const auto read_one = checkpoint(folder);
  const auto& pieces = read_one.vocabulary.pieces;
  REQUIRE(pieces.size() == 300);
  CHECK(pieces[289].text == "piece289");
  CHECK(pieces[289].type == PieceType::normal);
  CHECK(pieces[290].text == "first");
  CHECK(pieces[290].type == PieceType::user_defined);
  CHECK(pieces[291].text == "[PAD291]");
  CHECK(pieces[291].type == PieceType::control);
  CHECK(pieces[292].text == "special");
  CHECK(pieces[292].type == PieceType::control);
  CHECK(pieces[293].text == "plain");
  CHECK(pieces[293].type == PieceType::user_defined);
  CHECK(pieces[298].text == "[PAD298]");
  CHECK(pieces[299].text == "last");
  CHECK(pieces[299].type == PieceType::user_defined);
  for (std::size_t i = 290; i < 300; ++i) CHECK(pieces[i].score == 0.0f);

  write(nullptr);
  CHECK(checkpoint(folder).vocabulary.pieces[290].text == "[PAD290]");
  write(Json::array());
  CHECK(error_of(folder) ==
        "tokenizer_config.json: key 'added_tokens_decoder': expected an object, found array");
  const Json good = {{"content", "new"}};
  const std::vector<std::pair<std::string, Json>> wrong = {{"300", good},
                                                           {"", good},
                                                           {"x", good},
                                                           {"-1", good},
                                                           {"295x", good},
                                                           {"4294967296", good},
                                                           {"295", "new"},
                                                           {"295", nullptr},
                                                           {"295", Json::array({"content"})},
                                                           {"295", Json::object()},
                                                           {"295", {{"content", 5}}}};
  for (const auto& entry : wrong) {
    const auto& id = entry.first;
    const auto& token = entry.second;
    CAPTURE(id);
    CAPTURE(token.dump());
    write({{id, token}});
    CHECK(error_of(folder) == "tokenizer_config.json: added token '" + id +
                                  "' has no content or is not in the vocabulary of 300");
  }
  write({{std::string(41, 'i'), good}});
  CHECK(has(error_of(folder), "added token '" + std::string(40, 'i') + "' has"));
}

TEST_CASE("open: added tokens are in the order of numbers, not of their keys") {
  Synthetic s = small();
  s.vocab_size = 1002;
  s.randomize(5);
  const TemporaryFolder folder;
  folder.write("config.json", huggingface_config(s).dump());
  folder.write("model.safetensors", safetensors(huggingface_tensors(s)));
  s.vocab_size = 998;
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  folder.write(
      "tokenizer_config.json",
      std::string(
          R"({"added_tokens_decoder": {"999": {"content": "below"}, "1000": {"content": "above"}}})"));
  const auto read_one = checkpoint(folder);
  CHECK(read_one.vocabulary.pieces[998].text == "[PAD998]");
  CHECK(read_one.vocabulary.pieces[999].text == "below");
  CHECK(read_one.vocabulary.pieces[1000].text == "above");
}

TEST_CASE("open: a vocabulary may be up to 2^20 larger than the tokenizer's, but not smaller") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  const auto with = [&](std::uint32_t size) {
    Json config = huggingface_config(small());
    config["vocab_size"] = size;
    folder.write("config.json", config.dump());
    return read(folder.path());
  };
  std::uint32_t most = 300 + (1u << 20);
  CHECK(value(with(most)).vocabulary.pieces.size() == most);
  CHECK(message(with(most + 1), ErrorCode::bad_format) ==
        "'" + folder.path() +
            "': the configuration has a vocabulary of 1048877, the tokenizer one of 300");
  CHECK(message(with(299), ErrorCode::bad_format) ==
        "'" + folder.path() +
            "': the tokenizer has 300 pieces, the configuration a vocabulary of 299");
  // params.json, too; there -1 is the tokenizer's.
  const TemporaryFolder other;
  write_original(other);
  Json params = params_json(small());
  params["vocab_size"] = 299;
  other.write("params.json", params.dump());
  CHECK(has(error_of(other),
            "': the tokenizer has 300 pieces, the configuration a vocabulary of 299"));
  params["vocab_size"] = -1;
  other.write("params.json", params.dump());
  CHECK(checkpoint(other).config.vocab_size == 300);
}

TEST_CASE("open: a model without an output matrix says that it is tied") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  Json config = huggingface_config(small());
  config.erase("tie_word_embeddings");
  folder.write("config.json", config.dump());
  CHECK(read(folder.path()));
  std::vector<FloatTensor> tensors;
  for (const FloatTensor& tensor : huggingface_tensors(small())) {
    if (tensor.name != "lm_head.weight") tensors.push_back(tensor);
  }
  folder.write("model.safetensors", safetensors(tensors));
  const std::string missing =
      "tensor 'lm_head.weight' is missing, and config.json does not say tie_word_embeddings; the "
      "model is "
      "incomplete";
  CHECK(error_of(folder) == missing);
  config["tie_word_embeddings"] = false;
  folder.write("config.json", config.dump());
  CHECK(error_of(folder) == missing);
  config["tie_word_embeddings"] = true;
  folder.write("config.json", config.dump());
  CHECK(read(folder.path()));
  config["tie_word_embeddings"] = "yes";
  folder.write("config.json", config.dump());
  CHECK(error_of(folder) ==
        "config.json: key 'tie_word_embeddings': expected true or false, found string");
}

TEST_CASE("open: an index names each tensor's file, and each tensor is there") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  const std::string index = "'" + folder.path() + "/model.safetensors" + ".index.json'";
  Json map = whole_map();
  write_index(folder, map);
  CHECK(read(folder.path()));
  for (const char* text : {"{}", "{\"weight_map\": []}", "{\"weight_map\": null}"}) {
    folder.write("model.safetensors.index.json", std::string(text));
    CHECK(error_of(folder) == index + ": weight_map must be an object");
  }
  for (const Json& name :
       {Json(""), Json("a/b"), Json("a\\b"), Json("c:b"), Json(5), Json(nullptr), Json("..\\b")}) {
    CAPTURE(name.dump());
    Json changed = map;
    changed["model.norm.weight"] = name;
    write_index(folder, changed);
    CHECK(error_of(folder) ==
          index + ": the file of tensor 'model.norm.weight' is not a plain file name");
  }
  write_index(folder, {{std::string(81, 't'), 5}});
  CHECK(
      has(error_of(folder), ": the file of tensor '" + std::string(80, 't') + "' is not a plain"));
  const std::string elsewhere = "is not where the index says; the files do not belong together";
  Json changed = map;
  changed.erase("lm_head.weight");
  write_index(folder, changed);
  CHECK(has(error_of(folder), "tensor 'lm_head.weight' " + elsewhere));
  // Both files have it; the second is not the one that the index names.
  folder.write("other.safetensors", safetensors(huggingface_tensors(small())));
  changed = map;
  changed["model.norm.weight"] = "other.safetensors";
  write_index(folder, changed);
  CHECK(has(error_of(folder), elsewhere));
  changed = map;
  changed["one.more"] = "model.safetensors";
  write_index(folder, changed);
  CHECK(error_of(folder) == index + " names " + std::to_string(map.size() + 1) +
                                " tensors, but its files have " + std::to_string(map.size()) +
                                " of them");
  changed = map;
  changed["one.more"] = "none.safetensors";
  write_index(folder, changed);
  CHECK(has(error_of(folder, ErrorCode::io), "/none.safetensors'"));
  folder.write("model.safetensors.index.json", std::string("{"));
  CHECK(has(error_of(folder), "/model.safetensors.index.json: not valid JSON at byte 2"));
}

TEST_CASE(
    "open: the original layout's weights are safetensors, or else PyTorch files with numbers") {
  const TemporaryFolder folder;
  write_original(folder);
  const auto tensors = original_tensors(small(), false);
  const Blob whole = torch_file(tensors);
  CHECK(read(folder.path()));
  // Where nothing is, .pth is missed; .pth comes before .pt.
  std::filesystem::remove(folder.file("consolidated.00.pth"));
  CHECK(has(error_of(folder, ErrorCode::io), "/consolidated.00.pth'"));
  folder.write("consolidated.01.pth", whole);
  CHECK(has(error_of(folder, ErrorCode::io), "/consolidated.00.pth'"));
  std::filesystem::remove(folder.file("consolidated.01.pth"));
  folder.write("consolidated.00.pt", whole);
  CHECK(checkpoint(folder).tensors.size() == tensors.size());
  folder.write("consolidated.00.pth", std::string("broken"));
  CHECK(has(error_of(folder, ErrorCode::unsupported), "/consolidated.00.pth: not a zip archive"));
  // Safetensors come first, in one file or with an index.
  folder.write("consolidated.safetensors", std::string("broken"));
  CHECK(has(error_of(folder), "/consolidated.safetensors: "));
  folder.write("consolidated.safetensors", safetensors(tensors));
  CHECK(checkpoint(folder).tensors.size() == tensors.size());
  Json map;
  for (const FloatTensor& tensor : tensors) map[tensor.name] = "a.safetensors";
  folder.write("consolidated.safetensors.index.json", Json{{"weight_map", map}}.dump());
  std::filesystem::rename(folder.file("consolidated.safetensors"), folder.file("a.safetensors"));
  CHECK(checkpoint(folder).tensors.size() == tensors.size());
}

TEST_CASE("open: PyTorch files are read while their numbers follow each other, up to 99") {
  const TemporaryFolder folder;
  write_original(folder);
  const auto name = [](int number) {
    return "consolidated." + std::string(number < 10 ? "0" : "") + std::to_string(number) + ".pth";
  };
  const auto tensors = original_tensors(small(), false);
  const std::string broken = "broken";
  folder.write(name(2), broken);
  CHECK(read(folder.path()));
  folder.write(name(1), torch_file({}));
  CHECK(has(error_of(folder, ErrorCode::unsupported), "/consolidated.02.pth: not a zip archive"));
  for (int i = 2; i < 100; ++i) folder.write(name(i), torch_file({}));
  folder.write(name(100), broken);
  CHECK(checkpoint(folder).tensors.size() == tensors.size());
  folder.write(name(99), broken);
  CHECK(has(error_of(folder, ErrorCode::unsupported), "/consolidated.99.pth: not a zip archive"));
  // A tensor that another file had is a shard.
  folder.write(name(1), torch_file({tensors.back()}));
  CHECK(error_of(folder, ErrorCode::unsupported) ==
        "'" + folder.path() + "/consolidated.01.pth" +
            "': its tensors are shards for model parallelism; take this model in the Hugging Face "
            "layout or "
            "as GGUF");
  // A tensor that no model has is named with its file.
  folder.write(name(1), torch_file({{"q.bias", {1}, {1.0f}}}));
  CHECK(has(error_of(folder, ErrorCode::unsupported),
            "/consolidated.01.pth': tensor 'q.bias' is not part"));
}

TEST_CASE("open: params.json has 1 to 4096 experts; the weights are not looked at for others") {
  const TemporaryFolder folder;
  write_original(folder);
  std::filesystem::remove(folder.file("consolidated.00.pth"));
  const auto with = [&](std::uint32_t n) {
    Json params = params_json(small());
    params["moe"]["num_experts"] = n;
    folder.write("params.json", params.dump());
  };
  const std::string params = folder.path() + "/params.json" + ": the number of experts is ";
  with(0);
  CHECK(error_of(folder) == params + "0; expected 1 to 4096");
  with(4097);
  CHECK(error_of(folder) == params + "4097; expected 1 to 4096");
  for (const std::uint32_t n : {1u, 4096u}) {
    with(n);
    CHECK(has(error_of(folder, ErrorCode::io), "/consolidated.00.pth'"));
  }
  folder.write("params.json", std::string("{"));
  CHECK(error_of(folder) ==
        folder.path() + "/params.json" + ": not valid JSON at byte 2 (incomplete download?)");
}

TEST_CASE("open: a hidden size that params.json lacks is that of the first matrices of networks") {
  const TemporaryFolder folder;
  Synthetic s = small();
  s.n_experts = 1;
  s.n_experts_used = 1;
  s.randomize(5);
  Json params = params_json(s);
  params.erase("hidden_dim");
  folder.write("params.json", params.dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  folder.write("consolidated.00.pth", torch_file(original_tensors(s, false)));
  CHECK(checkpoint(folder).config.hidden_dim == 40);
  // Where there is a number, it counts; whether it is right is seen later.
  params["hidden_dim"] = 41;
  folder.write("params.json", params.dump());
  CHECK(checkpoint(folder).config.hidden_dim == 41);
  params.erase("hidden_dim");
  folder.write("params.json", params.dump());
  folder.write("consolidated.00.pth", torch_file({tensor("norm.weight", s.output_norm)}));
  CHECK(error_of(folder) ==
        folder.path() + "/params.json" + ": the hidden size is 0; expected 1 to 1048576");
}

TEST_CASE("open: a file of a folder stands for it, any other file for itself") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  write_original(folder);
  folder.write("model.safetensors.index.json", Json{{"weight_map", whole_map()}}.dump());
  folder.write("consolidated.00.pt", std::string("x"));
  for (const char* name :
       {"config.json", "params.json", "model.safetensors", "model.safetensors.index.json",
        "consolidated.00.pth", "consolidated.00.pt"}) {
    CAPTURE(name);
    CHECK(read(folder.file(name)));
    CHECK(mixtral::open_tokenizer(folder.file(name).c_str()));
  }
  CHECK(read(folder.path() + "///"));
  CHECK(has(error_of(folder.file("tokenizer.json")), "not a GGUF file"));
  // GGUF is known by its bytes, whatever the name.
  const Blob gguf = small().writer().finish();
  for (const char* name : {"a.gguf", "b", "c.safetensors", "d.json"}) {
    CAPTURE(name);
    folder.write(name, gguf);
    CHECK(!is_huggingface(value(read(folder.file(name)))));
  }
  for (const char* name : {"a.gguf", "b", "d.json"}) {
    CHECK(value(mixtral::open_tokenizer(folder.file(name).c_str())).size() == 300);
  }
  // Slashes at the end are no part of the folder's name.
  const TemporaryFolder empty;
  const std::string none = error_of(empty, ErrorCode::unsupported);
  for (const char* slashes : {"/", "//"})
    CHECK(error_of(empty.path() + slashes, ErrorCode::unsupported) == none);
}

TEST_CASE("open: paths may be relative") {
  struct In {
    explicit In(const std::string& folder) { std::filesystem::current_path(folder); }
    ~In() { std::filesystem::current_path(before); }
    std::filesystem::path before = std::filesystem::current_path();
  };
  const TemporaryFolder folder;
  write_huggingface(folder);
  std::filesystem::create_directory(folder.file("d"));
  const In in(folder.path());
  for (const char* path :
       {".", "./", "config.json", "./config.json", "model.safetensors", "d/../config.json"}) {
    CAPTURE(path);
    CHECK(read(path));
  }
  CHECK(error_of("d/", ErrorCode::unsupported).find("'d': neither config.json") == 0);
#ifndef _WIN32
  if (!read("/") && read("/").error().code() == ErrorCode::unsupported) {
    CHECK(error_of("/", ErrorCode::unsupported).find("'/': neither config.json") == 0);
  }
#endif
}

TEST_CASE("open: errors of a model or tokenizer begin with the path") {
  const TemporaryFolder folder;
  write_huggingface(folder);
  // A tensor that is missing is seen when the model is put together.
  auto tensors = huggingface_tensors(small());
  tensors.pop_back();
  folder.write("model.safetensors", safetensors(tensors));
  CHECK(read(folder.path()));
  const auto model = mixtral::open_model(folder.path().c_str());
  CHECK(message(model, ErrorCode::bad_format).find("'" + folder.path() + "': ") == 0);
  const auto tokenizer_error = [&](const char* name) {
    return message(mixtral::open_tokenizer(folder.file(name).c_str()), ErrorCode::bad_format);
  };
  folder.write("words.json", std::string("{"));
  CHECK(tokenizer_error("words.json") ==
        "'" + folder.file("words.json") +
            "': tokenizer.json: not valid JSON at byte 2 (incomplete download?)");
  folder.write("words", std::string("no protocol buffer"));
  CHECK(tokenizer_error("words").find("'" + folder.file("words") + "': ") == 0);
  // The errors of GGUF files have the path already.
  Blob gguf = small().writer().finish();
  gguf.resize(40);
  folder.write("cut.gguf", gguf);
  const std::string cut = tokenizer_error("cut.gguf"), path = folder.file("cut.gguf");
  CHECK(has(cut, path));
  CHECK(cut.find(path) == cut.rfind(path));
  folder.write("words.model", sentencepiece());
  CHECK(mixtral::open_tokenizer(folder.file("words.model").c_str()));
}
