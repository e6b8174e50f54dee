// What a session and its forks share: memory, the pages of their pasts, and the pass in progress.
#ifndef MIXTRAL_IMPL_WORKSPACE_HPP_
#define MIXTRAL_IMPL_WORKSPACE_HPP_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <utility>

#include "mixtral/executor.hpp"
#include "mixtral/impl/model.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/network/forward_pass.hpp"
#include "mixtral/network/kv_cache.hpp"
#include "mixtral/observer.hpp"
#include "mixtral/progress.hpp"
#include "mixtral/session.hpp"

namespace mixtral::detail {

// The state of one session.
struct Branch {
  Token* history = nullptr;       // [context]
  std::uint8_t* turns = nullptr;  // [context], what a chat may go on with after each token
  float* logits = nullptr;        // [vocab_size], that follow the last token
  KvPast past;
  std::uint32_t n_tokens = 0;       // in the history
  std::uint32_t n_evaluated = 0;    // of them in the past
  std::uint32_t n_in_pass = 0;      // that the pass in progress computes
  std::uint64_t rotary_offset = 0;  // what rotary positions are ahead of those in the history
  bool has_logits = false;
  bool in_use = false;
  bool session_is_gone = false;  // it was destroyed during a call
  bool is_wanted = false;        // while a WantedBranches that has it is there
  std::uint32_t work_begin = 0;  // n_evaluated when the history was last changed from outside

  // How often Session::cancel() was called, and how many of these calls the pending work need not obey: they
  // came before the host last changed the tokens, or were told already, or met nothing pending.
  std::atomic<std::uint32_t> cancels{0};
  std::uint32_t n_cancels_seen = 0;

  // Tokens to be computed before there are logits: the last one again if they were lost.
  std::uint32_t n_pending() const noexcept {
    return n_evaluated < n_tokens ? n_tokens - n_evaluated : has_logits || n_tokens == 0 ? 0 : 1;
  }

  // Is what is pending cancelled? Where nothing is, there is nothing to cancel.
  bool is_cancelled() const noexcept {
    return cancels.load(std::memory_order_relaxed) != n_cancels_seen && n_pending() != 0;
  }

  // To be called when the host changes what is to be computed: what was cancelled is no longer wanted.
  void begin_work() noexcept {
    n_cancels_seen = cancels.load();
    work_begin = n_evaluated;
  }
};

// Returns the moment that is `budget` from now. A negative budget counts as none, and one of more than a
// century as a century, so that the sum stays within the clock's range.
inline std::chrono::steady_clock::time_point deadline_after(
    std::chrono::nanoseconds budget) noexcept {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::nanoseconds kCentury = std::chrono::hours(24 * 365 * 100);
  budget = std::clamp(budget, std::chrono::nanoseconds(0), kCentury);
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(budget);
}

struct WorkspaceSizes {
  std::uint32_t context = 0;
  std::uint32_t batch = 0;
  std::uint32_t branches = 1;
  BlockFormat kv_format = BlockFormat::f16;
  WhenFull when_full = WhenFull::stop;
  std::uint32_t keep_first = 0;
  std::size_t kv_pages = 0;
};

class Workspace {
 public:
  using Clock = std::chrono::steady_clock;

  Workspace(const Model& model, const ModelData& data, const Executor& executor,
            const WorkspaceSizes& sizes)
      : model_(model), data_(&data), executor_(executor), sizes_(sizes) {}

  // The bytes that reserve() takes.
  std::size_t bytes_needed() {
    Slab measure;
    take(measure);
    return measure.used();
  }
  // False if the resource has not enough.
  bool reserve() {
    if (!slab_.reserve(data_->resource, bytes_needed())) return false;
    take(slab_);
    return true;
  }

  const Model& model() const noexcept { return model_; }
  const ModelData& data() const noexcept { return *data_; }
  const WorkspaceSizes& sizes() const noexcept { return sizes_; }
  const KvPages& pages() const noexcept { return pages_; }

  // A branch without a past; null if all are in use.
  Branch* take_branch() noexcept {
    for (std::size_t i = 0; i < sizes_.branches; ++i) {
      if (branches_[i].in_use) continue;
      branches_[i].in_use = true;
      ++n_in_use_;
      return &branches_[i];
    }
    return nullptr;
  }
  // True if it was the last one, so that nobody uses the workspace any more. During a call the branch
  // goes when the call ends, and what is computed for it is cancelled.
  bool give_back(Branch& branch) noexcept {
    if (in_call_) {
      branch.session_is_gone = true;
      branch.cancels.fetch_add(1);
      return false;
    }
    rewind(branch, 0);
    branch.in_use = branch.session_is_gone = false;
    return --n_in_use_ == 0;
  }

