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

TEST_CASE("json_schema: a schema becomes 16000 rules at most") {
  // Each string with a length becomes a rule, and the whole is one.
  const auto strings = [](std::size_t n) {
    return mixtral::json_schema_to_gbnf(
        R"({"anyOf":[)" + numbered(n, [](std::size_t) { return R"({"minLength":1})"; }) + "]}");
  };
  CHECK(strings(15999));
  const auto refused = strings(16000);
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::unsupported);
  CHECK(std::string(refused.error().message()).find("more than 16000 rules") != std::string::npos);
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

namespace {

// Which of these texts a schema takes whole.
class Taker {
 public:
  Taker(const Feeder& feeder, const std::string& schema)
      : matcher_(feeder.matcher(value(mixtral::json_schema_grammar(schema)))) {}
  bool operator()(const std::string& text) { return Feeder::match(matcher_, text) == Match::whole; }

 private:
  GrammarMatcher matcher_;
};

std::string two_digits(int n) { return std::string(n < 10 ? "0" : "") + std::to_string(n); }

}  // namespace

TEST_CASE("json_schema: whole numbers between any bounds, and no others") {
  const Feeder feeder;
  const std::vector<int> bounds = {-101, -100, -99, -10, -9,  -1,  0,   1,   9,   10,
                                   11,   19,   20,  99,  100, 109, 110, 199, 1000};
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    for (std::size_t k = i; k < bounds.size(); k += 3) {
      const int low = bounds[i], high = bounds[k];
      CAPTURE(low);
      CAPTURE(high);
      Taker takes(feeder, R"({"type":"integer","minimum":)" + std::to_string(low) +
                              R"(,"maximum":)" + std::to_string(high) + "}");
      int n_wrong = 0;
      for (int n = -130; n < 1110; n += n < 220 || n > 980 ? 1 : 7) {
        if (takes(std::to_string(n)) != (n >= low && n <= high)) ++n_wrong;
      }
      CHECK(n_wrong == 0);
      CHECK(!takes("-0"));
      CHECK(!takes("00"));
      CHECK(!takes("01"));
      CHECK(!takes("1.0"));
    }
  }
}

TEST_CASE("json_schema: numbers with digits after the point between any bounds, and no others") {
  const Feeder feeder;
  struct Bounds {
    const char *low, *high;
    int low_thousandths, high_thousandths;
  };
  for (const Bounds& b : {Bounds{"0", "1", 0, 1000}, Bounds{"0.25", "1.5", 250, 1500},
                          Bounds{"-0.5", "0.125", -500, 125}, Bounds{"-1.999", "-0.001", -1999, -1},
                          Bounds{"0.1", "0.1", 100, 100}, Bounds{"-1.0", "-1", -1000, -1000},
                          Bounds{"0.999", "1.001", 999, 1001}}) {
    for (const bool is_open : {false, true}) {
      if (is_open && b.low_thousandths == b.high_thousandths) continue;
      CAPTURE(b.low);
      CAPTURE(b.high);
      CAPTURE(is_open);
      const std::string open = is_open ? "exclusiveM" : "m";
      Taker takes(feeder,
                  "{\"" + open + "inimum\":" + b.low + ",\"" + open + "aximum\":" + b.high + "}");
      int n_wrong = 0;
      for (int n = -2100; n <= 2100; ++n) {
        const int size = std::abs(n);
        const std::string digits = std::to_string(1000 + size % 1000).substr(1);
        const std::string text =
            std::string(n < 0 ? "-" : "") + std::to_string(size / 1000) + "." + digits;
        const bool expected = is_open ? n > b.low_thousandths && n < b.high_thousandths
                                      : n >= b.low_thousandths && n <= b.high_thousandths;
        if (takes(text) != expected) ++n_wrong;
        // As many digits as it takes are enough.
        if (size % 1000 == 0 && n != 0 && takes(text.substr(0, text.size() - 4)) != expected)
          ++n_wrong;
        if (size % 100 == 0 && n != 0 && takes(text.substr(0, text.size() - 2)) != expected)
          ++n_wrong;
      }
      CHECK(n_wrong == 0);
      CHECK(!takes("1."));
      CHECK(!takes("0."));
      CHECK(!takes(".5"));
    }
  }
}

