// JSON schemas: what is generated parses and is valid; what is not understood is refused by name.
#include "grammars.hpp"
#include "small_stack.hpp"

#include <mixtral/json_schema.hpp>

using namespace support;
using Json = nlohmann::ordered_json;

namespace {

// Draws texts in which ends of all kinds are likely.
std::string draw_json(GrammarMatcher& matcher, const mixtral::Model& model, std::uint32_t seed) {
  const mixtral::Tokenizer& tokenizer = model.tokenizer();
  return draw(matcher, model, seed, 5000, [&](std::mt19937& random, std::vector<float>& logits) {
    set_at_random(random, logits);
    for (const char* piece : {"\"", "}", "]", ".", "e", "1", "\\", "u", "<0x22>", "<0x7D>"}) {
      const Token token = tokenizer.find(piece);
      if (token != mixtral::kNoToken && random() % 2 == 0) {
        logits[static_cast<std::size_t>(token)] = 13.0f;
      }
    }
    logits[static_cast<std::size_t>(tokenizer.eos())] = 30.0f;
  });
}

std::size_t length(const std::string& utf8) {
  std::size_t n = 0;
  for (const char c : utf8) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return n;
}

constexpr mixtral::JsonSchemaOptions kBlanks{true};

std::string without_blanks(const std::string& json) {
  std::string out;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (!in_string && (json[i] == ' ' || json[i] == '\n')) continue;
    if (json[i] == '"') in_string = !in_string;
    out += json[i];
    if (in_string && json[i] == '\\') out += json[++i];
  }
  return out;
}

// text(0) to text(n - 1), with commas between them.
std::string numbered(std::size_t n, const std::function<std::string(std::size_t)>& text) {
  std::string out;
  for (std::size_t i = 0; i < n; ++i) out += (i == 0 ? "" : ",") + text(i);
  return out;
}

}  // namespace

