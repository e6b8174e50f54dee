// All definitions of checkpoints.hpp.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_HPP_

#include "mixtral/impl/core.hpp"
//
#include "mixtral/impl/checkpoints/huggingface.hpp"
#include "mixtral/impl/checkpoints/json.hpp"
#include "mixtral/impl/checkpoints/open.hpp"
#include "mixtral/impl/checkpoints/original.hpp"
#include "mixtral/impl/checkpoints/safetensors.hpp"
#include "mixtral/impl/checkpoints/tokenizer_json.hpp"
#include "mixtral/impl/checkpoints/torch_file.hpp"

#endif  // MIXTRAL_IMPL_CHECKPOINTS_HPP_
