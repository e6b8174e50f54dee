// The fuzz targets, one for each parser of files: every input gives an error or something that can be
// used. Compiled once, beside the kernels; entry.cpp makes a program of each.
#define MIXTRAL_IMPLEMENTATION_REST
#include <mixtral/checkpoints.hpp>
#include <mixtral/json_schema.hpp>
#include <mixtral/mixtral.hpp>
#include <mixtral/quantize.hpp>
#include <mixtral/tools.hpp>

#include <cstdlib>

namespace fuzz {

// Reads every byte that tensors claim to have; the sanitizers see if one is not there.
void touch(const mixtral::Result<mixtral::detail::StoredTensors>& tensors) {
  if (!tensors) return;
  volatile std::uint8_t sum = 0;
  for (const auto& tensor : *tensors) {
    for (std::uint64_t i = 0; i < tensor.bytes; i += 61) sum = sum ^ tensor.data[i];
    if (tensor.bytes != 0) sum = sum ^ tensor.data[tensor.bytes - 1];
    static_cast<void>(mixtral::detail::matrix_of(tensor, 2));
  }
}

// Encodes texts and decodes the tokens; ids must be in the vocabulary.
void use(const mixtral::Result<mixtral::Tokenizer>& tokenizer) {
  if (!tokenizer) return;
  for (const char* text : {"Once upon a time", " \xE2\x82 [INST]<s>\n", "aaaaaaaaaaaaaaaa"}) {
    const auto tokens = tokenizer->encode(text);
    if (!tokens) continue;
    for (const mixtral::Token token : *tokens) {
      if (!tokenizer->contains(token)) std::abort();
    }
    if (!tokenizer->decode({tokens->data(), tokens->size()})) std::abort();
  }
}

void check(const mixtral::Config& config) {
  const bool sane = config.n_heads % config.n_kv_heads == 0 && config.head_size % 2 == 0 &&
                    config.n_experts_used <= config.n_experts && config.n_experts_used > 0;
  if (!sane) std::abort();
}

// A GGUF file: opened, and if that works, run on a few tokens. Or one of importance.
int gguf(const std::uint8_t* data, std::size_t size) {
  mixtral::Config config;
  config.n_experts = 8;
  static_cast<void>(mixtral::Importance::read({data, size}, config));
  const auto model = mixtral::Model::from_bytes(mixtral::Bytes::view({data, size}));
  if (!model || model->weight_bytes() > (1u << 20)) return 0;
  mixtral::SessionOptions options;
  options.context = std::min(model->config().context_length, 8u);
  options.batch = 4;
  const auto needed = mixtral::Session::memory_needed(*model, options);
  if (!needed || *needed > (1u << 26)) return 0;
  auto session = mixtral::Session::open(*model, options);
  if (session && session->append(mixtral::Token{1}) && session->append(mixtral::Token{0})) {
    static_cast<void>(session->evaluate());
  }
  return 0;
}

// Numbers as every block format: what is not refused comes out finite.
int encode(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kCols = 256;
  float row[kCols] = {};
  float importance[kCols] = {};
  float decoded[kCols];
  std::memcpy(row, data, std::min(size, sizeof row));
  if (size > sizeof row) {
    std::memcpy(importance, data + sizeof row, std::min(size - sizeof row, sizeof importance));
  }
  std::uint8_t block[kCols * 4];
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const mixtral::Span<const float> weights(importance, size > sizeof row ? kCols : 0);
    if (!mixtral::encode_rows(entry.format, row, 1, kCols, weights, block)) continue;
    mixtral::simd::Matrix matrix;
    matrix.data = block;
    matrix.row_bytes = kCols / entry.info.block_size * entry.info.block_bytes;
    matrix.rows = 1;
    matrix.cols = kCols;
    matrix.format = entry.format;
    mixtral::simd::select_kernels()->decode_rows(matrix, 0, 1, decoded);
    for (const float x : decoded) {
      if (!std::isfinite(x)) std::abort();
    }
  }
  return 0;
}

