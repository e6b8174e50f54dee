// Sessions: sharing, limits, cancelling, memory.
#include "support.hpp"

#include <Eigen/Core>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#endif

using namespace support;
using mixtral::ErrorCode;
using mixtral::Token;

namespace {

// Counts what is taken from it and refuses after a number of allocations.
struct CountingResource : std::pmr::memory_resource {
  std::size_t n_allocations = 0;
  std::size_t bytes_now = 0;
  std::size_t allowed = static_cast<std::size_t>(-1);
  std::mutex mutex;

  void* do_allocate(std::size_t size, std::size_t alignment) override {
    const std::lock_guard<std::mutex> lock(mutex);
    if (n_allocations >= allowed) throw std::bad_alloc();
    ++n_allocations;
    bytes_now += size;
    const std::size_t step = std::max(alignment, sizeof(void*));  // what aligned_alloc asks for
    return std::aligned_alloc(step, (size + step - 1) / step * step);
  }
  void do_deallocate(void* memory, std::size_t size, std::size_t) override {
    const std::lock_guard<std::mutex> lock(mutex);
    bytes_now -= size;
    std::free(memory);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

mixtral::Model open_with(std::pmr::memory_resource& resource) {
  mixtral::ModelOptions options;
  options.memory = &resource;
  return value(mixtral::Model::open(bundled_model().c_str(), options));
}

std::vector<Token> greedy_tokens(mixtral::Session& s, std::uint32_t n) {
  mixtral::GenerateOptions options;
  options.max_tokens = n;
  auto generation = s.generate(options);
  std::vector<Token> tokens;
  while (generation.next()) tokens.push_back(generation.token());
  return tokens;
}

}  // namespace

#if defined(__linux__)
// Takes pages of its own for what is large, and counts those that are in memory and all that is small.
struct PageResource : std::pmr::memory_resource {
  struct Pages {
    void* begin;
    std::size_t size;
  };
  std::vector<Pages> taken;
  std::size_t small_bytes = 0;

  static std::size_t page_size() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

