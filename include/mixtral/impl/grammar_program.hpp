// A grammar as a program on bytes: what a regular expression's automaton is (Thompson 1968), and calls.
#ifndef MIXTRAL_IMPL_GRAMMAR_PROGRAM_HPP_
#define MIXTRAL_IMPL_GRAMMAR_PROGRAM_HPP_

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <string_view>
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
  std::uint32_t most_ways = 0;            // in which an expression can begin, counted generously
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

// Compiles a tree. Nothing here recurses, and all takes time in proportion to the tree, or to the program
// if that is larger: how large it will be is known before.
class GrammarCompiler {
 public:
  GrammarCompiler(const GrammarTree& tree, GrammarProgram& program,
                  std::pmr::memory_resource* resource)
      : tree_(tree),
        program_(program),
        nullable_(resource),
        inlined_(resource),
        sets_(resource),
        set_ids_(resource),
        bytes_at_(resource),
        frames_(resource),
        items_(resource),
        path_(resource),
        resource_(resource) {}

  Status compile(std::uint32_t root) {
    MIXTRAL_RETURN_IF_ERROR(check_size());
    MIXTRAL_RETURN_IF_ERROR(check_ends());
    MIXTRAL_RETURN_IF_ERROR(check_beginnings());
    const std::uint32_t leave = add(Op::leave, 0, 0);
    bytes_at_.assign(64, kNone);
    for (const Rule& rule : tree_.rules) program_.rules.push_back(emit(rule.expression, leave));
    program_.root = program_.rules[root];
    find_classes();
    return {};
  }

 private:
  using Op = GrammarProgram::Op;
  using Kind = Expression::Kind;
  using Flags = std::pmr::vector<std::uint8_t>;  // of expressions, and of rules after those

  const Expression& expression(std::uint32_t index) const noexcept {
    return tree_.expressions[index];
  }
  std::size_t n_expressions() const noexcept { return tree_.expressions.size(); }

  Error rule_error(std::size_t rule, const char* what) const {
    return Error(ErrorCode::bad_format, "grammar, line %d: rule '%s' %s", tree_.rules[rule].line,
                 ShortName(tree_.rules[rule].name).text(), what);
  }

  // Calls visit(part) for the parts of a sequence or choice, the last one first.
  template <class Visit>
  void for_each_part(const Expression& whole, const Visit& visit) const {
    for (std::uint32_t i = whole.part; i != kNone; i = expression(i).previous) visit(i);
  }

  // ---- Size: what grammar.hpp states.

  // Refuses a grammar whose program would be too large, before any of it is made: an expression's size, as
  // grammar.hpp states it, is at least the number of instructions that it becomes.
  Status check_size() {
    find_inlined();
    std::pmr::vector<std::uint32_t> sizes(resource_);  // up to kMostGrammarParts + 1
    sizes.reserve(n_expressions());
    for (std::uint32_t i = 0; i < n_expressions(); ++i) {
      const Expression& e = expression(i);
      std::uint64_t size = e.kind == Kind::choice ? 0 : 1;
      switch (e.kind) {
        case Kind::text: size = std::max(e.n, 1u); break;
        case Kind::characters: size = count_ways(e); break;
        case Kind::sequence: for_each_part(e, [&](std::uint32_t k) { size += sizes[k]; }); break;
        case Kind::choice:
          for_each_part(e, [&](std::uint32_t k) {
            const bool is_rule = expression(k).kind == Kind::rule;
            const std::uint8_t inlined = is_rule ? inlined_[expression(k).part] : std::uint8_t{0};
            size += 1 + (inlined != 0 ? inlined : sizes[k]);
          });
          break;
        case Kind::repeat: {
          // The reader's bounds are below 100000, and sizes below 2^23: no overflow.
          const std::uint64_t part = sizes[e.part];
          size += e.n * part + (e.most == kNone ? part : (e.most - e.n) * (part + 1));
          break;
        }
        case Kind::rule: break;
      }
      sizes.push_back(static_cast<std::uint32_t>(std::min<std::uint64_t>(size, kTooLarge)));
    }
    std::uint64_t total = 0;
    for (const Rule& rule : tree_.rules) total += sizes[rule.expression];
    if (total > kMostGrammarParts) return grammar_too_large();
    return {};
  }

