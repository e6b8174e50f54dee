// The keys and values of one session's past.
#ifndef MIXTRAL_NETWORK_KV_CACHE_HPP_
#define MIXTRAL_NETWORK_KV_CACHE_HPP_

#include <cstddef>

#include "mixtral/config.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/network/activations.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

// [layer][kv head][slot][head_size] in one of the formats that attention reads, keys and values apart,
// so that one head's past is one contiguous stream. Position p is in slot p modulo the number of slots,
// which is a multiple of simd::kAttentionBlock: a block of positions never wraps.
class KvCache {
 public:
  // For `n_positions` in all, of which the last n_live must be there at once.
  void take(Slab& slab, const Config& config, BlockFormat format, std::size_t n_positions,
            std::size_t n_live) {
    const BlockFormatInfo& info = *block_format_info(format);
    format_ = format;
    n_kv_heads_ = config.n_kv_heads;
    row_bytes_ = config.head_size / info.block_size * info.block_bytes;
    n_slots_ = n_live < n_positions ? n_live : n_positions;
    n_slots_ = round_up(n_slots_, simd::kAttentionBlock);
    const std::size_t n_rows = std::size_t{config.n_layers} * config.n_kv_heads * n_slots_;
    keys_ = slab.take<std::uint8_t>(n_rows * row_bytes_);
    values_ = slab.take<std::uint8_t>(n_rows * row_bytes_);
  }

  BlockFormat format() const noexcept { return format_; }

  std::uint8_t* key(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return keys_ + index(layer, head, position);
  }
  std::uint8_t* value(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return values_ + index(layer, head, position);
  }

  // All slots of one head.
  simd::KeysAndValues head(std::size_t layer, std::size_t head) const noexcept {
    return {key(layer, head, 0), value(layer, head, 0), row_bytes_, n_slots_, format_};
  }

 private:
  std::size_t index(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return ((layer * n_kv_heads_ + head) * n_slots_ + position % n_slots_) * row_bytes_;
  }

  BlockFormat format_ = BlockFormat::f32;
  std::size_t n_kv_heads_ = 0;
  std::size_t row_bytes_ = 0;
  std::size_t n_slots_ = 0;
  std::uint8_t* keys_ = nullptr;
  std::uint8_t* values_ = nullptr;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_KV_CACHE_HPP_
