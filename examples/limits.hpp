// What this machine can do at all, so that speeds can be told as fractions of it.
#ifndef MIXTRAL_EXAMPLES_LIMITS_HPP_
#define MIXTRAL_EXAMPLES_LIMITS_HPP_

#include <mixtral/executor.hpp>

namespace program {

struct Limits {
  double read_bytes = 0.0;  // a second, from memory
  double int8_ops = 0.0;    // a second: multiplications and additions of 8-bit dot products
  double f32_ops = 0.0;     // a second: multiplications and additions of float32
};

// Measures on all threads of the executor for about a second, taking 512 MiB of memory.
Limits measure_limits(mixtral::Executor executor);

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_LIMITS_HPP_