  void* do_allocate(std::size_t size, std::size_t alignment) override {
    if (size < (1u << 20)) {
      small_bytes += size;
      return std::pmr::new_delete_resource()->allocate(size, alignment);
    }
    void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    taken.push_back({pages, size});
    return pages;
  }
  void do_deallocate(void* memory, std::size_t size, std::size_t alignment) override {
    if (size < (1u << 20)) {
      small_bytes -= size;
      return std::pmr::new_delete_resource()->deallocate(memory, size, alignment);
    }
    munmap(memory, size);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::size_t resident_bytes() const {
    std::size_t n_pages = 0;
    for (const Pages& pages : taken) {
      std::vector<unsigned char> in_memory(pages.size / page_size() + 1);
      REQUIRE(mincore(pages.begin, pages.size, in_memory.data()) == 0);
      for (const unsigned char bits : in_memory) n_pages += bits & 1u;
    }
    return n_pages * page_size() + small_bytes;
  }
};

// Without large pages, of which one byte would bring two megabytes, if two lie in a row where they may.
struct SmallPages {
  SmallPages() { prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); }
  ~SmallPages() { prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0); }
};

TEST_CASE("session: resident memory grows with the past, to what memory_needed() states") {
  const SmallPages small_pages;
  PageResource resource;
  const mixtral::Model model = open_with(resource);
  const std::size_t of_model = resource.resident_bytes();
  const auto resident = [&] { return static_cast<double>(resource.resident_bytes() - of_model); };
  mixtral::SessionOptions options;
  options.context = 2048;
  options.batch = 32;
  options.kv_format = mixtral::BlockFormat::f32;
  const auto stated = static_cast<double>(value(mixtral::Session::memory_needed(model, options)));
  auto s = value(mixtral::Session::open(model, options));
  CHECK(resident() < 0.05 * stated);
  std::vector<Token> tokens(options.context);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(i * 31 % 4000);
  REQUIRE(s.append({tokens.data(), tokens.size() / 2}));
  REQUIRE(s.evaluate());
  CHECK(resident() < 0.75 * stated);
  REQUIRE(s.append({tokens.data() + tokens.size() / 2, tokens.size() / 2}));
  REQUIRE(s.evaluate());
  // Not used here: room for all experts' worst shares of a batch, and for logits of several tokens.
  CHECK(stated - resident() < 256.0 * 1024.0);
  CHECK(resident() <= stated + 4.0 * static_cast<double>(PageResource::page_size()));
}
#endif

TEST_CASE("session: after the first token, no allocation per token") {
  CountingResource resource;
  const mixtral::Model model = open_with(resource);
  auto pool = value(mixtral::ThreadPool::create(2));
  mixtral::SessionOptions options;
  options.context = 300;
  SUBCASE("inline") {}
  SUBCASE("with a pool") { options.executor = pool; }
  mixtral::Session s = value(mixtral::Session::open(model, options));
  REQUIRE(s.append("Once upon a time"));
  mixtral::GenerateOptions generate;
  generate.max_tokens = 200;
  generate.sampling.temperature = 0.9f;
  generate.sampling.top_k = 50;
  generate.sampling.top_p = 0.95f;
  generate.sampling.typical_p = 0.99f;
  generate.sampling.min_p = 0.01f;
  generate.sampling.repetition_penalty = 1.1f;
  generate.sampling.logit_bias = {{model.tokenizer().eos(), -1e9f}};
  generate.stop = {"never to be seen in a story", "xyzzy"};
  auto generation = s.generate(generate);
  REQUIRE(generation.next());
  const std::size_t resource_before = resource.n_allocations;
  const std::size_t heap_before = support::heap_allocations();
  int n = 0;
  while (generation.next()) ++n;
  const std::size_t heap_after = support::heap_allocations();
  CHECK(n == 199);
  CHECK(resource.n_allocations == resource_before);
  CHECK(heap_after == heap_before);
}

TEST_CASE("session: all memory comes from the host's resource") {
  CountingResource resource;
  {
    const std::size_t heap_before = support::heap_allocations();
    mixtral::ModelOptions model_options;
    model_options.memory = &resource;
    const std::string path = bundled_model();
    const std::size_t heap_strings = support::heap_allocations() - heap_before;
    auto model = mixtral::Model::open(path.c_str(), model_options);
    REQUIRE(model);
    const std::size_t model_bytes = resource.bytes_now;
    CHECK(model_bytes < (4u << 20));  // nothing of the 10 MB of weights is copied
    mixtral::SessionOptions options;
    options.context = 128;
    const auto needed = mixtral::Session::memory_needed(*model, options);
    REQUIRE(needed);
    auto s = mixtral::Session::open(*model, options);
    REQUIRE(s);
    CHECK(resource.bytes_now - model_bytes == *needed);
    const auto appended = s->append("Once upon a time");
    const auto evaluated = s->evaluate();
    CHECK(resource.bytes_now - model_bytes == *needed);
    CHECK(support::heap_allocations() == heap_before + heap_strings);
    CHECK(appended);
    CHECK(evaluated);
  }
  CHECK(resource.bytes_now == 0);
}

TEST_CASE("session: copied weights are in the host's memory, and all that is left of the file") {
  CountingResource resource;
  mixtral::ModelOptions options;
  const auto mapped = value(mixtral::Model::open(bundled_model().c_str(), options));
  options.memory = &resource;
  options.copy_weights = true;
  std::string bytes;
  {
    std::ifstream file(bundled_model(), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
  auto view = mixtral::Bytes::view({data, bytes.size()});
  {
    const auto copied = value(mixtral::Model::from_bytes(std::move(view), options));
    CHECK(resource.bytes_now > copied.weight_bytes());
    CHECK(resource.bytes_now < copied.weight_bytes() + (4u << 20));
    CHECK(copied.weight_bytes() == mapped.weight_bytes());
    CHECK(copied.n_parameters() == mapped.n_parameters());
    std::fill(bytes.begin(), bytes.end(), '\xff');
    auto session = value(mixtral::Session::open(copied));
    auto plain = value(mixtral::Session::open(mapped));
    for (auto* s : {&session, &plain}) REQUIRE(s->append("Once upon a time"));
    const std::vector<Token> expected = greedy_tokens(plain, 20);
    CHECK(expected.size() == 20);
    CHECK(greedy_tokens(session, 20) == expected);
  }
  CHECK(resource.bytes_now == 0);
}

TEST_CASE("session: memory that runs out at any point is an error, without a leak") {
  bool copy_weights = false;
  SUBCASE("with mapped weights") {}
  SUBCASE("with copied weights") { copy_weights = true; }
  CountingResource resource;
  std::size_t n_failures = 0;
  for (std::size_t allowed = 0;; ++allowed) {
    resource.n_allocations = 0;
    resource.allowed = allowed;
    mixtral::ModelOptions model_options;
    model_options.memory = &resource;
    model_options.copy_weights = copy_weights;
    const auto attempt = [&]() -> mixtral::Status {
      auto model = mixtral::Model::open(bundled_model().c_str(), model_options);
      MIXTRAL_RETURN_IF_ERROR(model);
      mixtral::SessionOptions options;
      options.context = 64;
      auto s = mixtral::Session::open(*model, options);
      MIXTRAL_RETURN_IF_ERROR(s);
      MIXTRAL_RETURN_IF_ERROR(s->append("Once upon"));
      mixtral::GenerateOptions generate;
      generate.max_tokens = 2;
      generate.stop = {"a stop string longer than any small buffer"};
      auto generation = s->generate(generate);
      while (generation.next()) {
      }
      if (generation.stop_reason() == mixtral::StopReason::error) return generation.error();
      CHECK(generation.stop_reason() == mixtral::StopReason::max_tokens);
      return {};
    };
    const mixtral::Status status = attempt();
    CHECK(resource.bytes_now == 0);
    if (status) break;
    CHECK_MESSAGE(status.error().code() == ErrorCode::out_of_memory, status.error().message());
    ++n_failures;
    // Most of the allocations are the vocabulary's hash nodes, all alike.
    if (allowed > 60 && resource.n_allocations < 4000) allowed += 97;
  }
  CHECK(n_failures > 60);
}

TEST_CASE("session: the context is counted, and full is an error that changes nothing") {
  const mixtral::Model model = open(bundled_model());
  const std::vector<Token> prompt = {model.tokenizer().bos(), 10, 11, 12, 13};
  mixtral::Session s = session(model, 10);
  CHECK(s.context() == 10);
  CHECK(s.remaining() == 10);
  REQUIRE(s.append(span(prompt)));
  CHECK(s.remaining() == 5);
  const auto status =
      s.append("a long text of far more words than can go into the five that are left");
  REQUIRE(!status);
  CHECK(status.error().code() == ErrorCode::context_full);
  CHECK(s.remaining() == 5);
  const auto fill = [&] {
    auto generation = s.generate(exactly(100, model));
    while (generation.next()) {
    }
    CHECK(generation.stop_reason() == mixtral::StopReason::context_full);
    return std::vector<Token>(s.tokens().begin(), s.tokens().end());
  };
  const auto tokens = fill();
  CHECK(tokens.size() == 10);
  CHECK(s.remaining() == 0);
  CHECK(!s.append(Token{5}));
  CHECK(s.evaluate());
  CHECK(fill() == tokens);
  s.clear();
  CHECK(s.remaining() == 10);
  CHECK(!s.evaluate());
  REQUIRE(s.append(span(prompt)));
  CHECK(fill() == tokens);
}

TEST_CASE("session: bad options and tokens are refused") {
  const mixtral::Model model = open(bundled_model());
  mixtral::SessionOptions options;
  options.context = model.config().context_length + 1;
  auto s = mixtral::Session::open(model, options);
  REQUIRE(!s);
  CHECK(s.error().code() == ErrorCode::invalid_argument);
  options.context = 16;
  options.batch = 0;
  CHECK(!mixtral::Session::open(model, options));
  CHECK(!mixtral::Session::memory_needed(model, options));
  options.batch = 1;
  for (const auto format : {mixtral::BlockFormat::q4_0, static_cast<mixtral::BlockFormat>(99)}) {
    options.kv_format = format;
    s = mixtral::Session::open(model, options);
    REQUIRE(!s);
    CHECK(s.error().code() == ErrorCode::invalid_argument);
    CHECK(std::string(s.error().message()).find("choose f16, f32, bf16 or q8_0") !=
          std::string::npos);
  }
  mixtral::Session good = session(model, 16);
  CHECK(!good.append(Token{-1}));
  CHECK(!good.append(static_cast<Token>(model.tokenizer().size())));
  CHECK(good.tokens().empty());
  CHECK(!good.has_logits());
}

TEST_CASE("session: each option is allowed up to its limit and refused beyond it") {
  const auto model_of = [](std::uint32_t context_length, std::uint32_t head_size) {
    Synthetic synthetic;
    synthetic.n_layers = 1;
    synthetic.context_length = context_length;
    synthetic.head_size = head_size;
    synthetic.randomize(5);
    return open(synthetic.writer().finish());
  };
  const mixtral::Model model = model_of(5000, 10);
  mixtral::SessionOptions options;
  options.batch = 1;
  const auto needed = [&] { return value(mixtral::Session::memory_needed(model, options)); };
  const auto check_refused = [&](const std::string& part) {
    const auto s = mixtral::Session::open(model, options);
    REQUIRE(!s);
    CHECK(s.error().code() == ErrorCode::invalid_argument);
    CAPTURE(s.error().message());
    CHECK(std::string(s.error().message()).find(part) != std::string::npos);
    const auto memory = mixtral::Session::memory_needed(model, options);
    REQUIRE(!memory);
    CHECK(memory.error().code() == ErrorCode::invalid_argument);
  };
  SUBCASE("a context as long as the model's") {
    options.context = 5000;
    CHECK(value(mixtral::Session::open(model, options)).context() == 5000);
    options.context = 5001;
    check_refused("5001");
  }
  SUBCASE("without a context, the model's, 4096 at most") {
    CHECK(value(mixtral::Session::open(model, options)).context() == 4096);
    CHECK(value(mixtral::Session::open(model_of(4095, 10), options)).context() == 4095);
    CHECK(value(mixtral::Session::open(model_of(4097, 10), options)).context() == 4096);
  }
  SUBCASE("a batch of a million, which takes no more than all tokens do") {
    options.context = 50;
    options.batch = 100;
    const auto all = needed();
    options.batch = 1u << 20;
    CHECK(needed() == all);
    options.batch = 50;
    CHECK(needed() == all);
    options.batch = 49;
    CHECK(needed() < all);
    options.batch = (1u << 20) + 1;
    check_refused("1048577");
    options.batch = 0;
    check_refused("a batch of 0");
    // The tokens of one pass come from all branches.
    options.branches = 2;
    options.batch = 100;
    const auto both = needed();
    options.batch = 101;
    CHECK(needed() == both);
    options.batch = 99;
    CHECK(needed() < both);
  }
  SUBCASE("as many branches as 16 bits count") {
    options.context = 1;
    options.branches = 1u << 16;
    CHECK(needed() > (1u << 16));
    ++options.branches;
    check_refused("65537");
    options.branches = 0;
    check_refused("0 branches");
  }
  SUBCASE("all but one token that are never forgotten") {
    options.context = 50;
    options.when_full = mixtral::WhenFull::forget_oldest;
    options.keep_first = 49;
    CHECK(mixtral::Session::open(model, options));
    options.keep_first = 50;
    check_refused("keep_first");
    options.when_full = mixtral::WhenFull::stop;  // where nothing is forgotten it does not matter
    CHECK(mixtral::Session::open(model, options));
  }
  SUBCASE("keys and values in 8 bits, if heads have whole blocks") {
    options.kv_format = mixtral::BlockFormat::q8_0;
    options.context = 10;
    check_refused("multiple of 32");
    CHECK(mixtral::Session::open(model_of(64, 32), options));
    CHECK(mixtral::Session::open(model_of(64, 64), options));
    CHECK(!mixtral::Session::open(model_of(64, 48), options));
  }
  SUBCASE("keys and values in pages of 64 tokens") {
    options.context = 500;
    options.kv_tokens = 64;
    const auto one = needed();
    options.kv_tokens = 1;
    CHECK(needed() == one);
    options.kv_tokens = 65;
    const auto two = needed();
    const std::uint64_t page = 64 * 2 * 2 * 10 * 2;  // keys and values of two heads, in halves
    CHECK(two > one + page - 1);
    CHECK(two < one + page + 128);
  }
}

TEST_CASE("session: room is counted to the last token") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 10);
  const std::vector<Token> ten(10, 7), eleven(11, 7);
  const auto refused = s.append(span(eleven));
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::context_full);
  CHECK(s.tokens().empty());
  REQUIRE(s.append(span(ten)));
  CHECK(s.remaining() == 0);
  CHECK(s.append(mixtral::Span<const Token>()));
  CHECK(!s.append(Token{7}));
  CHECK(value(s.replace(span(ten))) == 10);
  CHECK(!s.replace(span(eleven)));
  REQUIRE(s.evaluate());
  CHECK(!s.rewind(11));
  REQUIRE(s.rewind(9));
  REQUIRE(s.append(Token{8}));
  REQUIRE(s.evaluate());
  CHECK(!s.forget_oldest(0, 11));
  CHECK(!s.forget_oldest(10, 1));
  CHECK(!s.forget_oldest(11, 1));
  CHECK(value(s.forget_oldest(11, 0)) == 0);
  CHECK(value(s.forget_oldest(10, 0)) == 0);
  CHECK(s.has_logits());
  CHECK(value(s.forget_oldest(9, 1)) == 1);
  CHECK(s.tokens().size() == 9);
  CHECK(!s.has_logits());
  // No token is put if one of them is none.
  const auto size = static_cast<Token>(model.tokenizer().size());
  for (const Token bad : {Token{-1}, size, std::numeric_limits<Token>::max()}) {
    const auto status = s.append(span({bad}));
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::invalid_argument);
    CHECK(!s.replace(span({1, 2, bad})));
  }
  CHECK(s.append(span({size - 1})));
  CHECK(value(s.replace(span({0, size - 1}))) == 0);
  CHECK(s.evaluate());
}

