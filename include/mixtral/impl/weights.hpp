#ifndef MIXTRAL_IMPL_WEIGHTS_HPP_
#define MIXTRAL_IMPL_WEIGHTS_HPP_

#include <algorithm>

#include "mixtral/weights.hpp"

namespace mixtral {

namespace detail {

// Collects the matrices of a checkpoint by role and says what is missing.
class WeightsBuilder {
 public:
  WeightsBuilder(const Config& config, Weights& weights, std::pmr::vector<ExpertWeights>& experts)
      : config_(config), weights_(weights), experts_(experts) {}

  // Where a tensor belongs: one of the two.
  struct Place {
    simd::Matrix* matrix = nullptr;
    const float** vector = nullptr;
  };

  Result<Place> find_place(const NamedTensor& tensor) {
    const bool global = tensor.role <= Role::rope_factors;
    if (!global && (tensor.layer >= config_.n_layers || tensor.expert >= config_.n_experts)) {
      return Error(
          ErrorCode::bad_format,
          "tensor '%.*s' is of layer %u, expert %u; the metadata says %u layers, %u experts",
          length(tensor), tensor.name.data(), static_cast<unsigned>(tensor.layer),
          static_cast<unsigned>(tensor.expert), static_cast<unsigned>(config_.n_layers),
          static_cast<unsigned>(config_.n_experts));
    }
    if (tensor.role == Role::router && !config_.has_router()) {
      return Error(ErrorCode::bad_format,
                   "tensor '%.*s' is a router, but the metadata has no llama.expert_count",
                   length(tensor), tensor.name.data());
    }
    LayerWeights* layer = global ? nullptr : &weights_.layers[tensor.layer];
    ExpertWeights* expert =
        global ? nullptr : &experts_[std::size_t{tensor.layer} * config_.n_experts + tensor.expert];
    Place place;
    switch (tensor.role) {
      case Role::token_embedding: place.matrix = &weights_.token_embedding; break;
      case Role::output_norm: place.vector = &weights_.output_norm; break;
      case Role::output: place.matrix = &weights_.output; break;
      case Role::rope_factors: place.vector = &weights_.rope_factors; break;
      case Role::attention_norm: place.vector = &layer->attention_norm; break;
      case Role::wq: place.matrix = &layer->wq; break;
      case Role::wk: place.matrix = &layer->wk; break;
      case Role::wv: place.matrix = &layer->wv; break;
      case Role::wo: place.matrix = &layer->wo; break;
      case Role::ffn_norm: place.vector = &layer->ffn_norm; break;
      case Role::router: place.matrix = &layer->router; break;
      case Role::w1: place.matrix = &expert->w1; break;
      case Role::w2: place.matrix = &expert->w2; break;
      case Role::w3: place.matrix = &expert->w3; break;
    }
    if ((place.matrix != nullptr && place.matrix->data != nullptr) ||
        (place.vector != nullptr && *place.vector != nullptr)) {
      return Error(ErrorCode::bad_format,
                   "tensor '%.*s' gives a %s that another tensor gave already", length(tensor),
                   tensor.name.data(), role_name(tensor.role));
    }
    return place;
  }

  static int length(const NamedTensor& tensor) {
    return static_cast<int>(std::min<std::size_t>(tensor.name.size(), 80));
  }

  Status check_shape(const NamedTensor& tensor) const {
    std::size_t rows = 1;
    std::size_t cols = config_.dim;
    switch (tensor.role) {
      case Role::token_embedding:
      case Role::output: rows = config_.vocab_size; break;
      case Role::rope_factors: cols = config_.head_size / 2; break;
      case Role::wq: rows = config_.q_dim(); break;
      case Role::wk:
      case Role::wv: rows = config_.kv_dim(); break;
      case Role::wo:
        rows = config_.dim;
        cols = config_.q_dim();
        break;
      case Role::router: rows = config_.n_experts; break;
      case Role::w1:
      case Role::w3: rows = config_.hidden_dim; break;
      case Role::w2:
        rows = config_.dim;
        cols = config_.hidden_dim;
        break;
      case Role::output_norm:
      case Role::attention_norm:
      case Role::ffn_norm: break;
    }
    if (tensor.matrix.rows == rows && tensor.matrix.cols == cols) return {};
    return Error(ErrorCode::bad_format,
                 "tensor '%.*s' (%s): expected %zu rows of %zu, found %zu rows of %zu",
                 length(tensor), tensor.name.data(), role_name(tensor.role), rows, cols,
                 tensor.matrix.rows, tensor.matrix.cols);
  }

