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

// A model whose numbers are small, for many short evaluations.
mixtral::Model small_model(std::uint32_t sliding_window = 0) {
  Synthetic synthetic;
  synthetic.context_length = 1000;
  synthetic.sliding_window = sliding_window;
  synthetic.randomize(51);
  return open(synthetic.writer().finish());
}

std::vector<Token> small_tokens(std::size_t n, std::uint32_t seed) {
  std::vector<Token> tokens = some_tokens(n, seed);
  for (Token& t : tokens) t %= 300;
  return tokens;
}

// A session that has room for `kv_tokens`, and for one page more for each of its forks.
Session open_root(const mixtral::Model& model, std::uint32_t branches, std::uint32_t kv_tokens) {
  mixtral::SessionOptions options = options_for(512, branches);
  options.kv_tokens = kv_tokens;
  return value(Session::open(model, options));
}

// Empty sessions of one open().
std::vector<Session> open_sessions(const mixtral::Model& model, std::uint32_t n,
                                   std::uint32_t kv_tokens) {
  std::vector<Session> sessions;
  sessions.push_back(open_root(model, n, kv_tokens));
  while (sessions.size() < n) sessions.push_back(value(sessions[0].fork()));
  return sessions;
}

void append_and_evaluate(Session& s, std::size_t n, std::uint32_t seed) {
  REQUIRE(s.append(span(small_tokens(n, seed))));
  REQUIRE(s.evaluate());
}

