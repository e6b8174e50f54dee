#ifndef MIXTRAL_IMPL_JSON_SCHEMA_HPP_
#define MIXTRAL_IMPL_JSON_SCHEMA_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "mixtral/impl/core.hpp"
//
#include "mixtral/impl/code_points.hpp"
#include "mixtral/impl/gbnf.hpp"
#include "mixtral/impl/number_ranges.hpp"
#include "mixtral/json_schema.hpp"
#include "mixtral/json_text.hpp"

namespace mixtral {

namespace detail {

// Translates a schema part by part: a part that has parts itself becomes a rule, which is translated when
// its turn comes. So nothing recurses as deep as the schema is nested.
class JsonSchemaCompiler {
 public:
  using Json = nlohmann::ordered_json;  // members stay in order

  explicit JsonSchemaCompiler(const JsonSchemaOptions& options)
      : ws_(options.blanks ? " ws" : ""), blanks_(options.blanks) {}

  Result<std::string> compile(std::string_view text) {
    if (text.size() > kMostBytes) return unsupported("a text of more than 4 MiB");
    const JsonShape shape = json_shape(text);
    if (shape.depth > kMostNested) {
      return Error(ErrorCode::unsupported, "JSON schema: nested more than %zu deep", kMostNested);
    }
    if (shape.most_members > kMostMembers) {
      return Error(ErrorCode::unsupported, "JSON schema: an object of more than %zu members",
                   kMostMembers);
    }
    if (shape.member_squares > kMostMemberSquares) {
      return Error(
          ErrorCode::unsupported,
          "JSON schema: too many large objects: the squares of their numbers of members sum "
          "to more than %llu",
          static_cast<unsigned long long>(kMostMemberSquares));
    }
    root_ = Json::parse(text.begin(), text.end(), nullptr, false);
    if (root_.is_discarded()) {
      return Error(ErrorCode::bad_format, "JSON schema: the text is no JSON");
    }
    add_common_rules();
    const Result<std::string> root = schema(root_);
    MIXTRAL_RETURN_IF_ERROR(root);
    for (std::size_t i = 0; i < later_.size(); ++i) {
      const Result<std::string> rule = expression(*later_[i].second);
      MIXTRAL_RETURN_IF_ERROR(rule);
      MIXTRAL_RETURN_IF_ERROR(define(later_[i].first, *rule));
    }
    return "root ::= " + *root + "\n" + out_;
  }

 private:
  // What json_schema.hpp states.
  static constexpr std::size_t kMostBytes = std::size_t{1} << 22;
  static constexpr std::size_t kMostNested = 100;
  static constexpr std::size_t kMostMembers = 4096;
  static constexpr std::uint64_t kMostMemberSquares = std::uint64_t{1} << 26;
  static constexpr std::size_t kMostRules = 16000;
  static constexpr std::size_t kMostExclusive = 256;  // parts of oneOf
  static constexpr std::int64_t kMostCount = 10000;

