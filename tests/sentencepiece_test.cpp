// SentencePiece's file format, field by field and limit by limit, and what the sentencepiece library makes of
// small models.
#include "support.hpp"

#include <cstdlib>

using namespace support;
using mixtral::ErrorCode;
using mixtral::PieceType;
using mixtral::Token;
using mixtral::Tokenizer;

namespace {

// Writes one message of a protocol buffer (protobuf.dev, "Encoding").
struct Message {
  std::string bytes;

  Message& varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
    bytes += static_cast<char>(value);
    return *this;
  }
  Message& tag(unsigned field, unsigned wire_type) { return varint(field << 3 | wire_type); }
  Message& number(unsigned field, std::uint64_t value) { return tag(field, 0).varint(value); }
  Message& text(unsigned field, const std::string& value) {
    tag(field, 2).varint(value.size());
    bytes += value;
    return *this;
  }
  Message& message(unsigned field, const Message& value) { return text(field, value.bytes); }
  Message& real(unsigned field, float value) {
    tag(field, 5);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  // Fields of every wire type that no version of the format has.
  Message& strangers() {
    number(990, 300).text(991, "stranger").real(992, 1.0f).tag(993, 1);
    bytes.append(8, '\x7F');
    return *this;
  }
};

Message piece_message(const std::string& text, float score, std::uint64_t type) {
  return Message().text(1, text).real(2, score).number(3, type);
}

// The least that a trainer_spec has to say: model_type BPE.
Message trainer() { return Message().number(3, 2); }

Message three_pieces() {
  Message model;
  model.message(1, piece_message("<unk>", 0.0f, 2));
  model.message(1, piece_message("<s>", 0.0f, 3));
  return model.message(1, piece_message("</s>", 0.0f, 3));
}

mixtral::Result<Tokenizer> read(const std::string& bytes) {
  return Tokenizer::from_sentencepiece(
      {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}
mixtral::Result<Tokenizer> read(const Message& model) { return read(model.bytes); }

void check_refused(const Message& model, const char* part, ErrorCode code = ErrorCode::bad_format) {
  CAPTURE(part);
  const auto result = read(model);
  REQUIRE(!result);
  CAPTURE(result.error().message());
  CHECK(result.error().code() == code);
  CHECK(std::string(result.error().message()).find(part) != std::string::npos);
}

std::vector<Token> encode(const Tokenizer& tokenizer, const char* text,
                          mixtral::EncodeOptions options = {}) {
  const auto tokens = value(tokenizer.encode(text, options));
  return {tokens.begin(), tokens.end()};
}

std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& tokens) {
  return std::string(value(tokenizer.decode(span(tokens))));
}

// A piece for each branch of encoding and decoding: several spaces in a piece, one that is unused, and
// user-defined ones with and without a space.
Message small_model(bool with_bytes) {
  const std::pair<const char*, int> pieces[] = {
      {"<unk>", 2}, {"<s>", 3},    {"</s>", 3},    {"\u2581", 1},       {"a", 1},
      {"b", 1},     {"c", 1},      {"ab", 1},      {"\u2581a", 1},      {"\u2581ab", 1},
      {"bc", 1},    {"abc", 1},    {"<tool>", 4},  {"\u2581\u2581", 1}, {"ca", 1},
      {"cab", 5},   {"\u00E9", 1}, {"b\u2581", 1}, {"\u2581user", 4}};
  Message model;
  float score = 0.0f;
  for (const auto& [text, type] : pieces) {
    model.message(1, piece_message(text, score, static_cast<std::uint64_t>(type)));
    score -= 1.0f;
  }
  for (unsigned b = 0; b < 256 && with_bytes; ++b) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", b);
    model.message(1, piece_message(text, 0.0f, 6));
  }
  return model.message(2, trainer());
}

}  // namespace

