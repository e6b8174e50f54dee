// The choice of experts, and how a pass's tokens are sorted by them.
#include "support.hpp"

#include <mixtral/network/router.hpp>

using namespace support;
using mixtral::detail::Assignment;
using mixtral::detail::select_experts;
using mixtral::detail::Slab;
using mixtral::simd::Kernels;

namespace {

using Experts = std::vector<std::uint32_t>;

Experts select(const std::vector<float>& logits, std::size_t k, std::vector<float>& weights) {
  Experts experts(k + 1, 77);
  weights.assign(k + 1, 7.0f);
  select_experts(logits.data(), logits.size(), k, experts.data(), weights.data());
  CHECK(experts.back() == 77);
  CHECK(weights.back() == 7.0f);
  experts.pop_back();
  weights.pop_back();
  return experts;
}

}  // namespace

TEST_CASE("router: the largest logits win, best first, the lower index first among equals") {
  std::vector<float> weights;
  CHECK(select({1.0f, 3.0f, 2.0f, -1.0f}, 2, weights) == Experts{1, 2});
  CHECK(select({0.0f, 0.0f, 0.0f, 0.0f}, 3, weights) == Experts{0, 1, 2});
  CHECK(select({1.0f, 2.0f, 1.0f, 2.0f, 2.0f}, 4, weights) == Experts{1, 3, 4, 0});
  CHECK(select({-5.0f, -4.0f}, 2, weights) == Experts{1, 0});
  CHECK(select({-0.0f, 0.0f}, 1, weights) == Experts{0});
  CHECK(select({5.0f}, 1, weights) == Experts{0});
  CHECK(weights == std::vector<float>{1.0f});
}

TEST_CASE("router: weights are the softmax over the chosen, and no others") {
  std::vector<float> weights;
  CHECK(select({2.0f, 1.0f, 100.0f, 99.0f}, 2, weights) == Experts{2, 3});
  CHECK(weights[0] == doctest::Approx(1.0 / (1.0 + std::exp(-1.0))));
  CHECK(weights[1] == doctest::Approx(std::exp(-1.0) / (1.0 + std::exp(-1.0))));
  CHECK(select({3.0f, 3.0f, 3.0f, 1.0f}, 3, weights) == Experts{0, 1, 2});
  for (const float w : weights) CHECK(w == 1.0f / 3.0f);
  CHECK(select({0.0f, -300.0f}, 2, weights) == Experts{0, 1});  // too small to count
  CHECK(weights == std::vector<float>{1.0f, 0.0f});
  // Large logits do not overflow: differences count.
  CHECK(select({3e38f, 3e38f, 0.0f}, 2, weights) == Experts{0, 1});
  CHECK(weights == std::vector<float>{0.5f, 0.5f});
}

TEST_CASE("router: any logits give different experts of those that there are") {
  const float none = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  const float values[] = {none, infinite, -infinite, 0.0f, 1.0f};
  std::mt19937 random(3);
  std::vector<float> weights;
  for (int i = 0; i < 500; ++i) {
    std::vector<float> logits(1 + random() % 8);
    for (float& x : logits) x = values[random() % 5];
    const std::size_t k = 1 + random() % logits.size();
    Experts experts = select(logits, k, weights);
    std::sort(experts.begin(), experts.end());
    CHECK(std::unique(experts.begin(), experts.end()) == experts.end());
    CHECK(experts.back() < logits.size());
  }
}

TEST_CASE("router: tokens are sorted by expert, in order, and groups have places of their own") {
  const Kernels& kernels = *mixtral::simd::select_kernels();
  const std::size_t lanes = kernels.lanes(), grouped = kernels.min_grouped_tokens;
  struct Case {
    std::size_t n_experts, k, n_rows;
    int kind;  // 0: random; 1: each in turn; 2: all tokens to the first k; 3: nearly enough for groups
  };
  std::vector<Case> cases = {{1, 1, 1, 0}, {8, 2, 1, 0}, {8, 8, 3, 0}, {5, 1, 300, 2}};
  // As many groups as there can be, each of the fewest tokens.
  for (const std::size_t n_experts : {1u, 2u, 3u, 8u}) {
    for (const int kind : {0, 1, 2, 3}) {
      cases.push_back({n_experts, 1, n_experts * grouped, kind});
      cases.push_back({n_experts, 1, n_experts * grouped - 1, kind});
      cases.push_back({n_experts, std::min<std::size_t>(n_experts, 2), 4 * lanes + 1, kind});
      cases.push_back({n_experts, 1, n_experts * (grouped + 1), kind});
    }
  }
  std::mt19937 random(4);
  for (const Case& c : cases) {
    CAPTURE(c.n_experts);
    CAPTURE(c.k);
    CAPTURE(c.n_rows);
    CAPTURE(c.kind);
    Slab measure, slab;
    Assignment assignment;
    assignment.take(measure, c.n_rows, c.n_experts, c.k);
    REQUIRE(slab.reserve(std::pmr::get_default_resource(), measure.used()));
    assignment.take(slab, c.n_rows, c.n_experts, c.k);
    const std::size_t n_places = Assignment::n_places(c.n_rows, c.n_experts, c.k, kernels);
    for (int round = 0; round < 2; ++round) {  // what an earlier pass left does not count
      std::vector<std::vector<std::size_t>> rows_of(c.n_experts);
      for (std::size_t row = 0; row < c.n_rows; ++row) {
        std::vector<std::uint32_t> order(c.n_experts);
        for (std::size_t e = 0; e < order.size(); ++e) order[e] = static_cast<std::uint32_t>(e);
        if (c.kind == 0) std::shuffle(order.begin(), order.end(), random);
        if (c.kind == 1)
          std::rotate(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(row % c.n_experts),
                      order.end());
        if (c.kind == 3) {
          const std::size_t e = std::min(row / (grouped - 1), c.n_experts - 1);
          std::rotate(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(e), order.end());
        }
        for (std::size_t i = 0; i < c.k; ++i) {
          assignment.experts(row)[i] = order[i];
          assignment.weights(row)[i] = static_cast<float>(row * 8 + order[i]);
          rows_of[order[i]].push_back(row);
        }
      }
      assignment.group(c.n_rows, kernels);
      std::size_t n_active = 0, next_slot = 0, next_place = 0;
      for (std::size_t e = 0; e < c.n_experts; ++e) {
        const std::size_t count = rows_of[e].size();
        CHECK(assignment.count(e) == count);
        CHECK(assignment.begin(e) == next_slot);
        for (std::size_t t = 0; t < count; ++t) {
          CHECK(assignment.slot_row(next_slot + t) == rows_of[e][t]);
          CHECK(assignment.slot_weight(next_slot + t) == static_cast<float>(rows_of[e][t] * 8 + e));
        }
        next_slot += count;
        if (count == 0) continue;
        REQUIRE(n_active < assignment.n_active());
        CHECK(assignment.active(n_active++) == e);
        CHECK(assignment.place(e) >= next_place);
        const bool in_groups = kernels.in_groups(count);
        if (in_groups) CHECK(assignment.place(e) % lanes == 0);
        next_place =
            assignment.place(e) + (in_groups ? (count + lanes - 1) / lanes * lanes : count);
        CHECK(next_place <= n_places);
      }
      CHECK(n_active == assignment.n_active());
    }
  }
}
