// JSON of untrusted files: what is parsed, what is refused, and how the members of an object are read.
#include <cstdlib>
#include <memory>
#include <mixtral/impl/checkpoints/json.hpp>

#include "support.hpp"

using namespace support;
using mixtral::ErrorCode;
using mixtral::detail::Json;
using mixtral::detail::JsonKeys;

namespace {

mixtral::Result<Json> parse(const std::string& text) {
  const Blob exact(text.begin(), text.end());
  return mixtral::detail::parse_json(bytes(exact), "a.json");
}

// Every error here is one of the format.
template <class T>
std::string error_of(const mixtral::Result<T>& result) {
  if (result) return "";
  CHECK(result.error().code() == ErrorCode::bad_format);
  return result.error().message();
}
std::string error_of(const mixtral::Status& status) {
  if (status) return "";
  CHECK(status.error().code() == ErrorCode::bad_format);
  return status.error().message();
}

}  // namespace

TEST_CASE("json: values of every kind are kept as the file has them") {
  const std::string text =
      R"({"a":[1,-2,0.5,true,false,null,"x\n",[],{}],"b":{"c":{"d":[{"e":1},2]}}})";
  CHECK(value(parse(text)).dump() == text);
  CHECK(value(parse("{\"n\": 18446744073709551615}"))["n"] == ~std::uint64_t{0});
  CHECK(value(parse(" \r\n\t{} ")).empty());
}

TEST_CASE("json: what is not JSON, or no object, is refused with the place") {
  const auto not_valid = [](int at) {
    return "a.json: not valid JSON at byte " + std::to_string(at) + " (incomplete download?)";
  };
  CHECK(error_of(parse("")) == not_valid(1));
  CHECK(error_of(parse("{")) == not_valid(2));
  CHECK(error_of(parse("{\"a\":1,}")) == not_valid(8));
  CHECK(error_of(parse("{} {}")) == not_valid(4));
  CHECK(error_of(parse("{\"a\":\"\xff\"}")) == not_valid(7));
  CHECK(error_of(parse("{\"a\":1e999}")) == not_valid(10));
  CHECK(error_of(parse("{\"a\":nan}")) == not_valid(7));
  CHECK(error_of(parse("[1]")) == "a.json: expected a JSON object, found array");
  CHECK(error_of(parse("1")) == "a.json: expected a JSON object, found number");
  CHECK(error_of(parse("null")) == "a.json: expected a JSON object, found null");
}

TEST_CASE("json: a key may be in an object once") {
  CHECK(error_of(parse(R"({"a":1,"b":2,"a":3})")) == "a.json: the key 'a' is there twice");
  CHECK(error_of(parse(R"({"o":[{"a":null,"a":null}]})")) == "a.json: the key 'a' is there twice");
  CHECK(error_of(parse(R"({"a":{"a":[{"a":1},{"a":2}]}})")) == "");
  const std::string key(81, 'k');
  CHECK(error_of(parse("{\"" + key + "\":1,\"" + key + "\":1}")) ==
        "a.json: the key '" + std::string(80, 'k') + "' is there twice");
}

TEST_CASE("json: values are nested 32 deep, but no deeper") {
  const auto arrays = [](std::size_t n) {
    return "{\"a\":" + std::string(n - 1, '[') + std::string(n - 1, ']') + "}";
  };
  const auto objects = [](std::size_t n) {
    std::string text;
    for (std::size_t i = 1; i < n; ++i) text += "{\"a\":";
    return text + "{}" + std::string(n - 1, '}');
  };
  CHECK(error_of(parse(arrays(32))) == "");
  CHECK(error_of(parse(objects(32))) == "");
  CHECK(error_of(parse(arrays(33))) == "a.json: JSON nested more than 32 deep");
  CHECK(error_of(parse(objects(33))) == "a.json: JSON nested more than 32 deep");
  // What was closed does not count.
  std::string many = "{\"a\":[";
  for (int i = 0; i < 40; ++i) many += "[],{},";
  CHECK(error_of(parse(many + "0]}")) == "");
}

TEST_CASE("json: a text has 100 MiB, but no more") {
  constexpr std::size_t kMost = std::size_t{100} << 20;
  // Zeros that take no memory until they are read; the first of them is no JSON.
  const std::unique_ptr<void, decltype(&std::free)> zeros(std::calloc(kMost + 1, 1), &std::free);
  REQUIRE(zeros);
  const auto* data = static_cast<const std::uint8_t*>(zeros.get());
  CHECK(error_of(mixtral::detail::parse_json({data, kMost}, "a.json")) ==
        "a.json: not valid JSON at byte 1 (incomplete download?)");
  CHECK(error_of(mixtral::detail::parse_json({data, kMost + 1}, "a.json")) ==
        "a.json: 104857601 bytes of JSON; at most 104857600 are read");
}