  // Finds the rules that are only a short literal or a choice of some. Where they are alternatives, their
  // literals are taken instead, so that those are read together with others.
  void find_inlined() {
    inlined_.assign(tree_.rules.size(), 0);
    for (std::size_t r = 0; r < tree_.rules.size(); ++r) {
      const Expression& e = expression(tree_.rules[r].expression);
      std::size_t size = 0;
      const auto add_part = [&](const Expression& part) {
        size += part.kind == Kind::text ? part.n + 1 : kMostInlined + 1;
      };
      if (e.kind != Kind::choice) {
        add_part(e);
      } else {
        for (std::uint32_t i = e.part; i != kNone && size <= kMostInlined;
             i = expression(i).previous) {
          add_part(expression(i));
        }
      }
      inlined_[r] = size <= kMostInlined ? static_cast<std::uint8_t>(size) : std::uint8_t{0};
    }
  }

  // Returns how many instructions a set of characters becomes.
  std::uint32_t count_ways(const Expression& e) const {
    std::uint32_t n = 1;
    for (std::uint32_t i = 0; i < e.n; ++i) {
      const CodePointRange range = tree_.ranges[e.part + i];
      if (range.last < 0x80) continue;
      for_each_utf8_range(range.first, range.last,
                          [&](const std::uint8_t*, const std::uint8_t*, std::size_t length) {
                            if (length > 1) n += static_cast<std::uint32_t>(length) + 1;
                          });
    }
    return n;
  }

  // ---- What rules say.

  // Finds which expressions and rules have a property that texts and sets may have of themselves, that a
  // sequence has if all its parts have it, and all else if one part has it. Each is decided once, when what
  // it waits for is (Dowling and Gallier 1984).
  template <class Begins>
  void derive(const Begins& begins, Flags& has) const {
    const std::size_t n = n_expressions(), n_rules = tree_.rules.size();
    // What an expression is a part of: an expression, or after those, a rule. Each is a part of one.
    std::pmr::vector<std::uint32_t> whole(n + n_rules, kNone, resource_);
    std::pmr::vector<std::uint32_t> n_missing(n, 1, resource_);  // parts that are to have it
    std::pmr::vector<std::uint32_t> first_use(n_rules, kNone, resource_);
    std::pmr::vector<std::uint32_t> next_use(n, kNone, resource_);  // of the same rule
    std::pmr::vector<std::uint32_t> decided(resource_);
    decided.reserve(n + n_rules);
    has.assign(n + n_rules, 0);
    const auto decide = [&](std::uint32_t i) {
      if (has[i] != 0) return;
      has[i] = 1;
      decided.push_back(i);
    };
    for (std::uint32_t i = 0; i < n; ++i) {
      const Expression& e = expression(i);
      if (e.kind == Kind::sequence) n_missing[i] = 0;
      if (e.kind == Kind::sequence || e.kind == Kind::choice) {
        for_each_part(e, [&](std::uint32_t k) {
          whole[k] = i;
          if (e.kind == Kind::sequence) ++n_missing[i];
        });
      } else if (e.kind == Kind::repeat) {
        whole[e.part] = i;
      } else if (e.kind == Kind::rule) {
        next_use[i] = first_use[e.part];
        first_use[e.part] = i;
      }
      if (begins(e)) decide(i);
    }
    for (std::size_t r = 0; r < n_rules; ++r) {
      whole[tree_.rules[r].expression] = static_cast<std::uint32_t>(n + r);
    }
    while (!decided.empty()) {
      const std::uint32_t i = decided.back();
      decided.pop_back();
      if (i >= n) {
        for (std::uint32_t k = first_use[i - n]; k != kNone; k = next_use[k]) decide(k);
      } else if (whole[i] >= n || --n_missing[whole[i]] == 0 ||
                 expression(whole[i]).kind != Kind::sequence) {
        decide(whole[i]);
      }
    }
  }

