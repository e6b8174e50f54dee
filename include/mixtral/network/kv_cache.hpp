// The keys and values of one session's past.
#ifndef MIXTRAL_NETWORK_KV_CACHE_HPP_
#define MIXTRAL_NETWORK_KV_CACHE_HPP_

#include <cstddef>

#include "mixtral/config.hpp"
#include "mixtral/impl/slab.hpp"

namespace mixtral::detail {

// float32 [layer][kv head][position][head_size], keys and values apart; positions are dense, so one
// head's past is one contiguous stream.
class KvCache {
 public:
  void take(Slab& slab, const Config& config, std::size_t n_positions) {
    n_kv_heads_ = config.n_kv_heads;
    head_size_ = config.head_size;
    n_positions_ = n_positions;
    const std::size_t size = std::size_t{config.n_layers} * config.kv_dim() * n_positions;
    keys_ = slab.take<float>(size);
    values_ = slab.take<float>(size);
  }

  float* key(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return keys_ + index(layer, head, position);
  }
  float* value(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return values_ + index(layer, head, position);
  }

 private:
  std::size_t index(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return ((layer * n_kv_heads_ + head) * n_positions_ + position) * head_size_;
  }

  std::size_t n_kv_heads_ = 0;
  std::size_t head_size_ = 0;
  std::size_t n_positions_ = 0;
  float* keys_ = nullptr;
  float* values_ = nullptr;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_KV_CACHE_HPP_
