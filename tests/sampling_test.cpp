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

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// The tokens that n draws give, each as often as it comes.
std::set<Token> drawn(const SamplingOptions& options, const std::vector<float>& logits,
                      int n = 400) {
  Sampler sampler = make(options, logits.size());
  std::set<Token> tokens;
  for (int i = 0; i < n; ++i) tokens.insert(draw(sampler, logits));
  return tokens;
}

SamplingOptions random_options() {
  SamplingOptions options;
  options.temperature = 1.0f;
  options.seed = 77;
  return options;
}

}  // namespace

TEST_CASE("sampling: a bias that makes no number of a logit forbids its token") {
  SamplingOptions options;
  options.logit_bias = {{0, kInfinity}};
  Sampler raised = make(options, 3);
  CHECK(draw(raised, {1.0f, 2.0f, 3.0f}) == 0);
  CHECK(draw(raised, {-kInfinity, 2.0f, 3.0f}) == 2);  // minus infinity and infinity
  CHECK(draw(raised, {std::numeric_limits<float>::quiet_NaN(), 2.0f, 3.0f}) == 2);
  // Several biases of one token are added one after the other.
  options.logit_bias = {{0, kInfinity}, {0, -kInfinity}, {1, 1.0f}, {1, 1.5f}};
  Sampler forbidden = make(options, 3);
  CHECK(draw(forbidden, {5.0f, 1.0f, 3.0f}) == 1);
  options.temperature = 1.0f;
  CHECK(drawn(options, {5.0f, 1.0f, 3.0f}).count(0) == 0);
  options.logit_bias = {{0, -kInfinity}, {0, kInfinity}};
  CHECK(drawn(options, {5.0f, 1.0f, 3.0f}) == std::set<Token>{1, 2});
}

TEST_CASE(
    "sampling: infinite logits are the largest number, and all forbidden leaves the lowest id") {
  CHECK(drawn(random_options(), {kInfinity, 1.0f, kInfinity, kLargest}) ==
        std::set<Token>{0, 2, 3});
  CHECK(drawn(random_options(), {-kInfinity, -kInfinity}) == std::set<Token>{0});
  SamplingOptions filtered = random_options();
  filtered.top_p = 0.5f;
  filtered.typical_p = 0.5f;
  filtered.min_p = 0.5f;
  filtered.top_k = 2;
  CHECK(drawn(filtered, {-kInfinity, -kInfinity}) == std::set<Token>{0});
  CHECK(drawn(filtered, {-kInfinity, 1.0f}) == std::set<Token>{1});
  // A bias cannot make more of one than that either.
  SamplingOptions options = random_options();
  options.logit_bias = {{1, kLargest}};
  CHECK(drawn(options, {kLargest, kLargest, 0.0f}) == std::set<Token>{0, 1});
}

TEST_CASE("sampling: limits of the filters, and ties at them") {
  const std::vector<float> equal(4, 0.25f);  // of which each has a quarter, exactly
  const auto with = [&](const std::function<void(SamplingOptions&)>& change) {
    SamplingOptions options = random_options();
    change(options);
    return drawn(options, equal);
  };
  using Tokens = std::set<Token>;
  CHECK(with([](SamplingOptions&) {}) == Tokens{0, 1, 2, 3});
  // top_k: 0 is off; of equal ones the lowest ids stay.
  for (std::uint32_t k = 1; k <= 5; ++k) {
    Tokens expected;
    for (Token t = 0; t < 4 && t < static_cast<Token>(k); ++t) expected.insert(t);
    CHECK(with([&](SamplingOptions& o) { o.top_k = k; }) == expected);
  }
  // top_p: as many as it takes to reach p, one at least.
  const std::pair<float, std::size_t> sums[] = {{0.0f, 1}, {0.25f, 1}, {0.2500001f, 2}, {0.5f, 2},
                                                {0.6f, 3}, {0.75f, 3}, {0.75001f, 4},   {1.0f, 4}};
  for (const auto& [sum, n] : sums) {
    const float most = sum;
    CAPTURE(most);
    Tokens expected;
    for (Token t = 0; t < static_cast<Token>(n); ++t) expected.insert(t);
    CHECK(with([&](SamplingOptions& o) { o.top_p = most; }) == expected);
    // All are as typical.
    CHECK(with([&](SamplingOptions& o) { o.typical_p = most; }) == expected);
  }
  // min_p: all that are as probable as the best are enough for 1.
  CHECK(with([](SamplingOptions& o) { o.min_p = 1.0f; }) == Tokens{0, 1, 2, 3});
  SamplingOptions options = random_options();
  options.min_p = 1.0f;
  CHECK(drawn(options, {1.0f, 2.0f, 2.0f, 1.9999f}) == Tokens{1, 2});
  // Without temperature no filter counts.
  options = {};
  options.min_p = options.top_p = options.typical_p = 0.5f;
  options.top_k = 1;
  CHECK(drawn(options, {1.0f, 2.0f, 2.0f}) == Tokens{1});
}

