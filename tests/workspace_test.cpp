// Sessions that share memory: forks, going back, many at once.
#include "sessions.hpp"

#include <chrono>

using namespace support;
using namespace std::chrono_literals;
using mixtral::ErrorCode;
using mixtral::Progress;
using mixtral::Session;
using mixtral::Token;

namespace {

// Counts the tokens that are computed.
struct Counter : mixtral::Observer {
  std::size_t n = 0;
  bool wants_all_logits() const override { return true; }
  void on_logits(std::uint32_t, mixtral::Span<const float>) override { ++n; }
};

// What made a session what it is, for another to do the same in the plainest way.
struct History {
  struct Step {
    enum { append, rewind, forget } what;
    std::vector<Token> tokens;          // append
    std::uint32_t keep = 0, count = 0;  // rewind: how many stay; forget: how many go, after `keep`
  };
  std::vector<Step> steps;
  std::vector<Token> tokens;  // after them
  std::size_t n_forgets = 0;

  void append(const std::vector<Token>& more) {
    steps.push_back({Step::append, more});
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  void rewind(std::size_t n) {
    tokens.resize(n);
    steps.push_back({Step::rewind, {}, static_cast<std::uint32_t>(n)});
    if (n == 0) *this = History();
  }
  void forget(std::uint32_t keep, std::uint32_t count, std::uint32_t gone) {
    steps.push_back({Step::forget, {}, keep, count});
    tokens.erase(tokens.begin() + keep, tokens.begin() + keep + gone);
    ++n_forgets;
  }
  // The logits after all of it, in a session of its own.
  std::vector<float> logits(const mixtral::Model& model, mixtral::BlockFormat kv_format) const {
    mixtral::SessionOptions options = options_for(512);
    options.kv_format = kv_format;
    Session s = value(Session::open(model, options));
    for (const Step& step : steps) {
      switch (step.what) {
        case Step::append: REQUIRE(s.append(span(step.tokens))); break;
        case Step::rewind: REQUIRE(s.rewind(step.keep)); break;
        case Step::forget:
          // What stays was computed with what goes, as far as it was computed.
          REQUIRE(s.evaluate());
          REQUIRE(s.forget_oldest(step.keep, step.count));
      }
    }
    REQUIRE(tokens_of(s) == tokens);
    REQUIRE(s.evaluate());
    return logits_of(s);
  }
};

}  // namespace

TEST_CASE("workspace: a fork goes its own way") {
  const mixtral::Model model = open(bundled_model());
  Session root = value(Session::open(model, options_for(512, 3)));
  REQUIRE(root.append(span(some_tokens(100, 3))));  // ends within a page
  REQUIRE(root.evaluate());
  const auto at_root = logits_of(root);
  Session a = value(root.fork());
  CHECK(tokens_of(a) == tokens_of(root));
  CHECK(a.has_logits());
  CHECK(logits_of(a) == at_root);
  REQUIRE(a.append(span(some_tokens(20, 4))));
  check_as_plain(a);
  CHECK(logits_of(root) == at_root);  // still there
  REQUIRE(root.append(span(some_tokens(50, 5))));
  Session b = value(root.fork());  // with tokens that are not computed yet
  check_as_plain(root);
  check_as_plain(b);
  REQUIRE(a.append(Token{7}));
  check_as_plain(a);
  const auto none = root.fork();
  REQUIRE(!none);
  CHECK(none.error().code() == ErrorCode::out_of_memory);
  { const Session gone = std::move(root); }
  b = value(a.fork());  // in the place of the one before, or of the root
  check_as_plain(b);
  check_as_plain(a);
  // A fork in the middle of a pass has what was computed before.
  REQUIRE(a.append(span(some_tokens(40, 6))));
  for (int k = 0; k < 30; ++k) REQUIRE(a.advance(0ns));
  Session c = value(a.fork());
  { const Session gone = std::move(a); }  // with its pass
  check_as_plain(c);
}

TEST_CASE("workspace: ten branches of a long past take little more room than one") {
  const mixtral::Model model = open(bundled_model());
  mixtral::SessionOptions options = options_for(512, 11);
  options.kv_tokens = 448;
  Session root = value(Session::open(model, options));
  REQUIRE(root.append(span(some_tokens(400, 7))));
  REQUIRE(root.evaluate());
  std::vector<Session> branches;
  for (std::uint32_t i = 0; i < 10; ++i) {
    branches.push_back(value(root.fork()));
    REQUIRE(branches.back().append(span(some_tokens(20, 100 + i))));
  }
  for (Session& branch : branches) check_as_plain(branch);
  // There is no room for ten times as many more; the tokens stay, to be computed when there is.
  std::size_t n_full = 0;
  for (Session& branch : branches) {
    REQUIRE(branch.append(span(some_tokens(40, 8))));
    const auto status = branch.evaluate();
    if (status) continue;
    CHECK(status.error().code() == ErrorCode::context_full);
    CHECK(branch.tokens().size() == 460);
    ++n_full;
  }
  CHECK(n_full >= 8);
  Session last = std::move(branches.back());
  branches.clear();
  check_as_plain(last);
  // What it takes: beside the pages, history and logits of each branch, and room to compute 16 rows of
  // logits at once, not 8.
  const auto ten = value(Session::memory_needed(model, options));
  options.branches = 1;
  const auto one = value(Session::memory_needed(model, options));
  const std::uint64_t page = (value(Session::memory_needed(model, options_for(128))) -
                              value(Session::memory_needed(model, options_for(64))));
  const std::uint64_t each = model.config().vocab_size * 4 + 512 * 5 + 1024;
  const std::uint64_t logits = 8 * (model.config().vocab_size * 4 + model.config().dim * 8);
  CHECK(ten - one <= 10 * (page + each) + logits);
}

TEST_CASE("workspace: going back and replacing compute only what is new") {
  const mixtral::Model model = open(bundled_model());
  Session s = value(Session::open(model, options_for(256)));
  std::vector<Token> tokens = some_tokens(150, 9);
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  CHECK(!s.rewind(151));
  REQUIRE(s.rewind(150));
  CHECK(s.has_logits());  // nothing changed
  REQUIRE(s.rewind(90));
  CHECK(s.tokens().size() == 90);
  CHECK(!s.has_logits());
  Counter counter;
  REQUIRE(s.evaluate(&counter));
  CHECK(counter.n == 1);  // the last one, for its logits
  check_as_plain(s);

  tokens[70] = tokens[70] == 5 ? 6 : 5;
  CHECK(value(s.replace(span(tokens))) == 70);
  CHECK(tokens_of(s) == tokens);
  counter.n = 0;
  REQUIRE(s.evaluate(&counter));
  CHECK(counter.n == 80);
  check_as_plain(s);
  CHECK(value(s.replace(span(tokens))) == 150);
  CHECK(s.has_logits());
  tokens.resize(80);
  CHECK(value(s.replace(span(tokens))) == 80);
  check_as_plain(s);

  // What cannot be is refused and changes nothing.
  CHECK(!s.replace(span(some_tokens(257, 1))));
  CHECK(!s.replace(span({1, -1})));
  CHECK(tokens_of(s) == tokens);
  CHECK(s.has_logits());
  CHECK(value(s.replace(mixtral::Span<const Token>())) == 0);
  CHECK(s.tokens().empty());

  REQUIRE(s.append("Once upon a time there was"));
  REQUIRE(s.evaluate());
  CHECK(value(s.replace("Once upon a time there lived")) >= 5);
  Session plain = value(Session::open(model, options_for(256)));
  REQUIRE(plain.append("Once upon a time there lived"));
  CHECK(tokens_of(s) == tokens_of(plain));
}

TEST_CASE("workspace: a chat that went back goes on as if the rest had not been") {
  const mixtral::Model model = open(bundled_model());
  Session s = value(Session::open(model, options_for(512)));
  REQUIRE(s.append_chat({{"user", "Tell me a story."}}));
  const auto first = static_cast<std::uint32_t>(s.tokens().size());
  mixtral::GenerateOptions generate = exactly(8, model);
  std::string expected;
  for (const std::string_view piece : s.generate(generate)) expected += piece;
  const auto answered = static_cast<std::uint32_t>(s.tokens().size());
  const auto ask = [&] {
    REQUIRE(s.append_chat({{"user", "And then?"}}));
    const auto all = tokens_of(s);
    return std::vector<Token>(all.begin() + answered, all.end());
  };
  const auto second = ask();
  REQUIRE(s.rewind(answered));
  CHECK(ask() == second);
  // An answer begins again, without a leading space.
  REQUIRE(s.rewind(first));
  std::string again;
  for (const std::string_view piece : s.generate(generate)) again += piece;
  CHECK(again == expected);
  CHECK(ask() == second);
  Session fork = value(Session::open(model, options_for(512, 2)));
  REQUIRE(fork.append_chat({{"user", "Tell me a story."}}));
  Session other = value(fork.fork());
  again.clear();
  for (const std::string_view piece : other.generate(generate)) again += piece;
  CHECK(again == expected);
}

TEST_CASE("workspace: many sessions evaluated together get what each gets alone") {
  const mixtral::Model model = open(bundled_model());
  auto pool = value(mixtral::ThreadPool::create(2));
  mixtral::SessionOptions options = options_for(256, 12);
  options.executor = pool;
  std::vector<Session> sessions;
  sessions.push_back(value(Session::open(model, options)));
  REQUIRE(sessions[0].append(span(some_tokens(30, 10))));
  REQUIRE(sessions[0].evaluate());
  for (std::uint32_t i = 1; i < 12; ++i) {
    sessions.push_back(value(sessions[0].fork()));
    if (i % 2 == 0) sessions[i].clear();
    REQUIRE(sessions[i].append(span(some_tokens(1 + i * i, i))));
  }
  std::vector<Session*> all;
  for (Session& s : sessions) all.push_back(&s);
  all.push_back(all[3]);  // twice is once
  const mixtral::Span<Session* const> together(all.data(), all.size());
  SUBCASE("at once") { REQUIRE(Session::evaluate_all(together)); }
  SUBCASE("in slices") {
    int n_slices = 0;
    while (value(Session::advance_all(together, 30us)) == Progress::working) ++n_slices;
    CHECK(n_slices > 10);
  }
  for (Session& s : sessions) {
    REQUIRE(s.has_logits());
    check_as_plain(s);
  }
  // One more token each, as in generation.
  for (Session* s : all) REQUIRE(s->append(Token{11}));
  REQUIRE(Session::evaluate_all(together));
  for (Session& s : sessions) check_as_plain(s);

  // A pass of others in progress is finished first, and is not lost.
  REQUIRE(sessions[1].append(span(some_tokens(20, 11))));
  REQUIRE(sessions[2].append(span(some_tokens(20, 12))));
  for (int k = 0; k < 20; ++k) {
    REQUIRE(sessions[1].advance(0ns));
    REQUIRE(sessions[2].advance(0ns));
  }
  check_as_plain(sessions[2]);
  CHECK(sessions[1].has_logits());
  check_as_plain(sessions[1]);

  REQUIRE(sessions[4].append(Token{1}));
  REQUIRE(sessions[5].append(Token{1}));
  sessions[4].cancel();
  const auto cancelled = Session::evaluate_all(together);
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code() == ErrorCode::cancelled);
  REQUIRE(Session::evaluate_all(together));
  check_as_plain(sessions[5]);