TEST_CASE("session: a moved-from session refuses by name, and shows nothing") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once"));
  const mixtral::Session moved = std::move(s);
  const auto check = [](const auto& result, const char* name) {
    REQUIRE(!result);
    CHECK(result.error().code() == ErrorCode::invalid_argument);
    CHECK(std::string(result.error().message())
              .find(std::string(name) + "() of a session that was moved") == 0);
  };
  const std::vector<Token> one = {1};
  check(s.append("a"), "append");
  check(s.append(Token{1}), "append");
  check(s.append_chat({{"user", "a"}}), "append_chat");
  check(s.evaluate(), "evaluate");
  check(s.advance(std::chrono::nanoseconds(0)), "advance");
  mixtral::Session* const list[] = {&s};
  check(mixtral::Session::evaluate_all({list, 1}), "evaluate_all");
  check(mixtral::Session::advance_all({list, 1}, std::chrono::nanoseconds(0)), "advance_all");
  check(s.fork(), "fork");
  check(s.rewind(0), "rewind");
  check(s.forget_oldest(0, 0), "forget_oldest");
  check(s.replace("a"), "replace");
  check(s.replace(span(one)), "replace");
  check(s.save([](const void*, std::size_t) { return true; }), "save");
  check(s.load([](void*, std::size_t) { return true; }), "load");
  CHECK(!s.has_logits());
  CHECK(s.context() == 0);
  CHECK(s.remaining() == 0);
  CHECK(s.tokens().empty());
  CHECK(moved.tokens().size() > 1);
  const auto null = mixtral::Session::evaluate_all({std::vector<mixtral::Session*>(1).data(), 1});
  REQUIRE(!null);
  CHECK(null.error().code() == ErrorCode::invalid_argument);
}

