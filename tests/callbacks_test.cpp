// What code of the host may do while the library calls it: throw, call back, destroy, cancel.
#include "sessions.hpp"

#include <chrono>
#include <optional>
#include <stdexcept>
#include <thread>

using namespace support;
using namespace std::chrono_literals;
using mixtral::ErrorCode;
using mixtral::Generation;
using mixtral::Progress;
using mixtral::Session;
using mixtral::Span;
using mixtral::Status;
using mixtral::StopReason;
using mixtral::Token;

namespace {

struct Thrown : std::runtime_error {
  Thrown() : std::runtime_error("thrown by the host") {}
};

// Runs chunks inline and throws in its `fails_at`th run, before its chunks, between them or after them.
struct ThrowingExecutor {
  std::size_t concurrency() const { return 2; }
  void run(std::size_t n, mixtral::Chunks chunks) {
    ++n_runs;
    const std::size_t n_before = n_runs != fails_at ? n : where == 0 ? 0 : where == 1 ? n / 2 : n;
    for (std::size_t i = 0; i < n_before; ++i) chunks(i);
    if (n_runs == fails_at) throw Thrown();
  }
  int n_runs = 0, fails_at = 0, where = 0;
};

// Throws in its `fails_at`th call.
struct ThrowingObserver : mixtral::Observer {
  void call() const {
    if (++n_calls == fails_at) throw Thrown();
  }
  bool wants_all_logits() const override {
    call();
    return true;
  }
  bool wants_all_tokens() const override {
    call();
    return true;
  }
  bool wants_inputs() const override {
    call();
    return true;
  }
  bool wants_times() const override {
    call();
    return true;
  }
  void on_logits(std::uint32_t, Span<const float>) override { call(); }
  void on_router(std::uint32_t, std::uint32_t, Span<const std::uint32_t>,
                 Span<const float>) override {
    call();
  }
  void on_input(mixtral::Role, std::uint32_t, std::uint32_t, Span<const float>) override { call(); }
  void on_progress(const Progress&) override { call(); }
  void on_time(mixtral::Part, std::uint32_t, double) override { call(); }
  mutable int n_calls = 0;
  int fails_at = 0;
};

// Calls `action` once, at the first call about a router, or at the first progress.
struct Actor : mixtral::Observer {
  explicit Actor(std::function<void()> what, bool late = false)
      : action(std::move(what)), at_progress(late) {}
  void act() {
    if (std::exchange(acted, true)) return;
    action();
  }
  void on_router(std::uint32_t, std::uint32_t, Span<const std::uint32_t>,
                 Span<const float>) override {
    if (!at_progress) act();
  }
  void on_progress(const Progress&) override {
    if (at_progress) act();
  }
  std::function<void()> action;
  bool at_progress;
  bool acted = false;
};

mixtral::Model small_model() {
  Synthetic synthetic;
  synthetic.context_length = 512;
  synthetic.randomize(11);
  return open(synthetic.writer().finish());
}

std::vector<Token> small_tokens(std::size_t n, std::uint32_t seed) {
  std::vector<Token> tokens = some_tokens(n, seed);
  for (Token& t : tokens) t %= 300;
  return tokens;
}

template <class Body>
bool throws(Body&& body) {
  try {
    body();
    return false;
  } catch (const Thrown&) {
    return true;
  }
}

std::string text_of(Session& s, std::uint32_t n) {
  std::string text;
  for (const std::string_view piece : s.generate(exactly(n, s.model()))) text += piece;
  return text;
}

}  // namespace