  // A call is what hands control to code of the host: an executor, an observer, a byte stream. Until it
  // ends, nothing else may change the workspace. Calls do not nest.
  bool in_call() const noexcept { return in_call_; }
  void begin_call() noexcept { in_call_ = pass_survives_call_ = true; }
  // Ends the call, in whatever way it ended: a pass that advance() worked on is given up unless it said
  // that it goes on. True if nobody uses the workspace any more.
  bool end_call() noexcept {
    in_call_ = false;
    if (!pass_survives_call_) abandon();
    bool is_unused = false;
    for (std::size_t i = 0; i < sizes_.branches; ++i) {
      if (branches_[i].session_is_gone) is_unused = give_back(branches_[i]);
    }
    return is_unused;
  }

  void rewind(Branch& branch, std::uint32_t n) noexcept {
    if (branch.n_in_pass != 0) abandon();
    if (n == branch.n_tokens && n != 0) return;
    branch.n_tokens = n;
    branch.has_logits = false;
    drop_past_from(branch, std::min(branch.n_evaluated, n));
    branch.work_begin = std::min(branch.work_begin, branch.n_evaluated);
  }

  // Takes the n tokens from `begin` on out of the history; n in whole pages, unless they are its last.
  // What came after them keeps its rotary positions, so that only the few keys before `begin` have to
  // be rotated, on by n: attention sees differences of positions only (RoFormer, Su et al. 2021,
  // section 3.2.2). False, and nothing changes, if there are too few free pages.
  bool take_out(Branch& branch, std::uint32_t begin, std::uint32_t n) noexcept {
    if (branch.n_in_pass != 0) abandon();
    const std::uint32_t end = begin + n;
    if (end == branch.n_tokens) {
      rewind(branch, begin);
      return true;
    }
    if (branch.n_evaluated > end) {
      if (!branch.past.take_out(begin, n)) return false;
      if (branch.past.first() == 0) rotate_keys(branch.past, begin, n);
      branch.rotary_offset += n;
      branch.n_evaluated -= n;
    } else if (branch.n_evaluated > begin) {
      drop_past_from(branch, begin);
    }
    std::copy(branch.history + end, branch.history + branch.n_tokens, branch.history + begin);
    std::copy(branch.turns + end, branch.turns + branch.n_tokens, branch.turns + begin);
    branch.n_tokens -= n;
    branch.work_begin = std::min(branch.work_begin, branch.n_evaluated);
    return true;
  }

  // Makes `to`, which has no past, the same as `from`.
  void copy(const Branch& from, Branch& to) noexcept {
    std::copy_n(from.history, from.n_tokens, to.history);
    std::copy_n(from.turns, from.n_tokens, to.turns);
    if (from.has_logits) std::copy_n(from.logits, data_->config.vocab_size, to.logits);
    to.past.share(from.past, from.n_evaluated);
    to.n_tokens = from.n_tokens;
    to.n_evaluated = from.n_evaluated;
    to.rotary_offset = from.rotary_offset;
    to.has_logits = from.has_logits;
  }

  // Where to put the branches of one call, as many as there are.
  Branch** wanted() const noexcept { return wanted_; }

  // Computes what is pending in the first n of wanted(), until `deadline` unless that is null; a pass
  // of others that is in progress is finished first. True if all is done. Within a call only.
  Result<bool> advance(std::size_t n, const Clock::time_point* deadline, Observer* observer) {
    n_wanted_ = n;
    failed_ = nullptr;
    pass_survives_call_ = false;
    bool ran = false;
    while (!is_cancelled()) {
      if (!running_) {
        MIXTRAL_RETURN_IF_ERROR(begin_pass(observer));
        if (!running_) break;
      }
      const bool complete = run(deadline, observer, ran);
      if (pass_.not_finite()) {
        const Error error = not_finite(*pass_.not_finite());
        abandon();
        // If the session is none of this call's, its own call will tell.
        if (failed_ == nullptr) continue;
        return error;
      }
      if (!complete) {
        if (is_cancelled()) break;
        pass_survives_call_ = true;
        return false;
      }
      finish_pass();
      if (observer != nullptr) observer->on_progress(progress());
    }
    std::uint32_t n_evaluated = 0, n_tokens = 0;
    bool cancelled = false;
    for (std::size_t i = 0; i < n; ++i) {
      Branch& branch = *wanted_[i];
      cancelled = cancelled || branch.is_cancelled();
      branch.n_cancels_seen = branch.cancels.load();
      n_evaluated += branch.n_evaluated;
      n_tokens += branch.n_tokens;
    }
    if (!cancelled) return true;
    return Error(ErrorCode::cancelled, "cancelled after %u of %u tokens; evaluate again to go on",
                 static_cast<unsigned>(n_evaluated), static_cast<unsigned>(n_tokens));
  }

