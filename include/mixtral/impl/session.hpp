#ifndef MIXTRAL_IMPL_SESSION_HPP_
#define MIXTRAL_IMPL_SESSION_HPP_

#include <algorithm>

#include "mixtral/impl/snapshot.hpp"
#include "mixtral/impl/workspace.hpp"
#include "mixtral/session.hpp"

namespace mixtral {

namespace detail {

// A call in progress of a workspace, which it deletes if the last session was destroyed meanwhile.
class WorkspaceCall {
 public:
  explicit WorkspaceCall(Workspace* work) noexcept : work_(work) { work->begin_call(); }
  WorkspaceCall(const WorkspaceCall&) = delete;
  WorkspaceCall& operator=(const WorkspaceCall&) = delete;
  ~WorkspaceCall() {
    std::pmr::memory_resource* resource = work_->data().resource;
    if (work_->end_call()) ResourceDelete<Workspace>{resource}(work_);
  }

 private:
  Workspace* work_;
};

}  // namespace detail

struct Session::Impl {
  Impl(detail::Workspace* shared, detail::Branch* own) : work(shared), branch(own) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    std::pmr::memory_resource* memory = resource();
    if (work->give_back(*branch)) detail::ResourceDelete<detail::Workspace>{memory}(work);
  }

  detail::Workspace* work;  // shared with forks; the last one deletes it
  detail::Branch* branch;

  // May a function of this name be called on the session now?
  static Status check_usable(const Impl* session, const char* function) {
    if (session == nullptr) {
      return Error(ErrorCode::invalid_argument, "%s() of a session that was moved from", function);
    }
    if (!session->work->in_call()) return {};
    return Error(
        ErrorCode::invalid_argument,
        "%s() during an evaluation, save or load of the session or one of its forks: an "
        "observer, executor or stream may only cancel and read it (see observer.hpp); call "
        "it after that returned",
        function);
  }

  const detail::ModelData& data() const noexcept { return work->data(); }
  std::pmr::memory_resource* resource() const noexcept { return data().resource; }
  const Tokenizer& tokenizer() const noexcept { return work->model().tokenizer(); }
  std::uint32_t context() const noexcept { return work->sizes().context; }
  Span<const Token> tokens() const noexcept {
    return Span<const Token>(branch->history, branch->n_tokens);
  }
  bool has_logits() const noexcept { return branch->has_logits; }
  Span<const float> logits() const noexcept {
    return Span<const float>(branch->logits, data().config.vocab_size);
  }

  // What a chat goes on with after each token is noted with it, and whether an answer begins.
  static constexpr std::uint8_t kAnswerBegins = 0x80;
  Turn turn() const noexcept {
    if (branch->n_tokens == 0) return Turn::start;
    return static_cast<Turn>(branch->turns[branch->n_tokens - 1] & ~kAnswerBegins);
  }
  bool answer_begins() const noexcept {
    return branch->n_tokens != 0 && (branch->turns[branch->n_tokens - 1] & kAnswerBegins) != 0;
  }

