// Looks at JSON before it is parsed: what parsers make of a text recurses as deep as the text is nested
// when it is copied, compared or written, and parsers that keep members in order compare each with all
// before it.
#ifndef MIXTRAL_JSON_TEXT_HPP_
#define MIXTRAL_JSON_TEXT_HPP_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

// The shape of a JSON text. Members are counted of objects that are nested at most kJsonShapeDepth deep.
struct JsonShape {
  std::size_t depth = 0;         // of arrays and objects in one another: 0 for "a", 2 for [[]]
  std::size_t most_members = 0;  // of one object
  // The sum over all objects of the square of their number of members: what a parser takes that compares
  // each with all before it.
  std::uint64_t member_squares = 0;
};

constexpr std::size_t kJsonShapeDepth = 128;

// Returns the shape of `text`. Of a text that is no JSON the result may be larger, but is never smaller,
// than that of what a parser reads before its error. Takes time in proportion to the text, no memory, and
// does not recurse.
inline JsonShape json_shape(std::string_view text) noexcept {
  JsonShape shape;
  std::array<std::size_t, kJsonShapeDepth> n_members{};  // so far, of what is open
  std::size_t depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        for (++i; i < text.size() && text[i] != '"'; ++i) {
          if (text[i] == '\\') ++i;
        }
        break;
      case '[':
      case '{':
        if (depth < kJsonShapeDepth) n_members[depth] = 0;
        shape.depth = (std::max)(shape.depth, ++depth);
        break;
      case ']':
      case '}':
        if (depth > 0) --depth;
        break;
      case ':':
        if (depth > 0 && depth <= kJsonShapeDepth) {
          const std::size_t n = ++n_members[depth - 1];
          shape.most_members = (std::max)(shape.most_members, n);
          shape.member_squares += 2 * n - 1;  // n^2 - (n - 1)^2
        }
        break;
      default: break;
    }
  }
  return shape;
}

}  // namespace mixtral

#endif  // MIXTRAL_JSON_TEXT_HPP_
