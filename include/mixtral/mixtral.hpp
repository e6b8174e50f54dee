// mixtral.hpp: Mixtral, Mistral and Llama 2 inference in any C++17 program.
//
// Include this wherever the API is used. In exactly one source file of the program, define
// MIXTRAL_IMPLEMENTATION before the include: the definitions and SIMD kernels are compiled there. Or have
// the kernels, which take longest, in one file that defines MIXTRAL_IMPLEMENTATION_KERNELS, and all else in
// another, that defines MIXTRAL_IMPLEMENTATION_REST: the two compile at the same time. Other files may have
// included the header in the same translation unit before (a unity build): the include after the define counts.
// The implementation needs Eigen and Highway; elsewhere the standard library is enough. README.md says how
// to link.
#ifndef MIXTRAL_MIXTRAL_HPP_
#define MIXTRAL_MIXTRAL_HPP_

// file
#include "mixtral/bytes.hpp"
#include "mixtral/gguf.hpp"
// weights
#include "mixtral/block_format.hpp"
#include "mixtral/checkpoint.hpp"
#include "mixtral/config.hpp"
// model
#include "mixtral/model.hpp"
// session
#include "mixtral/byte_stream.hpp"
#include "mixtral/executor.hpp"
#include "mixtral/observer.hpp"
#include "mixtral/progress.hpp"
#include "mixtral/sampling.hpp"
#include "mixtral/session.hpp"
#include "mixtral/thread_pool.hpp"
// text
#include "mixtral/chat.hpp"
#include "mixtral/generation.hpp"
#include "mixtral/grammar.hpp"
#include "mixtral/json_text.hpp"
#include "mixtral/tokenizer.hpp"

#define MIXTRAL_VERSION_MAJOR 0
#define MIXTRAL_VERSION_MINOR 1
#define MIXTRAL_VERSION_PATCH 0

#endif  // MIXTRAL_MIXTRAL_HPP_

#include "mixtral/implementation.hpp"
