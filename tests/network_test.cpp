// The network against the published reference implementation's numbers (tests/data/golden.json,
// ../shared/models/tiny-mixtral/golden) and against its formulas in double precision.
#include "support.hpp"

using namespace support;
using mixtral::Token;

namespace {

std::vector<Token> ids_of(const nlohmann::json& entry) {
  return entry["ids"].get<std::vector<Token>>();
}

std::vector<float> read_floats(const std::string& path) {
  const Blob blob = read_file(path);
  std::vector<float> values(blob.size() / 4);
  std::memcpy(values.data(), blob.data(), values.size() * 4);
  return values;
}

std::vector<Token> greedy(const mixtral::Model& model, const std::vector<Token>& prompt,
                          std::size_t n, mixtral::Executor executor = {}) {
  mixtral::Session s = session(model, 512, 64, executor);
  REQUIRE(s.append(span(prompt)));
  std::vector<Token> tokens;
  while (tokens.size() < n) {
    REQUIRE(s.evaluate());
    const mixtral::Logits logits = s.logits();
    tokens.push_back(
        static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    REQUIRE(s.append(tokens.back()));
  }
  return tokens;
}

// Mean negative log-likelihood of the golden texts, in nats a token.
double mean_nll(const mixtral::Model& model, const nlohmann::json& entries) {
  double sum = 0.0;
  std::size_t n = 0;
  for (const auto& entry : entries) {
    const auto ids = ids_of(entry);
    const Recorder recorder = evaluate(model, ids);
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      sum -= mixtral::log_probability({recorder.logits[i].data(), recorder.logits[i].size()},
                                      ids[i + 1]);
      ++n;
    }
  }
  return sum / static_cast<double>(n);
}

double golden_nll(const nlohmann::json& entries, double& n_scored) {
  double sum = 0.0;
  std::size_t n = 0;
  for (const auto& entry : entries) {
    for (const double nll : entry["nll"]) {
      sum += nll;
      ++n;
    }
  }
  n_scored = static_cast<double>(n);
  return sum / n_scored;
}

}  // namespace

constexpr const char* kBf16Model = "models/tiny-mixtral/gguf/tiny-mixtral-bf16.gguf";

TEST_CASE("network: logits, experts and greedy text equal the reference's on BF16 weights" *
          needs_shared(kBf16Model)) {
  std::vector<std::int64_t> targets;
  mixtral::simd::for_each_kernels(
      [](void* context, const mixtral::simd::Kernels& kernels) {
        static_cast<std::vector<std::int64_t>*>(context)->push_back(kernels.target_bit);
      },
      &targets);
  REQUIRE(!targets.empty());
  for (const std::int64_t target : targets) {
    const mixtral::Model model = open(shared(kBf16Model), target);
    CAPTURE(std::string(model.simd_target()));
    for (const auto& entry : golden()) {
      CAPTURE(entry["name"].get<std::string>());
      const auto ids = ids_of(entry);
      const Recorder recorder = evaluate(model, ids);
      const auto expected = read_floats(shared("models/tiny-mixtral/golden/") +
                                        entry["logits_file"].get<std::string>());
      REQUIRE(recorder.logits.size() == ids.size());
      const std::ptrdiff_t vocab_size = model.config().vocab_size;
      double worst = 0.0;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(i) * vocab_size;
        keep_largest(worst, max_difference(recorder.logits[i], {begin, begin + vocab_size}));
      }
      CHECK(worst <= 2e-3);
      double worst_weight = 0.0;
      REQUIRE(entry["router"].size() == model.config().n_layers);
      for (std::uint32_t layer = 0; layer < entry["router"].size(); ++layer) {
        for (std::uint32_t i = 0; i < ids.size(); ++i) {
          const auto& router = entry["router"][layer];
          CHECK(recorder.experts.at({layer, i}) ==
                router["experts"][i].get<std::vector<std::uint32_t>>());
          keep_largest(worst_weight,
                       max_difference(recorder.weights.at({layer, i}),
                                      router["weights"][i].get<std::vector<float>>()));
        }
      }
      CHECK(worst_weight <= 1e-4);
      CHECK(greedy(model, ids, 64) == entry["greedy"].get<std::vector<Token>>());
    }
  }
}