TEST_CASE("callbacks: an executor that throws at any moment leaves the session as cancelled") {
  const mixtral::Model model = small_model();
  const std::vector<Token> tokens = small_tokens(50, 1), more = small_tokens(20, 2);
  const std::vector<float> expected = logits_after(model, tokens);
  std::vector<float> expected_more;
  {
    std::vector<Token> all = tokens;
    all.insert(all.end(), more.begin(), more.end());
    expected_more = logits_after(model, all);
  }
  for (const int where : {0, 1, 2}) {
    for (const int way : {0, 1, 2}) {  // evaluate, advance, evaluate_all
      int n_thrown = 0;
      for (int fails_at = 1;; ++fails_at) {
        ThrowingExecutor executor;
        mixtral::SessionOptions options = options_for(200, 2);
        options.executor = executor;
        Session s = value(Session::open(model, options));
        Session fork = value(s.fork());
        executor.fails_at = fails_at;
        executor.where = where;
        REQUIRE(s.append(span(tokens)));
        REQUIRE(fork.append(span(more)));
        Session* both[] = {&s, &fork};
        Status status;
        const bool thrown = throws([&] {
          if (way == 0) {
            status = s.evaluate();
          } else if (way == 1) {
            while (*s.advance(1us) == Progress::working) continue;
          } else {
            status = Session::evaluate_all({both, 2});
          }
        });
        REQUIRE(status);
        if (!thrown) break;
        ++n_thrown;
        CAPTURE(way);
        CAPTURE(fails_at);
        if (way != 2) CHECK(!s.has_logits());  // else it may have ended in a pass before
        CHECK(tokens_of(s) == tokens);
        REQUIRE(s.evaluate());
        CHECK(logits_of(s) == expected);
        REQUIRE(s.append(span(more)));
        REQUIRE(s.evaluate());
        CHECK(logits_of(s) == expected_more);
        check_as_plain(fork);
      }
      CHECK(n_thrown > 20);
    }
  }
}

TEST_CASE("callbacks: an observer that throws in any of its functions leaves it so as well") {
  const mixtral::Model model = small_model();
  const std::vector<Token> tokens = small_tokens(7, 3);
  const std::vector<float> expected = logits_after(model, tokens);
  for (const bool sliced : {false, true}) {
    int n_thrown = 0;
    for (int fails_at = 1;; ++fails_at) {
      Session s = value(Session::open(model, options_for(200)));
      REQUIRE(s.append(span(tokens)));
      ThrowingObserver observer;
      observer.fails_at = fails_at;
      Status status;
      const bool thrown = throws([&] {
        if (!sliced) {
          status = s.evaluate(&observer);
        } else {
          while (*s.advance(0ns, &observer) == Progress::working) continue;
        }
      });
      REQUIRE(status);
      if (!thrown) break;
      ++n_thrown;
      REQUIRE(s.evaluate());
      CHECK(logits_of(s) == expected);
    }
    CHECK(n_thrown > 100);
  }
}

TEST_CASE("callbacks: a generation whose executor throws goes on to the same text") {
  const mixtral::Model model = small_model();
  Session plain = value(Session::open(model, options_for(200)));
  REQUIRE(plain.append(span(small_tokens(9, 4))));
  mixtral::GenerateOptions generate = exactly(12, model);
  generate.sampling.temperature = 1.0f;
  std::string expected;
  for (const std::string_view piece : plain.generate(generate)) expected += piece;
  for (const bool sliced : {false, true}) {
    for (int fails_at = 1; fails_at < 60; fails_at += 2) {
      ThrowingExecutor executor;
      mixtral::SessionOptions options = options_for(200);
      options.executor = executor;
      Session s = value(Session::open(model, options));
      REQUIRE(s.append(span(small_tokens(9, 4))));
      executor.fails_at = fails_at;
      auto generation = s.generate(generate);
      std::string text;
      int n_thrown = 0;
      while (generation.stop_reason() == StopReason::none) {
        if (throws([&] {
              if (sliced) {
                generation.advance(1ns);
              } else {
                generation.next();
              }
            })) {
          ++n_thrown;
          CHECK(generation.piece().empty());
          continue;
        }
        text += generation.piece();
      }
      CHECK(n_thrown == 1);
      CHECK(text == expected);
      CHECK(tokens_of(s) == tokens_of(plain));
    }
  }
}

TEST_CASE("callbacks: streams that throw leave the session empty or as it was") {
  const mixtral::Model model = small_model();
  Session s = value(Session::open(model, options_for(200, 2)));
  REQUIRE(s.append(span(small_tokens(80, 5))));
  REQUIRE(s.evaluate());
  const std::vector<float> expected = logits_of(s);
  Blob saved;
  REQUIRE(s.save([&](const void* from, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(from);
    saved.insert(saved.end(), bytes, bytes + size);
    return true;
  }));
  const auto writes = [](const void*, std::size_t) -> bool { throw Thrown(); };
  CHECK(throws([&] { static_cast<void>(s.save(writes)); }));
  CHECK(logits_of(s) == expected);
  Session other = value(s.fork());
  for (std::size_t limit = 0; limit < saved.size(); limit += 500) {
    other.clear();
    REQUIRE(other.append(Token{3}));
    std::size_t at = 0;
    const auto reads = [&](void* to, std::size_t size) {
      if (at + size > limit) throw Thrown();
      std::memcpy(to, saved.data() + at, size);
      at += size;
      return true;
    };
    CHECK(throws([&] { static_cast<void>(other.load(reads)); }));
    // Whatever there is to be loaded is checked by the header, the first 56 bytes.
    CHECK(other.tokens().size() == (limit < 56 ? 1 : 0));
  }
  // No page was lost on the way.
  other.clear();
  REQUIRE(other.append(span(small_tokens(200, 6))));
  check_as_plain(other);
}