TEST_CASE("json_schema: bounds of numbers at their own limits") {
  const Feeder feeder;
  const auto refused = [](const std::string& schema, const char* part,
                          ErrorCode code = ErrorCode::unsupported) {
    CAPTURE(schema);
    check_refused(mixtral::json_schema_grammar(schema), part, code);
  };
  Taker large(feeder, R"({"type":"integer","minimum":-1000000000000,"maximum":1000000000000})");
  CHECK(large("1000000000000"));
  CHECK(large("-1000000000000"));
  CHECK(!large("1000000000001"));
  CHECK(!large("-1000000000001"));
  Taker half(feeder, R"({"type":"integer","minimum":5})");  // up to 10^12 where nothing bounds it
  CHECK(half("1000000000000"));
  CHECK(!half("1000000000001"));
  CHECK(!half("4"));
  refused(R"({"minimum":1000000000001})", "beyond 10^12");
  refused(R"({"maximum":-1000000000001})", "beyond 10^12");
  Taker fine(feeder, R"({"minimum":0.123456,"maximum":0.123457})");
  CHECK(fine("0.123456"));
  CHECK(fine("0.123457"));
  CHECK(!fine("0.123455"));
  CHECK(!fine("0.123458"));
  CHECK(!fine("0.1234565"));
  refused(R"({"minimum":0.1234567})", "more than 6 digits");
  // There are three digits more than the bounds have, and six at most.
  Taker whole(feeder, R"({"minimum":0,"maximum":1})"), tenths(feeder, R"({"maximum":0.5})");
  CHECK(whole("0.999"));
  CHECK(!whole("0.9999"));
  CHECK(tenths("0.1234"));
  CHECK(!tenths("0.12345"));
  Taker open(feeder, R"({"type":"integer","exclusiveMinimum":1,"exclusiveMaximum":3})");
  CHECK(open("2"));
  CHECK(!open("1"));
  CHECK(!open("3"));
  // Fractions bound whole numbers, below zero, too.
  Taker fractions(feeder, R"({"type":"integer","minimum":-2.5,"maximum":2.5})");
  CHECK(fractions("-2"));
  CHECK(fractions("2"));
  CHECK(!fractions("-3"));
  CHECK(!fractions("3"));
  Taker open_fractions(feeder,
                       R"({"type":"integer","exclusiveMinimum":-2.5,"exclusiveMaximum":2.5})");
  CHECK(open_fractions("-2"));
  CHECK(open_fractions("2"));
  CHECK(!open_fractions("-3"));
  CHECK(!open_fractions("3"));
  refused(R"({"type":"integer","exclusiveMinimum":1,"exclusiveMaximum":2})", "no number is between",
          ErrorCode::bad_format);
  refused(R"({"type":"integer","minimum":0.1,"maximum":0.9})", "no number is between",
          ErrorCode::bad_format);
  CHECK(mixtral::json_schema_grammar(R"({"minimum":0.1,"maximum":0.9})"));
  // The tighter of several bounds on one side counts.
  Taker both(
      feeder,
      R"({"type":"integer","minimum":3,"exclusiveMinimum":3,"maximum":9,"exclusiveMaximum":8})");
  CHECK(!both("3"));
  CHECK(both("4"));
  CHECK(both("7"));
  CHECK(!both("8"));
}

TEST_CASE("json_schema: numbers and strings without bounds are JSON's, with an end") {
  const Feeder feeder;
  Taker number(feeder, R"({"type":"number"})"), integer(feeder, R"({"type":"integer"})");
  for (const char* text : {"0", "-0", "9", "10", "-12", "1234567890123456", "-1234567890123456"}) {
    CAPTURE(text);
    CHECK(integer(text));
    CHECK(number(text));
  }
  for (const char* text :
       {"1.5", "0.0", "-0.25", "1e5", "1E+05", "1e-99", "1.123456789012345", "1.5e10"}) {
    CAPTURE(text);
    CHECK(!integer(text));
    CHECK(number(text));
  }
  for (const char* text :
       {"", "-", "00", "01", "+1", "1.", ".1", "1e", "1e+", "1e100", "1.1234567890123456",
        "12345678901234567", "0x1", "1 ", "Infinity", "1.e1"}) {
    CAPTURE(text);
    CHECK(!integer(text));
    CHECK(!number(text));
  }
  Taker string(feeder, R"({"type":"string"})");
  for (const char* text :
       {"\"\"", "\"a\"", "\" \"", "\"\x7F\"", "\"\u00E9\U0001F600\"", R"("\"\\\/\b\f\n\r\t")",
        R"("\u0000\u001F\uFFFF")", R"("\uaBcD")", R"("\uD7FF\uE000")",
        R"("\uD800\uDC00\udbff\udfff")", R"("\uCFFF\uD000\uEFFF\uF000")"}) {
    CAPTURE(text);
    CHECK(string(text));
  }
  for (const char* text : {"\"",
                           "a",
                           "\"\n\"",
                           "\"\x1F\"",
                           "\"\t\"",
                           "\"\"\"",
                           R"("\a")",
                           R"("\x41")",
                           R"("\v")",
                           R"("\0")",
                           R"("\'")",
                           R"("\u123")",
                           R"("\u123g")",
                           R"("\U1234")",
                           R"("\uD800")",
                           R"("\uDC00")",
                           R"("\uDFFF")",
                           R"("\uDBFFx")",
                           R"("\uD800\u0041")",
                           R"("\uD800\uD800")",
                           R"("\uD800\uE000")",
                           R"("\uDC00\uD800")",
                           R"("\uD800\DC00")"}) {
    CAPTURE(text);
    CHECK(!string(text));
  }
  Taker boolean(feeder, R"({"type":"boolean"})"), null(feeder, R"({"type":"null"})");
  for (const char* text : {"true", "false", "null"}) {
    CHECK(boolean(text) == (std::string(text) != "null"));
    CHECK(null(text) == (std::string(text) == "null"));
  }
}

