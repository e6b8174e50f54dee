// The tokenizer against the sentencepiece library's own output (*.vectors.jsonl).
#include "small_stack.hpp"

#include <cstdlib>
#include <memory>

using namespace support;
using mixtral::Token;
using mixtral::Tokenizer;

namespace {

Tokenizer from_file(const std::string& path) {
  return value(Tokenizer::from_sentencepiece(bytes(read_file(path))));
}

std::vector<Token> encode(const Tokenizer& tokenizer, std::string_view text,
                          mixtral::EncodeOptions options = {}) {
  const auto tokens = value(tokenizer.encode(text, options));
  return {tokens.begin(), tokens.end()};
}

std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& tokens,
                   bool strip = true) {
  return std::string(value(tokenizer.decode(span(tokens), strip)));
}

void check_vectors(const Tokenizer& tokenizer, const std::string& path) {
  std::ifstream in(path);
  REQUIRE(in.good());
  std::size_t n = 0;
  for (std::string line; std::getline(in, line); ++n) {
    const auto vector = nlohmann::json::parse(line);
    CAPTURE(vector["name"].get<std::string>());
    const auto text = vector["text"].get<std::string>();
    const auto ids = vector["ids"].get<std::vector<Token>>();
    CHECK(encode(tokenizer, text) == ids);
    CHECK(decode(tokenizer, ids) == vector["decoded"].get<std::string>());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto piece = vector["pieces"][i].get<std::string>();
      CHECK(std::string(tokenizer.piece(ids[i]).text) == piece);
      CHECK(tokenizer.find(piece) == ids[i]);
    }
    // Token by token: the same text, cut at characters only.
    mixtral::Detokenizer incremental(tokenizer, true, std::pmr::get_default_resource());
    std::string whole;
    for (const Token id : ids) {
      const std::string piece(incremental.push(id));
      CHECK(nlohmann::json(piece)
                .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                .find("\xEF\xBF\xBD") == std::string::npos);
      whole += piece;
    }
    whole += incremental.finish();
    CHECK(whole == vector["decoded"].get<std::string>());
  }
  CHECK(n > 60);
}

// A small vocabulary made for one test.
struct Pieces {
  std::vector<std::pair<std::string, mixtral::PieceType>> list;
  bool bytes_too = false;

  mixtral::Result<Tokenizer> create() const {
    mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
    std::vector<std::string> byte_texts;
    for (std::size_t i = 0; i < list.size(); ++i) {
      vocabulary.pieces.push_back({list[i].first, -static_cast<float>(i), list[i].second});
    }
    char text[8];
    for (int b = 0; b < 256 && bytes_too; ++b) {
      std::snprintf(text, sizeof text, "<0x%02X>", static_cast<unsigned>(b));
      byte_texts.emplace_back(text);
    }
    for (const auto& t : byte_texts)
      vocabulary.pieces.push_back({t, 0.0f, mixtral::PieceType::byte});
    return Tokenizer::create(vocabulary, std::pmr::get_default_resource());
  }
};

constexpr auto kNormal = mixtral::PieceType::normal;
constexpr auto kUnknown = mixtral::PieceType::unknown;
constexpr auto kControl = mixtral::PieceType::control;

}  // namespace

TEST_CASE("tokenizer: the bundled model's vocabulary equals sentencepiece") {
  check_vectors(open(bundled_model()).tokenizer(), source("tests/data/tokenizer.vectors.jsonl"));
}

TEST_CASE("tokenizer: the real tokenizers equal sentencepiece" * needs_shared("tokenizer")) {
  for (const char* name : {"mixtral-8x7b-v1", "mistral-v2", "mixtral-8x22b-v3"}) {
    CAPTURE(std::string(name));
    const std::string path = std::string("tokenizer/") + name;
    const Tokenizer tokenizer = from_file(shared(path + ".tokenizer.model"));
    CHECK(tokenizer.bos() == 1);
    CHECK(tokenizer.eos() == 2);
    check_vectors(tokenizer, shared(path + ".vectors.jsonl"));
  }
}

constexpr const char* kTinyTokenizer = "models/tiny-mixtral/hf/tokenizer.model";

