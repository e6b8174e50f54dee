// Regular expressions (ECMA-262, section 22.2.1) as GBNF, which has nearly the same operators.
#ifndef MIXTRAL_IMPL_REGEX_HPP_
#define MIXTRAL_IMPL_REGEX_HPP_

#include <cstdio>
#include <memory_resource>
#include <string>
#include <string_view>

#include "mixtral/error.hpp"
#include "mixtral/grammar.hpp"
#include "mixtral/impl/code_points.hpp"
#include "mixtral/impl/gbnf.hpp"

namespace mixtral::detail {

// Appends one character of a literal or set of GBNF.
inline void append_gbnf_character(std::uint32_t c, std::pmr::string& out) {
  char escape[16];
  if (c < 0x20 || c == 0x7F) {
    std::snprintf(escape, sizeof escape, "\\x%02X", static_cast<unsigned>(c));
    out += escape;
    return;
  }
  if (c == '\\' || c == '"' || c == '[' || c == ']' || c == '-' || c == '^') out += '\\';
  append_utf8(c, out);
}

class RegexTranslator {
 public:
  RegexTranslator(std::string_view pattern, RegexScope scope, std::pmr::string& out,
                  std::pmr::memory_resource* resource)
      : pattern_(pattern),
        in_json_(scope == RegexScope::json_string),
        out_(out),
        resource_(resource) {}

  Status translate() {
    out_ += '(';
    MIXTRAL_RETURN_IF_ERROR(begin_alternative());
    while (at_ < pattern_.size()) {
      if (out_.size() > kMostGrammarBytes) return unsupported("it is too large,");
      MIXTRAL_RETURN_IF_ERROR(translate_next());
    }
    if (depth_ != 0) return error("a group has no end");
    end_alternative();
    out_ += ')';
    return {};
  }

 private:
  Error error(const char* what, ErrorCode code = ErrorCode::bad_format) const {
    const std::string_view rest = beginning_of(pattern_.substr(std::min(at_, pattern_.size())));
    return Error(code, "regular expression, byte %zu: %s%s%.*s%s", at_ + 1, what,
                 rest.empty() ? " at the end" : " at '", static_cast<int>(rest.size()), rest.data(),
                 rest.empty() ? "" : "'");
  }
  Error unsupported(const char* what) const { return error(what, ErrorCode::unsupported); }

  bool at(std::string_view text) const noexcept {
    return pattern_.substr(at_, text.size()) == text;
  }
  char peek() const noexcept { return at_ < pattern_.size() ? pattern_[at_] : '\0'; }

  // A pattern that is searched for may have anything before and after it.
  Status begin_alternative() {
    anchored_at_end_ = false;
    repeatable_ = false;
    if (depth_ != 0) return {};
    if (at("^")) {
      ++at_;
    } else if (in_json_) {
      CodePoints any(resource_);
      any.push_back({0, kLastCodePoint});
      append_set(any);
      out_ += '*';
      repeatable_ = false;
    }
    return {};
  }
  void end_alternative() {
    if (depth_ != 0 || anchored_at_end_ || !in_json_) return;
    CodePoints any(resource_);
    any.push_back({0, kLastCodePoint});
    append_set(any);
    out_ += '*';
  }

  Status translate_next() {
    if (anchored_at_end_ && peek() != '|') return unsupported("$ before the end is not supported,");
    switch (peek()) {
      case '|':
        end_alternative();
        ++at_;
        out_ += " | ";
        return begin_alternative();
      case '(': return open_group();
      case ')':
        if (depth_ == 0) return error("a group ends that did not begin");
        ++at_;
        --depth_;
        out_ += ')';
        repeatable_ = true;
        return {};
      case '*':
      case '+':
      case '?':
      case '{': return translate_repeat();
      case '^': return unsupported("^ after the beginning is not supported,");
      case '$':
        if (depth_ != 0) return unsupported("$ in a group is not supported,");
        ++at_;
        anchored_at_end_ = true;
        return {};
      case '[': return translate_set();
      case '.': {
        ++at_;
        CodePoints set = line_ends();
        normalize(set);
        append_set(complement(set));
        return {};
      }
      default: break;
    }
    CodePoints set(resource_);
    std::uint32_t c = 0;
    MIXTRAL_RETURN_IF_ERROR(read_atom(false, set, c));
    normalize(set);
    append_set(set);
    return {};
  }

