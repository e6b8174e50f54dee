// One conversation with a model: its past, and the logits for what comes next.
#ifndef MIXTRAL_SESSION_HPP_
#define MIXTRAL_SESSION_HPP_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory_resource>
#include <string_view>
#include <type_traits>

#include "mixtral/block_format.hpp"
#include "mixtral/byte_stream.hpp"
#include "mixtral/chat.hpp"
#include "mixtral/error.hpp"
#include "mixtral/executor.hpp"
#include "mixtral/generation.hpp"
#include "mixtral/grammar.hpp"
#include "mixtral/model.hpp"
#include "mixtral/observer.hpp"
#include "mixtral/progress.hpp"
#include "mixtral/resource_ptr.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

// What appending and generating do when the context has no room.
enum class WhenFull {
  stop,           // ErrorCode::context_full, StopReason::context_full
  forget_oldest,  // Session::forget_oldest() makes room, for half of the context if it can
};

struct SessionOptions {
  // Tokens that the session can hold; 0 means the model's context length, 4096 at most.
  std::uint32_t context = 0;
  // Tokens evaluated in one pass over the weights; more is faster on long prompts and takes more
  // memory.
  std::uint32_t batch = 512;
  // How keys and values are kept: f16, f32, bf16, or q8_0, which takes about half of f16's memory and
  // needs a head size divisible by 32.
  BlockFormat kv_format = BlockFormat::f16;
  WhenFull when_full = WhenFull::stop;
  // How many tokens from the first on are never forgotten: BOS and what the host set out with.
  std::uint32_t keep_first = 0;
  // How many sessions, this one and its forks, share the memory that is taken for them.
  std::uint32_t branches = 1;
  // How many tokens' keys and values they hold together, what forks have in common counted once; 0 means
  // enough for all of them to be full. In whole pages of 64, and one page more for each fork.
  std::uint32_t kv_tokens = 0;
  // Threads to use; the default runs everything on the calling thread.
  Executor executor;
};

// Views the logits, and converts to other views of a pointer and a length, whose headers this one thus
// need not include: `Eigen::Map<const Eigen::VectorXf> x = session.logits()`, std::span<const float>.
class Logits : public Span<const float> {
 public:
  using Span<const float>::Span;
  template <class View,
            class = std::enable_if_t<std::is_constructible_v<View, const float*, std::ptrdiff_t>>>
  operator View() const {
    return View(data(), static_cast<std::ptrdiff_t>(size()));
  }
};

// Not for concurrent use, except cancel(); a session and its forks together count as one. Move only; a
// moved-from session may only be destroyed or assigned to: its functions that give a Status or Result
// then give invalid_argument. Keeps the model alive. All memory of the session's own is taken in open(),
// but for a few bytes of each fork.
//
// What an observer, an executor and the callbacks of save() and load() may call is told in observer.hpp;
// other calls from there give invalid_argument. An exception that one of them throws passes through the
// call, and the session is then as after cancel().
class Session {
 public:
  // Errors: invalid_argument (a context longer than the model's, a cache format that is none),
  // out_of_memory.
  static Result<Session> open(const Model& model, const SessionOptions& options = {});

  // The bytes that open() and all forks take from the memory resource for these options: the lifetime
  // maximum without generation or text, which need a little of their own.
  // Errors: invalid_argument.
  static Result<std::uint64_t> memory_needed(const Model& model,
                                             const SessionOptions& options = {});

  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // These put tokens at the end; evaluate() or generate() computes them. Nothing is appended on error.
  // Text at the start of a session gets BOS, if the vocabulary says so, and its leading space; later
  // text is taken as it stands. Errors: context_full, invalid_argument, out_of_memory.
  Status append(std::string_view text);
  Status append(Span<const Token> tokens);
  Status append(Token token);
  // A conversation, or its next turns; see chat.hpp.
  Status append_chat(Span<const Message> messages, const ChatOptions& options = {});
  Status append_chat(std::initializer_list<Message> messages, const ChatOptions& options = {}) {
    return append_chat(Span<const Message>(messages.begin(), messages.size()), options);
  }

  // Computes all appended tokens. After success logits() follow the last token.
  // Errors: cancelled, then whole batches done so far remain and the call can be repeated;
  // invalid_argument if the session is empty; context_full if forks have taken all room for keys and
  // values; bad_format, naming the token's position and the layer, if numbers become infinite or NaN, as
  // damaged weights make them.
  Status evaluate(Observer* observer = nullptr);

  // Evaluates in slices of time, for a host that has other things to do: works for about `budget`, less
  // if the next piece of work would not fit, then returns and goes on at the next call. The result is
  // the same, to the bit. Pieces are small (32 rows of a matrix): a slice ends late by less than one
  // of them, and does one even if the budget is too short, zero or negative. Any budget is allowed; one of
  // more than a century counts as a century. Errors: as evaluate().
  Result<Progress> advance(std::chrono::nanoseconds budget, Observer* observer = nullptr);