TEST_CASE("tokenizer: tokenizer.model and GGUF metadata give the same tokenizer" *
          needs_shared(kTinyTokenizer)) {
  const Tokenizer from_proto = from_file(shared(kTinyTokenizer));
  const mixtral::Model model = open(bundled_model());
  REQUIRE(from_proto.size() == model.tokenizer().size());
  for (Token t = 0; t < static_cast<Token>(from_proto.size()); ++t) {
    const mixtral::Piece a = from_proto.piece(t);
    const mixtral::Piece b = model.tokenizer().piece(t);
    CHECK(a.text == b.text);
    CHECK(a.type == b.type);
  }
  check_vectors(from_proto, shared("models/tiny-mixtral/tokenizer.vectors.jsonl"));
}

TEST_CASE("tokenizer: BOS, and text that continues") {
  const mixtral::Model model = open(bundled_model());
  const Tokenizer& t = model.tokenizer();
  const auto plain = encode(t, "Once");
  auto with_bos = encode(t, "Once", {true, true});
  REQUIRE(with_bos.size() == plain.size() + 1);
  CHECK(with_bos[0] == t.bos());
  // " Once" as a continuation is "Once" at the start: the same single space.
  CHECK(encode(t, " Once", {false, false}) == plain);
  CHECK(decode(t, plain) == "Once");
  CHECK(decode(t, plain, false) == " Once");
  CHECK(encode(t, "").empty());
  CHECK(decode(t, {}).empty());
}

TEST_CASE("tokenizer: special tokens never come from text, and decode to nothing") {
  const mixtral::Model model = open(bundled_model());
  const Tokenizer& t = model.tokenizer();
  for (const char* text : {"<s>", "</s>", "<unk>", "a</s><s>[INST] b [/INST]", "<0x41>"}) {
    for (const Token token : encode(t, text)) {
      const auto type = t.piece(token).type;
      CHECK(type != kControl);
      CHECK(type != kUnknown);
    }
    CHECK(decode(t, encode(t, text)) == text);
  }
  CHECK(decode(t, {t.bos(), t.eos()}).empty());
  const auto plain = encode(t, "Max");
  std::vector<Token> wrapped = {t.bos()};
  wrapped.insert(wrapped.end(), plain.begin(), plain.end());
  wrapped.push_back(t.eos());
  CHECK(decode(t, wrapped) == "Max");
}

TEST_CASE("tokenizer: invalid UTF-8 becomes U+FFFD, a byte at a time") {
  const mixtral::Model model = open(bundled_model());
  const Tokenizer& t = model.tokenizer();
  const std::string r = "\xEF\xBF\xBD";
  const std::pair<std::string, std::string> cases[] = {
      {"\xff", r},
      {"a\x80z", "a" + r + "z"},
      {"\xc3", r},  // cut short
      {"\xe2\x82", r + r},
      {"\xc0\xaf", r + r},  // overlong
      {"\xe0\x80\x80", r + r + r},
      {"\xed\xa0\x80", r + r + r},          // a surrogate
      {"\xf4\x90\x80\x80", r + r + r + r},  // past U+10FFFF
      {"\xf5 x", r + " x"},
      {"\xf5\x80\x80\x80", r + r + r + r},  // no character begins with this byte
      {"\xff\x80\x80\x80", r + r + r + r},
      {"\xe2\x82\xac", "\xe2\x82\xac"},
      {std::string("\0\0", 2), std::string("\0\0", 2)},
  };
  for (const auto& [text, expected] : cases) {
    CHECK(decode(t, encode(t, text)) == expected);
    CHECK(encode(t, text) == encode(t, expected));
  }
}

