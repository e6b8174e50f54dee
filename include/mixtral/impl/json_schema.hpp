#ifndef MIXTRAL_IMPL_JSON_SCHEMA_HPP_
#define MIXTRAL_IMPL_JSON_SCHEMA_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "mixtral/impl/core.hpp"
//
#include "mixtral/impl/number_ranges.hpp"
#include "mixtral/json_schema.hpp"

namespace mixtral {

namespace detail {

class JsonSchemaCompiler {
 public:
  using Json = nlohmann::ordered_json;  // members stay in order

  Result<std::string> compile(std::string_view text) {
    if (depth_of(text) > kMostNested) {
      return Error(ErrorCode::unsupported, "JSON schema: nested more than %d deep", kMostNested);
    }
    root_ = Json::parse(text.begin(), text.end(), nullptr, false);
    if (root_.is_discarded()) {
      return Error(ErrorCode::bad_format, "JSON schema: the text is no JSON");
    }
    out_ = kCommonRules;
    const Result<std::string> expression = schema(root_, 0);
    MIXTRAL_RETURN_IF_ERROR(expression);
    return "root ::= " + *expression + "\n" + out_;
  }

 private:
  static constexpr int kMostNested = 100;
  static constexpr std::size_t kMostRules = 10000;
  static constexpr std::int64_t kMostCount = 10000;

  // RFC 8259. No halves of surrogate pairs, no digits without end.
  static constexpr const char* kCommonRules =
      R"GBNF(value ::= object | array | string | number | boolean | null
object ::= "{" ws (string ws ":" ws value ws ("," ws string ws ":" ws value ws)*)? "}"
array ::= "[" ws (value ws ("," ws value ws)*)? "]"
string ::= "\"" char* "\""
char ::= plain | "\\" (["\\/bfnrt] | "u" (hex4 | [dD] [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex))
plain ::= [^"\\\x00-\x1F]
hex ::= [0-9a-fA-F]
hex4 ::= [0-9a-ceA-CEfF] hex hex hex | [dD] [0-7] hex hex
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
ws ::= (" " | "\n" " "{0,20})?
)GBNF";

  static int depth_of(std::string_view text) {
    int depth = 0, most = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const char c = text[i];
      if (in_string && c == '\\') ++i;
      if (c == '"') in_string = !in_string;
      if (in_string) continue;
      if (c == '[' || c == '{') most = std::max(most, ++depth);
      if (c == ']' || c == '}') --depth;
    }
    return most;
  }

  static Error unsupported(const std::string& what) {
    return Error(ErrorCode::unsupported, "JSON schema: %s is not supported", what.c_str());
  }
  static Error bad(const std::string& what) {
    return Error(ErrorCode::bad_format, "JSON schema: %s", what.c_str());
  }

  // The GBNF literal of a text; JSON's are UTF-8.
  static std::string literal(const std::string& text) {
    const auto gbnf = literal_to_gbnf(text);
    return gbnf ? std::string(*gbnf) : std::string();
  }
  static std::string literal_of(const Json& value) {
    return literal(value.dump(-1, ' ', false, Json::error_handler_t::replace));
  }

  // A new rule; its name.
  Result<std::string> add_rule(const std::string& expression) {
    const std::string name = "r" + std::to_string(n_rules_++);
    MIXTRAL_RETURN_IF_ERROR(define(name, expression));
    return name;
  }
  Status define(const std::string& name, const std::string& expression) {
    if (n_rules_ > kMostRules) return unsupported("a schema that needs so many rules");
    out_ += name + " ::= " + expression + "\n";
    return {};
  }

  // Are there no keywords but these and those that restrict nothing?
  static Status only(const Json& schema, std::initializer_list<std::string_view> known) {
    for (const auto& member : schema.items()) {
      bool found = false;
      for (const std::string_view keyword : known) found = found || member.key() == keyword;
      for (const char* keyword :
           {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
            "examples", "deprecated", "readOnly", "writeOnly"}) {
        found = found || member.key() == keyword;
      }
      if (!found) return unsupported("\"" + member.key() + "\" here");
    }
    return {};
  }

  // What may be at this place: an expression of GBNF.
  Result<std::string> schema(const Json& schema, int depth) {
    if (depth > kMostNested) return unsupported("so deep a nesting");
    if (schema.is_boolean()) {
      if (schema.get<bool>()) return std::string("value");
      return bad("false allows nothing");
    }
    if (!schema.is_object()) return bad("a schema must be an object, true or false");
    if (schema.contains("$ref")) return reference(schema, depth);
    if (schema.contains("enum") || schema.contains("const")) return constants(schema);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
      if (schema.contains(keyword)) return combination(schema, keyword, depth);
    }
    std::vector<std::string> types;
    MIXTRAL_RETURN_IF_ERROR(types_of(schema, types));
    MIXTRAL_RETURN_IF_ERROR(
        only(schema, {"type", "properties", "required", "additionalProperties", "items",
                      "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems",
                      "minProperties", "minLength", "maxLength", "pattern", "format", "minimum",
                      "maximum", "exclusiveMinimum", "exclusiveMaximum"}));
    if (types.empty()) return std::string("value");
    std::string choice;
    for (const std::string& type : types) {
      const Result<std::string> one = of_type(schema, type, depth);
      MIXTRAL_RETURN_IF_ERROR(one);
      choice += (choice.empty() ? "" : " | ") + *one;
    }
    if (types.size() == 1) return choice;
    return "(" + choice + ")";
  }

