// JSON of untrusted files: parsed by nlohmann-json, with limits, and read with errors that name the
// key.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_JSON_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_JSON_HPP_

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"

namespace mixtral::detail {

using Json = nlohmann::json;

// Builds the value; stops at what is broken, nested too deep, or there twice, which is seen before any value
// is nested deeper than kMaxDepth: copying, comparing and writing values recurse.
class JsonBuilder : public nlohmann::json_sax<Json> {
 public:
  static constexpr std::size_t kMaxDepth = 32;

  explicit JsonBuilder(const char* where) : where_(where) {}

  Json& root() noexcept { return root_; }
  const Error& error() const noexcept { return error_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    if (stack_.back()->contains(value)) {
      error_ =
          Error(ErrorCode::bad_format, "%s: the key '%.80s' is there twice", where_, value.c_str());
      return false;
    }
    key_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    error_ = Error(ErrorCode::bad_format, "%s: not valid JSON at byte %zu (incomplete download?)",
                   where_, position);
    return false;
  }

 private:
  template <class Value>
  bool add(Value&& value) {
    place() = std::forward<Value>(value);
    return true;
  }
  bool open(Json&& value) {
    if (stack_.size() == kMaxDepth) {
      error_ =
          Error(ErrorCode::bad_format, "%s: JSON nested more than %zu deep", where_, kMaxDepth);
      return false;
    }
    Json& here = place();
    here = std::move(value);
    stack_.push_back(&here);
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }
  // Where the next value goes. An array may move its elements when it grows, but never one that is
  // open, which is its last.
  Json& place() {
    if (stack_.empty()) return root_;
    Json& parent = *stack_.back();
    if (parent.is_object()) return parent[key_];
    parent.push_back(nullptr);
    return parent.back();
  }

  const char* where_;
  Json root_;
  std::vector<Json*> stack_;
  std::string key_;
  Error error_{ErrorCode::bad_format, "%s", ""};
};

// Parses a JSON object. `where` names the file in errors.
inline Result<Json> parse_json(Span<const std::uint8_t> bytes, const char* where) {
  constexpr std::size_t kMaxSize = std::size_t{100} << 20;  // of safetensors headers, by their spec
  if (bytes.size() > kMaxSize) {
    return Error(ErrorCode::bad_format, "%s: %zu bytes of JSON; at most %zu are read", where,
                 bytes.size(), kMaxSize);
  }
  JsonBuilder builder(where);
  if (!Json::sax_parse(bytes.begin(), bytes.end(), &builder)) return builder.error();
  if (!builder.root().is_object()) {
    return Error(ErrorCode::bad_format, "%s: expected a JSON object, found %s", where,
                 builder.root().type_name());
  }
  return std::move(builder.root());
}

// The member of an object; null if it is absent or null itself, or if `value` is no object.
inline const Json* find_member(const Json& value, const char* key) {
  const auto found = value.find(key);
  return found == value.end() || found->is_null() ? nullptr : &*found;
}

// Typed access to the members of an object; a member that is null counts as absent.
class JsonKeys {
 public:
  JsonKeys(const Json& object, const char* where) : object_(object), where_(where) {}

  const Json* find(const char* key) const { return find_member(object_, key); }

  // Leaves `value` alone if the key is absent and not required. Numbers in quotes are accepted:
  // Mistral's first params.json has one.
  Status read_uint(const char* key, bool required, std::uint32_t& value) const {
    const Json* found = find(key);
    if (found == nullptr) return required ? Status(missing(key)) : Status();
    std::uint64_t number = std::numeric_limits<std::uint64_t>::max();
    if (found->is_number_unsigned()) {
      number = found->get<std::uint64_t>();
    } else if (found->is_string()) {
      const auto& text = found->get_ref<const std::string&>();
      const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
      if (parsed.ptr != text.data() + text.size() || parsed.ec != std::errc()) {
        return wrong_type(key, "a non-negative integer", *found);
      }
    } else {
      return wrong_type(key, "a non-negative integer", *found);
    }
    if (number > std::numeric_limits<std::uint32_t>::max()) {
      return Error(ErrorCode::bad_format, "%s: key '%s' is %llu; expected at most %u", where_, key,
                   static_cast<unsigned long long>(number),
                   static_cast<unsigned>(std::numeric_limits<std::uint32_t>::max()));
    }
    value = static_cast<std::uint32_t>(number);
    return {};
  }

  Status read_float(const char* key, bool required, float& value) const {
    const Json* found = find(key);
    if (found == nullptr) return required ? Status(missing(key)) : Status();
    if (!found->is_number()) return wrong_type(key, "a number", *found);
    value = static_cast<float>(found->get<double>());
    return {};
  }

  Status read_bool(const char* key, bool& value) const {
    const Json* found = find(key);
    if (found == nullptr) return {};
    if (!found->is_boolean()) return wrong_type(key, "true or false", *found);
    value = found->get<bool>();
    return {};
  }

  // Null if it is absent and not required.
  Result<const std::string*> read_string(const char* key, bool required) const {
    const Json* found = find(key);
    const std::string* text = nullptr;
    if (found == nullptr) {
      if (required) return missing(key);
      return text;
    }
    text = found->get_ptr<const std::string*>();
    if (text == nullptr) return wrong_type(key, "a string", *found);
    return text;
  }

  Error missing(const char* key) const {
    return Error(ErrorCode::bad_format, "%s: key '%s' is missing", where_, key);
  }
  Error wrong_type(const char* key, const char* expected, const Json& found) const {
    return Error(ErrorCode::bad_format, "%s: key '%s': expected %s, found %s", where_, key,
                 expected, found.is_number() ? "another number" : found.type_name());
  }

 private:
  const Json& object_;
  const char* where_;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_JSON_HPP_
