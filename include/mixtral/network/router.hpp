// The sparse part of a mixture of experts: which experts work on a token, and which tokens an expert
// works on (Jiang et al. 2024, "Mixtral of Experts", section 2.1).
#ifndef MIXTRAL_NETWORK_ROUTER_HPP_
#define MIXTRAL_NETWORK_ROUTER_HPP_

#include <cstddef>
#include <cstdint>

#include "mixtral/impl/slab.hpp"
#include "mixtral/network/activations.hpp"
#include "mixtral/network/portable_math.hpp"

namespace mixtral::detail {

// Writes the indices of the k largest logits, best first, the lower index first among equals, and
// the softmax over those k. Terminates with k distinct indices for any input, NaN included.
inline void select_experts(const float* logits, std::size_t n_experts, std::size_t k,
                           std::uint32_t* experts, float* weights) {
  for (std::size_t i = 0; i < k; ++i) {
    std::size_t best = n_experts;
    for (std::size_t e = 0; e < n_experts; ++e) {
      bool taken = false;
      for (std::size_t j = 0; j < i; ++j) taken = taken || experts[j] == e;
      if (!taken && (best == n_experts || logits[e] > logits[best])) best = e;
    }
    experts[i] = static_cast<std::uint32_t>(best);
  }
  float sum = 0.0f;
  for (std::size_t i = 0; i < k; ++i) {
    const float difference = logits[experts[i]] - logits[experts[0]];
    weights[i] = static_cast<float>(portable::exp(static_cast<double>(difference)));
    sum += weights[i];
  }
  for (std::size_t i = 0; i < k; ++i) weights[i] /= sum;
}

// The (token, expert) pairs of a pass, grouped by expert.
class Assignment {
 public:
  void take(Slab& slab, std::size_t n_rows, std::size_t n_experts, std::size_t k) {
    n_experts_ = n_experts;
    k_ = k;
    experts_ = slab.take<std::uint32_t>(n_rows * k);
    weights_ = slab.take<float>(n_rows * k);
    slot_row_ = slab.take<std::uint32_t>(n_rows * k);
    slot_weight_ = slab.take<float>(n_rows * k);
    begin_ = slab.take<std::uint32_t>(n_experts + 1);
    place_ = slab.take<std::uint32_t>(n_experts);
    cursor_ = slab.take<std::uint32_t>(n_experts);
    active_ = slab.take<std::uint32_t>(n_experts);
  }

  // What the router chose for a row: k entries each.
  std::uint32_t* experts(std::size_t row) const noexcept { return experts_ + row * k_; }
  float* weights(std::size_t row) const noexcept { return weights_ + row * k_; }

  // Sorts the pairs of n_rows rows by expert, rows in order within one: a counting sort. Experts with
  // many tokens get memory for them in groups.
  void group(std::size_t n_rows, const simd::Kernels& kernels) {
    const std::size_t lanes = kernels.lanes();
    for (std::size_t e = 0; e <= n_experts_; ++e) begin_[e] = 0;
    for (std::size_t i = 0; i < n_rows * k_; ++i) ++begin_[experts_[i] + 1];
    n_active_ = 0;
    std::size_t place = 0;
    for (std::size_t e = 0; e < n_experts_; ++e) {
      const std::size_t count = begin_[e + 1];
      if (count != 0) active_[n_active_++] = static_cast<std::uint32_t>(e);
      if (kernels.in_groups(count)) place = round_up(place, lanes);
      place_[e] = static_cast<std::uint32_t>(place);
      place += kernels.in_groups(count) ? round_up(count, lanes) : count;
      begin_[e + 1] += begin_[e];
      cursor_[e] = begin_[e];
    }
    for (std::size_t row = 0; row < n_rows; ++row) {
      for (std::size_t i = 0; i < k_; ++i) {
        const std::uint32_t slot = cursor_[experts(row)[i]]++;
        slot_row_[slot] = static_cast<std::uint32_t>(row);
        slot_weight_[slot] = weights(row)[i];
      }
    }
  }

  std::size_t n_active() const noexcept { return n_active_; }
  std::size_t active(std::size_t i) const noexcept { return active_[i]; }
  // The slots of an expert: [begin, begin + count).
  std::size_t begin(std::size_t expert) const noexcept { return begin_[expert]; }
  std::size_t count(std::size_t expert) const noexcept {
    return begin_[expert + 1] - begin_[expert];
  }
  // Where the expert's tokens lie among all experts' activations: place + t, with gaps.
  std::size_t place(std::size_t expert) const noexcept { return place_[expert]; }
  // How many places there are at most for n_rows rows.
  static std::size_t n_places(std::size_t n_rows, std::size_t n_experts, std::size_t k,
                              const simd::Kernels& kernels) noexcept {
    const std::size_t n_slots = n_rows * k;
    const std::size_t most_grouped = n_slots / kernels.min_grouped_tokens;
    return n_slots + 2 * kernels.lanes() * (most_grouped < n_experts ? most_grouped : n_experts);
  }
  std::size_t slot_row(std::size_t slot) const noexcept { return slot_row_[slot]; }
  float slot_weight(std::size_t slot) const noexcept { return slot_weight_[slot]; }

 private:
  std::size_t n_experts_ = 0;
  std::size_t k_ = 0;
  std::size_t n_active_ = 0;
  std::uint32_t* experts_ = nullptr;
  float* weights_ = nullptr;
  std::uint32_t* slot_row_ = nullptr;
  float* slot_weight_ = nullptr;
  std::uint32_t* begin_ = nullptr;   // [n_experts + 1]
  std::uint32_t* place_ = nullptr;   // [n_experts]
  std::uint32_t* cursor_ = nullptr;  // [n_experts]
  std::uint32_t* active_ = nullptr;  // experts with at least one token
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_ROUTER_HPP_
