// What the tests of grammars share: texts fed byte by byte, and texts drawn at random.
#ifndef MIXTRAL_TESTS_GRAMMARS_HPP_
#define MIXTRAL_TESTS_GRAMMARS_HPP_

#include "support.hpp"

// g++ 12 with sanitizers sees uninitialised members in the library's own <regex>.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <regex>

namespace support {

using mixtral::ErrorCode;
using mixtral::Grammar;
using mixtral::GrammarMatcher;
using mixtral::Token;

// A model that runs nothing, with all bytes and no other text: a text can be fed byte by byte.
inline mixtral::Model bytes_only() {
  Synthetic synthetic;
  synthetic.vocab_size = 259;
  synthetic.randomize(1);
  return open(synthetic.writer().finish());
}

enum class Match { dead, begins, whole };

class Feeder {
 public:
  GrammarMatcher matcher(const Grammar& grammar) const {
    return value(GrammarMatcher::create(grammar, model_));
  }
  Match match(const Grammar& grammar, std::string_view text) const {
    GrammarMatcher made = matcher(grammar);
    return match(made, text);
  }
  static Match match(GrammarMatcher& matcher, std::string_view text) {
    matcher.restart();
    for (const char c : text) {
      const auto token = static_cast<Token>(3 + static_cast<unsigned char>(c));
      if (!matcher.accept(token)) return Match::dead;
    }
    return matcher.can_end() ? Match::whole : Match::begins;
  }
  const mixtral::Model& model() const { return model_; }

 private:
  mixtral::Model model_ = bytes_only();
};

inline Grammar gbnf(std::string_view text) { return value(Grammar::from_gbnf(text)); }

inline void check_refused(const mixtral::Result<Grammar>& grammar, const std::string& part,
                          ErrorCode code = ErrorCode::bad_format) {
  CAPTURE(part);
  REQUIRE(!grammar);
  CAPTURE(grammar.error().message());
  CHECK(grammar.error().code() == code);
  CHECK(std::string(grammar.error().message()).find(part) != std::string::npos);
}

// Sets logits to numbers from 0 to 7, a part of a table that is made once: random numbers for every token
// of a vocabulary would take longer than all else.
inline void set_at_random(std::mt19937& random, std::vector<float>& logits) {
  static const std::vector<float> table = [] {
    std::mt19937 numbers(1);
    std::vector<float> made(std::size_t{1} << 16);
    for (float& logit : made) logit = static_cast<float>(numbers() % 1000) * 0.007f;
    return made;
  }();
  REQUIRE(logits.size() < table.size());
  const auto at = static_cast<std::ptrdiff_t>(random() % (table.size() - logits.size()));
  std::copy_n(table.begin() + at, logits.size(), logits.begin());
}

// A text that a grammar takes, of a model's tokens, drawn with the logits that shape(random, logits)
// sets for each: with all as likely, texts would hardly end.
template <class Shape>
std::string draw(GrammarMatcher& matcher, const mixtral::Model& model, std::uint32_t seed,
                 std::size_t most_tokens, const Shape& shape) {
  mixtral::SamplingOptions options;
  options.temperature = 1.0f;
  options.seed = seed;
  const mixtral::Tokenizer& tokenizer = model.tokenizer();
  const std::size_t n = tokenizer.size();
  auto sampler = value(mixtral::Sampler::create(options, n, std::pmr::get_default_resource()));
  matcher.restart(true);
  std::mt19937 random(seed);
  std::vector<float> logits(n);
  std::vector<Token> tokens;
  while (!matcher.must_end()) {
    shape(random, logits);
    const Token token = sampler.sample({logits.data(), n}, span(tokens), value(matcher.allowed()));
    REQUIRE(matcher.accept(token));
    if (token == tokenizer.eos()) break;
    tokens.push_back(token);
    REQUIRE(tokens.size() < most_tokens);
  }
  return std::string(value(tokenizer.decode(span(tokens))));
}

}  // namespace support

#endif  // MIXTRAL_TESTS_GRAMMARS_HPP_