TEST_CASE("sentencepiece: small models encode and decode as the sentencepiece library does") {
  struct Coding {
    const char* text;
    std::vector<Token> ids;
    const char* decoded;
  };
  struct Decoding {
    std::vector<Token> ids;
    const char* text;
  };
  struct Variant {
    bool with_bytes, add_dummy_prefix, remove_extra_whitespaces;
    std::vector<Coding> codings;
    std::vector<Decoding> decodings;
  };
  // The ids and texts are the output of the Python package sentencepiece 0.2.3 for these very models.
  const std::vector<Variant> variants = {
      {false,
       true,
       true,
       {{"", {}, ""},
        {" ", {}, ""},
        {"a", {8}, "a"},
        {" a", {8}, "a"},
        {"   a  b  ", {8, 3, 5}, "a b"},
        {" ab\n ", {9, 0}, "ab \u2047 "},
        {"  ", {}, ""},
        {"xay", {3, 0, 4, 0}, " \u2047 a \u2047 "},
        {"x a xx", {3, 0, 8, 3, 0}, " \u2047  a  \u2047 "},
        {"cab", {3, 6, 7}, "cab"},
        {"abcab", {9, 6, 7}, "abcab"},
        {"a\u2581", {8}, "a"},
        {"\u2581\u2581ab", {13, 9}, "  ab"},
        {"a<tool>b", {8, 12, 5}, "a<tool>b"},
        {"x<tool>y <tool>", {3, 0, 12, 0, 3, 12}, " \u2047 <tool> \u2047  <tool>"},
        {"\u4F60\u597Da", {3, 0, 4}, " \u2047 a"},
        {"b user  user", {3, 5, 18, 18}, "b user user"},
        {" \u00E9  \u00E9 ", {3, 16, 3, 16}, "\u00E9 \u00E9"}},
       {{{3}, ""},
        {{3, 3, 4}, "a"},
        {{1, 3, 4}, "a"},
        {{3, 1, 3, 4}, "a"},
        {{13, 4}, " a"},
        {{13, 3, 9}, "   ab"},
        {{12, 3, 4}, "<tool> a"},
        {{0, 3, 4}, " \u2047  a"},
        {{2, 9, 2, 9}, "ab ab"},
        {{4, 0, 5}, "a \u2047 b"},
        {{18, 17, 3}, "userb  "},
        {{3, 0}, " \u2047 "}}},
      {false,
       true,
       false,
       {{"", {}, ""},
        {" ", {13}, " "},
        {"a", {8}, "a"},
        {" a", {3, 8}, " a"},
        {"   a  b  ", {13, 3, 8, 13, 5, 13}, "   a  b  "},
        {" ab\n ", {3, 9, 0, 3}, " ab \u2047  "},
        {"  ", {13, 3}, "  "},
        {"xay", {3, 0, 4, 0}, " \u2047 a \u2047 "},
        {"x a xx", {3, 0, 8, 3, 0}, " \u2047  a  \u2047 "},
        {"cab", {3, 6, 7}, "cab"},
        {"abcab", {9, 6, 7}, "abcab"},
        {"a\u2581", {8, 3}, "a "},
        {"\u2581\u2581ab", {13, 9}, "  ab"},
        {"a<tool>b", {8, 12, 5}, "a<tool>b"},
        {"x<tool>y <tool>", {3, 0, 12, 0, 3, 12}, " \u2047 <tool> \u2047  <tool>"},
        {"\u4F60\u597Da", {3, 0, 4}, " \u2047 a"},
        {"b user  user", {3, 5, 18, 3, 18}, "b user  user"},
        {" \u00E9  \u00E9 ", {13, 16, 13, 16, 3}, " \u00E9  \u00E9 "}},
       {{{3}, ""},
        {{3, 3, 4}, " a"},
        {{1, 3, 4}, "a"},
        {{3, 1, 3, 4}, " a"},
        {{13, 4}, " a"},
        {{13, 3, 9}, "   ab"},
        {{12, 3, 4}, "<tool> a"},
        {{0, 3, 4}, " \u2047  a"},
        {{2, 9, 2, 9}, "ab ab"},
        {{4, 0, 5}, "a \u2047 b"},
        {{18, 17, 3}, "userb  "},
        {{3, 0}, " \u2047 "}}},
      {false,
       false,
       true,
       {{"", {}, ""},
        {" ", {}, ""},
        {"a", {4}, "a"},
        {" a", {4}, "a"},
        {"   a  b  ", {4, 3, 5}, "a b"},
        {" ab\n ", {7, 0}, "ab \u2047 "},
        {"  ", {}, ""},
        {"xay", {0, 4, 0}, " \u2047 a \u2047 "},
        {"x a xx", {0, 8, 3, 0}, " \u2047  a  \u2047 "},
        {"cab", {6, 7}, "cab"},
        {"abcab", {11, 7}, "abcab"},
        {"a\u2581", {4}, "a"},
        {"\u2581\u2581ab", {3, 9}, "ab"},
        {"a<tool>b", {4, 12, 5}, "a<tool>b"},
        {"x<tool>y <tool>", {0, 12, 0, 3, 12}, " \u2047 <tool> \u2047  <tool>"},
        {"\u4F60\u597Da", {0, 4}, " \u2047 a"},
        {"b user  user", {5, 18, 18}, "b user user"},
        {" \u00E9  \u00E9 ", {16, 3, 16}, "\u00E9 \u00E9"}},
       {{{3}, ""},
        {{3, 3, 4}, "a"},
        {{1, 3, 4}, "a"},
        {{3, 1, 3, 4}, "a"},
        {{13, 4}, " a"},
        {{13, 3, 9}, "   ab"},
        {{12, 3, 4}, "<tool> a"},
        {{0, 3, 4}, " \u2047  a"},
        {{2, 9, 2, 9}, "ab ab"},
        {{4, 0, 5}, "a \u2047 b"},
        {{18, 17, 3}, "userb  "},
        {{3, 0}, " \u2047 "}}},
      {false,
       false,
       false,
       {{"", {}, ""},
        {" ", {3}, " "},
        {"a", {4}, "a"},
        {" a", {8}, " a"},
        {"   a  b  ", {13, 8, 13, 5, 13}, "   a  b  "},
        {" ab\n ", {9, 0, 3}, " ab \u2047  "},
        {"  ", {13}, "  "},
        {"xay", {0, 4, 0}, " \u2047 a \u2047 "},
        {"x a xx", {0, 8, 3, 0}, " \u2047  a  \u2047 "},
        {"cab", {6, 7}, "cab"},
        {"abcab", {11, 7}, "abcab"},
        {"a\u2581", {4, 3}, "a "},
        {"\u2581\u2581ab", {3, 9}, "  ab"},
        {"a<tool>b", {4, 12, 5}, "a<tool>b"},
        {"x<tool>y <tool>", {0, 12, 0, 3, 12}, " \u2047 <tool> \u2047  <tool>"},
        {"\u4F60\u597Da", {0, 4}, " \u2047 a"},
        {"b user  user", {5, 18, 3, 18}, "b user  user"},
        {" \u00E9  \u00E9 ", {3, 16, 13, 16, 3}, " \u00E9  \u00E9 "}},
       {{{3}, " "},
        {{3, 3, 4}, "  a"},
        {{1, 3, 4}, " a"},
        {{3, 1, 3, 4}, "  a"},
        {{13, 4}, "  a"},
        {{13, 3, 9}, "    ab"},
        {{12, 3, 4}, "<tool> a"},
        {{0, 3, 4}, " \u2047  a"},
        {{2, 9, 2, 9}, " ab ab"},
        {{4, 0, 5}, "a \u2047 b"},
        {{18, 17, 3}, " userb  "},
        {{3, 0}, "  \u2047 "}}},
      {true,
       true,
       false,
       {{"xay", {3, 139, 4, 140}, "xay"},
        {"\u4F60a", {3, 247, 208, 179, 4}, "\u4F60a"},
        {"cabx", {3, 6, 7, 139}, "cabx"},
        {" \u00E9\U0001F600 ", {13, 16, 259, 178, 171, 147, 3}, " \u00E9\U0001F600 "},
        {"a<tool>x", {8, 12, 139}, "a<tool>x"}},
       {{{245, 169, 148, 9}, "\u2581 ab"},
        {{51, 3, 4}, "  a"},
        {{3, 245, 3, 4}, "\uFFFD a"},
        {{274, 9}, "\uFFFD ab"},
        {{3, 84, 9}, "A ab"},
        {{1, 3, 214, 188, 3}, "\u00E9 "},
        {{259, 0, 178}, "\uFFFD \u2047 \uFFFD"},
        {{0, 9}, " \u2047  ab"}}}};
  for (const Variant& variant : variants) {
    CAPTURE(variant.with_bytes);
    CAPTURE(variant.add_dummy_prefix);
    CAPTURE(variant.remove_extra_whitespaces);
    Message model = small_model(variant.with_bytes);
    model.message(3, Message()
                         .number(3, variant.add_dummy_prefix ? 1 : 0)
                         .number(4, variant.remove_extra_whitespaces ? 1 : 0));
    const Tokenizer t = value(read(model));
    CHECK(t.add_dummy_prefix() == variant.add_dummy_prefix);
    CHECK(t.remove_extra_whitespaces() == variant.remove_extra_whitespaces);
    for (const Coding& coding : variant.codings) {
      CAPTURE(coding.text);
      CHECK(encode(t, coding.text) == coding.ids);
      CHECK(decode(t, coding.ids) == coding.decoded);
    }
    for (const Decoding& decoding : variant.decodings) {
      CAPTURE(decoding.ids);
      CHECK(decode(t, decoding.ids) == decoding.text);
      mixtral::Detokenizer one_by_one(t, true, std::pmr::get_default_resource());
      std::string text;
      for (const Token token : decoding.ids) text += one_by_one.push(token);
      text += one_by_one.finish();
      CHECK(text == decoding.text);
    }
  }
}

