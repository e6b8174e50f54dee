// Runs a grammar's program on bytes, as an automaton whose states are made when they are reached.
//
// A state is all the ways in which the text so far can be read: a set of threads, each an instruction
// that takes a byte and the calls that it will return to. Steps are remembered, as in RE2's lazy DFA
// (Cox 2010). All memory is taken at once; when it is full, what was remembered is forgotten.
#ifndef MIXTRAL_IMPL_GRAMMAR_AUTOMATON_HPP_
#define MIXTRAL_IMPL_GRAMMAR_AUTOMATON_HPP_

#include <algorithm>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "mixtral/impl/grammar_program.hpp"

namespace mixtral::detail {

// How much an automaton remembers.
struct AutomatonSizes {
  std::size_t calls = 1u << 14;
  std::size_t threads = 1u << 16;
  std::size_t steps = 1u << 18;  // states * byte classes

  // More threads for a program in which one expression alone can begin in very many ways: each becomes a
  // thread, and passes a few instructions on the way.
  static AutomatonSizes of(const GrammarProgram& program) noexcept {
    AutomatonSizes sizes;
    while (sizes.threads < (1u << 20) && sizes.threads / 16 < program.most_ways) sizes.threads *= 2;
    return sizes;
  }
};

class GrammarAutomaton {
 public:
  using State = std::uint32_t;
  static constexpr State kDead = 0;      // no way to read the text
  static constexpr State kFull = kNone;  // too many ways for the memory there is

  GrammarAutomaton(const GrammarProgram& program, const AutomatonSizes& sizes,
                   std::pmr::memory_resource* resource)
      : program_(program),
        most_calls_(sizes.calls),
        most_threads_(sizes.threads),
        most_states_(std::max<std::size_t>(sizes.steps / program.n_classes, 4)),
        calls_(resource),
        old_calls_(resource),
        moved_(resource),
        call_table_(resource),
        threads_(resource),
        old_threads_(resource),
        states_(resource),
        old_states_(resource),
        state_table_(resource),
        steps_(resource),
        seen_(resource),
        pending_(resource),
        found_(resource) {
    calls_.reserve(most_calls_);
    old_calls_.reserve(most_calls_);
    moved_.reserve(most_calls_);
    call_table_.resize(table_size(most_calls_));
    threads_.reserve(most_threads_);
    old_threads_.reserve(most_threads_);
    states_.reserve(most_states_);
    old_states_.reserve(most_states_);
    state_table_.resize(table_size(most_states_));
    steps_.reserve(most_states_ * program.n_classes);
    seen_.resize(table_size(most_threads_ / 4));
    pending_.reserve(std::max(most_threads_ / 4, most_calls_));
    found_.reserve(most_threads_ / 4);
    forget();
  }

  // Where a text begins, or kFull. All other states may be forgotten.
  State start() {
    const State state = make_start();
    if (state != kFull) return state;
    forget();
    return make_start();
  }

  // The state after one more byte, or kFull. If it is not in memory, states that are not among the first
  // n_kept of `kept` may be forgotten, and those in it get other numbers; `from` is one of them,
  // given by its place.
  State step(State* kept, std::size_t n_kept, std::size_t from, std::uint8_t byte) {
    const std::size_t byte_class = program_.class_of[byte];
    const State known = steps_[kept[from] * program_.n_classes + byte_class];
    if (known != kUnknown) return known;
    State next = make_step(kept[from], byte_class);
    if (next == kFull) {
      if (!keep(kept, n_kept)) return kFull;
      next = make_step(kept[from], byte_class);
      if (next == kFull) return kFull;
    }
    steps_[kept[from] * program_.n_classes + byte_class] = next;
    return next;
  }

  bool accepts(State state) const noexcept { return states_[state].accepts; }
  // Can a byte follow?
  bool goes_on(State state) const noexcept { return states_[state].n_threads != 0; }

  // Writes or reads a state: the calls that its threads return to, inner ones after outer ones, and the
  // threads. `archive` is a SnapshotWriter or a SnapshotReader; the state was made by a program with the
  // same fingerprint. Reading forgets all other states; what is no state of the program fails.
  template <class Archive>
  void transfer(Archive& archive, State& state) {
    if constexpr (Archive::kReads) {
      forget();
      state = read_state(archive);
      if (state == kFull) {
        archive.fail();
        state = kDead;
      }
    } else {
      write_state(archive, state);
    }
  }

  // Counts how often states were forgotten: numbers from before are void.
  std::size_t generation() const noexcept { return generation_; }

 private:
  static constexpr State kUnknown = kNone - 1;
  static constexpr std::uint32_t kNoCall = 0;

  // Where a rule returns to, and what was called before it.
  struct Call {
    std::uint32_t instruction;
    std::uint32_t outer;
  };
  struct Thread {
    std::uint32_t instruction;
    std::uint32_t call;
    std::uint64_t key() const noexcept { return std::uint64_t{instruction} << 32 | call; }
    friend bool operator<(const Thread& a, const Thread& b) noexcept { return a.key() < b.key(); }
    friend bool operator==(const Thread& a, const Thread& b) noexcept { return a.key() == b.key(); }
  };
  struct StateData {
    std::uint32_t first_thread;
    std::uint32_t n_threads;
    bool accepts;  // the text may end here
  };
  // An entry of the set of threads that the closure in progress has seen.
  struct Seen {
    std::uint64_t key = 0;
    std::uint64_t closure = 0;
  };

