#ifndef MIXTRAL_IMPL_SESSION_HPP_
#define MIXTRAL_IMPL_SESSION_HPP_

#include <algorithm>
#include <atomic>
#include <chrono>

#include "mixtral/impl/model.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/network/forward_pass.hpp"
#include "mixtral/network/kv_cache.hpp"
#include "mixtral/session.hpp"

namespace mixtral {

struct Session::Impl {
  explicit Impl(const Model& shared) : model(shared) {}

  Model model;
  Executor executor;
  std::uint32_t context = 0;
  std::uint32_t batch = 0;
  BlockFormat kv_format = BlockFormat::f16;

  detail::Slab slab;
  detail::KvCache cache;
  detail::ForwardPass pass;
  Token* history = nullptr;       // [context]
  std::uint32_t n_tokens = 0;     // in the history
  std::uint32_t n_evaluated = 0;  // of them in the KV cache
  bool has_logits = false;
  Turn turn = Turn::start;
  std::uint32_t answer_begin = 0;  // where the answer begins, after a question
  std::atomic<bool> cancelled{false};

  const detail::ModelData& data() const noexcept { return *model.data_; }
  std::pmr::memory_resource* resource() const noexcept { return data().resource; }

  // Lays out all memory; with an empty slab this only measures.
  void take(detail::Slab& from) {
    history = from.take<Token>(context);
    const std::uint32_t window = data().config.sliding_window;
    // With a window, a token's and those of the rest of its pass.
    cache.take(from, data().config, kv_format, context,
               window == 0 ? context : std::size_t{window} + batch - 1);
    pass.take(from, data(), batch);
  }

  // Room for n more tokens?
  Status check_room(std::size_t n) const {
    if (n <= context - n_tokens) return {};
    return Error(ErrorCode::context_full,
                 "%zu more tokens do not fit: the session holds %u of %u; open it with a larger "
                 "context or append less",
                 n, static_cast<unsigned>(n_tokens), static_cast<unsigned>(context));
  }

  Status append(Span<const Token> tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (!model.tokenizer().contains(tokens[i])) {
        return Error(ErrorCode::invalid_argument,
                     "token %d at index %zu; the vocabulary has 0 to %zu",
                     static_cast<int>(tokens[i]), i, model.tokenizer().size() - 1);
      }
    }
    MIXTRAL_RETURN_IF_ERROR(check_room(tokens.size()));
    if (tokens.empty()) return {};
    std::copy(tokens.begin(), tokens.end(), history + n_tokens);
    n_tokens += static_cast<std::uint32_t>(tokens.size());
    has_logits = false;
    return {};
  }

  // One pass over up to `batch` tokens; false if cancelled, then nothing has changed.
  bool run_pass(Observer* observer) {
    const std::uint32_t n = std::min(batch, n_tokens - n_evaluated);
    const bool all_logits = observer != nullptr && observer->wants_all_logits();
    detail::PassRow* rows = pass.rows();
    for (std::uint32_t i = 0; i < n; ++i) {
      const std::uint32_t position = n_evaluated + i;
      rows[i] = {history[position], position, &cache, all_logits || position + 1 == n_tokens};
    }
    const auto run_chunk = [this](std::size_t i) {
      if (!cancelled.load(std::memory_order_relaxed)) pass.run_chunk(i);
    };
    const bool timed = observer != nullptr && observer->wants_times();
    using Clock = std::chrono::steady_clock;
    for (pass.begin(n, observer); !pass.done(); pass.next_stage()) {
      const Clock::time_point start = timed ? Clock::now() : Clock::time_point();
      executor.run(pass.n_chunks(), Chunks(run_chunk));
      if (cancelled.load()) return false;
      if (timed) {
        observer->on_time(pass.part(), pass.layer_number(),
                          std::chrono::duration<double>(Clock::now() - start).count());
      }
    }
    n_evaluated += n;
    return true;
  }

  Status evaluate(Observer* observer) {
    if (n_tokens == 0) {
      return Error(ErrorCode::invalid_argument,
                   "nothing to evaluate: append text, tokens or a chat first");
    }
    while (!cancelled.load() && n_evaluated < n_tokens && run_pass(observer)) {
      has_logits = n_evaluated == n_tokens;
    }
    // A request that came too late for the last pass, or before a call with nothing to do, counts too:
    // it must not stay for a call that nobody meant.
    if (cancelled.exchange(false)) {
      return Error(ErrorCode::cancelled, "cancelled after %u of %u tokens; evaluate again to go on",
                   static_cast<unsigned>(n_evaluated), static_cast<unsigned>(n_tokens));
    }
    return {};
  }
};