TEST_CASE("session: logits are an Eigen map if one wants, and log-probabilities its log-softmax") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once upon a"));
  CHECK(!s.has_logits());
  REQUIRE(s.evaluate());
  REQUIRE(s.has_logits());
  const Eigen::Map<const Eigen::VectorXf> logits = s.logits();
  CHECK(logits.data() == s.logits().data());
  CHECK(logits.size() == static_cast<Eigen::Index>(model.config().vocab_size));
  const Eigen::VectorXd wide = logits.cast<double>();
  const double log_sum = std::log((wide.array() - wide.maxCoeff()).exp().sum()) + wide.maxCoeff();
  for (const Token t : {0, 5, 254, static_cast<Token>(logits.size()) - 1}) {
    CHECK(s.log_probability(t) == doctest::Approx(wide[t] - log_sum));
  }
  REQUIRE(s.append(Token{5}));
  CHECK(!s.has_logits());
}

TEST_CASE("session: a token that is none has no probability") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  const double none = -std::numeric_limits<double>::infinity();
  CHECK(s.log_probability(5) == none);  // there are no logits
  CHECK(s.logits().empty());
  REQUIRE(s.append("Once"));
  REQUIRE(s.evaluate());
  const auto size = static_cast<Token>(model.tokenizer().size());
  CHECK(s.log_probability(size - 1) > none);
  for (const Token t : {mixtral::kNoToken, size, size + 1, std::numeric_limits<Token>::max(),
                        std::numeric_limits<Token>::min()}) {
    CHECK(s.log_probability(t) == none);
    CHECK(mixtral::log_probability(s.logits(), t) == none);
    CHECK(model.tokenizer().piece(t).text.empty());
  }
  CHECK(mixtral::log_probability({}, 0) == none);
}

