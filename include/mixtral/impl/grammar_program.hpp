// A grammar as a program on bytes: what a regular expression's automaton is (Thompson 1968), and calls.
#ifndef MIXTRAL_IMPL_GRAMMAR_PROGRAM_HPP_
#define MIXTRAL_IMPL_GRAMMAR_PROGRAM_HPP_

#include <array>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/impl/code_points.hpp"
#include "mixtral/impl/fingerprint.hpp"
#include "mixtral/impl/gbnf.hpp"

namespace mixtral::detail {

struct GrammarProgram {
  enum class Op : std::uint8_t {
    bytes,  // takes a byte of set a, goes on at b
    split,  // goes on at a and at b
    call,   // runs rule a, then goes on at b
    enter,  // goes on with rule a, which returns to where this one would
    leave,  // the end of a rule
  };
  struct Instruction {
    Op op;
    std::uint32_t a;
    std::uint32_t b;
  };
  using ByteSet = std::array<std::uint64_t, 4>;

  explicit GrammarProgram(std::pmr::memory_resource* resource)
      : code(resource), rules(resource), class_sets(resource) {}

  std::pmr::vector<Instruction> code;
  std::pmr::vector<std::uint32_t> rules;  // where each begins
  std::uint32_t root = 0;                 // where the text begins
  // Bytes that no set tells apart are of one class; sets are of classes, one bit for each.
  std::array<std::uint8_t, 256> class_of{};
  std::size_t n_classes = 0;
  std::pmr::vector<ByteSet> class_sets;

  // A number that tells programs apart, as far as their automata differ.
  std::uint64_t fingerprint() const noexcept {
    Checksum sum;
    for (const Instruction& i : code) {
      const std::uint32_t words[] = {static_cast<std::uint32_t>(i.op), i.a, i.b};
      sum.add(words, sizeof words);
    }
    sum.add(rules.data(), rules.size() * sizeof(std::uint32_t));
    sum.add(&root, sizeof root);
    sum.add(class_of.data(), class_of.size());
    sum.add(class_sets.data(), class_sets.size() * sizeof(ByteSet));
    return sum.value();
  }

  bool takes(std::uint32_t set, std::size_t byte_class) const noexcept {
    return (class_sets[set][byte_class / 64] >> (byte_class % 64) & 1) != 0;
  }
};

class GrammarCompiler {
 public:
  GrammarCompiler(const GrammarTree& tree, GrammarProgram& program,
                  std::pmr::memory_resource* resource)
      : tree_(tree),
        program_(program),
        sets_(resource),
        set_ids_(resource),
        bytes_at_(resource),
        flags_(resource) {}

  Status compile(std::uint32_t root) {
    MIXTRAL_RETURN_IF_ERROR(check_rules());
    const std::uint32_t leave = add(Op::leave, 0, 0);
    for (std::size_t r = 0; r < tree_.rules.size(); ++r) {
      program_.rules.push_back(emit(tree_.rules[r].expression, leave));
    }
    if (too_large()) {
      return Error(ErrorCode::unsupported,
                   "the grammar is too large: more than %zu instructions; use fewer or smaller "
                   "{counts} of long expressions",
                   kMostInstructions);
    }
    program_.root = program_.rules[root];
    find_classes();
    return {};
  }

 private:
  using Op = GrammarProgram::Op;
  using Kind = Expression::Kind;
  static constexpr std::size_t kMostInstructions = 1u << 18;

  // What is known of a rule.
  struct Flags {
    bool nullable = false;    // can be empty
    bool productive = false;  // can come to an end
    std::uint8_t visit = 0;   // 1: being looked at; 2: not left recursive
  };

  bool too_large() const noexcept {
    return program_.code.size() > kMostInstructions || work_ > 4 * kMostInstructions;
  }

  std::uint32_t add(Op op, std::uint32_t a, std::uint32_t b) {
    program_.code.push_back({op, a, b});
    return static_cast<std::uint32_t>(program_.code.size() - 1);
  }

