// Sets of Unicode characters, and how they lie in UTF-8.
#ifndef MIXTRAL_IMPL_CODE_POINTS_HPP_
#define MIXTRAL_IMPL_CODE_POINTS_HPP_

#include <algorithm>
#include <cstdint>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral/utf8.hpp"

namespace mixtral::detail {

constexpr std::uint32_t kLastCodePoint = 0x10FFFF;

struct CodePointRange {
  std::uint32_t first;
  std::uint32_t last;
};

// Returns what an error quotes of a text that goes wrong here: its first 20 bytes, whole characters only.
inline std::string_view beginning_of(std::string_view text) noexcept {
  std::size_t size = 20;
  if (text.size() <= size) return text;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  return text.substr(0, size);
}

// Ranges in any order until normalize(); then ascending, apart, and without surrogates, which are no
// characters.
using CodePoints = std::pmr::vector<CodePointRange>;

inline void normalize(CodePoints& set) {
  std::sort(set.begin(), set.end(),
            [](const CodePointRange& a, const CodePointRange& b) { return a.first < b.first; });
  CodePoints out(set.get_allocator());
  const auto add = [&](std::uint32_t first, std::uint32_t last) {
    if (first > last) return;
    if (!out.empty() && first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, last);
    } else {
      out.push_back({first, last});
    }
  };
  for (const CodePointRange& range : set) {
    add(range.first, std::min(range.last, 0xD7FFu));
    add(std::max(range.first, 0xE000u), std::min(range.last, kLastCodePoint));
  }
  set.swap(out);
}

// Of a normalized set.
inline CodePoints complement(const CodePoints& set) {
  CodePoints out(set.get_allocator());
  std::uint32_t next = 0;
  for (const CodePointRange& range : set) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) out.push_back({next, kLastCodePoint});
  normalize(out);
  return out;
}

inline std::size_t encode_utf8(std::uint32_t c, std::uint8_t* out) noexcept {
  if (c < 0x80) {
    out[0] = static_cast<std::uint8_t>(c);
    return 1;
  }
  const std::size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  const std::uint32_t lead = length == 2 ? 0xC0 : length == 3 ? 0xE0 : 0xF0;
  for (std::size_t i = length - 1; i > 0; --i) {
    out[i] = static_cast<std::uint8_t>(0x80 | (c & 0x3F));
    c >>= 6;
  }
  out[0] = static_cast<std::uint8_t>(lead | c);
  return length;
}

inline void append_utf8(std::uint32_t c, std::pmr::string& out) {
  std::uint8_t bytes[4];
  const std::size_t n = encode_utf8(c, bytes);
  out.append(reinterpret_cast<const char*>(bytes), n);
}

// The character at `at`, which moves on; false if it is not valid UTF-8 (or the text ends).
inline bool next_code_point(std::string_view text, std::size_t& at, std::uint32_t& c) noexcept {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data()) + at;
  std::size_t length = 0;
  if (at >= text.size() ||
      utf8::classify(bytes, text.size() - at, length) != utf8::Sequence::valid) {
    return false;
  }
  c = length == 1 ? bytes[0] : bytes[0] & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) c = c << 6 | (bytes[i] & 0x3Fu);
  at += length;
  return true;
}

// Calls visit(first bytes, last bytes, length) for ranges of byte sequences of one length, each byte in
// its own range, that together are the UTF-8 of the characters from `first` to `last`. Cutting
// at multiples of 64 gives the fewest (as Russ Cox describes for RE2, 2010). Recurses at most 10 deep: each
// call cuts at one of three ends or at one of two sides of three levels.
template <class Visit>
void for_each_utf8_range(std::uint32_t first, std::uint32_t last, const Visit& visit) {
  for (const std::uint32_t end : {0x7Fu, 0x7FFu, 0xFFFFu}) {
    if (first <= end && end < last) {
      for_each_utf8_range(first, end, visit);
      return for_each_utf8_range(end + 1, last, visit);
    }
  }
  const int n_more = last < 0x80 ? 0 : last < 0x800 ? 1 : last < 0x10000 ? 2 : 3;
  for (int i = 1; i <= n_more; ++i) {
    const std::uint32_t mask = (1u << (6 * i)) - 1;
    if ((first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      for_each_utf8_range(first, first | mask, visit);
      return for_each_utf8_range((first | mask) + 1, last, visit);
    }
    if ((last & mask) != mask) {
      for_each_utf8_range(first, (last & ~mask) - 1, visit);
      return for_each_utf8_range(last & ~mask, last, visit);
    }
  }
  std::uint8_t from[4], to[4];
  const std::size_t length = encode_utf8(first, from);
  encode_utf8(last, to);
  visit(from, to, length);
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CODE_POINTS_HPP_
