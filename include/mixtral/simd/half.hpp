// Half-precision conversion without SIMD.
#ifndef MIXTRAL_SIMD_HALF_HPP_
#define MIXTRAL_SIMD_HALF_HPP_

#include <cstdint>
#include <cstring>

namespace mixtral::simd {

// IEEE 754 binary16, little-endian, to float32; exact for every input including subnormals.
inline float portable_half_to_float(const std::uint8_t* bytes) {
  const std::uint32_t half = bytes[0] | static_cast<std::uint32_t>(bytes[1]) << 8;
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  float value;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    const std::uint32_t bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    std::memcpy(&value, &bits, 4);
  } else if (magnitude >= 0x400u) {
    const std::uint32_t bits = (magnitude << 13) + (112u << 23);
    std::memcpy(&value, &bits, 4);
  } else {
    value = static_cast<float>(magnitude) * (1.0f / 16777216.0f);  // units of 2^-24
  }
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace mixtral::simd

#endif  // MIXTRAL_SIMD_HALF_HPP_