  CHECK(Session::evaluate_all({}));
  sessions[6].clear();
  CHECK(!Session::evaluate_all(together));
  Session stranger = value(Session::open(model, options_for(64)));
  REQUIRE(stranger.append(Token{1}));
  Session* strangers[] = {&sessions[0], &stranger};
  const auto refused = Session::evaluate_all({strangers, 2});
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::invalid_argument);
}

TEST_CASE("workspace: going back farther than a sliding window reaches computes it again") {
  Synthetic synthetic;
  synthetic.n_experts = synthetic.n_experts_used = 1;
  synthetic.sliding_window = 50;
  synthetic.context_length = 1000;
  synthetic.randomize(22);
  const Blob blob = synthetic.writer().finish();
  const mixtral::Model model = open(blob);
  Session s = value(Session::open(model, options_for(512, 2)));
  std::vector<Token> tokens = some_tokens(400, 13);
  for (Token& t : tokens) t %= 300;
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  Session fork = value(s.fork());
  for (const std::uint32_t n : {395u, 380u, 200u, 64u, 63u, 1u}) {
    CAPTURE(n);
    REQUIRE(s.rewind(n));
    check_as_plain(s);
    REQUIRE(s.append({tokens.data(), 30}));
    check_as_plain(s);
  }
  REQUIRE(fork.append(Token{3}));
  check_as_plain(fork);
}

