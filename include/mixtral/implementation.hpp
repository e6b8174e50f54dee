// All definitions but those of the kernels; included by mixtral.hpp where MIXTRAL_IMPLEMENTATION or
// MIXTRAL_IMPLEMENTATION_REST is defined, once a program.
#ifndef MIXTRAL_IMPLEMENTATION_HPP_
#define MIXTRAL_IMPLEMENTATION_HPP_

#include "mixtral/impl/bytes.hpp"
#include "mixtral/impl/chat.hpp"
#include "mixtral/impl/checkpoint.hpp"
#include "mixtral/impl/generation.hpp"
#include "mixtral/impl/gguf.hpp"
#include "mixtral/impl/gguf_checkpoint.hpp"
#include "mixtral/impl/grammar.hpp"
#include "mixtral/impl/model.hpp"
#include "mixtral/impl/sampling.hpp"
#include "mixtral/impl/sentencepiece.hpp"
#include "mixtral/impl/session.hpp"
#include "mixtral/impl/thread_pool.hpp"
#include "mixtral/impl/tokenizer.hpp"
#include "mixtral/impl/weights.hpp"

#endif  // MIXTRAL_IMPLEMENTATION_HPP_