  // Which of wanted() the last advance() failed for; null if it did not, or for none in particular.
  const Branch* failed() const noexcept { return failed_; }

  // How much of what the last advance() was asked for is done.
  Progress progress() const noexcept {
    const std::uint64_t units_a_token = std::uint64_t{data_->config.n_layers} + 1;
    std::uint64_t n_done = 0, n_total = 0;
    for (std::size_t i = 0; i < n_wanted_; ++i) {
      const Branch& branch = *wanted_[i];
      n_total += branch.n_evaluated + branch.n_pending() - branch.work_begin;
      n_done += branch.n_evaluated - branch.work_begin;
    }
    n_done *= units_a_token;
    n_total *= units_a_token;
    for (std::size_t i = 0; running_ && i < n_wanted_; ++i) {
      n_done += std::uint64_t{wanted_[i]->n_in_pass} * pass_.layer_number();
    }
    return Progress(n_done == n_total ? Progress::done : Progress::working, n_done, n_total);
  }

 private:
  void take(Slab& slab) {
    const Config& config = data_->config;
    branches_ = slab.take<Branch>(sizes_.branches);
    wanted_ = slab.take<Branch*>(sizes_.branches);
    key_ = slab.take<float>(3 * std::size_t{config.head_size});
    pages_.take(slab, config, sizes_.kv_format, sizes_.kv_pages);
    pass_.take(slab, *data_, sizes_.batch, sizes_.branches);
    row_branch_ = slab.take<Branch*>(sizes_.batch);
    for (std::size_t i = 0; i < sizes_.branches; ++i) {
      Branch unused;
      Branch& branch = branches_ == nullptr ? unused : *new (&branches_[i]) Branch;
      branch.history = slab.take<Token>(sizes_.context);
      branch.turns = slab.take<std::uint8_t>(sizes_.context);
      branch.logits = slab.take<float>(config.vocab_size);
      branch.past.take(slab, pages_, sizes_.context);
    }
  }

  // Forgets what was computed for the tokens from the n-th on, and all of it if a window has moved over what
  // came before them.
  static void drop_past_from(Branch& branch, std::uint32_t n) noexcept {
    branch.n_evaluated = n;
    branch.past.drop_from(n);
    if (branch.past.is_empty()) branch.n_evaluated = 0;
    if (branch.n_evaluated == 0) branch.rotary_offset = 0;
  }

  // The first n keys of all heads move by `distance` positions.
  void rotate_keys(const KvPast& past, std::size_t n, std::uint32_t distance) noexcept {
    const Config& config = data_->config;
    const simd::Kernels& kernels = *data_->kernels;
    const std::size_t size = config.head_size;
    float* cos2 = key_ + size;
    float* sin2 = cos2 + size;
    for (std::size_t i = 0; i < size; ++i) {
      double sine = 0.0, cosine = 0.0;
      portable::sin_and_cos(distance * data_->rope_frequencies[i / 2], sine, cosine);
      cos2[i] = static_cast<float>(cosine);
      sin2[i] = static_cast<float>(sine);
    }
    for (std::size_t layer = 0; layer < config.n_layers; ++layer) {
      for (std::size_t head = 0; head < config.n_kv_heads; ++head) {
        for (std::size_t position = 0; position < n; ++position) {
          simd::Matrix row;
          row.data = past.key(layer, head, position);
          row.row_bytes = pages_.row_bytes();
          row.rows = 1;
          row.cols = size;
          row.format = pages_.format();
          kernels.decode_rows(row, 0, 1, key_);
          kernels.rotate(key_, cos2, sin2, size);
          kernels.store_kv(row.format, key_, size, past.key(layer, head, position));
        }
      }
    }
  }

  bool is_cancelled() const noexcept {
    for (std::size_t i = 0; i < n_wanted_; ++i) {
      if (wanted_[i]->is_cancelled()) return true;
    }
    return false;
  }