// The directory of a safetensors file; every byte of every tensor must be there.
int safetensors(const std::uint8_t* data, std::size_t size) {
  touch(mixtral::detail::read_safetensors({data, size}, "fuzz", std::pmr::get_default_resource()));
  return 0;
}

// A file of torch.save(): zip archive and pickle; every byte of every tensor must be there.
int torch_file(const std::uint8_t* data, std::size_t size) {
  touch(mixtral::detail::read_torch_file({data, size}, "fuzz", std::pmr::get_default_resource()));
  return 0;
}

// config.json and params.json; what is accepted must be in bounds.
int json_config(const std::uint8_t* data, std::size_t size) {
  const auto json = mixtral::detail::parse_json({data, size}, "fuzz");
  if (!json) return 0;
  mixtral::Config huggingface, original;
  if (mixtral::detail::read_huggingface_config(*json, huggingface) &&
      mixtral::check_config(huggingface, "fuzz")) {
    check(huggingface);
  }
  if (mixtral::detail::read_params(*json, original) && mixtral::check_config(original, "fuzz")) {
    check(original);
  }
  return 0;
}

// A tokenizer.model file: read, and if that works, used.
int sentencepiece(const std::uint8_t* data, std::size_t size) {
  use(mixtral::Tokenizer::from_sentencepiece({data, size}));
  return 0;
}

// A tokenizer.json file: read, and if that works, used.
int tokenizer_json(const std::uint8_t* data, std::size_t size) {
  std::pmr::memory_resource* resource = std::pmr::get_default_resource();
  const auto vocabulary = mixtral::read_tokenizer_json({data, size}, resource);
  if (vocabulary) use(mixtral::Tokenizer::create(*vocabulary, resource));
  return 0;
}

namespace {

// A model of zeros whose tokens are single bytes, for what needs a vocabulary.
mixtral::Model model_of_bytes(std::uint32_t sliding_window = 0) {
  static char names[256][8];
  static const float zeros[259 * 2] = {};
  mixtral::Checkpoint checkpoint(std::pmr::get_default_resource());
  auto& pieces = checkpoint.vocabulary.pieces;
  pieces.push_back({"<unk>", 0.0f, mixtral::PieceType::unknown});
  pieces.push_back({"<s>", 0.0f, mixtral::PieceType::control});
  pieces.push_back({"</s>", 0.0f, mixtral::PieceType::control});
  for (unsigned b = 0; b < 256; ++b) {
    std::snprintf(names[b], sizeof names[b], "<0x%02X>", b);
    pieces.push_back({names[b], 0.0f, mixtral::PieceType::byte});
  }
  mixtral::Config& config = checkpoint.config;
  config.dim = config.hidden_dim = config.head_size = 2;
  config.n_layers = config.n_heads = config.n_kv_heads = 1;
  config.vocab_size = 259;
  config.context_length = 256;
  config.sliding_window = sliding_window;
  using mixtral::Role;
  for (const Role role :
       {Role::token_embedding, Role::output, Role::output_norm, Role::attention_norm, Role::wq,
        Role::wk, Role::wv, Role::wo, Role::ffn_norm, Role::w1, Role::w2, Role::w3}) {
    const bool is_vector =
        role == Role::output_norm || role == Role::attention_norm || role == Role::ffn_norm;
    const bool is_of_words = role == Role::token_embedding || role == Role::output;
    mixtral::NamedTensor tensor{role, 0, 0, {}, "zeros"};
    tensor.matrix.data = reinterpret_cast<const std::uint8_t*>(zeros);
    tensor.matrix.rows = is_vector ? 1 : is_of_words ? 259 : 2;
    tensor.matrix.cols = 2;
    tensor.matrix.row_bytes = 2 * sizeof(float);
    checkpoint.tensors.push_back(tensor);
  }
  auto model = mixtral::Model::from_checkpoint(std::move(checkpoint));
  if (!model) std::abort();
  return *std::move(model);
}

// Gives the bytes of a saved session with checksums that are right: a header, of which the input has the part
// that sessions differ in, then what the input has, then zeros.
class SnapshotBytes {
 public:
  SnapshotBytes(const mixtral::detail::SnapshotHeader& good, const std::uint8_t* data,
                std::size_t size, std::size_t n_streams)
      : data_(data), size_(size), n_streams_(n_streams) {
    take(&header_, sizeof header_);
    std::memcpy(header_.magic, good.magic, sizeof header_.magic);
    header_.version = good.version;
    header_.kv_format = good.kv_format;
    header_.model = good.model;
    header_.checksum = header_.sum();
  }