TEST_CASE("json_schema: in a string every character of a pattern is spelled in one way") {
  const Feeder feeder;
  for (unsigned c = 0; c < 0x80; ++c) {
    char pattern[40], escape[8];
    std::snprintf(pattern, sizeof pattern, R"({"pattern":"^\\u%04x$"})", c);
    std::snprintf(escape, sizeof escape, "\\u%04x", c);
    CAPTURE(c);
    Taker takes(feeder, pattern);
    const std::string letters = "btn?fr";  // from U+0008 on; U+000B has none
    const bool has_letter = c >= 8 && c <= 13 && c != 11;
    const bool is_special = c == '"' || c == '\\';
    CHECK(takes("\"" + std::string(1, static_cast<char>(c)) + "\"") == (c >= 0x20 && !is_special));
    CHECK(takes("\"" + std::string(escape) + "\"") == (c < 0x20 && !has_letter));
    if (has_letter) CHECK(takes(std::string("\"\\") + letters[c - 8] + "\""));
    if (is_special) CHECK(takes(std::string("\"\\") + static_cast<char>(c) + "\""));
    CHECK(!takes("\"\\/\""));
  }
  Taker vertical(feeder, R"({"pattern":"^\\v$"})");
  CHECK(vertical(R"("\u000b")"));
  // Sets that contain some of those, at their ends and within.
  Taker set(feeder, R"({"pattern":"^[\\u0007-#]$"})");
  for (const char* text :
       {R"("\u0007")", R"("\b")", R"("\t")", R"("\n")", R"("\u000b")", R"("\f")", R"("\r")",
        R"("\u000e")", R"("\u001f")", "\" \"", "\"!\"", R"("\"")", "\"#\""}) {
    CAPTURE(text);
    CHECK(set(text));
  }
  for (const char* text : {R"("\u0006")", "\"$\"", "\"\"\"", R"("\u0008")", R"("\u0020")"})
    CHECK(!set(text));
  Taker backslash(feeder, R"({"pattern":"^[\\[-\\]]$"})");
  for (const char* text : {"\"[\"", R"("\\")", "\"]\""}) CHECK(backslash(text));
  for (const char* text : {"\"Z\"", "\"\\\"", "\"^\""}) CHECK(!backslash(text));
}

TEST_CASE("json_schema: a pattern is searched for, unless it is anchored") {
  const Feeder feeder;
  struct Case {
    const char* pattern;
    std::vector<const char*> takes, refuses;
  };
  for (const Case& one : std::vector<Case>{{"a", {"a", "xa", "ax", "x\\na\\\"x"}, {"", "x"}},
                                           {"^a", {"a", "ax"}, {"xa", ""}},
                                           {"a$", {"a", "xa"}, {"ax", ""}},
                                           {"^a$", {"a"}, {"ax", "xa", "aa"}},
                                           {"^a|b$", {"a", "ax", "b", "xb", "axb"}, {"xa", "bx"}},
                                           {"^a$|b", {"a", "b", "xbx"}, {"aa", "ax"}},
                                           {"^(a|b)$", {"a", "b"}, {"ab", "xa"}},
                                           {"", {"", "anything"}, {"\n"}},
                                           {"^$", {""}, {"a"}},
                                           {"^", {"", "a"}, {}},
                                           {"$", {"", "a"}, {}}}) {
    CAPTURE(one.pattern);
    Taker takes(feeder, std::string(R"({"pattern":")") + one.pattern + "\"}");
    for (const char* text : one.takes) CHECK(takes("\"" + std::string(text) + "\""));
    for (const char* text : one.refuses) CHECK(!takes("\"" + std::string(text) + "\""));
  }
}

TEST_CASE("json_schema: const and enum together, and with types, leave what is in all of them") {
  const Feeder feeder;
  const auto left = [&](const std::string& schema) {
    Taker takes(feeder, schema);
    std::string all;
    for (const char* text : {"1", "2", "1.0", "1.5", "\"a\"", "null", "true", "[]", "{}"}) {
      if (takes(text)) all += std::string(text) + " ";
    }
    return all;
  };
  const std::string values = R"("enum":[1,2,1.5,"a",null,true,[],{}])";
  CHECK(left("{" + values + "}") == "1 2 1.5 \"a\" null true [] {} ");
  CHECK(left("{" + values + R"(,"const":2})") == "2 ");
  CHECK(left("{" + values + R"(,"const":null})") == "null ");
  CHECK(left("{" + values + R"(,"const":[]})") == "[] ");
  CHECK(left(R"({"const":2})") == "2 ");
  CHECK(left(R"({"const":"a","enum":["a","b"]})") == "\"a\" ");
  CHECK(left("{" + values + R"(,"type":"integer"})") == "1 2 ");
  CHECK(left("{" + values + R"(,"type":"number"})") == "1 2 1.5 ");
  CHECK(left(R"({"enum":[1.0,1.5],"type":"integer"})") == "1.0 ");
  CHECK(left("{" + values + R"(,"type":"string"})") == "\"a\" ");
  CHECK(left("{" + values + R"(,"type":["null","boolean"]})") == "null true ");
  CHECK(left("{" + values + R"(,"type":["array","object"]})") == "[] {} ");
  CHECK(left("{" + values + R"(,"type":["integer","string"],"const":1})") == "1 ");
  for (const char* schema :
       {R"({"enum":[1,2],"const":3})", R"({"enum":[1],"type":"string"})",
        R"({"const":1.5,"type":"integer"})", R"({"enum":[1,2],"const":1,"type":"null"})",
        R"({"enum":["1"],"const":1})"}) {
    check_refused(mixtral::json_schema_grammar(schema), "leaves no value");
  }
  // A quote that is escaped ends no string: what follows it is not nested.
  const std::string brackets(150, '[');
  Taker quoted(feeder, R"({"const":"\")" + brackets + "\"}");
  CHECK(quoted(R"("\")" + brackets + "\""));
  check_refused(
      mixtral::json_schema_grammar(R"({"const":["\"",)" + brackets + std::string(150, ']') + "]}"),
      "nested more than 100 deep", ErrorCode::unsupported);
}

