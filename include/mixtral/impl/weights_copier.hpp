// Weights in the host's memory instead of a mapped file.
#ifndef MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_
#define MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_

#include <cstring>
#include <limits>

#include "mixtral/checkpoint.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

// Copies what the tensors of a checkpoint point to, interleaved where `kernels` can, and lets them point to
// the copy, which replaces the checkpoint's files. Errors: out_of_memory.
inline Result<Slab> copy_weights(Checkpoint& checkpoint, const simd::Kernels& kernels,
                                 std::pmr::memory_resource* resource) {
  const auto copied = [&](simd::Matrix matrix) {
    const std::size_t row_bytes = kernels.interleaved_row_bytes(matrix);
    if (row_bytes == 0) return matrix;
    matrix.row_bytes = row_bytes;
    matrix.interleaved = kernels.lanes();
    return matrix;
  };
  std::uint64_t size = 0;
  for (const NamedTensor& tensor : checkpoint.tensors) {
    size += (copied(tensor.matrix).bytes() + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
  }
  Slab slab;
  if (size > std::numeric_limits<std::size_t>::max() ||
      !slab.reserve(resource, static_cast<std::size_t>(size))) {
    return Error(ErrorCode::out_of_memory,
                 "no memory for a copy of %llu bytes of weights; without "
                 "ModelOptions::copy_weights they stay in the file",
                 static_cast<unsigned long long>(size));
  }
  for (NamedTensor& tensor : checkpoint.tensors) {
    simd::Matrix copy = copied(tensor.matrix);
    const auto bytes = static_cast<std::size_t>(copy.bytes());
    auto* data = slab.take<std::uint8_t>(bytes);
    if (copy.interleaved != 0) {
      kernels.interleave(tensor.matrix, data);
    } else {
      std::memcpy(data, tensor.matrix.data, bytes);
    }
    copy.data = data;
    tensor.matrix = copy;
  }
  return slab;
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_
