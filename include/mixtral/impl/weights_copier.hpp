// Weights in the host's memory instead of a mapped file.
#ifndef MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_
#define MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_

#include <cstring>
#include <limits>
#include <vector>

#include "mixtral/checkpoint.hpp"
#include "mixtral/error.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/progress.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

// Copies what the tensors of a checkpoint point to, interleaved where `kernels` can, and lets them point to
// the copy, which replaces the checkpoint's files. An expert's w1 and w3, whose rows are multiplied in turns, lie
// in turns, too: measured, memory is read a third faster as one stream. The checkpoint's tensors are those
// of its configuration. Errors: out_of_memory, also thrown; cancelled.
class WeightsCopier {
 public:
  WeightsCopier(Checkpoint& checkpoint, const simd::Kernels& kernels, ProgressListener progress,
                std::pmr::memory_resource* resource)
      : checkpoint_(checkpoint),
        kernels_(kernels),
        progress_(progress),
        resource_(resource),
        w3_(resource) {
    w3_.resize(std::size_t{checkpoint.config.n_layers} * checkpoint.config.n_experts);
    for (NamedTensor& tensor : checkpoint.tensors) {
      if (tensor.role == Role::w3) w3_[expert_of(tensor)] = &tensor;
    }
  }

  Result<Slab> copy() {
    std::uint64_t size = 0;
    for (const NamedTensor& tensor : checkpoint_.tensors) {
      const std::uint64_t bytes = copied(tensor.matrix).bytes();
      size += Slab::room_for(bytes);
      if (const NamedTensor* other = paired_with(tensor)) {
        const std::uint64_t other_bytes = copied(other->matrix).bytes();
        // The two are one piece, not the two that are counted for them.
        size += Slab::room_for(bytes + other_bytes);
        size -= Slab::room_for(bytes) + Slab::room_for(other_bytes);
      }
    }
    Slab slab;
    if (size > std::numeric_limits<std::size_t>::max() ||
        !slab.reserve(resource_, static_cast<std::size_t>(size))) {
      return Error(ErrorCode::out_of_memory,
                   "no memory for a copy of %llu bytes of weights; without "
                   "ModelOptions::copy_weights they stay in the file",
                   static_cast<unsigned long long>(size));
    }
    MIXTRAL_RETURN_IF_ERROR(tell_progress(slab, size));
    // Pairs first: all else does not belong to one or was not yet copied.
    for (NamedTensor& tensor : checkpoint_.tensors) {
      if (NamedTensor* other = paired_with(tensor)) {
        copy_pair(slab, tensor.matrix, other->matrix);
        drop_pages();
        MIXTRAL_RETURN_IF_ERROR(tell_progress(slab, size));
      }
    }
    for (NamedTensor& tensor : checkpoint_.tensors) {
      if (tensor.matrix.gap_bytes != 0) continue;
      copy_one(slab, tensor.matrix);
      drop_pages();
      MIXTRAL_RETURN_IF_ERROR(tell_progress(slab, size));
    }
    return slab;
  }

 private:
  Status tell_progress(const Slab& slab, std::uint64_t size) const {
    const std::uint64_t n_done = slab.used();
    const auto state = n_done == size ? Progress::done : Progress::working;
    if (progress_(Progress(state, n_done, size))) return {};
    return Error(ErrorCode::cancelled, "cancelled after copying %llu of %llu bytes of weights",
                 static_cast<unsigned long long>(n_done), static_cast<unsigned long long>(size));
  }

  // There is no need for room for the file and the copy at the same time.
  void drop_pages() const noexcept {
    for (const Bytes& file : checkpoint_.files) file.drop_pages();
  }

  std::size_t expert_of(const NamedTensor& tensor) const noexcept {
    return std::size_t{tensor.layer} * checkpoint_.config.n_experts + tensor.expert;
  }

  simd::Matrix copied(simd::Matrix matrix) const {
    const std::size_t row_bytes = kernels_.interleaved_row_bytes(matrix);
    if (row_bytes == 0) return matrix;
    matrix.row_bytes = row_bytes;
    matrix.interleaved = kernels_.lanes();
    return matrix;
  }

  // The w3 that lies in turns with this tensor; null if it is no w1, or they cannot lie so.
  NamedTensor* paired_with(const NamedTensor& tensor) const {
    if (tensor.role != Role::w1) return nullptr;
    NamedTensor* const other = w3_[expert_of(tensor)];
    return can_pair(copied(tensor.matrix), copied(other->matrix)) ? other : nullptr;
  }

  static bool can_pair(const simd::Matrix& a, const simd::Matrix& b) noexcept {
    return a.interleaved != 0 && b.interleaved != 0 && a.rows == b.rows &&
           a.rows % simd::kMaxMatmulRows == 0;
  }

  static std::uint8_t* take(Slab& slab, std::uint64_t bytes) noexcept {
    return slab.take<std::uint8_t>(static_cast<std::size_t>(bytes));
  }

  void copy_one(Slab& slab, simd::Matrix& matrix) const {
    simd::Matrix copy = copied(matrix);
    std::uint8_t* data = take(slab, copy.bytes());
    if (copy.interleaved != 0) {
      kernels_.interleave(matrix, data);
    } else {
      std::memcpy(data, matrix.data, static_cast<std::size_t>(copy.bytes()));
    }
    copy.data = data;
    matrix = copy;
  }

  void copy_pair(Slab& slab, simd::Matrix& a, simd::Matrix& b) const {
    simd::Matrix copy_a = copied(a), copy_b = copied(b);
    const std::size_t bytes_a = simd::kMaxMatmulRows * copy_a.row_bytes;
    const std::size_t bytes_b = simd::kMaxMatmulRows * copy_b.row_bytes;
    std::uint8_t* data = take(slab, copy_a.bytes() + copy_b.bytes());
    copy_a.data = data;
    copy_b.data = data + bytes_a;
    copy_a.gap_bytes = bytes_b;
    copy_b.gap_bytes = bytes_a;
    const auto copy_rows = [&](simd::Matrix matrix, std::size_t first_row) {
      matrix.data += first_row * matrix.row_bytes;
      matrix.rows = simd::kMaxMatmulRows;
      kernels_.interleave(matrix, data);
    };
    for (std::size_t row = 0; row < a.rows; row += simd::kMaxMatmulRows) {
      copy_rows(a, row);
      data += bytes_a;
      copy_rows(b, row);
      data += bytes_b;
    }
    a = copy_a;
    b = copy_b;
  }

  Checkpoint& checkpoint_;
  const simd::Kernels& kernels_;
  ProgressListener progress_;
  std::pmr::memory_resource* resource_;
  std::pmr::vector<NamedTensor*> w3_;  // of each layer's experts
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_
