#ifndef MIXTRAL_IMPL_QUANTIZE_WRITE_GGUF_HPP_
#define MIXTRAL_IMPL_QUANTIZE_WRITE_GGUF_HPP_

#include <algorithm>
#include <atomic>
#include <string>

#include "mixtral/impl/gguf_names.hpp"
#include "mixtral/impl/model.hpp"
#include "mixtral/impl/quantize/encode.hpp"
#include "mixtral/impl/quantize/gguf_builder.hpp"
#include "mixtral/impl/quantize/mixture.hpp"
#include "mixtral/quantize.hpp"

namespace mixtral {

namespace detail {

// The scores with which pieces are merged as by the merges of a tokenizer.json: merges in order are
// pieces in order, unless one piece comes up again after another.
inline Status scores_of_merges(const Vocabulary& vocabulary, std::pmr::vector<float>& scores,
                               std::pmr::memory_resource* resource) {
  std::pmr::unordered_map<std::string_view, std::size_t> ids(resource);
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    ids.emplace(vocabulary.pieces[i].text, i);
  }
  scores.assign(vocabulary.pieces.size(), -1e9f);
  std::pmr::string text(resource);
  std::size_t last = vocabulary.pieces.size();
  float score = 0.0f;
  for (const Merge& merge : vocabulary.merges) {
    text = vocabulary.pieces[static_cast<std::size_t>(merge.left)].text;
    text += vocabulary.pieces[static_cast<std::size_t>(merge.right)].text;
    const auto id = ids.find(text);
    if (id == ids.end() || id->second == last) continue;
    if (scores[id->second] > -1e9f) {
      return Error(ErrorCode::unsupported,
                   "the merges of tokenizer.json make '%.40s' at several ranks, for which GGUF has "
                   "no equivalent; put the model's tokenizer.model beside it",
                   text.c_str());
    }
    last = id->second;
    scores[last] = score;
    score -= 1.0f;
  }
  return {};
}

inline Status add_vocabulary(const Vocabulary& vocabulary, std::pmr::memory_resource* resource,
                             GgufBuilder& builder) {
  std::pmr::vector<float> scores(resource);
  if (vocabulary.merges.empty()) {
    for (const Piece& piece : vocabulary.pieces) scores.push_back(piece.score);
  } else {
    MIXTRAL_RETURN_IF_ERROR(scores_of_merges(vocabulary, scores, resource));
  }
  const std::size_t n = vocabulary.pieces.size();
  builder.add_string("tokenizer.ggml.model", "llama");
  builder.begin_array("tokenizer.ggml.tokens", gguf::ValueType::string, n);
  for (const Piece& piece : vocabulary.pieces) builder.put_string(piece.text);
  builder.begin_array("tokenizer.ggml.scores", gguf::ValueType::f32, n);
  for (const float score : scores) builder.put_float(score);
  builder.begin_array("tokenizer.ggml.token_type", gguf::ValueType::i32, n);
  for (const Piece& piece : vocabulary.pieces) {
    builder.put_int(static_cast<std::uint32_t>(piece.type));
  }
  const auto add_id = [&](std::string_view key, Token id) {
    if (id != kNoToken) builder.add_u32(key, static_cast<std::uint32_t>(id));
  };
  add_id("tokenizer.ggml.bos_token_id", vocabulary.bos);
  add_id("tokenizer.ggml.eos_token_id", vocabulary.eos);
  add_id("tokenizer.ggml.unknown_token_id", vocabulary.unknown);
  builder.add_bool("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
  builder.add_bool("tokenizer.ggml.add_eos_token", false);
  builder.add_bool("tokenizer.ggml.add_space_prefix", vocabulary.add_dummy_prefix);
  if (vocabulary.remove_extra_whitespaces) {
    builder.add_bool("tokenizer.ggml.remove_extra_whitespaces", true);
  }
  return {};
}

inline void add_config(const Config& config, GgufBuilder& builder) {
  builder.add_u32("llama.block_count", config.n_layers);
  builder.add_u32("llama.context_length", config.context_length);
  builder.add_u32("llama.embedding_length", config.dim);
  builder.add_u32("llama.feed_forward_length", config.hidden_dim);
  builder.add_u32("llama.attention.head_count", config.n_heads);
  builder.add_u32("llama.attention.head_count_kv", config.n_kv_heads);
  builder.add_f32("llama.attention.layer_norm_rms_epsilon", config.norm_epsilon);
  builder.add_u32("llama.rope.dimension_count", config.head_size);
  builder.add_f32("llama.rope.freq_base", config.rope_theta);
  builder.add_u32("llama.vocab_size", config.vocab_size);
  if (std::uint64_t{config.head_size} * config.n_heads != config.dim) {
    builder.add_u32("llama.attention.key_length", config.head_size);
    builder.add_u32("llama.attention.value_length", config.head_size);
  }
  if (config.rope_scale != 1.0f) {
    builder.add_string("llama.rope.scaling.type", "linear");
    builder.add_f32("llama.rope.scaling.factor", 1.0f / config.rope_scale);
  }
  if (config.sliding_window != 0) {
    builder.add_u32("llama.attention.sliding_window", config.sliding_window);
  }
  if (config.has_router()) {
    builder.add_u32("llama.expert_count", config.n_experts);
    builder.add_u32("llama.expert_used_count", config.n_experts_used);
  }
}

// What a GGUF file says of its model beside what makes it run: name, author, licence ...
inline void add_description(const Checkpoint& checkpoint, std::pmr::memory_resource* resource,
                            GgufBuilder& builder) {
  if (checkpoint.files.empty()) return;
  const Bytes& first = checkpoint.files.front();
  const Span<const std::uint8_t> bytes(first.data(), first.size());
  if (!gguf::File::recognises(bytes)) return;
  const Result<gguf::File> file = gguf::File::parse(bytes, resource);
  if (!file) return;
  for (const gguf::KeyValue& pair : file->metadata()) {
    if (pair.key.substr(0, 8) != "general." || pair.key == "general.architecture" ||
        pair.key == "general.file_type" || pair.key == "general.quantization_version" ||
        pair.key == "general.alignment") {
      continue;
    }
    builder.add_value(pair.key, pair.value);
  }
}

// One tensor of the file to be: a matrix, or that of each expert of a layer.
struct PlannedTensor {
  char name[64] = {};
  std::size_t name_length = 0;
  Role role = Role::output;
  std::uint32_t layer = 0;
  std::uint32_t n_matrices = 1;
  BlockFormat format = BlockFormat::f32;
  bool fallback = false;
  const float* vector = nullptr;  // or else `matrix`, or else those of the layer's experts
  const simd::Matrix* matrix = nullptr;
  const ExpertWeights* experts = nullptr;
  std::size_t rows = 1;  // of each matrix
  std::size_t cols = 0;

  const simd::Matrix& matrix_at(std::uint32_t expert) const {
    if (matrix != nullptr) return *matrix;
    const ExpertWeights& of = experts[expert];
    return role == Role::w1 ? of.w1 : role == Role::w2 ? of.w2 : of.w3;
  }
  std::size_t row_bytes() const {
    const BlockFormatInfo& info = *block_format_info(format);
    return cols / info.block_size * info.block_bytes;
  }
  std::uint64_t bytes() const { return std::uint64_t{n_matrices} * rows * row_bytes(); }
  std::uint64_t n_weights() const { return std::uint64_t{n_matrices} * rows * cols; }
};

class GgufWriter {
 public:
  GgufWriter(const Checkpoint& checkpoint, const Weights& weights, const simd::Kernels& kernels,
             const QuantizeOptions& options, GgufSink& sink, std::pmr::memory_resource* resource)
      : checkpoint_(checkpoint),
        weights_(weights),
        kernels_(kernels),
        options_(options),
        sink_(sink),
        resource_(resource),
        tensors_(resource),
        numbers_(resource),
        encoded_(resource),
        importance_(resource) {}

  Status write() {
    plan();
    MIXTRAL_RETURN_IF_ERROR(write_head());
    for (const PlannedTensor& tensor : tensors_) n_weights_ += tensor.n_weights();
    for (const PlannedTensor& tensor : tensors_) MIXTRAL_RETURN_IF_ERROR(write_tensor(tensor));
    return {};
  }

 private:
  // So many weights are held as float32 at a time.
  static constexpr std::size_t kBandWeights = std::size_t{4} << 20;
  // Rows that one chunk of work decodes and encodes; columns of a transposed matrix come in 16s.
  static constexpr std::size_t kRowsPerTask = 16;

  const Config& config() const { return checkpoint_.config; }

  void plan() {
    plan_matrix(Role::token_embedding, 0, weights_.token_embedding);
    plan_vector(Role::output_norm, 0, weights_.output_norm, config().dim);
    const bool tied = weights_.output.data == weights_.token_embedding.data;
    if (!tied) plan_matrix(Role::output, 0, weights_.output);
    plan_vector(Role::rope_factors, 0, weights_.rope_factors, config().head_size / 2);
    for (std::uint32_t l = 0; l < config().n_layers; ++l) {
      const LayerWeights& layer = weights_.layers[l];
      plan_vector(Role::attention_norm, l, layer.attention_norm, config().dim);
      plan_matrix(Role::wq, l, layer.wq);
      plan_matrix(Role::wk, l, layer.wk);
      plan_matrix(Role::wv, l, layer.wv);
      plan_matrix(Role::wo, l, layer.wo);
      plan_vector(Role::ffn_norm, l, layer.ffn_norm, config().dim);
      if (config().has_router()) plan_matrix(Role::router, l, layer.router);
      for (const Role role : {Role::w1, Role::w2, Role::w3}) {
        PlannedTensor tensor;
        tensor.experts = layer.experts;
        tensor.n_matrices = config().n_experts;
        add(tensor, role, l);
      }
    }
  }

  void plan_vector(Role role, std::uint32_t layer, const float* vector, std::size_t n) {
    if (vector == nullptr) return;
    PlannedTensor tensor;
    tensor.vector = vector;
    tensor.cols = n;
    add(tensor, role, layer);
  }

  void plan_matrix(Role role, std::uint32_t layer, const simd::Matrix& matrix) {
    PlannedTensor tensor;
    tensor.matrix = &matrix;
    add(tensor, role, layer);
  }

  void add(PlannedTensor tensor, Role role, std::uint32_t layer) {
    tensor.role = role;
    tensor.layer = layer;
    tensor.name_length = format_tensor_name(role, layer, tensor.n_matrices > 1, tensor.name);
    if (tensor.vector == nullptr) {
      tensor.rows = tensor.matrix_at(0).rows;
      tensor.cols = tensor.matrix_at(0).cols;
      if (role != Role::router) {
        const BlockFormat wanted = wanted_format(role, layer);
        tensor.format = fitting_format(wanted, tensor.cols);
        tensor.fallback = tensor.format != wanted;
      }
    }
    tensors_.push_back(tensor);
  }

  BlockFormat wanted_format(Role role, std::uint32_t layer) const {
    const bool tied = weights_.output.data == weights_.token_embedding.data;
    const bool is_output = role == Role::output || (tied && role == Role::token_embedding);
    if (is_output && options_.output_tensor_type) return *options_.output_tensor_type;
    const bool is_expert = role == Role::w1 || role == Role::w2 || role == Role::w3;
    if (is_expert && options_.expert_type) return *options_.expert_type;
    if (options_.pure) return options_.type->base;
    return mixture_format(
        {*options_.type, config(), role, layer, tied, options_.importance != nullptr});
  }

  Status write_head() {
    GgufBuilder builder(resource_);
    builder.add_string("general.architecture", "llama");
    add_description(checkpoint_, resource_, builder);
    builder.add_u32("general.file_type", options_.type->file_type);
    builder.add_u32("general.quantization_version", 2);
    add_config(config(), builder);
    MIXTRAL_RETURN_IF_ERROR(add_vocabulary(checkpoint_.vocabulary, resource_, builder));
    if (!checkpoint_.chat_template.empty()) {
      builder.add_string("tokenizer.chat_template", std::string_view(checkpoint_.chat_template));
    }
    for (const PlannedTensor& tensor : tensors_) {
      const std::string_view name(tensor.name, tensor.name_length);
      if (tensor.vector != nullptr) {
        builder.add_tensor(name, tensor.format, {tensor.cols}, tensor.bytes());
      } else if (tensor.n_matrices == 1) {
        builder.add_tensor(name, tensor.format, {tensor.cols, tensor.rows}, tensor.bytes());
      } else {
        builder.add_tensor(name, tensor.format, {tensor.cols, tensor.rows, tensor.n_matrices},
                           tensor.bytes());
      }
    }
    const auto head = builder.head();
    return put(head.data(), head.size());
  }

  Status put(const std::uint8_t* data, std::size_t size) {
    if (sink_.write(Span<const std::uint8_t>(data, size))) return {};
    return Error(ErrorCode::io, "the file could not be written; is there room for it?");
  }

  Status write_tensor(const PlannedTensor& tensor) {
    TensorReport report;
    report.name = std::string_view(tensor.name, tensor.name_length);
    report.from = tensor.vector != nullptr ? BlockFormat::f32 : tensor.matrix_at(0).format;
    report.to = tensor.format;
    report.fallback = tensor.fallback;
    const std::size_t band = std::clamp<std::size_t>(
        kBandWeights / tensor.cols / kRowsPerTask * kRowsPerTask, kRowsPerTask, 1u << 20);
    for (std::uint32_t e = 0; e < tensor.n_matrices; ++e) {
      report.has_importance = find_importance(tensor, e);
      for (std::size_t row = 0; row < tensor.rows; row += band) {
        const std::size_t n = std::min(band, tensor.rows - row);
        MIXTRAL_RETURN_IF_ERROR(write_band(tensor, e, row, n));
        n_done_ += std::uint64_t{n} * tensor.cols;
        if (!sink_.on_progress(n_done_, n_weights_)) {
          return Error(ErrorCode::cancelled, "writing was cancelled");
        }
      }
    }
    const std::uint64_t bytes = tensor.bytes();
    const std::uint8_t zeros[kGgufAlignment] = {};
    if (aligned(bytes) != bytes) {
      MIXTRAL_RETURN_IF_ERROR(put(zeros, static_cast<std::size_t>(aligned(bytes) - bytes)));
    }
    sink_.on_tensor(report);
    return {};
  }

  bool find_importance(const PlannedTensor& tensor, std::uint32_t expert) {
    importance_.clear();
    if (options_.importance == nullptr || tensor.vector != nullptr ||
        !block_format_info(tensor.format)->quantized) {
      return false;
    }
    importance_.resize(tensor.cols);
    if (options_.importance->find(tensor.role, tensor.layer, expert, tensor.cols,
                                  importance_.data())) {
      return true;
    }
    importance_.clear();
    return false;
  }

  bool rows_reordered(Role role) const {
    return config().head_order == HeadOrder::halves && (role == Role::wq || role == Role::wk);
  }

  Status write_band(const PlannedTensor& tensor, std::uint32_t expert, std::size_t first_row,
                    std::size_t n_rows) {
    const std::size_t out_bytes = tensor.row_bytes();
    if (tensor.vector == nullptr) {
      const simd::Matrix& w = tensor.matrix_at(expert);
      if (w.format == tensor.format && !w.transposed && !rows_reordered(tensor.role)) {
        return put(w.data + first_row * w.row_bytes, n_rows * w.row_bytes);
      }
    }
    numbers_.resize(n_rows * tensor.cols);
    encoded_.resize(n_rows * out_bytes);
    const std::size_t n_tasks = (n_rows + kRowsPerTask - 1) / kRowsPerTask;
    std::atomic<std::size_t> first_failed{n_tasks};
    const auto encode = [&](std::size_t task) {
      const std::size_t begin = task * kRowsPerTask;
      const std::size_t n = std::min(kRowsPerTask, n_rows - begin);
      float* numbers = numbers_.data() + begin * tensor.cols;
      read_rows(tensor, expert, first_row + begin, n, numbers);
      if (encode_rows(tensor.format, numbers, n, tensor.cols, importance(),
                      encoded_.data() + begin * out_bytes)) {
        return;
      }
      std::size_t first = first_failed.load();
      while (task < first && !first_failed.compare_exchange_weak(first, task)) {
      }
    };
    options_.executor.run(n_tasks, Chunks(encode));
    if (const std::size_t task = first_failed.load(); task != n_tasks) {
      const std::size_t begin = task * kRowsPerTask;
      const Status why = encode_rows(tensor.format, numbers_.data() + begin * tensor.cols,
                                     std::min(kRowsPerTask, n_rows - begin), tensor.cols,
                                     importance(), encoded_.data() + begin * out_bytes);
      return Error(why.error().code(), "tensor '%s', rows from %zu%s: %s", tensor.name,
                   first_row + begin, tensor.n_matrices > 1 ? " of an expert" : "",
                   why.error().message());
    }
    return put(encoded_.data(), encoded_.size());
  }

  Span<const float> importance() const {
    return Span<const float>(importance_.data(), importance_.size());
  }

  void read_rows(const PlannedTensor& tensor, std::uint32_t expert, std::size_t first_row,
                 std::size_t n_rows, float* out) const {
    if (tensor.vector != nullptr) {
      std::copy_n(tensor.vector, tensor.cols, out);
      return;
    }
    const simd::Matrix& w = tensor.matrix_at(expert);
    if (!rows_reordered(tensor.role)) {
      kernels_.decode_rows(w, first_row, n_rows, out);
      return;
    }
    // Elements 2i and 2i + 1 of a head lie in its first and second half.
    const std::size_t size = config().head_size;
    for (std::size_t r = 0; r < n_rows; ++r) {
      const std::size_t i = (first_row + r) % size;
      const std::size_t stored = first_row + r - i + i / 2 + (i % 2 == 0 ? 0 : size / 2);
      kernels_.decode_rows(w, stored, 1, out + r * tensor.cols);
    }
  }

  const Checkpoint& checkpoint_;
  const Weights& weights_;
  const simd::Kernels& kernels_;
  const QuantizeOptions& options_;
  GgufSink& sink_;
  std::pmr::memory_resource* resource_;
  std::pmr::vector<PlannedTensor> tensors_;
  std::pmr::vector<float> numbers_;         // of the band, [rows][cols]
  std::pmr::vector<std::uint8_t> encoded_;  // the same, encoded
  std::pmr::vector<float> importance_;      // of the matrix's columns, or empty
  std::uint64_t n_weights_ = 0;
  std::uint64_t n_done_ = 0;
};

}  // namespace detail

Status write_gguf(const Checkpoint& checkpoint, const QuantizeOptions& options, GgufSink& sink) {
  if (options.type == nullptr) {
    return Error(ErrorCode::invalid_argument,
                 "QuantizeOptions::type is not set; see find_quantization()");
  }
  for (const auto& format : {options.output_tensor_type, options.expert_type}) {
    if (format && !can_encode(*format)) return detail::cannot_encode(*format);
  }
  const simd::Kernels* kernels = simd::select_kernels();
  if (kernels == nullptr) {
    return Error(ErrorCode::unsupported, "this CPU runs none of the SIMD targets compiled in");
  }
  std::pmr::memory_resource* resource =
      options.memory != nullptr ? options.memory : std::pmr::get_default_resource();
  return detail::guard_memory("writing the GGUF file", [&]() -> Status {
    const Result<Tokenizer> tokenizer = Tokenizer::create(checkpoint.vocabulary, resource);
    if (!tokenizer) return tokenizer.error();
    const Result<Weights> weights = Weights::create(checkpoint, *kernels, resource);
    if (!weights) return weights.error();
    return detail::GgufWriter(checkpoint, *weights, *kernels, options, sink, resource).write();
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_QUANTIZE_WRITE_GGUF_HPP_