TEST_CASE("workspace: forgetting leaves what the rest would have given without what is gone") {
  // In the first layer keys and values are those of the tokens alone, so that nothing remains of
  // forgotten ones.
  Synthetic synthetic;
  synthetic.n_layers = 1;
  synthetic.context_length = 1000;
  SUBCASE("experts") {}
  SUBCASE("scaled positions") { synthetic.rope_linear_factor = 4.0f; }
  SUBCASE("a sliding window") { synthetic.sliding_window = 150; }
  synthetic.randomize(31);
  const mixtral::Model model = open(synthetic.writer().finish());
  struct Case {
    mixtral::BlockFormat format;
    double tolerance;
  };
  for (const Case& one :
       {Case{mixtral::BlockFormat::f32, 1e-4}, Case{mixtral::BlockFormat::f16, 0.03}}) {
    for (const std::uint32_t keep : {0u, 5u, 64u, 100u}) {
      CAPTURE(keep);
      mixtral::SessionOptions options = options_for(512, 2);
      options.kv_format = one.format;
      Session s = value(Session::open(model, options));
      std::vector<Token> tokens = some_tokens(400, keep);
      for (Token& t : tokens) t %= 300;
      REQUIRE(s.append(span(tokens)));
      REQUIRE(s.evaluate());
      Session fork = value(s.fork());
      const auto check_shortened = [&](std::uint32_t n, std::uint32_t gone) {
        CHECK(value(s.forget_oldest(keep, n)) == gone);
        tokens.erase(tokens.begin() + keep, tokens.begin() + keep + gone);
        CHECK(tokens_of(s) == tokens);
        tokens.push_back(static_cast<Token>(n % 300));
        REQUIRE(s.append(tokens.back()));
        Counter counter;
        REQUIRE(s.evaluate(&counter));
        if (synthetic.sliding_window == 0) CHECK(counter.n == 1);
        CHECK(max_difference(logits_of(s), synthetic.reference(tokens).back()) < one.tolerance);
      };
      check_shortened(64, 64);
      check_shortened(1, 64);
      check_shortened(0, 0);
      check_shortened(65, 128);
      REQUIRE(fork.rewind(399));
      if (one.format == mixtral::BlockFormat::f32) check_as_plain(fork);  // its past is as it was
      // All of it, and more than there is.
      const auto rest = static_cast<std::uint32_t>(tokens.size()) - keep;
      CHECK(!s.forget_oldest(keep, rest + 1));
      CHECK(tokens_of(s) == tokens);
      CHECK(value(s.forget_oldest(keep, rest)) == rest);
      CHECK(s.tokens().size() == keep);
    }
  }
}