  // Tokens of the vocabulary, no more than fit in `room`?
  Status check(Span<const Token> tokens, std::uint32_t room) const {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (!tokenizer().contains(tokens[i])) {
        return Error(ErrorCode::invalid_argument,
                     "token %d at index %zu; the vocabulary has 0 to %zu",
                     static_cast<int>(tokens[i]), i, tokenizer().size() - 1);
      }
    }
    if (tokens.size() <= room) return {};
    return Error(ErrorCode::context_full,
                 "%zu more tokens do not fit: the session holds %u of %u; open it with a larger "
                 "context or append less",
                 tokens.size(), static_cast<unsigned>(context() - room),
                 static_cast<unsigned>(context()));
  }

  // What the host appends is new work; what a generation appends is not.
  Status append_work(Span<const Token> tokens) {
    MIXTRAL_RETURN_IF_ERROR(append(tokens));
    if (!tokens.empty()) branch->begin_work();
    return {};
  }

  Status append(Span<const Token> tokens) {
    const std::uint32_t room = context() - branch->n_tokens;
    const Turn turn_after = turn();
    if (tokens.size() <= room || work->sizes().when_full == WhenFull::stop) {
      MIXTRAL_RETURN_IF_ERROR(check(tokens, room));
    } else {
      const std::uint32_t kept = std::min(work->sizes().keep_first, branch->n_tokens);
      const std::uint32_t others = branch->n_tokens - kept;
      MIXTRAL_RETURN_IF_ERROR(check(tokens, context() - kept));
      const auto lacking = static_cast<std::uint32_t>(tokens.size()) - room;
      MIXTRAL_RETURN_IF_ERROR(forget_oldest(kept, std::max(lacking, others / 2)));
    }
    put(tokens, turn_after);
    return {};
  }

  Result<std::uint32_t> forget_oldest(std::uint32_t keep_first, std::uint32_t n) {
    const std::uint32_t most = branch->n_tokens - std::min(branch->n_tokens, keep_first);
    if (n > most) {
      return Error(ErrorCode::invalid_argument,
                   "forgetting %u tokens after the first %u; the session has %u",
                   static_cast<unsigned>(n), static_cast<unsigned>(keep_first),
                   static_cast<unsigned>(branch->n_tokens));
    }
    const std::uint64_t whole = detail::KvPages::n_needed(n) * simd::kPagePositions;
    const auto gone = static_cast<std::uint32_t>(std::min<std::uint64_t>(whole, most));
    if (gone == 0 || work->take_out(*branch, keep_first, gone)) return gone;
    return Error(
        ErrorCode::context_full,
        "no room to forget: the first %u tokens have to move, but %zu of %zu pages for keys "
        "and values are free; open the session with more kv_tokens",
        static_cast<unsigned>(keep_first), work->pages().n_free(), work->pages().n_pages());
  }

  // The same for tokens that were checked.
  void put(Span<const Token> tokens, Turn turn) noexcept {
    if (tokens.empty()) return;
    const auto mark = static_cast<std::uint8_t>(turn);
    std::copy(tokens.begin(), tokens.end(), branch->history + branch->n_tokens);
    std::fill_n(branch->turns + branch->n_tokens, tokens.size(), mark);
    branch->n_tokens += static_cast<std::uint32_t>(tokens.size());
    branch->has_logits = false;
  }

  Result<std::uint32_t> replace(Span<const Token> tokens) {
    MIXTRAL_RETURN_IF_ERROR(check(tokens, context()));
    const Span<const Token> now = this->tokens();
    const std::size_t most = std::min(tokens.size(), now.size());
    const auto differ = std::mismatch(tokens.begin(), tokens.begin() + most, now.begin()).first;
    const auto kept = static_cast<std::uint32_t>(differ - tokens.begin());
    const bool changes = kept != tokens.size() || kept != branch->n_tokens;
    work->rewind(*branch, kept);
    put(tokens.subspan(kept, tokens.size() - kept), turn());
    if (changes) branch->begin_work();
    return kept;
  }

  // Text as tokens; at the start of a session with BOS, if the vocabulary says so, and leading space.
  Status encode(std::string_view text, bool at_start, std::pmr::vector<Token>& tokens) const {
    EncodeOptions options;
    options.bos = at_start && tokenizer().add_bos();
    options.leading_space = at_start;
    return tokenizer().encode(text, options, tokens);
  }

  // `checksum` gets that of the data, for what is written after them.
  Status save(ByteWriter write, std::uint64_t& checksum) const {
    detail::SnapshotHeader header{};
    std::memcpy(header.magic, header.kMagic, sizeof header.magic);
    header.version = header.kVersion;
    header.kv_format = static_cast<std::uint32_t>(work->sizes().kv_format);
    header.model = data().fingerprint();
    header.rotary_offset = branch->rotary_offset;
    header.n_tokens = branch->n_tokens;
    header.n_evaluated = branch->n_evaluated;
    header.first_page = static_cast<std::uint32_t>(branch->past.first() / simd::kPagePositions);
    header.has_logits = branch->has_logits ? 1 : 0;
    header.checksum = header.sum();
    bool good = write(&header, sizeof header);
    if (good) {
      detail::SnapshotWriter out(write);
      out.bytes(branch->history, header.n_tokens * sizeof(Token));
      out.bytes(branch->turns, header.n_tokens);
      branch->past.for_each_run(header.n_evaluated,
                                [&](const void* rows, std::size_t size) { out.bytes(rows, size); });
      if (branch->has_logits) out.bytes(branch->logits, logits().size() * sizeof(float));
      checksum = out.put_checksum();
      good = out.good();
    }
    if (good) return {};
    return Error(ErrorCode::io, "saving a session of %u tokens: a write failed",
                 static_cast<unsigned>(header.n_tokens));
  }

  Status load(ByteReader read, std::uint64_t& checksum) {
    const Error failed(ErrorCode::io,
                       "loading a session: a read failed, or the data end too early");
    const Error damaged(ErrorCode::bad_format,
                        "loading a session: the data are damaged; load another copy");
    detail::SnapshotHeader header;
    if (!read(&header, sizeof header)) return failed;
    MIXTRAL_RETURN_IF_ERROR(check(header));
    work->rewind(*branch, 0);
    detail::KvPast& past = branch->past;
    const std::size_t first = std::size_t{header.first_page} * simd::kPagePositions;
    const std::size_t end = header.n_evaluated;
    if (past.n_pages_to_take(first, end) > work->pages().n_free()) {
      return Error(ErrorCode::context_full,
                   "loading a session: no room for keys and values of %zu tokens: %zu of %zu pages "
                   "are free; open the session with more kv_tokens, or let forks of it go",
                   end - first, work->pages().n_free(), work->pages().n_pages());
    }
    struct Undo {  // unless all was read, also if `read` throws
      detail::KvPast* past;
      ~Undo() {
        if (past != nullptr) past->drop_from(0);
      }
    } undo{&past};
    past.begin_at(first);
    past.prepare(first, end);
    detail::SnapshotReader in(read);
    in.bytes(branch->history, header.n_tokens * sizeof(Token));
    in.bytes(branch->turns, header.n_tokens);
    past.for_each_run(end, [&](void* rows, std::size_t size) { in.bytes(rows, size); });
    if (header.has_logits != 0) in.bytes(branch->logits, logits().size() * sizeof(float));
    const bool good = in.checksum_matches();
    checksum = in.checksum();
    if (!good || !is_valid(header)) return in.is_read() ? damaged : failed;
    undo.past = nullptr;
    branch->n_tokens = header.n_tokens;
    branch->n_evaluated = header.n_evaluated;
    branch->rotary_offset = header.rotary_offset;
    branch->has_logits = header.has_logits != 0;
    branch->begin_work();
    return {};
  }

  // May this be loaded?
  Status check(const detail::SnapshotHeader& header) const {
    if (std::memcmp(header.magic, header.kMagic, sizeof header.magic) != 0) {
      return Error(ErrorCode::bad_format, "loading a session: the data are no saved session");
    }
    if (header.version != header.kVersion) {
      return Error(ErrorCode::bad_format,
                   "loading a session: it is of version %u, this library reads version %u",
                   static_cast<unsigned>(header.version), static_cast<unsigned>(header.kVersion));
    }
    if (header.checksum != header.sum() || header.n_evaluated > header.n_tokens ||
        header.first_page > detail::KvPages::n_needed(header.n_evaluated) ||
        header.rotary_offset > header.kMaxRotaryOffset || header.has_logits > 1 ||
        (header.has_logits != 0 &&
         (header.n_evaluated != header.n_tokens || header.n_tokens == 0))) {
      return Error(ErrorCode::bad_format,
                   "loading a session: its header is damaged; load another copy");
    }
    if (header.model != data().fingerprint()) {
      return Error(ErrorCode::invalid_argument,
                   "loading a session: it was saved with another model; open the very file that it "
                   "was made with");
    }
    if (header.kv_format != static_cast<std::uint32_t>(work->sizes().kv_format)) {
      const auto format = static_cast<BlockFormat>(header.kv_format);
      const BlockFormatInfo* info = block_format_info(format);
      return Error(ErrorCode::invalid_argument,
                   "loading a session: its keys and values are %s; open the session with that "
                   "kv_format",
                   info == nullptr ? "of an unknown format" : info->name);
    }
    if (header.n_tokens > context()) {
      return Error(ErrorCode::context_full,
                   "loading a session of %u tokens into one of %u; open it with a larger context",
                   static_cast<unsigned>(header.n_tokens), static_cast<unsigned>(context()));
    }
    return {};
  }

  // Are the tokens and turns that were read some that can be?
  bool is_valid(const detail::SnapshotHeader& header) const {
    for (std::uint32_t i = 0; i < header.n_tokens; ++i) {
      if (!tokenizer().contains(branch->history[i])) return false;
      if ((branch->turns[i] & ~kAnswerBegins) > static_cast<int>(Turn::tool)) return false;
    }
    return true;
  }

  static Error nothing_to_evaluate() noexcept {
    return Error(ErrorCode::invalid_argument,
                 "nothing to evaluate: append text, tokens or a chat first");
  }
  static Error nothing_to_evaluate(std::size_t session) noexcept {
    return Error(ErrorCode::invalid_argument,
                 "session %zu has nothing to evaluate: append text, tokens or a chat first",
                 session);
  }

  // Evaluates what is pending in the sessions, until `deadline` unless that is null. A session may be
  // given several times.
  static Result<Progress> advance(Span<Session* const> sessions, const char* function,
                                  const detail::Workspace::Clock::time_point* deadline,
                                  Observer* observer) {
    if (sessions.empty()) return Progress(Progress::done);
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      if (sessions[i] == nullptr) {
        return Error(ErrorCode::invalid_argument, "%s() of session %zu, which is null", function,
                     i);
      }
      MIXTRAL_RETURN_IF_ERROR(check_usable(sessions[i]->impl_.get(), function));
    }
    detail::Workspace& work = *sessions[0]->impl_->work;
    const Result<std::size_t> n = collect(work, sessions);
    MIXTRAL_RETURN_IF_ERROR(n);
    return advance(work, *n, deadline, observer);
  }

  // Puts the branches of `sessions` into work.wanted(), each once, and returns how many they are.
  static Result<std::size_t> collect(detail::Workspace& work, Span<Session* const> sessions) {
    detail::WantedBranches wanted(work);
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      Impl& session = *sessions[i]->impl_;
      if (session.work != &work) {
        return Error(ErrorCode::invalid_argument,
                     "session %zu has memory of its own: sessions evaluated together must be forks "
                     "of one that was opened with enough branches",
                     i);
      }
      if (session.branch->n_tokens == 0) {
        return sessions.size() == 1 ? nothing_to_evaluate() : nothing_to_evaluate(i);
      }
      static_cast<void>(wanted.add(*session.branch));
    }
    return wanted.n();
  }

  // The first n of work.wanted(). A session may be gone when this returns, if a callback destroyed it.
  static Result<Progress> advance(detail::Workspace& work, std::size_t n,
                                  const detail::Workspace::Clock::time_point* deadline,
                                  Observer* observer) {
    const detail::WorkspaceCall call(&work);
    const Result<bool> done = work.advance(n, deadline, observer);
    MIXTRAL_RETURN_IF_ERROR(done);
    const Progress progress = work.progress();
    return Progress(*done ? Progress::done : Progress::working, progress.n_done, progress.n_total);
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

// The sizes that the options ask for, or why they cannot be had.
inline Result<WorkspaceSizes> resolve(const Model& model, const SessionOptions& options) {
  const Config& config = model.config();
  MIXTRAL_RETURN_IF_ERROR(check_kv_format(config, options.kv_format));
  WorkspaceSizes sizes;
  const std::uint32_t longest = config.context_length;
  sizes.context = options.context != 0 ? options.context : std::min(longest, 4096u);
  if (sizes.context > longest) {
    return Error(ErrorCode::invalid_argument,
                 "a context of %u tokens; the model was made for %u at most",
                 static_cast<unsigned>(sizes.context), static_cast<unsigned>(longest));
  }
  if (options.batch == 0 || options.batch > (1u << 20)) {
    return Error(ErrorCode::invalid_argument, "a batch of %u tokens; expected 1 to %u",
                 static_cast<unsigned>(options.batch), 1u << 20);
  }
  constexpr std::uint32_t kMostBranches = 1u << 16;
  if (options.branches == 0 || options.branches > kMostBranches) {
    return Error(ErrorCode::invalid_argument, "room for %u branches; expected 1 to %u",
                 static_cast<unsigned>(options.branches), static_cast<unsigned>(kMostBranches));
  }
  sizes.branches = options.branches;
  sizes.when_full = options.when_full;
  sizes.keep_first = options.keep_first;
  if (options.when_full == WhenFull::forget_oldest && options.keep_first >= sizes.context) {
    return Error(ErrorCode::invalid_argument,
                 "keep_first is %u; something of a context of %u must be free to go",
                 static_cast<unsigned>(options.keep_first), static_cast<unsigned>(sizes.context));
  }
  sizes.kv_format = options.kv_format;
  // The tokens of one pass come from all branches.
  const std::uint64_t all_tokens = std::uint64_t{sizes.context} * sizes.branches;
  sizes.batch = static_cast<std::uint32_t>(std::min<std::uint64_t>(options.batch, all_tokens));
  if (options.kv_tokens != 0) {
    sizes.kv_pages = KvPages::n_needed(options.kv_tokens) + sizes.branches - 1;
    return sizes;
  }
  // With a window, a token's and those of the rest of its pass, which may begin within a page.
  std::size_t pages = KvPages::n_needed(sizes.context);
  if (config.sliding_window != 0) {
    const std::size_t live = std::size_t{config.sliding_window} - 1 + sizes.batch;
    pages = std::min(pages, KvPages::n_needed(live) + 1);
  }
  sizes.kv_pages = pages * sizes.branches;
  return sizes;
}

}  // namespace detail