void check_full(const mixtral::Status& status) {
  REQUIRE(!status);
  CHECK(status.error().code() == ErrorCode::context_full);
}

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
  Session short_one = value(Session::open(model, options_for(256)));
  REQUIRE(short_one.append(tokens[0]));
  REQUIRE(short_one.evaluate());
  REQUIRE(short_one.rewind(1));
  CHECK(short_one.has_logits());
  REQUIRE(short_one.rewind(0));
  CHECK(!short_one.has_logits());
  REQUIRE(short_one.rewind(0));
  CHECK(short_one.tokens().empty());
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
  const mixtral::Model bundled = open(bundled_model()), windowed = small_model(70);
  std::size_t n_gone = 0, n_compared = 0;
  for (std::uint32_t seed = 0; seed < 6; ++seed) {
    const bool has_window = seed >= 4;
    const mixtral::Model& model = has_window ? windowed : bundled;
    const auto any_tokens = [&](std::size_t n, std::uint32_t of) {
      return has_window ? small_tokens(n, of) : some_tokens(n, of);
    };
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto any = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
    mixtral::SessionOptions options = options_for(200, 5);
    options.batch = seed % 2 == 0 ? 16 : 64;
    options.kv_format =
        seed != 2 && seed != 3 ? mixtral::BlockFormat::f32 : mixtral::BlockFormat::f16;
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
          const auto more = any_tokens(any(25), static_cast<std::uint32_t>(random()));
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
          others.resize(std::min<std::size_t>(200, keep + any(20)), static_cast<Token>(any(300)));
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
          // Where a window has moved, what remains of the past hangs on where passes ended.
          if (tokens.empty() || has_window) break;
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

TEST_CASE("workspace: there is room for whole pages of 64, and one page more for each fork") {
  const mixtral::Model model = small_model();
  for (const std::uint32_t n_branches : {1u, 2u}) {
    for (const std::uint32_t kv_tokens : {1u, 64u, 65u, 128u}) {
      CAPTURE(n_branches);
      CAPTURE(kv_tokens);
      std::vector<Session> sessions = open_sessions(model, n_branches, kv_tokens);
      Session& s = sessions[0];
      const std::uint32_t room = ((kv_tokens + 63) / 64 + n_branches - 1) * 64;
      append_and_evaluate(s, room, 1);
      REQUIRE(s.append(Token{5}));
      check_full(s.evaluate());
      CHECK(s.tokens().size() == room + 1);  // the token stays, to be computed when there is room
      CHECK(!s.has_logits());
      check_full(s.evaluate());
      REQUIRE(s.rewind(room));
      check_as_plain(s);
    }
  }
  // With 0, all of them can be full.
  mixtral::SessionOptions options = options_for(100, 3);
  Session one = value(Session::open(model, options));
  Session two = value(one.fork()), three = value(one.fork());
  for (Session* s : {&one, &two, &three}) append_and_evaluate(*s, 100, 2);
  for (Session* s : {&one, &two, &three}) check_as_plain(*s);
}

TEST_CASE(
    "workspace: with a window, a session takes the pages that the window and a pass can touch") {
  // The positions of a pass and of the window before it may begin at the end of a page.
  for (const std::uint32_t window : {7u, 64u, 100u, 128u}) {
    const mixtral::Model model = small_model(window);
    for (const std::uint32_t batch : {1u, 59u, 65u}) {
      for (const std::uint32_t branches : {1u, 3u}) {
        CAPTURE(window);
        CAPTURE(batch);
        CAPTURE(branches);
        mixtral::SessionOptions options = options_for(900, branches);
        options.batch = batch;
        const std::uint64_t needed = value(Session::memory_needed(model, options));
        const std::uint32_t pages = (window - 1 + batch + 63) / 64 + 1;
        // kv_tokens states pages for the first session, and one more for each of the others.
        options.kv_tokens = pages * branches * 64 - (branches - 1) * 64;
        CHECK(value(Session::memory_needed(model, options)) == needed);
        options.kv_tokens += 1;
        CHECK(value(Session::memory_needed(model, options)) > needed);
      }
    }
  }
}

TEST_CASE("workspace: an error about room says how many pages there are") {
  const mixtral::Model model = small_model();
  std::vector<Session> sessions = open_sessions(model, 3, 130);
  append_and_evaluate(sessions[0], 256, 1);
  append_and_evaluate(sessions[1], 40, 2);
  REQUIRE(sessions[1].append(span(small_tokens(60, 3))));
  const auto status = sessions[1].evaluate();
  check_full(status);
  INFO(status.error().message());
  CHECK(std::string(status.error().message())
            .find("have 5 pages of 64 tokens, of which 0 are free") != std::string::npos);
}

TEST_CASE(
    "workspace: a page that is shared needs a free one to go on from its middle, its last user "
    "does not") {
  const mixtral::Model model = small_model();
  {
    Session root = open_root(model, 3, 64);  // three pages
    append_and_evaluate(root, 100, 3);       // two of them
    Session fork = value(root.fork());
    append_and_evaluate(fork, 10, 4);  // a copy of the second page is the third
    check_as_plain(fork);
    {
      Session other = value(root.fork());
      for (Session* s : {&other, &root}) {
        REQUIRE(s->append(Token{7}));
        check_full(s->evaluate());
      }
    }
    check_as_plain(root);
    check_as_plain(fork);
  }
  // At the end of a page nothing is copied.
  Session root = open_root(model, 2, 64);  // two pages
  append_and_evaluate(root, 64, 5);
  {
    Session fork = value(root.fork());
    append_and_evaluate(fork, 64, 6);
    check_as_plain(fork);
    REQUIRE(root.append(Token{8}));
    check_full(root.evaluate());
  }
  check_as_plain(root);
}

TEST_CASE(
    "workspace: forgetting takes a free page for each shared one that stays, or changes nothing") {
  const mixtral::Model model = small_model();
  struct Case {
    std::uint32_t keep, n_needed;
  };
  // Whole pages that stay are copied, and so is the one whose first positions stay.
  for (const Case& c :
       {Case{0, 0}, Case{1, 1}, Case{64, 1}, Case{65, 2}, Case{100, 2}, Case{128, 2}}) {
    for (const bool is_enough : {false, true}) {
      if (c.n_needed == 0 && !is_enough) continue;
      const std::uint32_t n_free = is_enough ? c.n_needed : c.n_needed - 1;
      CAPTURE(c.keep);
      CAPTURE(n_free);
      Session root = open_root(model, 3, 512);  // ten pages
      Session other = value(root.fork());
      append_and_evaluate(root, 300, 7);  // five of them
      append_and_evaluate(other, (5 - n_free) * 64, 8);
      Session fork = value(root.fork());
      const std::vector<Token> before = tokens_of(root);
      const auto gone = root.forget_oldest(c.keep, 64);
      CHECK(static_cast<bool>(gone) == is_enough);
      History history;
      history.append(before);
      if (gone) {
        CHECK(*gone == 64);
        history.forget(c.keep, 64, 64);
      } else {
        CHECK(gone.error().code() == ErrorCode::context_full);
      }
      CHECK(tokens_of(root) == history.tokens);
      CHECK(tokens_of(fork) == before);
      other.clear();
      history.append({9});
      REQUIRE(root.append(Token{9}));
      REQUIRE(root.evaluate());
      CHECK(logits_of(root) == history.logits(model, mixtral::BlockFormat::f32));
      REQUIRE(fork.append(Token{10}));
      check_as_plain(fork);
      if (!is_enough) continue;
      // All pages come back.
      root.clear();
      fork.clear();
      append_and_evaluate(root, 512, 11);
      append_and_evaluate(fork, 128, 12);
      REQUIRE(other.append(Token{1}));
      check_full(other.evaluate());
    }
  }
}

TEST_CASE("workspace: what is forgotten before it was computed is as if it had never been there") {
  for (const std::uint32_t window : {0u, 1u, 70u}) {
    const mixtral::Model model = small_model(window);
    for (const std::uint32_t keep : {0u, 5u, 44u, 64u, 250u}) {
      for (const std::uint32_t n_pending : {50u, 150u}) {
        CAPTURE(window);
        CAPTURE(keep);
        CAPTURE(n_pending);
        Session s = value(Session::open(model, options_for(512, 2)));
        append_and_evaluate(s, 300, 13);
        REQUIRE(s.append(span(small_tokens(n_pending, 14))));
        if (n_pending == 150) {  // in the middle of a pass, which is given up
          for (int k = 0; k < 20; ++k) REQUIRE(s.advance(0ns));
        }
        std::vector<Token> tokens = tokens_of(s);
        const std::uint32_t gone = value(s.forget_oldest(keep, 300 - keep));
        CHECK(gone >= 300 - keep);
        CHECK(gone == std::min((300 - keep + 63) / 64 * 64, 300 + n_pending - keep));
        tokens.erase(tokens.begin() + keep, tokens.begin() + keep + gone);
        CHECK(tokens_of(s) == tokens);
        if (tokens.empty()) continue;
        check_as_plain(s);
        Session fork = value(s.fork());
        REQUIRE(fork.append(span(small_tokens(40, 15))));
        check_as_plain(fork);
      }
    }
  }
}

TEST_CASE("workspace: a fork of a session that has forgotten goes on as that does") {
  const mixtral::Model model = small_model();
  for (const std::uint32_t keep : {0u, 10u}) {
    Session s = value(Session::open(model, options_for(512, 2)));
    append_and_evaluate(s, 200, 40);
    REQUIRE(s.forget_oldest(keep, 64));
    Session fork = value(s.fork());
    for (Session* one : {&s, &fork}) append_and_evaluate(*one, 5, 41);
    CHECK(logits_of(fork) == logits_of(s));
    // What begins anew begins at the first position.
    s.clear();
    append_and_evaluate(s, 50, 42);
    check_as_plain(s);
  }
  // So does what is computed again since a window has moved over what came before it.
  Session s = value(Session::open(small_model(70), options_for(512)));
  append_and_evaluate(s, 300, 43);
  REQUIRE(s.forget_oldest(0, 64));
  REQUIRE(s.rewind(130));
  check_as_plain(s);
}

TEST_CASE("workspace: a chat goes on as it was after it has forgotten its beginning") {
  const mixtral::Model model = small_model();
  std::vector<Token> asked[2];
  for (const bool forgets : {false, true}) {
    Session s = value(Session::open(model, options_for(512)));
    REQUIRE(s.append_chat({{"user", std::string(150, 'a')}}));
    if (forgets) CHECK(value(s.forget_oldest(3, 64)) == 64);
    const std::size_t before = s.tokens().size();
    REQUIRE(s.append_chat({{"user", "Why?"}}));  // the answer before it is ended first
    asked[forgets ? 1 : 0].assign(s.tokens().begin() + before, s.tokens().end());
  }
  CHECK(asked[0] == asked[1]);
  CHECK(asked[0][0] == model.tokenizer().eos());
}

TEST_CASE("workspace: a page that lies wholly before a window is free for what comes") {
  const mixtral::Model model = small_model(1);
  Session s = open_root(model, 1, 64);  // one page
  append_and_evaluate(s, 256, 44);
  check_as_plain(s);
}

TEST_CASE("workspace: in one large pass, each of several sessions attends to its own past") {
  const mixtral::Model model = small_model();
  mixtral::SessionOptions options = options_for(512, 4);
  options.batch = 400;  // enough for several tokens to share a piece of attention's work
  std::vector<Session> sessions;
  sessions.push_back(value(Session::open(model, options)));
  while (sessions.size() < 4) sessions.push_back(value(sessions[0].fork()));
  Session* all[4];
  for (std::uint32_t i = 0; i < 4; ++i) {
    all[i] = &sessions[i];
    REQUIRE(sessions[i].append(span(small_tokens(70 + 9 * i, 45 + i))));
  }
  REQUIRE(Session::evaluate_all({all, 4}));
  for (Session& s : sessions) check_as_plain(s);
}

TEST_CASE(
    "workspace: a context that is full forgets half of what may go, or as much as is lacking") {
  const mixtral::Model model = small_model();
  struct Case {
    std::uint32_t keep, n_new, n_left;  // n_left: of 256 before the new ones come
  };
  for (const Case& c : {Case{0, 1, 128}, Case{0, 128, 128}, Case{0, 129, 64}, Case{0, 193, 0},
                        Case{0, 256, 0}, Case{10, 1, 128}, Case{128, 1, 192}, Case{130, 64, 192},
                        Case{130, 65, 130}, Case{130, 126, 130}, Case{255, 1, 255}}) {
    CAPTURE(c.keep);
    CAPTURE(c.n_new);
    mixtral::SessionOptions options = options_for(256);
    options.when_full = mixtral::WhenFull::forget_oldest;
    options.keep_first = c.keep;
    Session s = value(Session::open(model, options));
    append_and_evaluate(s, 256, 17);
    const std::vector<Token> before = tokens_of(s), more = small_tokens(c.n_new, 18);
    CHECK(!s.append(span(small_tokens(256 - c.keep + 1, 19))));
    CHECK(tokens_of(s) == before);
    CHECK(s.has_logits());
    REQUIRE(s.append(span(more)));
    std::vector<Token> expected(before.begin(), before.begin() + std::min(c.keep, c.n_left));
    expected.insert(expected.end(),
                    before.end() - (c.n_left - static_cast<std::uint32_t>(expected.size())),
                    before.end());
    expected.insert(expected.end(), more.begin(), more.end());
    CHECK(tokens_of(s) == expected);
    REQUIRE(s.evaluate());
  }
  // What fits makes nothing go.
  mixtral::SessionOptions options = options_for(256);
  options.when_full = mixtral::WhenFull::forget_oldest;
  Session s = value(Session::open(model, options));
  REQUIRE(s.append(span(small_tokens(200, 20))));
  REQUIRE(s.append(span(small_tokens(56, 21))));
  CHECK(s.tokens().size() == 256);
  CHECK(s.remaining() == 0);
}

TEST_CASE("workspace: a session that is given many times counts once") {
  const mixtral::Model model = small_model();
  std::vector<Session> sessions = open_sessions(model, 2, 0);
  for (std::uint32_t i = 0; i < 2; ++i)
    REQUIRE(sessions[i].append(span(small_tokens(20 + i, 22 + i))));
  std::vector<Session*> many;
  for (int i = 0; i < 1000; ++i) many.push_back(&sessions[i % 3 == 0 ? 1 : 0]);
  const mixtral::Span<Session* const> all(many.data(), many.size());
  const Progress progress = value(Session::advance_all(all, 0ns));
  CHECK(progress == Progress::working);
  CHECK(progress.n_total == 41 * (model.config().n_layers + 1));
  REQUIRE(Session::evaluate_all(all));
  for (Session& s : sessions) check_as_plain(s);
  // A list that is refused leaves nothing behind.
  Session stranger = value(Session::open(model, options_for(64)));
  REQUIRE(stranger.append(Token{1}));
  for (Session& s : sessions) REQUIRE(s.append(Token{3}));
  many[2] = &stranger;
  CHECK(!Session::evaluate_all(all));
  many[2] = nullptr;
  CHECK(!Session::evaluate_all(all));
  many[2] = &sessions[1];
  REQUIRE(Session::evaluate_all(all));
  for (Session& s : sessions) {
    REQUIRE(s.has_logits());
    check_as_plain(s);
  }
  // Generations of one session exclude each other, wherever they stand.
  auto one = sessions[0].generate(exactly(3, model)), two = sessions[1].generate(exactly(3, model));
  auto again = sessions[0].generate(exactly(3, model)), none = std::move(again);
  mixtral::Generation* generations[] = {&again, &one, &two, &none};
  const auto refused = mixtral::Generation::next_all({generations, 4});
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::invalid_argument);
  CHECK(std::string(refused.error().message()).find("generations 1 and 3") == 0);
  CHECK(value(mixtral::Generation::next_all({generations, 3})));
  CHECK(one.token() != mixtral::kNoToken);
  CHECK(two.token() != mixtral::kNoToken);
}

