// Files of every kind with thousands of small damages: each is refused with an error, or opens, and then all
// that it gives can be used. The sanitizers see what reads or writes where it should not.
#include <mixtral/checkpoints.hpp>
#include <mixtral/quantize.hpp>

#include "model_files.hpp"

using namespace support;
using mixtral::Token;

namespace {

// Fewer with a sanitizer, under which each takes several times as long.
constexpr int rounds(int n) { return kSanitized ? n / 2 : n; }

// Damages copies of a file, the same ones in every run. `places` are where bytes are likely to be
// changed: those of headers and directories, since most other bytes are numbers of a tensor, all of which are
// as good as any other.
class Damage {
 public:
  Damage(Blob original, std::vector<std::size_t> places, unsigned seed)
      : original_(std::move(original)), places_(std::move(places)), random_(seed) {
    REQUIRE(!places_.empty());
  }

  Blob next() {
    Blob file = original_;
    switch (random_() % 16) {
      case 0: file.resize(random_() % 4 == 0 ? below(file.size()) : place()); break;
      case 1: repeat(file); break;
      case 2: erase(file); break;
      case 3: splice(file); break;
      case 4: set_number<std::uint64_t>(file); break;
      case 5: set_number<std::uint32_t>(file); break;
      case 6: set_number<std::uint16_t>(file); break;
      default:
        for (std::size_t n = 1 + below(2) * below(4); n > 0; --n) set_byte(file);
    }
    return file;
  }

  // A number of 0 <= i < n.
  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

 private:
  std::size_t place() { return places_[below(places_.size())]; }
  std::size_t length() { return 1 + below(below(4) == 0 ? 400 : 16); }

  void set_byte(Blob& file) {
    std::uint8_t& byte = file[place()];
    static constexpr std::uint8_t kExtreme[] = {0, 1, 0x7f, 0x80, 0xff};
    switch (below(4)) {
      case 0: byte = kExtreme[below(5)]; break;
      case 1: ++byte; break;
      case 2: --byte; break;
      default: byte = static_cast<std::uint8_t>(random_());
    }
  }
  // A number at its limits, or one more or less than was there.
  template <class T>
  void set_number(Blob& file) {
    const std::size_t at = std::min(place(), file.size() - sizeof(T));
    T number;
    std::memcpy(&number, file.data() + at, sizeof number);
    const T limits[] = {T(0),
                        T(1),
                        T(~T(0)),
                        T(~T(0) >> 1),
                        T(T(1) << (sizeof(T) * 8 - 1)),
                        T(number + 1),
                        T(number - 1),
                        T(number * 2),
                        T(number / 2),
                        T(file.size()),
                        T(file.size() - at)};
    number = limits[below(std::size(limits))];
    std::memcpy(file.data() + at, &number, sizeof number);
  }
  void repeat(Blob& file) {
    const std::size_t at = place();
    const std::size_t n = std::min(length(), file.size() - at);
    const Blob part(file.begin() + difference(at), file.begin() + difference(at + n));
    file.insert(file.begin() + difference(at), part.begin(), part.end());
  }
  void erase(Blob& file) {
    const std::size_t at = place();
    const std::size_t n = std::min(length(), file.size() - at);
    file.erase(file.begin() + difference(at), file.begin() + difference(at + n));
  }
  void splice(Blob& file) {
    const std::size_t from = place(), to = place();
    const std::size_t n = std::min(length(), file.size() - std::max(from, to));
    std::memmove(file.data() + to, file.data() + from, n);
  }
  static std::ptrdiff_t difference(std::size_t n) { return static_cast<std::ptrdiff_t>(n); }