  // Those named, or the one that the keywords are about; none for anything.
  static Status types_of(const Json& schema, std::vector<std::string>& types) {
    if (!schema.contains("type")) {
      struct Hint {
        const char* type;
        std::vector<const char*> keywords;
      };
      for (const Hint& hint :
           {Hint{"object", {"properties", "required", "additionalProperties", "minProperties"}},
            Hint{
                "array",
                {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}},
            Hint{"string", {"minLength", "maxLength", "pattern", "format"}},
            Hint{"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}}}) {
        for (const char* keyword : hint.keywords) {
          if (schema.contains(keyword) && (types.empty() || types.back() != hint.type)) {
            types.emplace_back(hint.type);
          }
        }
      }
      return {};
    }
    const Json& type = schema["type"];
    const Json list = type.is_array() ? type : Json::array({type});
    for (const Json& one : list) {
      if (!one.is_string()) return bad("\"type\" must be a name, or a list of them");
      types.push_back(one.get<std::string>());
    }
    if (types.empty()) return bad("\"type\" is an empty list");
    return {};
  }

  Result<std::string> of_type(const Json& schema, const std::string& type, int depth) {
    if (type == "null" || type == "boolean") return type;
    if (type == "integer") return number(schema, true);
    if (type == "number") return number(schema, false);
    if (type == "string") return string(schema);
    if (type == "array") return array(schema, depth);
    if (type == "object") return object(schema, depth);
    return bad("there is no type \"" + type + "\"");
  }

  Result<std::string> reference(const Json& schema, int depth) {
    MIXTRAL_RETURN_IF_ERROR(only(schema, {"$ref"}));
    const Json& ref = schema["$ref"];
    if (!ref.is_string()) return bad("\"$ref\" must be a string");
    const auto path = ref.get<std::string>();
    const auto known = references_.find(path);
    if (known != references_.end()) return known->second;
    const Json* target = &root_;
    if (path.empty() || path[0] != '#' || (path.size() > 1 && path[1] != '/')) {
      return unsupported("\"$ref\": \"" + path + "\", which is no path in the schema itself,");
    }
    // RFC 6901.
    for (std::size_t begin = 2; begin <= path.size() && path.size() > 1;) {
      const std::size_t end = std::min(path.find('/', begin), path.size());
      std::string key;
      for (std::size_t i = begin; i < end; ++i) {
        const bool escaped = path[i] == '~' && i + 1 < end;
        key += !escaped ? path[i] : path[++i] == '1' ? '/' : '~';
      }
      const bool is_index = target->is_array() && !key.empty() && key.size() < 6 &&
                            key.find_first_not_of("0123456789") == std::string::npos;
      if (target->is_object() && target->contains(key)) {
        target = &(*target)[key];
      } else if (is_index && std::stoul(key) < target->size()) {
        target = &(*target)[std::stoul(key)];
      } else {
        return bad("\"$ref\": \"" + path + "\" leads nowhere");
      }
      begin = end + 1;
    }
    // The name is known before its rule is, for schemas that contain themselves.
    const std::string name = "r" + std::to_string(n_rules_++);
    references_[path] = name;
    const Result<std::string> expression = this->schema(*target, depth + 1);
    MIXTRAL_RETURN_IF_ERROR(expression);
    MIXTRAL_RETURN_IF_ERROR(define(name, *expression));
    return name;
  }

  static bool is_of_type(const Json& value, const std::string& type) {
    if (type == "integer") {
      return value.is_number_integer() ||
             (value.is_number_float() && std::floor(value.get<double>()) == value.get<double>());
    }
    return (type == "null" && value.is_null()) || (type == "boolean" && value.is_boolean()) ||
           (type == "number" && value.is_number()) || (type == "string" && value.is_string()) ||
           (type == "array" && value.is_array()) || (type == "object" && value.is_object());
  }

  static Result<std::string> constants(const Json& schema) {
    MIXTRAL_RETURN_IF_ERROR(only(schema, {"enum", "const", "type"}));
    std::vector<std::string> types;
    MIXTRAL_RETURN_IF_ERROR(types_of(schema, types));
    Json values = Json::array();
    if (schema.contains("enum")) {
      if (!schema["enum"].is_array()) return bad("\"enum\" must be a list");
      values = schema["enum"];
    } else {
      values.push_back(schema["const"]);
    }
    std::string choice;
    for (const Json& value : values) {
      bool fits = types.empty();
      for (const std::string& type : types) fits = fits || is_of_type(value, type);
      if (schema.contains("const") && value != schema["const"]) fits = false;
      if (fits) choice += (choice.empty() ? "" : " | ") + literal_of(value);
    }
    if (choice.empty()) return bad("\"enum\" or \"const\" leaves no value");
    return "(" + choice + ")";
  }

  Result<std::string> combination(const Json& schema, const char* keyword, int depth) {
    MIXTRAL_RETURN_IF_ERROR(only(schema, {keyword}));
    const Json& parts = schema[keyword];
    const std::string name = std::string("\"") + keyword + "\"";
    if (!parts.is_array() || parts.empty()) return bad(name + " must be a list, and not empty");
    if (parts.size() > 1 && name == "\"allOf\"") return unsupported(name + " of several parts");
    if (name == "\"oneOf\"") {
      for (std::size_t i = 0; i < parts.size(); ++i) {
        for (std::size_t k = 0; k < i; ++k) {
          if (!exclude_each_other(parts[k], parts[i], 0)) {
            return unsupported(name + " with parts that may hold at once (use anyOf),");
          }
        }
      }
    }
    std::string choice;
    for (const Json& part : parts) {
      const Result<std::string> one = this->schema(part, depth + 1);
      MIXTRAL_RETURN_IF_ERROR(one);
      choice += (choice.empty() ? "" : " | ") + *one;
    }
    return "(" + choice + ")";
  }

  // False if in doubt.
  bool exclude_each_other(const Json& a, const Json& b, int depth) const {
    if (depth > 4 || !a.is_object() || !b.is_object()) return false;
    const auto values_of = [](const Json& schema) {
      if (schema.contains("const")) return Json::array({schema["const"]});
      return schema.contains("enum") ? schema["enum"] : Json();
    };
    const Json a_values = values_of(a), b_values = values_of(b);
    if (a_values.is_array() && b_values.is_array()) {
      for (const Json& one : a_values) {
        for (const Json& other : b_values) {
          if (one == other) return false;
        }
      }
      return true;
    }
    std::vector<std::string> a_types, b_types;
    if (!types_of(a, a_types) || !types_of(b, b_types)) return false;
    const auto all_of_others = [](const Json& values, const std::vector<std::string>& types) {
      if (!values.is_array() || types.empty()) return false;
      for (const Json& value : values) {
        for (const std::string& type : types) {
          if (is_of_type(value, type)) return false;
        }
      }
      return true;
    };
    if (all_of_others(a_values, b_types) || all_of_others(b_values, a_types)) return true;
    if (a.contains("type") && b.contains("type")) {
      bool common = false;
      for (const std::string& one : a_types) {
        for (const std::string& other : b_types) {
          common = common || one == other || (one == "integer" && other == "number") ||
                   (one == "number" && other == "integer");
        }
      }
      if (!common) return true;
    }
    // Objects that must have the same member with different values.
    if (a_types != std::vector<std::string>{"object"} || b_types != a_types) return false;
    if (!a.contains("properties") || !b.contains("properties")) return false;
    for (const auto& member : a["properties"].items()) {
      if (is_required(a, member.key()) && is_required(b, member.key()) &&
          b["properties"].contains(member.key()) &&
          exclude_each_other(member.value(), b["properties"][member.key()], depth + 1)) {
        return true;
      }
    }
    return false;
  }

  static bool is_required(const Json& schema, const std::string& key) {
    if (!schema.contains("required") || !schema["required"].is_array()) return false;
    for (const Json& one : schema["required"]) {
      if (one.is_string() && one.get_ref<const std::string&>() == key) return true;
    }
    return false;
  }

  // The value of a keyword that counts something; `absent` if it is not there.
  static Result<std::int64_t> count(const Json& schema, const char* keyword, std::int64_t absent) {
    if (!schema.contains(keyword)) return absent;
    const Json& value = schema[keyword];
    if (!value.is_number_integer() || value < 0) {
      return bad(std::string("\"") + keyword + "\" must be a whole number");
    }
    if (value > kMostCount) return unsupported(std::string("so large a \"") + keyword + "\"");
    return value.get<std::int64_t>();
  }

  static std::string repeated(const std::string& what, std::int64_t least, std::int64_t most) {
    return what + "{" + std::to_string(least) + "," + (most < 0 ? "" : std::to_string(most)) + "}";
  }

  Result<std::string> string(const Json& schema) {
    const Result<std::int64_t> least = count(schema, "minLength", 0);
    MIXTRAL_RETURN_IF_ERROR(least);
    const Result<std::int64_t> most = count(schema, "maxLength", -1);
    MIXTRAL_RETURN_IF_ERROR(most);
    const bool has_length = schema.contains("minLength") || schema.contains("maxLength");
    if (schema.contains("pattern") || schema.contains("format")) {
      if (has_length) return unsupported("a length beside \"pattern\" or \"format\"");
      if (schema.contains("pattern") && schema.contains("format")) {
        return unsupported("\"pattern\" beside \"format\"");
      }
      const char* keyword = schema.contains("pattern") ? "pattern" : "format";
      if (!schema[keyword].is_string()) {
        return bad(std::string("\"") + keyword + "\" must be a string");
      }
      std::string pattern = schema[keyword].get<std::string>();
      if (schema.contains("format")) {
        const char* known = pattern_of(pattern);
        if (known == nullptr) return unsupported("\"format\": \"" + pattern + "\"");
        pattern = known;
      }
      const auto gbnf = regex_to_gbnf(pattern, RegexScope::json_string);
      MIXTRAL_RETURN_IF_ERROR(gbnf);
      return add_rule(R"("\"" )" + std::string(*gbnf) + R"( "\"")");
    }
    if (!has_length) return std::string("string");
    if (*most >= 0 && *most < *least) return bad("\"maxLength\" is less than \"minLength\"");
    return add_rule(R"("\"" )" + repeated("char", *least, *most) + R"( "\"")");
  }

  // RFC 3339, 4122, 5321 and 1123, the parts of them that are common.
  static const char* pattern_of(const std::string& format) {
    struct Format {
      const char* name;
      const char* pattern;
    };
#define MIXTRAL_DATE                                                                              \
  "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[" \
  "1-9]|1[0-9]|2[0-8])))"
#define MIXTRAL_TIME                                                                               \
  "(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])" \
  ")"
#define MIXTRAL_LABEL "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
#define MIXTRAL_BYTE "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    for (const Format& known : {
             Format{"date", "^" MIXTRAL_DATE "$"},
             Format{"time", "^" MIXTRAL_TIME "$"},
             Format{"date-time", "^" MIXTRAL_DATE "T" MIXTRAL_TIME "$"},
             Format{"uuid", "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"},
             Format{"email", "^[a-zA-Z0-9_+-]{1,30}(\\.[a-zA-Z0-9_+-]{1,30})?@" MIXTRAL_LABEL
                             "(\\." MIXTRAL_LABEL "){1,3}$"},
             Format{"hostname", "^" MIXTRAL_LABEL "(\\." MIXTRAL_LABEL "){0,2}$"},
             Format{"ipv4", "^(" MIXTRAL_BYTE "\\.){3}" MIXTRAL_BYTE "$"},
         }) {
      if (format == known.name) return known.pattern;
    }
    return nullptr;
#undef MIXTRAL_DATE
#undef MIXTRAL_TIME
#undef MIXTRAL_LABEL
#undef MIXTRAL_BYTE
  }

