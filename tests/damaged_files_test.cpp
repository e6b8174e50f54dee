// Files of every kind with some bytes changed, removed, doubled or cut off: an error or something that can be
// used, nothing worse. gguf_test.cpp does the same with GGUF files.
#include "written_files.hpp"

using namespace support;

namespace {

// Damages copies of a file, in the same way with every compiler.
class Damage {
 public:
  explicit Damage(unsigned seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

  // A copy of `file` that differs within [begin, end), or is shorter.
  Blob of(const Blob& file, std::size_t begin, std::size_t end) {
    Blob out = file;
    const auto place = [&] {
      return out.begin() + static_cast<std::ptrdiff_t>(begin + below(end - begin));
    };
    switch (below(16)) {
      case 0:  // the rest is missing
        out.resize(begin + below(file.size() - begin));
        return out;
      case 1: {  // some bytes are missing
        const auto at = place();
        out.erase(at, at + static_cast<std::ptrdiff_t>(below(std::min<std::size_t>(
                               9, static_cast<std::size_t>(out.end() - at)))));
        return out;
      }
      case 2: {  // some bytes are there twice
        const auto at = place();
        const Blob piece(at, at + static_cast<std::ptrdiff_t>(below(std::min<std::size_t>(
                                      33, static_cast<std::size_t>(out.end() - at)))));
        out.insert(place(), piece.begin(), piece.end());
        return out;
      }
      default: break;
    }
    for (std::size_t n = 1 + below(3); n > 0; --n) {
      static constexpr std::uint8_t kExtreme[] = {0, 1, 0x7f, 0x80, 0xff};
      std::uint8_t& byte = *place();
      switch (below(4)) {
        case 0: byte = kExtreme[below(5)]; break;
        case 1: byte = static_cast<std::uint8_t>(random_()); break;
        case 2: byte = file[begin + below(end - begin)]; break;  // one that is at home here
        default: byte = static_cast<std::uint8_t>(byte + (below(2) == 0 ? 1 : -1)); break;
      }
    }
    return out;
  }
  Blob of(const Blob& file) { return of(file, 0, file.size()); }

 private:
  std::mt19937 random_;
};

// What came of the damaged files. A test wants some of each, lest it look at one kind of damage alone.
struct Outcomes {
  std::size_t n_errors = 0, n_used = 0, n_evaluated = 0;