  const Blob original_;
  const std::vector<std::size_t> places_;
  std::mt19937 random_;
};

std::vector<std::size_t> places_up_to(std::size_t end, std::size_t begin = 0) {
  std::vector<std::size_t> places;
  for (std::size_t i = begin; i < end; ++i) places.push_back(i);
  return places;
}

// All places but those of the tensors' numbers, which follow each other in this order.
std::vector<std::size_t> places_outside(const Blob& file, const std::vector<FloatTensor>& tensors) {
  std::vector<std::size_t> places;
  auto end = file.begin();
  for (const FloatTensor& tensor : tensors) {
    const Blob data = tensor.bytes();
    const auto at = std::search(end, file.end(), data.begin(), data.end());
    REQUIRE(at != file.end());
    for (; end != at; ++end) places.push_back(static_cast<std::size_t>(end - file.begin()));
    end = at + static_cast<std::ptrdiff_t>(data.size());
  }
  for (; end != file.end(); ++end) places.push_back(static_cast<std::size_t>(end - file.begin()));
  return places;
}

// JSON with one value changed, left out or put elsewhere.
nlohmann::json damaged(const nlohmann::json& original, Damage& damage) {
  nlohmann::json json = original;
  nlohmann::json* value = &json;
  for (int depth = 0; depth < 6; ++depth) {
    if (!value->is_structured() || value->empty() || (depth > 0 && damage.below(5) == 0)) break;
    const auto child = std::next(value->begin(), static_cast<long>(damage.below(value->size())));
    if (damage.below(12) == 0) {
      value->erase(child);
      return json;
    }
    value = &*child;
  }
  const nlohmann::json others[] = {nullptr,
                                   true,
                                   0,
                                   1,
                                   -1,
                                   3,
                                   300,
                                   4294967295u,
                                   4294967296u,
                                   18446744073709551615u,
                                   0.5,
                                   1e300,
                                   "",
                                   "x",
                                   nlohmann::json::array(),
                                   nlohmann::json::object(),
                                   {1, 2},
                                   {{"a", 1}}};
  if (value->is_number_integer() && damage.below(2) == 0) {
    *value = value->get<std::int64_t>() + (damage.below(2) == 0 ? 1 : -1);
  } else if (value->is_array() && !value->empty() && damage.below(2) == 0) {
    value->push_back((*value)[damage.below(value->size())]);
  } else {
    *value = others[damage.below(std::size(others))];
  }
  return json;
}

// Puts another file in the place of one, which is removed first: some file systems write a file that is
// emptied and filled again to the disk at once, which takes longer than all that is tested here.
void replace(const TemporaryFolder& folder, const std::string& name, const Blob& bytes) {
  std::filesystem::remove(folder.file(name));
  folder.write(name, bytes);
}

Blob blob_of(const nlohmann::json& json) {
  const std::string text = json.dump();
  return Blob(text.begin(), text.end());
}

// How many files were refused, and how many could be used, and how much of them.
struct Tally {
  int n_errors = 0, n_opened = 0, n_evaluated = 0;

  void refused(const mixtral::Error& error) {
    ++n_errors;
    if (std::strlen(error.message()) <= 10)
      FAIL_CHECK("an error that says little: ", error.message());
    if (std::strlen(error.message()) > mixtral::Error::kMaxLength) FAIL_CHECK(error.message());
  }

  // Encodes texts, looks at every piece, decodes every token.
  void use(const mixtral::Tokenizer& tokenizer) {
    for (const char* text :
         {"Once upon a time", " \xE2\x82 [INST]<s>\n", "aaaaaaaaaaaaaaaa  piece261"}) {
      mixtral::EncodeOptions options;
      options.bos = true;
      const auto tokens = tokenizer.encode(text, options);
      if (!tokens) continue;
      bool all_known = true;
      for (const Token token : *tokens) all_known = all_known && tokenizer.contains(token);
      if (!all_known) FAIL_CHECK("a token that is not in the vocabulary");
      if (!tokenizer.decode({tokens->data(), tokens->size()})) FAIL_CHECK("tokens without a text");
    }
    std::vector<Token> all;
    for (std::size_t i = 0; i < tokenizer.size(); ++i) all.push_back(static_cast<Token>(i));
    std::size_t length = 0;
    for (const Token token : all) length += tokenizer.piece(token).text.size();
    const auto text = tokenizer.decode(span(all));
    if (text && length > 0) sum = sum + (text->empty() ? 0.0f : static_cast<float>(text->back()));
  }

  // Decodes every row, opens the model, evaluates some tokens with it.
  void use(mixtral::Result<mixtral::Checkpoint> checkpoint) {
    if (!checkpoint) return refused(checkpoint.error());
    const auto* kernels = mixtral::simd::select_kernels();
    std::vector<float> row;
    for (const mixtral::NamedTensor& tensor : checkpoint->tensors) {
      // A name must be readable, too.
      for (const char c : tensor.name) sum = sum + static_cast<float>(c);
      row.resize(tensor.matrix.cols);
      for (std::size_t r = 0; r < tensor.matrix.rows; ++r) {
        if (tensor.matrix.transposed) break;  // which is for copy_weights to undo
        kernels->decode_rows(tensor.matrix, r, 1, row.data());
        sum = sum + row.back();
      }
    }
    mixtral::ModelOptions options;
    options.copy_weights = (n_errors + n_opened) % 4 == 0;
    const auto model = mixtral::Model::from_checkpoint(*std::move(checkpoint), options);
    if (!model) return refused(model.error());
    use(*model);
  }