TEST_CASE("sentencepiece: pairs of equal score are merged from the left") {
  Message model = three_pieces();
  for (const char* text : {"a", "b", "ab", "ba", "aa", "aba"}) {
    model.message(1, piece_message(text, 0.0f, 1));
  }
  model.message(2, trainer()).message(3, Message().number(3, 0).number(4, 0));
  const Tokenizer t = value(read(model));
  // The ids are the output of the Python package sentencepiece 0.2.3.
  CHECK(encode(t, "aba") == std::vector<Token>{8});
  CHECK(encode(t, "bab") == std::vector<Token>{6, 4});
  CHECK(encode(t, "aaa") == std::vector<Token>{7, 3});
  CHECK(encode(t, "aaaab") == std::vector<Token>{7, 7, 4});
  CHECK(encode(t, "abab") == std::vector<Token>{8, 4});
  CHECK(encode(t, "baab") == std::vector<Token>{6, 5});
}

TEST_CASE("sentencepiece: fields that are absent have the defaults of sentencepiece_model.proto") {
  // Without normalizer_spec: a space before the text, extra spaces removed.
  const Tokenizer t = value(read(small_model(false)));
  CHECK(t.add_dummy_prefix());
  CHECK(t.remove_extra_whitespaces());
  CHECK(t.unknown() == 0);
  CHECK(t.bos() == 1);
  CHECK(t.eos() == 2);
  CHECK(t.add_bos());
  CHECK(decode(t, {4, 0, 5}) == "a \u2047 b");
  const Tokenizer empty_spec = value(read(small_model(false).message(3, Message())));
  CHECK(empty_spec.add_dummy_prefix());
  CHECK(empty_spec.remove_extra_whitespaces());
  // A piece without type is a normal one, and one without score has 0.
  Message model = three_pieces().message(1, Message().text(1, "a")).message(2, trainer());
  const Tokenizer plain = value(read(model));
  CHECK(plain.piece(3).type == PieceType::normal);
  CHECK(plain.piece(3).score == 0.0f);
  // A trainer_spec without model_type is one of a unigram model.
  check_refused(three_pieces().message(2, Message()), "model_type 1", ErrorCode::unsupported);
}

