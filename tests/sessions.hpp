// Sessions on the bundled model, and what a plain one gives, for tests.
#ifndef MIXTRAL_TESTS_SESSIONS_HPP_
#define MIXTRAL_TESTS_SESSIONS_HPP_

#include "support.hpp"

namespace support {

inline mixtral::SessionOptions options_for(std::uint32_t context, std::uint32_t branches = 1) {
  mixtral::SessionOptions options;
  options.context = context;
  options.batch = 32;
  options.branches = branches;
  options.kv_format = mixtral::BlockFormat::f32;
  return options;
}

inline std::vector<mixtral::Token> some_tokens(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<mixtral::Token> tokens(n);
  for (mixtral::Token& t : tokens) t = static_cast<mixtral::Token>(random() % 4000);
  return tokens;
}

inline std::vector<mixtral::Token> tokens_of(const mixtral::Session& s) {
  return {s.tokens().begin(), s.tokens().end()};
}

inline std::vector<float> logits_of(const mixtral::Session& s) {
  return {s.logits().begin(), s.logits().end()};
}

// The logits after `tokens` in a session of its own, in one go.
inline std::vector<float> logits_after(const mixtral::Model& model,
                                       const std::vector<mixtral::Token>& tokens) {
  mixtral::Session s = value(mixtral::Session::open(model, options_for(512)));
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  return logits_of(s);
}

// As a new session with the same tokens, to the bit?
inline void check_as_plain(mixtral::Session& s) {
  REQUIRE(s.evaluate());
  CHECK(logits_of(s) == logits_after(s.model(), tokens_of(s)));
}

}  // namespace support

#endif  // MIXTRAL_TESTS_SESSIONS_HPP_