  // Evaluates several sessions of one open() at once: their tokens go through the model together, so
  // that weights are read once for all of them, and each gets the results that it gets alone, to the bit.
  // cancel() of any of them counts. Errors: as evaluate(); invalid_argument if they are not of one open().
  static Status evaluate_all(Span<Session* const> sessions, Observer* observer = nullptr);
  static Result<Progress> advance_all(Span<Session* const> sessions,
                                      std::chrono::nanoseconds budget,
                                      Observer* observer = nullptr);

  // A session with the same past, which they share as far as it is the same: only a page of 64 tokens
  // is copied when both go on from its middle. Neither changes what the other sees. A fork after
  // clear() is a new conversation in the same memory.
  // Errors: out_of_memory if all of SessionOptions::branches are in use.
  Result<Session> fork() const;

  // Goes back to the first n tokens; what was computed for them stays.
  // Errors: invalid_argument if there are fewer.
  Status rewind(std::uint32_t n);

  // Forgets tokens after the first `keep_first`, n or more: whole pages of 64, or all of them. What came
  // later stays and moves up; it was computed when the forgotten ones were there, and is not computed
  // again. Its cost is that of keep_first positions. Returns how many went.
  // Errors: invalid_argument if there are not so many; context_full if forks have taken all room for
  // keys and values.
  Result<std::uint32_t> forget_oldest(std::uint32_t keep_first, std::uint32_t n);

  // Makes these the session's tokens, as after clear() and append(); what they have in common with the
  // tokens before, from the beginning on, is not computed again. Returns how many that are. Nothing
  // changes on error. Errors: as append().
  Result<std::uint32_t> replace(Span<const Token> tokens);
  Result<std::uint32_t> replace(std::string_view text);

  // Writes all of it, with what was computed: about as many bytes as its tokens take for keys and
  // values. Errors: io if `write` fails.
  Status save(ByteWriter write) const;

  // Makes this session what the saved one was, or what the session of a saved generation was. Nothing
  // changes on errors that the first bytes show: bad_format (no saved session, of another version, or with a
  // damaged header), invalid_argument (of another model or another kv_format), context_full (longer than the
  // context). After others it is empty: bad_format (damaged), io (`read` fails), context_full (forks have
  // taken all room for keys and values).
  Status load(ByteReader read);

  // True if logits() may be called: something was evaluated and nothing appended since.
  bool has_logits() const noexcept;
  // vocab_size unnormalised log-probabilities of the next token; valid until this session's next
  // evaluation. Empty unless has_logits().
  Logits logits() const noexcept;
  // ln p(token) as the next token: minus infinity for a token that the vocabulary does not have, and
  // unless has_logits().
  double log_probability(Token token) const;

  // Text as it comes: `for (std::string_view piece : session.generate(options))`. The session must
  // outlive the generation. See generation.hpp.
  Generation generate(const GenerateOptions& options = {});

  // Goes on with a generation that Generation::save() wrote: makes this session what that one's was and
  // gives the generation, whose further text is what it would have been. `grammar` is the grammar of its
  // options, compiled anew from the same text, if it had one; all other options were saved. Errors: those
  // of load(); invalid_argument if the grammar is another. After errors of what follows the session in
  // the data, the session is empty.
  Result<Generation> load_generation(ByteReader read, const Grammar& grammar = {});

  // Ends what this session is doing, soon, from any thread: the generations that were begun before this
  // call and have not ended stop with StopReason::cancelled, and the evaluation of tokens that were
  // appended before it, in progress or not yet begun, gives ErrorCode::cancelled, once. What the host
  // appends or generates after it is not concerned, and if there is nothing to end, nothing is. A change
  // of the session's tokens by the host takes back what no evaluation has told yet.
  // So a host that hands work to another thread loses no cancel() if that thread appends the text or
  // makes the generation first, then looks whether the work is still wanted, and then evaluates.
  void cancel() noexcept;

  // Forgets everything. Does nothing when called from an observer, an executor or a callback of save()
  // or load().
  void clear() noexcept;

  Span<const Token> tokens() const noexcept;  // all that was appended or generated
  std::uint32_t context() const noexcept;     // how many tokens fit
  std::uint32_t remaining() const noexcept;   // how many more fit
  const Model& model() const noexcept;

 private:
  friend class Generation;
  struct Impl;
  explicit Session(detail::ResourcePtr<Impl> impl) noexcept;
  detail::ResourcePtr<Impl> impl_;
};

}  // namespace mixtral

#endif  // MIXTRAL_SESSION_HPP_