  Result<std::string> array(const Json& schema, int depth) {
    if (schema.contains("uniqueItems") && schema["uniqueItems"] != false) {
      return unsupported("\"uniqueItems\"");
    }
    const Result<std::int64_t> least = count(schema, "minItems", 0);
    MIXTRAL_RETURN_IF_ERROR(least);
    const Result<std::int64_t> most = count(schema, "maxItems", -1);
    MIXTRAL_RETURN_IF_ERROR(most);
    // Elements at the beginning, and those after them; "items" was both.
    Json prefix = Json::array();
    Json rest = true;
    if (schema.contains("prefixItems")) {
      prefix = schema["prefixItems"];
      rest = schema.contains("items") ? schema["items"] : Json(false);
    } else if (schema.contains("items") && schema["items"].is_array()) {
      prefix = schema["items"];
      rest = schema.contains("additionalItems") ? schema["additionalItems"] : Json(false);
    } else if (schema.contains("items")) {
      rest = schema["items"];
    }
    if (!prefix.is_array()) return bad("\"prefixItems\" must be a list");
    const auto n_prefix = static_cast<std::int64_t>(prefix.size());
    std::int64_t last = *most;
    if (rest == false) last = last < 0 ? n_prefix : std::min(last, n_prefix);
    if (last >= 0 && last < *least) return bad("an array of fewer elements than \"minItems\"");
    // What follows element i - 1, from the end on.
    std::string tail;
    if (last < 0 || last > n_prefix) {
      const Result<std::string> item = this->schema(rest, depth + 1);
      MIXTRAL_RETURN_IF_ERROR(item);
      const Result<std::string> element = add_rule(*item + " ws");
      MIXTRAL_RETURN_IF_ERROR(element);
      if (n_prefix == 0) {
        const std::string some =
            *element + " " +
            repeated("(\",\" ws " + *element + ")", std::max<std::int64_t>(*least, 1) - 1,
                     last < 0 ? -1 : last - 1);
        return add_rule("\"[\" ws " + (*least == 0 ? "(" + some + ")?" : some) + " \"]\"");
      }
      tail = repeated("(\",\" ws " + *element + ")", std::max<std::int64_t>(*least - n_prefix, 0),
                      last < 0 ? -1 : last - n_prefix);
    }
    for (std::int64_t i = std::min(n_prefix, last < 0 ? n_prefix : last); i-- > 0;) {
      const Result<std::string> item = this->schema(prefix[static_cast<std::size_t>(i)], depth + 1);
      MIXTRAL_RETURN_IF_ERROR(item);
      std::string from = (i == 0 ? "" : "\",\" ws ") + *item + " ws " + tail;
      if (i >= *least) from = "(" + from + ")?";
      const Result<std::string> rule = add_rule(from);
      MIXTRAL_RETURN_IF_ERROR(rule);
      tail = *rule;
    }
    return add_rule("\"[\" ws " + tail + " \"]\"");
  }