  void use(const mixtral::Model& model) {
    ++n_opened;
    use(model.tokenizer());
    sum = sum + static_cast<float>(model.n_parameters() + model.weight_bytes());
    mixtral::SessionOptions options;
    options.context = std::min(model.config().context_length, 8u);
    options.batch = 4;
    const auto needed = mixtral::Session::memory_needed(model, options);
    if (!needed || *needed > std::size_t{1} << 26) return;
    auto session = mixtral::Session::open(model, options);
    if (!session) return refused(session.error());
    for (const Token token : {1, 0, 200, 7, 258}) static_cast<void>(session->append(token));
    if (!session->evaluate()) return;
    ++n_evaluated;
    if (session->logits().size() != model.config().vocab_size) FAIL_CHECK("logits of another size");
    sum = sum + session->logits()[0];
  }

  volatile float sum = 0.0f;  // what is read must not be left out
};

Synthetic tiny() {
  Synthetic s;
  s.dim = 8;
  s.n_layers = 1;
  s.n_heads = 2;
  s.n_kv_heads = 1;
  s.head_size = 4;
  s.hidden_dim = 8;
  s.n_experts = 2;
  s.vocab_size = 262;
  s.randomize(1);
  return s;
}

std::size_t data_begin(const Blob& file) {
  const auto directory =
      value(mixtral::gguf::File::parse(bytes(file), std::pmr::get_default_resource()));
  std::size_t begin = file.size();
  for (const auto& tensor : directory.tensors()) {
    begin = std::min(begin, static_cast<std::size_t>(tensor.data - file.data()));
  }
  return begin;
}

// The metadata up to the vocabulary, and the tensor directory, all of them; a few of the vocabulary between,
// which is long, and its bytes much alike, and of the tensors' numbers, of which some become infinite or NaN.
std::vector<std::size_t> places_of_gguf(const Blob& file, std::size_t n_directory) {
  std::vector<std::size_t> places = places_up_to(700);
  const std::size_t end = data_begin(file);
  const std::size_t begin = end - n_directory;
  for (std::size_t i = 0; i < 500; ++i) places.push_back(700 + i * (begin - 700) / 500);
  for (std::size_t i = begin; i < end; ++i) places.push_back(i);
  for (std::size_t i = 0; i < 800; ++i) places.push_back(end + i * (file.size() - end) / 800);
  return places;
}

mixtral::Result<mixtral::Checkpoint> read_gguf(const Blob& file) {
  mixtral::Bytes all = owned(file);
  return mixtral::read_gguf({&all, 1}, std::pmr::get_default_resource());
}

}  // namespace

TEST_CASE("damaged files: GGUF with matrices of many formats") {
  Synthetic s = tiny();
  s.dim = s.hidden_dim = 32;
  s.head_size = 16;
  s.vocab_size = 262;
  for (const bool merged : {true, false}) {
    CAPTURE(merged);
    s.merged_experts = merged;
    s.randomize(1);
    GgufWriter writer = s.writer();
    std::mt19937 random(1);
    std::size_t i = 0;
    for (auto& tensor : writer.tensors) {
      const auto& entry = mixtral::detail::kBlockFormats[i++ % 8];
      if (tensor.shape.size() == 1 || entry.info.block_size > 32) continue;
      tensor.type = static_cast<std::uint32_t>(entry.format);
      tensor.data.resize(tensor.data.size() / 4 / entry.info.block_size * entry.info.block_bytes);
      // Small bytes make small scales.
      for (auto& byte : tensor.data) byte = static_cast<std::uint8_t>(random() & 0x1f);
    }
    const Blob file = writer.finish();
    Damage damage(file, places_of_gguf(file, 1000), 99);
    Tally tally;
    for (int round = 0; round < rounds(2500); ++round) tally.use(read_gguf(damage.next()));
    CHECK(tally.n_errors > rounds(400));
    CHECK(tally.n_evaluated > rounds(200));
  }
}