TEST_CASE("workspace: what forks have too little room for does not stop the others") {
  const mixtral::Model model = small_model();
  std::vector<Session> sessions = open_sessions(model, 3, 64);  // three pages
  REQUIRE(sessions[0].append(span(small_tokens(30, 25))));
  REQUIRE(sessions[1].append(span(small_tokens(120, 26))));
  REQUIRE(sessions[2].append(span(small_tokens(70, 27))));
  Session* all[] = {&sessions[0], &sessions[1], &sessions[2]};
  check_full(Session::evaluate_all({all, 3}));
  CHECK(sessions[0].has_logits());
  CHECK(sessions[1].has_logits());
  CHECK(!sessions[2].has_logits());
  sessions[0].clear();
  REQUIRE(sessions[0].append(Token{1}));
  sessions[1].clear();
  check_as_plain(sessions[2]);
  check_as_plain(sessions[0]);
}

TEST_CASE("workspace: a cancel of several together is told once, and forks begin without it") {
  const mixtral::Model model = small_model();
  std::vector<Session> sessions = open_sessions(model, 3, 0);
  for (std::uint32_t i = 0; i < 3; ++i)
    REQUIRE(sessions[i].append(span(small_tokens(50 + i, 30 + i))));
  Session* all[] = {&sessions[0], &sessions[1], &sessions[2]};
  const auto check_cancelled = [](const mixtral::Status& status) {
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::cancelled);
  };
  SUBCASE("of two before an evaluation of all") {
    sessions[1].cancel();
    sessions[2].cancel();
    check_cancelled(Session::evaluate_all({all, 3}));
    REQUIRE(Session::evaluate_all({all, 3}));
  }
  SUBCASE("of one that takes no part: of the others' call nothing is told") {
    sessions[2].cancel();
    REQUIRE(Session::evaluate_all({all, 2}));
    check_cancelled(sessions[2].evaluate());
  }
  SUBCASE("of one: the others are told nothing afterwards") {
    sessions[0].cancel();
    check_cancelled(Session::evaluate_all({all, 3}));
    REQUIRE(sessions[1].evaluate());
    REQUIRE(sessions[0].evaluate());
  }
  SUBCASE("in the middle of a pass of several") {
    for (const std::size_t which : {0u, 1u, 2u}) {
      struct Canceller : mixtral::Observer {
        void on_progress(const Progress&) override {
          if (++n == 2) session->cancel();
        }
        Session* session = nullptr;
        int n = 0;
      } canceller;
      canceller.session = &sessions[which];
      check_cancelled(Session::evaluate_all({all, 3}, &canceller));
      CHECK(!sessions[which].has_logits());
      for (Session& s : sessions) check_as_plain(s);
      for (Session& s : sessions) REQUIRE(s.append(span(small_tokens(40, 33))));
    }
  }
  SUBCASE("a fork of one whose tokens are cancelled") {
    sessions.pop_back();
    sessions[0].cancel();
    Session fork = value(sessions[0].fork());
    check_as_plain(fork);
    check_cancelled(sessions[0].evaluate());
    sessions.push_back(std::move(fork));
  }
  SUBCASE("a fork in the place of one that was cancelled and is gone") {
    sessions[2].cancel();
    sessions.pop_back();
    sessions.push_back(value(sessions[0].fork()));  // with tokens that are still to be computed
    check_as_plain(sessions[2]);
  }
  for (Session& s : sessions) check_as_plain(s);
}