  // RFC 8259. No halves of surrogate pairs, no digits without end.
  void add_common_rules() {
    out_ = "value ::= object | array | string | number | boolean | null\n";
    out_ += "object ::= \"{\"" + ws_ + " (member (\",\"" + ws_ + " member)*)? \"}\"\n";
    out_ += "member ::= string" + ws_ + " \":\"" + ws_ + " value" + ws_ + "\n";
    out_ += "array ::= \"[\"" + ws_ + " (value" + ws_ + " (\",\"" + ws_ + " value" + ws_ +
            ")*)? \"]\"\n";
    out_ += R"GBNF(string ::= "\"" char* "\""
char ::= plain | "\\" (["\\/bfnrt] | "u" (hex4 | [dD] [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex))
plain ::= [^"\\\x00-\x1F]
hex ::= [0-9a-fA-F]
hex4 ::= [0-9a-ceA-CEfF] hex hex hex | [dD] [0-7] hex hex
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
)GBNF";
    if (blanks_) out_ += "ws ::= (\" \" | \"\\n\" \" \"{0,20})?\n";
  }

  // The most bytes of a name or value that an error quotes; the rest is left for what is wrong with it.
  static constexpr std::size_t kMostTold = 240;

  static Error unsupported(const std::string& what) {
    return Error(ErrorCode::unsupported, "JSON schema: %s is not supported",
                 ShortName(what, kMostTold).text());
  }
  static Error bad(const std::string& what) {
    return Error(ErrorCode::bad_format, "JSON schema: %s", ShortName(what, kMostTold).text());
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
    if (n_rules_ > kMostRules) return unsupported("a schema that needs more than 16000 rules");
    if (out_.size() + expression.size() > kMostGrammarBytes) {
      return unsupported("a schema that becomes more than 16 MiB of grammar");
    }
    out_ += name + " ::= " + expression + "\n";
    return {};
  }

  // The rule of a part of the schema; it is there once, and translated later.
  std::string later(const Json& part) {
    const auto [place, is_new] = rules_.emplace(&part, std::string());
    if (is_new) {
      place->second = "r" + std::to_string(n_rules_++);
      later_.emplace_back(place->second, &part);
    }
    return place->second;
  }

  static std::string joined(const std::vector<std::string>& alternatives) {
    std::string choice;
    for (const std::string& one : alternatives) choice += (choice.empty() ? "" : " | ") + one;
    return choice;
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

  // What may be at this place: an expression of GBNF, in parentheses if it needs them.
  Result<std::string> schema(const Json& schema) {
    if (schema.is_object()) {
      if (schema.contains("$ref")) return reference(schema);
      bool has_parts = false;
      if (!schema.contains("enum") && !schema.contains("const")) {
        for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
          has_parts = has_parts || schema.contains(keyword);
        }
        std::vector<std::string> types;
        if (!has_parts) MIXTRAL_RETURN_IF_ERROR(types_of(schema, types));
        for (const std::string& type : types) {
          has_parts = has_parts || type == "array" || type == "object";
        }
      }
      if (has_parts) return later(schema);
    }
    const Result<std::string> leaf = expression(schema);
    if (!leaf || leaf->size() < 64) return leaf;
    return add_rule(*leaf);  // which may be written twice
  }

  // What a schema allows. Calls schema() for its parts, which then calls this only for those without any.
  Result<std::string> expression(const Json& schema) {
    if (schema.is_boolean()) {
      if (schema.get<bool>()) return std::string("value");
      return bad("false allows nothing");
    }
    if (!schema.is_object()) return bad("a schema must be an object, true or false");
    if (schema.contains("$ref")) return reference(schema);
    if (schema.contains("enum") || schema.contains("const")) return constants(schema);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
      if (schema.contains(keyword)) return combination(schema, keyword);
    }
    std::vector<std::string> types;
    MIXTRAL_RETURN_IF_ERROR(types_of(schema, types));
    MIXTRAL_RETURN_IF_ERROR(
        only(schema, {"type", "properties", "required", "additionalProperties", "items",
                      "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems",
                      "minProperties", "minLength", "maxLength", "pattern", "format", "minimum",
                      "maximum", "exclusiveMinimum", "exclusiveMaximum"}));
    if (types.empty()) return std::string("value");
    std::vector<std::string> alternatives;
    for (const std::string& type : types) {
      const Result<std::string> one = of_type(schema, type);
      MIXTRAL_RETURN_IF_ERROR(one);
      alternatives.push_back(*one);
    }
    if (types.size() == 1) return alternatives[0];
    return "(" + joined(alternatives) + ")";
  }

  // The types named, each once, or the one that the keywords are about; none for anything.
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
    const std::size_t n = type.is_array() ? type.size() : 1;
    for (std::size_t i = 0; i < n; ++i) {
      const Json& one = type.is_array() ? type[i] : type;
      if (!one.is_string()) return bad("\"type\" must be a name, or a list of them");
      const auto& name = one.get_ref<const std::string&>();
      if (type_bit(name) == 0) return bad("there is no type \"" + name + "\"");
      if (std::find(types.begin(), types.end(), name) == types.end()) types.push_back(name);
    }
    if (types.empty()) return bad("\"type\" is an empty list");
    return {};
  }

  static constexpr unsigned kInteger = 4, kNumber = 8;
  static unsigned type_bit(const std::string& type) {
    unsigned bit = 1;
    for (const char* name : {"null", "boolean", "integer", "number", "string", "array", "object"}) {
      if (type == name) return bit;
      bit *= 2;
    }
    return 0;
  }
  static unsigned type_bits(const std::vector<std::string>& types) {
    unsigned bits = 0;
    for (const std::string& type : types) bits |= type_bit(type);
    return bits;
  }
  // The types that a value is of.
  static unsigned types_of_value(const Json& value) {
    if (value.is_number_integer()) return kInteger | kNumber;
    if (value.is_number_float()) {
      const auto number = value.get<double>();
      return std::floor(number) == number ? kInteger | kNumber : kNumber;
    }
    return type_bit(value.type_name());
  }

