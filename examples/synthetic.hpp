// Models of true dimensions with random weights, for speed and memory.
#ifndef MIXTRAL_EXAMPLES_SYNTHETIC_HPP_
#define MIXTRAL_EXAMPLES_SYNTHETIC_HPP_

#include <cstdio>
#include <list>
#include <map>
#include <mixtral/quantize.hpp>
#include <random>
#include <string>
#include <vector>

#include "program.hpp"

namespace program {

// The family's shapes by name.
inline std::map<std::string, mixtral::Config> model_shapes() {
  mixtral::Config c;
  c.dim = 4096;
  c.n_layers = 32;
  c.n_heads = 32;
  c.n_kv_heads = 8;
  c.head_size = 128;
  c.hidden_dim = 14336;
  c.vocab_size = 32000;
  c.context_length = 32768;
  c.rope_theta = 1e6f;
  std::map<std::string, mixtral::Config> shapes;
  shapes["mistral-7b"] = c;
  c.n_experts = 8;
  c.n_experts_used = 2;
  shapes["8x7b"] = c;
  c.dim = 6144;
  c.n_layers = 56;
  c.n_heads = 48;
  c.hidden_dim = 16384;
  c.vocab_size = 32768;
  c.context_length = 65536;
  shapes["8x22b"] = c;
  c = shapes["mistral-7b"];
  c.n_kv_heads = 32;
  c.hidden_dim = 11008;
  c.context_length = 4096;
  c.rope_theta = 1e4f;
  shapes["llama-2-7b"] = c;
  c.dim = 8192;
  c.n_layers = 80;
  c.n_heads = 64;
  c.n_kv_heads = 8;
  c.hidden_dim = 28672;
  shapes["llama-2-70b"] = c;
  return shapes;
}

// A checkpoint with random matrices of a mixture; owns their bytes, and has to outlive the model.
class SyntheticModel {
 public:
  SyntheticModel(const mixtral::Config& config, const mixtral::Quantization& type)
      : checkpoint(std::pmr::get_default_resource()), type_(type) {
    using mixtral::Role;
    checkpoint.config = config;
    add_vocabulary(config.vocab_size);
    add(Role::token_embedding, 0, 0, config.vocab_size, config.dim);
    add(Role::output_norm, 0, 0, 1, config.dim);
    add(Role::output, 0, 0, config.vocab_size, config.dim);
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
  }

  mixtral::Checkpoint checkpoint;

 private:
  void add_vocabulary(std::uint32_t size) {
    mixtral::Vocabulary& vocabulary = checkpoint.vocabulary;
    for (std::uint32_t id = 0; id < size; ++id) {
      const bool is_byte = id >= 3 && id < 259;
      char text[24];
      std::snprintf(text, sizeof text, is_byte ? "<0x%02X>" : "<%u>",
                    static_cast<unsigned>(is_byte ? id - 3 : id));
      const auto type = is_byte   ? mixtral::PieceType::byte
                        : id == 0 ? mixtral::PieceType::unknown
                        : id < 3  ? mixtral::PieceType::control
                                  : mixtral::PieceType::normal;
      vocabulary.texts.emplace_back(text);
      vocabulary.pieces.push_back({vocabulary.texts.back(), 0.0f, type});
    }
  }

  // Rows are drawn from a few that were really encoded: as random as speed and routing ask for.
  void add(mixtral::Role role, std::uint32_t layer, std::uint32_t expert, std::size_t rows,
           std::size_t cols) {
    using mixtral::BlockFormat;
    const bool is_float = rows == 1 || role == mixtral::Role::router;
    const BlockFormat format = is_float
                                   ? BlockFormat::f32
                                   : mixtral::mixture_format(type_, checkpoint.config, role, layer);
    const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
    if (cols % info.block_size != 0) throw std::runtime_error("rows are not whole blocks");
    const std::size_t row_bytes = cols / info.block_size * info.block_bytes;
    const std::vector<std::uint8_t>& pool = pool_of(format, cols, row_bytes, rows == 1);
    matrices_.emplace_back(rows * row_bytes);
    std::vector<std::uint8_t>& bytes = matrices_.back();
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t from = random_() % kPool;
      std::copy_n(pool.begin() + static_cast<std::ptrdiff_t>(from * row_bytes), row_bytes,
                  bytes.begin() + static_cast<std::ptrdiff_t>(r * row_bytes));
    }
    mixtral::NamedTensor tensor{};
    tensor.role = role;
    tensor.layer = layer;
    tensor.expert = expert;
    tensor.name = mixtral::role_name(role);
    tensor.matrix.data = bytes.data();
    tensor.matrix.rows = rows;
    tensor.matrix.cols = cols;
    tensor.matrix.row_bytes = row_bytes;
    tensor.matrix.format = format;
    checkpoint.tensors.push_back(tensor);
  }

  const std::vector<std::uint8_t>& pool_of(mixtral::BlockFormat format, std::size_t cols,
                                           std::size_t row_bytes, bool norm) {
    auto& pool = pools_[{static_cast<int>(format), cols, norm}];
    if (!pool.empty()) return pool;
    std::normal_distribution<float> normal(
        norm ? 1.0f : 0.0f, norm ? 0.1f : 1.0f / std::sqrt(static_cast<float>(cols)));
    std::vector<float> numbers(kPool * cols);
    for (float& x : numbers) x = normal(random_);
    pool.resize(kPool * row_bytes);
    check(mixtral::encode_rows(format, numbers.data(), kPool, cols, {}, pool.data()));
    return pool;
  }

  static constexpr std::size_t kPool = 61;

  const mixtral::Quantization& type_;
  std::mt19937 random_{1};
  std::map<std::tuple<int, std::size_t, bool>, std::vector<std::uint8_t>> pools_;
  std::list<std::vector<std::uint8_t>> matrices_;
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_SYNTHETIC_HPP_
