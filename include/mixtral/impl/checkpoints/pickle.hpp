// A pickle reader (Python's Lib/pickletools.py describes the format) that knows what a PyTorch state
// dict needs and refuses the rest by name. It builds values and never calls anything.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_PICKLE_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_PICKLE_HPP_

#include <cstdint>
#include <memory_resource>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"

namespace mixtral::detail {

class PickleReader {
 public:
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    real,
    string,
    tuple,  // also lists
    dict,
    global,      // text: "module name"
    persistent,  // one child: the id
    call,        // two children: a global and its arguments
    mark,
  };
  using Id = std::uint32_t;  // of a value

  struct Value {
    Kind kind = Kind::none;
    std::int64_t number = 0;
    std::string_view text;
    // Of a tuple, persistent or call: children_[begin, begin + count).
    std::uint32_t begin = 0;
    std::uint32_t count = 0;
  };

  // The entries of all dicts, in the order they were set.
  struct DictEntry {
    Id dict, key, value;
  };

  PickleReader(Span<const std::uint8_t> bytes, const char* where,
               std::pmr::memory_resource* resource)
      : bytes_(bytes),
        where_(where),
        values_(resource),
        children_(resource),
        stack_(resource),
        memo_(resource),
        entries_(resource) {}

  // Reads up to STOP; `root` is what the pickle holds.
  Status read(Id& root) {
    for (;;) {
      if (values_.size() > kMaxValues || children_.size() > kMaxValues) {
        return error("it has more than %zu values", kMaxValues);
      }
      std::uint64_t opcode;
      if (!take(1, opcode)) return truncated();
      if (opcode == '.') {
        if (stack_.size() != 1) return error("%zu values are left at its end", stack_.size());
        root = stack_.back();
        return {};
      }
      MIXTRAL_RETURN_IF_ERROR(execute(opcode));
    }
  }

  const Value& value(Id id) const noexcept { return values_[id]; }
  Id child(const Value& parent, std::size_t i) const noexcept {
    return children_[parent.begin + i];
  }
  const std::pmr::vector<DictEntry>& dict_entries() const noexcept { return entries_; }

 private:
  using Number = unsigned long long;                    // for %llu
  static constexpr std::size_t kMaxValues = 4'000'000;  // real ones have some tens of thousands

  MIXTRAL_PRINTF_LIKE(2, 3)
  Error error(const char* format, ...) const {
    char what[160];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return Error(ErrorCode::bad_format, "%s: pickle, at byte %zu: %s", where_, position_, what);
  }
  Error truncated() const { return error("it ends early"); }

  bool take(std::size_t size, std::uint64_t& number) noexcept {
    if (size > bytes_.size() - position_) return false;
    number = 0;
    for (std::size_t i = size; i-- > 0;) number = number << 8 | bytes_[position_ + i];
    position_ += size;
    return true;
  }
  bool take_text(std::uint64_t size, std::string_view& text) noexcept {
    if (size > bytes_.size() - position_) return false;
    text = std::string_view(reinterpret_cast<const char*>(bytes_.data()) + position_,
                            static_cast<std::size_t>(size));
    position_ += text.size();
    return true;
  }
  bool take_line(std::string_view& text) noexcept {
    std::size_t end = position_;
    while (end < bytes_.size() && bytes_[end] != '\n') ++end;
    if (end == bytes_.size()) return false;
    take_text(end - position_, text);
    ++position_;
    return true;
  }

  Id add(Kind kind) {
    values_.emplace_back();
    values_.back().kind = kind;
    return static_cast<Id>(values_.size() - 1);
  }
  void push(Id id) { stack_.push_back(id); }
  void push_number(Kind kind, std::int64_t number) {
    push(add(kind));
    values_.back().number = number;
  }

  // Replaces the top n values by one whose children they are.
  void push_parent(Kind kind, std::size_t n) {
    const Id id = add(kind);
    values_[id].begin = static_cast<std::uint32_t>(children_.size());
    values_[id].count = static_cast<std::uint32_t>(n);
    children_.insert(children_.end(), stack_.end() - static_cast<std::ptrdiff_t>(n), stack_.end());
    stack_.resize(stack_.size() - n);
    push(id);
  }

