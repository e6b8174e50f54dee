#ifndef MIXTRAL_IMPL_GENERATION_HPP_
#define MIXTRAL_IMPL_GENERATION_HPP_

#include <algorithm>
#include <cstring>
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
        allowed(owner.resource()),
        n_cancels_at_begin(owner.branch->cancels.load()) {
    owner.branch->n_cancels_seen = n_cancels_at_begin;
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
  std::uint32_t n_cancels_at_begin;  // how often Session::cancel() was called before this began
  bool chose = false;                // the last step has chosen `token`
  bool in_step = false;              // takes part in the step in progress

  bool is_cancelled() const noexcept {
    return session.branch->cancels.load(std::memory_order_relaxed) != n_cancels_at_begin;
  }
  Error cancelled() const noexcept {
    return Error(ErrorCode::cancelled, "cancelled after %u tokens; generate again to go on",
                 static_cast<unsigned>(n_generated));
  }

  // How a generation is saved, in this order: what it was asked for and whether it has stopped; its
  // grammar; where it stands. `archive` is a SnapshotWriter or a SnapshotReader.
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::size_t kMostElements = std::size_t{1} << 24;
  static constexpr std::uint64_t kMostDrawn = std::uint64_t{1}
                                              << 28;  // half a second to draw again

  template <class Archive>
  static void transfer_options(Archive& archive, std::uint64_t session_checksum,
                               std::uint32_t& reason, GenerateOptions& options) {
    constexpr char kMagic[8] = {'M', 'I', 'X', 'T', 'R', 'A', 'L', 'G'};
    char magic[8];
    std::memcpy(magic, kMagic, sizeof magic);
    archive.bytes(magic, sizeof magic);
    std::uint32_t version = kVersion;
    archive.value(version);
    if (std::memcmp(magic, kMagic, sizeof magic) != 0 || version != kVersion) archive.fail();
    std::uint64_t checksum = session_checksum;
    archive.value(checksum);
    if (checksum != session_checksum) archive.fail();  // the two belong to different saves
    archive.value(reason);
    archive.value(options.max_tokens);
    SamplingOptions& sampling = options.sampling;
    archive.value(sampling.temperature);
    archive.value(sampling.top_k);
    archive.value(sampling.typical_p);
    archive.value(sampling.top_p);
    archive.value(sampling.min_p);
    archive.value(sampling.repetition_penalty);
    archive.value(sampling.frequency_penalty);
    archive.value(sampling.presence_penalty);
    archive.value(sampling.penalty_window);
    archive.value(sampling.seed);
    std::vector<Token> tokens;
    std::vector<float> biases;
    for (const auto& [token, bias] : sampling.logit_bias) {
      tokens.push_back(token);
      biases.push_back(bias);
    }
    archive.sequence(tokens, kMostElements);
    archive.sequence(biases, tokens.size());
    if (biases.size() != tokens.size()) return archive.fail();
    sampling.logit_bias.clear();
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      sampling.logit_bias.emplace_back(tokens[i], biases[i]);
    }
    auto n_stops = static_cast<std::uint64_t>(options.stop.size());
    archive.value(n_stops);
    if (n_stops > kMostElements) return archive.fail();
    for (std::uint64_t i = 0; i < n_stops && archive.good(); ++i) {
      if (Archive::kReads) options.stop.emplace_back();
      archive.sequence(options.stop[static_cast<std::size_t>(i)], StopStrings::kLongest);
    }
    archive.sequence(options.stop_tokens, kMostElements);
  }

  template <class Archive>
  static void transfer_grammar(Archive& archive, bool& has_grammar, std::uint64_t& fingerprint) {
    archive.flag(has_grammar);
    archive.value(fingerprint);
  }

  template <class Archive>
  void transfer(Archive& archive) {
    archive.value(n_generated);
    archive.value(token);
    archive.value(log_probability);
    if (n_generated > max_tokens || (token != kNoToken && !session.tokenizer().contains(token))) {
      archive.fail();
    }
    std::uint64_t n_drawn = sampler.n_drawn_;
    archive.value(n_drawn);
    if (n_drawn > kMostDrawn) return archive.fail();
    if (Archive::kReads) {
      sampler.random_.discard(n_drawn);
      sampler.n_drawn_ = n_drawn;
    }
    detokenizer.transfer(archive);
    std::pmr::string held_back(stop_strings.held_back(), session.resource());
    archive.sequence(held_back, kMostElements);
    if (Archive::kReads && !stop_strings.hold_back(held_back)) archive.fail();
    if (matcher) matcher->transfer(archive);
  }

  // Returns the options that this generation would be begun with now, without the grammar.
  GenerateOptions options() const {
    GenerateOptions options;
    options.max_tokens = max_tokens;
    options.sampling = sampler.options_;
    options.sampling.logit_bias.assign(sampler.bias_.begin(), sampler.bias_.end());
    for (const auto& stop : stop_strings.stops()) options.stop.emplace_back(stop);
    options.stop_tokens.assign(stop_tokens.begin(), stop_tokens.end());
    return options;
  }

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

