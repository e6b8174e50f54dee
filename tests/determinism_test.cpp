// What is identical, to the bit, whatever the threads, batches, slices, forks and SIMD targets: the one
// place where that is stated is check_identical().
#include "support.hpp"

using namespace support;
using mixtral::Token;

namespace {

mixtral::Session open_session(const mixtral::Model& model, mixtral::BlockFormat format,
                              std::uint32_t batch, mixtral::Executor executor = {}) {
  mixtral::SessionOptions options;
  options.context = static_cast<std::uint32_t>(256);
  options.batch = batch;
  options.kv_format = format;
  options.executor = executor;
  options.branches = 3;
  return value(mixtral::Session::open(model, options));
}

// FNV-1a of the logits' bits.
std::uint64_t hash_of(const mixtral::Session& s) {
  REQUIRE(s.has_logits());
  std::uint64_t fnv = 14695981039346656037u;
  for (const float logit : s.logits()) {
    std::uint32_t bits;
    std::memcpy(&bits, &logit, 4);
    for (int b = 0; b < 4; ++b) fnv = (fnv ^ (bits >> (8 * b) & 255)) * 1099511628211u;
  }
  return fnv;
}

// The logits after `tokens` have this hash in every way of computing them on every SIMD target that
// multiplies and adds in one step; on each of the others all ways agree, too.
void check_identical(const Blob& file, const std::vector<Token>& tokens,
                     mixtral::BlockFormat format, std::uint64_t hash,
                     bool bf16_activations = false) {
  auto pool = value(mixtral::ThreadPool::create(3));
  for (const auto* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    mixtral::ModelOptions model_options;
    model_options.simd_targets = kernels->target_bit;
    model_options.strict = kernels->fuses;
    model_options.bf16_activations = bf16_activations;
    const auto model =
        value(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(file)), model_options));
    // At once.
    mixtral::Session s = open_session(model, format, 256);
    REQUIRE(s.append(span(tokens)));
    REQUIRE(s.evaluate());
    const std::uint64_t expected = kernels->fuses ? hash : hash_of(s);
    CHECK(hash_of(s) == expected);
    // In batches, on threads, in slices of time.
    for (const std::uint32_t batch : {1u, 5u, 17u}) {
      mixtral::Session other = open_session(model, format, batch, pool);
      REQUIRE(other.append(span(tokens)));
      if (batch == 5) {
        std::size_t n_slices = 1;
        while (value(other.advance(std::chrono::microseconds(20))) == mixtral::Progress::working) {
          ++n_slices;
        }
        CHECK(n_slices > 3);
      }
      REQUIRE(other.evaluate());
      CHECK(hash_of(other) == expected);
    }
    // With other sessions, from a branch, and after going back and forth.
    mixtral::Session root = open_session(model, format, 32);
    REQUIRE(root.append({tokens.data(), tokens.size() / 2}));
    REQUIRE(root.evaluate());
    mixtral::Session branch = value(root.fork()), another = value(root.fork());
    REQUIRE(root.append(Token{9}));
    REQUIRE(another.append({tokens.data(), 30}));
    REQUIRE(branch.append({tokens.data() + tokens.size() / 2, tokens.size() - tokens.size() / 2}));
    mixtral::Session* all[] = {&root, &another, &branch};
    REQUIRE(mixtral::Session::evaluate_all({all, 3}));
    CHECK(hash_of(branch) == expected);
    REQUIRE(another.replace(span(tokens)));
    REQUIRE(another.evaluate());
    CHECK(hash_of(another) == expected);
  }
}

std::vector<Token> some_tokens(std::size_t n, std::size_t vocab_size) {
  std::vector<Token> tokens(n);
  for (std::size_t i = 0; i < n; ++i) tokens[i] = static_cast<Token>(i * i * 97 % vocab_size);
  return tokens;
}

}  // namespace

TEST_CASE("determinism: the same bits everywhere, quantised weights") {
  const Blob file = read_file(bundled_model());
  check_identical(file, some_tokens(70, 4000), mixtral::BlockFormat::f16, 14840069659380222009u);
  check_identical(file, some_tokens(70, 4000), mixtral::BlockFormat::q8_0, 16361394659569764419u);
}

TEST_CASE("determinism: the same bits everywhere, float weights of odd sizes") {
  Synthetic synthetic;
  synthetic.n_experts = 7;
  synthetic.n_experts_used = 3;
  synthetic.dim = 33;
  synthetic.head_size = 22;
  synthetic.hidden_dim = 291;
  synthetic.context_length = 256;
  synthetic.randomize(77);
  const Blob file = synthetic.writer().finish();
  check_identical(file, some_tokens(70, 300), mixtral::BlockFormat::f32, 8184641331191469602u);
  check_identical(file, some_tokens(70, 300), mixtral::BlockFormat::bf16, 14917415862125476621u);
}

TEST_CASE("determinism: the same bits everywhere, BF16 weights, activations rounded or not") {
  Synthetic synthetic;
  synthetic.n_experts = 5;
  synthetic.dim = 64;
  synthetic.hidden_dim = 291;
  synthetic.context_length = 256;
  synthetic.randomize(78);
  GgufWriter writer = synthetic.writer();
  for (auto& tensor : writer.tensors) {
    if (tensor.shape.size() == 1) continue;
    tensor.type = 30;  // BF16: the upper halves
    Blob halves;
    for (std::size_t i = 0; i < tensor.data.size(); i += 4) {
      halves.insert(halves.end(), {tensor.data[i + 2], tensor.data[i + 3]});
    }
    tensor.data = halves;
  }
  const Blob file = writer.finish();
  check_identical(file, some_tokens(70, 300), mixtral::BlockFormat::f16, 9058366454137060363u);
  check_identical(file, some_tokens(70, 300), mixtral::BlockFormat::f16, 1462356547763269663u,
                  true);
}

TEST_CASE("determinism: strict is refused where it cannot be") {
  mixtral::ModelOptions options;
  options.strict = true;
  for (const auto* kernels : all_kernels()) {
    options.simd_targets = kernels->target_bit;
    const auto model = mixtral::Model::open(bundled_model().c_str(), options);
    CHECK(static_cast<bool>(model) == kernels->fuses);
    if (!model) CHECK(model.error().code() == mixtral::ErrorCode::unsupported);
  }
}

TEST_CASE("determinism: the same tokens everywhere, with every sampling option" *
          needs(any_target_fuses(), kFusing)) {
  for (const auto* kernels : all_kernels()) {
    if (!kernels->fuses) continue;
    CAPTURE(std::string(kernels->target));
    const mixtral::Model model = open(bundled_model(), kernels->target_bit);
    std::uint64_t fnv = 14695981039346656037u;
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      mixtral::Session s = open_session(model, mixtral::BlockFormat::f16, 64);
      REQUIRE(s.append("Once upon a time"));
      mixtral::GenerateOptions options = exactly(40, model);
      options.sampling.seed = seed;
      options.sampling.temperature = 1.1f;
      if (seed == 1) options.sampling.top_p = 0.9f;
      if (seed == 2) options.sampling.typical_p = 0.8f;
      if (seed == 3) options.sampling.min_p = 0.02f;
      if (seed == 4) options.sampling.frequency_penalty = options.sampling.presence_penalty = 0.3f;
      if (seed == 5) options.sampling.repetition_penalty = 1.3f;
      auto generation = s.generate(options);
      while (generation.next()) {
        fnv = (fnv ^ static_cast<std::uint64_t>(generation.token())) * 1099511628211u;
      }
    }
    CHECK(fnv == 13608875508553940046u);
  }
}