  // An error says what is wrong, in characters that can be shown.
  void refuse(const mixtral::Error& error) {
    ++n_errors;
    const bool speaks = std::strlen(error.message()) > 10;
    CHECK(speaks);
  }
};

void use(const mixtral::Tokenizer& tokenizer) {
  for (const char* text : {"Once upon a time", " \xE2\x82 [INST]<s>\n ti", "aaaaaaaaaaaaaaaa"}) {
    const auto tokens = tokenizer.encode(text);
    if (!tokens) continue;
    bool known = true;
    for (const Token token : *tokens) known = known && tokenizer.contains(token);
    CHECK(known);
    const bool decoded = static_cast<bool>(tokenizer.decode({tokens->data(), tokens->size()}));
    CHECK(decoded);
  }
  const auto last = static_cast<Token>(tokenizer.size() - 1);
  const bool has_last = tokenizer.contains(last) && !tokenizer.contains(last + 1);
  CHECK(has_last);
}

// Decodes all rows of all tensors: every byte that they claim to have is read.
void use(const mixtral::Checkpoint& checkpoint) {
  const mixtral::simd::Kernels& kernels = *mixtral::simd::select_kernels();
  std::vector<float> rows;
  for (const mixtral::NamedTensor& tensor : checkpoint.tensors) {
    constexpr std::size_t kRows = 8;
    rows.resize(kRows * tensor.matrix.cols);
    for (std::size_t r = 0; r < tensor.matrix.rows; r += kRows) {
      kernels.decode_rows(tensor.matrix, r, std::min(kRows, tensor.matrix.rows - r), rows.data());
    }
  }
}

void use(const mixtral::Model& model, Outcomes& outcomes) {
  use(model.tokenizer());
  mixtral::SessionOptions options;
  options.context = std::min(model.config().context_length, 8u);
  options.batch = 4;
  const auto needed = mixtral::Session::memory_needed(model, options);
  if (!needed || *needed > (1u << 26)) return;
  auto session = mixtral::Session::open(model, options);
  if (!session) return;
  for (const Token token : {1, 40, 0}) {
    if (!session->append(token)) return;
  }
  outcomes.n_evaluated += static_cast<bool>(session->evaluate()) ? 1 : 0;
}

// Opens a model in whatever layout it is, and uses all of it.
void open_and_use(const std::string& path, bool evaluate, Outcomes& outcomes) {
  auto checkpoint = mixtral::open_checkpoint(path.c_str());
  if (!checkpoint) return outcomes.refuse(checkpoint.error());
  use(*checkpoint);
  mixtral::ModelOptions options;
  options.copy_weights = evaluate && outcomes.n_used % 2 == 0;
  const auto model = mixtral::Model::from_checkpoint(*std::move(checkpoint), options);
  if (!model) return outcomes.refuse(model.error());
  ++outcomes.n_used;
  if (evaluate) use(*model, outcomes);
}

// A model of which every file is short, so that thousands can be written.
Synthetic tiny() {
  Synthetic s;
  s.dim = 8;
  s.n_layers = 1;
  s.n_heads = 2;
  s.n_kv_heads = 1;
  s.head_size = 4;
  s.hidden_dim = 8;
  s.n_experts = 2;
  s.vocab_size = 270;
  s.context_length = 16;
  s.randomize(1);
  return s;
}

nlohmann::json tiny_tokenizer(const Synthetic& s) {
  nlohmann::json json = tokenizer_json(s);
  nlohmann::json vocab = nlohmann::json::object();
  for (const auto& [piece, id] : json["model"]["vocab"].items()) {
    if (id < 259) vocab[piece] = id;
  }
  std::uint32_t id = 259;
  for (const char* piece :
       {"\xE2\x96\x81", "a", "aa", "aaaa", "n", "c", "e", "ce", "t", "i", "ti"}) {
    vocab[piece] = id++;
  }
  REQUIRE(id == s.vocab_size);
  json["model"]["vocab"] = vocab;
  json["model"]["merges"] = {"a a", "aa aa", "c e", "t i"};
  return json;
}

Blob to_blob(const std::string& text) { return Blob(text.begin(), text.end()); }

std::size_t find(const Blob& blob, const std::string& text) {
  const Blob part = to_blob(text);
  const auto at = std::search(blob.begin(), blob.end(), part.begin(), part.end());
  REQUIRE(at != blob.end());
  return static_cast<std::size_t>(at - blob.begin());
}

}  // namespace

TEST_CASE("damaged files: PyTorch files: their pickle, their directory and their headers") {
  // The reader does not verify the checksums of the archive, so that none need to be repaired.
  const Synthetic s = tiny();
  for (const bool merged : {false, true}) {
    for (const bool zip64 : {false, true}) {
      const TemporaryFolder folder;
      folder.write("params.json", params_json(s).dump());
      folder.write("tokenizer.model", sentencepiece());
      const Blob original = torch_file(original_tensors(s, merged), zip64);
      const std::string file = folder.file("consolidated.00.pth");
      folder.write("consolidated.00.pth", original);
      REQUIRE(mixtral::open_model(folder.path().c_str()));
      const std::size_t pickle = find(original, "\x80\x02"),
                        pickle_end = find(original, "u.PK") + 2;
      const std::size_t directory = find(original, "PK\x01\x02");
      Damage damage(merged ? 1 : 2);
      Outcomes outcomes;
      for (int round = 0; round < 900; ++round) {
        std::size_t begin = 0, end = original.size();
        if (round % 4 < 2) begin = pickle, end = pickle_end;
        if (round % 4 == 2) begin = directory;
        folder.write("consolidated.00.pth", damage.of(original, begin, end));
        open_and_use(folder.path(), round % 3 == 0, outcomes);
      }
      CHECK(outcomes.n_errors > 300);
      CHECK(outcomes.n_used > 100);
      CHECK(outcomes.n_evaluated > 30);
    }
  }
}

TEST_CASE("damaged files: safetensors and the JSON files beside them") {
  const Synthetic s = tiny();
  const auto tensors = huggingface_tensors(s);
  const std::vector<std::pair<std::string, Blob>> files = {
      {"config.json", to_blob(huggingface_config(s).dump())},
      {"tokenizer.json", to_blob(tiny_tokenizer(s).dump())},
      {"tokenizer_config.json",
       to_blob(R"({"add_bos_token":true,"chat_template":"[INST]",)"
               R"("added_tokens_decoder":{"2":{"content":"</s>","special":true}}})")},
      {"model.safetensors.index.json",
       [&] {
         nlohmann::json map;
         for (const auto& t : tensors) map[t.name] = "model.safetensors";
         return to_blob(nlohmann::json{{"weight_map", map}}.dump());
       }()},
      {"model.safetensors", safetensors(tensors)},
  };
  const TemporaryFolder folder;
  for (const auto& [name, bytes] : files) folder.write(name, bytes);
  REQUIRE(mixtral::open_model(folder.path().c_str()));
  Damage damage(3);
  for (const auto& file : files) {
    const std::string& name = file.first;
    const Blob& original = file.second;
    CAPTURE(name);
    const bool is_json = name != "model.safetensors";
    const std::size_t end = is_json ? original.size() : find(original, "}}") + 2;
    Outcomes outcomes;
    for (int round = 0; round < (is_json ? 800 : 2000); ++round) {
      // Of safetensors, the header gets most of the attention.
      const bool anywhere = is_json || round % 8 == 0;
      folder.write(name, damage.of(original, 0, anywhere ? original.size() : end));
      open_and_use(folder.path(), is_json || round % 3 == 0, outcomes);
    }
    folder.write(name, original);
    CHECK(outcomes.n_errors > 50);
    CHECK(outcomes.n_used > 12);
    CHECK(outcomes.n_evaluated > 4);
  }
}

TEST_CASE("damaged files: params.json of each dialect") {
  const Synthetic s = tiny();
  const TemporaryFolder folder;
  folder.write("tokenizer.model", sentencepiece());
  folder.write("consolidated.safetensors", safetensors(original_tensors(s, false)));
  const Blob original = to_blob(params_json(s).dump());
  Damage damage(4);
  Outcomes outcomes;
  for (int round = 0; round < 600; ++round) {
    folder.write("params.json", damage.of(original));
    open_and_use(folder.path(), round % 3 == 0, outcomes);
  }
  CHECK(outcomes.n_errors > 100);
  CHECK(outcomes.n_used > 50);
  CHECK(outcomes.n_evaluated > 10);
}

TEST_CASE("damaged files: tokenizer.json and tokenizer.model alone") {
  Damage damage(5);
  Outcomes outcomes;
  const Blob json = to_blob(tiny_tokenizer(tiny()).dump());
  for (int round = 0; round < 1500; ++round) {
    // Of the pieces, most are bytes; what is around them gets most of the attention.
    const std::size_t vocab = find(json, "\"vocab\"");
    const Blob file = round % 4 == 0 ? damage.of(json) : damage.of(json, 0, vocab);
    const auto vocabulary =
        mixtral::read_tokenizer_json(bytes(file), std::pmr::get_default_resource());
    if (!vocabulary) {
      outcomes.refuse(vocabulary.error());
      continue;
    }
    const auto tokenizer =
        mixtral::Tokenizer::create(*vocabulary, std::pmr::get_default_resource());
    if (!tokenizer) {
      outcomes.refuse(tokenizer.error());
      continue;
    }
    ++outcomes.n_used;
    use(*tokenizer);
  }
  CHECK(outcomes.n_errors > 500);
  CHECK(outcomes.n_used > 50);

  outcomes = {};
  const Blob model = sentencepiece();
  for (int round = 0; round < 4000; ++round) {
    const Blob file =
        round % 4 == 0 ? damage.of(model, model.size() - 80, model.size()) : damage.of(model);
    const auto tokenizer = mixtral::Tokenizer::from_sentencepiece(bytes(file));
    if (!tokenizer) {
      outcomes.refuse(tokenizer.error());
      continue;
    }
    ++outcomes.n_used;
    use(*tokenizer);
  }
  CHECK(outcomes.n_errors > 1000);
  CHECK(outcomes.n_used > 500);
}

TEST_CASE("damaged files: importance, which then weighs what a model is quantised with") {
  Synthetic s = tiny();
  s.dim = s.hidden_dim = 32;
  s.head_size = 16;
  s.randomize(2);
  const Blob model_file = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(model_file);
  mixtral::Importance gathered(checkpoint.config);
  {
    const mixtral::Model model = support::open(model_file);
    mixtral::Session session = support::session(model, 16);
    for (const Token token : {1, 40, 0}) REQUIRE(session.append(token));
    REQUIRE(session.evaluate(&gathered));
  }
  const auto bytes_of = value(gathered.to_gguf());
  const Blob original(bytes_of.begin(), bytes_of.end());
  // The directory ends where the sums of the first tensor begin.
  const auto directory =
      value(mixtral::gguf::File::parse(bytes(original), std::pmr::get_default_resource()));
  std::size_t data_begin = original.size();
  for (const auto& tensor : directory.tensors()) {
    data_begin = std::min(data_begin, static_cast<std::size_t>(tensor.data - original.data()));
  }
  mixtral::QuantizeOptions options = type("Q4_0");
  options.pure = true;
  Damage damage(6);
  Outcomes outcomes;
  for (int round = 0; round < 4000; ++round) {
    const Blob file = damage.of(original, 0, round % 4 == 0 ? original.size() : data_begin);
    const auto importance = mixtral::Importance::read(bytes(file), checkpoint.config);
    if (!importance) {
      outcomes.refuse(importance.error());
      continue;
    }
    ++outcomes.n_used;
    bool finite = true;
    std::vector<float> columns(32);
    for (const mixtral::NamedTensor& tensor : checkpoint.tensors) {
      if (!importance->find(tensor.role, tensor.layer, tensor.expert, 32, columns.data())) continue;
      for (const float x : columns) finite = finite && std::isfinite(x) && x >= 0.0f;
    }
    CHECK(finite);
    const bool written = static_cast<bool>(importance->to_gguf());
    CHECK(written);
    if (round % 16 != 0) continue;
    options.importance = &*importance;
    MemorySink sink;
    if (mixtral::write_gguf(checkpoint, options, sink)) {
      const bool opens =
          static_cast<bool>(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(sink.file))));
      CHECK(opens);
      ++outcomes.n_evaluated;
    }
  }
  CHECK(outcomes.n_errors > 1000);
  CHECK(outcomes.n_used > 500);
  CHECK(outcomes.n_evaluated > 20);
}