Session::Session(detail::ResourcePtr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<std::uint64_t> Session::memory_needed(const Model& model, const SessionOptions& options) {
  const Result<detail::WorkspaceSizes> sizes = detail::resolve(model, options);
  MIXTRAL_RETURN_IF_ERROR(sizes);
  detail::Workspace measure(model, *model.data_, options.executor, *sizes);
  return std::uint64_t{measure.bytes_needed()} + sizeof(detail::Workspace) +
         std::uint64_t{sizes->branches} * sizeof(Impl);
}

Result<Session> Session::open(const Model& model, const SessionOptions& options) {
  const Result<detail::WorkspaceSizes> sizes = detail::resolve(model, options);
  MIXTRAL_RETURN_IF_ERROR(sizes);
  return detail::guard_memory("opening a session", [&]() -> Result<Session> {
    std::pmr::memory_resource* resource = model.data_->resource;
    auto work = detail::make_resource_ptr<detail::Workspace>(resource, model, *model.data_,
                                                             options.executor, *sizes);
    if (!work->reserve()) {
      return Error(ErrorCode::out_of_memory,
                   "no memory for a session of %u tokens, which takes %zu bytes; use a smaller "
                   "context or batch, or fewer branches",
                   static_cast<unsigned>(sizes->context), work->bytes_needed());
    }
    detail::Branch* branch = work->take_branch();
    auto impl = detail::make_resource_ptr<Impl>(resource, work.get(), branch);
    static_cast<void>(work.release());  // the session's now
    return Session(std::move(impl));
  });
}

Result<Session> Session::fork() const {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "fork"));
  return detail::guard_memory("forking a session", [&]() -> Result<Session> {
    detail::Workspace* work = impl_->work;
    detail::Branch* branch = work->take_branch();
    if (branch == nullptr) {
      return Error(ErrorCode::out_of_memory,
                   "all %u branches are in use; open the session with room for more",
                   static_cast<unsigned>(work->sizes().branches));
    }
    struct GiveBack {  // unless a session owns it
      detail::Workspace* work;
      detail::Branch* branch;
      ~GiveBack() {
        if (branch != nullptr) work->give_back(*branch);
      }
    } give_back{work, branch};
    auto impl = detail::make_resource_ptr<Impl>(impl_->resource(), work, branch);
    give_back.branch = nullptr;
    work->copy(*impl_->branch, *branch);
    branch->begin_work();
    return Session(std::move(impl));
  });
}