TEST_CASE("callbacks: what would change a session under evaluation is refused, by name") {
  const mixtral::Model model = small_model();
  Session s = value(Session::open(model, options_for(200, 3)));
  Session fork = value(s.fork());
  const std::vector<Token> tokens = small_tokens(40, 7);
  REQUIRE(s.append(span(tokens)));
  REQUIRE(fork.append(span(tokens)));
  auto earlier = fork.generate(exactly(5, model));
  const auto check_refused = [&](const Status& status, const std::string& function) {
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::invalid_argument);
    CAPTURE(status.error().message());
    CHECK(std::string(status.error().message()).find(function + "()") == 0);
    CHECK(std::string(status.error().message()).find("observer") != std::string::npos);
  };
  const auto status_of = [](const auto& result) {
    return result ? Status() : Status(result.error());
  };
  const auto try_all = [&] {
    for (Session* one : {&s, &fork}) {
      Session* const those[] = {one};
      check_refused(one->evaluate(), "evaluate");
      check_refused(status_of(one->advance(1ms)), "advance");
      check_refused(Session::evaluate_all({those, 1}), "evaluate_all");
      check_refused(status_of(Session::advance_all({those, 1}, 1ms)), "advance_all");
      check_refused(one->append("text"), "append");
      check_refused(one->append(Token{1}), "append");
      check_refused(one->append_chat({{"user", "text"}}), "append_chat");
      check_refused(status_of(one->fork()), "fork");
      check_refused(one->rewind(1), "rewind");
      check_refused(status_of(one->forget_oldest(0, 1)), "forget_oldest");
      check_refused(status_of(one->replace("text")), "replace");
      check_refused(status_of(one->replace(span(tokens))), "replace");
      check_refused(one->save([](const void*, std::size_t) { return true; }), "save");
      check_refused(one->load([](void*, std::size_t) { return true; }), "load");
      const auto generation = one->generate();
      CHECK(generation.stop_reason() == StopReason::error);
      check_refused(generation.error(), "generate");
      one->clear();
      // What reads is allowed.
      CHECK(tokens_of(*one) == tokens);
      CHECK(!one->has_logits());
      CHECK(one->logits().empty());
      CHECK(one->context() == 200);
      CHECK(one->remaining() == 160);
    }
    CHECK(!earlier.next());
    CHECK(earlier.stop_reason() == StopReason::none);  // a refused call ends nothing
    check_refused(earlier.error(), "next");
    Session other = value(Session::open(model, options_for(64)));
    REQUIRE(other.append(Token{3}));
    CHECK(other.evaluate());
  };
  SUBCASE("from an observer") {
    Actor actor(try_all);
    REQUIRE(s.evaluate(&actor));
    CHECK(actor.acted);
  }
  SUBCASE("from an observer that is told of progress") {
    Actor actor(try_all, true);
    REQUIRE(s.evaluate(&actor));
    CHECK(actor.acted);
  }
  SUBCASE("from a stream that is written") {
    int n = 0;
    REQUIRE(s.save([&](const void*, std::size_t) {
      if (n++ == 0) try_all();
      return true;
    }));
  }
  check_as_plain(s);
  check_as_plain(fork);
  CHECK(earlier.next());
  SUBCASE("from a stream that is read") {
    Blob saved;
    REQUIRE(s.save([&](const void* from, std::size_t size) {
      const auto* bytes = static_cast<const std::uint8_t*>(from);
      saved.insert(saved.end(), bytes, bytes + size);
      return true;
    }));
    std::size_t at = 0;
    REQUIRE(s.load([&](void* to, std::size_t size) {
      if (at == 0) check_refused(s.append(Token{1}), "append");
      std::memcpy(to, saved.data() + at, size);
      at += size;
      return true;
    }));
    check_as_plain(s);
  }
}