namespace detail {

inline Status check_kv_format(const Config& config, BlockFormat format) {
  const bool known = format == BlockFormat::f32 || format == BlockFormat::f16 ||
                     format == BlockFormat::bf16 || format == BlockFormat::q8_0;
  const BlockFormatInfo* info = block_format_info(format);
  if (!known || info == nullptr) {
    return Error(ErrorCode::invalid_argument,
                 "a key/value cache of %s; choose f16, f32, bf16 or q8_0",
                 info == nullptr ? "an unknown format" : info->name);
  }
  if (config.head_size % info->block_size != 0) {
    return Error(ErrorCode::invalid_argument,
                 "a key/value cache of %s needs heads of a multiple of %zu; this model's have %u",
                 info->name, info->block_size, static_cast<unsigned>(config.head_size));
  }
  return {};
}

inline Status resolve(const Model& model, const SessionOptions& options, std::uint32_t& context,
                      std::uint32_t& batch) {
  MIXTRAL_RETURN_IF_ERROR(check_kv_format(model.config(), options.kv_format));
  const std::uint32_t longest = model.config().context_length;
  context = options.context != 0 ? options.context : std::min(longest, 4096u);
  if (context > longest) {
    return Error(ErrorCode::invalid_argument,
                 "a context of %u tokens; the model was made for %u at most",
                 static_cast<unsigned>(context), static_cast<unsigned>(longest));
  }
  if (options.batch == 0 || options.batch > (1u << 20)) {
    return Error(ErrorCode::invalid_argument, "a batch of %u tokens; expected 1 to %u",
                 static_cast<unsigned>(options.batch), 1u << 20);
  }
  batch = std::min(options.batch, context);
  return {};
}

}  // namespace detail

Session::Session(detail::ResourcePtr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<std::uint64_t> Session::memory_needed(const Model& model, const SessionOptions& options) {
  Impl measure(model);
  MIXTRAL_RETURN_IF_ERROR(detail::resolve(model, options, measure.context, measure.batch));
  measure.kv_format = options.kv_format;
  detail::Slab slab;
  measure.take(slab);
  return std::uint64_t{slab.used()} + sizeof(Impl);
}

Result<Session> Session::open(const Model& model, const SessionOptions& options) {
  std::uint32_t context;
  std::uint32_t batch;
  MIXTRAL_RETURN_IF_ERROR(detail::resolve(model, options, context, batch));
  return detail::guard_memory("opening a session", [&]() -> Result<Session> {
    auto impl = detail::make_resource_ptr<Impl>(model.data_->resource, model);
    impl->executor = options.executor;
    impl->context = context;
    impl->batch = batch;
    impl->kv_format = options.kv_format;
    detail::Slab measure;
    impl->take(measure);
    if (!impl->slab.reserve(model.data_->resource, measure.used())) {
      return Error(ErrorCode::out_of_memory,
                   "no memory for a session of %u tokens, which takes %zu bytes; use a smaller "
                   "context or batch",
                   static_cast<unsigned>(context), measure.used());
    }
    impl->take(impl->slab);
    return Session(std::move(impl));
  });
}

Status Session::append(std::string_view text) {
  return detail::guard_memory("appending text", [&]() -> Status {
    const bool at_start = impl_->n_tokens == 0;
    EncodeOptions options;
    options.bos = at_start && model().tokenizer().add_bos();
    options.leading_space = at_start;
    std::pmr::vector<Token> tokens(impl_->resource());
    MIXTRAL_RETURN_IF_ERROR(model().tokenizer().encode(text, options, tokens));
    return impl_->append(Span<const Token>(tokens.data(), tokens.size()));
  });
}

Status Session::append(Span<const Token> tokens) { return impl_->append(tokens); }

Status Session::append(Token token) { return impl_->append(Span<const Token>(&token, 1)); }

Status Session::append_chat(Span<const Message> messages, const ChatOptions& options) {
  return detail::guard_memory("appending a chat", [&]() -> Status {
    Turn turn = impl_->turn;
    // A session that began with plain text has its BOS already.
    if (turn == Turn::start && impl_->n_tokens != 0) turn = Turn::question;
    // An answer that was ended by the model itself, with EOS appended by the host, needs no second.
    if (turn == Turn::answer && impl_->n_tokens != 0 &&
        impl_->history[impl_->n_tokens - 1] == model().tokenizer().eos()) {
      turn = !messages.empty() && messages[0].role == "tool" ? Turn::tool : Turn::question;
    }
    std::pmr::vector<Token> tokens(impl_->resource());
    MIXTRAL_RETURN_IF_ERROR(
        encode_chat(model().tokenizer(), model().chat_format(), messages, options, turn, tokens));
    MIXTRAL_RETURN_IF_ERROR(impl_->append(Span<const Token>(tokens.data(), tokens.size())));
    impl_->turn = turn;
    const std::string_view last = messages[messages.size() - 1].role;
    if (last == "user" || last == "tool") impl_->answer_begin = impl_->n_tokens;
    return {};
  });
}

Status Session::evaluate(Observer* observer) { return impl_->evaluate(observer); }

bool Session::has_logits() const noexcept { return impl_->has_logits; }

Logits Session::logits() const noexcept {
  return Logits(impl_->pass.logits(), model().config().vocab_size);
}

double Session::log_probability(Token token) const {
  return mixtral::log_probability(
      Span<const float>(impl_->pass.logits(), model().config().vocab_size), token);
}

void Session::cancel() noexcept { impl_->cancelled.store(true); }

void Session::clear() noexcept {
  impl_->n_tokens = 0;
  impl_->n_evaluated = 0;
  impl_->has_logits = false;
  impl_->turn = Turn::start;
  impl_->answer_begin = 0;
}

Span<const Token> Session::tokens() const noexcept {
  return Span<const Token>(impl_->history, impl_->n_tokens);
}
std::uint32_t Session::context() const noexcept { return impl_->context; }
std::uint32_t Session::remaining() const noexcept { return impl_->context - impl_->n_tokens; }
const Model& Session::model() const noexcept { return impl_->model; }

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_SESSION_HPP_