TEST_CASE("workspace: a full context goes on without its oldest tokens, if the host wants that") {
  const mixtral::Model model = open(bundled_model());
  mixtral::SessionOptions options = options_for(200);
  options.when_full = mixtral::WhenFull::forget_oldest;
  options.keep_first = 7;
  Session s = value(Session::open(model, options));
  REQUIRE(s.append("Once upon a time there was"));
  const std::vector<Token> first(s.tokens().begin(), s.tokens().begin() + 7);
  mixtral::GenerateOptions generate = exactly(600, model);
  auto generation = s.generate(generate);
  std::vector<Token> all = tokens_of(s);
  while (generation.next()) all.push_back(generation.token());
  CHECK(generation.stop_reason() == mixtral::StopReason::max_tokens);
  CHECK(all.size() >= 600);
  CHECK(s.tokens().size() <= 200);
  const std::vector<Token> kept = tokens_of(s);
  CHECK(std::vector<Token>(kept.begin(), kept.begin() + 7) == first);
  CHECK(std::equal(kept.begin() + 7, kept.end(),
                   all.end() - static_cast<std::ptrdiff_t>(kept.size() - 7)));
  // More than fits beside what is kept is refused, as before; what fits is not.
  const auto before = s.tokens().size();
  const auto status = s.append(span(some_tokens(194, 1)));
  REQUIRE(!status);
  CHECK(status.error().code() == ErrorCode::context_full);
  CHECK(s.tokens().size() == before);
  REQUIRE(s.append(span(some_tokens(193, 1))));
  REQUIRE(s.evaluate());
  // Tokens that were not computed yet can go, too.
  REQUIRE(s.append(span(some_tokens(100, 2))));
  REQUIRE(s.append(span(some_tokens(100, 3))));
  REQUIRE(s.evaluate());
  s.clear();
  REQUIRE(s.append(span(some_tokens(150, 4))));
  check_as_plain(s);
  options.keep_first = 200;
  CHECK(!Session::open(model, options));
}