TEST_CASE("sampling: what typical-p leaves over is ordered by probability again") {
  const auto p = softmax(kLogits);
  double entropy = 0.0;
  for (const double v : p) entropy -= v * std::log(v);
  std::vector<std::pair<double, Token>> order;
  for (std::size_t i = 0; i < p.size(); ++i) {
    order.push_back({std::abs(-std::log(p[i]) - entropy), static_cast<Token>(i)});
  }
  std::sort(order.begin(), order.end());
  // Three are kept, of which the best is not the most typical.
  std::vector<Token> kept = {order[0].second, order[1].second, order[2].second};
  const auto less = [](Token a, Token b) {
    return kLogits[static_cast<std::size_t>(a)] < kLogits[static_cast<std::size_t>(b)];
  };
  const Token best = *std::max_element(kept.begin(), kept.end(), less);
  REQUIRE(best != order[0].second);
  double sum = 0.0;
  for (const Token token : kept) sum += p[static_cast<std::size_t>(token)];
  SamplingOptions options = random_options();
  options.typical_p = static_cast<float>(sum - 1e-4);
  CHECK(drawn(options, kLogits) == std::set<Token>(kept.begin(), kept.end()));
  options.top_p = 0.0f;
  CHECK(drawn(options, kLogits) == std::set<Token>{best});
  options.top_p = 1.0f;
  options.min_p = 1.0f;
  CHECK(drawn(options, kLogits) == std::set<Token>{best});
}

TEST_CASE("sampling: temperatures from the least to the largest") {
  SamplingOptions options = random_options();
  options.temperature = std::numeric_limits<float>::min();
  CHECK(drawn(options, kLogits) == std::set<Token>{1});
  options.temperature = 1e-3f;
  CHECK(drawn(options, kLogits) == std::set<Token>{1});
  options.temperature = kLargest;
  check_distribution(
      options, std::vector<double>(kLogits.size(), 1.0 / static_cast<double>(kLogits.size())));
}

