#ifndef MIXTRAL_IMPL_SAMPLING_HPP_
#define MIXTRAL_IMPL_SAMPLING_HPP_

#include <algorithm>
#include <cmath>

#include "mixtral/network/portable_math.hpp"
#include "mixtral/sampling.hpp"

namespace mixtral {

Status Sampler::check(const SamplingOptions& options, std::size_t vocab_size) {
  struct Range {
    const char* name;
    float value, low, high;
  };
  constexpr float kMax = std::numeric_limits<float>::max();
  const Range ranges[] = {
      {"temperature", options.temperature, 0.0f, kMax},
      {"typical_p", options.typical_p, 0.0f, 1.0f},
      {"top_p", options.top_p, 0.0f, 1.0f},
      {"min_p", options.min_p, 0.0f, 1.0f},
      {"repetition_penalty", options.repetition_penalty, std::numeric_limits<float>::min(), kMax},
      {"frequency_penalty", options.frequency_penalty, -kMax, kMax},
      {"presence_penalty", options.presence_penalty, -kMax, kMax},
  };
  for (const Range& range : ranges) {
    if (!(range.value >= range.low && range.value <= range.high)) {
      return Error(ErrorCode::invalid_argument, "sampling option %s is %g; expected %g to %g",
                   range.name, static_cast<double>(range.value), static_cast<double>(range.low),
                   static_cast<double>(range.high));
    }
  }
  for (const auto& [token, bias] : options.logit_bias) {
    if (token < 0 || static_cast<std::size_t>(token) >= vocab_size || std::isnan(bias)) {
      return Error(ErrorCode::invalid_argument,
                   "logit_bias of token %d is %g; the vocabulary has 0 to %zu",
                   static_cast<int>(token), static_cast<double>(bias), vocab_size - 1);
    }
  }
  return {};
}

Result<Sampler> Sampler::create(const SamplingOptions& options, std::size_t vocab_size,
                                std::pmr::memory_resource* resource) {
  return detail::guard_memory("creating a sampler", [&]() -> Result<Sampler> {
    Sampler sampler(resource);
    sampler.candidates_.reserve(vocab_size);
    sampler.probabilities_.reserve(vocab_size);
    sampler.counts_.resize(vocab_size);
    MIXTRAL_RETURN_IF_ERROR(sampler.set_options(options));
    return sampler;
  });
}

Status Sampler::set_options(const SamplingOptions& options) {
  MIXTRAL_RETURN_IF_ERROR(check(options, counts_.size()));
  return detail::guard_memory("changing sampling options", [&]() -> Status {
    // What may fail comes first, so that a failure changes nothing.
    std::pmr::vector<std::pair<Token, float>> bias(options.logit_bias.begin(),
                                                   options.logit_bias.end(), bias_.get_allocator());
    bias_.swap(bias);
    if (options.seed != options_.seed) {
      random_.seed(options.seed);
      n_drawn_ = 0;
    }
    options_.temperature = options.temperature;
    options_.top_k = options.top_k;
    options_.typical_p = options.typical_p;
    options_.top_p = options.top_p;
    options_.min_p = options.min_p;
    options_.repetition_penalty = options.repetition_penalty;
    options_.frequency_penalty = options.frequency_penalty;
    options_.presence_penalty = options.presence_penalty;
    options_.penalty_window = options.penalty_window;
    options_.seed = options.seed;
    return {};
  });
}

void Sampler::apply_penalties(Span<const Token> history) {
  const float r = options_.repetition_penalty;
  if (r == 1.0f && options_.frequency_penalty == 0.0f && options_.presence_penalty == 0.0f) return;
  const std::size_t n = std::min<std::size_t>(history.size(), options_.penalty_window);
  const Span<const Token> window = history.subspan(history.size() - n, n);
  const auto is_known = [&](Token token) {
    return token >= 0 && static_cast<std::size_t>(token) < counts_.size();
  };
  for (const Token token : window) {
    if (is_known(token)) ++counts_[static_cast<std::size_t>(token)];
  }
  for (const Token token : window) {
    if (!is_known(token)) continue;
    std::uint32_t& count = counts_[static_cast<std::size_t>(token)];
    if (count == 0) continue;  // penalised already
    float& logit = candidates_[static_cast<std::size_t>(token)].logit;
    logit = logit > 0.0f ? logit / r : logit * r;
    logit -=
        std::fma(options_.frequency_penalty, static_cast<float>(count), options_.presence_penalty);
    count = 0;
  }
}

void Sampler::sort_by_logit() {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  const std::size_t k = options_.top_k;
  if (k != 0 && k < candidates_.size()) {
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k),
                      candidates_.end(), better);
    candidates_.resize(k);
  } else {
    std::sort(candidates_.begin(), candidates_.end(), better);
  }
}