Status Generation::make(Session& session, const GenerateOptions& options) {
  return detail::guard_memory("starting a generation", [&]() -> Status {
    Session::Impl& owner = *session.impl_;
    std::pmr::memory_resource* resource = owner.resource();
    const Tokenizer& tokenizer = owner.tokenizer();
    for (const Token token : options.stop_tokens) {
      if (!tokenizer.contains(token)) {
        return Error(ErrorCode::invalid_argument, "stop token %d; the vocabulary has 0 to %zu",
                     static_cast<int>(token), tokenizer.size() - 1);
      }
    }
    for (const std::string& stop : options.stop) {
      if (stop.empty()) return Error(ErrorCode::invalid_argument, "an empty stop string");
      if (stop.size() > StopStrings::kLongest) {
        return Error(ErrorCode::invalid_argument, "a stop string of %zu bytes; %zu are the most",
                     stop.size(), StopStrings::kLongest);
      }
    }
    Result<Sampler> sampler = Sampler::create(options.sampling, tokenizer.size(), resource);
    if (!sampler) return sampler.error();
    // An answer begins a text of its own, anything else goes on with the text before it.
    const bool answers = owner.turn() == Turn::answer && owner.answer_begins();
    impl_ = detail::make_resource_ptr<Impl>(resource, owner, options, *std::move(sampler), answers);
    if (options.grammar) {
      Result<GrammarMatcher> matcher =
          GrammarMatcher::create(options.grammar, session.model(), answers);
      MIXTRAL_RETURN_IF_ERROR(matcher);
      impl_->matcher.emplace(*std::move(matcher));
    }
    return {};
  });
}

Generation Session::generate(const GenerateOptions& options) {
  Generation generation;
  Status made = Impl::check_usable(impl_.get(), "generate");
  if (made) made = generation.make(*this, options);
  if (!made) generation.fail(made.error());
  return generation;
}

void Generation::stop(StopReason reason) {
  reason_ = reason;
  // What was held back becomes the last piece.
  if (impl_ != nullptr) impl_->stop_strings.finish(impl_->detokenizer.finish());
}

void Generation::fail(const Error& error) {
  error_ = error;
  stop(error.code() == ErrorCode::cancelled ? StopReason::cancelled : StopReason::error);
}

// Notes why a call did nothing. One from a callback of the generation's own step must not end it.
void Generation::refuse(const Error& error) {
  if (reason_ != StopReason::none) return;
  if (impl_ != nullptr && impl_->session.work->in_call()) {
    error_ = error;
  } else {
    fail(error);
  }
}

// Begins a step, or stops; false if there is none to do.
bool Generation::begin_step() {
  if (impl_ == nullptr) {
    if (reason_ == StopReason::none) {
      fail(Error(ErrorCode::invalid_argument, "a generation that was moved from"));
    }
    return false;
  }
  impl_->chose = false;
  if (reason_ != StopReason::none) {
    impl_->stop_strings.clear();
    return false;
  }
  impl_->stop_strings.push({});  // the last piece was seen
  if (impl_->is_cancelled()) {
    impl_->session.branch->begin_work();  // told now
    fail(impl_->cancelled());
  } else if (impl_->matcher && impl_->matcher->must_end()) {
    stop(StopReason::grammar_end);
  } else if (impl_->n_generated == impl_->max_tokens) {
    stop(StopReason::max_tokens);
  } else if (impl_->session.branch->n_tokens == 0) {
    fail(Session::Impl::nothing_to_evaluate());
  }
  return reason_ == StopReason::none;
}

