// Seeing inside an evaluation; costs nothing when absent.
#ifndef MIXTRAL_OBSERVER_HPP_
#define MIXTRAL_OBSERVER_HPP_

#include <cstddef>
#include <cstdint>

#include "mixtral/progress.hpp"
#include "mixtral/role.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

// The parts of a pass, as a profile tells them apart.
enum class Part : std::uint8_t {
  embedding,
  projections,  // norm, wq, wk, wv, rotary embedding, wo
  attention,
  router,  // norm and choice of experts
  experts,
  output,  // norm and logits
};
constexpr std::size_t kParts = 6;

// Called by Session::evaluate() and its relatives on the calling thread, between parallel parts. The views
// are valid during the call only.
//
// An observer may call what reads the session under evaluation and its forks (tokens(), context(),
// remaining(), model(), has_logits()) and Session::cancel(), and do whatever it likes with sessions of
// another open(). All else that could change what is being computed is refused with
// ErrorCode::invalid_argument, in an executor and in the callbacks of save() and load() as well:
// appending, evaluating, generating, forking, rewinding, saving and loading. clear() does nothing there.
// Generation::set_sampling() takes effect at the generation's next token. An observer may destroy a session
// or fork, whose evaluation then ends as after cancel(); an executor may do so as well, but not while a
// generation of the session takes a step. Callbacks of save() and load() may not destroy that session.
//
// An observer may throw. The exception passes through the evaluation, which is then as after cancel().
class Observer {
 public:
  virtual ~Observer() = default;

  // If true, logits are computed for every token and not only for the last.
  virtual bool wants_all_logits() const { return false; }

  // If false, the last layer is computed, as without an observer, for tokens whose logits are wanted:
  // of others it needs the keys and values alone. Then on_router() and on_input() tell of the same ones.
  virtual bool wants_all_tokens() const { return true; }

  // The logits (vocab_size of them) that follow the token at `position`.
  virtual void on_logits(std::uint32_t position, Span<const float> logits) {
    static_cast<void>(position);
    static_cast<void>(logits);
  }

  // The experts chosen for the token at `position` in `layer`, best first, with their weights, which
  // sum to 1. Not called for dense models.
  virtual void on_router(std::uint32_t layer, std::uint32_t position,
                         Span<const std::uint32_t> experts, Span<const float> weights) {
    static_cast<void>(layer);
    static_cast<void>(position);
    static_cast<void>(experts);
    static_cast<void>(weights);
  }

  // If true, on_input() is called.
  virtual bool wants_inputs() const { return false; }

  // What the matrix of this role in `layer`, of `expert` for w1 and w2, is multiplied with for one
  // token. wk and wv have the same input as wq, w3 that of w1; they are not reported.
  virtual void on_input(Role role, std::uint32_t layer, std::uint32_t expert,
                        Span<const float> input) {
    static_cast<void>(role);
    static_cast<void>(layer);
    static_cast<void>(expert);
    static_cast<void>(input);
  }

  // How much of the evaluation is done, after each layer of a pass and once more when the pass is complete.
  // What is counted is told in progress.hpp.
  virtual void on_progress(const Progress& progress) { static_cast<void>(progress); }

  // If true, the clock is read and on_time() called.
  virtual bool wants_times() const { return false; }

  // How long a piece of `part` in `layer` took, on all threads together; several pieces make up a
  // part. `layer` is 0 for the embedding, n_layers for the output.
  virtual void on_time(Part part, std::uint32_t layer, double seconds) {
    static_cast<void>(part);
    static_cast<void>(layer);
    static_cast<void>(seconds);
  }
};

}  // namespace mixtral

#endif  // MIXTRAL_OBSERVER_HPP_
