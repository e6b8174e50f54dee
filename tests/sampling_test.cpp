// Each sampling option against its definition.
#include "support.hpp"

#include <set>

using namespace support;
using mixtral::Sampler;
using mixtral::SamplingOptions;
using mixtral::Token;

namespace {

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, -1.0f, 0.5f, 2.5f, -3.0f, 0.0f};

Sampler make(const SamplingOptions& options, std::size_t vocab_size = kLogits.size()) {
  return value(Sampler::create(options, vocab_size, std::pmr::get_default_resource()));
}

Token draw(Sampler& sampler, const std::vector<float>& logits,
           const std::vector<Token>& history = {}) {
  return sampler.sample({logits.data(), logits.size()}, span(history));
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature = 1.0) {
  std::vector<double> p;
  double sum = 0.0;
  for (const float l : logits) {
    p.push_back(std::exp(static_cast<double>(l) / temperature));
    sum += p.back();
  }
  for (double& v : p) v /= sum;
  return p;
}

// Draws many times and compares with `expected` by a chi-squared test; tokens of probability 0 must
// not be drawn at all.
void check_distribution(SamplingOptions options, const std::vector<double>& expected,
                        const std::vector<float>& logits = kLogits) {
  options.seed = 12345;
  Sampler sampler = make(options, logits.size());
  const int n = 40000;
  std::vector<int> counts(logits.size());
  for (int i = 0; i < n; ++i) ++counts[static_cast<std::size_t>(draw(sampler, logits))];
  double chi_squared = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0.0) {
      CHECK(counts[i] == 0);
    } else {
      const double mean = n * expected[i];
      chi_squared += (counts[i] - mean) * (counts[i] - mean) / mean;
    }
  }
  CHECK(chi_squared < 35.0);  // p < 1e-4 for 7 degrees of freedom
}

// The distribution over the tokens of `kept` at `temperature`.
std::vector<double> over(const std::set<std::size_t>& kept, double temperature = 1.0) {
  std::vector<double> p = softmax(kLogits, temperature);
  double sum = 0.0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (kept.count(i) == 0) p[i] = 0.0;
    sum += p[i];
  }
  for (double& v : p) v /= sum;
  return p;
}

}  // namespace

