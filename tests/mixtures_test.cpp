// Which block format each tensor of a model gets.
#include "written_files.hpp"

#include <optional>
#include <set>
#include <sstream>

using namespace support;
using mixtral::Role;

namespace {

std::string name_of(BlockFormat format) { return mixtral::block_format_info(format)->name; }

// One line of tests/data/mixtures.txt, whose head says where its numbers are from: a model's shape, a
// mixture, and which tensors get something else than the mixture's base.
struct Mixture {
  mixtral::Config config;
  bool tied = false;
  bool is_first_of_model = true;
  std::string name;
  std::vector<bool> importance;                                            // with, without, or both
  std::map<std::string, std::map<std::uint32_t, std::string>> exceptions;  // by tensor and layer
};

// "0-3,6": the layers 0, 1, 2, 3 and 6.
std::vector<std::uint32_t> layers_of(const std::string& text) {
  std::vector<std::uint32_t> layers;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const auto first = static_cast<std::uint32_t>(std::stoul(part));
    const std::size_t dash = part.find('-');
    const auto last = dash == std::string::npos
                          ? first
                          : static_cast<std::uint32_t>(std::stoul(part.substr(dash + 1)));
    for (std::uint32_t l = first; l <= last; ++l) layers.push_back(l);
  }
  return layers;
}

std::vector<Mixture> mixtures_of_llama_cpp() {
  std::ifstream in(source("tests/data/mixtures.txt"));
  REQUIRE(in.good());
  std::vector<Mixture> mixtures;
  Mixture of_model;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word == "model") {
      of_model = {};
      mixtral::Config& config = of_model.config;
      for (std::string key; words >> key;) {
        if (key == "tied") of_model.tied = true;
        if (key == "layers") words >> config.n_layers;
        if (key == "heads") words >> config.n_heads;
        if (key == "kv_heads") words >> config.n_kv_heads;
        if (key == "experts") words >> config.n_experts;
      }
      continue;
    }
    Mixture mixture = of_model;
    mixture.name = word;
    words >> word;
    if (word != "importance") mixture.importance.push_back(false);
    if (word != "plain") mixture.importance.push_back(true);
    while (words >> word) {
      const std::size_t equals = word.find('='), colon = word.find(':');
      auto& of_tensor = mixture.exceptions[word.substr(0, equals)];
      const std::string layers = colon == std::string::npos
                                     ? "0-" + std::to_string(mixture.config.n_layers - 1)
                                     : word.substr(colon + 1);
      for (const std::uint32_t l : layers_of(layers)) {
        of_tensor[l] = word.substr(equals + 1, colon - equals - 1);
      }
    }
    mixtures.push_back(mixture);
    of_model.is_first_of_model = false;
  }
  return mixtures;
}

// A model of any shape whose weights are all the same zeros, so that it takes no memory.
mixtral::Checkpoint empty_model(const mixtral::Config& shape, bool tied, const Blob& zeros) {
  mixtral::Checkpoint checkpoint(std::pmr::get_default_resource());
  mixtral::Config& config = checkpoint.config;
  config = shape;
  config.vocab_size = 259;
  config.context_length = 64;
  mixtral::Vocabulary& vocabulary = checkpoint.vocabulary;
  for (unsigned id = 0; id < config.vocab_size; ++id) {
    char text[16];
    std::snprintf(text, sizeof text, id < 3 ? "<%u>" : "<0x%02X>", id < 3 ? id : id - 3);
    vocabulary.texts.emplace_back(text);
    const auto type = id == 0  ? mixtral::PieceType::unknown
                      : id < 3 ? mixtral::PieceType::control
                               : mixtral::PieceType::byte;
    vocabulary.pieces.push_back({vocabulary.texts.back(), 0.0f, type});
  }
  const auto add = [&](Role role, std::uint32_t layer, std::uint32_t expert, std::size_t rows,
                       std::size_t cols) {
    REQUIRE(rows * cols * 4 + 4 <= zeros.size());
    mixtral::NamedTensor tensor{};
    tensor.role = role;
    tensor.layer = layer;
    tensor.expert = expert;
    tensor.name = mixtral::role_name(role);
    // The output is known to be tied to the embedding by where it lies.
    tensor.matrix.data = zeros.data() + (role == Role::output ? 4 : 0);
    tensor.matrix.rows = rows;
    tensor.matrix.cols = cols;
    tensor.matrix.row_bytes = cols * 4;
    checkpoint.tensors.push_back(tensor);
  };
  add(Role::token_embedding, 0, 0, config.vocab_size, config.dim);
  add(Role::output_norm, 0, 0, 1, config.dim);
  if (!tied) add(Role::output, 0, 0, config.vocab_size, config.dim);
  for (std::uint32_t l = 0; l < config.n_layers; ++l) {
    add(Role::attention_norm, l, 0, 1, config.dim);
    add(Role::wq, l, 0, config.q_dim(), config.dim);
    add(Role::wk, l, 0, config.kv_dim(), config.dim);
    add(Role::wv, l, 0, config.kv_dim(), config.dim);
    add(Role::wo, l, 0, config.dim, config.q_dim());
    add(Role::ffn_norm, l, 0, 1, config.dim);
    if (config.has_router()) add(Role::router, l, 0, config.n_experts, config.dim);
    for (std::uint32_t e = 0; e < config.n_experts; ++e) {
      add(Role::w1, l, e, config.hidden_dim, config.dim);
      add(Role::w2, l, e, config.dim, config.hidden_dim);
      add(Role::w3, l, e, config.hidden_dim, config.dim);
    }
  }
  return checkpoint;
}