  // What to tell of a pass whose numbers are not finite; notes whose it was in failed_.
  Error not_finite(const NotFinite& where) noexcept {
    const PassRow& row = pass_.rows()[where.row];
    for (std::size_t i = 0; i < n_wanted_; ++i) {
      if (&wanted_[i]->past == row.past) failed_ = wanted_[i];
    }
    const char* part = where.part == Part::embedding   ? "the embedding"
                       : where.part == Part::attention ? "attention"
                       : where.part == Part::router    ? "the router"
                       : where.part == Part::experts   ? "the experts"
                                                       : "the output";
    char layer[32] = "";
    if (where.part != Part::embedding && where.part != Part::output) {
      std::snprintf(layer, sizeof layer, " of layer %u", static_cast<unsigned>(where.layer));
    }
    return Error(ErrorCode::bad_format,
                 "evaluating token %d at position %u: numbers of %s%s are infinite, NaN or far too "
                 "large; get the weights (or the saved session) again and compare checksums",
                 static_cast<int>(row.token), static_cast<unsigned>(row.position), part, layer);
  }

  // Positions that a token at `position` does not need any more come before this one.
  std::size_t first_needed(std::size_t position) const noexcept {
    const std::size_t window = data_->config.sliding_window;
    return window == 0 || position + 1 <= window ? 0 : position + 1 - window;
  }

  // Begins a pass over as many pending tokens as it takes, if there are any.
  Status begin_pass(Observer* observer) {
    const bool all_logits = observer != nullptr && observer->wants_all_logits();
    std::uint32_t n_rows = 0;
    PassRow* rows = pass_.rows();
    for (std::size_t b = 0; b < n_wanted_; ++b) {
      Branch* branch = wanted_[b];
      const std::uint32_t n = std::min(sizes_.batch - n_rows, branch->n_pending());
      if (n == 0 || branch->n_in_pass != 0) continue;
      if (branch->n_evaluated == branch->n_tokens) --branch->n_evaluated;
      // What a window has moved over comes back by computing all again.
      if (first_needed(branch->n_evaluated) < branch->past.first()) {
        branch->n_evaluated = 0;
        branch->past.drop_from(0);
        branch->rotary_offset = 0;
      }
      const std::uint32_t begin = branch->n_evaluated;
      branch->work_begin = std::min(branch->work_begin, begin);
      branch->past.drop_before(first_needed(begin));
      if (branch->past.n_pages_to_take(begin, begin + n) > pages_.n_free()) {
        if (n_rows != 0) break;  // go on with those that have room
        failed_ = branch;
        return Error(ErrorCode::context_full,
                     "no room for keys and values of %u more tokens: the session and its forks "
                     "have %zu pages of %zu tokens, of which %zu are free; open it with more "
                     "kv_tokens, or let some of them go",
                     static_cast<unsigned>(n), pages_.n_pages(), simd::kPagePositions,
                     pages_.n_free());
      }
      branch->past.prepare(begin, begin + n);
      branch->n_in_pass = n;
      for (std::uint32_t i = 0; i < n; ++i) {
        const std::uint32_t position = begin + i;
        row_branch_[n_rows] = branch;
        rows[n_rows++] = {branch->history[position], position, branch->rotary_offset + position,
                          &branch->past,
                          position + 1 == branch->n_tokens ? branch->logits : nullptr};
      }
    }
    if (n_rows == 0) return {};
    if (n_rows != n_rows_) {
      for (auto& time : chunk_time_) time.store(0, std::memory_order_relaxed);
    }
    n_rows_ = n_rows;
    next_chunk_.store(0);
    stage_seconds_ = 0.0;
    running_ = true;
    pass_.begin(n_rows, all_logits);
    return {};
  }

  void finish_pass() noexcept {
    for (std::uint32_t i = 0; i < n_rows_; ++i) {
      Branch& branch = *row_branch_[i];
      if (branch.n_in_pass == 0) continue;
      branch.n_evaluated += branch.n_in_pass;
      branch.n_in_pass = 0;
      branch.has_logits = branch.n_evaluated == branch.n_tokens;
    }
    running_ = false;
  }

  // Forgets the pass in progress; its tokens are pending as before.
  void abandon() noexcept {
    if (!running_) return;
    for (std::uint32_t i = 0; i < n_rows_; ++i) row_branch_[i]->n_in_pass = 0;
    running_ = false;
  }