  Result<std::string> object(const Json& schema, int depth) {
    const Json properties =
        schema.contains("properties") ? schema["properties"] : Json(Json::object());
    if (!properties.is_object()) return bad("\"properties\" must be an object");
    const bool says_more = schema.contains("additionalProperties");
    const Json more = says_more ? schema["additionalProperties"] : Json(properties.empty());
    const Json required = schema.contains("required") ? schema["required"] : Json(Json::array());
    if (!required.is_array()) return bad("\"required\" must be a list");
    // Required members that have no schema of their own have that of additional ones.
    std::vector<std::pair<std::string, Json>> members;
    for (const auto& member : properties.items())
      members.emplace_back(member.key(), member.value());
    for (const Json& key : required) {
      if (!key.is_string()) return bad("\"required\" must be a list of names");
      const auto name = key.get<std::string>();
      if (properties.contains(name)) continue;
      if (more == false && says_more) return bad("\"" + name + "\" is required but not allowed");
      members.emplace_back(name, more == false ? Json(true) : more);
    }
    const Result<std::int64_t> least = count(schema, "minProperties", 0);
    MIXTRAL_RETURN_IF_ERROR(least);
    std::int64_t n_required = 0;
    for (const auto& member : members) n_required += is_required(schema, member.first) ? 1 : 0;
    if (*least > n_required) return unsupported("\"minProperties\" beyond what is required");

    // What may follow a member, from the last one on; and what may come first.
    std::string after, first;
    if (more != false) {
      const Result<std::string> key = other_key(members);
      MIXTRAL_RETURN_IF_ERROR(key);
      const Result<std::string> one = this->schema(more, depth + 1);
      MIXTRAL_RETURN_IF_ERROR(one);
      const Result<std::string> pair = add_rule(*key + " ws \":\" ws " + *one + " ws");
      MIXTRAL_RETURN_IF_ERROR(pair);
      const Result<std::string> others = add_rule("(\",\" ws " + *pair + ")*");
      MIXTRAL_RETURN_IF_ERROR(others);
      after = *others;
      first = *pair + " " + after;
    }
    bool can_be_empty = true;
    for (std::size_t i = members.size(); i-- > 0;) {
      const Result<std::string> one = this->schema(members[i].second, depth + 1);
      MIXTRAL_RETURN_IF_ERROR(one);
      const Result<std::string> pair =
          add_rule(literal_of(members[i].first) + " ws \":\" ws " + *one + " ws");
      MIXTRAL_RETURN_IF_ERROR(pair);
      const bool must = is_required(schema, members[i].first);
      const std::string begins = *pair + " " + after;
      first = must || first.empty() ? begins : begins + " | " + first;
      can_be_empty = can_be_empty && !must;
      const std::string follows = "\",\" ws " + *pair;
      const Result<std::string> rule =
          add_rule((must ? follows : "(" + follows + ")?") + " " + after);
      MIXTRAL_RETURN_IF_ERROR(rule);
      after = *rule;
    }
    if (first.empty()) return add_rule(R"("{" ws "}")");
    return add_rule("\"{\" ws (" + first + ")" + (can_be_empty ? "?" : "") + " \"}\"");
  }