  static std::size_t table_size(std::size_t n) {
    std::size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
  }
  static std::uint64_t hash(std::uint64_t key) noexcept {
    key = (key ^ key >> 31) * 0x9E3779B97F4A7C15u;
    return key ^ key >> 29;
  }

  void forget() {
    ++generation_;
    calls_.clear();
    threads_.clear();
    states_.clear();
    steps_.clear();
    std::fill(call_table_.begin(), call_table_.end(), kNone);
    std::fill(state_table_.begin(), state_table_.end(), kNone);
    calls_.push_back({0, 0});  // kNoCall
    begin_closure();
    finish_closure();  // kDead
  }

  // Forgets all states but these, which get other numbers. False if they do not fit, and all is lost.
  bool keep(State* kept, std::size_t n_kept) {
    calls_.swap(old_calls_);
    threads_.swap(old_threads_);
    states_.swap(old_states_);
    moved_.assign(old_calls_.size(), kNone);
    moved_[kNoCall] = kNoCall;
    forget();
    for (std::size_t i = 0; i < n_kept; ++i) {
      const StateData& state = old_states_[kept[i]];
      begin_closure();
      accepts_ = state.accepts;
      for (std::uint32_t t = 0; t < state.n_threads; ++t) {
        Thread thread = old_threads_[state.first_thread + t];
        thread.call = move_call(thread.call);
        found_.push_back(thread);
      }
      kept[i] = finish_closure();
      if (kept[i] == kFull) return false;
    }
    return true;
  }

  // A call that was kept, with its outer ones: those are older, so that their numbers are lower.
  std::uint32_t move_call(std::uint32_t call) {
    pending_.clear();
    std::uint32_t at = call;
    for (; moved_[at] == kNone; at = old_calls_[at].outer) pending_.push_back({at, 0});
    std::uint32_t outer = moved_[at];
    for (; !pending_.empty(); pending_.pop_back()) {
      at = pending_.back().instruction;
      outer = intern(old_calls_[at].instruction, outer);
      moved_[at] = outer;
    }
    return outer;
  }

  template <class Archive>
  void write_state(Archive& archive, State state) {
    const StateData data = states_[state];
    const Thread* threads = threads_.data() + data.first_thread;
    moved_.assign(calls_.size(), kNone);  // the numbers that calls have in the archive
    moved_[kNoCall] = kNoCall;
    for (std::uint32_t t = 0; t < data.n_threads; ++t) {
      for (std::uint32_t at = threads[t].call; moved_[at] == kNone; at = calls_[at].outer) {
        moved_[at] = 0;  // below it gets its number
      }
    }
    std::uint32_t n_calls = 1;
    for (std::uint32_t at = 1; at < calls_.size(); ++at) {
      if (moved_[at] != kNone) moved_[at] = n_calls++;
    }
    archive.value(n_calls);
    for (std::uint32_t at = 1; at < calls_.size(); ++at) {
      if (moved_[at] == kNone) continue;
      archive.value(calls_[at].instruction);
      archive.value(moved_[calls_[at].outer]);
    }
    archive.flag(data.accepts);
    archive.value(data.n_threads);
    for (std::uint32_t t = 0; t < data.n_threads; ++t) {
      archive.value(threads[t].instruction);
      archive.value(moved_[threads[t].call]);
    }
  }

  // kFull if it is none.
  template <class Archive>
  State read_state(Archive& archive) {
    std::uint32_t n_calls = 0, n_threads = 0;
    archive.value(n_calls);
    if (n_calls == 0 || n_calls > most_calls_) return kFull;
    moved_.assign(n_calls, kNoCall);
    begin_closure();
    for (std::uint32_t i = 1; i < n_calls; ++i) {
      std::uint32_t instruction = 0, outer = 0;
      archive.value(instruction);
      archive.value(outer);
      if (instruction >= program_.code.size() || outer >= i) return kFull;
      moved_[i] = intern(instruction, moved_[outer]);
    }
    archive.flag(accepts_);
    archive.value(n_threads);
    if (n_threads > most_threads_ / 4) return kFull;
    for (std::uint32_t t = 0; t < n_threads; ++t) {
      std::uint32_t instruction = 0, call = 0;
      archive.value(instruction);
      archive.value(call);
      if (instruction >= program_.code.size() || call >= n_calls ||
          program_.code[instruction].op != GrammarProgram::Op::bytes) {
        return kFull;
      }
      found_.push_back({instruction, moved_[call]});
    }
    return archive.good() ? finish_closure() : kFull;
  }

  State make_start() {
    begin_closure();
    visit({program_.root, kNoCall});
    return finish_closure();
  }