TEST_CASE("damaged files: the bundled model") {
  const Blob file = read_file(bundled_model());
  Damage damage(file, places_of_gguf(file, 4000), 99);
  Tally tally;
  for (int round = 0; round < rounds(400); ++round) {
    const Blob other = damage.next();
    const auto model = mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(other)));
    if (!model) {
      tally.refused(model.error());
    } else {
      tally.use(*model);
    }
  }
  CHECK(tally.n_errors > rounds(100));
  CHECK(tally.n_evaluated > rounds(50));
}

TEST_CASE("damaged files: PyTorch archives") {
  const Synthetic s = tiny();
  const TemporaryFolder folder;
  folder.write("params.json", params_json(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  for (const bool merged : {false, true}) {
    CAPTURE(merged);
    const auto tensors = original_tensors(s, merged);
    const Blob file = torch_file(tensors, merged);
    Damage damage(file, places_outside(file, tensors), 7);
    Tally tally;
    for (int round = 0; round < rounds(800); ++round) {
      replace(folder, "consolidated.00.pth", damage.next());
      tally.use(mixtral::open_checkpoint(folder.path().c_str()));
    }
    CHECK(tally.n_errors > rounds(200));
    CHECK(tally.n_evaluated > rounds(100));
  }
}

TEST_CASE("damaged files: safetensors, in bytes and in values of the header") {
  const Synthetic s = tiny();
  const TemporaryFolder folder;
  folder.write("config.json", huggingface_config(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  const Blob file = safetensors(huggingface_tensors(s));
  std::uint64_t length;
  std::memcpy(&length, file.data(), 8);
  const std::size_t begin = 8 + static_cast<std::size_t>(length);
  const auto header =
      nlohmann::json::parse(file.begin() + 8, file.begin() + static_cast<long>(begin));
  const Blob data(file.begin() + static_cast<long>(begin), file.end());
  // Nearly every other byte of the header is refused, but no number of a tensor.
  auto places = places_up_to(begin);
  for (std::size_t i = begin; i < file.size(); i += 16) places.push_back(i);
  Damage damage(file, places, 5);
  Tally tally;
  for (int round = 0; round < rounds(1000); ++round) {
    replace(folder, "model.safetensors",
            round % 2 == 0 ? damage.next() : safetensors(damaged(header, damage).dump(), data));
    tally.use(mixtral::open_checkpoint(folder.path().c_str()));
  }
  CHECK(tally.n_errors > rounds(300));
  CHECK(tally.n_evaluated > rounds(20));
}

TEST_CASE("damaged files: config.json and params.json") {
  const Synthetic s = tiny();
  for (const bool original : {false, true}) {
    CAPTURE(original);
    const TemporaryFolder folder;
    folder.write("tokenizer.json", tokenizer_json(s).dump());
    const char* name = original ? "params.json" : "config.json";
    folder.write(original ? "consolidated.safetensors" : "model.safetensors",
                 safetensors(original ? original_tensors(s, false) : huggingface_tensors(s)));
    const nlohmann::json json = original ? params_json(s) : huggingface_config(s);
    const std::string text = json.dump();
    Damage damage(Blob(text.begin(), text.end()), places_up_to(text.size()), 3);
    Tally tally;
    for (int round = 0; round < rounds(400); ++round) {
      replace(folder, name, round % 2 == 0 ? damage.next() : blob_of(damaged(json, damage)));
      tally.use(mixtral::open_checkpoint(folder.path().c_str()));
    }
    CHECK(tally.n_errors > rounds(100));
    CHECK(tally.n_evaluated > rounds(20));
  }
}

TEST_CASE("damaged files: tokenizer.json") {
  auto json = tokenizer_json(tiny());
  for (const char* piece : {"\xE2\x96\x81", "a", "aa", "aaa"}) {
    json["model"]["vocab"][piece] = json["model"]["vocab"].size();
  }
  json["model"]["merges"] = {"a a", "aa a", "a aa"};
  auto newer = json;
  newer["normalizer"] = nullptr;
  newer["pre_tokenizer"] = {{"type", "Metaspace"},
                            {"replacement", "\xE2\x96\x81"},
                            {"prepend_scheme", "first"},
                            {"split", false}};
  newer["model"]["merges"] = nlohmann::json::array();
  for (const auto& [left, right] : {std::pair("a", "a"), {"aa", "a"}, {"a", "aa"}}) {
    newer["model"]["merges"].push_back(nlohmann::json::array({left, right}));
  }
  std::pmr::memory_resource* memory = std::pmr::get_default_resource();
  for (const auto& good : {json, newer}) {
    const std::string text = good.dump();
    Damage damage(Blob(text.begin(), text.end()), places_up_to(text.size()), 11);
    Tally tally;
    int n_used = 0;
    for (int round = 0; round < rounds(800); ++round) {
      const Blob file = round % 2 == 0 ? damage.next() : blob_of(damaged(good, damage));
      // In memory of exactly its size.
      const mixtral::Bytes exact = owned(file.empty() ? Blob(1) : file);
      const auto vocabulary = mixtral::read_tokenizer_json({exact.data(), file.size()}, memory);
      if (!vocabulary) {
        tally.refused(vocabulary.error());
        continue;
      }
      const auto tokenizer = mixtral::Tokenizer::create(*vocabulary, memory);
      if (!tokenizer) {
        tally.refused(tokenizer.error());
        continue;
      }
      tally.use(*tokenizer);
      ++n_used;
    }
    CHECK(tally.n_errors > rounds(200));
    CHECK(n_used > rounds(50));
  }
}

TEST_CASE("damaged files: tokenizer.model of SentencePiece") {
  const Blob good = sentencepiece();
  // The first pieces and all after those of bytes, and a few of these.
  std::vector<std::size_t> places = places_up_to(100);
  for (std::size_t i = 100; i + 160 < good.size(); i += 7) places.push_back(i);
  for (std::size_t i = good.size() - 160; i < good.size(); ++i) places.push_back(i);
  Damage damage(good, places, 13);
  Tally tally;
  int n_used = 0;
  for (int round = 0; round < rounds(3000); ++round) {
    const Blob file = damage.next();
    const mixtral::Bytes exact = owned(file.empty() ? Blob(1) : file);
    const auto tokenizer = mixtral::Tokenizer::from_sentencepiece({exact.data(), file.size()});
    if (!tokenizer) {
      tally.refused(tokenizer.error());
      continue;
    }
    tally.use(*tokenizer);
    ++n_used;
  }
  CHECK(tally.n_errors > rounds(800));
  CHECK(n_used > rounds(300));
}

TEST_CASE("damaged files: importance") {
  mixtral::Config config;
  config.n_experts = 2;
  GgufWriter writer;
  writer.string("general.type", "imatrix");
  for (const char* of : {"blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight", "output.weight"}) {
    const std::string name = of;
    const std::uint64_t n = name.find("exps") == std::string::npos ? 1 : 2;
    GgufWriter::Tensor sums{name + ".in_sum2", {32, n}, 0, {}};
    for (std::uint64_t i = 0; i < 32 * n; ++i)
      GgufWriter::put(static_cast<float>(i + 1), sums.data);
    writer.tensors.push_back(sums);
    writer.tensors.push_back({name + ".counts", {1, n}, 0, Blob(4 * n, 0x3f)});
  }
  const Blob good = writer.finish();
  // The counts and sums are few enough to be damaged, too.
  Damage damage(good, places_up_to(good.size()), 17);
  Tally tally;
  int n_used = 0;
  std::vector<float> weights(32), row(32);
  for (std::size_t i = 0; i < 32; ++i) row[i] = std::sin(static_cast<float>(i));
  std::uint8_t block[64];
  for (int round = 0; round < rounds(3000); ++round) {
    const Blob file = damage.next();
    const mixtral::Bytes exact = owned(file.empty() ? Blob(1) : file);
    const auto importance = mixtral::Importance::read({exact.data(), file.size()}, config);
    if (!importance) {
      tally.refused(importance.error());
      continue;
    }
    ++n_used;
    for (int role = 0; role <= static_cast<int>(mixtral::Role::w3); ++role) {
      for (std::uint32_t expert = 0; expert < 3; ++expert) {
        if (!importance->find(static_cast<mixtral::Role>(role), 0, expert, 32, weights.data()))
          continue;
        bool good_numbers = true;
        for (const float w : weights) good_numbers = good_numbers && w >= 0.0f && std::isfinite(w);
        if (!good_numbers) FAIL_CHECK("importance that is no mean square");
        static_cast<void>(mixtral::encode_rows(mixtral::BlockFormat::q4_0, row.data(), 1, 32,
                                               {weights.data(), 32}, block));
      }
    }
    const auto written = importance->to_gguf();
    if (!written) {
      tally.refused(written.error());
      continue;
    }
    if (!mixtral::Importance::read({written->data(), written->size()}, config)) {
      FAIL_CHECK("importance that was written is not read");
    }
  }
  CHECK(tally.n_errors > rounds(800));
  CHECK(n_used > rounds(300));
}
