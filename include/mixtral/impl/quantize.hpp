// All definitions of quantize.hpp and importance.hpp.
#ifndef MIXTRAL_IMPL_QUANTIZE_HPP_
#define MIXTRAL_IMPL_QUANTIZE_HPP_

#include "mixtral/impl/core.hpp"
//
#include "mixtral/impl/quantize/encode.hpp"
#include "mixtral/impl/quantize/importance.hpp"
#include "mixtral/impl/quantize/mixture.hpp"
#include "mixtral/impl/quantize/write_gguf.hpp"

#endif  // MIXTRAL_IMPL_QUANTIZE_HPP_