TEST_CASE("callbacks: from an executor, too") {
  struct Calling {
    std::size_t concurrency() const { return 1; }
    void run(std::size_t n, mixtral::Chunks chunks) {
      for (std::size_t i = 0; i < n; ++i) chunks(i);
      if (session == nullptr) return;
      const Status status = session->evaluate();
      REQUIRE(!status);
      CHECK(status.error().code() == ErrorCode::invalid_argument);
      ++n_refused;
    }
    Session* session = nullptr;
    int n_refused = 0;
  } executor;
  const mixtral::Model model = small_model();
  mixtral::SessionOptions options = options_for(200);
  options.executor = executor;
  Session s = value(Session::open(model, options));
  REQUIRE(s.append(span(small_tokens(40, 8))));
  executor.session = &s;
  REQUIRE(s.evaluate());
  executor.session = nullptr;
  CHECK(executor.n_refused > 10);
  check_as_plain(s);
}

TEST_CASE("callbacks: sessions may be destroyed during an evaluation, which that cancels") {
  const mixtral::Model model = small_model();
  const std::vector<Token> tokens = small_tokens(40, 9);
  std::optional<Session> s(value(Session::open(model, options_for(200, 3))));
  std::optional<Session> fork(value(s->fork()));
  REQUIRE(s->append(span(tokens)));
  REQUIRE(fork->append(span(tokens)));
  Session* both[] = {&*s, &*fork};
  SUBCASE("a fork that takes part") {
    Actor actor([&] { fork.reset(); });
    const Status status = Session::evaluate_all({both, 2}, &actor);
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::cancelled);
  }
  SUBCASE("a fork that takes no part") {
    Actor actor([&] { fork.reset(); });
    REQUIRE(s->evaluate(&actor));
  }
  SUBCASE("the session itself, and then the last one") {
    Actor actor([&] { s.reset(); });
    const Status status = both[0]->evaluate(&actor);
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::cancelled);
    check_as_plain(*fork);
    REQUIRE(fork->append(Token{7}));
    Actor last([&] { fork.reset(); });
    CHECK(!both[1]->evaluate(&last));
    return;
  }
  SUBCASE("all of them") {
    Actor actor([&] {
      s.reset();
      fork.reset();
    });
    CHECK(!Session::evaluate_all({both, 2}, &actor));
    return;
  }
  check_as_plain(*s);
  // The branches are free again.
  std::vector<Session> forks;
  for (int i = 0; i < 2; ++i) forks.push_back(value(s->fork()));
  REQUIRE(forks[1].append(Token{5}));
  check_as_plain(forks[1]);
  CHECK(!s->fork());
}

TEST_CASE("callbacks: a generation that an executor calls back into goes on unharmed") {
  struct Calling {
    std::size_t concurrency() const { return 1; }
    void run(std::size_t n, mixtral::Chunks chunks) {
      for (std::size_t i = 0; i < n; ++i) chunks(i);
      if (generation == nullptr) return;
      CHECK(!generation->next());
      CHECK(generation->advance(1ms) == Progress::done);
      CHECK(generation->error().code() == ErrorCode::invalid_argument);
      ++n_refused;
    }
    Generation* generation = nullptr;
    int n_refused = 0;
  } executor;
  const mixtral::Model model = small_model();
  mixtral::SessionOptions options = options_for(200);
  options.executor = executor;
  Session s = value(Session::open(model, options));
  REQUIRE(s.append(span(small_tokens(40, 8))));
  const std::string expected = text_of(s, 6);
  REQUIRE(s.rewind(40));
  auto generation = s.generate(exactly(6, model));
  executor.generation = &generation;
  std::string text;
  while (generation.next()) text += generation.piece();
  text += generation.piece();
  CHECK(text == expected);
  CHECK(executor.n_refused > 6);
  CHECK(generation.stop_reason() == StopReason::max_tokens);
  REQUIRE(s.append(Token{1}));
  REQUIRE(s.evaluate());
  CHECK(generation.stop_reason() == StopReason::max_tokens);
}