TEST_CASE("sampling: greedy takes the largest logit, the lowest id among equals") {
  Sampler sampler = make({});
  CHECK(draw(sampler, kLogits) == 1);
  Sampler ties = make({}, 4);
  CHECK(draw(ties, {1.0f, 2.0f, 2.0f, 0.0f}) == 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(draw(ties, {nan, nan, -5.0f, nan}) == 2);
  CHECK(draw(ties, {nan, -inf, nan, inf}) == 3);
  CHECK(draw(ties, {nan, nan, nan, nan}) == 0);
}

TEST_CASE("sampling: temperature") {
  SamplingOptions options;
  options.temperature = 1.0f;
  check_distribution(options, softmax(kLogits));
  options.temperature = 2.0f;
  check_distribution(options, softmax(kLogits, 2.0));
  options.temperature = 0.5f;
  check_distribution(options, softmax(kLogits, 0.5));
}

TEST_CASE("sampling: top-k keeps the k largest") {
  SamplingOptions options;
  options.temperature = 1.0f;
  options.top_k = 3;
  check_distribution(options, over({1, 5, 2}));
  options.top_k = 1;
  check_distribution(options, over({1}));
  options.top_k = 100;
  check_distribution(options, softmax(kLogits));
}

TEST_CASE("sampling: top-p keeps the smallest set that reaches p") {
  // Probabilities, best first: 1, 5, 2, 0, 4, 7, 3, 6.
  const auto p = softmax(kLogits);
  SamplingOptions options;
  options.temperature = 1.0f;
  options.top_p = static_cast<float>(p[1] + p[5] * 0.5);
  check_distribution(options, over({1, 5}));
  options.top_p = static_cast<float>(p[1] + p[5] + p[2] * 0.5);
  check_distribution(options, over({1, 5, 2}));
  options.top_p = 0.0f;
  check_distribution(options, over({1}));
}

TEST_CASE("sampling: min-p keeps what is at least p times as probable as the best") {
  SamplingOptions options;
  options.temperature = 1.0f;
  options.min_p = std::exp(-1.0f) * 0.99f;  // logits down to 2
  check_distribution(options, over({1, 5, 2}));
  options.min_p = 1.0f;
  check_distribution(options, over({1}));
}

TEST_CASE("sampling: typical-p keeps what is nearest to the entropy") {
  const auto p = softmax(kLogits);
  double entropy = 0.0;
  for (const double v : p) entropy -= v * std::log(v);
  std::vector<std::pair<double, std::size_t>> order;
  for (std::size_t i = 0; i < p.size(); ++i)
    order.push_back({std::abs(-std::log(p[i]) - entropy), i});
  std::sort(order.begin(), order.end());
  for (const std::size_t n : {1u, 2u, 4u}) {
    double sum = 0.0;
    std::set<std::size_t> kept;
    for (std::size_t i = 0; i < n; ++i) {
      sum += p[order[i].second];
      kept.insert(order[i].second);
    }
    SamplingOptions options;
    options.temperature = 1.0f;
    options.typical_p = static_cast<float>(sum - 1e-4);
    check_distribution(options, over(kept));
  }
}

TEST_CASE("sampling: filters come before temperature, each on what is left") {
  SamplingOptions options;
  options.top_k = 4;      // 1, 5, 2, 0
  options.top_p = 0.95f;  // of these: 1, 5, 2
  options.temperature = 3.0f;
  const auto four = over({1, 5, 2, 0});
  REQUIRE(four[1] + four[5] < 0.95);
  REQUIRE(four[1] + four[5] + four[2] < 0.95);
  check_distribution(options, over({1, 5, 2, 0}, 3.0));
  options.top_p = static_cast<float>(four[1] + four[5] + four[2] - 1e-3);
  check_distribution(options, over({1, 5, 2}, 3.0));
}

TEST_CASE("sampling: logit bias adds, and minus infinity forbids") {
  SamplingOptions options;
  options.logit_bias = {{6, 10.0f}};
  Sampler raised = make(options);
  CHECK(draw(raised, kLogits) == 6);
  options.logit_bias = {{1, -std::numeric_limits<float>::infinity()}};
  Sampler forbidden = make(options);
  CHECK(draw(forbidden, kLogits) == 5);
  options.temperature = 1.0f;
  check_distribution(options, over({0, 2, 3, 4, 5, 6, 7}));
}

TEST_CASE("sampling: penalties follow their formulas within the window") {
  const auto penalised = [](const SamplingOptions& options, std::vector<float> expected,
                            const std::vector<Token>& history) {
    // The greedy choice among all pairs shows the order of the penalised logits.
    for (std::size_t a = 0; a < expected.size(); ++a) {
      for (std::size_t b = a + 1; b < expected.size(); ++b) {
        SamplingOptions two = options;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          if (i != a && i != b) {
            two.logit_bias.push_back(
                {static_cast<Token>(i), -std::numeric_limits<float>::infinity()});
          }
        }
        Sampler sampler = make(two);
        const auto want = static_cast<Token>(expected[b] > expected[a] ? b : a);
        CHECK(draw(sampler, kLogits, history) == want);
      }
    }
  };
  SamplingOptions options;
  options.repetition_penalty = 2.5f;
  // 1: 3 / 2.5 = 1.2; 3: -1 * 2.5 = -2.5, each once however often they occurred
  penalised(options, {1.0f, 1.2f, 2.0f, -2.5f, 0.5f, 2.5f, -3.0f, 0.0f}, {1, 3, 1, 1});
  options = {};
  options.frequency_penalty = 0.9f;
  penalised(options, {1.0f, 0.3f, 2.0f, -1.9f, 0.5f, 2.5f, -3.0f, 0.0f}, {1, 3, 1, 1});
  options = {};
  options.presence_penalty = 0.9f;
  penalised(options, {1.0f, 2.1f, 2.0f, -1.9f, 0.5f, 2.5f, -3.0f, 0.0f}, {1, 3, 1, 1});
  options.penalty_window = 2;  // only the last two count
  penalised(options, {1.0f, 3.0f, 2.0f, -1.9f, 0.5f, 1.6f, -3.0f, 0.0f}, {1, 1, 3, 5});
  // Counts do not leak from one call to the next.
  Sampler sampler = make(options);
  CHECK(draw(sampler, kLogits, {1, 1}) == 5);
  CHECK(draw(sampler, kLogits, {}) == 1);
}