// The candidates need not be sorted.
void Sampler::softmax(double temperature) {
  double best = -std::numeric_limits<double>::infinity();
  for (const Candidate& candidate : candidates_) {
    best = std::max(best, static_cast<double>(candidate.logit));
  }
  probabilities_.clear();
  double sum = 0.0;
  for (const Candidate& candidate : candidates_) {
    const double logit = static_cast<double>(candidate.logit);
    probabilities_.push_back(portable::exp((logit - best) / temperature));
    sum += probabilities_.back();
  }
  for (double& probability : probabilities_) probability /= sum;
}

void Sampler::keep_typical() {
  softmax(1.0);
  double entropy = 0.0;
  for (const double p : probabilities_) {
    if (p > 0.0) entropy = std::fma(-p, portable::log(p), entropy);
  }
  // How far a candidate's surprise is from the entropy, from its logit and the best one's surprise:
  // -ln p = best_surprise + best_logit - logit.
  const double offset = -portable::log(probabilities_.front()) +
                        static_cast<double>(candidates_.front().logit) - entropy;
  const auto distance = [&](const Candidate& candidate) {
    return std::abs(offset - static_cast<double>(candidate.logit));
  };
  std::sort(candidates_.begin(), candidates_.end(), [&](const Candidate& a, const Candidate& b) {
    const double da = distance(a);
    const double db = distance(b);
    return da < db || (da == db && a.token < b.token);
  });
  softmax(1.0);
  double sum = 0.0;
  std::size_t n = 0;
  while (n < candidates_.size() && (n == 0 || sum < static_cast<double>(options_.typical_p))) {
    sum += probabilities_[n++];
  }
  candidates_.resize(n);
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  });
}

void Sampler::keep_top_p() {
  softmax(1.0);
  double sum = 0.0;
  std::size_t n = 0;
  while (n < candidates_.size() && (n == 0 || sum < static_cast<double>(options_.top_p))) {
    sum += probabilities_[n++];
  }
  candidates_.resize(n);
}

void Sampler::keep_min_p() {
  softmax(1.0);
  std::size_t n = 1;
  while (n < candidates_.size() &&
         probabilities_[n] >= static_cast<double>(options_.min_p) * probabilities_[0]) {
    ++n;
  }
  candidates_.resize(n);
}

Token Sampler::sample(Span<const float> logits, Span<const Token> history,
                      Span<const std::uint64_t> allowed) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::size_t vocab_size = counts_.size();
  if (logits.size() != vocab_size) return kNoToken;
  if (!allowed.empty() && allowed.size() < (vocab_size + 63) / 64) return kNoToken;
  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
    candidates_.push_back({std::min(logit, kMax), static_cast<Token>(i)});
  }
  for (const auto& [token, bias] : bias_) {
    float& logit = candidates_[static_cast<std::size_t>(token)].logit;
    logit = std::min(logit + bias, kMax);
    if (std::isnan(logit)) logit = -std::numeric_limits<float>::infinity();
  }
  apply_penalties(history);
  if (!allowed.empty()) {
    const auto is_forbidden = [&](const Candidate& candidate) {
      const auto t = static_cast<std::size_t>(candidate.token);
      return (allowed[t / 64] >> (t % 64) & 1) == 0;
    };
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), is_forbidden),
                      candidates_.end());
  }
  if (candidates_.empty()) return kNoToken;
  const auto best =
      std::max_element(candidates_.begin(), candidates_.end(),
                       [](const Candidate& a, const Candidate& b) { return a.logit < b.logit; });
  const Token greedy = best->token;
  if (options_.temperature == 0.0f || !std::isfinite(best->logit)) return greedy;

  const bool filters = options_.top_k != 0 || options_.typical_p < 1.0f || options_.top_p < 1.0f ||
                       options_.min_p > 0.0f;
  if (filters) sort_by_logit();
  if (options_.typical_p < 1.0f) keep_typical();
  if (options_.top_p < 1.0f) keep_top_p();
  if (options_.min_p > 0.0f) keep_min_p();
  softmax(static_cast<double>(options_.temperature));
  // 53 random bits: uniform in [0, 1).
  double point = static_cast<double>(random_() >> 11) * 0x1p-53;
  ++n_drawn_;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    point -= probabilities_[i];
    if (point < 0.0) return candidates_[i].token;
  }
  return greedy;  // rounding left a little over
}

double log_probability(Span<const float> logits, Token token) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) {
    return -std::numeric_limits<double>::infinity();
  }
  double best = -std::numeric_limits<double>::infinity();
  for (const float logit : logits) best = std::max(best, static_cast<double>(logit));
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - best);
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - best - std::log(sum);
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_SAMPLING_HPP_