  Status open_group() {
    constexpr int kMostNested = 150;
    if (depth_ == kMostNested) return unsupported("groups are nested too deep");
    if (at("(?:")) {
      at_ += 3;
    } else if (at("(?=") || at("(?!") || at("(?<=") || at("(?<!")) {
      return unsupported("lookaround is not supported,");
    } else if (at("(?<")) {
      const std::size_t end = pattern_.find('>', at_);
      if (end == std::string_view::npos) return error("a group's name has no end");
      at_ = end + 1;
    } else if (at("(?")) {
      return unsupported("flags are not supported,");
    } else {
      ++at_;
    }
    ++depth_;
    out_ += '(';
    return begin_alternative();
  }

  // The same in GBNF. That less is preferred, as by *?, makes no difference to what matches.
  Status translate_repeat() {
    if (!repeatable_) return error("nothing to repeat");
    repeatable_ = false;
    const char c = peek();
    if (c == '{') {
      const std::size_t end = pattern_.find('}', at_);
      const std::string_view bounds =
          pattern_.substr(at_, end == std::string_view::npos ? end : end + 1 - at_);
      const std::size_t digits = bounds.find_first_not_of("0123456789", 1);
      if (end == std::string_view::npos || digits == 1 ||
          bounds.find_first_not_of("0123456789", digits + (bounds[digits] == ',' ? 1 : 0)) !=
              bounds.size() - 1) {
        return error("expected {n}, {n,} or {n,m}, or \\{,");
      }
      out_ += bounds;
      at_ += bounds.size();
    } else {
      out_ += c;
      ++at_;
    }
    if (peek() == '?') ++at_;
    return {};
  }

  CodePoints line_ends() const {
    CodePoints set(resource_);
    set.push_back({'\n', '\n'});
    set.push_back({'\r', '\r'});
    set.push_back({0x2028, 0x2029});
    return set;
  }

  void add_class(char name, CodePoints& out) const {
    CodePoints set(resource_);
    switch (name) {
      case 'd':
      case 'D': set.push_back({'0', '9'}); break;
      case 'w':
      case 'W':
        set.push_back({'0', '9'});
        set.push_back({'A', 'Z'});
        set.push_back({'_', '_'});
        set.push_back({'a', 'z'});
        break;
      default:  // sections 12.2 and 12.3: white space and line terminators
        set = line_ends();
        for (const std::uint32_t c :
             {0x09u, 0x0Bu, 0x0Cu, 0x20u, 0xA0u, 0x1680u, 0x202Fu, 0x205Fu, 0x3000u, 0xFEFFu}) {
          set.push_back({c, c});
        }
        set.push_back({0x2000, 0x200A});
    }
    normalize(set);
    if (name == 'D' || name == 'W' || name == 'S') set = complement(set);
    out.insert(out.end(), set.begin(), set.end());
  }

  Status translate_set() {
    ++at_;
    const bool negated = peek() == '^';
    if (negated) ++at_;
    CodePoints set(resource_);
    while (peek() != ']') {
      if (at_ >= pattern_.size()) return error("a set has no end");
      std::uint32_t first = 0, last = 0;
      MIXTRAL_RETURN_IF_ERROR(read_atom(true, set, first));
      if (peek() != '-' || pattern_.substr(at_ + 1, 1) == "]") continue;
      ++at_;
      if (at_ >= pattern_.size()) return error("a set has no end");
      MIXTRAL_RETURN_IF_ERROR(read_atom(true, set, last));
      if (first == kNone || last == kNone) return error("a range from or to a class before");
      if (last < first) return error("a range ends before it begins,");
      set.push_back({first, last});
    }
    ++at_;
    normalize(set);
    if (negated) set = complement(set);
    if (set.empty()) return error("a set of no characters before");
    append_set(set);
    return {};
  }