TEST_CASE("json_schema: formats take the dates, times and names that there are, to each limit") {
  const Feeder feeder;
  const auto quoted = [](const std::string& text) { return "\"" + text + "\""; };
  Taker date(feeder, R"({"format":"date"})"), time(feeder, R"({"format":"time"})"),
      both(feeder, R"({"format":"date-time"})");
  const int days[] = {31, 28, 31, 30, 31, 30,
                      31, 31, 30, 31, 30, 31};  // the 29th of February may not be there
  for (int month = 0; month <= 13; ++month) {
    for (int day = 0; day <= 32; ++day) {
      const bool is_one = month >= 1 && month <= 12 && day >= 1 && day <= days[month - 1];
      const std::string text = "2025-" + two_digits(month) + "-" + two_digits(day);
      CAPTURE(text);
      CHECK(date(quoted(text)) == is_one);
      CHECK(both(quoted(text + "T00:00:00Z")) == is_one);
    }
  }
  for (const char* text :
       {"2025-1-01", "2025-01-1", "25-01-01", "12025-01-01", "2025/01/01", "2025-01-01 "}) {
    CHECK(!date(quoted(text)));
  }
  for (int n = 0; n <= 61; ++n) {
    CAPTURE(n);
    const std::string d = two_digits(n);
    CHECK(time(quoted(d + ":00:00Z")) == (n < 24));
    CHECK(time(quoted("00:" + d + ":00Z")) == (n < 60));
    CHECK(time(quoted("00:00:" + d + "Z")) == (n < 60));
    CHECK(time(quoted("00:00:00+" + d + ":00")) == (n < 24));
    CHECK(time(quoted("00:00:00-00:" + d)) == (n < 60));
  }
  CHECK(time(quoted("23:59:59.1Z")));
  CHECK(time(quoted("23:59:59.123456789-23:59")));
  for (const char* text : {"23:59:59.Z", "23:59:59.1234567890Z", "23:59:59", "23:59Z", "23:59:59z",
                           "23:59:59+1:00", "23:59:59+0100", "1:00:00Z"}) {
    CHECK(!time(quoted(text)));
  }
  CHECK(!both(quoted("2025-01-01 00:00:00Z")));
  CHECK(!both(quoted("2025-01-01")));

  Taker ipv4(feeder, R"({"format":"ipv4"})");
  for (int n = 0; n <= 300; ++n) {
    CAPTURE(n);
    CHECK(ipv4(quoted(std::to_string(n) + ".1.2.3")) == (n < 256));
    CHECK(ipv4(quoted("1.2.3." + std::to_string(n))) == (n < 256));
  }
  for (const char* text : {"1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.00", "1.2.3.", "1..2.3"})
    CHECK(!ipv4(quoted(text)));

  Taker uuid(feeder, R"({"format":"uuid"})");
  CHECK(uuid(quoted("01234567-89ab-cdef-ABCD-EF0123456789")));
  for (const char* text :
       {"0123456-89ab-cdef-ABCD-EF0123456789", "01234567-89ab-cdef-ABCD-EF012345678",
        "01234567-89ab-cdef-ABCD-EF01234567890", "01234567-89ab-cdef-ABCG-EF0123456789",
        "01234567-89ab-cdef-EF0123456789"}) {
    CHECK(!uuid(quoted(text)));
  }
  Taker hostname(feeder, R"({"format":"hostname"})");
  const std::string label(63, 'a');
  for (const std::string& text :
       std::vector<std::string>{"a", "a.b", "a.b.c", "a-b.c", "9z", label, label + "." + label}) {
    CHECK(hostname(quoted(text)));
  }
  for (const std::string& text : std::vector<std::string>{"", ".", "a.", ".a", "-a", "a-", "a-.b",
                                                          "a.b.c.d", "a_b", label + "a"}) {
    CHECK(!hostname(quoted(text)));
  }
  Taker email(feeder, R"({"format":"email"})");
  const std::string name(30, 'n');
  for (const std::string& text :
       std::vector<std::string>{"a@b.c", "A_9+-@b.c", "a.b@c.d", name + "." + name + "@a.b",
                                "a@b.c.d.e", "a@" + label + ".b"}) {
    CHECK(email(quoted(text)));
  }
  for (const std::string& text :
       std::vector<std::string>{"@b.c", "a@b", "a@.b", "a@b.", "a.@b.c", ".a@b.c", "a.b.c@d.e",
                                "a@b.c.d.e.f", name + "n@a.b", "a@" + label + "a.b", "a@-b.c"}) {
    CHECK(!email(quoted(text)));
  }
}