  Result<std::string> of_type(const Json& schema, const std::string& type) {
    if (type == "null" || type == "boolean") return type;
    if (type == "integer") return number(schema, true);
    if (type == "number") return number(schema, false);
    if (type == "string") return string(schema);
    if (type == "array") return array(schema);
    return object(schema);
  }

  Result<std::string> reference(const Json& schema) {
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
    return references_[path] = later(*target);
  }

  static Result<std::string> constants(const Json& schema) {
    MIXTRAL_RETURN_IF_ERROR(only(schema, {"enum", "const", "type"}));
    std::vector<std::string> types;
    MIXTRAL_RETURN_IF_ERROR(types_of(schema, types));
    const unsigned bits = type_bits(types);
    std::vector<std::string> choice;
    const auto add = [&](const Json& value) {
      if (bits != 0 && (types_of_value(value) & bits) == 0) return;
      if (schema.contains("const") && value != schema["const"]) return;
      choice.push_back(literal_of(value));
    };
    if (schema.contains("enum")) {
      if (!schema["enum"].is_array()) return bad("\"enum\" must be a list");
      for (const Json& value : schema["enum"]) add(value);
    } else {
      add(schema["const"]);
    }
    if (choice.empty()) return bad("\"enum\" or \"const\" leaves no value");
    return "(" + joined(choice) + ")";
  }

  Result<std::string> combination(const Json& schema, const char* keyword) {
    MIXTRAL_RETURN_IF_ERROR(only(schema, {keyword}));
    const Json& parts = schema[keyword];
    const std::string name = std::string("\"") + keyword + "\"";
    if (!parts.is_array() || parts.empty()) return bad(name + " must be a list, and not empty");
    if (parts.size() > 1 && name == "\"allOf\"") return unsupported(name + " of several parts");
    if (name == "\"oneOf\"") {
      if (parts.size() > kMostExclusive) return unsupported(name + " of more than 256 parts");
      for (std::size_t i = 0; i < parts.size(); ++i) {
        for (std::size_t k = 0; k < i; ++k) {
          if (!exclude_each_other(parts[k], parts[i], 0)) {
            return unsupported(name + " with parts that may hold at once (use anyOf),");
          }
        }
      }
    }
    std::vector<std::string> alternatives;
    for (const Json& part : parts) {
      const Result<std::string> one = this->schema(part);
      MIXTRAL_RETURN_IF_ERROR(one);
      alternatives.push_back(*one);
    }
    return "(" + joined(alternatives) + ")";
  }

  // What tells a schema from others.
  struct Facts {
    bool is_known = false;  // an object of which the rest here was found
    bool has_type = false;
    unsigned types = 0;                           // that it names, or that its keywords are about
    bool has_values = false;                      // enum or const
    unsigned value_types = 0;                     // of those
    std::vector<std::string> values;              // those, by append_canonical, sorted
    std::map<std::string, const Json*> required;  // the schemas of members that must be there
  };

  // Found once for each schema.
  const Facts& facts_of(const Json& schema) {
    const auto [place, is_new] = facts_.try_emplace(&schema);
    Facts& facts = place->second;
    std::vector<std::string> types;
    if (!is_new || !schema.is_object() || !types_of(schema, types)) return facts;
    facts.is_known = true;
    facts.has_type = schema.contains("type");
    facts.types = type_bits(types);
    const auto add_value = [&](const Json& value) {
      facts.value_types |= types_of_value(value);
      facts.values.emplace_back();
      append_canonical(value, facts.values.back());
    };
    if (schema.contains("const")) {
      facts.has_values = true;
      add_value(schema["const"]);
    } else if (schema.contains("enum") && schema["enum"].is_array()) {
      facts.has_values = true;
      for (const Json& value : schema["enum"]) add_value(value);
    }
    std::sort(facts.values.begin(), facts.values.end());
    if (!schema.contains("properties")) return facts;
    const std::set<std::string> required = required_of(schema);
    for (const auto& member : schema["properties"].items()) {
      if (required.count(member.key()) != 0) facts.required[member.key()] = &member.value();
    }
    return facts;
  }