  State make_step(State from, std::size_t byte_class) {
    begin_closure();
    const StateData state = states_[from];
    for (std::uint32_t t = 0; t < state.n_threads && !full_; ++t) {
      const Thread thread = threads_[state.first_thread + t];
      const GrammarProgram::Instruction& instruction = program_.code[thread.instruction];
      if (program_.takes(instruction.a, byte_class)) visit({instruction.b, thread.call});
    }
    return finish_closure();
  }

  void begin_closure() {
    ++closure_;
    n_seen_ = 0;
    found_.clear();
    accepts_ = false;
    full_ = false;
  }

  // Adds a thread, or those that it becomes before the next byte.
  void visit(Thread thread) {
    pending_.clear();
    push(thread);
    while (!pending_.empty() && !full_) {
      const Thread now = pending_.back();
      pending_.pop_back();
      const GrammarProgram::Instruction& instruction = program_.code[now.instruction];
      switch (instruction.op) {
        case GrammarProgram::Op::bytes: found_.push_back(now); break;
        case GrammarProgram::Op::split:
          push({instruction.b, now.call});
          push({instruction.a, now.call});
          break;
        case GrammarProgram::Op::call: {
          const std::uint32_t call = intern(instruction.b, now.call);
          if (call != kNone) push({program_.rules[instruction.a], call});
          break;
        }
        case GrammarProgram::Op::enter: push({program_.rules[instruction.a], now.call}); break;
        case GrammarProgram::Op::leave:
          if (now.call == kNoCall) {
            accepts_ = true;
          } else {
            push({calls_[now.call].instruction, calls_[now.call].outer});
          }
          break;
      }
    }
  }

  // To be visited, unless it was in this closure.
  void push(Thread thread) {
    const std::size_t mask = seen_.size() - 1;
    std::size_t i = static_cast<std::size_t>(hash(thread.key())) & mask;
    for (; seen_[i].closure == closure_; i = (i + 1) & mask) {
      if (seen_[i].key == thread.key()) return;
    }
    if (++n_seen_ > most_threads_ / 4) {
      full_ = true;
      return;
    }
    seen_[i] = {thread.key(), closure_};
    pending_.push_back(thread);
  }

  // The number of a call; kNone if there is no room.
  std::uint32_t intern(std::uint32_t instruction, std::uint32_t outer) {
    const std::size_t mask = call_table_.size() - 1;
    std::size_t i = static_cast<std::size_t>(hash(std::uint64_t{instruction} << 32 | outer)) & mask;
    for (; call_table_[i] != kNone; i = (i + 1) & mask) {
      const Call& call = calls_[call_table_[i]];
      if (call.instruction == instruction && call.outer == outer) return call_table_[i];
    }
    if (calls_.size() == most_calls_) {
      full_ = true;
      return kNone;
    }
    call_table_[i] = static_cast<std::uint32_t>(calls_.size());
    calls_.push_back({instruction, outer});
    return call_table_[i];
  }

  // The state of the threads that were found; kFull if there is no room.
  State finish_closure() {
    if (full_) return kFull;
    std::sort(found_.begin(), found_.end());
    std::uint64_t sum = accepts_ ? 1 : 0;
    for (const Thread& thread : found_) sum = hash(sum ^ thread.key());
    const std::size_t mask = state_table_.size() - 1;
    std::size_t i = static_cast<std::size_t>(sum) & mask;
    for (; state_table_[i] != kNone; i = (i + 1) & mask) {
      const StateData& state = states_[state_table_[i]];
      if (state.accepts == accepts_ && state.n_threads == found_.size() &&
          std::equal(found_.begin(), found_.end(), threads_.begin() + state.first_thread)) {
        return state_table_[i];
      }
    }
    if (states_.size() == most_states_ || threads_.size() + found_.size() > most_threads_) {
      return kFull;
    }
    const auto id = static_cast<State>(states_.size());
    state_table_[i] = id;
    states_.push_back({static_cast<std::uint32_t>(threads_.size()),
                       static_cast<std::uint32_t>(found_.size()), accepts_});
    threads_.insert(threads_.end(), found_.begin(), found_.end());
    steps_.insert(steps_.end(), program_.n_classes, kUnknown);
    return id;
  }

  const GrammarProgram& program_;
  std::size_t most_calls_, most_threads_, most_states_;
  std::pmr::vector<Call> calls_, old_calls_;
  std::pmr::vector<std::uint32_t> moved_;  // the numbers that old calls have now
  std::pmr::vector<std::uint32_t> call_table_;
  std::pmr::vector<Thread> threads_, old_threads_;
  std::pmr::vector<StateData> states_, old_states_;
  std::pmr::vector<State> state_table_;
  std::pmr::vector<State> steps_;  // [state][byte class]
  std::size_t generation_ = 0;

  // The closure in progress.
  std::pmr::vector<Seen> seen_;
  std::pmr::vector<Thread> pending_, found_;
  std::uint64_t closure_ = 0;
  std::size_t n_seen_ = 0;
  bool accepts_ = false;
  bool full_ = false;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_GRAMMAR_AUTOMATON_HPP_