TEST_CASE("json_schema: arrays of as many elements as all keywords together allow") {
  const Feeder feeder;
  // Elements that tell by their value which schema they are of.
  const auto array = [](std::size_t n_first, std::size_t n_rest) {
    std::string text = "[";
    for (std::size_t i = 0; i < n_first + n_rest; ++i)
      text += (i == 0 ? "" : ",") + std::string(i < n_first ? "1" : "2");
    return text + "]";
  };
  for (std::size_t n_prefix = 0; n_prefix <= 2; ++n_prefix) {
    for (int least = -1; least <= 3; ++least) {
      for (int most = -1; most <= 4; ++most) {
        for (const char* rest : {"", "true", "false", R"({"const":2})"}) {
          const bool has_rest = rest[0] != '\0';
          const bool none_more = std::string(rest) == "false";
          std::string schema = R"({"type":"array")";
          if (n_prefix > 0) {
            schema += R"(,"prefixItems":[{"const":1})" +
                      std::string(n_prefix == 2 ? R"(,{"const":1}])" : "]");
          }
          if (has_rest) schema += std::string(R"(,"items":)") + rest;
          if (least >= 0) schema += R"(,"minItems":)" + std::to_string(least);
          if (most >= 0) schema += R"(,"maxItems":)" + std::to_string(most);
          schema += "}";
          CAPTURE(schema);
          // Without "items", nothing follows a prefix here; without that, anything does.
          const bool ends = none_more || (n_prefix > 0 && !has_rest);
          const int limit = ends ? static_cast<int>(n_prefix) : 100;
          const int last = most < 0 ? limit : std::min(most, limit);
          const auto grammar = mixtral::json_schema_grammar(schema);
          if (last < std::max(least, 0)) {
            check_refused(grammar, "minItems");
            continue;
          }
          GrammarMatcher matcher = feeder.matcher(value(grammar));
          for (std::size_t n = 0; n < 6; ++n) {
            const std::size_t n_first = std::min(n, n_prefix);
            const bool expected = static_cast<int>(n) >= least && static_cast<int>(n) <= last;
            CAPTURE(n);
            CHECK((Feeder::match(matcher, array(n_first, n - n_first)) == Match::whole) ==
                  expected);
          }
          if (n_prefix > 0) CHECK(Feeder::match(matcher, "[2]") == Match::dead);
        }
      }
    }
  }
  // The older spelling of the same.
  Taker older(feeder, R"({"items":[{"const":1}],"additionalItems":{"const":2}})");
  CHECK(older("[]"));
  CHECK(older("[1]"));
  CHECK(older("[1,2,2]"));
  CHECK(!older("[2]"));
  CHECK(!older("[1,1]"));
  CHECK(mixtral::json_schema_grammar(R"({"type":"array","uniqueItems":false})"));
  check_refused(mixtral::json_schema_grammar(R"({"prefixItems":{}})"),
                "\"prefixItems\" must be a list");
}