TEST_CASE("sentencepiece: every field that is read has its number, and others are skipped") {
  Message model = Message().strangers();
  model.message(2, trainer().number(40, 3).number(41, 0).number(42, 1).text(44, "!!").strangers());
  model.message(
      3,
      Message().text(1, "identity").text(2, "").number(3, 0).number(4, 0).number(5, 1).strangers());
  model.message(1, piece_message("<s>", -1.5f, 3).strangers());
  model.message(1, piece_message("</s>", -2.5f, 3)).strangers();
  model.message(1, piece_message("x", -3.5f, 5));
  model.message(1, piece_message("<unk>", -4.5f, 2));
  model.message(1, piece_message("<y>", -5.5f, 4));
  const Tokenizer t = value(read(model));
  REQUIRE(t.size() == 5);
  CHECK(t.unknown() == 3);
  CHECK(t.bos() == 0);
  CHECK(t.eos() == 1);
  CHECK(!t.add_dummy_prefix());
  CHECK(!t.remove_extra_whitespaces());
  CHECK(decode(t, {3, 4}) == "!!<y>");
  for (Token i = 0; i < 5; ++i) CHECK(t.piece(i).score == -1.5f - static_cast<float>(i));
  CHECK(t.piece(0).type == PieceType::control);
  CHECK(t.piece(2).type == PieceType::unused);
  CHECK(t.piece(3).type == PieceType::unknown);
  CHECK(t.piece(4).type == PieceType::user_defined);
  // An id of -1, which protocol buffers write as 2^64 - 1 in ten bytes, stands for none.
  const std::uint64_t none = ~std::uint64_t{0};
  const Tokenizer without =
      value(read(three_pieces().message(2, trainer().number(41, none).number(42, none))));
  CHECK(without.bos() == mixtral::kNoToken);
  CHECK(without.eos() == mixtral::kNoToken);
  CHECK(!without.add_bos());
  CHECK(encode(without, "", {true, true}).empty());
}

