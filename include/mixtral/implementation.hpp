// Brings the definitions that MIXTRAL_IMPLEMENTATION or a part of it asks for, of all headers that were
// included so far. mixtral.hpp and the optional headers end with this file, behind their include guards, and
// it has none itself: the definitions come with the first of these includes after the define, wherever that
// stands, and once, since each of the files below has a guard.
#if defined(MIXTRAL_IMPLEMENTATION) || defined(MIXTRAL_IMPLEMENTATION_KERNELS) || \
    defined(MIXTRAL_IMPLEMENTATION_REST)

// <windows.h> defines both as macros unless it is told not to; a host may have included it before.
#pragma push_macro("min")
#pragma push_macro("max")
#undef min
#undef max

#if defined(MIXTRAL_IMPLEMENTATION) || defined(MIXTRAL_IMPLEMENTATION_KERNELS)
#include "mixtral/simd/all_targets.hpp"
#endif

#if defined(MIXTRAL_IMPLEMENTATION) || defined(MIXTRAL_IMPLEMENTATION_REST)
#include "mixtral/impl/core.hpp"
#if defined(MIXTRAL_CHECKPOINTS_HPP_)
#include "mixtral/impl/checkpoints.hpp"
#endif
#if defined(MIXTRAL_JSON_SCHEMA_HPP_)
#include "mixtral/impl/json_schema.hpp"
#endif
#if defined(MIXTRAL_QUANTIZE_HPP_)
#include "mixtral/impl/quantize.hpp"
#endif
#endif

#pragma pop_macro("max")
#pragma pop_macro("min")

#endif