// How far a quantised file's mean log-likelihood may be from the float one's, derived, not tuned.
//
// Let e be the root-mean-square error of a type's weights relative to the weights, and 0.005 that of
// 8-bit activations. The output matrix alone moves the logits by e times their spread s over the
// vocabulary (2.5 in the golden logits); the layers before it move its input by about as much again,
// since each adds only a part of the residual stream and its errors are independent. So the logits
// move by sigma = sqrt(2) s sqrt(e^2 + 0.005^2), and a token's log-likelihood, in which its own logit
// and the mean of the others' take part, by a first-order term of mean zero and standard deviation
// at most sqrt(2) sigma, and a second-order term, the divergence between the two distributions, of
// at most sigma^2 / 2. Over N tokens the mean is within sigma^2 / 2 + 3 sqrt(2) sigma / sqrt(N).
//
// e of a uniform quantiser is its step / sqrt(12): for Gaussian weights in blocks of 32 the largest
// is 2.1 standard deviations (16: 1.8), so Q8_0 2.1 / 127 / 3.5 = 0.005; Q6_K 1.8 / 32 / 3.5 = 0.016;
// Q5 2.1 / 16 / 3.5 = 0.04; Q4 0.08; Q3_K 1.8 / 4 / 3.5 = 0.13; Q2_K, 3.6 in 3 steps, 0.34; the 16 levels of
// IQ4 are spaced for Gaussian weights, so at most as Q4.
void check_likelihood(const std::string& path, double weight_error) {
  CAPTURE(path);
  const auto entries = golden();
  double n_scored;
  const double expected = golden_nll(entries, n_scored);
  const double sigma =
      std::sqrt(2.0) * 2.5 * std::sqrt(weight_error * weight_error + 0.005 * 0.005);
  const double bound = sigma * sigma / 2 + 3 * std::sqrt(2.0) * sigma / std::sqrt(n_scored);
  const double difference = mean_nll(open(path), entries) - expected;
  MESSAGE(std::filesystem::path(path).filename().string(), ": mean negative log-likelihood ",
          difference, " from the reference, bound ", bound);
  CHECK(std::abs(difference) <= bound);
}

TEST_CASE("network: the bundled file keeps the log-likelihood of the golden texts") {
  check_likelihood(bundled_model(), 0.005);
}

TEST_CASE("network: quantised files keep the log-likelihood of the golden texts" *
          needs_shared("models/tiny-mixtral/gguf")) {
  struct Case {
    const char* type;
    double weight_error;
  };
  const Case cases[] = {{"Q6_K", 0.016},  {"Q5_K_M", 0.04}, {"Q5_1", 0.04},  {"Q5_0", 0.04},
                        {"Q4_K_M", 0.08}, {"Q4_1", 0.08},   {"Q4_0", 0.08},  {"Q3_K_M", 0.13},
                        {"Q2_K", 0.34},   {"IQ4_NL", 0.08}, {"IQ4_XS", 0.08}};
  for (const Case& c : cases) {
    check_likelihood(
        shared(std::string("models/tiny-mixtral/gguf/tiny-mixtral-") + c.type + ".gguf"),
        c.weight_error);
  }
}

TEST_CASE("network: BF16 activations keep the log-likelihood of the golden texts" *
          needs_shared(kBf16Model)) {
  const auto entries = golden();
  double n_scored;
  const double expected = golden_nll(entries, n_scored);
  mixtral::ModelOptions options;
  options.bf16_activations = true;
  const auto model = value(mixtral::Model::open(shared(kBf16Model).c_str(), options));
  // As above, with the error of rounding activations to 8 bits of significand, and exact weights.
  const double sigma = std::sqrt(2.0) * 2.5 * std::ldexp(1.0, -8) / std::sqrt(12.0);
  const double bound = sigma * sigma / 2 + 3 * std::sqrt(2.0) * sigma / std::sqrt(n_scored);
  const double difference = mean_nll(model, entries) - expected;
  MESSAGE("mean negative log-likelihood ", difference, " from the reference, bound ", bound);
  CHECK(std::abs(difference) <= bound);
  const auto ids = ids_of(entries[0]);
  const double moved = max_difference(evaluate(model, ids).logits.back(),
                                      evaluate(open(shared(kBf16Model)), ids).logits.back());
  CHECK(moved > 0.0);
  CHECK(moved < 8 * sigma);
}

