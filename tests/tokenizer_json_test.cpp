// tokenizer.json, part by part: what each may be, and what is refused.
#include <mixtral/checkpoints.hpp>

#include "model_files.hpp"

using namespace support;
using mixtral::ErrorCode;
using mixtral::PieceType;
using mixtral::Token;
using mixtral::Tokenizer;
using Json = nlohmann::json;

namespace {

constexpr const char* kSpace = "\u2581";

mixtral::Result<mixtral::Vocabulary> vocabulary(const Json& json) {
  const std::string text = json.dump();
  return mixtral::read_tokenizer_json(
      {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()},
      std::pmr::get_default_resource());
}

mixtral::Result<Tokenizer> read(const Json& json) {
  const auto read = vocabulary(json);
  if (!read) return read.error();
  return Tokenizer::create(*read, std::pmr::get_default_resource());
}

void check_refused(const Json& json, const char* part, ErrorCode code = ErrorCode::unsupported) {
  CAPTURE(part);
  const auto refused = vocabulary(json);
  REQUIRE(!refused);
  CAPTURE(refused.error().message());
  CHECK(refused.error().code() == code);
  CHECK(std::string(refused.error().message()).find(part) != std::string::npos);
}

// Special tokens, bytes, and a few pieces with their merges, the first of which comes first.
Json small_json() {
  Synthetic synthetic;
  synthetic.vocab_size = 259;
  Json json = tokenizer_json(synthetic);
  int id = 259;
  for (const char* piece :
       {"\u2581", "a", "b", "c", "ab", "bc", "abc", "\u2581a", "\u2581\u2581"}) {
    json["model"]["vocab"][piece] = id++;
  }
  json["model"]["merges"] = {"b c", "a b", "a bc", "\u2581 a", "\u2581 \u2581"};
  return json;
}

Json replace(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}
Json prepend(const char* text) { return {{"type", "Prepend"}, {"prepend", text}}; }
Json sequence(const char* key, const std::vector<Json>& parts) {
  return {{"type", "Sequence"}, {key, parts}};
}
Json metaspace() {
  return {{"type", "Metaspace"},
          {"replacement", kSpace},
          {"prepend_scheme", "first"},
          {"split", false}};
}

std::vector<Token> encode(const Tokenizer& tokenizer, const char* text) {
  const auto tokens = value(tokenizer.encode(text));
  return {tokens.begin(), tokens.end()};
}

}  // namespace

TEST_CASE("tokenizer_json: texts are encoded and decoded as Hugging Face's tokenizers do") {
  struct Coding {
    const char* text;
    std::vector<Token> ids;
  };
  // The ids are the output of the Python package tokenizers 0.23.3 for these files; it decodes them to the
  // texts. A Metaspace pre-tokenizer puts no space before one, which sentencepiece does, hence no such text.
  const std::vector<Coding> prefixed = {
      {"abc", {259, 265}}, {"a abcab", {266, 259, 265, 263}}, {"\u00E9x", {259, 198, 172, 123}}};
  const std::vector<Coding> plain = {{"abc", {265}},
                                     {"a abcab", {260, 259, 265, 263}},
                                     {"  a  b ", {259, 266, 267, 261, 259}},
                                     {"\u00E9x", {198, 172, 123}},
                                     {" a", {266}}};
  const auto check = [](const Json& json, const std::vector<Coding>& codings) {
    const Tokenizer t = value(read(json));
    for (const Coding& coding : codings) {
      CAPTURE(coding.text);
      CHECK(encode(t, coding.text) == coding.ids);
      CHECK(std::string(value(t.decode(span(coding.ids)))) == coding.text);
    }
  };
  Json json = small_json();
  check(json, prefixed);
  check(json, {{"  a  b ", {267, 266, 267, 261, 259}}, {" a", {259, 266}}});
  json["normalizer"] = replace(" ", kSpace);
  check(json, plain);
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = metaspace();
  check(json, prefixed);
  json["pre_tokenizer"]["prepend_scheme"] = "never";
  check(json, plain);
}