  bool read(void* to, std::size_t size) {
    ++n_reads_;
    if (n_reads_ == 1) {
      std::memcpy(to, &header_, size);
    } else if (n_reads_ == n_reads()) {
      const std::uint64_t sum = sum_.value();
      std::memcpy(to, &sum, size);
    } else {
      take(to, size);
      sum_.add(to, size);
    }
    return true;
  }

 private:
  // The header, the tokens, the turns, the rows of each page, the logits and the checksum.
  std::uint64_t n_reads() const {
    const std::size_t end = mixtral::detail::KvPages::n_needed(header_.n_evaluated);
    const std::size_t n_pages = end - std::min<std::size_t>(end, header_.first_page);
    return 3 + n_pages * n_streams_ + (header_.has_logits != 0 ? 1 : 0) + 1;
  }
  void take(void* to, std::size_t size) {
    const std::size_t n = std::min(size, size_);
    std::memset(to, 0, size);
    if (n != 0) std::memcpy(to, data_, n);
    data_ += n;
    size_ -= n;
  }

  const std::uint8_t* data_;
  std::size_t size_, n_streams_;
  mixtral::detail::SnapshotHeader header_;
  mixtral::detail::Checksum sum_;
  std::uint64_t n_reads_ = 0;
};

}  // namespace

// One byte whose bits choose a window and a kv_format, then a saved session, whose checksums are put right.
// What is loaded is saved again, the same, and used.
int session(const std::uint8_t* data, std::size_t size) {
  using mixtral::Session;
  if (size == 0) return 0;
  static const mixtral::Model models[] = {model_of_bytes(0), model_of_bytes(3)};
  const mixtral::Model& model = models[data[0] & 1];
  mixtral::SessionOptions options;
  options.context = 200;
  options.batch = 32;
  options.kv_format = (data[0] & 2) == 0 ? mixtral::BlockFormat::f32 : mixtral::BlockFormat::bf16;
  options.branches = 2;
  options.kv_tokens = 192;
  auto session = Session::open(model, options);
  if (!session) std::abort();
  std::vector<std::uint8_t> saved, again;
  const auto write = [](std::vector<std::uint8_t>& to) {
    return [&to](const void* from, std::size_t n) {
      const auto* bytes = static_cast<const std::uint8_t*>(from);
      to.insert(to.end(), bytes, bytes + n);
      return true;
    };
  };
  const auto write_saved = write(saved);
  if (!session->save(write_saved)) std::abort();
  mixtral::detail::SnapshotHeader good;
  std::memcpy(&good, saved.data(), sizeof good);
  SnapshotBytes bytes(good, data + 1, size - 1, 2);
  saved.clear();
  const auto read = [&](void* to, std::size_t n) {
    if (!bytes.read(to, n)) return false;
    return write_saved(to, n);
  };
  if (!session->load(read)) {
    if (!session->tokens().empty()) std::abort();
    return 0;
  }
  const auto write_again = write(again);
  if (!session->save(write_again) || again != saved) std::abort();
  const auto fork = session->fork();
  if (!fork) std::abort();
  static_cast<void>(session->evaluate());
  mixtral::GenerateOptions generate;
  generate.max_tokens = 2;
  for (auto generation = session->generate(generate); generation.next();) continue;
  const auto n = static_cast<std::uint32_t>(session->tokens().size());
  static_cast<void>(session->forget_oldest(std::min(n, 5u), n / 3));
  static_cast<void>(session->append(mixtral::Token{70}));
  static_cast<void>(session->evaluate());
  if (!session->rewind(static_cast<std::uint32_t>(session->tokens().size() / 4))) std::abort();
  static_cast<void>(session->evaluate());
  again.clear();
  if (!fork->save(write_again) || again != saved) std::abort();
  return 0;
}

