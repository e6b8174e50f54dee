// From logits to a token.
#ifndef MIXTRAL_SAMPLING_HPP_
#define MIXTRAL_SAMPLING_HPP_

#include <cstdint>
#include <limits>
#include <memory_resource>
#include <random>
#include <utility>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

// Applied in this order, each to what the one before left over:
//
//  1. logit_bias            added to the logits; minus infinity forbids a token.
//  2. penalties             for tokens among the last penalty_window of the history, which occur
//                           there `count` times:
//       repetition          logit > 0 ? logit / r : logit * r (Keskar et al. 2019, CTRL, section 4.1)
//       frequency, presence logit -= frequency * count + presence (OpenAI API reference)
//     allowed               other tokens go, as the grammar of a generation has it.
//  3. temperature == 0      greedy: the largest logit, the lowest id among equals; nothing below.
//  4. top_k                 the k largest logits (Fan et al. 2018).
//  5. typical_p             the tokens whose surprise is nearest to the entropy, until their
//                           probabilities sum to at least p (Meister et al. 2022).
//  6. top_p                 the most probable tokens, until their probabilities sum to at least p
//                           (Holtzman et al. 2020).
//  7. min_p                 the tokens at least p times as probable as the best (Nguyen et al. 2024).
//  8. temperature           logits / temperature, then a draw from their softmax.
//
// Steps 5 to 7 see probabilities renormalised over what is left, which is at least one token if one is
// allowed.
struct SamplingOptions {
  float temperature = 0.0f;         // 0: greedy
  std::uint32_t top_k = 0;          // 0: off
  float typical_p = 1.0f;           // 1: off
  float top_p = 1.0f;               // 1: off
  float min_p = 0.0f;               // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  float frequency_penalty = 0.0f;   // 0: off
  float presence_penalty = 0.0f;    // 0: off
  std::uint32_t penalty_window = 64;
  std::uint64_t seed = 0;
  std::vector<std::pair<Token, float>> logit_bias;
};

// Draws tokens with one set of options and one stream of random numbers (std::mt19937_64, so the same
// everywhere). All memory is taken at creation, but for the logit_bias of set_options().
class Sampler {
 public:
  // Errors: invalid_argument, naming the option; out_of_memory.
  static Result<Sampler> create(const SamplingOptions& options, std::size_t vocab_size,
                                std::pmr::memory_resource* resource);

  // Changes the options. The stream of random numbers goes on unless the seed is another one. Nothing
  // changes on error. Errors: as create().
  Status set_options(const SamplingOptions& options);

  // `logits` has vocab_size elements; `history` are the tokens so far, of which those outside the
  // vocabulary do not count. NaN counts as minus infinity. Of `allowed`, bit t % 64 of word t / 64 lets
  // token t be chosen; empty means all. Returns kNoToken if there are more or fewer logits, or too few
  // words, or if nothing is allowed.
  Token sample(Span<const float> logits, Span<const Token> history,
               Span<const std::uint64_t> allowed = {});

 private:
  struct Candidate {
    float logit;
    Token token;
  };

  friend class Generation;
  explicit Sampler(std::pmr::memory_resource* resource)
      : random_(options_.seed),
        candidates_(resource),
        probabilities_(resource),
        counts_(resource),
        bias_(resource) {}

  static Status check(const SamplingOptions& options, std::size_t vocab_size);
  void apply_penalties(Span<const Token> history);
  void sort_by_logit();
  void softmax(double temperature);
  void keep_typical();
  void keep_top_p();
  void keep_min_p();

  SamplingOptions options_;  // without logit_bias
  std::mt19937_64 random_;
  std::uint64_t n_drawn_ = 0;  // random numbers since the seed
  std::pmr::vector<Candidate> candidates_;
  std::pmr::vector<double> probabilities_;  // of candidates_, after softmax()
  std::pmr::vector<std::uint32_t> counts_;  // by token, zero between calls
  std::pmr::vector<std::pair<Token, float>> bias_;
};

// ln p(token) under the softmax of `logits` (computed in double); minus infinity for a token without a logit.
double log_probability(Span<const float> logits, Token token);

}  // namespace mixtral

#endif  // MIXTRAL_SAMPLING_HPP_