TEST_CASE("workspace: any order of operations gives what a plain session gives") {
  const mixtral::Model model = open(bundled_model());
  std::size_t n_gone = 0, n_compared = 0;
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto any = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
    mixtral::SessionOptions options = options_for(200, 5);
    options.batch = seed % 2 == 0 ? 16 : 64;
    options.kv_format = seed < 2 ? mixtral::BlockFormat::f32 : mixtral::BlockFormat::f16;
    std::vector<Session> sessions;
    std::vector<History> expected;
    sessions.push_back(value(Session::open(model, options)));
    expected.emplace_back();
    for (int step = 0; step < 300; ++step) {
      const std::size_t i = any(sessions.size());
      Session& s = sessions[i];
      History& history = expected[i];
      const std::vector<Token>& tokens = history.tokens;
      switch (any(13)) {
        case 0:
        case 1:
        case 2: {
          const auto more = some_tokens(any(25), static_cast<std::uint32_t>(random()));
          const bool fits = tokens.size() + more.size() <= 200;
          CHECK(static_cast<bool>(s.append(span(more))) == fits);
          if (fits) history.append(more);
          break;
        }
        case 3:
          history.rewind(any(tokens.size() + 1));
          REQUIRE(s.rewind(static_cast<std::uint32_t>(tokens.size())));
          break;
        case 4: {
          const std::size_t keep = any(tokens.size() + 1);
          std::vector<Token> others(tokens.begin(), tokens.begin() + static_cast<long>(keep));
          others.resize(std::min<std::size_t>(200, keep + any(20)), static_cast<Token>(any(4000)));
          std::size_t same = 0;
          while (same < std::min(tokens.size(), others.size()) && tokens[same] == others[same])
            ++same;
          CHECK(value(s.replace(span(others))) == same);
          history.rewind(same);
          history.append({others.begin() + static_cast<long>(same), others.end()});
          break;
        }
        case 5: {
          auto fork = s.fork();
          CHECK(static_cast<bool>(fork) == (sessions.size() < 5));
          if (!fork) break;
          const History same = history;
          sessions.push_back(*std::move(fork));
          expected.push_back(same);
          break;
        }
        case 6:
          if (sessions.size() == 1) break;
          sessions.erase(sessions.begin() + static_cast<std::ptrdiff_t>(i));
          expected.erase(expected.begin() + static_cast<std::ptrdiff_t>(i));
          break;
        case 7: {
          for (std::size_t k = any(100); k > 0; --k) static_cast<void>(s.advance(0ns));
          break;
        }
        case 10: {
          Blob saved;
          REQUIRE(s.save([&](const void* from, std::size_t size) {
            const auto* bytes = static_cast<const std::uint8_t*>(from);
            saved.insert(saved.end(), bytes, bytes + size);
            return true;
          }));
          const std::size_t other = any(sessions.size());
          std::size_t at = 0;
          REQUIRE(sessions[other].load([&](void* to, std::size_t size) {
            std::memcpy(to, saved.data() + at, size);
            at += size;
            return true;
          }));
          CHECK(at == saved.size());
          const History same = history;
          expected[other] = same;
          break;
        }
        case 11: {
          if (tokens.empty()) break;
          REQUIRE(s.evaluate());
          const auto keep =
              static_cast<std::uint32_t>(any(std::min<std::size_t>(tokens.size(), 80)));
          const auto count = static_cast<std::uint32_t>(any(tokens.size() - keep + 1));
          const std::uint32_t gone = value(s.forget_oldest(keep, count));
          history.forget(keep, count, gone);
          n_gone += gone;
          if (history.n_forgets < 4) break;
          REQUIRE(s.rewind(0));
          history.rewind(0);
          break;
        }
        case 8: {
          if (tokens.empty()) {
            REQUIRE(s.append(Token{1}));
            history.append({1});
          }
          // Only what is still to be computed can be cancelled.
          const bool is_done = s.has_logits();
          s.cancel();
          CHECK(static_cast<bool>(s.evaluate()) == is_done);
          break;
        }
        default: {
          std::vector<Session*> those;
          for (std::size_t k = 0; k < sessions.size(); ++k) {
            if (!expected[k].tokens.empty() && (k == i || any(2) == 0))
              those.push_back(&sessions[k]);
          }
          REQUIRE(Session::evaluate_all({those.data(), those.size()}));
          for (const Session* one : those) {
            const auto k = static_cast<std::size_t>(one - sessions.data());
            CHECK(logits_of(*one) == expected[k].logits(model, options.kv_format));
            ++n_compared;
          }
        }
      }
      for (std::size_t k = 0; k < sessions.size(); ++k) {
        REQUIRE(tokens_of(sessions[k]) == expected[k].tokens);
      }
    }
  }
  CHECK(n_gone > 1000);
  CHECK(n_compared > 200);
}