TEST_CASE(
    "tokenizer_json: the normalizer puts U+2581 for spaces, and perhaps one before the text") {
  Json json = small_json();
  const auto with = [&](const Json& normalizer) {
    Json changed = json;
    changed["normalizer"] = normalizer;
    return changed;
  };
  const Json spaces = replace(" ", kSpace);
  CHECK(value(vocabulary(json)).add_dummy_prefix);
  CHECK(!value(vocabulary(json)).remove_extra_whitespaces);
  CHECK(!value(vocabulary(with(spaces))).add_dummy_prefix);
  CHECK(!value(vocabulary(with(sequence("normalizers", {spaces})))).add_dummy_prefix);
  CHECK(
      value(vocabulary(with(sequence("normalizers", {prepend(kSpace), spaces})))).add_dummy_prefix);
  check_refused(with(prepend(kSpace)), "spaces do not become U+2581");
  check_refused(with(sequence("normalizers", {})), "spaces do not become U+2581");
  check_refused(with(nullptr), "spaces do not become U+2581");
  // A sequence has its parts in an array.
  check_refused(with({{"type", "Sequence"}}), "spaces do not become U+2581");
  check_refused(with({{"type", "Sequence"}, {"normalizers", {{"a", spaces}}}}),
                "spaces do not become U+2581");
  for (const Json& other :
       {replace(" ", "_"), replace("_", kSpace), prepend("_"), Json{{"type", "Prepend"}},
        Json{{"type", "Lowercase"}}, Json("Replace"), Json{{"prepend", kSpace}},
        Json{{"type", "Replace"}, {"pattern", {{"Regex", " "}}}, {"content", kSpace}},
        Json{{"type", "Replace"}, {"pattern", " "}, {"content", kSpace}},
        Json{{"type", "Replace"}, {"pattern", {{"String", " "}}}},
        Json{{"type", "Replace"}, {"content", kSpace}},
        Json{{"type", "Put"}, {"pattern", {{"String", " "}}}, {"content", kSpace}},
        Json{{"type", "Replace"}, {"pattern", nullptr}, {"content", kSpace}}}) {
    CAPTURE(other.dump());
    check_refused(with(other), "the normalizer has another part");
    check_refused(with(sequence("normalizers", {spaces, other})),
                  "the normalizer has another part");
  }
}

TEST_CASE("tokenizer_json: a pre-tokenizer is Metaspace that does not split") {
  Json json = small_json();
  json["normalizer"] = nullptr;
  const auto with = [&](const char* key, const Json& part) {
    Json changed = json;
    changed["pre_tokenizer"] = metaspace();
    changed["pre_tokenizer"][key] = part;
    return changed;
  };
  for (const char* scheme : {"first", "always"}) {
    CHECK(value(vocabulary(with("prepend_scheme", scheme))).add_dummy_prefix);
  }
  CHECK(!value(vocabulary(with("prepend_scheme", "never"))).add_dummy_prefix);
  CHECK(value(vocabulary(with("prepend_scheme", nullptr))).add_dummy_prefix);
  check_refused(with("split", true), "splits at spaces");
  check_refused(with("split", nullptr), "splits at spaces");
  check_refused(with("type", "ByteLevel"), "no Metaspace");
  check_refused(with("replacement", "_"), "U+2581");
  check_refused(with("replacement", nullptr), "U+2581");
}

TEST_CASE("tokenizer_json: a decoder has known parts only") {
  Json json = small_json();
  const auto with = [&](const Json& decoder) {
    Json changed = json;
    changed["decoder"] = decoder;
    return changed;
  };
  const Json spaces = replace(kSpace, " ");
  for (const Json& part : {spaces, Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}},
                           Json{{"type", "Strip"}}, metaspace()}) {
    CHECK(vocabulary(with(part)));
    CHECK(vocabulary(with(sequence("decoders", {spaces, part}))));
  }
  check_refused(with(nullptr), "there is no decoder");
  for (const Json& part :
       {replace(kSpace, "_"), replace("_", " "), Json{{"type", "WordPiece"}}, Json(1)}) {
    check_refused(with(part), "the decoder has an unknown part");
    check_refused(with(sequence("decoders", {spaces, part})), "the decoder has an unknown part");
  }
}