TEST_CASE("tokenizer: byte tokens decode to characters as soon as they are whole") {
  const mixtral::Model model = open(bundled_model());
  const Tokenizer& t = model.tokenizer();
  const auto byte = [&](unsigned value) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", value);
    return t.find(text);
  };
  mixtral::Detokenizer d(t, false, std::pmr::get_default_resource());
  CHECK(d.push(byte(0xF0)).empty());
  CHECK(d.push(byte(0x9F)).empty());
  CHECK(d.push(byte(0x99)).empty());
  CHECK(d.push(byte(0x82)) == "\xF0\x9F\x99\x82");
  CHECK(d.push(byte('A')) == "A");
  CHECK(d.push(byte(0xE2)).empty());
  CHECK(d.push(byte(0x41)) ==
        "\xEF\xBF\xBD"
        "A");  // broken off
  CHECK(d.push(byte(0xE2)).empty());
  CHECK(d.push(byte(0x82)).empty());
  CHECK(d.push(t.find("a")) ==
        "\xEF\xBF\xBD\xEF\xBF\xBD"
        "a");
  CHECK(d.push(byte(0xC3)).empty());
  CHECK(d.finish() == "\xEF\xBF\xBD");
  CHECK(d.finish().empty());
  // Any sequence of bytes: in pieces as at once.
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<Token> tokens;
    for (int i = 0; i < 12; ++i) {
      static constexpr unsigned kInteresting[] = {0x20, 0x41, 0x80, 0xBF, 0xC2, 0xE2, 0x82, 0xAC,
                                                  0xED, 0xA0, 0xF0, 0x9F, 0x99, 0xF4, 0x90, 0xFF};
      tokens.push_back(random() % 8 == 0 ? static_cast<Token>(random() % t.size())
                                         : byte(kInteresting[random() % 16]));
    }
    mixtral::Detokenizer pieces(t, true, std::pmr::get_default_resource());
    std::string text;
    for (const Token token : tokens) text += pieces.push(token);
    text += pieces.finish();
    CHECK(text == decode(t, tokens));
  }
}

TEST_CASE("tokenizer: random text comes back unchanged") {
  const mixtral::Model model = open(bundled_model());
  const Tokenizer& t = model.tokenizer();
  std::mt19937 random(8);
  const std::string alphabet[] = {" ",
                                  " ",
                                  "a",
                                  "e",
                                  "th",
                                  "he",
                                  "\n",
                                  "\t",
                                  "Z",
                                  "9",
                                  "\xC3\xA9",
                                  "\xE4\xBD\xA0",
                                  "\xF0\x9F\x99\x82",
                                  "[INST]",
                                  "<s>",
                                  "."};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (std::size_t n = random() % 40; n > 0; --n) text += alphabet[random() % 16];
    CHECK(decode(t, encode(t, text)) == text);
  }
}

TEST_CASE("tokenizer: a megabyte without a space is no trouble") {
  const mixtral::Model model = open(bundled_model());
  for (const std::string unit : {"a", "the", "\xF0\x9F\x99\x82"}) {
    std::string text;
    while (text.size() < (1u << 20)) text += unit;
    // A quadratic algorithm would take hours, and be ended by the limit that every case has.
    const auto tokens = encode(model.tokenizer(), text);
    CHECK(decode(model.tokenizer(), tokens) == text);
  }
}

TEST_CASE("tokenizer: merges go by score, then from the left") {
  const Pieces pieces{{{"<unk>", kUnknown},
                       {"ab", kNormal},
                       {"bc", kNormal},
                       {"abc", kNormal},
                       {"a", kNormal},
                       {"b", kNormal},
                       {"c", kNormal},
                       {"aa", kNormal},
                       {"\xE2\x96\x81", kNormal}},
                      false};
  const Tokenizer t = value(pieces.create());
  const auto ids = [&](const char* text) { return encode(t, text, {false, false}); };
  CHECK(ids("abc") == std::vector<Token>{3});
  CHECK(ids("bcab") == std::vector<Token>{2, 1});
  CHECK(ids("aaa") == std::vector<Token>{7, 4});
  CHECK(ids("xyz") == std::vector<Token>{0});  // a run of unknowns is one
  CHECK(ids("axb") == std::vector<Token>{4, 0, 5});
  CHECK(encode(t, "a") == std::vector<Token>{8, 4});
  CHECK(decode(t, {4, 0, 5}) == "a \xE2\x81\x87 b");
}