  // One character or class; `c` is the character, kNone for a class.
  Status read_atom(bool in_set, CodePoints& set, std::uint32_t& c) {
    const std::size_t begin = at_;
    if (!next_code_point(pattern_, at_, c)) return error("it is not UTF-8");
    if (c == '\\') {
      if (at_ >= pattern_.size()) return error("nothing follows \\");
      const char escape = peek();
      const auto fail = [&](const char* what, bool known) {
        at_ = begin;
        return known ? unsupported(what) : error(what);
      };
      ++at_;
      switch (escape) {
        case 'd':
        case 'D':
        case 'w':
        case 'W':
        case 's':
        case 'S':
          add_class(escape, set);
          c = kNone;
          return {};
        case 'n': c = '\n'; break;
        case 'r': c = '\r'; break;
        case 't': c = '\t'; break;
        case 'f': c = '\f'; break;
        case 'v': c = '\v'; break;
        case '0': c = 0; break;
        case 'x': MIXTRAL_RETURN_IF_ERROR(read_hex(2, c)); break;
        case 'u':
          if (peek() == '{') {
            ++at_;
            MIXTRAL_RETURN_IF_ERROR(read_hex(0, c));
          } else {
            MIXTRAL_RETURN_IF_ERROR(read_hex(4, c));
            if (c >= 0xD800 && c <= 0xDBFF && at("\\u")) {  // a pair of surrogates
              at_ += 2;
              std::uint32_t low = 0;
              MIXTRAL_RETURN_IF_ERROR(read_hex(4, low));
              if (low < 0xDC00 || low > 0xDFFF) return error("half a pair of surrogates before");
              c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
            }
          }
          if (c > kLastCodePoint || (c >= 0xD800 && c <= 0xDFFF)) {
            return error("no Unicode character before");
          }
          break;
        case 'b':
          if (!in_set) return fail("\\b is not supported,", true);
          c = '\b';
          break;
        case 'B': return fail("\\B is not supported,", true);
        case 'p':
        case 'P': return fail("\\p is not supported,", true);
        case 'k': return fail("references are not supported,", true);
        case 'c': return fail("\\c is not supported,", true);
        default:
          if (escape >= '1' && escape <= '9') return fail("references are not supported,", true);
          --at_;
          if (!next_code_point(pattern_, at_, c)) return error("it is not UTF-8");
          if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
            return fail("an unknown escape", false);
          }
      }
    }
    set.push_back({c, c});
    return {};
  }

  // n hexadecimal digits; of 0, any number of them and }.
  Status read_hex(int n, std::uint32_t& value) {
    value = 0;
    for (int i = 0; n == 0 || i < n; ++i, ++at_) {
      const char c = peek();
      if (n == 0 && i > 0 && c == '}') {
        ++at_;
        return {};
      }
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return error("expected a hexadecimal digit");
      if (value > kLastCodePoint) return error("no Unicode character before");
      value = value << 4 | static_cast<std::uint32_t>(digit);
    }
    return {};
  }

  // A set as GBNF. In a JSON string, some characters have to be escaped (RFC 8259, section 7).
  void append_set(const CodePoints& set) {
    repeatable_ = true;
    if (!in_json_) return append_plain_set(set);
    CodePoints plain(resource_);
    const auto contains = [&](std::uint32_t c) {
      for (const CodePointRange& range : set) {
        if (c >= range.first && c <= range.last) return true;
      }
      return false;
    };
    out_ += '(';
    for (const CodePointRange& range : set) {
      std::uint32_t first = std::max(range.first, 0x20u);
      for (const std::uint32_t special : {std::uint32_t{'"'}, std::uint32_t{'\\'}}) {
        if (first > special || range.last < special) continue;
        if (first < special) plain.push_back({first, special - 1});
        first = special + 1;
      }
      if (first <= range.last) plain.push_back({first, range.last});
    }
    const char* separator = "";
    if (!plain.empty()) {
      append_plain_set(plain);
      separator = " | ";
    }
    struct Escape {
      std::uint32_t c;
      const char* gbnf;
    };
    for (const Escape& escape :
         {Escape{'"', "\\\""}, Escape{'\\', "\\\\"}, Escape{'\b', "b"}, Escape{'\f', "f"},
          Escape{'\n', "n"}, Escape{'\r', "r"}, Escape{'\t', "t"}}) {
      if (!contains(escape.c)) continue;
      out_.append(separator).append("\"\\\\").append(escape.gbnf).append("\"");
      separator = " | ";
    }
    for (std::uint32_t c = 0; c < 0x20; ++c) {
      if (!contains(c) || (c >= 8 && c <= 13 && c != 11)) continue;
      char text[24];
      std::snprintf(text, sizeof text, "\"\\\\u00%02x\"", static_cast<unsigned>(c));
      out_.append(separator).append(text);
      separator = " | ";
    }
    out_ += ')';
  }

  void append_plain_set(const CodePoints& set) {
    if (set.size() == 1 && set[0].first == set[0].last) {
      out_ += '"';
      append_gbnf_character(set[0].first, out_);
      out_ += '"';
      return;
    }
    out_ += '[';
    for (const CodePointRange& range : set) {
      append_gbnf_character(range.first, out_);
      if (range.last == range.first) continue;
      if (range.last > range.first + 1) out_ += '-';
      append_gbnf_character(range.last, out_);
    }
    out_ += ']';
  }

  std::string_view pattern_;
  bool in_json_;
  std::pmr::string& out_;
  std::pmr::memory_resource* resource_;
  std::size_t at_ = 0;
  int depth_ = 0;
  bool repeatable_ = false;       // what was translated last
  bool anchored_at_end_ = false;  // $ was found
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_REGEX_HPP_
