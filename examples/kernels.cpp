// The one file that holds mixtral's SIMD kernels, for all example programs.
#define MIXTRAL_IMPLEMENTATION_KERNELS
#include <mixtral/mixtral.hpp>
