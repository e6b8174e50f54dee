// How far a piece of work has come: an evaluation, a generation's next token, the opening of a model.
#ifndef MIXTRAL_PROGRESS_HPP_
#define MIXTRAL_PROGRESS_HPP_

#include <cstdint>
#include <memory>
#include <type_traits>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

// Compares with its states: `while (*session.advance(budget) == Progress::working) ...`.
//
// The unit of n_done and n_total is that of the work. Of an evaluation it is one token in one layer,
// the output matrix counting as one more layer, since the host last changed the session's tokens (what a
// generation appends is added to the total); of opening a model it is a byte of weights. Both are 0 where
// there was nothing to do.
class Progress {
 public:
  enum State {
    working,  // There is more to do: call again.
    done,
  };

  constexpr Progress(State state, std::uint64_t n_units_done = 0,
                     std::uint64_t n_units = 0) noexcept
      : n_done(n_units_done), n_total(n_units), state_(state) {}
  constexpr operator State() const noexcept { return state_; }

  // Returns the share that is done, from 0 to 1; 1 only with the state `done`.
  double fraction() const noexcept {
    if (state_ == done) return 1.0;
    return n_done >= n_total ? 0.0 : static_cast<double>(n_done) / static_cast<double>(n_total);
  }

  std::uint64_t n_done;
  std::uint64_t n_total;

 private:
  State state_;
};

// Views a callable `bool(const mixtral::Progress&)` that is told how far a piece of work has come, on the
// calling thread, and returns false to end it with ErrorCode::cancelled. The callable must outlive the
// view, which therefore takes no temporaries. A default-constructed view asks for nothing.
class ProgressListener {
 public:
  ProgressListener() noexcept = default;

  template <class Listen,
            class = std::enable_if_t<!std::is_same_v<std::decay_t<Listen>, ProgressListener>>>
  ProgressListener(Listen& listen) noexcept
      : context_(const_cast<void*>(static_cast<const void*>(std::addressof(listen)))),
        call_([](void* context, const Progress& progress) -> bool {
          return (*static_cast<Listen*>(context))(progress);
        }) {}

  // Returns true if the work shall go on.
  bool operator()(const Progress& progress) const {
    return call_ == nullptr || call_(context_, progress);
  }

 private:
  void* context_ = nullptr;
  bool (*call_)(void*, const Progress&) = nullptr;
};

}  // namespace mixtral

#endif  // MIXTRAL_PROGRESS_HPP_
