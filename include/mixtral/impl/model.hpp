#ifndef MIXTRAL_IMPL_MODEL_HPP_
#define MIXTRAL_IMPL_MODEL_HPP_

#include <mutex>

#include "mixtral/checkpoint.hpp"
#include "mixtral/impl/checkpoint.hpp"
#include "mixtral/impl/fingerprint.hpp"
#include "mixtral/impl/token_trie.hpp"
#include "mixtral/impl/weights_copier.hpp"
#include "mixtral/model.hpp"
#include "mixtral/network/portable_math.hpp"
#include "mixtral/weights.hpp"

namespace mixtral {

namespace detail {

struct ModelData {
  explicit ModelData(std::pmr::memory_resource* memory)
      : resource(memory), files(memory), weights(memory), rope_frequencies(memory) {}

  std::pmr::memory_resource* resource;
  std::pmr::vector<Bytes> files;  // which the weights point into
  Slab weights_copy;              // or which they do instead
  Config config;
  std::optional<Tokenizer> tokenizer;
  ChatFormat chat_format = ChatFormat::mistral_v1;
  const simd::Kernels* kernels = nullptr;
  bool bf16_activations = false;
  Weights weights;
  std::pmr::vector<double> rope_frequencies;  // [head_size / 2], radians a position

  // What tells this model from others, wherever its weights lie. Reads a page of each matrix.
  std::uint64_t fingerprint() const noexcept {
    return fingerprint_before_copy ? *fingerprint_before_copy : model_fingerprint(config, weights);
  }
  std::optional<std::uint64_t> fingerprint_before_copy;  // with weights_copy

  // Made when a grammar first needs it.
  const TokenTrie& token_trie() const {
    const std::lock_guard<std::mutex> lock(trie_mutex_);
    if (!trie_) trie_.emplace(*tokenizer, resource);
    return *trie_;
  }

 private:
  mutable std::mutex trie_mutex_;
  mutable std::optional<TokenTrie> trie_;
};

}  // namespace detail

Model::Model(std::shared_ptr<const detail::ModelData> data) noexcept : data_(std::move(data)) {}

namespace detail {

inline std::pmr::memory_resource* resource_of(const ModelOptions& options) noexcept {
  return options.memory != nullptr ? options.memory : std::pmr::get_default_resource();
}

}  // namespace detail

Result<Model> Model::open(const char* path, const ModelOptions& options) {
  Result<Checkpoint> checkpoint = open_gguf(path, detail::resource_of(options));
  if (!checkpoint) return checkpoint.error();
  Result<Model> model = from_checkpoint(*std::move(checkpoint), options);
  if (!model) return detail::error_in(path, model.error());
  return model;
}

Result<Model> Model::from_bytes(Bytes bytes, const ModelOptions& options) {
  Result<Checkpoint> checkpoint = read_gguf(Span<Bytes>(&bytes, 1), detail::resource_of(options));
  if (!checkpoint) return checkpoint.error();
  return from_checkpoint(*std::move(checkpoint), options);
}

Result<Model> Model::from_checkpoint(Checkpoint checkpoint, const ModelOptions& options) {
  std::pmr::memory_resource* resource = detail::resource_of(options);
  const simd::Kernels* kernels = simd::select_kernels(options.simd_targets, options.strict);
  if (kernels == nullptr) {
    return Error(
        ErrorCode::unsupported,
        "this CPU runs none of the SIMD targets that were compiled in and allowed (%llx)%s",
        static_cast<unsigned long long>(options.simd_targets),
        options.strict
            ? " and multiply and add in one step, as ModelOptions::strict wants; compile the "
              "kernels with MIXTRAL_STRICT_EVERYWHERE"
            : "; allow more in ModelOptions::simd_targets");
  }
  return detail::guard_memory("opening the model", [&]() -> Result<Model> {
    auto data = std::allocate_shared<detail::ModelData>(
        std::pmr::polymorphic_allocator<detail::ModelData>(resource), resource);
    data->kernels = kernels;
    data->bf16_activations = options.bf16_activations;
    Result<Tokenizer> tokenizer = Tokenizer::create(checkpoint.vocabulary, resource);
    if (!tokenizer) return tokenizer.error();
    data->tokenizer.emplace(*std::move(tokenizer));
    Result<Weights> weights = Weights::create(checkpoint, *kernels, resource);
    if (!weights) return weights.error();
    data->config = checkpoint.config;
    if (options.sliding_window) data->config.sliding_window = *options.sliding_window;
    if (options.copy_weights) {
      const std::uint64_t bytes_in_file = weights->bytes;
      data->fingerprint_before_copy = detail::model_fingerprint(data->config, *weights);
      Result<detail::Slab> copy =
          detail::WeightsCopier(checkpoint, *kernels, options.progress, resource).copy();
      if (!copy) return copy.error();
      data->weights_copy = *std::move(copy);
      checkpoint.files.clear();
      weights = Weights::create(checkpoint, *kernels, resource);
      if (!weights) return weights.error();
      weights->bytes = bytes_in_file;
    }
    data->weights = *std::move(weights);
    data->chat_format = options.chat_format
                            ? *options.chat_format
                            : detect_chat_format(*data->tokenizer, checkpoint.chat_template);
    for (Bytes& file : checkpoint.files) data->files.push_back(std::move(file));

    const Config& config = data->config;
    data->rope_frequencies.resize(config.head_size / 2);
    for (std::size_t i = 0; i < data->rope_frequencies.size(); ++i) {
      // RoFormer (Su et al. 2021), section 3.2.2: theta^(-2i / d).
      const double exponent = -2.0 * static_cast<double>(i) / config.head_size;
      const double factor = data->weights.rope_factors == nullptr
                                ? 1.0
                                : static_cast<double>(data->weights.rope_factors[i]);
      if (!(factor >= 1e-3 && factor <= 1e6)) {
        return Error(ErrorCode::bad_format, "rope factor %zu is %g; expected 0.001 to 1e6", i,
                     factor);
      }
      data->rope_frequencies[i] = portable::pow(static_cast<double>(config.rope_theta), exponent) /
                                  factor * static_cast<double>(config.rope_scale);
    }
    return Model(std::shared_ptr<const detail::ModelData>(std::move(data)));
  });
}

const Config& Model::config() const noexcept { return data_->config; }
const Tokenizer& Model::tokenizer() const noexcept { return *data_->tokenizer; }
ChatFormat Model::chat_format() const noexcept { return data_->chat_format; }

std::uint64_t Model::n_parameters() const noexcept { return data_->weights.n_parameters; }
std::uint64_t Model::n_active_parameters() const noexcept {
  return data_->weights.n_active_parameters;
}
std::uint64_t Model::weight_bytes() const noexcept { return data_->weights.bytes; }
const char* Model::simd_target() const noexcept { return data_->kernels->target; }

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_MODEL_HPP_
