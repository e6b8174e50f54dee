// What every checkpoint format turns its bytes into: a configuration, a vocabulary and named tensors.
#ifndef MIXTRAL_CHECKPOINT_HPP_
#define MIXTRAL_CHECKPOINT_HPP_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "mixtral/config.hpp"
#include "mixtral/gguf.hpp"
#include "mixtral/simd/kernels.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

// What a tensor is for, whatever the file calls it.
enum class Role : std::uint8_t {
  token_embedding,  // [vocab_size, dim]
  output_norm,      // [dim]
  output,           // [vocab_size, dim]; absent if tied to token_embedding
  rope_factors,     // [head_size / 2], optional: frequencies are divided by these
  attention_norm,   // [dim]
  wq,               // [n_heads * head_size, dim]
  wk,               // [n_kv_heads * head_size, dim]
  wv,               // [n_kv_heads * head_size, dim]
  wo,               // [dim, n_heads * head_size]
  ffn_norm,         // [dim]
  router,           // [n_experts, dim]
  w1,               // [hidden_dim, dim], gate, of one expert
  w2,               // [dim, hidden_dim], down
  w3,               // [hidden_dim, dim], up
};

const char* role_name(Role role) noexcept;

struct NamedTensor {
  Role role;
  std::uint32_t layer = 0;
  std::uint32_t expert = 0;
  simd::Matrix matrix;    // a vector is a matrix of one row
  std::string_view name;  // in the file, for error messages
};

// Views into the bytes it was read from.
struct Checkpoint {
  explicit Checkpoint(std::pmr::memory_resource* resource)
      : vocabulary(resource), tensors(resource) {}

  Config config;
  Vocabulary vocabulary;
  std::pmr::vector<NamedTensor> tensors;
};

// Reads the model of a GGUF file (architecture "llama", which covers the whole family).
// Errors: bad_format or unsupported, naming the key or tensor, what was expected and what was found.
Result<Checkpoint> read_checkpoint(const gguf::File& file, std::pmr::memory_resource* resource);

}  // namespace mixtral

#endif  // MIXTRAL_CHECKPOINT_HPP_