  // A key without escapes that is none of the members'.
  Result<std::string> other_key(const std::vector<std::pair<std::string, Json>>& members) {
    std::vector<std::u32string> names;
    for (const auto& member : members) {
      std::u32string name;
      for (std::size_t i = 0; i < member.first.size();) {  // UTF-8, as JSON is
        const auto lead = static_cast<unsigned char>(member.first[i]);
        const std::size_t length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        char32_t c = length == 1 ? lead : lead & (0x7Fu >> length);
        for (std::size_t k = 1; k < length && i + k < member.first.size(); ++k) {
          c = c << 6 | (static_cast<unsigned char>(member.first[i + k]) & 0x3Fu);
        }
        name += c;
        i += length;
      }
      names.push_back(name);
    }
    const Result<std::string> rest = other_text(names, 0);
    MIXTRAL_RETURN_IF_ERROR(rest);
    return add_rule(R"("\"" )" + *rest + R"( "\"")");
  }

  // What may follow the first `depth` characters that all these have in common, so that it is none.
  Result<std::string> other_text(const std::vector<std::u32string>& names, std::size_t depth) {
    if (names.empty()) return std::string("plain*");
    std::map<char32_t, std::vector<std::u32string>> next;
    bool is_name = false;
    for (const std::u32string& name : names) {
      if (name.size() == depth) {
        is_name = true;
      } else {
        next[name[depth]].push_back(name);
      }
    }
    if (depth > 200) return unsupported("so long a name beside \"additionalProperties\"");
    std::string choice, others;
    for (const auto& [c, those] : next) {
      if (c < 0x20 || c == '"' || c == '\\') continue;  // has escapes
      char escape[16];
      std::snprintf(escape, sizeof escape, "\\U%08X", static_cast<unsigned>(c));
      const Result<std::string> rest = other_text(those, depth + 1);
      MIXTRAL_RETURN_IF_ERROR(rest);
      choice += std::string("\"") + escape + "\" " + *rest + " | ";
      others += escape;
    }
    choice += "[^\\\"\\\\\\x00-\\x1F" + others + "] plain*";
    return add_rule("(" + choice + ")" + (is_name ? "" : "?"));
  }

