// The keys and values of one session's past.
#ifndef MIXTRAL_NETWORK_KV_CACHE_HPP_
#define MIXTRAL_NETWORK_KV_CACHE_HPP_

#include <cstddef>

#include "mixtral/config.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

// float32 [layer][kv head][slot][head_size], keys and values apart, so that one head's past is one
// contiguous stream. Position p is in slot p modulo the number of slots, which is a multiple of
// simd::kAttentionBlock: a block of positions never wraps.
class KvCache {
 public:
  // For `n_positions` in all, of which the last n_live must be there at once.
  void take(Slab& slab, const Config& config, std::size_t n_positions, std::size_t n_live) {
    constexpr std::size_t kBlock = simd::kAttentionBlock;
    n_kv_heads_ = config.n_kv_heads;
    head_size_ = config.head_size;
    n_slots_ = n_live < n_positions ? n_live : n_positions;
    n_slots_ = (n_slots_ + kBlock - 1) / kBlock * kBlock;
    const std::size_t size = std::size_t{config.n_layers} * config.kv_dim() * n_slots_;
    keys_ = slab.take<float>(size);
    values_ = slab.take<float>(size);
  }

  float* key(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return keys_ + index(layer, head, position);
  }
  float* value(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return values_ + index(layer, head, position);
  }

  // All slots of one head.
  simd::KeysAndValues head(std::size_t layer, std::size_t head) const noexcept {
    return {key(layer, head, 0), value(layer, head, 0), head_size_, n_slots_};
  }

 private:
  std::size_t index(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return ((layer * n_kv_heads_ + head) * n_slots_ + position % n_slots_) * head_size_;
  }

  std::size_t n_kv_heads_ = 0;
  std::size_t head_size_ = 0;
  std::size_t n_slots_ = 0;
  float* keys_ = nullptr;
  float* values_ = nullptr;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_KV_CACHE_HPP_
