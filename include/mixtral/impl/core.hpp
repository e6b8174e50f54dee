// All definitions but those of the kernels and of the optional headers.
#ifndef MIXTRAL_IMPL_CORE_HPP_
#define MIXTRAL_IMPL_CORE_HPP_

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

#endif  // MIXTRAL_IMPL_CORE_HPP_