TEST_CASE("sampling: penalties count the last tokens of the window, after the bias") {
  SamplingOptions options;
  options.presence_penalty = 1.0f;
  const auto greedy = [&](const std::vector<float>& logits, const std::vector<Token>& history) {
    Sampler sampler = make(options, logits.size());
    return draw(sampler, logits, history);
  };
  // Token 0 is the best by half of the penalty.
  const std::vector<float> logits = {2.0f, 1.5f, 0.0f};
  options.penalty_window = 0;
  CHECK(greedy(logits, {0, 0}) == 0);
  options.penalty_window = 1;
  CHECK(greedy(logits, {0}) == 1);
  CHECK(greedy(logits, {0, 2}) == 0);
  options.penalty_window = 3;
  CHECK(greedy(logits, {0, 2, 2}) == 1);
  CHECK(greedy(logits, {0, 2, 2, 2}) == 0);
  options.penalty_window = std::numeric_limits<std::uint32_t>::max();
  CHECK(greedy(logits, {0, 2, 2, 2}) == 1);
  options = {};
  options.presence_penalty = 1.0f;  // with a window of 64
  std::vector<Token> history(64, 2);
  history[0] = 0;
  CHECK(greedy(logits, history) == 1);
  history.push_back(2);
  CHECK(greedy(logits, history) == 0);
  // Below zero they raise a token, and the repetition penalty does below one.
  options.presence_penalty = -1.0f;
  CHECK(greedy(logits, {1}) == 1);
  options.presence_penalty = 0.0f;
  options.frequency_penalty = -0.3f;
  CHECK(greedy(logits, {1}) == 0);
  CHECK(greedy(logits, {1, 1}) == 1);
  options.frequency_penalty = 0.0f;
  options.repetition_penalty = 0.5f;
  CHECK(greedy(logits, {1}) == 1);
  // A logit of 0 stays, whatever the repetition penalty.
  options.repetition_penalty = 1000.0f;
  CHECK(greedy({0.0f, -0.1f}, {0}) == 0);
  // A biased logit is penalised as it has become: 0.5 + 3.5, then half of it.
  options.repetition_penalty = 2.0f;
  options.logit_bias = {{0, 3.5f}};
  CHECK(greedy({0.5f, 2.1f}, {0}) == 1);
  CHECK(greedy({0.5f, 1.9f}, {0}) == 0);
  // All three together: 4 / 2 - (2 * 0.5 + 0.25) = 0.75.
  options.logit_bias.clear();
  options.frequency_penalty = 0.5f;
  options.presence_penalty = 0.25f;
  CHECK(greedy({4.0f, 0.76f}, {0, 0}) == 1);
  CHECK(greedy({4.0f, 0.74f}, {0, 0}) == 0);
}

TEST_CASE("sampling: of the tokens allowed only, wherever their bits are") {
  const std::size_t n = 130;
  std::vector<float> logits(n);
  for (std::size_t i = 0; i < n; ++i) logits[i] = static_cast<float>(i % 7);
  for (const bool random : {false, true}) {
    SamplingOptions options;
    if (random) options = random_options();
    Sampler sampler = make(options, n);
    for (const std::size_t only : {0u, 1u, 63u, 64u, 65u, 127u, 128u, 129u}) {
      std::uint64_t allowed[3] = {};
      allowed[only / 64] = std::uint64_t{1} << (only % 64);
      CHECK(sampler.sample({logits.data(), n}, {}, {allowed, 3}) == static_cast<Token>(only));
      CHECK(sampler.sample({logits.data(), n}, {}, {allowed, 2}) == mixtral::kNoToken);
    }
    // A token that is allowed and forbidden by its bias is the last resort.
    std::uint64_t allowed[3] = {0, 1, 0};
    logits[64] = -kInfinity;
    CHECK(sampler.sample({logits.data(), n}, {}, {allowed, 3}) == 64);
    logits[64] = 1.0f;
  }
  // More words than needed do no harm.
  const std::vector<float> few = {1.0f, 3.0f, 2.0f};
  const std::uint64_t words[] = {5, ~std::uint64_t{0}};
  Sampler sampler = make({}, 3);
  CHECK(sampler.sample({few.data(), 3}, {}, {words, 2}) == 2);
}

TEST_CASE("sampling: a draw takes 53 bits of std::mt19937_64, and what is greedy takes none") {
  SamplingOptions options = random_options();
  const std::vector<float> equal(8, 1.0f);
  Sampler sampler = make(options, equal.size());
  std::mt19937_64 random(options.seed);
  const auto expected = [&] {
    const double point = static_cast<double>(random() >> 11) * 0x1p-53;
    return static_cast<Token>(point * 8.0);  // candidates are in the order of their ids
  };
  for (int i = 0; i < 50; ++i) CHECK(draw(sampler, equal) == expected());
  // Options of the same seed go on with its numbers, others begin a stream.
  options.temperature = 0.0f;
  REQUIRE(sampler.set_options(options));
  for (int i = 0; i < 3; ++i) CHECK(draw(sampler, equal) == 0);
  options.temperature = 2.0f;
  REQUIRE(sampler.set_options(options));
  for (int i = 0; i < 20; ++i) CHECK(draw(sampler, equal) == expected());
  options.seed = 78;
  REQUIRE(sampler.set_options(options));
  random.seed(78);
  for (int i = 0; i < 20; ++i) CHECK(draw(sampler, equal) == expected());
  // Options that are refused change nothing.
  SamplingOptions bad = options;
  bad.seed = 1;
  bad.temperature = -1.0f;
  bad.logit_bias = {{0, 100.0f}};
  CHECK(!sampler.set_options(bad));
  for (int i = 0; i < 20; ++i) CHECK(draw(sampler, equal) == expected());
  // With a filter, candidates are in the order of their logits.
  options.top_k = 8;
  REQUIRE(sampler.set_options(options));
  std::vector<float> rising(8);
  for (std::size_t i = 0; i < 8; ++i) rising[i] = static_cast<float>(i) * 1e-9f;
  for (int i = 0; i < 20; ++i) CHECK(draw(sampler, rising) == 7 - expected());
  const std::size_t before = heap_allocations();
  for (int i = 0; i < 5; ++i) draw(sampler, rising);
  CHECK(heap_allocations() == before);
}