TEST_CASE("cancel: ends what was asked for before it, and nothing later") {
  const mixtral::Model model = small_model();
  const std::vector<Token> tokens = small_tokens(40, 10);
  const auto check_cancelled = [](const Status& status) {
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::cancelled);
  };
  Session s = value(Session::open(model, options_for(200, 2)));
  s.cancel();  // there is nothing to end
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  const std::string expected = text_of(s, 8);

  REQUIRE(s.rewind(40));
  SUBCASE("between two generations") {
    text_of(s, 3);
    s.cancel();
    REQUIRE(s.rewind(40));
    CHECK(text_of(s, 8) == expected);
  }
  SUBCASE("after a generation has ended, and before new text") {
    text_of(s, 3);
    s.cancel();
    REQUIRE(s.replace(span(tokens)));
    REQUIRE(s.evaluate());
    CHECK(text_of(s, 8) == expected);
  }
  SUBCASE("between text and generation: the text is evaluated for the generation") {
    s.cancel();
    CHECK(text_of(s, 8) == expected);
  }
  SUBCASE("appended text that is not yet evaluated, once") {
    REQUIRE(s.append(Token{3}));
    s.cancel();
    check_cancelled(s.evaluate());
    check_as_plain(s);
  }
  SUBCASE("text appended after it") {
    s.cancel();
    REQUIRE(s.append(Token{3}));
    check_as_plain(s);
  }
  SUBCASE("of a session, not of its fork") {
    Session fork = value(s.fork());
    REQUIRE(fork.append(Token{3}));
    REQUIRE(s.append(Token{3}));
    s.cancel();
    check_as_plain(fork);
    check_cancelled(s.evaluate());
  }
  SUBCASE("of a session that is gone, not of the fork that takes its place") {
    {
      Session gone = value(s.fork());
      REQUIRE(gone.append(Token{3}));
      gone.cancel();
    }
    Session fork = value(s.fork());
    REQUIRE(fork.append(Token{3}));
    check_as_plain(fork);
  }
  SUBCASE("a generation that was begun, before its first token and for good") {
    auto generation = s.generate(exactly(8, model));
    s.cancel();
    CHECK(!generation.next());
    CHECK(generation.stop_reason() == StopReason::cancelled);
    CHECK(generation.error().code() == ErrorCode::cancelled);
    CHECK(!generation.next());
    CHECK(text_of(s, 8) == expected);
  }
  SUBCASE("a generation in progress, although text was appended meanwhile") {
    REQUIRE(s.evaluate());
    auto generation = s.generate(exactly(8, model));
    REQUIRE(generation.next());
    s.cancel();
    REQUIRE(s.append(Token{3}));
    CHECK(!generation.next());
    CHECK(generation.stop_reason() == StopReason::cancelled);
    check_as_plain(s);
  }
  SUBCASE("an evaluation in slices, between two of them") {
    REQUIRE(s.append(span(tokens)));
    REQUIRE(value(s.advance(0ns)) == Progress::working);
    s.cancel();
    const auto progress = s.advance(1h);
    REQUIRE(!progress);
    CHECK(progress.error().code() == ErrorCode::cancelled);
    check_as_plain(s);
  }
  SUBCASE("nothing, where nothing is to be done, alone or with others") {
    REQUIRE(s.evaluate());
    s.cancel();
    REQUIRE(s.evaluate());
    Session fork = value(s.fork());
    s.cancel();
    REQUIRE(fork.append(Token{3}));
    Session* both[] = {&s, &fork};
    REQUIRE(Session::evaluate_all({both, 2}));
    check_as_plain(fork);
  }
  SUBCASE("a generation, and not the evaluation after it as well") {
    auto generation = s.generate(exactly(8, model));
    REQUIRE(generation.next());
    s.cancel();
    CHECK(!generation.next());
    CHECK(s.evaluate());
  }
  SUBCASE("what calls that change nothing do not take back") {
    REQUIRE(s.append(Token{3}));
    s.cancel();
    REQUIRE(s.append(""));
    REQUIRE(s.rewind(41));
    CHECK(value(s.forget_oldest(0, 0)) == 0);
    const std::vector<Token> same = tokens_of(s);
    CHECK(value(s.replace(span(same))) == 41);
    check_cancelled(s.evaluate());
  }
  SUBCASE("from an observer, at once") {
    REQUIRE(s.append(span(tokens)));
    Actor actor([&] { s.cancel(); });
    check_cancelled(s.evaluate(&actor));
    check_as_plain(s);
  }
}

