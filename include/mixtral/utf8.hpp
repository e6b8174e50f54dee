// UTF-8 as the sentencepiece library reads it (RFC 3629; util.cc, DecodeUTF8).
#ifndef MIXTRAL_UTF8_HPP_
#define MIXTRAL_UTF8_HPP_

#include <cstddef>
#include <cstdint>

#include "mixtral/impl/compiler.hpp"

namespace mixtral::utf8 {

constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD
constexpr char kSpaceSymbol[] = "\xE2\x96\x81";  // U+2581, which stands for a space in pieces
constexpr std::size_t kSymbolLength = 3;         // of both

enum class Sequence { valid, incomplete, invalid };

// Looks at the character that begins at `bytes`. On `valid`, `length` is its length in bytes.
// `incomplete` means that more bytes could still make it valid.
inline Sequence classify(const std::uint8_t* bytes, std::size_t size,
                         std::size_t& length) noexcept {
  length = 1;
  if (size == 0) return Sequence::incomplete;
  const std::uint8_t lead = bytes[0];
  if (lead < 0x80) return Sequence::valid;
  std::size_t needed;
  std::uint8_t low = 0x80;  // the range of the second byte
  std::uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    needed = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    needed = 3;
    if (lead == 0xE0) low = 0xA0;   // no overlong forms
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    needed = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;  // nothing above U+10FFFF
  } else {
    return Sequence::invalid;
  }
  for (std::size_t i = 1; i < needed; ++i) {
    if (i >= size) return Sequence::incomplete;
    if (bytes[i] < low || bytes[i] > high) return Sequence::invalid;
    low = 0x80;
    high = 0xBF;
  }
  length = needed;
  return Sequence::valid;
}

// The length of a character of valid UTF-8 from its first byte.
inline std::size_t length_from_lead(std::uint8_t lead) noexcept {
  return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

}  // namespace mixtral::utf8

#endif  // MIXTRAL_UTF8_HPP_