TEST_CASE("sampling: options at the limits of their ranges are taken, those beyond are refused") {
  struct Range {
    const char* name;
    float SamplingOptions::*option;
    float low, high;
  };
  const float above_one = std::nextafter(1.0f, 2.0f),
              below_zero = -std::numeric_limits<float>::denorm_min();
  const float least = std::numeric_limits<float>::min();
  for (const Range& range :
       {Range{"temperature", &SamplingOptions::temperature, 0.0f, kLargest},
        Range{"typical_p", &SamplingOptions::typical_p, 0.0f, 1.0f},
        Range{"top_p", &SamplingOptions::top_p, 0.0f, 1.0f},
        Range{"min_p", &SamplingOptions::min_p, 0.0f, 1.0f},
        Range{"repetition_penalty", &SamplingOptions::repetition_penalty, least, kLargest},
        Range{"frequency_penalty", &SamplingOptions::frequency_penalty, -kLargest, kLargest},
        Range{"presence_penalty", &SamplingOptions::presence_penalty, -kLargest, kLargest}}) {
    CAPTURE(range.name);
    SamplingOptions options;
    for (const float good : {range.low, range.high}) {
      options.*range.option = good;
      CHECK(Sampler::create(options, 4, std::pmr::get_default_resource()));
    }
    const float below = range.low == 0.0f ? below_zero : std::nextafter(range.low, -kInfinity);
    const float above = range.high == 1.0f ? above_one : kInfinity;
    for (const float bad :
         {below, above, -kInfinity, kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      CAPTURE(bad);
      options.*range.option = bad;
      const auto refused = Sampler::create(options, 4, std::pmr::get_default_resource());
      REQUIRE(!refused);
      CHECK(refused.error().code() == mixtral::ErrorCode::invalid_argument);
      CHECK(std::string(refused.error().message()).find(range.name) != std::string::npos);
    }
  }
  const auto biased = [](Token token, float bias) {
    SamplingOptions options;
    options.logit_bias = {{0, 1.0f}, {token, bias}};
    return bool(Sampler::create(options, 4, std::pmr::get_default_resource()));
  };
  CHECK(biased(3, 1.0f));
  CHECK(biased(0, kInfinity));
  CHECK(biased(0, -kInfinity));
  CHECK(!biased(4, 1.0f));
  CHECK(!biased(-1, 1.0f));
  CHECK(!biased(0, std::numeric_limits<float>::quiet_NaN()));
}

TEST_CASE("sampling: log-probabilities of large, forbidden and absent tokens") {
  const auto log_probability = [](const std::vector<float>& logits, Token token) {
    return mixtral::log_probability({logits.data(), logits.size()}, token);
  };
  CHECK(log_probability({1000.0f, 0.0f}, 0) == doctest::Approx(0.0));
  CHECK(log_probability({1000.0f, 0.0f}, 1) == doctest::Approx(-1000.0));
  CHECK(log_probability({-1000.0f, -1000.0f}, 1) == doctest::Approx(-std::log(2.0)));
  CHECK(log_probability({0.0f, -kInfinity}, 1) == -std::numeric_limits<double>::infinity());
  for (const Token none : {-1, 2, std::numeric_limits<Token>::min()}) {
    CHECK(log_probability({0.0f, 0.0f}, none) == -std::numeric_limits<double>::infinity());
  }
}
