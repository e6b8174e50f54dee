#ifndef MIXTRAL_IMPL_GENERATION_HPP_
#define MIXTRAL_IMPL_GENERATION_HPP_

#include <algorithm>

#include "mixtral/generation.hpp"
#include "mixtral/impl/session.hpp"
#include "mixtral/stop_strings.hpp"

namespace mixtral {

struct Generation::Impl {
  // With `answers`, the text is an answer of its own and loses its leading space.
  Impl(Session::Impl& owner, const GenerateOptions& options, Sampler&& ready_sampler, bool answers)
      : session(owner),
        max_tokens(options.max_tokens),
        sampler(std::move(ready_sampler)),
        detokenizer(owner.tokenizer(), answers, owner.resource()),
        stop_strings(Span<const std::string>(options.stop.data(), options.stop.size()),
                     detokenizer.longest_text(), owner.resource()),
        stop_tokens(options.stop_tokens.begin(), options.stop_tokens.end(), owner.resource()) {}

  Session::Impl& session;
  std::uint32_t max_tokens;
  std::uint32_t n_generated = 0;
  Sampler sampler;
  Detokenizer detokenizer;
  StopStrings stop_strings;
  std::pmr::vector<Token> stop_tokens;
  Token token = kNoToken;
  double log_probability = 0.0;
};

const char* stop_reason_name(StopReason reason) noexcept {
  switch (reason) {
    case StopReason::none: return "none";
    case StopReason::end_of_text: return "end_of_text";
    case StopReason::stop_token: return "stop_token";
    case StopReason::stop_string: return "stop_string";
    case StopReason::max_tokens: return "max_tokens";
    case StopReason::context_full: return "context_full";
    case StopReason::cancelled: return "cancelled";
    case StopReason::error: return "error";
  }
  return "unknown";
}

Generation::Generation() noexcept : error_(ErrorCode::invalid_argument, "%s", "") {}
Generation::Generation(Generation&&) noexcept = default;
Generation& Generation::operator=(Generation&&) noexcept = default;
Generation::~Generation() = default;

Generation Session::generate(const GenerateOptions& options) {
  Generation generation;
  const Status made = detail::guard_memory("starting a generation", [&]() -> Status {
    std::pmr::memory_resource* resource = impl_->resource();
    const Tokenizer& tokenizer = model().tokenizer();
    for (const Token token : options.stop_tokens) {
      if (!tokenizer.contains(token)) {
        return Error(ErrorCode::invalid_argument, "stop token %d; the vocabulary has 0 to %zu",
                     static_cast<int>(token), tokenizer.size() - 1);
      }
    }
    for (const std::string& stop : options.stop) {
      if (stop.empty()) return Error(ErrorCode::invalid_argument, "an empty stop string");
    }
    Result<Sampler> sampler = Sampler::create(options.sampling, tokenizer.size(), resource);
    if (!sampler) return sampler.error();
    // An answer begins a text of its own, anything else goes on with the text before it.
    const bool answers = impl_->turn() == Turn::answer && impl_->answer_begins();
    generation.impl_ = detail::make_resource_ptr<Generation::Impl>(resource, *impl_, options,
                                                                   *std::move(sampler), answers);
    return {};
  });
  if (!made) {
    generation.error_ = made.error();
    generation.reason_ = StopReason::error;
  }
  return generation;
}

bool Generation::next() { return step(nullptr) == Step::token; }

Progress Generation::advance(std::chrono::nanoseconds budget) {
  return step(&budget) == Step::working ? Progress::working : Progress::done;
}

Generation::Step Generation::step(const std::chrono::nanoseconds* budget) {
  if (reason_ != StopReason::none) {
    if (impl_ != nullptr) impl_->stop_strings.clear();
    return Step::stopped;
  }
  const auto stop = [&](StopReason reason) {
    reason_ = reason;
    // What was held back becomes the last piece.
    impl_->stop_strings.finish(impl_->detokenizer.finish());
    return Step::stopped;
  };
  Session::Impl& session = impl_->session;
  if (impl_->n_generated == impl_->max_tokens) return stop(StopReason::max_tokens);
  if (!session.has_logits()) {
    using Clock = detail::Workspace::Clock;
    const Clock::time_point deadline =
        budget == nullptr ? Clock::time_point() : Clock::now() + *budget;
    const Result<bool> evaluated =
        session.advance(budget == nullptr ? nullptr : &deadline, nullptr);
    if (!evaluated) {
      error_ = evaluated.error();
      return stop(error_.code() == ErrorCode::cancelled ? StopReason::cancelled
                                                        : StopReason::error);
    }
    if (!*evaluated) {
      impl_->stop_strings.push({});  // the last piece was seen
      return Step::working;
    }
  }
  const Span<const float> logits = session.logits();
  const Token token = impl_->sampler.sample(logits, session.tokens());
  impl_->token = token;
  impl_->log_probability = mixtral::log_probability(logits, token);
  if (token == session.tokenizer().eos()) return stop(StopReason::end_of_text);
  if (std::find(impl_->stop_tokens.begin(), impl_->stop_tokens.end(), token) !=
      impl_->stop_tokens.end()) {
    return stop(StopReason::stop_token);
  }
  if (!session.append(Span<const Token>(&token, 1))) return stop(StopReason::context_full);
  ++impl_->n_generated;
  if (impl_->stop_strings.push(impl_->detokenizer.push(token))) {
    reason_ = StopReason::stop_string;
  }
  return Step::token;
}

StopReason Generation::stop_reason() const noexcept { return reason_; }
std::string_view Generation::piece() const noexcept {
  return impl_ == nullptr ? std::string_view() : impl_->stop_strings.ready();
}
Token Generation::token() const noexcept { return impl_ == nullptr ? kNoToken : impl_->token; }
double Generation::log_probability() const noexcept {
  return impl_ == nullptr ? 0.0 : impl_->log_probability;
}
const Error& Generation::error() const noexcept { return error_; }

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_GENERATION_HPP_