TEST_CASE(
    "sentencepiece: the surface of an unknown piece is given out whole, whatever its length") {
  for (const std::string& surface : {std::string(), std::string("?"), std::string(32, 'x'),
                                     std::string(33, 'x'), std::string(500, 'x') + "\u00E9"}) {
    CAPTURE(surface);
    Message model = small_model(false);
    model.message(2, trainer().text(44, surface));
    const Tokenizer t = value(read(model));
    CHECK(decode(t, {4, 0, 5}) == "a" + surface + "b");
    const mixtral::Detokenizer detokenizer(t, true, std::pmr::get_default_resource());
    CHECK(detokenizer.longest_text() >= surface.size());
  }
}

TEST_CASE("sentencepiece: types of pieces are 1 to 6") {
  const auto with_type = [](std::uint64_t type) {
    return three_pieces().message(1, piece_message("x", 0.0f, type)).message(2, trainer());
  };
  check_refused(with_type(0), "piece 3 has the unknown type 0");
  for (std::uint64_t type = 1; type <= 5; ++type) {
    const Tokenizer t = value(read(with_type(type)));
    CHECK(t.piece(3).type == static_cast<PieceType>(type));
  }
  CHECK(value(read(small_model(true))).piece(19).type == PieceType::byte);
  check_refused(with_type(7), "piece 3 has the unknown type 7");
  check_refused(with_type((std::uint64_t{1} << 32) + 1), "unknown type");
}

TEST_CASE("sentencepiece: what changes how text is read and is not supported is refused by name") {
  for (const std::uint64_t type : {0u, 1u, 3u, 4u}) {
    check_refused(three_pieces().message(2, Message().number(3, type)), "model_type",
                  ErrorCode::unsupported);
  }
  const auto with_suffix = [](std::uint64_t flag) {
    return three_pieces().message(2, trainer().number(24, flag));
  };
  CHECK(read(with_suffix(0)));
  check_refused(with_suffix(1), "treat_whitespace_as_suffix", ErrorCode::unsupported);
  const auto with_rules = [](const std::string& rules) {
    return three_pieces().message(2, trainer()).message(3, Message().text(2, rules));
  };
  CHECK(read(with_rules("")));
  check_refused(with_rules("r"), "precompiled_charsmap", ErrorCode::unsupported);
  const auto with_escapes = [](std::uint64_t flag) {
    return three_pieces().message(2, trainer()).message(3, Message().number(5, flag));
  };
  CHECK(read(with_escapes(1)));
  check_refused(with_escapes(0), "escape_whitespaces", ErrorCode::unsupported);
}