  // Code that takes an expression and goes on at `next`; returns where it begins.
  std::uint32_t emit(std::uint32_t index, std::uint32_t next) {
    ++work_;
    if (too_large()) return next;
    const Expression& e = tree_.expressions[index];
    switch (e.kind) {
      case Kind::text:
        for (std::uint32_t i = e.n; i > 0; --i) {
          const auto byte = static_cast<std::uint8_t>(tree_.text[e.first + i - 1]);
          next = add_bytes(byte, byte, next);
        }
        return next;
      case Kind::characters: return emit_characters(e, next);
      case Kind::sequence: return emit_sequence(e.first, next);
      case Kind::choice: {
        std::uint32_t result = emit(e.first, next);
        for (std::uint32_t i = tree_.expressions[e.first].next; i != kNone;
             i = tree_.expressions[i].next) {
          const std::uint32_t other = emit(i, next);
          if (other != result) result = add(Op::split, result, other);
        }
        return result;
      }
      case Kind::repeat: return emit_repeat(e, next);
      case Kind::rule:
        return program_.code[next].op == Op::leave ? add(Op::enter, e.first, 0)
                                                   : add(Op::call, e.first, next);
    }
    return next;
  }

  // The last part first, since each needs to know what comes after it.
  std::uint32_t emit_sequence(std::uint32_t first, std::uint32_t next) {
    std::pmr::vector<std::uint32_t> parts(sets_.get_allocator());
    for (std::uint32_t i = first; i != kNone; i = tree_.expressions[i].next) parts.push_back(i);
    for (; !parts.empty(); parts.pop_back()) next = emit(parts.back(), next);
    return next;
  }

  std::uint32_t emit_repeat(const Expression& e, std::uint32_t next) {
    if (e.most == kNone) {
      const std::uint32_t loop = add(Op::split, 0, next);
      const std::uint32_t body = emit(e.first, loop);
      program_.code[loop].a = body;
      next = loop;
    } else {
      const std::uint32_t end = next;
      for (std::uint32_t i = e.n; i < e.most && !too_large(); ++i) {
        next = add(Op::split, emit(e.first, next), end);
      }
    }
    for (std::uint32_t i = 0; i < e.n && !too_large(); ++i) next = emit(e.first, next);
    return next;
  }

  std::uint32_t emit_characters(const Expression& e, std::uint32_t next) {
    GrammarProgram::ByteSet ascii{};
    std::uint32_t result = kNone;
    const auto add_way = [&](std::uint32_t way) {
      result = result == kNone ? way : add(Op::split, result, way);
    };
    for (std::uint32_t i = 0; i < e.n; ++i) {
      const CodePointRange range = tree_.ranges[e.first + i];
      for_each_utf8_range(
          range.first, range.last,
          [&](const std::uint8_t* from, const std::uint8_t* to, std::size_t length) {
            if (length == 1) {
              for (unsigned b = from[0]; b <= to[0]; ++b) {
                ascii[b / 64] |= std::uint64_t{1} << (b % 64);
              }
              return;
            }
            std::uint32_t way = next;
            for (std::size_t k = length; k > 0; --k) way = add_bytes(from[k - 1], to[k - 1], way);
            add_way(way);
          });
    }
    if (ascii != GrammarProgram::ByteSet{}) add_way(add_bytes(ascii, next));
    return result;
  }

  std::uint32_t add_bytes(std::uint8_t first, std::uint8_t last, std::uint32_t next) {
    GrammarProgram::ByteSet set{};
    for (unsigned b = first; b <= last; ++b) set[b / 64] |= std::uint64_t{1} << (b % 64);
    return add_bytes(set, next);
  }

  // The same set with the same next instruction is there once.
  std::uint32_t add_bytes(const GrammarProgram::ByteSet& set, std::uint32_t next) {
    const auto [id, is_new] = set_ids_.emplace(set, static_cast<std::uint32_t>(sets_.size()));
    if (is_new) sets_.push_back(set);
    const auto [place, is_new_here] = bytes_at_.emplace(std::make_pair(id->second, next), 0);
    if (is_new_here) place->second = add(Op::bytes, id->second, next);
    return place->second;
  }

  void find_classes() {
    std::pmr::map<std::pmr::vector<bool>, std::uint8_t> classes(sets_.get_allocator().resource());
    for (unsigned b = 0; b < 256; ++b) {
      std::pmr::vector<bool> in(sets_.get_allocator());
      in.resize(sets_.size());
      for (std::size_t s = 0; s < sets_.size(); ++s)
        in[s] = (sets_[s][b / 64] >> (b % 64) & 1) != 0;
      const auto n = static_cast<std::uint8_t>(classes.size());
      program_.class_of[b] = classes.emplace(std::move(in), n).first->second;
    }
    program_.n_classes = classes.size();
    program_.class_sets.resize(sets_.size());
    for (unsigned b = 0; b < 256; ++b) {
      const std::size_t c = program_.class_of[b];
      for (std::size_t s = 0; s < sets_.size(); ++s) {
        if ((sets_[s][b / 64] >> (b % 64) & 1) == 0) continue;
        program_.class_sets[s][c / 64] |= std::uint64_t{1} << (c % 64);
      }
    }
  }