  Status check_complete() const {
    if (weights_.token_embedding.data == nullptr) return missing(Role::token_embedding, 0, 0);
    if (weights_.output_norm == nullptr) return missing(Role::output_norm, 0, 0);
    for (std::uint32_t l = 0; l < config_.n_layers; ++l) {
      const LayerWeights& layer = weights_.layers[l];
      if (layer.attention_norm == nullptr) return missing(Role::attention_norm, l, 0);
      if (layer.wq.data == nullptr) return missing(Role::wq, l, 0);
      if (layer.wk.data == nullptr) return missing(Role::wk, l, 0);
      if (layer.wv.data == nullptr) return missing(Role::wv, l, 0);
      if (layer.wo.data == nullptr) return missing(Role::wo, l, 0);
      if (layer.ffn_norm == nullptr) return missing(Role::ffn_norm, l, 0);
      if (config_.has_router() && layer.router.data == nullptr) return missing(Role::router, l, 0);
      for (std::uint32_t e = 0; e < config_.n_experts; ++e) {
        const ExpertWeights& expert = layer.experts[e];
        if (expert.w1.data == nullptr) return missing(Role::w1, l, e);
        if (expert.w2.data == nullptr) return missing(Role::w2, l, e);
        if (expert.w3.data == nullptr) return missing(Role::w3, l, e);
      }
    }
    return {};
  }

 private:
  static Error missing(Role role, std::uint32_t layer, std::uint32_t expert) {
    return Error(ErrorCode::bad_format,
                 "the %s tensor of layer %u, expert %u is missing; the file is incomplete",
                 role_name(role), static_cast<unsigned>(layer), static_cast<unsigned>(expert));
  }

  const Config& config_;
  Weights& weights_;
  std::pmr::vector<ExpertWeights>& experts_;
};

inline bool is_vector(Role role) noexcept {
  return role == Role::output_norm || role == Role::rope_factors || role == Role::attention_norm ||
         role == Role::ffn_norm;
}

}  // namespace detail

Result<Weights> Weights::create(const Checkpoint& checkpoint, const simd::Kernels& kernels,
                                std::pmr::memory_resource* resource) {
  return detail::guard_memory("arranging the weights", [&]() -> Result<Weights> {
    const Config& config = checkpoint.config;
    // A tensor that is present bounds each of these, so a lying header cannot make them huge:
    // every layer needs nine tensors, every expert three.
    if (checkpoint.tensors.size() < std::size_t{config.n_layers} * config.n_experts) {
      return Error(ErrorCode::bad_format,
                   "%zu tensors are too few for %u layers of %u experts; the file is incomplete",
                   checkpoint.tensors.size(), static_cast<unsigned>(config.n_layers),
                   static_cast<unsigned>(config.n_experts));
    }
    Weights weights(resource);
    weights.layers.resize(config.n_layers);
    weights.experts_.resize(std::size_t{config.n_layers} * config.n_experts);
    for (std::size_t l = 0; l < config.n_layers; ++l) {
      weights.layers[l].experts = weights.experts_.data() + l * config.n_experts;
    }
    detail::WeightsBuilder builder(config, weights, weights.experts_);
    std::size_t n_floats = 0;
    for (const NamedTensor& tensor : checkpoint.tensors) {
      MIXTRAL_RETURN_IF_ERROR(builder.check_shape(tensor));
      if (detail::is_vector(tensor.role)) n_floats += tensor.matrix.cols;
    }
    weights.floats_.reserve(n_floats);  // never grows again: pointers into it stay valid
    for (const NamedTensor& tensor : checkpoint.tensors) {
      const auto place = builder.find_place(tensor);
      if (!place) return place.error();
      const std::uint64_t n = std::uint64_t{tensor.matrix.rows} * tensor.matrix.cols;
      const bool is_expert = tensor.role >= Role::w1;
      weights.n_parameters += n;
      weights.bytes += tensor.matrix.bytes();
      // Of the embedding one row is read, which is not counted, as the field does.
      if (tensor.role != Role::token_embedding && !is_expert) weights.n_active_parameters += n;
      if (is_expert && tensor.expert < config.n_experts_used) weights.n_active_parameters += n;
      if (place->matrix != nullptr) {
        *place->matrix = tensor.matrix;
        continue;
      }
      const std::size_t begin = weights.floats_.size();
      weights.floats_.resize(begin + tensor.matrix.cols);
      kernels.decode_rows(tensor.matrix, 0, 1, weights.floats_.data() + begin);
      *place->vector = weights.floats_.data() + begin;
    }
    MIXTRAL_RETURN_IF_ERROR(builder.check_complete());
    if (weights.output.data == nullptr) {
      weights.output = weights.token_embedding;
      weights.n_active_parameters += std::uint64_t{config.vocab_size} * config.dim;
    }
    return weights;
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_WEIGHTS_HPP_