TEST_CASE("tokenizer_json: the model is BPE with bytes, a vocabulary and merges") {
  const auto with = [&](const char* key, const Json& part) {
    Json changed = small_json();
    changed["model"][key] = part;
    return changed;
  };
  check_refused(with("type", "Unigram"), "not of type BPE");
  check_refused(with("type", nullptr), "not of type BPE");
  check_refused(with("byte_fallback", nullptr), "byte_fallback is off");
  check_refused(with("byte_fallback", false), "byte_fallback is off");
  check_refused(with("byte_fallback", 1), "byte_fallback is off");
  check_refused(with("vocab", nullptr), "model.vocab must be an object", ErrorCode::bad_format);
  check_refused(with("vocab", Json::array()), "model.vocab must be an object",
                ErrorCode::bad_format);
  check_refused(with("merges", nullptr), "model.merges must be an array", ErrorCode::bad_format);
  check_refused(with("merges", "a b"), "model.merges must be an array", ErrorCode::bad_format);
  Json no_model = small_json();
  no_model["model"] = nullptr;
  check_refused(no_model, "not of type BPE");
}

TEST_CASE("tokenizer_json: pieces are of the types that their texts and the special tokens say") {
  Json json = small_json();
  json["model"]["vocab"]["</s>"] = 270;
  json["model"]["vocab"]["<s>"] = 2;
  json["model"]["vocab"]["first"] = 1;
  json["model"]["unk_token"] = "first";
  json["added_tokens"] = {{{"id", 2}, {"content", "<s>"}, {"special", true}},
                          {{"id", 1}, {"content", "first"}, {"special", true}},
                          {{"id", 3}, {"content", "<0x00>"}, {"special", true}},
                          {{"id", 268}, {"content", "one"}, {"special", false}},
                          {{"id", 271}, {"content", "two"}},
                          {{"id", 272}, {"content", "three"}, {"special", nullptr}}};
  const auto made = value(vocabulary(json));
  CHECK(made.bos == 2);
  CHECK(made.eos == 270);
  CHECK(made.unknown == 1);
  CHECK(made.unknown_surface == "<unk>");
  REQUIRE(made.pieces.size() == 273);
  CHECK(made.pieces[0].type == PieceType::normal);  // "<unk>" is no name of its own
  CHECK(made.pieces[1].type == PieceType::unknown);
  CHECK(made.pieces[2].type == PieceType::control);
  CHECK(made.pieces[3].type == PieceType::byte);
  CHECK(made.pieces[258].type == PieceType::byte);
  CHECK(made.pieces[259].type == PieceType::normal);
  CHECK(made.pieces[268].type == PieceType::user_defined);
  CHECK(made.pieces[270].type == PieceType::normal);
  CHECK(made.pieces[271].type == PieceType::user_defined);
  CHECK(made.pieces[272].type == PieceType::user_defined);
  // A hole between the ids is a control token of its own.
  CHECK(made.pieces[269].text == "[PAD269]");
  CHECK(made.pieces[269].type == PieceType::control);
  // The first id may be a hole, too, and there may be no unknown token.
  Json holes = small_json();
  holes["model"]["vocab"].erase("<unk>");
  holes["added_tokens"].erase(0);
  for (const Json& unknown : {Json(nullptr), Json("<unk>")}) {
    holes["model"]["unk_token"] = unknown;
    CHECK(value(vocabulary(holes)).pieces[0].text == "[PAD0]");
    CHECK(value(vocabulary(holes)).unknown == 0);
  }
  const Tokenizer t = value(read(small_json()));
  CHECK(t.unknown() == 0);
  CHECK(std::string(value(t.decode(span({260, 0, 261})))) == "a<unk>b");
}