// Chooses a token from the session's logits.
void Generation::choose() {
  Session::Impl& session = impl_->session;
  const Span<const float> logits = session.logits();
  const auto allowed = impl_->find_allowed();
  if (!allowed) return fail(allowed.error());
  const Token token = impl_->sampler.sample(logits, session.tokens(), *allowed);
  if (token == kNoToken) {
    return fail(Error(ErrorCode::bad_format,
                      "the model has %zu logits and its vocabulary %zu tokens", logits.size(),
                      session.tokenizer().size()));
  }
  impl_->token = token;
  impl_->log_probability = mixtral::log_probability(logits, token);
  if (token == session.tokenizer().eos()) return stop(StopReason::end_of_text);
  if (impl_->is_stop_token(token)) return stop(StopReason::stop_token);
  if (impl_->matcher) {
    if (const Status accepted = impl_->matcher->accept(token); !accepted) {
      return fail(accepted.error());
    }
  }
  if (!session.append(Span<const Token>(&token, 1))) return stop(StopReason::context_full);
  ++impl_->n_generated;
  impl_->chose = true;
  if (impl_->stop_strings.push(impl_->detokenizer.push(token))) {
    reason_ = StopReason::stop_string;
  }
}

Result<Progress> Generation::step(Span<Generation* const> generations,
                                  const std::chrono::nanoseconds* budget, const char* function) {
  const auto deadline =
      detail::deadline_after(budget == nullptr ? std::chrono::nanoseconds(0) : *budget);
  detail::Workspace* work = nullptr;
  std::optional<detail::WantedBranches> wanted;
  for (std::size_t i = 0; i < generations.size(); ++i) {
    if (generations[i] == nullptr) {
      return Error(ErrorCode::invalid_argument, "%s() of generation %zu, which is null", function,
                   i);
    }
    if (generations[i]->impl_ == nullptr) continue;
    Session::Impl& session = generations[i]->impl_->session;
    MIXTRAL_RETURN_IF_ERROR(Session::Impl::check_usable(&session, function));
    if (work == nullptr) {
      work = session.work;
      wanted.emplace(*work);
    }
    if (session.work != work) {
      return Error(ErrorCode::invalid_argument,
                   "the session of generation %zu has memory of its own: those that generate "
                   "together must be forks of one that was opened with enough branches",
                   i);
    }
    if (!wanted->add(*session.branch)) {
      std::size_t k = 0;
      while (generations[k]->impl_ == nullptr || &generations[k]->impl_->session != &session) ++k;
      return Error(ErrorCode::invalid_argument,
                   "generations %zu and %zu are of the same session; fork it for each", k, i);
    }
  }
  wanted.reset();  // it was to find what is given twice; the evaluation collects its own
  for (Generation* generation : generations) {
    const bool begun = generation->begin_step();
    if (generation->impl_ != nullptr) generation->impl_->in_step = begun;
  }
  for (;;) {
    std::size_t n = 0;
    for (const Generation* generation : generations) {
      if (generation->impl_ == nullptr || !generation->impl_->in_step) continue;
      detail::Branch* branch = generation->impl_->session.branch;
      branch->n_cancels_seen = generation->impl_->n_cancels_at_begin;
      work->wanted()[n++] = branch;
    }
    if (n == 0) return Progress(Progress::done);
    const auto progress =
        Session::Impl::advance(*work, n, budget == nullptr ? nullptr : &deadline, nullptr);
    if (progress && *progress == Progress::working) return progress;
    if (progress) {
      for (Generation* generation : generations) {
        if (generation->impl_ != nullptr && generation->impl_->in_step) generation->choose();
      }
      return progress;
    }
    // The generation that the error concerns stops; the pass is begun again without it.
    bool found = false;
    for (Generation* generation : generations) {
      if (generation->impl_ == nullptr || !generation->impl_->in_step) continue;
      Impl& impl = *generation->impl_;
      const bool concerned = progress.error().code() == ErrorCode::cancelled
                                 ? impl.is_cancelled()
                                 : impl.session.branch == work->failed();
      if (!concerned) continue;
      found = true;
      impl.in_step = false;
      generation->fail(progress.error());
    }
    if (!found) return progress;
  }
}

bool Generation::next() {
  Generation* const self = this;
  if (const auto done = step({&self, 1}, nullptr, "next"); !done) {
    refuse(done.error());
    return false;
  }
  return impl_ != nullptr && impl_->chose;
}

Progress Generation::advance(std::chrono::nanoseconds budget) {
  Generation* const self = this;
  const auto progress = step({&self, 1}, &budget, "advance");
  if (progress) return *progress;
  refuse(progress.error());
  return Progress(Progress::done);
}