  // How many values are above the topmost mark, which is taken away: they move down by one.
  bool take_mark(std::size_t& n) {
    for (std::size_t at = stack_.size(); at-- > 0;) {
      if (values_[stack_[at]].kind != Kind::mark) continue;
      n = stack_.size() - at - 1;
      stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(at));
      return true;
    }
    return false;
  }

  Status push_string(std::size_t length_size) {
    std::uint64_t length;
    std::string_view text;
    if (!take(length_size, length) || !take_text(length, text)) return truncated();
    push(add(Kind::string));
    values_.back().text = text;
    return {};
  }

  Status memoize(std::uint64_t index) {
    if (stack_.empty()) return error("nothing to remember");
    memo_[index] = stack_.back();
    return {};
  }

  Status recall(std::size_t size) {
    std::uint64_t index;
    if (!take(size, index)) return truncated();
    const auto found = memo_.find(index);
    if (found == memo_.end()) return error("value %llu was never remembered", Number{index});
    push(found->second);
    return {};
  }

  Status push_global(std::string_view module, std::string_view name) {
    constexpr std::string_view kKnown[][2] = {
        {"collections", "OrderedDict"},
        {"torch._utils", "_rebuild_tensor_v2"},
        {"torch._utils", "_rebuild_parameter"},
        {"torch", "FloatStorage"},
        {"torch", "HalfStorage"},
        {"torch", "BFloat16Storage"},
        {"torch", "DoubleStorage"},
        {"torch", "LongStorage"},
        {"torch", "IntStorage"},
        {"torch", "ShortStorage"},
        {"torch", "CharStorage"},
        {"torch", "ByteStorage"},
        {"torch", "BoolStorage"},
    };
    for (const auto& known : kKnown) {
      if (module != known[0] || name != known[1]) continue;
      push(add(Kind::global));
      values_.back().text = known[1];
      return {};
    }
    return Error(ErrorCode::unsupported,
                 "%s: pickle, at byte %zu: it asks for '%.*s.%.*s', which a state dict does not "
                 "need; refused",
                 where_, position_, static_cast<int>(std::min<std::size_t>(module.size(), 60)),
                 module.data(), static_cast<int>(std::min<std::size_t>(name.size(), 60)),
                 name.data());
  }

  // Sets n / 2 entries of the dict below them.
  Status set_items(std::size_t n) {
    if (n % 2 != 0 || stack_.size() < n + 1) return error("too few values for a dict");
    const std::size_t first = stack_.size() - n;
    const Id dict = stack_[first - 1];
    if (values_[dict].kind != Kind::dict) return error("items are set on what is no dict");
    for (std::size_t i = first; i < stack_.size(); i += 2) {
      entries_.push_back({dict, stack_[i], stack_[i + 1]});
    }
    stack_.resize(first);
    return {};
  }

  // A call is only noted, but for an empty OrderedDict(), which is a dict.
  Status reduce() {
    if (stack_.size() < 2) return error("too few values for a call");
    const Value& function = values_[stack_[stack_.size() - 2]];
    const Value& arguments = values_[stack_.back()];
    if (function.kind != Kind::global || arguments.kind != Kind::tuple) {
      return error("a call of what is no function");
    }
    if (function.text == "OrderedDict") {
      if (arguments.count != 0) return error("an OrderedDict with arguments");
      stack_.resize(stack_.size() - 2);
      push(add(Kind::dict));
      return {};
    }
    push_parent(Kind::call, 2);
    return {};
  }

  Status tuple(std::size_t n) {
    if (stack_.size() < n) return error("too few values for a tuple");
    push_parent(Kind::tuple, n);
    return {};
  }

  Status execute(std::uint64_t opcode) {
    std::uint64_t number = 0;
    std::size_t n = 0;
    switch (opcode) {
      case 0x80: return take(1, number) ? Status() : truncated();  // PROTO
      case 0x95: return take(8, number) ? Status() : truncated();  // FRAME
      case 'N': push(add(Kind::none)); return {};                  // NONE
      case 0x88: push_number(Kind::boolean, 1); return {};         // NEWTRUE
      case 0x89: push_number(Kind::boolean, 0); return {};         // NEWFALSE
      case 'K':                                                    // BININT1
      case 'M':                                                    // BININT2
      case 'J':                                                    // BININT
        if (!take(opcode == 'K' ? 1 : opcode == 'M' ? 2 : 4, number)) return truncated();
        push_number(Kind::integer, opcode == 'J' ? static_cast<std::int32_t>(number)
                                                 : static_cast<std::int64_t>(number));
        return {};
      case 0x8a: return long_integer();  // LONG1
      case 'G':                          // BINFLOAT
        if (!take(8, number)) return truncated();
        push(add(Kind::real));
        return {};
      case 0x8c: return push_string(1);                                  // SHORT_BINUNICODE
      case 'X': return push_string(4);                                   // BINUNICODE
      case 0x8d: return push_string(8);                                  // BINUNICODE8
      case '}': push(add(Kind::dict)); return {};                        // EMPTY_DICT
      case ')':                                                          // EMPTY_TUPLE
      case ']': return tuple(0);                                         // EMPTY_LIST
      case 0x85: return tuple(1);                                        // TUPLE1
      case 0x86: return tuple(2);                                        // TUPLE2
      case 0x87: return tuple(3);                                        // TUPLE3
      case '(': push(add(Kind::mark)); return {};                        // MARK
      case 't': return take_mark(n) ? tuple(n) : error("no mark");       // TUPLE
      case 'u': return take_mark(n) ? set_items(n) : error("no mark");   // SETITEMS
      case 's': return set_items(2);                                     // SETITEM
      case 'q': return take(1, number) ? memoize(number) : truncated();  // BINPUT
      case 'r': return take(4, number) ? memoize(number) : truncated();  // LONG_BINPUT
      case 0x94: return memoize(memo_.size());                           // MEMOIZE
      case 'h': return recall(1);                                        // BINGET
      case 'j': return recall(4);                                        // LONG_BINGET
      case 'c': {                                                        // GLOBAL
        std::string_view module, name;
        if (!take_line(module) || !take_line(name)) return truncated();
        return push_global(module, name);
      }
      case 0x93: {  // STACK_GLOBAL
        if (stack_.size() < 2) return error("too few values for a name");
        const Value module = values_[stack_[stack_.size() - 2]];
        const Value name = values_[stack_.back()];
        if (module.kind != Kind::string || name.kind != Kind::string) {
          return error("a name that is no string");
        }
        stack_.resize(stack_.size() - 2);
        return push_global(module.text, name.text);
      }
      case 'Q':  // BINPERSID
        if (stack_.empty()) return error("no persistent id");
        push_parent(Kind::persistent, 1);
        return {};
      case 'R': return reduce();  // REDUCE
      case 'b':                   // BUILD
        // Attributes of an OrderedDict (its _metadata): not needed.
        if (stack_.size() < 2 || values_[stack_[stack_.size() - 2]].kind != Kind::dict) {
          return error("attributes are set on what is no dict");
        }
        stack_.pop_back();
        return {};
      default:
        return Error(
            ErrorCode::unsupported,
            "%s: pickle, at byte %zu: the opcode 0x%02x, which a state dict does not need; "
            "refused",
            where_, position_ - 1, static_cast<unsigned>(opcode));
    }
  }

  // A little-endian integer of any length in two's complement, of which 8 bytes are enough.
  Status long_integer() {
    std::uint64_t length, number = 0;
    if (!take(1, length)) return truncated();
    if (length > 8) return error("an integer of %llu bytes", Number{length});
    if (!take(static_cast<std::size_t>(length), number)) return truncated();
    if (length > 0 && length < 8 && (number >> (8 * length - 1)) != 0) {
      number |= ~std::uint64_t{0} << (8 * length);
    }
    push_number(Kind::integer, static_cast<std::int64_t>(number));
    return {};
  }

  Span<const std::uint8_t> bytes_;
  const char* where_;
  std::size_t position_ = 0;
  std::pmr::vector<Value> values_;
  std::pmr::vector<Id> children_;
  std::pmr::vector<Id> stack_;
  std::pmr::unordered_map<std::uint64_t, Id> memo_;
  std::pmr::vector<DictEntry> entries_;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_PICKLE_HPP_