TEST_CASE("network: the bundled model continues as the reference does, but for near-ties") {
  // Quantisation may turn a decision whose margin is small; up to the first such one, all is equal.
  const mixtral::Model model = open(bundled_model());
  std::size_t compared = 0;
  for (const auto& entry : golden()) {
    const auto expected = entry["greedy"].get<std::vector<Token>>();
    const auto got = greedy(model, ids_of(entry), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (entry["greedy_margin"][i].get<double>() < 0.25 && got[i] != expected[i]) break;
      CHECK(got[i] == expected[i]);
      ++compared;
    }
  }
  CHECK(compared > 100);
}

TEST_CASE("network: in one piece, in random pieces and token by token") {
  const mixtral::Model model = open(bundled_model());
  const auto ids = ids_of(golden().back());
  const Recorder whole = evaluate(model, ids);
  std::mt19937 random(1);
  for (const std::uint32_t batch : {1u, 3u, 7u, 64u}) {
    CAPTURE(batch);
    mixtral::Session s = session(model, 256, batch);
    Recorder pieces;
    for (std::size_t i = 0; i < ids.size();) {
      const std::size_t n = std::min<std::size_t>(ids.size() - i, 1 + random() % 20);
      REQUIRE(s.append(span(ids).subspan(i, n)));
      REQUIRE(s.evaluate(&pieces));
      i += n;
    }
    REQUIRE(pieces.logits.size() == whole.logits.size());
    double worst = 0.0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      keep_largest(worst, max_difference(pieces.logits[i], whole.logits[i]));
    }
    CHECK(worst <= 1e-4);
  }
}

TEST_CASE("network: more tokens at once than a kernel takes give the same bits as few at a time") {
  const mixtral::Model model = open(bundled_model());
  std::vector<Token> tokens(300);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(i * 37 % 4000);
  const auto logits_with = [&](std::uint32_t batch) {
    mixtral::Session s = session(model, 300, batch);
    REQUIRE(s.append(span(tokens)));
    REQUIRE(s.evaluate());
    return std::vector<float>(s.logits().begin(), s.logits().end());
  };
  CHECK(logits_with(300) == logits_with(20));
}

TEST_CASE("network: any number of threads gives identical logits and tokens") {
  const mixtral::Model model = open(bundled_model());
  const auto ids = ids_of(golden()[2]);
  const auto expected = greedy(model, ids, 48);
  for (const std::size_t n : {1u, 2u, 3u, 5u}) {
    auto pool = value(mixtral::ThreadPool::create(n));
    CHECK(pool.concurrency() == n);
    CHECK(greedy(model, ids, 48, pool) == expected);
  }
}

TEST_CASE("network: every shape of the family equals the formulas in double") {
  std::vector<Synthetic> models(8);
  models[1].n_experts = models[1].n_experts_used = 1;  // dense: Mistral 7B, Llama 2
  models[2].tied_output = true;
  models[3].merged_experts = false;  // the early layout
  models[4].n_kv_heads = 4;          // no grouping
  models[4].head_size = 6;
  models[4].rope_theta = 1e6f;
  models[5].rope_linear_factor = 4.0f;
  models[5].n_kv_heads = 1;
  models[6].n_experts = 7;
  models[6].n_experts_used = 3;
  models[6].dim = 33;  // not a multiple of any vector
  models[6].hidden_dim = 291;
  models[7].n_experts_used = 4;  // all
  models[7].n_heads = 1;
  models[7].n_kv_heads = 1;
  models[7].head_size = 24;
  unsigned seed = 7;
  for (Synthetic& synthetic : models) {
    CAPTURE(seed);
    synthetic.randomize(seed++);
    const Blob blob = synthetic.writer().finish();
    const mixtral::Model model = open(blob);
    std::vector<Token> tokens;
    for (Token t = 0; t < 40; ++t) tokens.push_back((t * 37 + 11) % 300);
    const auto expected = synthetic.reference(tokens);
    const Recorder recorder = evaluate(model, tokens);
    double worst = 0.0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      keep_largest(worst, max_difference(recorder.logits[i], expected[i]));
    }
    CHECK(worst <= 5e-5);
  }
}

// A sanitizer takes half an hour for all of it.
constexpr std::size_t kLongContext = support::kSanitized ? 4097 : 32768;