Result<bool> Generation::next_all(Span<Generation* const> generations) {
  const auto done = step(generations, nullptr, "next_all");
  MIXTRAL_RETURN_IF_ERROR(done);
  bool any = false;
  for (const Generation* generation : generations) {
    any = any || (generation->impl_ != nullptr && generation->impl_->chose);
  }
  return any;
}

Result<Progress> Generation::advance_all(Span<Generation* const> generations,
                                         std::chrono::nanoseconds budget) {
  return step(generations, &budget, "advance_all");
}

Status Generation::set_sampling(const SamplingOptions& sampling) {
  if (impl_ == nullptr) {
    return Error(ErrorCode::invalid_argument, "set_sampling() of a generation that is none");
  }
  return impl_->sampler.set_options(sampling);
}

Status Generation::save(ByteWriter write) const {
  if (impl_ == nullptr || reason_ == StopReason::error) {
    return Error(ErrorCode::invalid_argument,
                 "saving a generation that stopped with an error, or is none; save the session");
  }
  Session::Impl& session = impl_->session;
  MIXTRAL_RETURN_IF_ERROR(Session::Impl::check_usable(&session, "save"));
  const detail::WorkspaceCall call(session.work);
  std::uint64_t checksum = 0;
  MIXTRAL_RETURN_IF_ERROR(session.save(write, checksum));
  return detail::guard_memory("saving a generation", [&]() -> Status {
    detail::SnapshotWriter out(write);
    GenerateOptions options = impl_->options();
    auto reason = static_cast<std::uint32_t>(reason_);
    Impl::transfer_options(out, checksum, reason, options);
    bool has_grammar = impl_->matcher.has_value();
    std::uint64_t fingerprint = has_grammar ? impl_->matcher->fingerprint() : 0;
    Impl::transfer_grammar(out, has_grammar, fingerprint);
    impl_->transfer(out);
    out.put_checksum();
    if (out.good()) return {};
    if (out.is_too_large()) {
      return Error(
          ErrorCode::unsupported,
          "saving a generation: it has more than 2^28 random tokens, or 2^24 of logit_bias or "
          "stop tokens");
    }
    return Error(ErrorCode::io, "saving a generation: a write failed");
  });
}

Result<Generation> Session::load_generation(ByteReader read, const Grammar& grammar) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "load_generation"));
  const detail::WorkspaceCall call(impl_->work);
  std::uint64_t checksum = 0;
  MIXTRAL_RETURN_IF_ERROR(impl_->load(read, checksum));
  struct Undo {  // unless all was read, also if `read` throws
    Impl* session;
    ~Undo() {
      if (session != nullptr) session->work->rewind(*session->branch, 0);
    }
  } undo{impl_.get()};
  return detail::guard_memory("loading a generation", [&]() -> Result<Generation> {
    const Error failed(ErrorCode::io,
                       "loading a generation: a read failed, or the data end too early");
    const Error damaged(ErrorCode::bad_format,
                        "loading a generation: the data after the session are damaged, or none of "
                        "Generation::save() of this version; load another copy");
    detail::SnapshotReader in(read);
    GenerateOptions options;
    std::uint32_t reason = 0;
    Generation::Impl::transfer_options(in, checksum, reason, options);
    if (!in.good()) return in.is_read() ? damaged : failed;
    if (reason >= static_cast<std::uint32_t>(StopReason::error)) return damaged;
    bool has_grammar = false;
    std::uint64_t fingerprint = 0;
    Generation::Impl::transfer_grammar(in, has_grammar, fingerprint);
    if (!in.good()) return in.is_read() ? damaged : failed;
    if (has_grammar != static_cast<bool>(grammar) ||
        (has_grammar && fingerprint != grammar.program_->fingerprint())) {
      return Error(ErrorCode::invalid_argument,
                   has_grammar ? "loading a generation: it has another grammar; give the one that "
                                 "it was begun with"
                               : "loading a generation: it has no grammar, but one was given");
    }
    options.grammar = grammar;
    Generation generation;
    if (const Status made = generation.make(*this, options); !made) {
      return made.error().code() == ErrorCode::out_of_memory ? made.error() : damaged;
    }
    generation.impl_->transfer(in);
    if (!in.checksum_matches()) return in.is_read() ? damaged : failed;
    generation.reason_ = static_cast<StopReason>(reason);
    if (generation.reason_ == StopReason::cancelled) {
      generation.error_ = Error(ErrorCode::cancelled, "cancelled before it was saved");
    }
    undo.session = nullptr;
    return generation;
  });
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
