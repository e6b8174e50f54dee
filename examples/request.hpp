// A request to batch_serve: one line of JSON, checked field by field.
#ifndef MIXTRAL_EXAMPLES_REQUEST_HPP_
#define MIXTRAL_EXAMPLES_REQUEST_HPP_

#include <mixtral/json_schema.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "program.hpp"

namespace program {

// Reads the fields of a request. Those that are null count as absent.
class Request {
 public:
  // The longest line that is read, in bytes, and the deepest nesting of its objects and arrays. JSON is
  // copied and written by recursive functions, so that without the latter the stack would be the limit.
  static constexpr std::size_t kMaxLine = std::size_t{1} << 24;
  static constexpr int kMaxDepth = 128;

  // Sets `id` to the request's as soon as that is known, for answers that tell an error.
  Request(const std::string& line, nlohmann::json& id) : fields_(parse(line, id)) {
    for (const auto& [name, value] : fields_.items()) {
      if (std::find(kNames.begin(), kNames.end(), name) == kNames.end()) {
        throw std::runtime_error("unknown field \"" + start_of(name) + "\"; a request may have " +
                                 all_names());
      }
    }
    if (has("prompt") && has("user")) {
      throw std::runtime_error("a request must have either \"prompt\" or \"user\", not both");
    }
    if (!has("prompt") && !has("user")) {
      throw std::runtime_error("a request must have either \"prompt\" or \"user\"");
    }
  }

  // Is the text a message to be answered, rather than one to be continued?
  bool is_chat() const { return has("user"); }
  std::string text() const { return text_of(is_chat() ? "user" : "prompt"); }

  // `max_tokens` is for requests that do not say.
  mixtral::GenerateOptions options(std::uint32_t max_tokens) const {
    mixtral::GenerateOptions options;
    options.max_tokens = whole_number("max_tokens", max_tokens);
    options.sampling.temperature = number("temperature", 0.8f, 0.0f, 1000.0f);
    options.sampling.min_p = 0.05f;
    options.sampling.seed = whole_number("seed", std::uint64_t{0});
    if (has("stop")) options.stop = texts_of("stop");
    for (const std::string& text : options.stop) {
      if (text.empty()) throw wrong("stop", "texts that are not empty");
    }
    options.grammar = grammar();
    return options;
  }

 private:
  static constexpr std::array<const char*, 11> kNames = {
      "id",   "prompt", "user",    "max_tokens",  "temperature", "seed",
      "stop", "regex",  "grammar", "json_schema", "choices"};

  static nlohmann::json parse(const std::string& line, nlohmann::json& id) {
    bool too_deep = false;
    nlohmann::json request = parse_json(line, "the line", kMaxDepth, too_deep);
    if (request.is_object()) {
      const auto found = request.find("id");
      if (found != request.end() && !(too_deep && found->is_structured())) id = *found;
    }
    if (too_deep) {
      throw std::runtime_error("a request must not be nested more than " +
                               std::to_string(kMaxDepth) + " deep");
    }
    if (!request.is_object()) throw std::runtime_error("a request must be a JSON object");
    return request;
  }

  static std::string start_of(const std::string& name) {
    return name.size() <= 40 ? name : first_bytes(name, 40) + "...";
  }

  static std::string all_names() {
    std::string names;
    for (const char* name : kNames) names += (names.empty() ? "" : ", ") + std::string(name);
    return names;
  }

  static std::runtime_error wrong(const char* name, const std::string& expected) {
    return std::runtime_error(std::string("\"") + name + "\" must be " + expected);
  }

  bool has(const char* name) const {
    const auto found = fields_.find(name);
    return found != fields_.end() && !found->is_null();
  }

  std::string text_of(const char* name) const {
    const nlohmann::json& value = fields_[name];
    if (!value.is_string()) throw wrong(name, "a text");
    return value.get<std::string>();
  }

  std::vector<std::string> texts_of(const char* name) const {
    const nlohmann::json& value = fields_[name];
    const auto is_text = [](const nlohmann::json& item) { return item.is_string(); };
    if (!value.is_array() || !std::all_of(value.begin(), value.end(), is_text)) {
      throw wrong(name, "a list of texts");
    }
    return value.get<std::vector<std::string>>();
  }

  float number(const char* name, float otherwise, float least, float most) const {
    if (!has(name)) return otherwise;
    const nlohmann::json& value = fields_[name];
    const double number = value.is_number() ? value.get<double>() : -1.0;
    if (!value.is_number() || !(number >= static_cast<double>(least)) ||
        !(number <= static_cast<double>(most))) {
      char expected[64];
      std::snprintf(expected, sizeof expected, "a number from %g to %g", static_cast<double>(least),
                    static_cast<double>(most));
      throw wrong(name, expected);
    }
    return static_cast<float>(number);
  }

  // A number of an unsigned type, from 0 to its largest. One written with a fraction of 0 is whole.
  template <class Number>
  Number whole_number(const char* name, Number otherwise) const {
    if (!has(name)) return otherwise;
    constexpr Number kMost = std::numeric_limits<Number>::max();
    const nlohmann::json& value = fields_[name];
    if (value.is_number_unsigned() && value.get<std::uint64_t>() <= kMost) {
      return static_cast<Number>(value.get<std::uint64_t>());
    }
    if (value.is_number_float()) {
      const double number = value.get<double>();
      const double end = std::ldexp(1.0, std::numeric_limits<Number>::digits);
      if (number >= 0.0 && number < end && number == std::floor(number)) {
        return static_cast<Number>(number);
      }
    }
    throw wrong(name, "a whole number from 0 to " + std::to_string(kMost));
  }

  mixtral::Grammar grammar() const {
    const std::array<const char*, 4> rules = {"regex", "grammar", "json_schema", "choices"};
    const auto n =
        std::count_if(rules.begin(), rules.end(), [&](const char* name) { return has(name); });
    if (n > 1) {
      throw std::runtime_error(
          "a request may have at most one of \"regex\", \"grammar\", \"json_schema\" and "
          "\"choices\"");
    }
    if (has("regex")) return value(mixtral::Grammar::from_regex(text_of("regex")));
    if (has("grammar")) return value(mixtral::Grammar::from_gbnf(text_of("grammar")));
    if (has("json_schema")) {
      const nlohmann::json& schema = fields_["json_schema"];
      if (!schema.is_object() && !schema.is_boolean()) {
        throw wrong("json_schema", "a JSON schema: an object, true or false");
      }
      return value(mixtral::json_schema_grammar(schema.dump()));
    }
    if (!has("choices")) return {};
    const std::vector<std::string> choices = texts_of("choices");
    const std::vector<std::string_view> views(choices.begin(), choices.end());
    return value(mixtral::Grammar::from_choices({views.data(), views.size()}));
  }

  const nlohmann::json fields_;
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_REQUEST_HPP_