TEST_CASE("sampling: the same seed gives the same tokens, another seed others") {
  SamplingOptions options;
  options.temperature = 1.5f;
  const auto run = [&](std::uint64_t seed) {
    options.seed = seed;
    Sampler sampler = make(options);
    std::vector<Token> tokens;
    for (int i = 0; i < 50; ++i) tokens.push_back(draw(sampler, kLogits));
    return tokens;
  };
  CHECK(run(1) == run(1));
  CHECK(run(1) != run(2));
}

TEST_CASE("sampling: options out of range are refused by name") {
  const auto refused = [](const SamplingOptions& options, const char* name) {
    const auto result = Sampler::create(options, 8, std::pmr::get_default_resource());
    REQUIRE(!result);
    CHECK(std::string(result.error().message()).find(name) != std::string::npos);
  };
  SamplingOptions options;
  options.temperature = -1.0f;
  refused(options, "temperature");
  options = {};
  options.temperature = std::numeric_limits<float>::quiet_NaN();
  refused(options, "temperature");
  options = {};
  options.top_p = 1.5f;
  refused(options, "top_p");
  options = {};
  options.min_p = -0.1f;
  refused(options, "min_p");
  options = {};
  options.repetition_penalty = 0.0f;
  refused(options, "repetition_penalty");
  options = {};
  options.logit_bias = {{8, 1.0f}};
  refused(options, "logit_bias");
}

TEST_CASE("sampling: log-probabilities are those of the softmax") {
  const auto p = softmax(kLogits);
  for (std::size_t i = 0; i < p.size(); ++i) {
    CHECK(mixtral::log_probability({kLogits.data(), kLogits.size()}, static_cast<Token>(i)) ==
          doctest::Approx(std::log(p[i])));
  }
}

TEST_CASE("sampling: tokens outside the vocabulary and views of the wrong size do no harm") {
  SamplingOptions options;
  options.repetition_penalty = 2.0f;
  Sampler sampler = make(options);
  const auto size = static_cast<Token>(kLogits.size());
  // The likeliest token is penalised, the strangers beside it are not looked at.
  CHECK(draw(sampler, kLogits, {1, size, -1, 1 << 30, std::numeric_limits<Token>::min()}) == 5);
  CHECK(draw(sampler, {}) == mixtral::kNoToken);
  Sampler of_nothing = make({}, 0);
  CHECK(draw(of_nothing, {}) == mixtral::kNoToken);
  CHECK(draw(sampler, {1.0f, 2.0f}) == mixtral::kNoToken);
  CHECK(draw(sampler, std::vector<float>(9, 1.0f)) == mixtral::kNoToken);
  const std::uint64_t none[] = {0};
  CHECK(sampler.sample({kLogits.data(), kLogits.size()}, {}, {none, 1}) == mixtral::kNoToken);
  const std::vector<float> wide(65, 1.0f);
  Sampler of_wide = make({}, wide.size());
  const std::uint64_t too_few[] = {~std::uint64_t{0}};
  CHECK(of_wide.sample({wide.data(), wide.size()}, {}, {too_few, 1}) == mixtral::kNoToken);
}
