// Weights in the host's memory instead of a mapped file.
#ifndef MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_
#define MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_

#include <algorithm>
#include <cstring>

#include "mixtral/checkpoint.hpp"
#include "mixtral/impl/slab.hpp"

namespace mixtral::detail {

// Copies what the tensors of a checkpoint point to, and lets them point to the copy, which replaces the
// checkpoint's files.
class WeightsCopier {
 public:
  explicit WeightsCopier(Checkpoint& checkpoint) noexcept : tensors_(checkpoint.tensors) {}

  Result<Bytes> run(std::pmr::memory_resource* resource) {
    std::uint64_t size = 0;
    for (const NamedTensor& tensor : tensors_) size += stored_bytes(tensor);
    Result<Bytes> copy = Bytes::read_all(size, &WeightsCopier::read, this, resource);
    if (!copy) return copy;
    const std::uint8_t* data = copy->data();
    for (NamedTensor& tensor : tensors_) {
      tensor.matrix.data = data;
      data += stored_bytes(tensor);
    }
    return copy;
  }

 private:
  static std::uint64_t stored_bytes(const NamedTensor& tensor) noexcept {
    return (tensor.matrix.bytes() + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
  }

  // Pieces are asked for in their order.
  static bool read(void* context, std::uint64_t, void* destination, std::size_t size) {
    auto& self = *static_cast<WeightsCopier*>(context);
    auto* to = static_cast<std::uint8_t*>(destination);
    while (size > 0) {
      const NamedTensor& tensor = self.tensors_[self.tensor_];
      const std::uint64_t left = stored_bytes(tensor) - self.done_;
      const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(size, left));
      const std::uint64_t there =
          tensor.matrix.bytes() - std::min(self.done_, tensor.matrix.bytes());
      const std::size_t n_there = static_cast<std::size_t>(std::min<std::uint64_t>(n, there));
      if (n_there > 0) std::memcpy(to, tensor.matrix.data + self.done_, n_there);
      std::memset(to + n_there, 0, n - n_there);
      to += n;
      size -= n;
      self.done_ += n;
      if (n < left) break;
      self.done_ = 0;
      ++self.tensor_;
    }
    return true;
  }

  std::pmr::vector<NamedTensor>& tensors_;
  std::size_t tensor_ = 0;
  std::uint64_t done_ = 0;  // of this tensor
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_WEIGHTS_COPIER_HPP_
