// The one file that holds mixtral's definitions, for all example programs; the kernels are in kernels.cpp.
#define MIXTRAL_IMPLEMENTATION_REST
#include <mixtral/checkpoints.hpp>
#include <mixtral/json_schema.hpp>
#include <mixtral/mixtral.hpp>
#include <mixtral/quantize.hpp>
