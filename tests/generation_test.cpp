// Generation: pieces, stop reasons, stop strings across pieces.
#include "support.hpp"

#include <mixtral/stop_strings.hpp>

using namespace support;
using mixtral::StopReason;
using mixtral::Token;

namespace {

struct Outcome {
  std::string text;
  std::vector<Token> tokens;
  StopReason reason;
};

Outcome run(const mixtral::Model& model, const std::string& prompt,
            const mixtral::GenerateOptions& options) {
  mixtral::Session s = session(model, 256);
  REQUIRE(s.append(prompt));
  const std::size_t begin = s.tokens().size();
  auto generation = s.generate(options);
  Outcome outcome;
  for (const std::string_view piece : generation) {
    CHECK(!piece.empty());
    outcome.text += piece;
  }
  outcome.tokens.assign(s.tokens().begin() + begin, s.tokens().end());
  outcome.reason = generation.stop_reason();
  return outcome;
}

}  // namespace

TEST_CASE("generation: greedy text is the golden text's beginning") {
  const mixtral::Model model = open(bundled_model());
  const auto expected = golden("once");
  mixtral::GenerateOptions options;
  options.max_tokens = 20;
  const Outcome outcome = run(model, expected["text"], options);
  CHECK(outcome.reason == StopReason::max_tokens);
  CHECK(outcome.tokens.size() == 20);
  CHECK(outcome.text == expected["greedy_text"].get<std::string>().substr(0, outcome.text.size()));
  CHECK(outcome.text.size() > 20);
}

TEST_CASE("generation: an answer in a chat loses the space before it, a continuation does not") {
  const mixtral::Model model = open(bundled_model());
  const mixtral::Token space_and_word = value(model.tokenizer().encode("word"))[0];
  REQUIRE(model.tokenizer().piece(space_and_word).text.substr(0, 3) == "\u2581");
  mixtral::GenerateOptions options;
  options.max_tokens = 1;
  options.sampling.logit_bias = {{space_and_word, 1e9f}};
  const auto next_piece = [&](mixtral::Session& s) {
    auto generation = s.generate(options);
    return std::string(*generation.begin());
  };
  mixtral::Session s = session(model, 256);
  REQUIRE(s.append_chat({{"user", "Say a word."}}));
  const std::string answer = next_piece(s);
  CHECK(answer.substr(0, 1) == "w");
  CHECK(next_piece(s) == " " + answer);
  s.clear();
  REQUIRE(s.append("Say a"));
  CHECK(next_piece(s) == " " + answer);
}

TEST_CASE("generation: stop tokens and end of text") {
  const mixtral::Model model = open(bundled_model());
  const Outcome free = run(model, "Once upon a time", exactly(30, model));
  mixtral::GenerateOptions options = exactly(30, model);
  options.stop_tokens = {free.tokens[9]};
  const Outcome stopped = run(model, "Once upon a time", options);
  CHECK(stopped.reason == StopReason::stop_token);
  CHECK(stopped.tokens.size() <= 9);
  CHECK(std::equal(stopped.tokens.begin(), stopped.tokens.end(), free.tokens.begin()));
  options = {};
  options.sampling.logit_bias = {{model.tokenizer().eos(), 1e9f}};
  const Outcome ended = run(model, "Once upon a time", options);
  CHECK(ended.reason == StopReason::end_of_text);
  CHECK(ended.tokens.empty());
  CHECK(ended.text.empty());
  CHECK(run(model, "Once", exactly(0, model)).reason == StopReason::max_tokens);
}

TEST_CASE("generation: stop strings at every place of a text cut it right there") {
  const mixtral::Model model = open(bundled_model());
  const std::string text = run(model, "Once upon a time", exactly(24, model)).text;
  REQUIRE(text.size() > 24);
  mixtral::GenerateOptions options = exactly(24, model);
  for (std::size_t begin = 0; begin + 9 < text.size(); begin += 3) {
    const std::string stop = text.substr(begin, 9);
    CAPTURE(stop);
    options.stop = {"unseen", stop};
    const Outcome outcome = run(model, "Once upon a time", options);
    CHECK(outcome.reason == StopReason::stop_string);
    CHECK(outcome.text == text.substr(0, text.find(stop)));
  }
  // The start of a stop string that does not come is given out in the end.
  options.stop = {text.substr(text.size() - 3) + "never"};
  const Outcome kept = run(model, "Once upon a time", options);
  CHECK(kept.reason == StopReason::max_tokens);
  CHECK(kept.text == text);
}

TEST_CASE("generation: log-probabilities are the model's own, before sampling") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once upon a time"));
  mixtral::GenerateOptions options = exactly(10, model);
  options.sampling.temperature = 2.0f;
  options.sampling.seed = 3;
  auto generation = s.generate(options);
  mixtral::Session check = session(model, 64);
  REQUIRE(check.append("Once upon a time"));
  int n = 0;
  while (generation.next()) {
    REQUIRE(check.evaluate());
    CHECK(generation.log_probability() ==
          doctest::Approx(check.log_probability(generation.token())));
    REQUIRE(check.append(generation.token()));
    ++n;
  }
  CHECK(n == 10);
}

TEST_CASE("generation: bad options end it at once, with the reason") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  mixtral::GenerateOptions options;
  auto empty = s.generate(options);
  CHECK(!empty.next());
  CHECK(empty.stop_reason() == StopReason::error);
  CHECK(std::string(empty.error().message()).find("append") != std::string::npos);
  REQUIRE(s.append("Once"));
  options.sampling.top_p = 2.0f;
  auto bad = s.generate(options);
  for (const auto piece : bad) FAIL(std::string(piece));
  CHECK(bad.stop_reason() == StopReason::error);
  CHECK(std::string(bad.error().message()).find("top_p") != std::string::npos);
  options = {};
  options.stop = {""};
  CHECK(s.generate(options).stop_reason() == StopReason::error);
  options = {};
  options.stop_tokens = {-2};
  CHECK(s.generate(options).stop_reason() == StopReason::error);
}

TEST_CASE("stop strings: any text, cut in any pieces, equals a search in the whole") {
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    const auto letters = [&](std::size_t n) {
      std::string text;
      while (text.size() < n) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    const std::vector<std::string> stops = {letters(1 + random() % 6), letters(2 + random() % 6)};
    const std::string text = letters(random() % 30);
    std::size_t found = std::min(text.find(stops[0]), text.find(stops[1]));
    mixtral::StopStrings matcher({stops.data(), stops.size()}, 8, std::pmr::get_default_resource());
    std::string shown;
    bool stopped = false;
    for (std::size_t i = 0; i < text.size() && !stopped;) {
      const std::size_t n = std::min<std::size_t>(text.size() - i, 1 + random() % 8);
      stopped = matcher.push(std::string_view(text).substr(i, n));
      shown += matcher.ready();
      i += n;
    }
    if (!stopped) {
      matcher.finish({});
      shown += matcher.ready();
    }
    CHECK(stopped == (found != std::string::npos));
    // A longer stop string may begin earlier but end later than the one seen first.
    const std::string expected = text.substr(0, found);
    CHECK(shown.size() >= expected.size());
    if (stops[0].size() == stops[1].size() || !stopped) CHECK(shown == expected);
  }
}