TEST_CASE("json_schema: counts are whole numbers up to 10000") {
  const Feeder feeder;
  for (const char* keyword : {"minLength", "maxLength", "minItems", "maxItems"}) {
    CAPTURE(keyword);
    const auto with = [&](const std::string& n) {
      return mixtral::json_schema_grammar("{\"" + std::string(keyword) + "\":" + n + "}");
    };
    CHECK(with("0"));
    CHECK(with("10000"));
    check_refused(with("10001"), "above 10000", ErrorCode::unsupported);
    check_refused(with("-1"), "must be a whole number");
    check_refused(with("1.0"), "must be a whole number");
    check_refused(with("\"1\""), "must be a whole number");
    check_refused(with("null"), "must be a whole number");
  }
  for (int least = 0; least <= 3; ++least) {
    for (int most = 0; most <= 4; ++most) {
      const std::string schema = R"({"minLength":)" + std::to_string(least) + R"(,"maxLength":)" +
                                 std::to_string(most) + "}";
      CAPTURE(schema);
      if (most < least) {
        check_refused(mixtral::json_schema_grammar(schema),
                      "\"maxLength\" is less than \"minLength\"");
        continue;
      }
      Taker takes(feeder, schema);
      std::string characters, escapes;
      for (int n = 0; n <= 5; ++n) {
        CHECK(takes("\"" + characters + "\"") == (n >= least && n <= most));
        CHECK(takes("\"" + escapes + "\"") == (n >= least && n <= most));
        characters += "\u00E9";
        escapes += "\\u00e9";
      }
    }
  }
}

TEST_CASE("json_schema: members that must be there, that may be, and others") {
  const Feeder feeder;
  // Members a, b and c in this order, each of which may have to be there.
  for (unsigned must = 0; must < 8; ++must) {
    for (const char* more : {"", "true", "false", R"({"const":9})"}) {
      const bool has_more = more[0] != '\0' && std::string(more) != "false";
      std::string
          schema =
              R"({"properties":{"a":{"const":1},"b":{"const":2},"c":{"const":3}},"required":[)",
          names;
      for (unsigned i = 0; i < 3; ++i) {
        if ((must >> i & 1) != 0)
          names += std::string(names.empty() ? "\"" : ",\"") + "abc"[i] + "\"";
      }
      schema += names + "]";
      if (more[0] != '\0') schema += std::string(R"(,"additionalProperties":)") + more;
      schema += "}";
      CAPTURE(schema);
      Taker takes(feeder, schema);
      for (unsigned there = 0; there < 8; ++there) {
        std::string members;
        for (unsigned i = 0; i < 3; ++i) {
          if ((there >> i & 1) == 0) continue;
          members += std::string(members.empty() ? "\"" : ",\"") + "abc"[i] + "\":" + "123"[i];
        }
        CAPTURE(members);
        CHECK(takes("{" + members + "}") == ((there & must) == must));
        const std::string comma = members.empty() ? "" : ",";
        CHECK(takes("{" + members + comma + "\"d\":9}") == ((there & must) == must && has_more));
        CHECK(takes("{" + members + comma + "\"d\":9,\"ab\":9}") ==
              ((there & must) == must && has_more));
        CHECK(!takes("{" + members + comma + "\"a\":9}"));
        CHECK(!takes("{" + members + ",}"));
      }
      CHECK(!takes(R"({"b":2,"a":1})"));
    }
  }
  // Keys that are not named: not beginnings of names either, whatever these are.
  Taker others(feeder,
               R"({"properties":{"":{},"ab":{},"abc":{},"a\"b":{},"\u00e9":{},"\ud83d\ude00":{}},
      "required":[],"additionalProperties":{"const":9}})");
  for (const char* key : {"a", "abcd", "b", "x", "ac", "abd", "e", "\u00E8", "\u00E9x",
                          "\U0001F601", "]", "^", "a-"}) {
    CAPTURE(key);
    CHECK(others("{\"" + std::string(key) + "\":9}"));
  }
  for (const char* key :
       {"", "ab", "abc", "\u00E9", "\U0001F600", "a\\\"b", "\\u0061", "\\n", "\t"}) {
    CAPTURE(key);
    CHECK(!others("{\"x\":9,\"" + std::string(key) + "\":9}"));
  }
  // What is required and not among the properties has the schema of the others.
  Taker required(feeder, R"({"required":["z"],"additionalProperties":{"const":9}})");
  CHECK(required(R"({"z":9})"));
  CHECK(required(R"({"z":9,"y":9})"));
  CHECK(!required("{}"));
  CHECK(!required(R"({"z":8})"));
  CHECK(!required(R"({"y":9})"));
  Taker anything(feeder, R"({"properties":{"a":{"const":1}},"required":["z"]})");
  CHECK(anything(R"({"a":1,"z":[null]})"));
  CHECK(!anything(R"({"a":1})"));
  CHECK(!anything(R"({"z":1,"y":1})"));
  CHECK(mixtral::json_schema_grammar(R"({"required":["a","b"],"minProperties":2})"));
  check_refused(mixtral::json_schema_grammar(R"({"required":["a","b"],"minProperties":3})"),
                "minProperties", ErrorCode::unsupported);
  check_refused(mixtral::json_schema_grammar(R"({"required":"a"})"), "\"required\" must be a list");
}