TEST_CASE("session: numbers that are infinite or none are an error that names their place") {
  Synthetic synthetic;
  synthetic.n_layers = 3;
  synthetic.randomize(4);
  const float none = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  std::string place;
  SUBCASE("in the embedding of a token") {
    for (float& x : synthetic.embedding[7]) x = none;
    place = "the embedding";
  }
  SUBCASE("in a norm") {
    synthetic.layers[1].attention_norm[3] = infinity;
    place = "attention of layer 1";
  }
  SUBCASE("in attention") {
    synthetic.layers[1].wo[3][4] = none;
    place = "attention of layer 1";
  }
  SUBCASE("in experts") {
    for (auto& expert : synthetic.layers[0].w2) expert[3][4] = infinity;
    place = "the experts of layer 0";
  }
  SUBCASE("in the router") {
    synthetic.layers[1].router[1][2] = none;
    place = "the router of layer 1";
  }
  SUBCASE("in the last layer, for the token that gets logits") {
    for (auto& expert : synthetic.layers[2].w2) expert[3][4] = infinity;
    place = "the experts of layer 2";
  }
  SUBCASE("in the output") {
    synthetic.output[200][5] = none;
    place = "the output";
  }
  const mixtral::Model model = open(synthetic.writer().finish());
  mixtral::SessionOptions options;
  options.branches = 2;
  mixtral::Session s = value(mixtral::Session::open(model, options));
  REQUIRE(s.append(span({1, 2, 3, 7})));
  const bool of_token = place == "the embedding";
  const bool at_end = of_token || place == "the output" || place == "the experts of layer 2";
  const std::string position = at_end ? "position 3" : "position 0";
  for (int i = 0; i < 2; ++i) {  // again and again
    const auto status = s.evaluate();
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::bad_format);
    CAPTURE(status.error().message());
    CHECK(std::string(status.error().message()).find(place) != std::string::npos);
    CHECK(std::string(status.error().message()).find(position) != std::string::npos);
    CHECK(!s.has_logits());
  }
  auto generation = s.generate();
  CHECK(!generation.next());
  CHECK(generation.stop_reason() == mixtral::StopReason::error);
  CHECK(generation.error().code() == ErrorCode::bad_format);
  if (!of_token) return;
  // A session that has nothing to do with it is not concerned, even in one call.
  REQUIRE(s.rewind(3));
  mixtral::Session other = value(s.fork());
  REQUIRE(other.append(Token{7}));
  // The pass in progress of another is finished first; what is wrong with that its own call tells.
  for (int i = 0; i < 3; ++i) REQUIRE(other.advance(std::chrono::nanoseconds(0)));
  CHECK(s.evaluate());
  CHECK(s.has_logits());
  const auto of_other = other.evaluate();
  REQUIRE(!of_other);
  CHECK(of_other.error().code() == ErrorCode::bad_format);
  mixtral::Generation one = s.generate(exactly(2, model)), two = other.generate();
  mixtral::Generation* both[] = {&two, &one};
  CHECK(value(mixtral::Generation::next_all({both, 2})));
  CHECK(one.stop_reason() == mixtral::StopReason::none);
  CHECK(two.stop_reason() == mixtral::StopReason::error);
}

