// What safetensors and PyTorch files have in common: named arrays that lie in the file as they are.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_STORED_TENSOR_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_STORED_TENSOR_HPP_

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory_resource>
#include <optional>
#include <string>
#include <vector>

#include "mixtral/checkpoint.hpp"

namespace mixtral::detail {

struct ElementType {
  const char* name;  // as the file calls it
  std::size_t bytes;
  std::optional<BlockFormat> format;  // none: not a type of weights
};

// Row-major; the last dimension is the row, as PyTorch has it.
struct StoredTensor {
  explicit StoredTensor(std::pmr::memory_resource* resource) : name(resource) {}

  std::pmr::string name;
  const ElementType* type = nullptr;
  std::size_t n_dims = 0;
  std::array<std::uint64_t, 4> shape{};
  const std::uint8_t* data = nullptr;
  std::uint64_t bytes = 0;
};

using StoredTensors = std::pmr::vector<StoredTensor>;

inline int printable_length(std::string_view name) {
  return static_cast<int>(std::min<std::size_t>(name.size(), 80));
}

// Sets `bytes` from the shape; false if it is absurd.
inline bool set_bytes(StoredTensor& tensor) {
  std::uint64_t elements = 1;
  for (std::size_t i = 0; i < tensor.n_dims; ++i) {
    const std::uint64_t n = tensor.shape[i];
    if (n != 0 && elements > (std::uint64_t{1} << 56) / n) return false;
    elements *= n;
  }
  tensor.bytes = elements * tensor.type->bytes;
  return true;
}

// Refuses names that are there twice. `where` names the file.
inline Status check_unique_names(const StoredTensors& tensors, const char* where) {
  std::pmr::vector<std::string_view> names(tensors.get_allocator().resource());
  for (const StoredTensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return {};
  return Error(ErrorCode::bad_format, "%s: tensor '%.*s' is there twice", where,
               printable_length(*twice), twice->data());
}

// The tensor as a matrix: `n_matrices` of them lie one after the other.
inline Result<simd::Matrix> matrix_of(const StoredTensor& tensor, std::uint64_t n_matrices = 1) {
  if (!tensor.type->format) {
    return Error(ErrorCode::unsupported,
                 "tensor '%.*s' has the element type %s; weights in F32, F16 or BF16 are read",
                 printable_length(tensor.name), tensor.name.data(), tensor.type->name);
  }
  if (tensor.n_dims == 0 || tensor.n_dims > 2 || tensor.bytes == 0 ||
      (n_matrices > 1 && (tensor.n_dims != 2 || tensor.shape[0] % n_matrices != 0))) {
    return Error(ErrorCode::bad_format,
                 "tensor '%.*s' has %zu dimensions, the first of %llu; expected one or two, and a "
                 "multiple of %llu",
                 printable_length(tensor.name), tensor.name.data(), tensor.n_dims,
                 static_cast<unsigned long long>(tensor.shape[0]),
                 static_cast<unsigned long long>(n_matrices));
  }
  simd::Matrix matrix;
  matrix.data = tensor.data;
  matrix.cols = static_cast<std::size_t>(tensor.shape[tensor.n_dims - 1]);
  matrix.rows = tensor.n_dims == 1 ? 1 : static_cast<std::size_t>(tensor.shape[0] / n_matrices);
  matrix.row_bytes = matrix.cols * tensor.type->bytes;
  matrix.format = *tensor.type->format;
  return matrix;
}

// Takes `prefix` off the beginning of `text`, if it is there.
inline bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (text.substr(0, prefix.size()) != prefix) return false;
  text.remove_prefix(prefix.size());
  return true;
}

inline Error unknown_tensor(const StoredTensor& tensor) {
  return Error(
      ErrorCode::unsupported,
      "tensor '%.*s' is not part of a Mixtral, Mistral or Llama 2 model; running without it would "
      "give wrong results",
      printable_length(tensor.name), tensor.name.data());
}

// Adds a matrix to the checkpoint, which keeps the name.
inline void add_matrix(const StoredTensor& tensor, Role role, std::uint32_t layer,
                       std::uint32_t expert, const simd::Matrix& matrix, Checkpoint& checkpoint) {
  checkpoint.names.emplace_back(tensor.name);
  checkpoint.tensors.push_back({role, layer, expert, matrix, checkpoint.names.back()});
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_STORED_TENSOR_HPP_
