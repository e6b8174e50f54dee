#define MIXTRAL_IMPLEMENTATION
#include <mixtral/mixtral.hpp>