TEST_CASE("tokenizer: user-defined pieces are never split, unused ones never given out") {
  const Pieces pieces{{{"<unk>", kUnknown},
                       {"<tool>", mixtral::PieceType::user_defined},
                       {"ab", mixtral::PieceType::unused},
                       {"abc", kNormal},
                       {"a", kNormal},
                       {"b", kNormal},
                       {"c", kNormal}},
                      true};
  const Tokenizer t = value(pieces.create());
  const auto ids = [&](const char* text) { return encode(t, text, {false, false}); };
  CHECK(ids("a<tool>b") == std::vector<Token>{4, 1, 5});
  // Without its end it is no such piece, and comes byte by byte: after the seven pieces above.
  CHECK(ids("<tool") == std::vector<Token>{7 + '<', 7 + 't', 7 + 'o', 7 + 'o', 7 + 'l'});
  CHECK(ids("ab") == std::vector<Token>{4, 5});
  CHECK(ids("abc") == std::vector<Token>{3});
  CHECK(ids("abab") == std::vector<Token>{4, 5, 4, 5});
}

TEST_CASE("tokenizer: unused pieces of unused pieces of any depth are split on a small stack") {
  // Every beginning of a text of 4000 characters is an unused piece, so that the whole text becomes one.
  Pieces pieces{{{"<unk>", kUnknown}}, true};
  std::string text;
  std::vector<std::string> beginnings;
  for (char32_t c = 0x4E00; c < 0x4E00 + 4000; ++c) {
    const std::string character = {static_cast<char>(0xE0 | c >> 12),
                                   static_cast<char>(0x80 | (c >> 6 & 0x3F)),
                                   static_cast<char>(0x80 | (c & 0x3F))};
    pieces.list.push_back({character, kNormal});
    text += character;
    beginnings.push_back(text);
  }
  for (std::size_t i = 1; i < beginnings.size(); ++i) {
    pieces.list.push_back({beginnings[i], mixtral::PieceType::unused});
  }
  const Tokenizer t = value(pieces.create());
  std::vector<Token> ids;
  on_small_stack([&] {
    const auto made = t.encode(text, {false, false});
    if (made) ids.assign(made->begin(), made->end());
  });
  REQUIRE(ids.size() == 4000);
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(ids[i] == static_cast<Token>(i + 1));
}

TEST_CASE("tokenizer: broken vocabularies give errors that say what and where") {
  const auto message = [](const Pieces& pieces) -> std::string {
    const auto result = pieces.create();
    REQUIRE(!result);
    return result.error().message();
  };
  const auto contains = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(contains(message({{}, false}), "0 pieces"));
  CHECK(contains(message({{{"a", kNormal}, {"", kNormal}}, true}), "piece 1"));
  CHECK(contains(message({{{"a", kNormal}, {"a", kNormal}}, true}), "twice"));
  CHECK(contains(message({{{"<0xG1>", mixtral::PieceType::byte}}, false}), "<0xG1>"));
  CHECK(contains(message({{{"<0x01>", mixtral::PieceType::byte}, {"a", kNormal}}, false}),
                 "1 byte pieces"));
  CHECK(contains(message({{{"<0x01>", mixtral::PieceType::byte}}, true}), "<0x01>"));
  const mixtral::Model model = open(bundled_model());
  const std::vector<Token> bad = {1, -1};
  CHECK(!model.tokenizer().decode(span(bad)));
  const std::vector<Token> beyond = {static_cast<Token>(model.tokenizer().size())};
  CHECK(!model.tokenizer().decode(span(beyond)));
}