  static constexpr std::int64_t kLargest = 1000000000000;  // that bounds may be
  static constexpr int kMostDigits = 6;                    // after the point

  Result<std::string> number(const Json& schema, bool whole) {
    struct Bound {
      const char* keyword;
      bool is_low, is_open;
    };
    int digits = 0;
    std::vector<std::pair<Bound, std::int64_t>> bounds;  // in millionths
    for (const Bound& bound :
         {Bound{"minimum", true, false}, Bound{"maximum", false, false},
          Bound{"exclusiveMinimum", true, true}, Bound{"exclusiveMaximum", false, true}}) {
      if (!schema.contains(bound.keyword)) continue;
      const Json& value = schema[bound.keyword];
      const std::string name = std::string("\"") + bound.keyword + "\"";
      if (!value.is_number()) return bad(name + " must be a number");
      if (std::abs(value.get<double>()) > static_cast<double>(kLargest)) {
        return unsupported(name + " beyond 10^12");
      }
      const std::string text = value.dump();
      if (text.find('e') != std::string::npos) return unsupported(name + ": " + text);
      const std::size_t point = text.find('.');
      const bool has_point = point != std::string::npos && text.substr(point) != ".0";
      const auto after = has_point ? static_cast<int>(text.size() - point - 1) : 0;
      if (after > kMostDigits)
        return unsupported(name + " with more than 6 digits after the point");
      digits = std::max(digits, after);
      std::string millionths = text.substr(0, point);
      if (has_point) millionths += text.substr(point + 1);
      millionths.append(static_cast<std::size_t>(kMostDigits - after), '0');
      bounds.emplace_back(bound, std::stoll(millionths));
    }
    if (bounds.empty()) return std::string(whole ? "integer" : "number");
    const int most_digits = whole ? 0 : std::min(digits + 3, kMostDigits);
    std::string choice;
    for (int d = 0; d <= most_digits; ++d) {
      // In units of the last digit.
      std::int64_t low = -kLargest * power_of_10(d), high = kLargest * power_of_10(d);
      for (const auto& [bound, value] : bounds) {
        const std::int64_t unit = power_of_10(kMostDigits - d);
        const std::int64_t down = value / unit - (value % unit != 0 && value < 0 ? 1 : 0);
        const bool is_exact = value % unit == 0;
        if (bound.is_low) {
          low = std::max(low, is_exact && !bound.is_open ? down : down + 1);
        } else {
          high = std::min(high, is_exact && bound.is_open ? down - 1 : down);
        }
      }
      if (low > high) continue;
      const auto add = [&](const std::string& sign, std::int64_t from, std::int64_t to) {
        choice += (choice.empty() ? "" : " | ") + sign + gbnf_of_range(from, to, d);
      };
      if (low < 0) add("\"-\" ", std::max<std::int64_t>(1, -high), -low);
      if (high >= 0) add("", std::max<std::int64_t>(0, low), high);
    }
    if (choice.empty()) return bad("bounds that no number is between");
    return add_rule(choice);
  }

  Json root_;
  std::string out_;  // rules
  std::size_t n_rules_ = 0;
  std::map<std::string, std::string> references_;  // the rules of what $ref names
};

}  // namespace detail

Result<std::string> json_schema_to_gbnf(std::string_view schema) {
  return detail::guard_memory("translating a JSON schema",
                              [&] { return detail::JsonSchemaCompiler().compile(schema); });
}

Result<Grammar> json_schema_grammar(std::string_view schema, std::pmr::memory_resource* resource) {
  const Result<std::string> gbnf = json_schema_to_gbnf(schema);
  MIXTRAL_RETURN_IF_ERROR(gbnf);
  return Grammar::from_gbnf(*gbnf, resource);
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_JSON_SCHEMA_HPP_
