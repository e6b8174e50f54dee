#ifndef MIXTRAL_IMPL_GENERATION_HPP_
#define MIXTRAL_IMPL_GENERATION_HPP_

#include <algorithm>
#include <optional>

#include "mixtral/generation.hpp"
#include "mixtral/impl/grammar.hpp"
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
        stop_tokens(options.stop_tokens.begin(), options.stop_tokens.end(), owner.resource()),
        allowed(owner.resource()) {
    if (options.grammar) allowed.resize((owner.tokenizer().size() + 63) / 64);
  }

  Session::Impl& session;
  std::uint32_t max_tokens;
  std::uint32_t n_generated = 0;
  Sampler sampler;
  Detokenizer detokenizer;
  StopStrings stop_strings;
  std::pmr::vector<Token> stop_tokens;
  std::optional<GrammarMatcher> matcher;
  std::pmr::vector<std::uint64_t> allowed;  // with a matcher and stop tokens
  Token token = kNoToken;
  double log_probability = 0.0;

  bool is_stop_token(Token t) const noexcept {
    return std::find(stop_tokens.begin(), stop_tokens.end(), t) != stop_tokens.end();
  }

  // Which tokens may be chosen; empty if all.
  Result<Span<const std::uint64_t>> find_allowed() {
    if (!matcher) return Span<const std::uint64_t>();
    const auto by_grammar = matcher->allowed();
    if (stop_tokens.empty()) return by_grammar;
    // Stop tokens may come only where the text may end.
    std::fill(allowed.begin(), allowed.end(), std::uint64_t{0});
    if (by_grammar) std::copy(by_grammar->begin(), by_grammar->end(), allowed.begin());
    for (const Token stop : stop_tokens) {
      const std::uint64_t bit = std::uint64_t{1} << (static_cast<std::size_t>(stop) % 64);
      std::uint64_t& word = allowed[static_cast<std::size_t>(stop) / 64];
      word = matcher->can_end() ? word | bit : word & ~bit;
    }
    for (const std::uint64_t word : allowed) {
      if (word != 0) return Span<const std::uint64_t>(allowed.data(), allowed.size());
    }
    if (!by_grammar) return by_grammar;
    return Error(ErrorCode::unsupported,
                 "all tokens that go on with the grammar are stop tokens; leave some of them out");
  }
};

const char* stop_reason_name(StopReason reason) noexcept {
  switch (reason) {
    case StopReason::none: return "none";
    case StopReason::end_of_text: return "end_of_text";
    case StopReason::stop_token: return "stop_token";
    case StopReason::stop_string: return "stop_string";
    case StopReason::grammar_end: return "grammar_end";
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
    if (options.grammar) {
      Result<GrammarMatcher> matcher = GrammarMatcher::create(options.grammar, model(), answers);
      MIXTRAL_RETURN_IF_ERROR(matcher);
      generation.impl_->matcher.emplace(*std::move(matcher));
    }
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
  if (impl_->matcher && impl_->matcher->must_end()) return stop(StopReason::grammar_end);
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
  const auto allowed = impl_->find_allowed();
  if (!allowed) {
    error_ = allowed.error();
    return stop(StopReason::error);
  }
  const Token token = impl_->sampler.sample(logits, session.tokens(), *allowed);
  impl_->token = token;
  impl_->log_probability = mixtral::log_probability(logits, token);
  if (token == session.tokenizer().eos()) return stop(StopReason::end_of_text);
  if (impl_->is_stop_token(token)) return stop(StopReason::stop_token);
  if (impl_->matcher) {
    if (const Status accepted = impl_->matcher->accept(token); !accepted) {
      error_ = accepted.error();
      return stop(StopReason::error);
    }
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