TEST_CASE("tokenizer: a byte piece is '<0x', two capital hexadecimal digits and '>', each once") {
  const auto message = [](const char* text, bool bytes_too) -> std::string {
    const auto result = Pieces{{{text, mixtral::PieceType::byte}}, bytes_too}.create();
    REQUIRE(!result);
    CHECK(result.error().code() == mixtral::ErrorCode::bad_format);
    return result.error().message();
  };
  for (const char* text : {"<0x41", "<0x41)", "<0x41>>", "0x41>", "<0X41>", "<0x4>", "<0x4a>",
                           "<0x4:>", "<0x4@>", "<0x4G>", "<0x/0>", "A", ">0x41<"}) {
    CAPTURE(text);
    CHECK(message(text, false).find("<0x00> to <0xFF>") != std::string::npos);
  }
  CHECK(message("<0x41>", true).find("<0x00> to <0xFF> once each") != std::string::npos);
  // The value is that of the digits, and the piece is found by its text.
  const Tokenizer t = value(Pieces{{}, true}.create());
  for (Token b = 0; b < 128; ++b) {
    if (b == ' ') continue;  // becomes U+2581
    CHECK(encode(t, std::string(1, static_cast<char>(b)), {false, false}) == std::vector<Token>{b});
    CHECK(decode(t, {b}, false) == std::string(1, static_cast<char>(b)));
  }
  CHECK(encode(t, "\u00E9", {false, false}) == std::vector<Token>{0xC3, 0xA9});
  CHECK(t.find("<0xAF>") == 0xAF);
}

TEST_CASE("tokenizer: byte pieces are all 256 or none") {
  Pieces pieces{{{"<unk>", kUnknown}}, false};
  std::vector<std::string> texts;
  for (unsigned b = 0; b < 256; ++b) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", b);
    pieces.list.push_back({text, mixtral::PieceType::byte});
    CHECK(bool(pieces.create()) == (b == 255));
  }
  pieces.list.resize(1);
  CHECK(pieces.create());
  // Without byte pieces there is one for what is unknown.
  const auto neither = Pieces{{{"a", kNormal}}, false}.create();
  CHECK(neither);  // token 0 stands for it
  mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
  vocabulary.pieces.push_back({"a", 0.0f, kNormal});
  for (const Token none : {-1, 1}) {
    vocabulary.unknown = none;
    const auto refused = Tokenizer::create(vocabulary, std::pmr::get_default_resource());
    REQUIRE(!refused);
    CHECK(std::string(refused.error().message()).find("neither an unknown piece nor byte pieces") !=
          std::string::npos);
  }
}

TEST_CASE("tokenizer: ids of special tokens outside the vocabulary stand for none") {
  mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
  vocabulary.pieces.push_back({"<unk>", 0.0f, kUnknown});
  vocabulary.pieces.push_back({"<s>", 0.0f, kControl});
  vocabulary.pieces.push_back({"a", 0.0f, kNormal});
  vocabulary.add_dummy_prefix = false;
  const auto made = [&] {
    return value(Tokenizer::create(vocabulary, std::pmr::get_default_resource()));
  };
  vocabulary.bos = 2;
  vocabulary.eos = 2;
  CHECK(made().bos() == 2);
  CHECK(made().eos() == 2);
  CHECK(made().add_bos());
  CHECK(encode(made(), "a", {true, true}) == std::vector<Token>{2, 2});
  vocabulary.add_bos = false;
  CHECK(!made().add_bos());
  CHECK(made().bos() == 2);
  vocabulary.add_bos = true;
  for (const Token none : {-1, 3}) {
    vocabulary.bos = vocabulary.eos = none;
    CHECK(made().bos() == mixtral::kNoToken);
    CHECK(made().eos() == mixtral::kNoToken);
    CHECK(!made().add_bos());
    CHECK(encode(made(), "a", {true, true}) == std::vector<Token>{2});
  }
  CHECK(made().contains(0));
  CHECK(made().contains(2));
  CHECK(!made().contains(3));
  CHECK(!made().contains(-1));
  CHECK(made().piece(3).text.empty());
  CHECK(made().piece(-1).type == mixtral::PieceType::unused);
  CHECK(made().piece(2).type == kNormal);
}

TEST_CASE("tokenizer: scores are numbers, infinite ones too") {
  mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
  const float infinity = std::numeric_limits<float>::infinity();
  for (const char* text : {"<unk>", "a", "b", "c"})
    vocabulary.pieces.push_back({text, 0.0f, kNormal});
  vocabulary.pieces.push_back({"ab", -infinity, kNormal});
  vocabulary.pieces.push_back({"bc", infinity, kNormal});
  vocabulary.add_dummy_prefix = false;
  CHECK(encode(value(Tokenizer::create(vocabulary, std::pmr::get_default_resource())), "abcab") ==
        std::vector<Token>{1, 5, 4});
  vocabulary.pieces[3].score = std::numeric_limits<float>::quiet_NaN();
  const auto refused = Tokenizer::create(vocabulary, std::pmr::get_default_resource());
  REQUIRE(!refused);
  CHECK(std::string(refused.error().message()).find("score of piece 3") != std::string::npos);
}

