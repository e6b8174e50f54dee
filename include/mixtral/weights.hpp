// Tensors by role, checked for shape once; after that no check is needed.
#ifndef MIXTRAL_WEIGHTS_HPP_
#define MIXTRAL_WEIGHTS_HPP_

#include <memory_resource>
#include <vector>

#include "mixtral/checkpoint.hpp"
#include "mixtral/error.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral {

// One SwiGLU feed-forward network: w2 (silu(w1 x) * w3 x).
struct ExpertWeights {
  simd::Matrix w1;  // gate, [hidden_dim, dim]
  simd::Matrix w2;  // down, [dim, hidden_dim]
  simd::Matrix w3;  // up, [hidden_dim, dim]
};

struct LayerWeights {
  const float* attention_norm = nullptr;  // [dim]
  simd::Matrix wq, wk, wv, wo;
  const float* ffn_norm = nullptr;         // [dim]
  simd::Matrix router;                     // [n_experts, dim]; empty in a dense model
  const ExpertWeights* experts = nullptr;  // [n_experts]
};

// The matrices stay where the checkpoint has them; the small vectors are copied as float32.
class Weights {
 public:
  explicit Weights(std::pmr::memory_resource* resource)
      : layers(resource), experts_(resource), floats_(resource) {}

  // Errors: bad_format, naming a tensor that is missing, there twice or of another shape than the
  // configuration says; out_of_memory.
  static Result<Weights> create(const Checkpoint& checkpoint, const simd::Kernels& kernels,
                                std::pmr::memory_resource* resource);

  simd::Matrix token_embedding;
  const float* output_norm = nullptr;   // [dim]
  simd::Matrix output;                  // token_embedding if tied
  const float* rope_factors = nullptr;  // [head_size / 2] or null
  std::pmr::vector<LayerWeights> layers;

  std::uint64_t n_parameters = 0;         // in all
  std::uint64_t n_active_parameters = 0;  // multiplied with one token
  std::uint64_t bytes = 0;                // of all tensors in the file

 private:
  std::pmr::vector<ExpertWeights> experts_;
  std::pmr::vector<float> floats_;
};

}  // namespace mixtral

#endif  // MIXTRAL_WEIGHTS_HPP_
