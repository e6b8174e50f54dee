// Looks at JSON before it is parsed: what parsers make of a text recurses as deep as the text is nested
// when it is copied, compared or written, and parsers that keep members in order compare each with all
// before it.
#ifndef MIXTRAL_JSON_TEXT_HPP_
#define MIXTRAL_JSON_TEXT_HPP_

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

// The shape of a JSON text.
struct JsonShape {
  std::size_t depth = 0;         // of arrays and objects in one another: 0 for "a", 2 for [[]]
  std::size_t most_members = 0;  // of one object that is nested at most kJsonShapeDepth deep
};

constexpr std::size_t kJsonShapeDepth = 128;

// The shape of `text`, or of more than a parser sees of it if it is no JSON. Takes time in proportion to
// the text, no memory, and does not recurse.
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
          shape.most_members = (std::max)(shape.most_members, ++n_members[depth - 1]);
        }
        break;
      default: break;
    }
  }
  return shape;
}

}  // namespace mixtral

#endif  // MIXTRAL_JSON_TEXT_HPP_