const Blob& zeros() {
  static const Blob blob(1 << 20);
  return blob;
}

struct TypedTensor {
  std::string name;
  std::vector<std::uint64_t> shape;
  BlockFormat format;
};

// The tensors that write_gguf() names in the head of the file, of which nothing more is written.
std::vector<TypedTensor> planned(const mixtral::Checkpoint& checkpoint,
                                 const mixtral::QuantizeOptions& options) {
  MemorySink sink;
  sink.most_writes = 1;
  const auto status = mixtral::write_gguf(checkpoint, options, sink);
  REQUIRE(!status);
  REQUIRE(status.error().code() == mixtral::ErrorCode::io);
  const auto number = [&](std::size_t at, int n_bytes) {
    std::uint64_t value = 0;
    for (int i = 0; i < n_bytes; ++i) {
      value |= std::uint64_t{sink.file.at(at + static_cast<std::size_t>(i))} << (8 * i);
    }
    return value;
  };
  // The directory begins with the embedding, eight bytes of its length before it.
  const std::string first = "token_embd.weight";
  auto begin = std::search(sink.file.begin(), sink.file.end(), first.begin(), first.end());
  REQUIRE(begin != sink.file.end());
  auto at = static_cast<std::size_t>(begin - sink.file.begin()) - 8;
  std::vector<TypedTensor> tensors;
  for (std::uint64_t n = number(8, 8); n > 0; --n) {
    TypedTensor tensor;
    const auto length = static_cast<std::size_t>(number(at, 8));
    at += 8;
    const auto* text = reinterpret_cast<const char*>(sink.file.data());
    tensor.name = std::string_view(text, sink.file.size()).substr(at, length);
    at += length;
    const std::uint64_t n_dims = number(at, 4);
    at += 4;
    for (std::uint64_t i = 0; i < n_dims; ++i, at += 8) tensor.shape.push_back(number(at, 8));
    tensor.format = static_cast<BlockFormat>(number(at, 4));
    at += 4 + 8;
    tensors.push_back(tensor);
  }
  return tensors;
}

const std::pair<const char*, Role> kTensors[] = {{"token_embd", Role::token_embedding},
                                                 {"output", Role::output},
                                                 {"attn_q", Role::wq},
                                                 {"attn_k", Role::wk},
                                                 {"attn_v", Role::wv},
                                                 {"attn_output", Role::wo},
                                                 {"ffn_gate", Role::w1},
                                                 {"ffn_down", Role::w2},
                                                 {"ffn_up", Role::w3}};

}  // namespace

