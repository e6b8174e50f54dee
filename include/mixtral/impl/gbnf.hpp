// Reads GBNF into a tree of expressions.
#ifndef MIXTRAL_IMPL_GBNF_HPP_
#define MIXTRAL_IMPL_GBNF_HPP_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/impl/code_points.hpp"

namespace mixtral::detail {

constexpr std::uint32_t kNone = 0xFFFFFFFF;

// One expression. An expression stands after all that it is made of, so that a loop over all of them sees
// the parts before the whole.
struct Expression {
  enum class Kind : std::uint8_t { text, characters, sequence, choice, repeat, rule };
  Kind kind;
  std::uint32_t previous =
      kNone;                   // the part before it, in the sequence or choice that it is part of
  std::uint32_t part = kNone;  // sequence, choice: the last part, of two at least; repeat: what it
                               // repeats; rule: its number; text, characters: where they begin
  std::uint32_t n = 0;         // text: bytes; characters: ranges; choice: the first part;
                               // repeat: how often at least
  std::uint32_t most = kNone;  // repeat: how often at most; kNone: any number
};

struct Rule {
  std::string_view name;
  std::uint32_t expression = kNone;
  int line = 0;  // where it is defined; before that, where it is used first
};

// What a grammar may have; stated in grammar.hpp.
constexpr std::size_t kMostGrammarBytes = std::size_t{1} << 24;
constexpr std::size_t kMostGrammarRules = std::size_t{1} << 14;
constexpr std::size_t kMostGrammarParts = std::size_t{1} << 22;
constexpr std::size_t kMostGrammarNesting = 200;

inline Error grammar_too_large() {
  return Error(ErrorCode::unsupported,
               "the grammar is too large: more than %zu bytes of literals and other parts; use "
               "fewer or shorter "
               "ones, and smaller {counts} of long expressions",
               kMostGrammarParts);
}

struct GrammarTree {
  explicit GrammarTree(std::pmr::memory_resource* resource)
      : expressions(resource), rules(resource), text(resource), ranges(resource) {}

  std::pmr::vector<Expression> expressions;
  std::pmr::vector<Rule> rules;  // names point into the source
  std::pmr::string text;
  CodePoints ranges;

  std::uint32_t add(const Expression& expression) {
    expressions.push_back(expression);
    return static_cast<std::uint32_t>(expressions.size() - 1);
  }
};

// The parts of a sequence or choice, while they are gathered.
class ExpressionParts {
 public:
  void append(GrammarTree& tree, std::uint32_t part) { append(tree, part, part, 1); }

  // The alternatives of `part`, if it is a choice that was added last, become those of this one.
  void append_alternatives(GrammarTree& tree, std::uint32_t part) {
    const Expression choice = tree.expressions[part];
    if (choice.kind != Expression::Kind::choice) return append(tree, part);
    tree.expressions.pop_back();
    append(tree, choice.n, choice.part, 2);
  }

  // One part is what it is; none are an empty text.
  std::uint32_t finish(GrammarTree& tree, Expression::Kind kind) const {
    if (n_ == 1) return last_;
    Expression whole{};
    whole.kind = n_ == 0 ? Expression::Kind::text : kind;
    whole.part = n_ == 0 ? 0 : last_;
    whole.n = kind == Expression::Kind::choice ? first_ : 0;
    return tree.add(whole);
  }

 private:
  void append(GrammarTree& tree, std::uint32_t first, std::uint32_t last, std::size_t n) {
    if (n_ == 0) first_ = first;
    tree.expressions[first].previous = last_;
    last_ = last;
    n_ += n;
  }

  std::uint32_t first_ = kNone, last_ = kNone;
  std::size_t n_ = 0;  // two if there are more
};

class GbnfReader {
 public:
  GbnfReader(std::string_view source, GrammarTree& tree, std::pmr::memory_resource* resource)
      : source_(source), tree_(tree), rule_ids_(resource), open_(resource), resource_(resource) {}

  Status read() {
    constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";  // some editors write it
    if (source_.substr(0, kByteOrderMark.size()) == kByteOrderMark) at_ = kByteOrderMark.size();
    for (std::size_t at = 0; at < source_.size();) {
      std::uint32_t c;
      if (!next_code_point(source_, at, c)) {
        return Error(ErrorCode::bad_format, "grammar: byte %zu is not UTF-8", at);
      }
    }
    for (skip_space(true); at_ < source_.size(); skip_space(true)) {
      MIXTRAL_RETURN_IF_ERROR(read_rule());
    }
    for (const Rule& rule : tree_.rules) {
      if (rule.expression != kNone) continue;
      return Error(ErrorCode::bad_format, "grammar, line %d: rule '%s' is used but not defined",
                   rule.line, ShortName(rule.name).text());
    }
    if (rule_ids_.find("root") == rule_ids_.end()) {
      return Error(ErrorCode::bad_format, "grammar: it has no rule 'root'");
    }
    return {};
  }

  // Of the rule of this name.
  std::uint32_t find(std::string_view name) const { return rule_ids_.find(name)->second; }

 private:
  static bool is_name(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
  }