TEST_CASE("json_schema: the type that keywords are about, if none is named") {
  const Feeder feeder;
  const auto types = [&](const std::string& schema) {
    Taker takes(feeder, schema);
    std::string all;
    for (const char* text : {"null", "true", "1", "1.5", "\"ab\"", "[]", "{}"})
      all += takes(text) ? text : "-";
    return all;
  };
  for (const char* keyword : {R"("properties":{})", R"("required":[])",
                              R"("additionalProperties":true)", R"("minProperties":0)"}) {
    CHECK(types("{" + std::string(keyword) + "}") == "------{}");
  }
  for (const char* keyword : {R"("items":true)", R"("prefixItems":[])", R"("additionalItems":true)",
                              R"("minItems":0)", R"("maxItems":1)", R"("uniqueItems":false)"}) {
    CHECK(types("{" + std::string(keyword) + "}") == "-----[]-");
  }
  for (const char* keyword : {R"("minLength":0)", R"("maxLength":2)", R"("pattern":"a")"}) {
    CHECK(types("{" + std::string(keyword) + "}") == "----\"ab\"--");
  }
  for (const char* keyword :
       {R"("minimum":0)", R"("maximum":2)", R"("exclusiveMinimum":0)", R"("exclusiveMaximum":2)"}) {
    CHECK(types("{" + std::string(keyword) + "}") == "--11.5---");
  }
  CHECK(types(R"({"minimum":0,"minLength":0})") == "--11.5\"ab\"--");
  CHECK(types(R"({"minItems":0,"required":[]})") == "-----[]{}");
  CHECK(types("{}") == "nulltrue11.5\"ab\"[]{}");
  CHECK(types(R"({"type":["string","null","string"],"minimum":5})") == "null---\"ab\"--");
  for (const char* keyword :
       {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
        "examples", "deprecated", "readOnly", "writeOnly"}) {
    CHECK(types("{\"" + std::string(keyword) + "\":{},\"type\":\"null\"}") == "null------");
  }
}