TEST_CASE("json_schema: all that is drawn parses and is valid") {
  struct Case {
    const char* schema;
    std::function<bool(const Json&)> valid;
    std::vector<const char*> takes, refuses;
  };
  const auto keys_in = [](const Json& json, const std::string& all) {
    for (const auto& member : json.items()) {
      if (all.find("," + member.key() + ",") == std::string::npos) return false;
    }
    return true;
  };
  const std::vector<Case> cases = {
      {"{}",
       [](const Json&) { return true; },
       {"1", "{\"a\": [1, {}]}", "[]", "\"\\u00e9\\ud83d\\ude00\"", "-0.5e+3", "null"},
       {"", "{", "01", "\"\\ud83d\"", "\"\\ude00\"", "'a'", "1.", "[1,]", "\"\n\"", "nul"}},
      {"true", [](const Json&) { return true; }, {"[]"}, {}},
      {R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
          "tall": {"type": "boolean"}}, "required": ["name"]})",
       [&](const Json& j) {
         return j.is_object() && j.contains("name") && j["name"].is_string() &&
                keys_in(j, ",name,age,tall,") &&
                (!j.contains("age") || j["age"].is_number_integer()) &&
                (!j.contains("tall") || j["tall"].is_boolean());
       },
       {R"({"name":"x"})", R"({ "name" : "" , "tall":false })",
        R"({"name":"","age":-3,"tall":true})"},
       {R"({})", R"({"age":1})", R"({"name":1})", R"({"name":"x",})", R"({"name":"x","b":1})",
        R"({"age":1,"name":"x"})"}},
      {R"({"properties": {"a": {"type": "null"}, "b": {"const": 2}, "c": {}}, "required": ["b", "d"],
          "additionalProperties": {"type": "integer"}})",
       [](const Json& j) {
         for (const auto& m : j.items()) {
           if (m.key() == "a" && !m.value().is_null()) return false;
           if (m.key() != "a" && m.key() != "b" && m.key() != "c" && !m.value().is_number_integer())
             return false;
         }
         return j["b"] == 2 && j["d"].is_number_integer();
       },
       {R"({"b":2,"d":5})", R"({"a":null,"b":2,"d":5,"e":1,"aa":2,"":3})"},
       {R"({"b":2})", R"({"b":2,"d":5,"a":1})", R"({"b":2,"d":5,"e":"x"})", R"({"b":3,"d":5})",
        R"({"b":2,"d":5,"b":1})"}},
      {R"({"additionalProperties": {"enum": ["x", 1, null, {"k": [1.5]}]}})",
       [](const Json& j) {
         for (const auto& m : j.items()) {
           const Json& v = m.value();
           if (v != "x" && v != 1 && !v.is_null() && v != Json{{"k", {1.5}}}) return false;
         }
         return j.is_object();
       },
       {"{}", R"({"a":"x","b":{"k":[1.5]}})"},
       {R"({"a":2})", "[]"}},
      {R"({"properties": {"ab": {}, "a": {}, "\u00e9": {}}, "additionalProperties": true})",
       [](const Json& j) { return j.is_object(); },
       {R"({"b":1})", R"({"abc":1,"ac":2,"":3})"},
       {R"({"x":1,"ab":1})", R"({"x":1,"a":1})", "{\"x\":1,\"\xC3\xA9\":2}"}},
      {R"({"type": "array", "items": {"type": ["integer", "null"]}, "minItems": 2, "maxItems": 4})",
       [](const Json& j) {
         for (const Json& v : j) {
           if (!v.is_number_integer() && !v.is_null()) return false;
         }
         return j.is_array() && j.size() >= 2 && j.size() <= 4;
       },
       {"[1,null]", "[ 1 , 2, 3,4]"},
       {"[]", "[1]", "[1,2,3,4,5]", "[1,\"a\"]"}},
      {R"({"prefixItems": [{"type": "string"}, {"type": "number"}], "items": {"type": "boolean"},
          "minItems": 1, "maxItems": 3})",
       [](const Json& j) {
         return j.is_array() && !j.empty() && j.size() <= 3 && j[0].is_string() &&
                (j.size() < 2 || j[1].is_number()) && (j.size() < 3 || j[2].is_boolean());
       },
       {"[\"a\"]", "[\"a\",1.5,true]"},
       {"[]", "[1]", "[\"a\",true]", "[\"a\",1,true,true]"}},
      {R"({"items": [{"const": "a"}, {"const": "b"}]})",
       [](const Json& j) { return j.size() <= 2; },
       {"[]", "[\"a\"]", "[\"a\",\"b\"]"},
       {"[\"b\"]", "[\"a\",\"b\",1]"}},
      {R"({"type": "array", "maxItems": 0})",
       [](const Json& j) { return j.empty(); },
       {"[ ]"},
       {"[1]"}},
      {R"({"type": "string", "minLength": 2, "maxLength": 5})",
       [](const Json& j) {
         const auto n = length(j.get<std::string>());
         return n >= 2 && n <= 5;
       },
       {"\"ab\"", "\"\\n\\u0041\"", "\"\xC3\xA9\\ud83d\\ude00\""},
       {"\"a\"", "\"abcdef\""}},
      {R"({"pattern": "^[a-z\"\\\\]{2,4}$"})",
       [](const Json& j) {
         return std::regex_match(j.get<std::string>(), std::regex("[a-z\"\\\\]{2,4}"));
       },
       {R"("ab")", R"("\"\\")"},
       {R"("a")", R"("AB")", R"(""")"}},
      {R"({"type": "string", "pattern": "b+|^x"})",
       [](const Json& j) { return std::regex_search(j.get<std::string>(), std::regex("b+|^x")); },
       {R"("abc")", R"("x\n")", R"("b")"},
       {R"("ax")", R"("")"}},
      {R"({"format": "date-time"})",
       [](const Json& j) {
         return std::regex_match(
             j.get<std::string>(),
             std::regex("\\d{4}-[01]\\d-[0-3]\\dT[0-2]\\d:[0-5]\\d:[0-5]\\d.*"));
       },
       {R"("2026-11-25T21:00:00Z")", R"("2026-02-28T00:00:00.5+01:00")"},
       {R"("2026-13-25T21:00:00Z")", R"("2026-02-30T21:00:00Z")", R"("2026-11-25T24:00:00Z")"}},
      {R"({"type": "string", "format": "uuid"})",
       [](const Json& j) { return j.get<std::string>().size() == 36; },
       {R"("123e4567-e89b-12d3-a456-426614174000")"},
       {R"("123e4567e89b-12d3-a456-426614174000")"}},
      {R"({"format": "ipv4"})",
       [](const Json& j) { return j.is_string(); },
       {R"("192.168.0.255")"},
       {R"("256.1.1.1")", R"("1.1.1")"}},
      {R"({"format": "email"})",
       [](const Json& j) { return j.is_string(); },
       {R"("a.b@example.org")"},
       {R"("a@b")", R"("a b@c.d")"}},
      {R"({"format": "hostname"})",
       [](const Json& j) { return j.is_string(); },
       {R"("example.org")", R"("x")"},
       {R"("-a")", R"("a..b")"}},
      {R"({"format": "date"})",
       [](const Json& j) { return j.is_string(); },
       {R"("2024-02-28")"},
       {R"("2024-00-28")", R"("2024-04-31")"}},
      {R"({"format": "time"})",
       [](const Json& j) { return j.is_string(); },
       {R"("09:05:59Z")"},
       {R"("9:05:59Z")", R"("09:05:59")"}},
      {R"({"type": "integer", "minimum": -17, "exclusiveMaximum": 1234})",
       [](const Json& j) { return j.is_number_integer() && j >= -17 && j < 1234; },
       {"-17", "-1", "0", "9", "999", "1233"},
       {"-18", "-20", "1234", "2000", "-0", "1.0", "00"}},
      {R"({"type": "integer", "minimum": 1})",
       [](const Json& j) { return j.is_number_integer() && j >= 1; },
       {"1", "10", "123456"},
       {"0", "-1"}},
      {R"({"maximum": 1.124})", [](const Json& j) { return j <= 1.124; }, {"1.124", "-5"}, {"1.2"}},
      {R"({"minimum": -0.123456})",
       [](const Json& j) { return j >= -0.123456; },
       {"-0.123456", "1000000000000.000000", "999999999999.999999"},
       {"-0.123457", "-1", "1000000000000.000001"}},
      {R"({"minimum": -99999999999.5})",
       [](const Json& j) { return j >= -99999999999.5; },
       {"-99999999999.5", "-99999999999"},
       {"-99999999999.6"}},
      {R"({"type": "integer", "maximum": -5.5})",
       [](const Json& j) { return j.is_number_integer() && j <= -6; },
       {"-6", "-100"},
       {"-5", "5"}},
      {R"({"minimum": 0, "maximum": 1})",
       [](const Json& j) { return j.is_number() && j >= 0.0 && j <= 1.0; },
       {"0", "1", "0.5", "1.000", "0.125"},
       {"1.001", "-0.1", "2", "1.1"}},
      {R"({"type": "number", "exclusiveMinimum": 0, "maximum": 99.5})",
       [](const Json& j) { return j.is_number() && j > 0.0 && j <= 99.5; },
       {"0.001", "99.5", "1", "99", "42.25"},
       {"0", "0.000", "99.51", "100", "-1"}},
      {R"({"type": "number", "minimum": -0.25, "exclusiveMaximum": 0.5})",
       [](const Json& j) { return j.is_number() && j >= -0.25 && j < 0.5; },
       {"-0.25", "-0.1", "0", "0.49", "0.49999"},
       {"0.5", "-0.26", "-1", "1"}},
      {R"({"enum": ["red", "green", 3, null, true, [1, 2], {"a": "b\"c"}]})",
       [](const Json& j) {
         return j == "red" || j == "green" || j == 3 || j.is_null() || j == true ||
                j == Json{1, 2} || j == Json{{"a", "b\"c"}};
       },
       {"\"red\"", "3", "[1,2]", R"({"a":"b\"c"})"},
       {"\"blue\"", "red"}},
      {R"({"type": "string", "enum": ["a", 1, "b"]})",
       [](const Json& j) { return j == "a" || j == "b"; },
       {"\"a\""},
       {"1"}},
      {R"({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "array", "items": {"const": 0}}]})",
       [](const Json& j) { return j.is_array() || length(j.get<std::string>()) <= 3; },
       {"\"abc\"", "[0,0]"},
       {"1", "\"abcd\""}},
      {R"({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}, "x": {"type": "integer"}},
          "required": ["k", "x"]}, {"type": "object", "properties": {"k": {"const": "b"},
          "y": {"type": "string"}}, "required": ["k", "y"]}]})",
       [](const Json& j) { return j["k"] == "a" ? j["x"].is_number() : j["y"].is_string(); },
       {R"({"k":"a","x":1})", R"({"k":"b","y":""})"},
       {R"({"k":"a","y":""})"}},
      {R"({"oneOf": [{"type": "integer"}, {"enum": ["none"]}, {"type": "null"}]})",
       [](const Json& j) { return j.is_number_integer() || j == "none" || j.is_null(); },
       {"1", "\"none\""},
       {"\"some\""}},
      {R"({"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"type": "boolean"}}})",
       [](const Json& j) { return j.is_boolean(); },
       {"true"},
       {"1"}},
      {R"({"$ref": "#/definitions/tree", "definitions": {"tree": {"type": "object", "properties": {
          "v": {"type": "integer", "minimum": 0, "maximum": 9}, "kids": {"type": "array",
          "items": {"$ref": "#/definitions/tree"}, "maxItems": 2}}, "required": ["v"]}}})",
       [](const Json& j) {
         const std::function<bool(const Json&)> tree = [&](const Json& t) {
           if (!t.is_object() || !t["v"].is_number_integer() || t["v"] > 9) return false;
           if (!t.contains("kids")) return true;
           for (const Json& kid : t["kids"]) {
             if (!tree(kid)) return false;
           }
           return t["kids"].size() <= 2;
         };
         return tree(j);
       },
       {R"({"v":1,"kids":[{"v":2},{"v":3,"kids":[]}]})"},
       {R"({"v":1,"kids":[{}]})"}},
      {R"({"type": "array", "items": {"$ref": "#"}})",
       [](const Json& j) { return j.is_array(); },
       {"[[],[[]]]"},
       {"[1]"}},
      {R"({"title": "t", "description": "d", "default": 1, "examples": [], "$schema": "s",
          "type": "object", "properties": {}, "additionalProperties": false})",
       [](const Json& j) { return j.is_object() && j.empty(); },
       {"{}", "{ }"},
       {"{\"a\":1}"}},
  };
  const Feeder feeder;
  const mixtral::Model model = open(bundled_model());
  for (const Case& one : cases) {
    CAPTURE(one.schema);
    const Grammar grammar = value(mixtral::json_schema_grammar(one.schema));
    const Grammar with_blanks = value(mixtral::json_schema_grammar(one.schema, kBlanks));
    GrammarMatcher by_bytes = feeder.matcher(grammar),
                   by_bytes_spaced = feeder.matcher(with_blanks);
    for (const char* text : one.takes) {
      CAPTURE(text);
      const std::string short_text = without_blanks(text);
      CHECK(feeder.match(by_bytes_spaced, text) == Match::whole);
      CHECK(feeder.match(by_bytes_spaced, short_text) == Match::whole);
      CHECK(feeder.match(by_bytes, short_text) == Match::whole);
      CHECK((feeder.match(by_bytes, text) == Match::whole) == (text == short_text));
      const Json json = Json::parse(text, nullptr, false);
      REQUIRE(!json.is_discarded());
      CHECK(one.valid(json));
    }
    for (const char* text : one.refuses) {
      CAPTURE(text);
      CHECK(feeder.match(by_bytes, text) != Match::whole);
      CHECK(feeder.match(by_bytes_spaced, text) != Match::whole);
    }
    GrammarMatcher compact = value(GrammarMatcher::create(grammar, model));
    GrammarMatcher spaced = value(GrammarMatcher::create(with_blanks, model));
    for (std::uint32_t seed = 0; seed < 90; ++seed) {
      const bool is_compact = seed % 3 != 0;
      const std::string text = draw_json(is_compact ? compact : spaced, model, seed);
      CAPTURE(text);
      CHECK((!is_compact || text == without_blanks(text)));
      const Json json = Json::parse(text, nullptr, false);
      REQUIRE(!json.is_discarded());
      CHECK(one.valid(json));
    }
  }
}