// One byte that says in which language, the text of a grammar up to NUL, and bytes to go on with:
// those that are allowed must be accepted, and no others.
int grammar(const std::uint8_t* data, std::size_t size) {
  static const mixtral::Model model = model_of_bytes();
  if (size < 2) return 0;
  const std::string_view all(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string_view text = all.substr(0, all.find('\0'));
  const auto compile = [&]() -> mixtral::Result<mixtral::Grammar> {
    switch (data[0] % 5) {
      case 0: return mixtral::Grammar::from_gbnf(text);
      case 1: return mixtral::Grammar::from_regex(text);
      case 2: return mixtral::json_schema_grammar(text);
      case 3: return mixtral::json_schema_grammar(text, mixtral::JsonSchemaOptions{true});
      default: break;
    }
    std::vector<std::string_view> lines;  // choices
    for (std::size_t at = 0; at <= text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      lines.push_back(text.substr(at, end - at));
      at = end + 1;
    }
    auto made = mixtral::Grammar::from_choices({lines.data(), lines.size()});
    // Each choice is a text of the grammar.
    if (made && lines.back().size() < 200) {
      auto matcher = mixtral::GrammarMatcher::create(*made, model);
      if (!matcher) std::abort();
      for (const char c : lines.back()) {
        if (!matcher->accept(static_cast<mixtral::Token>(3 + static_cast<std::uint8_t>(c)))) {
          std::abort();
        }
      }
      if (!matcher->can_end()) std::abort();
    }
    return made;
  };
  const auto made = compile();
  if (!made) return 0;
  auto matcher = mixtral::GrammarMatcher::create(*made, model);
  if (!matcher) {
    if (matcher.error().code() != mixtral::ErrorCode::unsupported) std::abort();
    return 0;
  }
  for (std::size_t i = text.size(); i < all.size() && i < text.size() + 200; ++i) {
    const auto allowed = matcher->allowed();
    if (!allowed) return 0;
    // Half of the bytes choose among what is allowed.
    std::size_t token = 3 + static_cast<std::uint8_t>(all[i]);
    const auto is_allowed = [&] { return ((*allowed)[token / 64] >> (token % 64) & 1) != 0; };
    for (int k = 0; i % 2 == 0 && k < 256 && !is_allowed(); ++k) token = 3 + (token - 2) % 256;
    const bool expected = is_allowed();
    const auto accepted = matcher->accept(static_cast<mixtral::Token>(token));
    if (static_cast<bool>(accepted) != expected &&
        accepted.error().code() != mixtral::ErrorCode::unsupported) {
      std::abort();
    }
    if (matcher->must_end() && !matcher->can_end()) std::abort();
  }
  return 0;
}

// JSON of tools. What was read is written, and reads as what it was.
int tools(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto list = mixtral::tool_list(text);
  if (list) {
    const auto again = mixtral::tool_list(*list);
    if (!again || *again != *list) std::abort();
  }
  const mixtral::ToolCall call{std::string(text.substr(0, 40)), std::string(text), "123456789"};
  for (const auto format : {mixtral::ChatFormat::mistral_v2, mixtral::ChatFormat::mistral_v3}) {
    const std::string result = mixtral::tool_result(format, call, text);
    if (mixtral::detail::parse_tool_json(result).is_discarded() &&
        mixtral::json_shape(result).depth <= mixtral::detail::kMaxToolJsonDepth) {
      std::abort();
    }
    static_cast<void>(mixtral::tool_calls(format, {&call, 1}));
  }
  const auto calls = mixtral::parse_tool_calls(text);
  if (calls) {
    const std::string written =
        mixtral::tool_calls(mixtral::ChatFormat::mistral_v3, {calls->data(), calls->size()});
    const auto again = mixtral::parse_tool_calls(written);
    if (!again || again->size() != calls->size()) std::abort();
    for (std::size_t i = 0; i < calls->size(); ++i) {
      if ((*again)[i].arguments != (*calls)[i].arguments) std::abort();
    }
  }
  return 0;
}

}  // namespace fuzz