  // Text that is the same for values that are equal. Recurses as deep as the value is nested, which is
  // kMostNested at most.
  static void append_canonical(const Json& value, std::string& out) {
    if (value.is_number()) {
      char number[32];
      std::snprintf(number, sizeof number, "%.17g", value.get<double>() + 0.0);
      out += number;
    } else if (value.is_array()) {
      for (const Json& element : value) {
        out += '[';
        append_canonical(element, out);
      }
      out += ']';
    } else if (value.is_object()) {
      std::map<std::string_view, const Json*> members;
      for (const auto& member : value.items()) members[member.key()] = &member.value();
      for (const auto& [key, member] : members) {
        out += '{';
        append_dump(key, out);
        append_canonical(*member, out);
      }
      out += '}';
    } else {
      append_dump(value, out);
    }
  }
  static void append_dump(const Json& value, std::string& out) {
    out += value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  // False if in doubt.
  bool exclude_each_other(const Json& one, const Json& other, int depth) {
    constexpr int kMostLevels = 4;
    const Facts& a = facts_of(one);
    const Facts& b = facts_of(other);
    if (depth > kMostLevels || !a.is_known || !b.is_known) return false;
    if (a.has_values && b.has_values) {
      for (auto i = a.values.begin(), k = b.values.begin();
           i != a.values.end() && k != b.values.end();) {
        if (*i == *k) return false;
        ++(*i < *k ? i : k);
      }
      return true;
    }
    if (a.has_values && b.types != 0 && (a.value_types & b.types) == 0) return true;
    if (b.has_values && a.types != 0 && (b.value_types & a.types) == 0) return true;
    if (a.has_type && b.has_type) {
      const auto and_numbers = [](unsigned types) {
        return (types & kInteger) != 0 ? types | kNumber : types;
      };
      if ((and_numbers(a.types) & b.types) == 0 && (a.types & and_numbers(b.types)) == 0)
        return true;
    }
    // Objects that must have the same member with different values.
    if (a.types != type_bit("object") || b.types != a.types) return false;
    for (const auto& [key, schema] : a.required) {
      const auto found = b.required.find(key);
      if (found != b.required.end() && exclude_each_other(*schema, *found->second, depth + 1)) {
        return true;
      }
    }
    return false;
  }

  static std::set<std::string> required_of(const Json& schema) {
    std::set<std::string> names;
    if (!schema.contains("required") || !schema["required"].is_array()) return names;
    for (const Json& one : schema["required"]) {
      if (one.is_string()) names.insert(one.get_ref<const std::string&>());
    }
    return names;
  }

  // The value of a keyword that counts something; `absent` if it is not there.
  static Result<std::int64_t> count(const Json& schema, const char* keyword, std::int64_t absent) {
    if (!schema.contains(keyword)) return absent;
    const Json& value = schema[keyword];
    if (!value.is_number_integer() || value < 0) {
      return bad(std::string("\"") + keyword + "\" must be a whole number");
    }
    if (value > kMostCount) return unsupported(std::string("\"") + keyword + "\" above 10000");
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

  Result<std::string> array(const Json& schema) {
    if (schema.contains("uniqueItems") && schema["uniqueItems"] != false) {
      return unsupported("\"uniqueItems\"");
    }
    const Result<std::int64_t> least = count(schema, "minItems", 0);
    MIXTRAL_RETURN_IF_ERROR(least);
    const Result<std::int64_t> most = count(schema, "maxItems", -1);
    MIXTRAL_RETURN_IF_ERROR(most);
    // Elements at the beginning, and those after them; "items" was both.
    const Json* prefix = nullptr;
    const Json* rest = &true_;
    if (schema.contains("prefixItems")) {
      prefix = &schema["prefixItems"];
      rest = schema.contains("items") ? &schema["items"] : &false_;
    } else if (schema.contains("items") && schema["items"].is_array()) {
      prefix = &schema["items"];
      rest = schema.contains("additionalItems") ? &schema["additionalItems"] : &false_;
    } else if (schema.contains("items")) {
      rest = &schema["items"];
    }
    if (prefix != nullptr && !prefix->is_array()) return bad("\"prefixItems\" must be a list");
    const auto n_prefix = static_cast<std::int64_t>(prefix == nullptr ? 0 : prefix->size());
    std::int64_t last = *most;
    if (*rest == false) last = last < 0 ? n_prefix : std::min(last, n_prefix);
    if (last >= 0 && last < *least) return bad("an array of fewer elements than \"minItems\"");
    const std::string open = "\"[\"" + ws_ + " ", comma = "\",\"" + ws_ + " ";
    // What follows element i - 1, from the end on.
    std::string tail;
    if (last < 0 || last > n_prefix) {
      const Result<std::string> item = this->schema(*rest);
      MIXTRAL_RETURN_IF_ERROR(item);
      const std::string element = *item + ws_;
      if (n_prefix == 0) {
        const std::string some =
            element + " " +
            repeated("(" + comma + element + ")", std::max<std::int64_t>(*least, 1) - 1,
                     last < 0 ? -1 : last - 1);
        return open + (*least == 0 ? "(" + some + ")?" : some) + " \"]\"";
      }
      tail = repeated("(" + comma + element + ")", std::max<std::int64_t>(*least - n_prefix, 0),
                      last < 0 ? -1 : last - n_prefix);
    }
    for (std::int64_t i = std::min(n_prefix, last < 0 ? n_prefix : last); i-- > 0;) {
      const Result<std::string> item = this->schema((*prefix)[static_cast<std::size_t>(i)]);
      MIXTRAL_RETURN_IF_ERROR(item);
      std::string from = (i == 0 ? "" : comma) + *item + ws_ + " " + tail;
      if (i >= *least) from = "(" + from + ")?";
      const Result<std::string> rule = add_rule(from);
      MIXTRAL_RETURN_IF_ERROR(rule);
      tail = *rule;
    }
    return open + tail + " \"]\"";
  }

  Result<std::string> object(const Json& schema) {
    const Json* properties = schema.contains("properties") ? &schema["properties"] : nullptr;
    if (properties != nullptr && !properties->is_object()) {
      return bad("\"properties\" must be an object");
    }
    const bool has_properties = properties != nullptr && !properties->empty();
    const bool says_more = schema.contains("additionalProperties");
    const Json& more = says_more ? schema["additionalProperties"] : has_properties ? false_ : true_;
    if (schema.contains("required") && !schema["required"].is_array()) {
      return bad("\"required\" must be a list");
    }
    // Required members that have no schema of their own have that of additional ones.
    struct Member {
      std::string name;
      const Json* schema;
    };
    std::vector<Member> members;
    std::set<std::string> names;
    if (has_properties) {
      for (const auto& member : properties->items()) {
        members.push_back({member.key(), &member.value()});
        names.insert(member.key());
      }
    }
    if (schema.contains("required")) {
      for (const Json& key : schema["required"]) {
        if (!key.is_string()) return bad("\"required\" must be a list of names");
        const auto& name = key.get_ref<const std::string&>();
        if (!names.insert(name).second) continue;
        if (more == false && says_more) return bad("\"" + name + "\" is required but not allowed");
        members.push_back({name, more == false ? &true_ : &more});
        if (members.size() > kMostMembers)
          return unsupported("an object of more than 4096 members");
      }
    }
    const std::set<std::string> required = required_of(schema);
    const Result<std::int64_t> least = count(schema, "minProperties", 0);
    MIXTRAL_RETURN_IF_ERROR(least);
    if (*least > static_cast<std::int64_t>(required.size())) {
      return unsupported("\"minProperties\" beyond what is required");
    }

    // What may follow a member, from the last one on; and what may come first, the last one first.
    const std::string open = "\"{\"" + ws_ + " ", comma = "\",\"" + ws_ + " ";
    std::string after;
    std::vector<std::string> first;
    if (more != false) {
      names.clear();
      for (const Member& member : members) names.insert(member.name);
      const Result<std::string> key = other_key(names);
      MIXTRAL_RETURN_IF_ERROR(key);
      const Result<std::string> one = this->schema(more);
      MIXTRAL_RETURN_IF_ERROR(one);
      const Result<std::string> pair = add_rule(*key + ws_ + " \":\"" + ws_ + " " + *one + ws_);
      MIXTRAL_RETURN_IF_ERROR(pair);
      const Result<std::string> others = add_rule("(" + comma + *pair + ")*");
      MIXTRAL_RETURN_IF_ERROR(others);
      after = *others;
      first.push_back(*pair + " " + after);
    }
    bool can_be_empty = true;
    for (std::size_t i = members.size(); i-- > 0;) {
      const Result<std::string> one = this->schema(*members[i].schema);
      MIXTRAL_RETURN_IF_ERROR(one);
      std::string pair = literal_of(members[i].name);
      if (blanks_) {
        pair += " ws \":\" ws";
      } else {
        pair.insert(pair.size() - 1, ":");
      }
      pair += " " + *one + ws_;
      const bool must = required.count(members[i].name) != 0;
      if (must) first.clear();
      first.push_back(pair + " " + after);
      can_be_empty = can_be_empty && !must;
      const std::string follows = comma + pair;
      const Result<std::string> rule =
          add_rule((must ? follows : "(" + follows + ")?") + " " + after);
      MIXTRAL_RETURN_IF_ERROR(rule);
      after = *rule;
    }
    if (first.empty()) return open + "\"}\"";
    std::reverse(first.begin(), first.end());
    return open + "(" + joined(first) + ")" + (can_be_empty ? "?" : "") + " \"}\"";
  }

  // A key without escapes that is none of these names.
  Result<std::string> other_key(const std::set<std::string>& names) {
    if (names.empty()) return std::string("\"\\\"\" plain* \"\\\"\"");
    // In the order of their characters, which is that of their bytes.
    std::vector<std::u32string> sorted;
    for (const std::string& text : names) {
      std::u32string name;
      for (std::size_t at = 0; at < text.size();) {
        std::uint32_t c = 0;
        if (!next_code_point(text, at, c)) return bad("a name that is not UTF-8");
        name += static_cast<char32_t>(c);
      }
      sorted.push_back(name);
    }
    // Names from begin to end have `depth` characters in common; `rule` says what may follow those.
    struct Common {
      std::size_t begin, end, depth, rule;
    };
    std::vector<Common> open = {{0, sorted.size(), 0, n_rules_++}};
    const std::string root = "r" + std::to_string(open[0].rule);
    for (std::size_t next = 0; next < open.size(); ++next) {
      const Common common = open[next];
      const bool is_name = sorted[common.begin].size() == common.depth;
      std::string choice, others;
      for (std::size_t i = common.begin + (is_name ? 1 : 0); i < common.end;) {
        const char32_t c = sorted[i][common.depth];
        const std::size_t begin = i;
        while (i < common.end && sorted[i][common.depth] == c) ++i;
        if (c < 0x20 || c == '"' || c == '\\') continue;  // has escapes
        char escape[16];
        std::snprintf(escape, sizeof escape, "\\U%08X", static_cast<unsigned>(c));
        open.push_back({begin, i, common.depth + 1, n_rules_++});
        choice += std::string("\"") + escape + "\" r" + std::to_string(open.back().rule) + " | ";
        others += escape;
      }
      choice += "[^\\\"\\\\\\x00-\\x1F" + others + "] plain*";
      MIXTRAL_RETURN_IF_ERROR(
          define("r" + std::to_string(common.rule), "(" + choice + ")" + (is_name ? "" : "?")));
    }
    return "\"\\\"\" " + root + " \"\\\"\"";
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

  const std::string ws_;  // what stands between the parts of an object or array
  const bool blanks_;
  const Json true_ = true, false_ = false;
  Json root_;
  std::string out_;  // rules
  std::size_t n_rules_ = 0;
  std::map<const Json*, std::string> rules_;                // of parts of the schema
  std::vector<std::pair<std::string, const Json*>> later_;  // those, in the order of their names
  std::map<std::string, std::string> references_;           // the rules of what $ref names
  std::map<const Json*, Facts> facts_;
};

}  // namespace detail

Result<std::string> json_schema_to_gbnf(std::string_view schema, const JsonSchemaOptions& options) {
  return detail::guard_memory("translating a JSON schema",
                              [&] { return detail::JsonSchemaCompiler(options).compile(schema); });
}

Result<Grammar> json_schema_grammar(std::string_view schema, const JsonSchemaOptions& options,
                                    std::pmr::memory_resource* resource) {
  const Result<std::string> gbnf = json_schema_to_gbnf(schema, options);
  MIXTRAL_RETURN_IF_ERROR(gbnf);
  auto grammar = Grammar::from_gbnf(*gbnf, resource);
  if (grammar) return grammar;
  // The rules are not the user's: what is wrong with them is told in words of the schema.
  switch (grammar.error().code()) {
    case ErrorCode::bad_format:
      return Error(
          ErrorCode::bad_format,
          "JSON schema: a \"$ref\" leads back to itself, so that no text is ever complete, or "
          "with nothing in between");
    case ErrorCode::unsupported:
      return Error(ErrorCode::unsupported,
                   "JSON schema: it becomes too large a grammar; use fewer or shorter values, and "
                   "smaller bounds on numbers of items and characters");
    default: return grammar;
  }
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_JSON_SCHEMA_HPP_
