// The one file that holds mixtral's definitions and SIMD kernels, for all example programs.
#define MIXTRAL_IMPLEMENTATION
#include <mixtral/checkpoints.hpp>
#include <mixtral/json_schema.hpp>
#include <mixtral/mixtral.hpp>
#include <mixtral/quantize.hpp>