TEST_CASE("slices: any budget is allowed") {
  const mixtral::Model model = small_model();
  Session s = value(Session::open(model, options_for(200)));
  for (const auto budget : {std::chrono::nanoseconds::max(), std::chrono::nanoseconds::max() - 1ns,
                            std::chrono::nanoseconds(std::chrono::hours(24 * 365 * 250))}) {
    s.clear();
    REQUIRE(s.append(span(small_tokens(60, 12))));
    CHECK(value(s.advance(budget)) == Progress::done);
    auto generation = s.generate(exactly(3, model));
    while (generation.stop_reason() == StopReason::none) {
      CHECK(generation.advance(budget) == Progress::done);
    }
    CHECK(generation.stop_reason() == StopReason::max_tokens);
  }
  s.clear();
  REQUIRE(s.append(span(small_tokens(60, 12))));
  CHECK(value(s.advance(std::chrono::nanoseconds::min())) == Progress::working);
  while (value(s.advance(std::chrono::nanoseconds::min())) == Progress::working) continue;
  check_as_plain(s);
}

TEST_CASE("progress: it tells how much is done of how much, and only grows") {
  const mixtral::Model model = small_model();
  const std::uint64_t units = model.config().n_layers + 1;
  struct Listening : mixtral::Observer {
    bool wants_all_tokens() const override { return false; }
    void on_progress(const Progress& progress) override {
      CHECK(progress.n_done >= n_done);
      CHECK(progress.n_done <= progress.n_total);
      CHECK((progress == Progress::done) == (progress.n_done == progress.n_total));
      n_done = progress.n_done;
      n_total = progress.n_total;
      ++n_calls;
    }
    std::uint64_t n_done = 0, n_total = 0;
    int n_calls = 0;
  };
  Session s = value(Session::open(model, options_for(200)));
  REQUIRE(s.append(span(small_tokens(75, 13))));  // in batches of 32
  SUBCASE("at once") {
    Listening listening;
    REQUIRE(s.evaluate(&listening));
    CHECK(listening.n_total == 75 * units);
    CHECK(listening.n_done == listening.n_total);
    CHECK(listening.n_calls ==
          2 * 2 + 3);  // the last layer is cut short where no logits are wanted
    // What is new is counted anew.
    REQUIRE(s.append(span(small_tokens(5, 14))));
    Listening more;
    REQUIRE(s.evaluate(&more));
    CHECK(more.n_total == 5 * units);
    CHECK(more.n_done == more.n_total);
  }
  SUBCASE("in slices") {
    double last = 0.0;
    std::uint64_t n_different = 0, n_done = 0;
    for (;;) {
      const Progress progress = value(s.advance(0ns));
      CHECK(progress.n_total == 75 * units);
      CHECK(progress.fraction() >= last);
      last = progress.fraction();
      n_different += progress.n_done != n_done ? 1 : 0;
      n_done = progress.n_done;
      if (progress == Progress::done) break;
      CHECK(last < 1.0);
    }
    CHECK(last == 1.0);
    CHECK(n_done == 75 * units);
    CHECK(n_different > 6);
  }
  SUBCASE("when one of several must compute a token again, but there is no room") {
    mixtral::SessionOptions options = options_for(200, 3);
    options.kv_tokens = 64;
    Session x = value(Session::open(model, options));
    Session y = value(x.fork());
    REQUIRE(y.append(span(small_tokens(10, 15))));
    REQUIRE(y.evaluate());
    const Session z = value(y.fork());
    REQUIRE(x.append(span(small_tokens(64, 16))));
    REQUIRE(x.evaluate());
    REQUIRE(y.rewind(9));
    REQUIRE(x.append(span(small_tokens(7, 17))));
    Session* both[] = {&x, &y};
    Listening listening;
    const Status full = Session::evaluate_all({both, 2}, &listening);
    REQUIRE(!full);
    CHECK(full.error().code() == ErrorCode::context_full);
    CHECK(listening.n_total == 8 * units);
  }
  SUBCASE("with nothing to do") {
    REQUIRE(s.evaluate());
    const Progress progress = value(s.advance(1h));
    CHECK(progress == Progress::done);
    CHECK(progress.fraction() == 1.0);
  }
  SUBCASE("when tokens are computed again") {
    REQUIRE(s.evaluate());
    REQUIRE(s.rewind(70));
    const Progress progress = value(s.advance(1h));
    CHECK(progress.n_done == progress.n_total);
    CHECK(progress.n_total == units);  // the last token, for its logits
  }
}