TEST_CASE("tokenizer_json: ids are whole numbers below twice the number of tokens and 1024") {
  const auto with_id = [](const Json& id) {
    Json json = small_json();
    json["model"]["vocab"]["last"] = id;
    return json;
  };
  const std::uint64_t limit = 2 * (268 + 1 + 3) + 1024;  // with "last", and the added tokens
  const auto most = value(vocabulary(with_id(limit - 1)));
  CHECK(most.pieces.size() == limit);
  CHECK(most.pieces.back().text == "last");
  for (const Json& id :
       {Json(limit), Json(-1), Json(1.0), Json("268"), Json(nullptr), Json(~std::uint64_t{0})}) {
    CAPTURE(id.dump());
    check_refused(with_id(id), "a token id is not an integer from 0 to 1567",
                  ErrorCode::bad_format);
  }
  Json alone = with_id(limit - 6);
  alone["added_tokens"] = nullptr;
  check_refused(alone, "from 0 to 1561, the most for 269 tokens", ErrorCode::bad_format);
  alone["model"]["vocab"]["last"] = limit - 7;
  CHECK(vocabulary(alone));
  check_refused(with_id(267), "two pieces of model.vocab have the same id", ErrorCode::bad_format);
}

TEST_CASE("tokenizer_json: an added token has an id and a text, of its own or those of a piece") {
  const auto with = [](const Json& token) {
    Json json = small_json();
    json["added_tokens"].push_back(token);
    return json;
  };
  CHECK(vocabulary(with({{"id", 268}, {"content", "new"}})));
  CHECK(vocabulary(with({{"id", 265}, {"content", "abc"}})));
  check_refused(with({{"id", 265}, {"content", "new"}}), "has the id of another piece",
                ErrorCode::bad_format);
  for (const Json& token :
       {Json{{"content", "new"}}, Json{{"id", 268}}, Json{{"id", nullptr}, {"content", "new"}},
        Json{{"id", 268}, {"content", 5}}, Json("new"), Json(nullptr)}) {
    CAPTURE(token.dump());
    check_refused(with(token), "has no id or content", ErrorCode::bad_format);
  }
  check_refused(with({{"id", -1}, {"content", "new"}}), "token id", ErrorCode::bad_format);
  Json json = small_json();
  json["added_tokens"] = 5;
  check_refused(json, "added_tokens must be an array", ErrorCode::bad_format);
  json["added_tokens"] = nullptr;
  CHECK(vocabulary(json));
}

TEST_CASE("tokenizer_json: merges are pairs of pieces that make a third, in either spelling") {
  const auto with = [](const Json& merge) {
    Json json = small_json();
    json["model"]["merges"].push_back(merge);
    return json;
  };
  const std::vector<Json> spellings = {"ab c", Json::array({"ab", "c"})};
  for (const Json& merge : spellings) {
    const auto made = value(vocabulary(with(merge)));
    REQUIRE(made.merges.size() == 6);
    CHECK(made.merges[5].left == 263);
    CHECK(made.merges[5].right == 262);
    CHECK(made.merges[0].left == 261);
    CHECK(made.merges[0].right == 262);
  }
  const std::vector<Json> wrong = {"abc",
                                   "ab  c",
                                   " abc",
                                   "abc ",
                                   "x c",
                                   "c x",
                                   "c c",
                                   5,
                                   nullptr,
                                   Json::array(),
                                   Json::array({"abc"}),
                                   Json::array({"a", "b", "c"}),
                                   Json::array({1, "c"}),
                                   Json::array({"ab", 1}),
                                   Json::array({Json::array({"ab", "c"})}),
                                   Json{{"0", "ab"}, {"1", "c"}}};
  for (const Json& merge : wrong) {
    CAPTURE(merge.dump());
    check_refused(with(merge), "model.merges[5] is not of two pieces", ErrorCode::bad_format);
  }
  // The piece with the first id is one like others.
  Json first = small_json();
  first["model"]["vocab"].erase("a");
  first["model"]["vocab"]["<unk>"] = 260;
  first["model"]["vocab"]["a"] = 0;
  first["added_tokens"].erase(0);
  CHECK(value(vocabulary(first)).merges[1].left == 0);
  // Scores tell the order of merges, and that other pieces come last: a piece has that of its first merge.
  const auto made = value(vocabulary(with("ab c")));
  CHECK(made.pieces[264].score == 0.0f);   // bc
  CHECK(made.pieces[263].score == -1.0f);  // ab
  CHECK(made.pieces[265].score == -2.0f);  // abc, of "a bc"
  CHECK(made.pieces[260].score == -6.0f);  // a
  CHECK(made.pieces[1].score == 0.0f);     // <s> is no piece of text
}