TEST_CASE("mixtures: every layer's tensors get the types that llama.cpp gives them") {
  std::set<std::string> seen;
  std::optional<mixtral::Checkpoint> model;
  std::optional<mixtral::Importance> importance;
  const std::vector<float> input(256, 1.0f);
  for (const Mixture& mixture : mixtures_of_llama_cpp()) {
    mixtral::Config config = mixture.config;
    config.dim = config.hidden_dim = 256;
    config.head_size = 64;
    INFO(mixture.name, " of ", config.n_layers, " layers, ", config.n_heads, " / ",
         config.n_kv_heads, " heads, ", config.n_experts, " experts, tied: ", mixture.tied);
    if (mixture.is_first_of_model) {
      model.emplace(empty_model(config, mixture.tied, zeros()));
      importance.emplace(config);
      importance->on_input(Role::wq, 0, 0, {input.data(), input.size()});
    }
    const mixtral::QuantizeOptions plain = type(mixture.name.c_str());
    seen.insert(mixture.name);
    for (const bool with_importance : mixture.importance) {
      CAPTURE(with_importance);
      mixtral::QuantizeOptions options = plain;
      if (with_importance) options.importance = &*importance;
      std::map<std::string, const TypedTensor*> by_name;
      const std::vector<TypedTensor> tensors = planned(*model, options);
      for (const TypedTensor& tensor : tensors) by_name[tensor.name] = &tensor;
      std::size_t n_compared = 0;
      std::string wrong;
      for (const auto& [tensor, role] : kTensors) {
        if (role == Role::output && mixture.tied) continue;
        const bool in_layers = role != Role::output && role != Role::token_embedding;
        const bool of_experts = role >= Role::w1 && config.n_experts > 1;
        const auto of_tensor = mixture.exceptions.find(tensor);
        for (std::uint32_t l = 0; l < (in_layers ? config.n_layers : 1); ++l) {
          std::string expected = name_of(plain.type->base);
          if (of_tensor != mixture.exceptions.end()) {
            const auto exception = of_tensor->second.find(l);
            if (exception != of_tensor->second.end()) expected = exception->second;
          }
          const std::string name = (in_layers ? "blk." + std::to_string(l) + "." : "") + tensor +
                                   (of_experts ? "_exps" : "") + ".weight";
          const auto found = by_name.find(name);
          if (found == by_name.end()) FAIL(name, " is missing");
          const TypedTensor& ours = *found->second;
          const std::string format = name_of(ours.format);
          if (format != expected || ours.shape.size() != (of_experts ? 3 : 2)) {
            wrong += name + ": " + format + ", not " + expected + "; ";
          }
          ++n_compared;
          if (with_importance || mixture.tied) continue;
          if (mixtral::mixture_format(*plain.type, config, role, l) != ours.format) {
            wrong += "mixture_format() of " + name + "; ";
          }
        }
      }
      // What is left, vectors and routers, stays F32.
      std::size_t n_float = 0;
      for (const TypedTensor& tensor : tensors) {
        const bool is_float = tensor.name.find("_norm.") != std::string::npos ||
                              tensor.name.find("ffn_gate_inp") != std::string::npos;
        if (!is_float) continue;
        ++n_float;
        if (tensor.format != BlockFormat::f32) wrong += tensor.name + " is not F32; ";
      }
      CHECK(wrong == "");
      CHECK(n_compared + n_float == tensors.size());
    }
  }
  CHECK(seen.size() == mixtral::quantizations().size());
}