TEST_CASE("workspace: forks and their memory are stated and given back") {
  struct Counting : std::pmr::memory_resource {
    std::size_t bytes = 0;
    bool refuses = false;
    void* do_allocate(std::size_t size, std::size_t alignment) override {
      if (refuses) throw std::bad_alloc();
      bytes += size;
      return std::pmr::new_delete_resource()->allocate(size, alignment);
    }
    void do_deallocate(void* memory, std::size_t size, std::size_t alignment) override {
      bytes -= size;
      std::pmr::new_delete_resource()->deallocate(memory, size, alignment);
    }
    bool do_is_equal(const memory_resource& o) const noexcept override { return this == &o; }
  } resource;
  {
    mixtral::ModelOptions model_options;
    model_options.memory = &resource;
    auto model = value(mixtral::Model::open(bundled_model().c_str(), model_options));
    const std::size_t of_model = resource.bytes;
    const mixtral::SessionOptions options = options_for(64, 4);
    {
      Session root = value(Session::open(model, options));
      REQUIRE(root.append(Token{1}));
      resource.refuses = true;
      const auto none = root.fork();
      REQUIRE(!none);
      CHECK(none.error().code() == ErrorCode::out_of_memory);
      resource.refuses = false;
      std::vector<Session> forks;
      for (int i = 0; i < 3; ++i) forks.push_back(value(root.fork()));
      CHECK(resource.bytes - of_model == value(Session::memory_needed(model, options)));
      { const Session gone = std::move(root); }
      REQUIRE(Session::evaluate_all({}));
      check_as_plain(forks[2]);
    }
    CHECK(resource.bytes == of_model);
    mixtral::SessionOptions bad = options;
    bad.branches = 0;
    CHECK(!Session::open(model, bad));
    bad.branches = 1u << 20;
    CHECK(!Session::open(model, bad));
  }
  CHECK(resource.bytes == 0);
}