  // Goes on with the pass, true if to its end; false if the deadline came, it was cancelled, or its
  // numbers are not finite.
  // `ran` tells whether anything was done before, since the beginning of a time slice.
  bool run(const Clock::time_point* deadline, Observer* observer, bool& ran) {
    const bool timed = observer != nullptr && observer->wants_times();
    while (!pass_.done()) {
      const Clock::time_point start = timed ? Clock::now() : Clock::time_point();
      const std::size_t n = pass_.n_chunks();
      const bool complete = deadline == nullptr ? run_all(n) : run_until(n, *deadline, ran);
      if (timed) stage_seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
      if (!complete) return false;
      if (timed) observer->on_time(pass_.part(), pass_.layer_number(), stage_seconds_);
      stage_seconds_ = 0.0;
      next_chunk_.store(0);
      const std::uint32_t layer = pass_.layer_number();
      pass_.next_stage(observer);
      if (pass_.not_finite()) return false;
      if (observer != nullptr && pass_.layer_number() != layer) observer->on_progress(progress());
    }
    return true;
  }

  // The rest of the stage's n chunks, each thread those that lie together.
  bool run_all(std::size_t n) {
    const std::size_t first = next_chunk_.load();
    const auto run_chunk = [&](std::size_t i) {
      if (!is_cancelled()) pass_.run_chunk(first + i);
    };
    executor_.run(n - first, Chunks(run_chunk));
    return !is_cancelled();
  }

  // As many of the stage's chunks as are likely to end by the deadline, in their order, so that those
  // left are the last ones; one at least if nothing ran before.
  bool run_until(std::size_t n, Clock::time_point deadline, bool& ran) {
    std::atomic<std::int64_t>& time = chunk_time_[pass_.stage_kind()];
    const bool must = !ran;
    const auto work = [&](std::size_t thread) {
      Clock::time_point now = Clock::now();
      for (bool first = must && thread == 0;; first = false) {
        const std::chrono::nanoseconds expected(time.load(std::memory_order_relaxed));
        if (is_cancelled()) return;
        if (!first && now + expected >= deadline) return;
        const std::size_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= n) return;
        pass_.run_chunk(chunk);
        const Clock::time_point end = Clock::now();
        const std::int64_t took = std::chrono::nanoseconds(end - now).count();
        // The longest of late: one that was interrupted is forgotten after a while.
        const std::int64_t was = expected.count();
        time.store(took > was ? took : was - (was - took) / 8, std::memory_order_relaxed);
        now = end;
      }
    };
    const std::size_t threads = executor_.concurrency();
    executor_.run(std::min(threads, n - next_chunk_.load()), Chunks(work));
    ran = true;
    return !is_cancelled() && next_chunk_.load() >= n;
  }

  Model model_;
  const ModelData* data_;
  Executor executor_;
  WorkspaceSizes sizes_;

  Slab slab_;
  KvPages pages_;
  ForwardPass pass_;
  Branch* branches_ = nullptr;
  std::size_t n_in_use_ = 0;
  Branch** wanted_ = nullptr;  // [branches]
  std::size_t n_wanted_ = 0;
  const Branch* failed_ = nullptr;
  bool in_call_ = false;
  bool pass_survives_call_ = false;  // at the end of the call
  float* key_ = nullptr;             // [head_size], and the cosines and sines of its rotation

  bool running_ = false;                    // a pass is in progress:
  std::uint32_t n_rows_ = 0;                // over so many rows,
  Branch** row_branch_ = nullptr;           // [row] of these branches,
  std::atomic<std::size_t> next_chunk_{0};  // up to this chunk of its stage,
  double stage_seconds_ = 0.0;              // which took so long
  std::atomic<std::int64_t> chunk_time_[ForwardPass::kStageKinds] =
      {};  // nanoseconds, by stage kind
};

// Collects the branches of one call in Workspace::wanted(), each once.
class WantedBranches {
 public:
  explicit WantedBranches(Workspace& work) noexcept : work_(work) {}
  WantedBranches(const WantedBranches&) = delete;
  WantedBranches& operator=(const WantedBranches&) = delete;
  ~WantedBranches() {
    for (std::size_t i = 0; i < n_; ++i) work_.wanted()[i]->is_wanted = false;
  }

  // False if the branch is there already.
  bool add(Branch& branch) noexcept {
    if (std::exchange(branch.is_wanted, true)) return false;
    work_.wanted()[n_++] = &branch;
    return true;
  }
  std::size_t n() const noexcept { return n_; }

 private:
  Workspace& work_;
  std::size_t n_ = 0;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_WORKSPACE_HPP_