TEST_CASE(
    "tokenizer: texts of reserved pieces may be texts of ordinary ones, of their own kind never") {
  const Pieces both{{{"<unk>", kUnknown},
                     {"<s>", kControl},
                     {"<s>", kNormal},
                     {"<", kNormal},
                     {"s", kNormal},
                     {">", kNormal},
                     {"<s", kNormal}},
                    false};
  const Tokenizer t = value(both.create());
  CHECK(t.find("<s>") == 1);
  CHECK(t.find("<s") == 6);
  CHECK(t.find("s>") == mixtral::kNoToken);
  CHECK(encode(t, "<s>", {false, false}) == std::vector<Token>{2});
  CHECK(decode(t, {1, 2}, false) == "<s>");
  for (const auto type : {kUnknown, kControl, kNormal, mixtral::PieceType::user_defined,
                          mixtral::PieceType::unused}) {
    const auto refused = Pieces{{{"<unk>", kUnknown}, {"x", type}, {"x", type}}, true}.create();
    REQUIRE(!refused);
    CHECK(std::string(refused.error().message()).find("piece 2, 'x', is in the vocabulary twice") !=
          std::string::npos);
  }
  CHECK(!Pieces{{{"x", kUnknown}, {"x", kControl}}, true}.create());
  CHECK(!Pieces{{{"x", kNormal}, {"x", mixtral::PieceType::unused}}, true}.create());
}

TEST_CASE("tokenizer: of merges that are listed the first goes first, others are not done") {
  mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
  for (const char* text : {"<unk>", "a", "b", "c", "ab", "bc", "abc", "ca", "ad", "da"}) {
    vocabulary.pieces.push_back({text, 0.0f, kNormal});
  }
  vocabulary.pieces[0].type = kUnknown;
  vocabulary.add_dummy_prefix = false;
  const auto ids = [&](const char* text) {
    return encode(value(Tokenizer::create(vocabulary, std::pmr::get_default_resource())), text);
  };
  vocabulary.merges.assign({{2, 3}, {1, 2}});
  CHECK(ids("abc") == std::vector<Token>{1, 5});
  CHECK(ids("ab") == std::vector<Token>{4});
  CHECK(ids("ca") == std::vector<Token>{3, 1});  // a piece, but no merge
  // Nor can there be a merge with a character that is no piece.
  CHECK(ids("ad") == std::vector<Token>{1, 0});
  CHECK(ids("da") == std::vector<Token>{0, 1});
  vocabulary.merges.assign({{1, 2}, {2, 3}});
  CHECK(ids("abc") == std::vector<Token>{4, 3});
  // One that is listed twice has its first place.
  vocabulary.merges.assign({{1, 2}, {2, 3}, {1, 2}});
  CHECK(ids("abc") == std::vector<Token>{4, 3});
  vocabulary.merges.assign({{1, 2}, {4, 3}});
  CHECK(ids("abc") == std::vector<Token>{6});
  vocabulary.merges.assign({{1, 5}, {2, 3}});
  CHECK(ids("abc") == std::vector<Token>{6});
  const auto refused = [&](mixtral::Merge merge) {
    vocabulary.merges.assign({{1, 2}, merge});
    const auto result = Tokenizer::create(vocabulary, std::pmr::get_default_resource());
    REQUIRE(!result);
    CHECK(std::string(result.error().message()).find("merge 1") != std::string::npos);
  };
  refused({2, 1});  // "ba" is no piece
  refused({static_cast<Token>(vocabulary.pieces.size()), 2});
  refused({1, static_cast<Token>(vocabulary.pieces.size())});
  refused({-1, 2});
  vocabulary.pieces[5].type = kControl;
  refused({2, 3});  // text never becomes a control token
}