Status Session::append(std::string_view text) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "append"));
  return detail::guard_memory("appending text", [&]() -> Status {
    std::pmr::vector<Token> tokens(impl_->resource());
    MIXTRAL_RETURN_IF_ERROR(impl_->encode(text, impl_->branch->n_tokens == 0, tokens));
    return impl_->append_work(Span<const Token>(tokens.data(), tokens.size()));
  });
}

Status Session::append(Span<const Token> tokens) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "append"));
  return impl_->append_work(tokens);
}

Status Session::append(Token token) { return append(Span<const Token>(&token, 1)); }

Status Session::append_chat(Span<const Message> messages, const ChatOptions& options) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "append_chat"));
  return detail::guard_memory("appending a chat", [&]() -> Status {
    const Span<const Token> past = impl_->tokens();
    Turn turn = impl_->turn();
    // A session that began with plain text has its BOS already.
    if (turn == Turn::start && !past.empty()) turn = Turn::question;
    // An answer that was ended by the model itself, with EOS appended by the host, needs no second.
    if (turn == Turn::answer && !past.empty() &&
        past[past.size() - 1] == model().tokenizer().eos()) {
      turn = !messages.empty() && messages[0].role == "tool" ? Turn::tool : Turn::question;
    }
    std::pmr::vector<Token> tokens(impl_->resource());
    MIXTRAL_RETURN_IF_ERROR(
        encode_chat(model().tokenizer(), model().chat_format(), messages, options, turn, tokens));
    MIXTRAL_RETURN_IF_ERROR(impl_->append_work(Span<const Token>(tokens.data(), tokens.size())));
    detail::Branch& branch = *impl_->branch;
    std::uint8_t& mark = branch.turns[branch.n_tokens - 1];
    mark = static_cast<std::uint8_t>(turn);
    const std::string_view last = messages[messages.size() - 1].role;
    if (last == "user" || last == "tool") mark |= Impl::kAnswerBegins;
    return {};
  });
}