TEST_CASE("session: such numbers are seen before quantised activations hide them") {
  const Blob good = read_file(bundled_model());
  const auto file =
      value(mixtral::gguf::File::parse(bytes(good), std::pmr::get_default_resource()));
  struct Case {
    const char* tensor;
    const char* part;
  };
  for (const Case& c :
       {Case{"token_embd.weight", "the embedding"},
        Case{"blk.1.attn_norm.weight", "attention of layer 1"},
        Case{"blk.1.attn_q.weight", "attention of layer 1"},
        Case{"blk.1.attn_k.weight", "attention of layer 1"},
        Case{"blk.1.attn_v.weight", "attention of layer 1"},
        Case{"blk.1.attn_output.weight", "attention of layer 1"},
        Case{"blk.1.ffn_norm.weight", "the router of layer 1"},
        Case{"blk.1.ffn_gate_inp.weight", "the router of layer 1"},
        Case{"blk.1.ffn_gate_exps.weight", "the experts of layer 1"},
        Case{"blk.1.ffn_up_exps.weight", "the experts of layer 1"},
        Case{"blk.1.ffn_down_exps.weight", "the experts of layer 1"},
        Case{"output_norm.weight", "the output"}, Case{"output.weight", "the output"}}) {
    const auto* tensor = file.find_tensor(c.tensor);
    REQUIRE(tensor != nullptr);
    for (const bool infinite : {false, true}) {
      Blob bad = good;
      std::uint8_t* data = bad.data() + (tensor->data - good.data());
      if (tensor->format == mixtral::BlockFormat::f32) {
        const float number = infinite ? std::numeric_limits<float>::infinity()
                                      : std::numeric_limits<float>::quiet_NaN();
        std::memcpy(data + 8, &number, sizeof number);
      } else {
        REQUIRE(tensor->format == mixtral::BlockFormat::q8_0);
        const std::uint16_t scale = infinite ? 0x7C00 : 0x7E00;
        // One block of each row, so that every token meets one.
        const std::size_t row_bytes = static_cast<std::size_t>(tensor->shape[0]) / 32 * 34;
        for (std::size_t at = 0; at < tensor->bytes; at += row_bytes) {
          std::memcpy(data + at, &scale, sizeof scale);
        }
      }
      CAPTURE(c.tensor);
      CAPTURE(infinite);
      mixtral::Session s = session(open(bad), 64);
      REQUIRE(s.append("Once upon a time"));
      const auto status = s.evaluate();
      REQUIRE(!status);
      CHECK(status.error().code() == ErrorCode::bad_format);
      CAPTURE(status.error().message());
      CHECK(std::string(status.error().message()).find(c.part) != std::string::npos);
    }
  }
}

