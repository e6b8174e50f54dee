// Text generation: sampling, evaluating, decoding and stopping, one token a step.
#ifndef MIXTRAL_GENERATION_HPP_
#define MIXTRAL_GENERATION_HPP_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral/byte_stream.hpp"
#include "mixtral/error.hpp"
#include "mixtral/grammar.hpp"
#include "mixtral/progress.hpp"
#include "mixtral/resource_ptr.hpp"
#include "mixtral/sampling.hpp"
#include "mixtral/span.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

class Session;

struct GenerateOptions {
  std::uint32_t max_tokens = (std::numeric_limits<std::uint32_t>::max)();
  SamplingOptions sampling;
  // Generation ends before the first of these texts appears; it is not given out, even if it comes in
  // several pieces. A text that begins within a UTF-8 character takes that whole character with it. Each
  // may have 64 KiB.
  std::vector<std::string> stop;
  // Generation ends when one of these is chosen; EOS always ends it.
  std::vector<Token> stop_tokens;
  // The text generated is one of the grammar's, and generation ends when that must end; EOS and stop
  // tokens come only where it can. Other reasons to stop can leave a part of one. Stop strings and
  // logit_bias apply as well.
  Grammar grammar;
};

enum class StopReason {
  none,         // not stopped yet
  end_of_text,  // the model chose EOS
  stop_token,
  stop_string,
  grammar_end,  // nothing more can follow under GenerateOptions::grammar
  max_tokens,
  context_full,  // the session holds no more tokens
  cancelled,     // Session::cancel() after generate(); generate() again to go on
  error,         // see Generation::error()
};

const char* stop_reason_name(StopReason reason) noexcept;

// Made by Session::generate(). Iterate over its pieces of text, or call next() for each token.
// Allocates when it begins; its steps do not. The tokens generated become part of the session, except
// EOS and stop tokens. Move only; a moved-from generation may only be destroyed or assigned to: its
// functions then give StopReason::error or invalid_argument.
//
// The session must outlive the generation; neither of them may be destroyed by the session's executor while
// the generation takes a step or is saved. Calls from there are refused with an error and change nothing.
// An exception of the executor passes through the functions below; the generation can then go on, to the
// same text.
class Generation {
 public:
  // Generates one token; false once generation has stopped. After false, piece() still may hold text
  // that had been kept back (the start of a stop string that did not come).
  bool next();

  // Generates one token in slices of time (Session::advance): `working` until a token is there or
  // generation has stopped, which stop_reason() tells then. Empty pieces are no sign of either.
  Progress advance(std::chrono::nanoseconds budget);

  // Generate one token each for several generations whose sessions are of one open(): their tokens go
  // through the model together, as in Session::evaluate_all(), and each gets what it gets alone. Those
  // that have stopped are left alone. next_all() returns false once all have stopped; advance_all()
  // works in slices of time and is `done` when each has a token or has stopped. What goes wrong with one
  // of them, its stop_reason() and error() tell.
  // Errors: invalid_argument if sessions are not of one open(), or two generations of the same session.
  static Result<bool> next_all(Span<Generation* const> generations);
  static Result<Progress> advance_all(Span<Generation* const> generations,
                                      std::chrono::nanoseconds budget);

  // Changes how tokens are chosen, from the next one on. Random numbers go on as they were unless the
  // seed is another one, which begins a new stream of them. Nothing changes on error.
  // Errors: as Sampler::create().
  Status set_sampling(const SamplingOptions& sampling);

  // Writes the session, as Session::save() does, and then the generation: options, random numbers, the
  // place in the grammar, and text held back. Session::load_generation() goes on with it. What piece()
  // shows now counts as seen. Errors: io if `write` fails; invalid_argument if generation has stopped
  // with an error; unsupported for more than 2^28 tokens since the seed, or 2^24 of logit_bias.
  Status save(ByteWriter write) const;

  StopReason stop_reason() const noexcept;
  // Of the last token: its text, or what it completes of the text; whole UTF-8 characters, possibly
  // none. Valid until the next call.
  std::string_view piece() const noexcept;
  Token token() const noexcept;
  // Natural logarithm of the token's probability under the model, before any sampling option.
  double log_probability() const noexcept;
  // What went wrong, if stop_reason() is error or cancelled, or if the last call was refused.
  const Error& error() const noexcept;

  // Input iterator over the pieces that are not empty.
  class Iterator {
   public:
    using value_type = std::string_view;
    using reference = std::string_view;
    using pointer = const std::string_view*;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;

    Iterator() noexcept = default;
    explicit Iterator(Generation* generation) : generation_(generation) { advance(); }
    std::string_view operator*() const noexcept { return generation_->piece(); }
    Iterator& operator++() {
      advance();
      return *this;
    }
    void operator++(int) { advance(); }
    friend bool operator==(const Iterator& a, const Iterator& b) noexcept {
      return a.generation_ == b.generation_;
    }
    friend bool operator!=(const Iterator& a, const Iterator& b) noexcept { return !(a == b); }

   private:
    void advance() {
      while (generation_ != nullptr && !ended_) {
        ended_ = !generation_->next();
        if (!generation_->piece().empty()) return;  // also after the end: what had been kept back
      }
      generation_ = nullptr;
    }
    Generation* generation_ = nullptr;
    bool ended_ = false;
  };

  Iterator begin() { return Iterator(this); }
  Iterator end() noexcept { return Iterator(); }

  Generation(Generation&&) noexcept;
  Generation& operator=(Generation&&) noexcept;
  ~Generation();

 private:
  friend class Session;
  struct Impl;
  Generation() noexcept;
  Status make(Session& session, const GenerateOptions& options);
  void stop(StopReason reason);
  void fail(const Error& error);
  void refuse(const Error& error);
  bool begin_step();
  void choose();
  static Result<Progress> step(Span<Generation* const> generations,
                               const std::chrono::nanoseconds* budget, const char* function);

  detail::ResourcePtr<Impl> impl_;  // null if it could not be made
  StopReason reason_ = StopReason::none;
  Error error_;
};

}  // namespace mixtral

#endif  // MIXTRAL_GENERATION_HPP_