Status Session::evaluate(Observer* observer) {
  Session* const self = this;
  const auto done = Impl::advance({&self, 1}, "evaluate", nullptr, observer);
  MIXTRAL_RETURN_IF_ERROR(done);
  return {};
}

Result<Progress> Session::advance(std::chrono::nanoseconds budget, Observer* observer) {
  Session* const self = this;
  const auto deadline = detail::deadline_after(budget);
  return Impl::advance({&self, 1}, "advance", &deadline, observer);
}

Status Session::evaluate_all(Span<Session* const> sessions, Observer* observer) {
  const auto done = Impl::advance(sessions, "evaluate_all", nullptr, observer);
  MIXTRAL_RETURN_IF_ERROR(done);
  return {};
}

Result<Progress> Session::advance_all(Span<Session* const> sessions,
                                      std::chrono::nanoseconds budget, Observer* observer) {
  const auto deadline = detail::deadline_after(budget);
  return Impl::advance(sessions, "advance_all", &deadline, observer);
}

Status Session::rewind(std::uint32_t n) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "rewind"));
  if (n > impl_->branch->n_tokens) {
    return Error(ErrorCode::invalid_argument, "rewinding to %u tokens; the session has %u",
                 static_cast<unsigned>(n), static_cast<unsigned>(impl_->branch->n_tokens));
  }
  const bool changes = n != impl_->branch->n_tokens;
  impl_->work->rewind(*impl_->branch, n);
  if (changes) impl_->branch->begin_work();
  return {};
}