  // Every rule must come to an end and must not call itself before it took a byte.
  Status check_rules() {
    flags_.assign(tree_.rules.size(), {});
    for (bool changed = true; changed;) {
      changed = false;
      for (std::size_t r = flags_.size(); r-- > 0;) {
        const std::uint32_t expression = tree_.rules[r].expression;
        const bool nullable = flags_[r].nullable || is_nullable(expression);
        const bool productive = flags_[r].productive || is_productive(expression);
        changed = changed || nullable != flags_[r].nullable || productive != flags_[r].productive;
        flags_[r].nullable = nullable;
        flags_[r].productive = productive;
      }
    }
    for (std::uint32_t r = 0; r < flags_.size(); ++r) {
      const std::string_view name = tree_.rules[r].name;
      if (!flags_[r].productive) {
        return Error(ErrorCode::bad_format, "grammar: rule '%.*s' never comes to an end",
                     static_cast<int>(name.size()), name.data());
      }
      if (is_left_recursive(r, 0)) {
        return Error(ErrorCode::bad_format,
                     "grammar: rule '%.*s' calls itself before it has taken a character; put what "
                     "it begins with first (left recursion)",
                     static_cast<int>(name.size()), name.data());
      }
    }
    return {};
  }

  bool is_nullable(std::uint32_t index) const {
    const Expression& e = tree_.expressions[index];
    switch (e.kind) {
      case Kind::text: return e.n == 0;
      case Kind::characters: return false;
      case Kind::repeat: return e.n == 0 || is_nullable(e.first);
      case Kind::rule: return flags_[e.first].nullable;
      case Kind::sequence:
      case Kind::choice: break;
    }
    const bool all = e.kind == Kind::sequence;
    for (std::uint32_t i = e.first; i != kNone; i = tree_.expressions[i].next) {
      if (is_nullable(i) != all) return !all;
    }
    return all;
  }

  bool is_productive(std::uint32_t index) const {
    const Expression& e = tree_.expressions[index];
    switch (e.kind) {
      case Kind::text:
      case Kind::characters: return true;
      case Kind::repeat: return e.n == 0 || is_productive(e.first);
      case Kind::rule: return flags_[e.first].productive;
      case Kind::sequence:
      case Kind::choice: break;
    }
    const bool all = e.kind == Kind::sequence;
    for (std::uint32_t i = e.first; i != kNone; i = tree_.expressions[i].next) {
      if (is_productive(i) != all) return !all;
    }
    return all;
  }

  // As deep as rules that begin with rules may be.
  static constexpr int kMostDepth = 2000;

  bool is_left_recursive(std::uint32_t rule, int depth) {
    if (flags_[rule].visit == 2) return false;
    if (flags_[rule].visit == 1 || depth > kMostDepth) return true;
    flags_[rule].visit = 1;
    const bool result = begins_with_itself(tree_.rules[rule].expression, depth);
    flags_[rule].visit = 2;
    return result;
  }

  // Does an expression begin with a rule that is being looked at?
  bool begins_with_itself(std::uint32_t index, int depth) {
    const Expression& e = tree_.expressions[index];
    switch (e.kind) {
      case Kind::text:
      case Kind::characters: return false;
      case Kind::rule: return is_left_recursive(e.first, depth + 1);
      case Kind::repeat: return e.most != 0 && begins_with_itself(e.first, depth);
      case Kind::sequence:
      case Kind::choice: break;
    }
    for (std::uint32_t i = e.first; i != kNone; i = tree_.expressions[i].next) {
      if (begins_with_itself(i, depth)) return true;
      if (e.kind == Kind::sequence && !is_nullable(i)) return false;
    }
    return false;
  }

  const GrammarTree& tree_;
  GrammarProgram& program_;
  std::pmr::vector<GrammarProgram::ByteSet> sets_;
  std::pmr::map<GrammarProgram::ByteSet, std::uint32_t> set_ids_;
  std::pmr::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> bytes_at_;
  std::pmr::vector<Flags> flags_;
  std::size_t work_ = 0;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_GRAMMAR_PROGRAM_HPP_