TEST_CASE("json_schema: references are paths in the schema itself (RFC 6901)") {
  const Feeder feeder;
  const auto named = [&](const std::string& path) {
    Taker takes(
        feeder,
        R"({"$ref":")" + path +
            R"(","$defs":{"a/b":{"const":1},"c~d":{"const":2},"":{"const":3},"~1":{"const":4},
        "list":[{"const":5},{"const":6}],"in":{"anyOf":[true,{"const":7}]},"%41":{"const":8}}})");
    std::string all;
    for (int n = 1; n <= 8; ++n) {
      if (takes(std::to_string(n))) all += std::to_string(n);
    }
    return all;
  };
  CHECK(named("#/$defs/a~1b") == "1");
  CHECK(named("#/$defs/c~0d") == "2");
  CHECK(named("#/$defs/") == "3");
  CHECK(named("#/$defs/~01") == "4");
  CHECK(named("#/$defs/list/0") == "5");
  CHECK(named("#/$defs/list/1") == "6");
  CHECK(named("#/$defs/in/anyOf/1") == "7");
  CHECK(named("#/$defs/%41") == "8");
  const auto refused = [](const std::string& path, const char* part, ErrorCode code) {
    CAPTURE(path);
    check_refused(mixtral::json_schema_grammar(R"({"$ref":")" + path +
                                               R"(","$defs":{"list":[true,true],"x":true}})"),
                  part, code);
  };
  for (const char* path : {"#/$defs/y", "#/$defs/list/2", "#/$defs/list/-1", "#/$defs/list/",
                           "#/$defs/list/a", "#/$defs/list/100000", "#/$defs/x/y", "#/",
                           "#/$defs/x/", "#//", "#/0", "#/$defs/0", "#/$defs/x/0"}) {
    refused(path, "leads nowhere", ErrorCode::bad_format);
  }
  // An index has five digits at most.
  const auto of_many = [](const std::string& index) {
    return mixtral::json_schema_grammar(
        R"({"$ref":"#/$defs/list/)" + index + R"(","$defs":{"list":[)" +
        numbered(100001, [](std::size_t) { return "true"; }) + "]}}");
  };
  CHECK(of_many("99999"));
  check_refused(of_many("100000"), "leads nowhere");
  for (const char* path : {"", "x", "/$defs/x", "#x", "#$defs/x", "other.json#/x"}) {
    refused(path, "no path in the schema itself", ErrorCode::unsupported);
  }
  CHECK(
      mixtral::json_schema_grammar(R"({"$ref":"#/$defs/x","description":"d","$defs":{"x":true}})"));
}

TEST_CASE("json_schema: parts of oneOf exclude each other, as far as is looked") {
  const auto excludes = [](const std::string& one, const std::string& other) {
    const bool result =
        bool(mixtral::json_schema_grammar("{\"oneOf\":[" + one + "," + other + "]}"));
    CHECK(bool(mixtral::json_schema_grammar("{\"oneOf\":[" + other + "," + one + "]}")) == result);
    CAPTURE(one);
    CAPTURE(other);
    return result;
  };
  const auto type = [](const char* name) { return R"({"type":)" + std::string(name) + "}"; };
  const char* types[] = {"\"null\"",   "\"boolean\"", "\"integer\"", "\"number\"",
                         "\"string\"", "\"array\"",   "\"object\""};
  for (std::size_t i = 0; i < 7; ++i) {
    for (std::size_t k = 0; k < 7; ++k) {
      const bool are_numbers = (i == 2 || i == 3) && (k == 2 || k == 3);
      CHECK(excludes(type(types[i]), type(types[k])) == (i != k && !are_numbers));
    }
  }
  CHECK(!excludes(type(R"(["null","string"])"), type(R"(["string","array"])")));
  CHECK(excludes(type(R"(["null","string"])"), type(R"(["integer","array"])")));
  CHECK(excludes(R"({"enum":[1,2]})", R"({"enum":[3,"1"]})"));
  CHECK(!excludes(R"({"enum":[1,2]})", R"({"enum":[3,2.0]})"));
  CHECK(!excludes(R"({"const":{"a":1,"b":[2]}})", R"({"const":{"b":[2],"a":1}})"));
  CHECK(excludes(R"({"const":[1,[2]]})", R"({"const":[[1],2]})"));
  CHECK(excludes(R"({"const":[1]})", R"({"const":[[1]]})"));
  CHECK(excludes(R"({"const":{"a":1}})", R"({"const":{"a":2}})"));
  CHECK(excludes(R"({"const":{"a":1}})", R"({"const":{"b":1}})"));
  CHECK(!excludes(R"({"const":0})", R"({"const":-0.0})"));
  CHECK(excludes(R"({"const":1})", R"({"type":"string"})"));
  CHECK(!excludes(R"({"const":1})", R"({"type":"number"})"));
  CHECK(!excludes(R"({"const":1.0})", R"({"type":"integer"})"));
  CHECK(excludes(R"({"const":1.5})", R"({"type":"integer"})"));
  CHECK(!excludes(R"({"const":1})", "true"));
  CHECK(!excludes("{}", R"({"const":1})"));
  // Objects by a member that both must have.
  const auto object = [](const char* key, const std::string& schema, bool required = true) {
    return R"({"type":"object","properties":{")" + std::string(key) + "\":" + schema +
           (required ? R"(},"required":[")" + std::string(key) + "\"]}" : "}}");
  };
  CHECK(excludes(object("k", R"({"const":1})"), object("k", R"({"const":2})")));
  CHECK(!excludes(object("k", R"({"const":1})"), object("k", R"({"const":1})")));
  CHECK(!excludes(object("k", R"({"const":1})"), object("l", R"({"const":2})")));
  CHECK(!excludes(object("k", R"({"const":1})", false), object("k", R"({"const":2})")));
  CHECK(!excludes(object("k", R"({"const":1})"), object("k", R"({"const":2})", false)));
  // Through five objects in one another, and no more.
  std::string one = R"({"const":1})", other = R"({"const":2})";
  for (int depth = 1; depth <= 6; ++depth) {
    one = object("k", one);
    other = object("k", other);
    CAPTURE(depth);
    CHECK(excludes(one, other) == (depth <= 4));
  }
}