  // Every rule must come to an end.
  Status check_ends() {
    derive(
        [](const Expression& e) {
          return e.n == 0 && (e.kind == Kind::text || e.kind == Kind::repeat);
        },
        nullable_);
    Flags productive(resource_);
    derive(
        [](const Expression& e) {
          return e.kind == Kind::text || e.kind == Kind::characters ||
                 (e.kind == Kind::repeat && e.n == 0);
        },
        productive);
    for (std::size_t r = 0; r < tree_.rules.size(); ++r) {
      if (productive[n_expressions() + r] == 0) return rule_error(r, "never comes to an end");
    }
    return {};
  }

  // An expression whose beginning is being looked at.
  struct Beginning {
    std::uint32_t index;
    std::uint32_t part;        // what it may begin with, to be looked at
    std::uint32_t n_literals;  // of the alternatives so far
  };

  // Refuses rules that call themselves before they took a byte, by a search in depth for a way back. It also
  // counts in how many ways an expression can begin, for AutomatonSizes: rather too many, but literals that
  // are alternatives count at most 256, since they are read together.
  Status check_beginnings() {
    enum : std::uint8_t { unseen, open, done };
    Flags state(n_expressions(), unseen, resource_);
    std::pmr::vector<std::uint32_t> ways(n_expressions(), 0, resource_);
    std::pmr::vector<Beginning> stack(resource_);
    for (std::uint32_t start = 0; start < n_expressions(); ++start) {
      if (state[start] != unseen) continue;
      state[start] = open;
      ways[start] = begin(start, stack);
      while (!stack.empty()) {
        Beginning& top = stack.back();
        const Expression& e = expression(top.index);
        const std::uint32_t part = top.part;
        if (part == kNone) {
          state[top.index] = done;
          program_.most_ways = std::max(program_.most_ways, ways[top.index]);
          stack.pop_back();
        } else if (state[part] == unseen) {
          state[part] = open;
          ways[part] = begin(part, stack);
        } else if (state[part] == open) {
          return left_recursion(stack);
        } else {
          std::uint32_t more = ways[part];
          if (e.kind == Kind::choice && begins_with_literal(part) && ++top.n_literals > 256)
            more = 0;
          ways[top.index] = std::min(ways[top.index] + more, kTooLarge);
          const bool goes_on = e.kind == Kind::sequence || e.kind == Kind::choice;
          top.part = goes_on ? expression(part).previous : kNone;
        }
      }
    }
    return {};
  }

  // Puts an expression on the stack, with what it may begin with: of a sequence, the parts up to the first
  // that cannot be empty. Returns the ways in which it begins by itself.
  std::uint32_t begin(std::uint32_t index, std::pmr::vector<Beginning>& stack) const {
    const Expression& e = expression(index);
    std::uint32_t part = kNone, ways = 0;
    switch (e.kind) {
      case Kind::text: ways = 1; break;
      case Kind::characters: ways = count_ways(e); break;
      case Kind::choice: part = e.part; break;
      case Kind::rule: part = tree_.rules[e.part].expression; break;
      case Kind::repeat:
        if (e.most != 0) part = e.part;
        break;
      case Kind::sequence:
        part = e.part;
        for_each_part(e, [&](std::uint32_t k) {
          if (nullable_[k] == 0) part = k;
        });
    }
    stack.push_back({index, part, 0});
    return ways;
  }

  bool begins_with_literal(std::uint32_t alternative) const {
    const Expression& e = expression(alternative);
    return e.kind == Kind::text || (e.kind == Kind::rule && inlined_[e.part] != 0);
  }

  // Names the rule that was called last on the way back.
  Error left_recursion(const std::pmr::vector<Beginning>& stack) const {
    std::size_t at = stack.size() - 1;
    while (expression(stack[at].index).kind != Kind::rule) --at;
    return rule_error(expression(stack[at].index).part,
                      "calls itself before it has taken a character; put what it begins with first "
                      "(left recursion)");
  }

  // ---- Code.

  std::uint32_t add(Op op, std::uint32_t a, std::uint32_t b) {
    program_.code.push_back({op, a, b});
    return static_cast<std::uint32_t>(program_.code.size() - 1);
  }

  // Returns code that takes what either of two takes; kNone stands for no code.
  std::uint32_t either(std::uint32_t one, std::uint32_t other) {
    if (one == kNone || one == other) return other;
    return other == kNone ? one : add(Op::split, one, other);
  }