  char peek() const noexcept { return at_ < source_.size() ? source_[at_] : '\0'; }
  bool at(std::string_view text) const noexcept { return source_.substr(at_, text.size()) == text; }

  // The line of at_, counted on from where it was asked for last.
  int line() noexcept {
    const bool is_after = at_ >= counted_;
    const std::string_view between =
        is_after ? source_.substr(counted_, at_ - counted_) : source_.substr(at_, counted_ - at_);
    const auto n = static_cast<int>(std::count(between.begin(), between.end(), '\n'));
    line_ += is_after ? n : -n;
    counted_ = at_;
    return line_;
  }

  Error error(const char* what) {
    const std::string_view rest = beginning_of(source_.substr(at_));
    return Error(ErrorCode::bad_format, "grammar, line %d: %s%s%.*s%s", line(), what,
                 rest.empty() ? " at the end" : " at '", static_cast<int>(rest.size()), rest.data(),
                 rest.empty() ? "" : "'");
  }

  // Spaces and comments, with the ends of lines only if the expression goes on after them.
  void skip_space(bool lines) noexcept {
    while (at_ < source_.size()) {
      const char c = source_[at_];
      if (c == '#') {
        at_ = std::min(source_.find('\n', at_), source_.size());
      } else if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string_view read_name() noexcept {
    const std::size_t begin = at_;
    while (is_name(peek())) ++at_;
    return source_.substr(begin, at_ - begin);
  }

  Result<std::uint32_t> rule_id(std::string_view name) {
    const auto [entry, is_new] =
        rule_ids_.emplace(name, static_cast<std::uint32_t>(tree_.rules.size()));
    if (is_new) {
      if (tree_.rules.size() == kMostGrammarRules) {
        return Error(ErrorCode::unsupported, "grammar: more than %zu rules", kMostGrammarRules);
      }
      tree_.rules.push_back({name, kNone, line()});
    }
    return entry->second;
  }

  Status read_rule() {
    const std::string_view name = read_name();
    if (name.empty()) return error("expected the name of a rule");
    const Result<std::uint32_t> id = rule_id(name);
    MIXTRAL_RETURN_IF_ERROR(id);
    if (tree_.rules[*id].expression != kNone) return error("a rule is defined twice, again");
    tree_.rules[*id].line = line();
    skip_space(false);
    if (!at("::=")) return error("expected ::=");
    at_ += 3;
    skip_space(true);
    const Result<std::uint32_t> expression = read_expression();
    MIXTRAL_RETURN_IF_ERROR(expression);
    tree_.rules[*id].expression = *expression;
    if (peek() == '\r') ++at_;
    if (at_ < source_.size() && peek() != '\n') return error("expected the end of the rule");
    return {};
  }

  // A group in parentheses that has begun, or the rule itself.
  struct Group {
    ExpressionParts alternatives, sequence;
  };

  // Alternatives up to the end of a rule.
  Result<std::uint32_t> read_expression() {
    open_.assign(1, Group());
    for (;;) {
      if (tree_.expressions.size() > kMostGrammarParts) return grammar_too_large();
      const char c = peek();
      Result<std::uint32_t> part = kNone;
      if (c == '(') {
        if (open_.size() > kMostGrammarNesting) return error("parentheses are nested too deep");
        ++at_;
        skip_space(true);
        open_.emplace_back();
        continue;
      }
      if (c == '"') {
        part = read_text();
      } else if (c == '[') {
        part = read_characters();
      } else if (c == '.') {
        part = read_any();
      } else if (is_name(c)) {
        part = read_reference();
      } else if (c == '<' || c == '!') {
        return error("tokens in grammars are not supported,");
      } else {
        Group& group = open_.back();
        group.alternatives.append_alternatives(
            tree_, group.sequence.finish(tree_, Expression::Kind::sequence));
        group.sequence = ExpressionParts();
        // The next alternative may stand on a line of its own.
        const std::size_t end = at_;
        skip_space(true);
        if (peek() == '|') {
          ++at_;
          skip_space(true);
          continue;
        }
        part = group.alternatives.finish(tree_, Expression::Kind::choice);
        open_.pop_back();
        if (open_.empty()) {
          at_ = end;
          return part;
        }
        if (peek() != ')') return error("expected )");
        ++at_;
      }
      MIXTRAL_RETURN_IF_ERROR(part);
      const bool in_group = open_.size() > 1;
      skip_space(in_group);
      MIXTRAL_RETURN_IF_ERROR(read_repeats(in_group, *part));
      open_.back().sequence.append(tree_, *part);
    }
  }

  // What follows `part` makes it a repetition, or several, one of the other.
  Status read_repeats(bool in_group, std::uint32_t& part) {
    for (int n = 0;; ++n) {
      const char c = peek();
      if (c != '*' && c != '+' && c != '?' && c != '{') return {};
      if (n == 10) return error("too many repetitions of one another");
      ++at_;
      std::uint32_t least = c == '+' ? 1 : 0;
      std::uint32_t most = c == '?' ? 1 : kNone;
      if (c == '{') MIXTRAL_RETURN_IF_ERROR(read_bounds(least, most));
      Expression repeat{};
      repeat.kind = Expression::Kind::repeat;
      repeat.part = part;
      repeat.n = least;
      repeat.most = most;
      part = tree_.add(repeat);
      skip_space(in_group);
    }
  }

  static constexpr std::uint32_t kMostCount = 100000;  // of {n}; all numbers are below it

  // After '{': n} or n,} or n,m} or ,m}
  Status read_bounds(std::uint32_t& least, std::uint32_t& most) {
    const auto number = [&](std::uint32_t& value) {
      skip_space(false);
      bool found = false;
      for (value = 0; peek() >= '0' && peek() <= '9' && value < kMostCount; ++at_) {
        value = value * 10 + static_cast<std::uint32_t>(peek() - '0');
        found = true;
      }
      skip_space(false);
      return found;
    };
    const bool has_least = number(least);
    if (peek() == ',') {
      ++at_;
      if (!number(most)) most = kNone;
      if (!has_least && most == kNone) return error("expected a number");
    } else if (has_least) {
      most = least;
    } else {
      return error("expected a number");
    }
    const bool in_bounds = least < kMostCount && (most == kNone || most < kMostCount);
    if (peek() != '}' || !in_bounds) return error("expected } after a number below 100000");
    if (most < least) return error("a repetition at least so often is more than at most so often");
    ++at_;
    return {};
  }

  Result<std::uint32_t> read_reference() {
    const Result<std::uint32_t> id = rule_id(read_name());
    MIXTRAL_RETURN_IF_ERROR(id);
    Expression reference{};
    reference.kind = Expression::Kind::rule;
    reference.part = *id;
    return tree_.add(reference);
  }

  Result<std::uint32_t> read_text() {
    ++at_;
    Expression text{};
    text.kind = Expression::Kind::text;
    text.part = static_cast<std::uint32_t>(tree_.text.size());
    while (peek() != '"') {
      const Result<std::uint32_t> c = read_character();
      MIXTRAL_RETURN_IF_ERROR(c);
      append_utf8(*c, tree_.text);
    }
    ++at_;
    text.n = static_cast<std::uint32_t>(tree_.text.size()) - text.part;
    return tree_.add(text);
  }

  Result<std::uint32_t> read_any() {
    ++at_;
    CodePoints all(resource_);
    all.push_back({0, kLastCodePoint});
    return add_characters(all, false);
  }

  Result<std::uint32_t> read_characters() {
    ++at_;
    const bool negated = peek() == '^';
    if (negated) ++at_;
    CodePoints set(resource_);
    while (peek() != ']') {
      const Result<std::uint32_t> first = read_character();
      MIXTRAL_RETURN_IF_ERROR(first);
      std::uint32_t last = *first;
      if (peek() == '-' && source_.substr(at_ + 1, 1) != "]") {
        ++at_;
        const Result<std::uint32_t> end = read_character();
        MIXTRAL_RETURN_IF_ERROR(end);
        last = *end;
        if (last < *first) return error("a range of characters ends before it begins,");
      }
      set.push_back({*first, last});
    }
    ++at_;
    return add_characters(set, negated);
  }

  Result<std::uint32_t> add_characters(CodePoints& set, bool negated) {
    normalize(set);
    if (negated) set = complement(set);
    if (set.empty()) return error("a set of no characters before");
    Expression characters{};
    characters.kind = Expression::Kind::characters;
    characters.part = static_cast<std::uint32_t>(tree_.ranges.size());
    characters.n = static_cast<std::uint32_t>(set.size());
    tree_.ranges.insert(tree_.ranges.end(), set.begin(), set.end());
    return tree_.add(characters);
  }

  // One character of a text or set, escapes resolved.
  Result<std::uint32_t> read_character() {
    std::uint32_t c = 0;
    if (peek() == '\n' || !next_code_point(source_, at_, c)) return error("a text has no end");
    if (c != '\\') return c;
    const char escape = peek();
    ++at_;
    switch (escape) {
      case 'n': return '\n';
      case 'r': return '\r';
      case 't': return '\t';
      case 'x': return read_hex(2);
      case 'u': return read_hex(4);
      case 'U': return read_hex(8);
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^': return static_cast<std::uint32_t>(escape);
      default: --at_; return error("an unknown escape");
    }
  }

  Result<std::uint32_t> read_hex(int n_digits) {
    std::uint32_t value = 0;
    for (int i = 0; i < n_digits; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return error("expected a hexadecimal digit");
      if (value > kLastCodePoint >> 4) return error("a character beyond U+10FFFF");
      value = value << 4 | static_cast<std::uint32_t>(digit);
    }
    if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF)) {
      return error("no Unicode character");
    }
    return value;
  }

  std::string_view source_;
  GrammarTree& tree_;
  std::pmr::map<std::string_view, std::uint32_t> rule_ids_;
  std::pmr::vector<Group> open_;  // the rule and the groups that at_ is in
  std::pmr::memory_resource* resource_;
  std::size_t at_ = 0;
  std::size_t counted_ = 0;  // where line_ is
  int line_ = 1;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_GBNF_HPP_