TEST_CASE("session: text in parts is one text") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session parts = session(model, 64);
  REQUIRE(parts.append("Once upon"));
  REQUIRE(parts.append(" a time"));
  mixtral::Session whole = session(model, 64);
  REQUIRE(whole.append("Once upon a time"));
  CHECK(std::vector<Token>(parts.tokens().begin(), parts.tokens().end()) ==
        std::vector<Token>(whole.tokens().begin(), whole.tokens().end()));
}

TEST_CASE(
    "session: an evaluation that another thread cancels at any moment is done or cancelled, "
    "nothing between") {
  const mixtral::Model model = open(bundled_model());
  const auto prompt = golden().back()["ids"].get<std::vector<Token>>();
  const std::vector<Token> reversed(prompt.rbegin(), prompt.rend());
  const std::vector<Token>* const texts[] = {&prompt, &reversed};
  std::vector<float> expected[2];
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < 2; ++i) {
    mixtral::Session plain = session(model, 512, 16);
    REQUIRE(plain.append(span(*texts[i])));
    REQUIRE(plain.evaluate());
    expected[i].assign(plain.logits().begin(), plain.logits().end());
  }
  const auto evaluation = (std::chrono::steady_clock::now() - start) / 2;

  auto pool = value(mixtral::ThreadPool::create(2));
  for (const bool with_pool : {false, true}) {
    mixtral::Session s =
        session(model, 512, 16, with_pool ? mixtral::Executor(pool) : mixtral::Executor());
    // Cancels from time to time, seldom enough for some evaluations to get done between two.
    std::atomic<bool> stops{false};
    std::thread other([&] {
      for (unsigned k = 0; !stops; ++k) {
        s.cancel();
        std::this_thread::sleep_for(evaluation / 8 * (k * 7 % 32));
      }
    });
    int n_done = 0, n_cancelled = 0, n_wrong = 0;
    std::size_t which = 0;
    for (int round = 0; round < 100000 && (n_done < 4 || n_cancelled < 4); ++round) {
      if (s.has_logits() || round == 0) {  // something else to do
        s.clear();
        which = 1 - which;
        if (!s.append(span(*texts[which]))) ++n_wrong;
      }
      const mixtral::Status status = s.evaluate();
      if (status) {
        ++n_done;
        const bool is_same =
            s.has_logits() && std::equal(expected[which].begin(), expected[which].end(),
                                         s.logits().begin(), s.logits().end());
        if (!is_same) ++n_wrong;
      } else {
        ++n_cancelled;
        if (status.error().code() != ErrorCode::cancelled || s.has_logits()) ++n_wrong;
      }
      if (s.tokens().size() != prompt.size()) ++n_wrong;
    }
    stops = true;
    other.join();
    CHECK(n_wrong == 0);
    CHECK(n_done >= 4);
    CHECK(n_cancelled >= 4);
  }
}