  // An expression that is being emitted, from its end to its beginning, since each part needs to know what
  // comes after it.
  struct Frame {
    std::uint32_t index;
    std::uint32_t next;  // where its code goes on
    std::uint32_t
        last;  // sequence: where to stop, a part that is emitted otherwise; kNone: nowhere
    bool begins = true;            // no part was emitted
    std::uint32_t part = kNone;    // sequence, choice: the part that follows
    std::uint32_t so_far = kNone;  // sequence, repeat: where the code of what was emitted begins
    std::uint32_t n_left = 0;      // repeat: how often it must be there
    std::uint32_t n_optional = 0;  // repeat: how often it may be there beyond that
    std::size_t first_item = 0;    // choice: its alternatives in items_
  };

  // An alternative: the literal that it begins with, which may be empty, and where it goes on.
  struct Item {
    std::string_view text;
    std::uint32_t next;
  };

  // Code that takes an expression and goes on at `next`; returns where it begins.
  std::uint32_t emit(std::uint32_t index, std::uint32_t next) {
    std::uint32_t value = kNone;  // what was emitted last
    frames_.push_back({index, next, kNone});
    while (!frames_.empty()) {
      Frame& frame = frames_.back();
      const Expression& e = expression(frame.index);
      switch (e.kind) {
        case Kind::text:
          value = emit_text(text_of(e), frame.next);
          frames_.pop_back();
          break;
        case Kind::characters:
          value = emit_characters(e, frame.next);
          frames_.pop_back();
          break;
        case Kind::rule:
          value = program_.code[frame.next].op == Op::leave ? add(Op::enter, e.part, 0)
                                                            : add(Op::call, e.part, frame.next);
          frames_.pop_back();
          break;
        case Kind::sequence: value = step_sequence(frame, e, value); break;
        case Kind::choice: value = step_choice(frame, e, value); break;
        case Kind::repeat: value = step_repeat(frame, e, value); break;
      }
    }
    return value;
  }

  // A step_ function goes on with a frame. `value` is where the part that was emitted last begins. It either
  // pushes a frame for the next part and returns kNone, or pops its own and returns where the whole begins.
  std::uint32_t step_sequence(Frame& frame, const Expression& e, std::uint32_t value) {
    frame.so_far = frame.begins ? frame.next : value;
    if (frame.begins) frame.part = e.part;
    frame.begins = false;
    const std::uint32_t part = frame.part, so_far = frame.so_far;
    if (part == frame.last) {
      frames_.pop_back();
      return so_far;
    }
    frame.part = expression(part).previous;
    frames_.push_back({part, so_far, kNone});
    return kNone;
  }

  std::uint32_t step_repeat(Frame& frame, const Expression& e, std::uint32_t value) {
    if (frame.begins) {
      frame.begins = false;
      frame.n_left = e.n;
      frame.so_far = frame.next;
      if (e.most == kNone) {
        frame.so_far = add(Op::split, kNone, frame.next);  // a loop, whose body is to come
        frame.n_optional = 1;
      } else {
        frame.n_optional = e.most - e.n;
      }
    } else if (frame.n_optional > 0) {
      --frame.n_optional;
      if (e.most == kNone) {
        program_.code[frame.so_far].a = value;
      } else {
        frame.so_far = add(Op::split, value, frame.next);
      }
    } else {
      --frame.n_left;
      frame.so_far = value;
    }
    const std::uint32_t so_far = frame.so_far;
    if (frame.n_optional == 0 && frame.n_left == 0) {
      frames_.pop_back();
      return so_far;
    }
    frames_.push_back({e.part, so_far, kNone});
    return kNone;
  }

  std::uint32_t step_choice(Frame& frame, const Expression& e, std::uint32_t value) {
    if (frame.begins) {
      frame.begins = false;
      frame.part = e.part;
      frame.first_item = items_.size();
    } else {
      items_.back().next = value;
    }
    const std::uint32_t next = frame.next;
    while (frame.part != kNone) {
      const std::uint32_t part = frame.part;
      const Expression& alternative = expression(part);
      frame.part = alternative.previous;
      switch (alternative.kind) {
        case Kind::text: items_.push_back({text_of(alternative), next}); break;
        case Kind::rule:
          if (inlined_[alternative.part] != 0) {
            add_literals(expression(tree_.rules[alternative.part].expression), next);
            break;
          }
          [[fallthrough]];
        default: {
          std::uint32_t last = kNone;
          items_.push_back({leading_text(alternative, last), kNone});
          frames_.push_back({part, next, last});
          return kNone;
        }
      }
    }
    const std::size_t first_item = frame.first_item;
    frames_.pop_back();
    const std::uint32_t begins = emit_items(first_item);
    items_.resize(first_item);
    return begins;
  }

