// How much each column of each matrix matters: mean squares of what it is multiplied with.
//
// Given as the observer of an evaluation, it gathers them; given to write_gguf(), quantisation spends
// its precision where activations are large. The error of a product w x from an error d of w is on
// average the sum of d[i]^2 E[x[i]^2], if the x[i] are not correlated.
// The file is llama.cpp's importance matrix in GGUF (general.type "imatrix"). Part of quantize.hpp.
#ifndef MIXTRAL_IMPORTANCE_HPP_
#define MIXTRAL_IMPORTANCE_HPP_

#include <cstdint>
#include <map>
#include <memory_resource>
#include <tuple>
#include <vector>

#include "mixtral/config.hpp"
#include "mixtral/error.hpp"
#include "mixtral/observer.hpp"
#include "mixtral/role.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

class Importance : public Observer {
 public:
  // `config` tells how many experts there are. Memory: 8 bytes for every column of every matrix,
  // about 4 MB a layer of Mixtral 8x7B.
  explicit Importance(const Config& config,
                      std::pmr::memory_resource* resource = std::pmr::get_default_resource())
      : n_experts_(config.n_experts), sums_(resource) {}

  // From the bytes of an importance file. Tensors of other kinds than those of `config`'s family are
  // passed over. Errors: bad_format, naming the tensor; out_of_memory.
  static Result<Importance> read(
      Span<const std::uint8_t> bytes, const Config& config,
      std::pmr::memory_resource* resource = std::pmr::get_default_resource());

  // The bytes of such a file. Errors: invalid_argument if nothing was gathered, out_of_memory.
  Result<std::pmr::vector<std::uint8_t>> to_gguf() const;

  // Puts the mean squares of the inputs of a matrix, one for each of its columns, into `out`, which
  // has n_cols of them; false, and `out` as it was, if none were gathered, or not so many columns. An
  // expert that was never chosen gets the mean of the others.
  bool find(Role role, std::uint32_t layer, std::uint32_t expert, std::size_t n_cols,
            float* out) const;

  // For Observer. Allocates when a matrix is first seen; where the memory resource has nothing left
  // (and exceptions are on), or the file that was read has another number of columns, the input is
  // passed over and `complete()` turns false.
  bool wants_inputs() const override { return true; }
  void on_input(Role role, std::uint32_t layer, std::uint32_t expert,
                Span<const float> input) override;
  bool complete() const noexcept { return complete_; }

 private:
  struct Sum {
    explicit Sum(std::pmr::memory_resource* resource) : squares(resource) {}
    std::pmr::vector<double> squares;  // [columns]
    double count = 0.0;                // of tokens
  };
  using Key = std::tuple<std::uint32_t, Role, std::uint32_t>;  // layer, role, expert

  static Role shared(Role role) noexcept {
    if (role == Role::wk || role == Role::wv) return Role::wq;
    return role == Role::w3 ? Role::w1 : role;
  }

  std::uint32_t n_experts_;
  std::pmr::map<Key, Sum> sums_;
  bool complete_ = true;
};

}  // namespace mixtral

#endif  // MIXTRAL_IMPORTANCE_HPP_