TEST_CASE("session: cancelling leaves the session usable, and the result the same") {
  const mixtral::Model model = open(bundled_model());
  const auto prompt = golden().back()["ids"].get<std::vector<Token>>();
  mixtral::Session plain = session(model, 512, 16);
  REQUIRE(plain.append(span(prompt)));
  const auto expected = greedy_tokens(plain, 20);

  mixtral::Session s = session(model, 512, 16);
  REQUIRE(s.append(span(prompt)));
  s.cancel();
  auto status = s.evaluate();
  REQUIRE(!status);
  CHECK(status.error().code() == ErrorCode::cancelled);
  CHECK(!s.has_logits());

  // It does not stay for the next evaluation, and with nothing left to do there is nothing to cancel.
  REQUIRE(s.evaluate());
  s.cancel();
  REQUIRE(s.evaluate());
  CHECK(s.has_logits());

  // Within a generation.
  s.clear();
  REQUIRE(s.append(span(prompt)));
  auto generation = s.generate();
  REQUIRE(generation.next());
  s.cancel();
  CHECK(!generation.next());
  CHECK(generation.stop_reason() == mixtral::StopReason::cancelled);
  auto rest = greedy_tokens(s, 19);
  rest.insert(rest.begin(), s.tokens()[prompt.size()]);
  CHECK(rest == expected);
}

TEST_CASE("session: many sessions on many threads share a model and a pool") {
  const mixtral::Model model = open(bundled_model());
  auto pool = value(mixtral::ThreadPool::create(2));
  const auto entries = golden();
  std::vector<std::vector<Token>> expected;
  for (const auto& entry : entries) {
    mixtral::Session s = session(model, 300);
    REQUIRE(s.append(span(entry["ids"].get<std::vector<Token>>())));
    expected.push_back(greedy_tokens(s, 24));
    CHECK(!expected.back().empty());
  }
  REQUIRE(expected.size() >= 4);
  std::vector<std::vector<Token>> got(entries.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    threads.emplace_back([&, i] {
      mixtral::SessionOptions options;
      options.context = 300;
      options.kv_format = mixtral::BlockFormat::f32;  // as support::session has it
      if (i % 2 == 0) options.executor = pool;
      auto s = mixtral::Session::open(model, options);
      const auto ids = entries[i]["ids"].get<std::vector<Token>>();
      if (s && s->append(span(ids))) got[i] = greedy_tokens(*s, 24);
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(got == expected);
}

TEST_CASE("session: outlives the handle of its model") {
  auto model = std::make_unique<mixtral::Model>(open(bundled_model()));
  mixtral::Session s = session(*model, 64);
  model.reset();
  REQUIRE(s.append("Once upon a time"));
  CHECK(greedy_tokens(s, 3).size() == 3);
  mixtral::Session moved = std::move(s);
  CHECK(greedy_tokens(moved, 3).size() == 3);
}
