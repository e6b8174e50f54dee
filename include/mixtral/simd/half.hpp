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

// float32 to IEEE 754 binary16, rounded to nearest, ties to even; too large becomes infinity.
inline std::uint16_t portable_float_to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);   // NaN
  if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (bits < 0x38800000u) {  // below 2^-14: units of 2^-24, rounded by adding 0.5 in float32
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  const std::uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

// float32 to bfloat16, rounded to nearest, ties to even.
inline std::uint16_t float_to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace mixtral::simd

#endif  // MIXTRAL_SIMD_HALF_HPP_