Result<std::uint32_t> Session::forget_oldest(std::uint32_t keep_first, std::uint32_t n) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "forget_oldest"));
  const auto gone = impl_->forget_oldest(keep_first, n);
  if (gone && *gone != 0) impl_->branch->begin_work();
  return gone;
}

Status Session::save(ByteWriter write) const {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "save"));
  const detail::WorkspaceCall call(impl_->work);
  std::uint64_t checksum = 0;
  return impl_->save(write, checksum);
}

Status Session::load(ByteReader read) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "load"));
  const detail::WorkspaceCall call(impl_->work);
  std::uint64_t checksum = 0;
  return impl_->load(read, checksum);
}

Result<std::uint32_t> Session::replace(Span<const Token> tokens) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "replace"));
  return impl_->replace(tokens);
}

Result<std::uint32_t> Session::replace(std::string_view text) {
  MIXTRAL_RETURN_IF_ERROR(Impl::check_usable(impl_.get(), "replace"));
  return detail::guard_memory("replacing text", [&]() -> Result<std::uint32_t> {
    std::pmr::vector<Token> tokens(impl_->resource());
    MIXTRAL_RETURN_IF_ERROR(impl_->encode(text, true, tokens));
    return impl_->replace(Span<const Token>(tokens.data(), tokens.size()));
  });
}

bool Session::has_logits() const noexcept { return impl_ != nullptr && impl_->has_logits(); }

Logits Session::logits() const noexcept {
  if (!has_logits()) return {};
  return Logits(impl_->branch->logits, model().config().vocab_size);
}

double Session::log_probability(Token token) const {
  return mixtral::log_probability(logits(), token);
}

void Session::cancel() noexcept {
  if (impl_ != nullptr) impl_->branch->cancels.fetch_add(1);
}

void Session::clear() noexcept {
  if (!Impl::check_usable(impl_.get(), "clear")) return;
  impl_->work->rewind(*impl_->branch, 0);
  impl_->branch->begin_work();
}

Span<const Token> Session::tokens() const noexcept {
  return impl_ == nullptr ? Span<const Token>() : impl_->tokens();
}
std::uint32_t Session::context() const noexcept { return impl_ == nullptr ? 0 : impl_->context(); }
std::uint32_t Session::remaining() const noexcept {
  return impl_ == nullptr ? 0 : impl_->context() - impl_->branch->n_tokens;
}
const Model& Session::model() const noexcept { return impl_->work->model(); }

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_SESSION_HPP_