TEST_CASE("sentencepiece: a model has pieces and a trainer_spec") {
  CHECK(read(three_pieces().message(2, trainer())));
  check_refused(three_pieces(), "no trainer_spec");
  check_refused(Message().message(2, trainer()), "no pieces");
  check_refused(Message(), "no pieces");
}

TEST_CASE("sentencepiece: a file that ends within a field, at any level, is refused") {
  Message model = Message().message(2, trainer().text(44, "?")).message(3, Message().number(3, 0));
  std::vector<std::size_t> ends;  // of pieces, where the file may end
  for (const Message& piece : {piece_message("<unk>", 0.0f, 2), piece_message("a", 0.0f, 1)}) {
    model.message(1, piece);
    ends.push_back(model.bytes.size());
  }
  for (std::size_t size = 0; size <= model.bytes.size(); ++size) {
    CAPTURE(size);
    const bool may_end = std::find(ends.begin(), ends.end(), size) != ends.end();
    CHECK(bool(read(model.bytes.substr(0, size))) == may_end);
  }
  // The length of a message, and of what is within it, reaches to the end of the outer one at most.
  const auto cut = [](const Message& message) {
    return Message{message.bytes.substr(0, message.bytes.size() - 1)};
  };
  check_refused(three_pieces().message(2, trainer()).message(1, cut(Message().text(1, "abc"))),
                "in a piece");
  check_refused(three_pieces().message(2, trainer()).message(1, cut(Message().real(2, 1.0f))),
                "in a piece");
  check_refused(three_pieces().message(2, cut(trainer().text(44, "abc"))), "in the trainer_spec");
  check_refused(three_pieces().message(2, cut(trainer())), "in the trainer_spec");
  check_refused(three_pieces().message(2, trainer()).message(3, cut(Message().number(3, 300))),
                "in the normalizer_spec");
  check_refused(cut(three_pieces().message(2, trainer()).text(991, "abc")), "in the model");
  check_refused(cut(three_pieces().message(2, trainer()).real(992, 1.0f)), "in the model");
  Message eight = three_pieces().message(2, trainer()).tag(993, 1);
  eight.bytes.append(7, '\0');
  check_refused(eight, "in the model");
  eight.bytes += '\0';
  CHECK(read(eight));
  // A length of 2^64 - 1 is no length.
  check_refused(three_pieces().message(2, trainer()).tag(991, 2).varint(~std::uint64_t{0}),
                "in the model");
}

TEST_CASE("sentencepiece: wire types are 0, 1, 2 and 5; groups and others are refused") {
  for (unsigned type = 0; type < 8; ++type) {
    CAPTURE(type);
    Message model = three_pieces().message(2, trainer()).tag(99, type);
    // Enough for each type: a number, eight bytes, an empty text followed by numbers, four bytes and these.
    if (type == 0 || type == 2) model.bytes += '\0';
    if (type == 1) model.bytes.append(8, '\0');
    if (type == 5) model.bytes.append(4, '\0');
    CHECK(bool(read(model)) == (type == 0 || type == 1 || type == 2 || type == 5));
  }
}

TEST_CASE("sentencepiece: a number has ten bytes at most") {
  Message ten = three_pieces().message(2, trainer()).tag(99, 0);
  ten.bytes.append(9, '\xFF');
  Message eleven = ten;
  ten.bytes += '\x01';
  CHECK(read(ten));
  eleven.bytes += "\xFF\x01";
  check_refused(eleven, "in the model");
}

TEST_CASE("sentencepiece: a score of another wire type than a float's is none") {
  Message piece = Message().text(1, "x").tag(2, 1);
  piece.bytes.append(8, '\x3F');
  const Tokenizer t = value(read(three_pieces().message(1, piece).message(2, trainer())));
  CHECK(t.piece(3).score == 0.0f);
}