TEST_CASE("network: 32768 tokens equal the formulas in double") {
  Synthetic synthetic;
  synthetic.dim = synthetic.hidden_dim = synthetic.head_size = 16;
  synthetic.n_layers = synthetic.n_kv_heads = 1;
  synthetic.n_heads = 2;
  synthetic.context_length = 32768;
  synthetic.rope_theta = 1e6f;
  SUBCASE("all of the past") {}
  SUBCASE("a window") { synthetic.sliding_window = 4096; }
  synthetic.randomize(41);
  const Blob blob = synthetic.writer().finish();
  const mixtral::Model model = open(blob);
  std::vector<Token> tokens(kLongContext);
  std::mt19937 random(4);
  for (Token& token : tokens) token = static_cast<Token>(random() % 300);
  std::vector<std::size_t> positions = {0, 4095, 4096};
  if (kLongContext > 16384) positions.insert(positions.end(), {16384, kLongContext - 1});
  const auto expected = synthetic.reference(tokens, positions);
  mixtral::Session s = session(model, kLongContext);
  std::size_t begin = 0;
  for (std::size_t i = 0; i < positions.size(); ++i) {
    CAPTURE(positions[i]);
    REQUIRE(s.append({tokens.data() + begin, positions[i] + 1 - begin}));
    REQUIRE(s.evaluate());
    begin = positions[i] + 1;
    CHECK(max_difference({s.logits().begin(), s.logits().end()}, expected[i]) <= 5e-5);
  }
  CHECK(s.remaining() == 0);
}

TEST_CASE("network: two equal experts are a dense model") {
  Synthetic dense;
  dense.n_experts = dense.n_experts_used = 1;
  dense.randomize(3);
  Synthetic twins = dense;
  twins.n_experts = twins.n_experts_used = 2;
  for (auto& layer : twins.layers) {
    layer.router = {std::vector<float>(dense.dim, 0.3f), std::vector<float>(dense.dim, -0.2f)};
    layer.w1.push_back(layer.w1[0]);
    layer.w2.push_back(layer.w2[0]);
    layer.w3.push_back(layer.w3[0]);
  }
  const Blob a = dense.writer().finish();
  const Blob b = twins.writer().finish();
  const std::vector<Token> tokens = {5, 100, 42, 7, 299};
  const Recorder one = evaluate(open(a), tokens);
  const Recorder two = evaluate(open(b), tokens);
  CHECK(one.experts.empty());
  CHECK(two.experts.size() == tokens.size() * twins.n_layers);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    CHECK(max_difference(one.logits[i], two.logits[i]) <= 1e-4);
  }
}

TEST_CASE(
    "network: a sliding window's rolling cache equals full attention with the window masked") {
  Synthetic synthetic;
  synthetic.n_experts = synthetic.n_experts_used = 1;
  synthetic.sliding_window = 50;
  synthetic.context_length = 1000;
  synthetic.randomize(21);
  const Blob blob = synthetic.writer().finish();
  const mixtral::Model model = open(blob);
  std::vector<Token> tokens;
  for (Token t = 0; t < 200; ++t) tokens.push_back((t * 37 + 11) % 300);  // four windows
  const auto expected = synthetic.reference(tokens);
  for (const std::uint32_t batch : {1u, 7u, 50u, 200u}) {
    CAPTURE(batch);
    mixtral::Session s = session(model, 1000, batch);
    Recorder recorder;
    REQUIRE(s.append(span(tokens)));
    REQUIRE(s.evaluate(&recorder));
    double worst = 0.0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      keep_largest(worst, max_difference(recorder.logits[i], expected[i]));
    }
    CHECK(worst <= 5e-5);
  }
  // Memory is bounded by the window, not by the context.
  mixtral::SessionOptions options;
  options.batch = 16;
  options.context = 500;
  const auto some = value(mixtral::Session::memory_needed(model, options));
  options.context = 1000;
  const auto more = value(mixtral::Session::memory_needed(model, options));
  CHECK(more - some < 500 * (sizeof(Token) + 1) + 128);  // the tokens and their turns
  // The host can set a window that the file does not tell, or take it away.
  mixtral::ModelOptions without;
  without.sliding_window = 0;
  const auto full = value(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(blob)), without));
  CHECK(max_difference(evaluate(full, tokens).logits[40], expected[40]) <= 5e-5);
  CHECK(max_difference(evaluate(full, tokens).logits[150], expected[150]) > 1e-2);
}