  std::string_view text_of(const Expression& text) const noexcept {
    return std::string_view(tree_.text).substr(text.part, text.n);
  }

  void add_literals(const Expression& rule, std::uint32_t next) {
    if (rule.kind == Kind::text) {
      items_.push_back({text_of(rule), next});
    } else {
      for_each_part(rule, [&](std::uint32_t k) {
        items_.push_back({text_of(expression(k)), next});
      });
    }
  }

  // Returns the literals that an alternative begins with; they lie one after the other in the tree's text.
  // `last` becomes the last one of them, or kNone if there are none.
  std::string_view leading_text(const Expression& alternative, std::uint32_t& last) const {
    if (alternative.kind != Kind::sequence) return {};
    std::uint32_t begin = 0;
    std::size_t size = 0;
    for_each_part(alternative, [&](std::uint32_t k) {
      const Expression& part = expression(k);
      if (part.kind != Kind::text) {
        last = kNone;
        size = 0;
        return;
      }
      if (last == kNone) last = k;
      if (part.n != 0) begin = part.part;
      size += part.n;
    });
    return last == kNone ? std::string_view() : std::string_view(tree_.text).substr(begin, size);
  }

  std::uint32_t emit_text(std::string_view text, std::uint32_t next) {
    for (; !text.empty(); text.remove_suffix(1)) {
      const auto byte = static_cast<std::uint8_t>(text.back());
      next = add_bytes(byte, byte, next);
    }
    return next;
  }

  // A place in the tree of the items' texts that is not finished.
  struct Node {
    std::uint32_t result = kNone;  // the code of what may follow
    std::uint32_t child = kNone;   // after one of the bytes first to last, not in the code
    std::uint8_t first = 0, last = 0;
  };

  void add_child(Node& node, std::uint8_t byte, std::uint32_t child) {
    if (node.child == child && node.last + 1 == byte) {
      node.last = byte;
      return;
    }
    finish(node);
    node.child = child;
    node.first = node.last = byte;
  }

  std::uint32_t finish(Node& node) {
    if (node.child != kNone) {
      node.result = either(node.result, add_bytes(node.first, node.last, node.child));
    }
    node.child = kNone;
    return node.result;
  }

  // Code that takes one of the items from first_item on. What several begin with is there once, so that
  // reading has no more ways than there are bytes that can follow.
  std::uint32_t emit_items(std::size_t first_item) {
    const auto begin = items_.begin() + static_cast<std::ptrdiff_t>(first_item);
    std::sort(begin, items_.end(), [](const Item& a, const Item& b) {
      const int order = a.text.compare(b.text);
      return order < 0 || (order == 0 && a.next < b.next);
    });
    path_.assign(1, Node());
    std::string_view text;
    const auto close = [&](std::size_t depth) {
      while (path_.size() > depth + 1) {
        const std::uint32_t child = finish(path_.back());
        path_.pop_back();
        add_child(path_.back(), static_cast<std::uint8_t>(text[path_.size() - 1]), child);
      }
    };
    for (auto item = begin; item != items_.end(); ++item) {
      const std::string_view now = item->text;
      const auto differ = std::mismatch(text.begin(), text.end(), now.begin(), now.end()).first;
      close(static_cast<std::size_t>(differ - text.begin()));
      text = now;
      path_.resize(text.size() + 1);
      path_.back().result = either(path_.back().result, item->next);
    }
    close(0);
    return finish(path_[0]);
  }