TEST_CASE("json_schema: what is not understood is refused by name") {
  const auto refused = [](const std::string& schema, const char* part,
                          ErrorCode code = ErrorCode::unsupported) {
    CAPTURE(schema);
    check_refused(mixtral::json_schema_grammar(schema), part, code);
  };
  refused(R"({"type": "integer", "multipleOf": 3})", "multipleOf");
  refused(R"({"not": {}})", "not");
  refused(R"({"if": {}, "then": {}})", "if");
  refused(R"({"type": "object", "patternProperties": {}})", "patternProperties");
  refused(R"({"type": "object", "propertyNames": {}})", "propertyNames");
  refused(R"({"type": "object", "maxProperties": 3})", "maxProperties");
  refused(R"({"type": "object", "minProperties": 3})", "minProperties");
  refused(R"({"type": "object", "dependentRequired": {}})", "dependentRequired");
  refused(R"({"type": "array", "uniqueItems": true})", "uniqueItems");
  refused(R"({"type": "array", "contains": {}})", "contains");
  refused(R"({"properties": {"a": {"nonsense": 1}}})", "nonsense");
  refused(R"({"format": "iri"})", "iri");
  refused(R"({"format": "date", "pattern": "a"})", "pattern");
  refused(R"({"pattern": "a", "maxLength": 3})", "length");
  refused(R"_({"pattern": "a(?=b)"})_", "lookaround");
  refused(R"_({"pattern": "("})_", "no end", ErrorCode::bad_format);
  refused(R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "oneOf");
  refused(R"({"oneOf": [{"enum": [1, 2]}, {"const": 2}]})", "oneOf");
  refused(R"({"allOf": [{}, {}]})", "allOf");
  refused(R"({"anyOf": [{}], "type": "object"})", "\"type\"");
  refused(R"({"$ref": "http://example.org/x"})", "http://example.org/x");
  refused(R"({"$ref": "#/$defs/x", "minimum": 1})", "minimum");
  refused(R"({"enum": [1], "minimum": 1})", "minimum");
  refused(R"({"minimum": 1e15})", "minimum");
  refused(R"({"minimum": 1e-9})", "minimum");
  refused(R"({"maximum": 0.12345678})", "maximum");
  refused(R"({"maxLength": 100000000})", "maxLength");

  refused("", "no JSON", ErrorCode::bad_format);
  refused("{", "no JSON", ErrorCode::bad_format);
  refused("\"a\"", "object", ErrorCode::bad_format);
  refused("false", "false", ErrorCode::bad_format);
  refused(R"({"type": "strange"})", "strange", ErrorCode::bad_format);
  refused(R"({"type": 5})", "type", ErrorCode::bad_format);
  refused(R"({"type": []})", "type", ErrorCode::bad_format);
  refused(R"({"$ref": "#/$defs/x"})", "nowhere", ErrorCode::bad_format);
  refused(R"({"$ref": 1})", "$ref", ErrorCode::bad_format);
  refused(R"({"$ref": "#"})", "leads back to itself", ErrorCode::bad_format);
  refused(R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})", "leads back to itself",
          ErrorCode::bad_format);
  refused(R"({"enum": []})", "enum", ErrorCode::bad_format);
  refused(R"({"enum": 1})", "enum", ErrorCode::bad_format);
  refused(R"({"type": "null", "const": 1})", "const", ErrorCode::bad_format);
  refused(R"({"minLength": 3, "maxLength": 2})", "minLength", ErrorCode::bad_format);
  refused(R"({"minLength": -1})", "minLength", ErrorCode::bad_format);
  refused(R"({"minItems": 2, "prefixItems": [{}]})", "minItems", ErrorCode::bad_format);
  refused(R"({"minimum": 3, "maximum": 2})", "between", ErrorCode::bad_format);
  refused(R"({"minimum": "x"})", "minimum", ErrorCode::bad_format);
  refused(R"({"required": ["a"], "additionalProperties": false})", "not allowed",
          ErrorCode::bad_format);
  refused(R"({"required": [1]})", "required", ErrorCode::bad_format);
  refused(R"({"properties": []})", "properties", ErrorCode::bad_format);
  refused(R"({"anyOf": []})", "anyOf", ErrorCode::bad_format);
  refused(R"({"pattern": 1})", "pattern", ErrorCode::bad_format);
  refused(std::string(100000, '['), "deep");
  std::string deep = "true";
  for (int i = 0; i < 99; ++i) deep = R"({"items":)" + deep + "}";
  CHECK(mixtral::json_schema_grammar(deep));
}

TEST_CASE("json_schema: blanks are an option, and bounded") {
  const char* schema = R"({"properties": {"a": {"items": {"type": "integer"}}, "b": {}}})";
  const Feeder feeder;
  const Grammar compact = value(mixtral::json_schema_grammar(schema));
  const Grammar with = value(mixtral::json_schema_grammar(schema, kBlanks));
  const std::string line = "\n" + std::string(20, ' ');
  const auto matches = [&](const Grammar& grammar, const std::string& text) {
    return feeder.match(grammar, text) == Match::whole;
  };
  CHECK(matches(compact, R"({"a":[1,2],"b":{"c":[[],{}]}})"));
  for (const std::string& blank : std::vector<std::string>{" ", "\n", "\n ", line}) {
    CAPTURE(blank);
    // Everywhere, or at one place alone.
    std::string all;
    for (const char* part : {"{",     "\"a\"", ":", "[", "1", ",", "2", "]", ",", "\"b\"", ":", "{",
                             "\"c\"", ":",     "[", "[", "]", ",", "{", "}", "]", "}",     "}"}) {
      if (!all.empty()) all += blank;
      all += part;
    }
    CHECK(matches(with, all));
    CHECK(!matches(compact, all));
    for (const char* text :
         {"{#\"a\":[]}", "{\"a\"#:[]}", "{\"a\":#[]}", "{\"a\":[]#}", "{\"a\":[#]}", "{\"a\":[1#]}",
          "{\"a\":[1#,2]}", "{\"a\":[1,#2]}", "{#}", "{\"b\":{\"x\"#:1}}", "{\"b\":[1,#2]}",
          "{\"a\":[]#,\"b\":1}"}) {
      std::string one = text;
      one.replace(one.find('#'), 1, blank);
      CAPTURE(one);
      CHECK(matches(with, one));
      CHECK(!matches(compact, one));
      std::string longer = text;
      longer.replace(longer.find('#'), 1, line + " ");
      CHECK(!matches(with, longer));
    }
  }
  for (const char* text : {" {}", "{} ", "{  }", "{\t}", "{\n\n}", "{ \n}"}) {
    CAPTURE(text);
    CHECK(!matches(with, text));
  }
  // An integer takes no more tokens than its digits.
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 200);
  REQUIRE(s.append("Once upon a time"));
  mixtral::GenerateOptions options;
  options.grammar = value(mixtral::json_schema_grammar(
      R"({"properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]})"));
  std::string text;
  std::size_t n_tokens = 0;
  auto generation = s.generate(options);
  for (const std::string_view piece : generation) {
    text += piece;
    ++n_tokens;
  }
  CAPTURE(text);
  CHECK(Json::parse(text)["n"].is_number_integer());
  CHECK(text.find_first_of(" \n") == std::string::npos);
  CHECK(n_tokens <= text.size());
  CHECK(n_tokens <= 8);
}

TEST_CASE("json_schema: schemas of any shape on a small stack, up to limits that are told") {
  const auto compiled = [](const std::string& schema) {
    mixtral::Result<Grammar> result = Grammar();
    on_small_stack([&] { result = mixtral::json_schema_grammar(schema); });
    return result;
  };
  const auto nested = [](int n, const char* before, const char* middle, const char* after) {
    std::string text = middle;
    for (int i = 0; i < n; ++i) text = before + text + after;
    return text;
  };
  CHECK(compiled(nested(100, R"({"items":)", "true", "}")));
  CHECK(compiled(nested(50, R"({"anyOf":[)", "true", "]}")));
  CHECK(compiled(nested(50, R"({"properties":{"a":)", "true", R"(},"required":["a"]})")));
  CHECK(compiled(R"({"const":)" + nested(99, "[", "", "]") + "}"));
  CHECK(compiled(R"({"oneOf":[{"const":)" + nested(97, "[", "1", "]") + R"(},{"const":)" +
                 nested(97, "[", "2", "]") + "}]}"));
  for (const char* open : {"[", "{\"a\":", "{\"items\":", "[[]],\"[", "{\"anyOf\":[{\"a\":"}) {
    std::string text;
    for (int i = 0; i < 50000; ++i) text += open;
    CHECK(!compiled(text));
  }
  check_refused(compiled(nested(101, R"({"items":)", "true", "}")), "nested more than 100 deep",
                ErrorCode::unsupported);
  check_refused(compiled(R"({"const": {"a]": ")" + std::string(200, ']') + R"(", "b":)" +
                         nested(99, "[", "", "]") + "}}"),
                "nested more than 100 deep", ErrorCode::unsupported);
  // References to references, and names with common beginnings, of any length.
  const auto chain = [](std::size_t n) {
    return R"({"$ref": "#/$defs/d0", "$defs": {)" +
           numbered(n,
                    [&](std::size_t i) {
                      const std::string next = "\"#/$defs/d" + std::to_string(i + 1) + "\"";
                      return "\"d" + std::to_string(i) + "\": " +
                             (i + 1 == n ? "{\"type\": \"null\"}" : "{\"$ref\": " + next + "}");
                    }) +
           "}}";
  };
  const Feeder feeder;
  CHECK(feeder.match(value(compiled(chain(4096))), "null") == Match::whole);
  check_refused(compiled(chain(4097)), "more than 4096 members", ErrorCode::unsupported);
  // Many large objects, which the parser would spend its time on.
  const auto objects = [](std::size_t n) {
    const std::string members =
        "{" + numbered(4096, [](std::size_t i) { return "\"" + std::to_string(i) + "\":1"; }) + "}";
    return "{\"enum\": [" + numbered(n, [&](std::size_t) { return members; }) + "]}";
  };
  CHECK(compiled(objects(3)));
  check_refused(compiled(objects(5)), "squares", ErrorCode::unsupported);
  // What is wrong with references is told in words of the schema.
  check_refused(compiled(R"({"$ref": "#"})"), "\"$ref\" leads back to itself",
                ErrorCode::bad_format);
  check_refused(compiled(R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})"),
                "\"$ref\" leads back to itself", ErrorCode::bad_format);
  const std::string name(5000, 'n');
  const Grammar long_name = value(compiled(
      R"({"properties": {")" + name + R"(": {"type": "null"}}, "additionalProperties": true})"));
  CHECK(feeder.match(long_name, "{\"" + name + "\":null,\"" + name + "n\":1}") == Match::whole);
  CHECK(feeder.match(long_name, "{\"" + name + "\":1}") == Match::dead);

  // What is large.
  const auto refused = [](const mixtral::Result<Grammar>& made, const char* part) {
    check_refused(made, part, ErrorCode::unsupported);
  };
  const auto object = [](std::size_t n) {
    const auto key = [](std::size_t i) { return "\"key " + std::to_string(i) + "\""; };
    return R"({"properties": {)" +
           numbered(n, [&](std::size_t i) { return key(i) + R"(: {"type": "integer"})"; }) +
           "}, \"required\": [" + numbered(n, key) + "]}";
  };
  CHECK(feeder.match(value(compiled(object(4096))), "{\"key 0\":1,\"key 1\":2,") == Match::begins);
  refused(compiled(object(4097)), "members");
  refused(compiled("{\"required\": [" +
                   numbered(4097, [](std::size_t i) { return "\"" + std::to_string(i) + "\""; }) +
                   "]}"),
          "members");
  const auto one_of = [](std::size_t n) {
    return R"({"oneOf": [)" +
           numbered(n,
                    [](std::size_t i) {
                      return R"({"properties": {"k": {"const": )" + std::to_string(i) +
                             R"(}}, "required": ["k"]})";
                    }) +
           "]}";
  };
  CHECK(feeder.match(value(compiled(one_of(256))), "{\"k\":255}") == Match::whole);
  refused(compiled(one_of(257)), "256 parts");
  std::string comment = R"({"$comment": ")";
  comment.resize((std::size_t{1} << 22) - 2, '.');
  CHECK(compiled(comment + "\"}"));
  refused(compiled(comment + ".\"}"), "4 MiB");
}