TEST_CASE("json: a member that is null counts as absent") {
  const Json object = {{"null", nullptr}, {"zero", 0}};
  const JsonKeys keys(object, "a.json");
  CHECK(keys.find("null") == nullptr);
  CHECK(keys.find("none") == nullptr);
  CHECK(keys.find("zero") == &object["zero"]);
  for (const char* key : {"null", "none"}) {
    CAPTURE(key);
    std::uint32_t number = 7;
    float real = 7.0f;
    bool truth = true;
    const std::string missing = "a.json: key '" + std::string(key) + "' is missing";
    CHECK(keys.read_uint(key, false, number));
    CHECK(error_of(keys.read_uint(key, true, number)) == missing);
    CHECK(number == 7);
    CHECK(keys.read_float(key, false, real));
    CHECK(error_of(keys.read_float(key, true, real)) == missing);
    CHECK(real == 7.0f);
    CHECK(keys.read_bool(key, truth));
    CHECK(truth);
    CHECK(value(keys.read_string(key, false)) == nullptr);
    CHECK(error_of(keys.read_string(key, true)) == missing);
  }
}

TEST_CASE("json: integers are whole numbers of 32 bits, perhaps in quotes") {
  const auto read = [](const Json& number, std::uint32_t& out) {
    const Json object = {{"n", number}};
    return error_of(JsonKeys(object, "a.json").read_uint("n", true, out));
  };
  for (const Json& good :
       {Json(0u), Json(4294967295u), Json("0"), Json("4096"), Json("4294967295")}) {
    CAPTURE(good.dump());
    std::uint32_t out = 7;
    CHECK(read(good, out) == "");
    CHECK(std::to_string(out) == (good.is_string() ? good.get<std::string>() : good.dump()));
  }
  const std::string expected = "a.json: key 'n': expected a non-negative integer, found ";
  std::uint32_t out = 7;
  CHECK(read(-1, out) == expected + "another number");
  CHECK(read(1.0, out) == expected + "another number");
  CHECK(read(true, out) == expected + "boolean");
  CHECK(read(Json::array({1}), out) == expected + "array");
  for (const char* text : {"", "-1", "1x", "x", " 1", "1 ", "0x1", "1.0", "18446744073709551616"}) {
    CAPTURE(text);
    CHECK(read(text, out) == expected + "string");
  }
  CHECK(read(4294967296u, out) == "a.json: key 'n' is 4294967296; expected at most 4294967295");
  CHECK(read("4294967296", out) == "a.json: key 'n' is 4294967296; expected at most 4294967295");
  CHECK(read(~std::uint64_t{0}, out) ==
        "a.json: key 'n' is 18446744073709551615; expected at most 4294967295");
  CHECK(out == 7);
}

TEST_CASE("json: other members are of the kind that is asked for") {
  const Json object = {{"int", -3},   {"real", 0.25}, {"yes", true},
                       {"no", false}, {"text", "t"},  {"list", Json::array()}};
  const JsonKeys keys(object, "a.json");
  float real = 0.0f;
  CHECK(keys.read_float("int", true, real));
  CHECK(real == -3.0f);
  CHECK(keys.read_float("real", false, real));
  CHECK(real == 0.25f);
  CHECK(error_of(keys.read_float("text", false, real)) ==
        "a.json: key 'text': expected a number, found string");
  CHECK(error_of(keys.read_float("yes", true, real)) ==
        "a.json: key 'yes': expected a number, found boolean");
  CHECK(real == 0.25f);
  bool truth = false;
  CHECK(keys.read_bool("yes", truth));
  CHECK(truth);
  CHECK(keys.read_bool("no", truth));
  CHECK(!truth);
  truth = true;
  CHECK(error_of(keys.read_bool("int", truth)) ==
        "a.json: key 'int': expected true or false, found another number");
  CHECK(error_of(keys.read_bool("text", truth)) ==
        "a.json: key 'text': expected true or false, found string");
  CHECK(truth);
  CHECK(*value(keys.read_string("text", true)) == "t");
  CHECK(*value(keys.read_string("text", false)) == "t");
  CHECK(error_of(keys.read_string("list", false)) ==
        "a.json: key 'list': expected a string, found array");
  CHECK(error_of(keys.read_string("real", true)) ==
        "a.json: key 'real': expected a string, found another number");
}