TEST_CASE("mixtures: a mixture is found by its name, in any case, or by its short name") {
  const std::tuple<const char*, BlockFormat, std::uint32_t> types[] = {
      {"F32", BlockFormat::f32, 0},        {"BF16", BlockFormat::bf16, 32},
      {"F16", BlockFormat::f16, 1},        {"Q8_0", BlockFormat::q8_0, 7},
      {"Q6_K", BlockFormat::q6_k, 18},     {"Q5_1", BlockFormat::q5_1, 9},
      {"Q5_K_M", BlockFormat::q5_k, 17},   {"Q5_K_S", BlockFormat::q5_k, 16},
      {"Q5_0", BlockFormat::q5_0, 8},      {"Q4_1", BlockFormat::q4_1, 3},
      {"Q4_K_M", BlockFormat::q4_k, 15},   {"Q4_K_S", BlockFormat::q4_k, 14},
      {"Q4_0", BlockFormat::q4_0, 2},      {"IQ4_NL", BlockFormat::iq4_nl, 25},
      {"IQ4_XS", BlockFormat::iq4_xs, 30}, {"Q3_K_L", BlockFormat::q3_k, 13},
      {"Q3_K_M", BlockFormat::q3_k, 12},   {"Q3_K_S", BlockFormat::q3_k, 11},
      {"Q2_K", BlockFormat::q2_k, 10},     {"Q2_K_S", BlockFormat::q2_k, 21}};
  REQUIRE(mixtral::quantizations().size() == std::size(types));
  for (const auto& [name, base, file_type] : types) {
    std::string lower = name;
    for (char& c : lower) c = static_cast<char>(std::tolower(c));
    for (const std::string& text : {std::string(name), lower}) {
      CAPTURE(text);
      const mixtral::Quantization* found = mixtral::find_quantization(text);
      REQUIRE(found != nullptr);
      CHECK(std::string(found->name) == name);
      CHECK(found->base == base);
      CHECK(found->file_type == file_type);
    }
  }
  CHECK(mixtral::find_quantization("Q3_K") == mixtral::find_quantization("Q3_K_M"));
  CHECK(mixtral::find_quantization("q4_k") == mixtral::find_quantization("Q4_K_M"));
  CHECK(mixtral::find_quantization("Q5_k") == mixtral::find_quantization("Q5_K_M"));
  for (const char* none : {"", "Q", "Q8_", "Q8_00", "Q8_0 ", " Q8_0", "Q6_K_M", "Q2_K_M", "Q4_K_",
                           "Q4_K_MM", "IQ2_XS", "Q4-K-M", "Q{_0"}) {
    CAPTURE(std::string(none));
    CHECK(mixtral::find_quantization(none) == nullptr);
  }
}

TEST_CASE("mixtures: rows that are not whole blocks get the next format that fits, F16 at last") {
  // The matrix ffn_down has rows of n numbers.
  const auto check = [](BlockFormat wanted, std::size_t n, BlockFormat expected) {
    CAPTURE(n);
    mixtral::Config config;
    config.dim = 256;
    config.n_layers = config.n_heads = config.n_kv_heads = 1;
    config.head_size = 64;
    config.hidden_dim = static_cast<std::uint32_t>(n);
    const mixtral::Checkpoint model = empty_model(config, true, zeros());
    mixtral::QuantizeOptions options = type("F32");
    options.expert_type = wanted;
    std::size_t n_found = 0;
    for (const TypedTensor& tensor : planned(model, options)) {
      if (tensor.name == "blk.0.ffn_down.weight") {
        CHECK(name_of(tensor.format) == name_of(expected));
        CHECK(tensor.shape == std::vector<std::uint64_t>{n, 256});
        ++n_found;
      } else if (tensor.name == "blk.0.ffn_up.weight") {
        CHECK(name_of(tensor.format) == name_of(wanted));
        CHECK(tensor.shape == std::vector<std::uint64_t>{256, n});
        ++n_found;
      }
    }
    CHECK(n_found == 2);
  };
  const std::pair<BlockFormat, BlockFormat> super_blocks[] = {
      {BlockFormat::q2_k, BlockFormat::iq4_nl},   {BlockFormat::q3_k, BlockFormat::iq4_nl},
      {BlockFormat::iq4_xs, BlockFormat::iq4_nl}, {BlockFormat::q4_k, BlockFormat::q5_0},
      {BlockFormat::q5_k, BlockFormat::q5_1},     {BlockFormat::q6_k, BlockFormat::q8_0}};
  for (const auto& [wanted, smaller] : super_blocks) {
    const std::string name = name_of(wanted);
    CAPTURE(name);
    for (const std::size_t n : {256u, 512u}) check(wanted, n, wanted);
    for (const std::size_t n : {32u, 224u, 288u}) check(wanted, n, smaller);
    for (const std::size_t n : {16u, 255u, 257u}) check(wanted, n, BlockFormat::f16);
  }
  for (const BlockFormat wanted : {BlockFormat::q8_0, BlockFormat::q4_0, BlockFormat::q4_1,
                                   BlockFormat::q5_0, BlockFormat::q5_1, BlockFormat::iq4_nl}) {
    CAPTURE(name_of(wanted));
    check(wanted, 32, wanted);
    check(wanted, 33, BlockFormat::f16);
  }
  for (const BlockFormat wanted : {BlockFormat::f32, BlockFormat::f16, BlockFormat::bf16}) {
    check(wanted, 1, wanted);
    check(wanted, 33, wanted);
  }
}