TEST_CASE("json_schema: long names leave room for what is wrong with them") {
  const std::string name(3000, 'n');
  for (const std::string& schema :
       {"{\"" + name + "\": 1}", "{\"format\": \"" + name + "\", \"type\": \"string\"}"}) {
    const auto refused = mixtral::json_schema_grammar(schema);
    REQUIRE(!refused);
    const std::string message = refused.error().message();
    CAPTURE(message);
    CHECK(message.size() < mixtral::Error::kMaxLength);
    CHECK(message.find("is not supported") != std::string::npos);
    CHECK(message.find("nnn...nnn") != std::string::npos);
  }
}

TEST_CASE(
    "json_schema: an enum of thousands of values, and an object of optional members, are read at "
    "once") {
  const mixtral::Model model = open(bundled_model());
  const std::size_t n = 20000;
  const auto entry = [](std::size_t i) {
    return i % 7 == 0 ? std::to_string(i) : "\"value " + std::to_string(i * 7919 % 20000) + "\"";
  };
  const std::string values = "{\"enum\": [" + numbered(n, entry) + "]}";
  const Feeder feeder;
  for (const std::string& schema :
       {values, "{\"anyOf\": [" + values + ", {\"type\": \"null\"}]}"}) {
    const Grammar grammar = value(mixtral::json_schema_grammar(schema));
    GrammarMatcher matcher = feeder.matcher(grammar);
    for (std::size_t i = 0; i < n; i += 37) {
      const std::string text = entry(i);
      CHECK(feeder.match(matcher, text) == Match::whole);
    }
    CHECK(feeder.match(matcher, "\"value 20000\"") == Match::dead);
    CHECK(feeder.match(matcher, "\"value\"") == Match::dead);
    mixtral::Session s = session(model, 100);
    REQUIRE(s.append("Once upon a time"));
    mixtral::GenerateOptions options;
    options.grammar = grammar;
    options.sampling.temperature = 2.0f;
    std::string text;
    auto generation = s.generate(options);
    for (const std::string_view piece : generation) text += piece;
    CAPTURE(text);
    CHECK(generation.stop_reason() != mixtral::StopReason::error);
    CHECK(feeder.match(matcher, text) == Match::whole);
  }
  // Every member may come first, or after any before it.
  const std::string object =
      "{\"properties\": {" +
      numbered(
          4000,
          [](std::size_t i) { return "\"k" + std::to_string(i) + "\": {\"type\": \"null\"}"; }) +
      "}}";
  const Grammar grammar = value(mixtral::json_schema_grammar(object));
  GrammarMatcher matcher = value(GrammarMatcher::create(grammar, model));
  CHECK(matcher.allowed());
  GrammarMatcher by_bytes = feeder.matcher(grammar);
  CHECK(feeder.match(by_bytes, R"({"k0":null,"k7":null,"k3999":null})") == Match::whole);
  CHECK(feeder.match(by_bytes, R"({"k3999":null})") == Match::whole);
  CHECK(feeder.match(by_bytes, R"({"k7":null,"k6":null})") == Match::dead);
}