  std::uint32_t emit_characters(const Expression& e, std::uint32_t next) {
    GrammarProgram::ByteSet ascii{};
    std::uint32_t result = kNone;
    for (std::uint32_t i = 0; i < e.n; ++i) {
      const CodePointRange range = tree_.ranges[e.part + i];
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
            result = either(result, way);
          });
    }
    if (ascii != GrammarProgram::ByteSet{}) result = either(result, add_bytes(ascii, next));
    return result;
  }

  std::uint32_t add_bytes(std::uint8_t first, std::uint8_t last, std::uint32_t next) {
    GrammarProgram::ByteSet set{};
    for (unsigned b = first; b <= last; ++b) set[b / 64] |= std::uint64_t{1} << (b % 64);
    return add_bytes(set, next);
  }

  // An instruction that takes one of a set and goes on at `next`. It is there once.
  std::uint32_t add_bytes(const GrammarProgram::ByteSet& set, std::uint32_t next) {
    const auto [id, is_new] = set_ids_.emplace(set, static_cast<std::uint32_t>(sets_.size()));
    if (is_new) sets_.push_back(set);
    std::uint32_t& place = place_of(id->second, next);
    if (place != kNone) return place;
    place = add(Op::bytes, id->second, next);
    const std::uint32_t added = place;
    if (++n_bytes_ > bytes_at_.size() / 2) {
      bytes_at_.assign(bytes_at_.size() * 2, kNone);
      for (std::uint32_t i = 0; i < program_.code.size(); ++i) {
        const GrammarProgram::Instruction& one = program_.code[i];
        if (one.op == Op::bytes) place_of(one.a, one.b) = i;
      }
    }
    return added;
  }

  // Returns the place in a table of hashes for the number of this instruction: kNone if it is not there.
  std::uint32_t& place_of(std::uint32_t set, std::uint32_t next) {
    const std::size_t mask = bytes_at_.size() - 1;
    std::uint64_t hash = (std::uint64_t{set} << 32 | next) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    for (std::size_t i = static_cast<std::size_t>(hash) & mask;; i = (i + 1) & mask) {
      if (bytes_at_[i] == kNone) return bytes_at_[i];
      const GrammarProgram::Instruction& one = program_.code[bytes_at_[i]];
      if (one.a == set && one.b == next) return bytes_at_[i];
    }
  }

  // Set by set, bytes that were of one class so far become two if the set has only some of them.
  void find_classes() {
    std::array<std::uint8_t, 256>& class_of = program_.class_of;  // zeros so far
    program_.n_classes = 1;
    for (const GrammarProgram::ByteSet& set : sets_) {
      if (program_.n_classes == 256) break;
      std::array<int, 512> names;  // of [class so far, in the set or not]
      names.fill(-1);
      int n = 0;
      for (unsigned b = 0; b < 256; ++b) {
        int& name = names[class_of[b] * 2u + (set[b / 64] >> (b % 64) & 1)];
        if (name < 0) name = n++;
        class_of[b] = static_cast<std::uint8_t>(name);
      }
      program_.n_classes = static_cast<std::size_t>(n);
    }
    program_.class_sets.resize(sets_.size());
    for (std::size_t s = 0; s < sets_.size(); ++s) {
      for (unsigned b = 0; b < 256; ++b) {
        if ((sets_[s][b / 64] >> (b % 64) & 1) == 0) continue;
        program_.class_sets[s][class_of[b] / 64] |= std::uint64_t{1} << (class_of[b] % 64);
      }
    }
  }

  static constexpr std::uint32_t kTooLarge = static_cast<std::uint32_t>(kMostGrammarParts) + 1;
  static constexpr std::size_t kMostInlined = 64;  // bytes of a rule's literals, and one for each

  const GrammarTree& tree_;
  GrammarProgram& program_;
  Flags nullable_;
  Flags inlined_;  // of rules: 0, or what it counts to have them as literals
  std::pmr::vector<GrammarProgram::ByteSet> sets_;
  std::pmr::map<GrammarProgram::ByteSet, std::uint32_t> set_ids_;
  std::pmr::vector<std::uint32_t> bytes_at_;  // a table of instructions that take bytes
  std::size_t n_bytes_ = 0;                   // in it
  std::pmr::vector<Frame> frames_;
  std::pmr::vector<Item> items_;
  std::pmr::vector<Node> path_;
  std::pmr::memory_resource* resource_;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_GRAMMAR_PROGRAM_HPP_