TEST_CASE("network: a window sees as many tokens as it says, wherever batches and pages end") {
  Synthetic synthetic;
  synthetic.n_layers = 1;
  synthetic.n_experts = synthetic.n_experts_used = 1;
  synthetic.context_length = 300;
  synthetic.randomize(23);
  std::vector<Token> tokens;
  for (Token t = 0; t < 200; ++t) tokens.push_back((t * 41 + 7) % 300);
  for (const std::uint32_t window : {1u, 2u, 63u, 64u, 65u, 66u, 128u, 130u, 199u, 200u, 201u}) {
    CAPTURE(window);
    synthetic.sliding_window = window;
    const mixtral::Model model = open(synthetic.writer().finish());
    const auto expected = synthetic.reference(tokens);
    for (const std::uint32_t batch : {1u, 31u, 63u, 64u, 65u, 200u}) {
      CAPTURE(batch);
      mixtral::Session s = session(model, 300, batch);
      Recorder recorder;
      REQUIRE(s.append(span(tokens)));
      REQUIRE(s.evaluate(&recorder));
      double worst = 0.0;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        worst = std::max(worst, max_difference(recorder.logits[i], expected[i]));
      }
      CHECK(worst <= 5e-5);
    }
  }
}

TEST_CASE("network: of experts that a router likes equally, those with the lower numbers work") {
  Synthetic synthetic;
  synthetic.n_experts = 5;
  synthetic.n_experts_used = 3;
  synthetic.randomize(24);
  for (auto& layer : synthetic.layers) {
    for (auto& row : layer.router) std::fill(row.begin(), row.end(), 0.0f);
  }
  const std::vector<Token> tokens = {5, 100, 42};
  const Recorder recorder = evaluate(open(synthetic.writer().finish()), tokens);
  const auto expected = synthetic.reference(tokens);
  for (std::uint32_t i = 0; i < tokens.size(); ++i) {
    for (std::uint32_t layer = 0; layer < synthetic.n_layers; ++layer) {
      CHECK(recorder.experts.at({layer, i}) == std::vector<std::uint32_t>{0, 1, 2});
      for (const float weight : recorder.weights.at({layer, i})) CHECK(weight == 1.0f / 3.0f);
    }
    CHECK(max_difference(recorder.logits[i], expected[i]) <= 5e-5);
  }
}

TEST_CASE("network: keys and values in fewer bits change logits a little, memory much") {
  const mixtral::Model model = open(bundled_model());
  const auto tokens = value(model.tokenizer().encode("Once upon a time there was a little girl"));
  const auto logits_with = [&](mixtral::BlockFormat format, std::uint64_t& memory) {
    mixtral::SessionOptions options;
    options.context = 256;
    options.batch = 8;
    options.kv_format = format;
    memory = value(mixtral::Session::memory_needed(model, options));
    mixtral::Session s = value(mixtral::Session::open(model, options));
    REQUIRE(s.append({tokens.data(), tokens.size()}));
    REQUIRE(s.evaluate());
    return std::vector<float>(s.logits().data(), s.logits().data() + s.logits().size());
  };
  std::uint64_t memory32, memory;
  const auto expected = logits_with(mixtral::BlockFormat::f32, memory32);
  const mixtral::Config& config = model.config();
  const std::uint64_t numbers = std::uint64_t{2} * config.n_layers * config.kv_dim() * 256;
  const auto check = [&](mixtral::BlockFormat format, double bytes, double tolerance) {
    CAPTURE(std::string(mixtral::block_format_info(format)->name));
    const auto found = logits_with(format, memory);
    const double difference = max_difference(found, expected);
    CHECK(difference <= tolerance);
    CHECK(difference > 0.0);
    CHECK(static_cast<double>(memory32 - memory) ==
          doctest::Approx(static_cast<double>(numbers) * (4.0 - bytes)).epsilon(0.01));
  };
  // Activations are rounded to 8 bits, so that even the smallest change is a step for some of them.
  check(mixtral::BlockFormat::f16, 2.0, 0.12);
  check(mixtral::BlockFormat::bf16, 2.0, 0.2);
  check(mixtral::BlockFormat::q8_0, 34.0 / 32.0, 0.2);
}
