// Passes in slices of time, and what of them is computed.
#include "sessions.hpp"

#include <chrono>

using namespace support;
using namespace std::chrono_literals;
using mixtral::ErrorCode;
using mixtral::Progress;
using mixtral::Session;
using mixtral::Token;

TEST_CASE("slices: slices of time give what one evaluation gives, to the bit") {
  const mixtral::Model model = open(bundled_model());
  auto pool = value(mixtral::ThreadPool::create(2));
  const std::vector<Token> tokens = some_tokens(100, 1);
  const auto expected = logits_after(model, tokens);
  mixtral::SessionOptions options = options_for(512);
  SUBCASE("inline") {}
  SUBCASE("with a pool") { options.executor = pool; }
  Session s = value(Session::open(model, options));
  for (const auto budget : {std::chrono::nanoseconds(-5), std::chrono::nanoseconds(0),
                            std::chrono::nanoseconds(50us), std::chrono::nanoseconds(1h)}) {
    s.clear();
    REQUIRE(s.append(span(tokens)));
    int n_slices = 1;
    while (value(s.advance(budget)) == Progress::working) {
      CHECK(!s.has_logits());
      ++n_slices;
    }
    CHECK(logits_of(s) == expected);
    if (budget <= 0ns) CHECK(n_slices > 500);  // small pieces
    if (budget == 1h) CHECK(n_slices == 1);
  }
  // What is appended between two slices, or evaluated at once after some.
  s.clear();
  for (std::size_t i = 0; i < tokens.size(); i += 10) {
    REQUIRE(s.append({tokens.data() + i, 10}));
    for (int k = 0; k < 40; ++k) CHECK(s.advance(0ns));
  }
  REQUIRE(s.evaluate());
  CHECK(logits_of(s) == expected);
}

TEST_CASE("slices: the last layer is computed for what is asked for, with the same logits") {
  // Which tokens go through each layer to its end.
  struct Counts : mixtral::Observer {
    explicit Counts(bool all) : all_tokens(all) {}
    bool wants_all_tokens() const override { return all_tokens; }
    void on_router(std::uint32_t layer, std::uint32_t position, mixtral::Span<const std::uint32_t>,
                   mixtral::Span<const float>) override {
      positions[layer].push_back(position);
    }
    void on_logits(std::uint32_t position, mixtral::Span<const float>) override {
      with_logits.push_back(position);
    }
    bool all_tokens;
    std::map<std::uint32_t, std::vector<std::uint32_t>> positions;
    std::vector<std::uint32_t> with_logits;
  };
  const mixtral::Model model = open(bundled_model());
  const std::uint32_t last_layer = model.config().n_layers - 1;
  const std::vector<Token> tokens = some_tokens(75, 6);  // in batches of 32
  std::vector<std::uint32_t> every(tokens.size());
  for (std::uint32_t i = 0; i < every.size(); ++i) every[i] = i;
  const auto expected = evaluate(model, tokens).logits;

  SUBCASE("one session") {
    for (const bool all : {false, true}) {
      Counts counts(all);
      Session s = value(Session::open(model, options_for(128)));
      REQUIRE(s.append(span(tokens)));
      REQUIRE(s.evaluate(&counts));
      CHECK(logits_of(s) == expected.back());
      CHECK(counts.with_logits == std::vector<std::uint32_t>{74});
      for (std::uint32_t layer = 0; layer < last_layer; ++layer) {
        CHECK(counts.positions[layer] == every);
      }
      CHECK(counts.positions[last_layer] == (all ? every : counts.with_logits));
    }
  }
  SUBCASE("several, of which two end in one pass, in slices or not") {
    for (const bool sliced : {false, true}) {
      Counts counts(false);
      std::vector<Session> sessions;
      sessions.push_back(value(Session::open(model, options_for(128, 4))));
      while (sessions.size() < 4) sessions.push_back(value(sessions[0].fork()));
      const std::uint32_t lengths[] = {9, 17, 75, 1};
      Session* all[4];
      for (std::size_t i = 0; i < 4; ++i) {
        all[i] = &sessions[i];
        REQUIRE(sessions[i].append(mixtral::Span<const Token>(tokens.data(), lengths[i])));
      }
      if (sliced) {
        while (value(Session::advance_all({all, 4}, 1us, &counts)) == Progress::working) continue;
      } else {
        REQUIRE(Session::evaluate_all({all, 4}, &counts));
      }
      for (std::size_t i = 0; i < 4; ++i) CHECK(logits_of(sessions[i]) == expected[lengths[i] - 1]);
      CHECK(counts.positions[last_layer] == std::vector<std::uint32_t>{8, 16, 74, 0});
      CHECK(counts.positions[0].size() == 9 + 17 + 75 + 1);
      // What was left out of the last layer is in the past all the same.
      for (Session& s : sessions) {
        REQUIRE(s.append(5));
        REQUIRE(s.evaluate());
        CHECK(logits_of(s) == logits_after(model, tokens_of(s)));
      }
    }
  }
}

TEST_CASE("slices: a generation in slices gives the same text") {
  const mixtral::Model model = open(bundled_model());
  Session whole = value(Session::open(model, options_for(512)));
  Session sliced = value(Session::open(model, options_for(512)));
  REQUIRE(whole.append("Once upon a time"));
  REQUIRE(sliced.append("Once upon a time"));
  mixtral::GenerateOptions generate;
  generate.max_tokens = 30;
  generate.stop = {"never there, but its beginnings may be", "a very"};
  std::string expected, text;
  for (const std::string_view piece : whole.generate(generate)) expected += piece;
  auto generation = sliced.generate(generate);
  int n_working = 0;
  while (generation.stop_reason() == mixtral::StopReason::none) {
    if (generation.advance(20us) == Progress::working) {
      ++n_working;
      CHECK(generation.piece().empty());
    }
    text += generation.piece();
  }
  CHECK(generation.advance(20us) == Progress::done);
  CHECK(generation.piece().empty());
  CHECK(text == expected);
  CHECK(tokens_of(sliced) == tokens_of(whole));
  CHECK(n_working > 100);
}

TEST_CASE("slices: cancelling takes effect within one slice, and all before it stays") {
  const mixtral::Model model = open(bundled_model());
  Session s = value(Session::open(model, options_for(512)));
  const std::vector<Token> tokens = some_tokens(100, 2);
  REQUIRE(s.append(span(tokens)));
  for (int k = 0; k < 10; ++k) REQUIRE(value(s.advance(0ns)) == Progress::working);
  s.cancel();
  const auto cancelled = s.advance(1h);
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code() == ErrorCode::cancelled);
  CHECK(tokens_of(s) == tokens);
  check_as_plain(s);
}