TEST_CASE("tokenizer: user-defined pieces are matched longest first and merged with nothing") {
  const Pieces pieces{{{"<unk>", kUnknown},
                       {"<a", mixtral::PieceType::user_defined},
                       {"<a>", mixtral::PieceType::user_defined},
                       {"<a>b", kNormal},
                       {"x<a", kNormal},
                       {"x", kNormal},
                       {"b", kNormal},
                       {">", kNormal},
                       {">b", kNormal}},
                      false};
  const Tokenizer t = value(pieces.create());
  const auto ids = [&](const char* text) { return encode(t, text, {false, false}); };
  CHECK(ids("<a>b") == std::vector<Token>{2, 6});
  CHECK(ids("x<ab") == std::vector<Token>{5, 1, 6});
  CHECK(ids("x<a<a>>b") == std::vector<Token>{5, 1, 2, 8});
  CHECK(ids("<a") == std::vector<Token>{1});
  CHECK(ids("<") == std::vector<Token>{0});
}

TEST_CASE("tokenizer: runs of unknown characters are one token each, however they lie") {
  const Pieces pieces{{{"<unk>", kUnknown}, {"a", kNormal}, {"ab", kNormal}, {"b", kNormal}},
                      false};
  const Tokenizer t = value(pieces.create());
  const auto ids = [&](const char* text) { return encode(t, text, {false, false}); };
  CHECK(ids("xaxx") == std::vector<Token>{0, 1, 0});
  CHECK(ids("xxabxayy") == std::vector<Token>{0, 2, 0, 1, 0});
  CHECK(ids("\u4F60\u597Db\u4F60") == std::vector<Token>{0, 3, 0});
  CHECK(ids("a") == std::vector<Token>{1});
}

TEST_CASE("tokenizer: a detokenizer takes memory once, for what longest_text() says") {
  const Pieces pieces{{{"<unk>", kUnknown}, {std::string(100, 'x'), kNormal}, {"\u2581a", kNormal}},
                      true};
  const Tokenizer t = value(pieces.create());
  mixtral::Detokenizer d(t, true, std::pmr::get_default_resource());
  CHECK(d.longest_text() >= 109);
  const std::size_t before = heap_allocations();
  std::size_t longest = 0;
  for (const Token token : {3 + 0xF0, 3 + 0x9F, 3 + 0x99, 1, 0, 2, 3 + 0xE2, 1, 3 + 'a'}) {
    longest = std::max(longest, d.push(token).size());
  }
  CHECK(heap_allocations() == before);
  CHECK(longest == 109);  // three broken bytes, then the piece
  CHECK(longest <= d.longest_text());
  // What is no token gives nothing and changes nothing.
  CHECK(d.push(3 + 0xC3).empty());
  CHECK(d.push(-1).empty());
  CHECK(d.push(static_cast<Token>(t.size())).empty());
  CHECK(d.push(3 + 0xA9) == "\u00E9");
}

TEST_CASE("tokenizer: texts that are too long are refused before anything is done" *
          needs(sizeof(std::size_t) > 4, "sizes of 64 bits")) {
  const std::size_t size = (std::size_t{1} << 30) + 1;
  // Memory that nothing writes to, and that no one reads.
  const std::unique_ptr<void, void (*)(void*)> room(std::calloc(size, 1), std::free);
  REQUIRE(room != nullptr);
  const std::string_view text(static_cast<const char*>(room.get()), size);
  const Tokenizer t = value(Pieces{{{"<unk>", kUnknown}}, true}.create());
  std::pmr::vector<Token> out = {7};
  const auto status = t.encode(text, {true, true}, out);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
  CHECK(out.size() == 1);
  // Four of it are more than the texts of a vocabulary may have.
  mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
  for (int i = 0; i < 4; ++i) vocabulary.pieces.push_back({text, 0.0f, kNormal});
  std::pmr::monotonic_buffer_resource little(1 << 16, std::pmr::null_memory_resource());
  const auto refused = Tokenizer::create(vocabulary, &little);
  REQUIRE(!refused);
  CHECK(std::string(refused.error().message()).find("texts have 4294967") != std::string::npos);
}
