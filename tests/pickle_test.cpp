// The reader of pickles: what each opcode leaves, and how what no state dict has is refused.
#include <mixtral/impl/checkpoints/pickle.hpp>

#include "support.hpp"

using namespace support;
using mixtral::detail::PickleReader;
using Kind = PickleReader::Kind;

namespace {

using namespace std::string_literals;

// A pickle that was read up to its end; its bytes are kept in a buffer of their own size.
struct Read {
  Blob pickle;
  PickleReader reader;
  PickleReader::Id root = 0;
  std::string error;
  mixtral::ErrorCode code = mixtral::ErrorCode::bad_format;

  explicit Read(const std::string& text)
      : pickle(text.begin(), text.end()),
        reader(bytes(pickle), "data.pkl", std::pmr::get_default_resource()) {
    const mixtral::Status status = reader.read(root);
    if (status) return;
    error = status.error().message();
    code = status.error().code();
    CHECK(error.find("data.pkl: pickle, at byte ") == 0);
  }
  const PickleReader::Value& value() const {
    REQUIRE(error == "");
    return reader.value(root);
  }
  const PickleReader::Value& child(std::size_t i) const {
    return reader.value(reader.child(value(), i));
  }
};

bool refused(const std::string& pickle, const std::string& why,
             mixtral::ErrorCode code = mixtral::ErrorCode::bad_format) {
  const Read read(pickle);
  INFO("the pickle " << nlohmann::json::binary(read.pickle).dump() << " gave '" << read.error
                     << "'");
  return read.error.find(why) != std::string::npos && read.code == code;
}

std::int64_t integer(const std::string& pickle) {
  const Read read(pickle);
  CHECK(read.value().kind == Kind::integer);
  return read.value().number;
}

std::string string(const std::string& pickle) {
  const Read read(pickle);
  CHECK(read.value().kind == Kind::string);
  return std::string(read.value().text);
}

}  // namespace

TEST_CASE("pickle: integers of every width; four bytes and more have a sign") {
  CHECK(integer("K\xff.") == 255);
  CHECK(integer("K\0."s) == 0);
  CHECK(integer("M\xff\xff.") == 65535);
  CHECK(integer("M\x01\x02.") == 0x0201);
  CHECK(integer("J\xff\xff\xff\xff.") == -1);
  CHECK(integer("J\xff\xff\xff\x7f.") == 2147483647);
  CHECK(integer("J\0\0\0\x80."s) == -2147483648LL);
  // LONG1: as many bytes as it says, in two's complement.
  CHECK(integer("\x8a\0."s) == 0);
  CHECK(integer("\x8a\x01\xff.") == -1);
  CHECK(integer("\x8a\x01\x7f.") == 127);
  CHECK(integer("\x8a\x02\xff\0."s) == 255);
  CHECK(integer("\x8a\x02\0\x80."s) == -32768);
  CHECK(integer("\x8a\x05\0\0\0\0\x01."s) == std::int64_t{1} << 32);
  CHECK(integer("\x8a\x07\xff\xff\xff\xff\xff\xff\x7f.") == (std::int64_t{1} << 55) - 1);
  CHECK(integer("\x8a\x07\0\0\0\0\0\0\x80."s) == -(std::int64_t{1} << 55));
  CHECK(integer("\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.") ==
        std::numeric_limits<std::int64_t>::max());
  CHECK(integer("\x8a\x08\0\0\0\0\0\0\0\x80."s) == std::numeric_limits<std::int64_t>::min());
  CHECK(refused("\x8a\x09\0\0\0\0\0\0\0\0\0."s, "an integer of 9 bytes"));
}

TEST_CASE("pickle: None, booleans, floats and strings") {
  CHECK(Read("N.").value().kind == Kind::none);
  CHECK(Read("\x88.").value().kind == Kind::boolean);
  CHECK(Read("\x88.").value().number == 1);
  CHECK(Read("\x89.").value().kind == Kind::boolean);
  CHECK(Read("\x89.").value().number == 0);
  CHECK(Read("G\x3f\xf0\0\0\0\0\0\0."s).value().kind == Kind::real);
  CHECK(string("\x8c\x02xy.") == "xy");
  CHECK(string("\x8c\0."s) == "");
  CHECK(string("\x8c\xff" + std::string(255, 'x') + ".") == std::string(255, 'x'));
  CHECK(string("X\x03\0\0\0a\0b."s) == "a\0b"s);
  CHECK(string("X\0\x01\0\0"s + std::string(256, 'y') + ".") == std::string(256, 'y'));
  CHECK(string("\x8d\x01\0\0\0\0\0\0\0z."s) == "z");
  CHECK(string("\x80\x04\x95\x05\0\0\0\0\0\0\0\x8c\x01w."s) == "w");  // PROTO, FRAME
}

TEST_CASE("pickle: a value that ends after the file is refused") {
  // Each is complete but for STOP. Without its last byte it is cut within the value.
  for (const std::string& value :
       {"\x80\x02"s, "\x95\0\0\0\0\0\0\0\0"s, "K\x01"s, "M\x01\x01"s, "J\x01\x01\x01\x01"s,
        "\x8a\x01\x01"s, "\x8a\x08\x01\x01\x01\x01\x01\x01\x01\x01"s, "\x8a\0"s,
        "G\0\0\0\0\0\0\0\0"s, "\x8c\x01x"s, "X\x02\0\0\0xy"s, "\x8d\x02\0\0\0\0\0\0\0xy"s,
        "\x8c\0"s, "X\0\0\0\0"s, "Nq\0"s, "Nr\0\0\0\0"s, "Nq\0h\0"s, "Nq\0j\0\0\0\0"s,
        "ccollections\nOrderedDict\n"s}) {
    const Read whole(value + ".");
    CHECK(
        (whole.error == "" || whole.error.find("values are left at its end") != std::string::npos));
    CHECK(refused(value, "byte " + std::to_string(value.size()) + ": it ends early"));
    CHECK(refused(value.substr(0, value.size() - 1), "it ends early"));
  }
  CHECK(refused("", "at byte 0: it ends early"));
  CHECK(refused("ccollections\nOrderedDict", "it ends early"));
  CHECK(refused("ccollections", "it ends early"));
  // Lengths that would be small again if something were added.
  CHECK(refused("X\xff\xff\xff\xffxy.", "it ends early"));
  CHECK(refused("\x8d\xff\xff\xff\xff\xff\xff\xff\xffxy.", "it ends early"));
}

TEST_CASE("pickle: tuples and lists hold the values above the mark, or as many as they say") {
  CHECK(Read(").").value().count == 0);
  CHECK(Read("].").value().kind == Kind::tuple);
  for (const std::string& pickle : {"K\x01K\x02\x86."s, "(K\x01K\x02t."s}) {
    const Read read(pickle);
    CHECK(read.value().kind == Kind::tuple);
    REQUIRE(read.value().count == 2);
    CHECK(read.child(0).number == 1);
    CHECK(read.child(1).number == 2);
  }
  const Read three("K\x01K\x02K\x03\x87.");
  REQUIRE(three.value().count == 3);
  CHECK(three.child(0).number == 1);
  CHECK(three.child(2).number == 3);
  CHECK(Read("(t.").value().count == 0);
  CHECK(Read("K\x07\x85.").child(0).number == 7);
  // The topmost of several marks counts.
  const Read nested("(K\x01(K\x02K\x03tt.");
  REQUIRE(nested.value().count == 2);
  CHECK(nested.child(0).number == 1);
  CHECK(nested.child(1).count == 2);
  CHECK(refused("\x85.", "too few values for a tuple"));
  CHECK(refused("N\x86.", "too few values for a tuple"));
  CHECK(refused("NN\x87.", "too few values for a tuple"));
  CHECK(refused("Nt.", "no mark"));
  CHECK(refused("(tt.", "no mark"));
}

TEST_CASE("pickle: items are set in pairs, on the dict below them") {
  const Read read("}(K\x01K\x02K\x03K\x04uK\x05K\x06s.");
  CHECK(read.value().kind == Kind::dict);
  const auto& entries = read.reader.dict_entries();
  REQUIRE(entries.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(entries[i].dict == read.root);
    CHECK(read.reader.value(entries[i].key).number == static_cast<int>(2 * i + 1));
    CHECK(read.reader.value(entries[i].value).number == static_cast<int>(2 * i + 2));
  }
  CHECK(Read("}(u.").reader.dict_entries().empty());
  CHECK(refused("}(K\x01u.", "too few values for a dict"));
  CHECK(refused("}(K\x01K\x02K\x03u.", "too few values for a dict"));
  CHECK(refused("(K\x01K\x02u.", "too few values for a dict"));
  CHECK(refused("(u.", "too few values for a dict"));
  CHECK(refused("}K\x01s.", "too few values for a dict"));
  CHECK(refused("K\x01K\x02s.", "too few values for a dict"));
  CHECK(refused("NK\x01K\x02s.", "items are set on what is no dict"));
  CHECK(refused("N(K\x01K\x02u.", "items are set on what is no dict"));
  CHECK(refused("}u.", "no mark"));
  // The inner dict's items are its own.
  const Read inner("}K\x01}K\x02K\x03ss.");
  REQUIRE(inner.reader.dict_entries().size() == 2);
  CHECK(inner.reader.dict_entries()[0].dict != inner.root);
  CHECK(inner.reader.dict_entries()[1].dict == inner.root);
}

TEST_CASE("pickle: what was remembered is recalled under its number") {
  // Remembered with BINPUT, LONG_BINPUT and MEMOIZE (whose number is how many there are), recalled with both.
  for (const auto& [put, get] : {std::pair<std::string, std::string>{"q\xff", "h\xff"},
                                 {"q\xff", "j\xff\0\0\0"s},
                                 {"r\0\x01\0\0"s, "j\0\x01\0\0"s},
                                 {"r\x05\0\0\0"s, "h\x05"},
                                 {"\x94", "h\0"s}}) {
    const Read read("K\x07" + put + "K\x08" + get + "\x87.");
    REQUIRE(read.value().count == 3);
    CHECK(read.child(0).number == 7);
    CHECK(read.child(1).number == 8);
    CHECK(read.child(2).number == 7);
  }
  const Read second("K\x07\x94K\x08\x94h\x01\x87.");
  CHECK(second.child(2).number == 8);
  const Read again("K\x07q\x03K\x08q\x03h\x03\x87.");
  CHECK(again.child(2).number == 8);
  CHECK(refused("h\x07.", "value 7 was never remembered"));
  CHECK(refused("Nq\x07h\x08.", "value 8 was never remembered"));
  CHECK(refused("j\0\0\0\x01."s, "value 16777216 was never remembered"));
  for (const std::string& put : {"q\0."s, "r\0\0\0\0."s, "\x94."s})
    CHECK(refused(put, "nothing to remember"));
}

TEST_CASE("pickle: a name is one that a state dict needs, or is refused with its module") {
  for (const char* name :
       {"collections OrderedDict", "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter", "torch FloatStorage", "torch HalfStorage",
        "torch BFloat16Storage", "torch DoubleStorage", "torch LongStorage", "torch IntStorage",
        "torch ShortStorage", "torch CharStorage", "torch ByteStorage", "torch BoolStorage"}) {
    CAPTURE(name);
    const std::string text = name;
    const std::string module = text.substr(0, text.find(' ')), of = text.substr(module.size() + 1);
    const auto short_string = [](const std::string& s) {
      return "\x8c" + std::string(1, static_cast<char>(s.size())) + s;
    };
    for (const std::string& pickle :
         {"c" + module + "\n" + of + "\n.", short_string(module) + short_string(of) + "\x93."}) {
      const Read read(pickle);
      CHECK(read.value().kind == Kind::global);
      CHECK(read.value().text == of);
    }
    const auto unsupported = mixtral::ErrorCode::unsupported;
    const std::string why = "which a state dict does not need; refused";
    CHECK(refused("cos\n" + of + "\n.", "it asks for 'os." + of + "', " + why, unsupported));
    CHECK(refused("c" + module + "\nsystem\n.", "it asks for '" + module + ".system', " + why,
                  unsupported));
    CHECK(refused("c" + module + "\n" + of + "2\n.", why, unsupported));
  }
  CHECK(refused("\x8c\x01x\x93.", "too few values for a name"));
  CHECK(refused("\x8c\x05torchN\x93.", "a name that is no string"));
  CHECK(
      refused("N\x8c\x0c"
              "FloatStorage\x93.",
              "a name that is no string"));
  // Long names are cut.
  CHECK(refused("c" + std::string(61, 'm') + "\n" + std::string(61, 'n') + "\n.",
                "'" + std::string(60, 'm') + "." + std::string(60, 'n') + "'",
                mixtral::ErrorCode::unsupported));
}

TEST_CASE("pickle: a call is noted with its arguments, and never done") {
  const Read read("ctorch._utils\n_rebuild_tensor_v2\nK\x07\x85R.");
  CHECK(read.value().kind == Kind::call);
  REQUIRE(read.value().count == 2);
  CHECK(read.child(0).text == "_rebuild_tensor_v2");
  CHECK(read.child(1).kind == Kind::tuple);
  CHECK(refused(")R.", "too few values for a call"));
  CHECK(refused("R.", "too few values for a call"));
  CHECK(refused("N)R.", "a call of what is no function"));
  CHECK(refused("\x8c\x0bOrderedDict)R.", "a call of what is no function"));
  CHECK(refused("ccollections\nOrderedDict\nNR.", "a call of what is no function"));
  // A call of what a call gave.
  CHECK(refused("ctorch._utils\n_rebuild_tensor_v2\n)R)R.", "a call of what is no function"));
}

TEST_CASE("pickle: an OrderedDict is made empty: arguments are refused") {
  const Read read("ccollections\nOrderedDict\n)RK\x01K\x02s.");
  CHECK(read.value().kind == Kind::dict);
  REQUIRE(read.reader.dict_entries().size() == 1);
  CHECK(read.reader.dict_entries()[0].dict == read.root);
  CHECK(refused("ccollections\nOrderedDict\n]\x85R.", "an OrderedDict with arguments"));
  CHECK(refused("ccollections\nOrderedDict\n}\x85R.", "an OrderedDict with arguments"));
}

TEST_CASE(
    "pickle: a persistent id is the value below; attributes are dropped, but only of a dict") {
  const Read read("\x8c\x07storageQ.");
  CHECK(read.value().kind == Kind::persistent);
  REQUIRE(read.value().count == 1);
  CHECK(read.child(0).text == "storage");
  CHECK(refused("Q.", "no persistent id"));
  const Read built("}K\x01K\x02s}K\x03K\x04sb.");
  CHECK(built.value().kind == Kind::dict);
  CHECK(built.reader.dict_entries()[0].dict == built.root);
  CHECK(built.reader.dict_entries()[1].dict != built.root);
  CHECK(refused("}b.", "attributes are set on what is no dict"));
  CHECK(refused("b.", "attributes are set on what is no dict"));
  CHECK(refused("N}b.", "attributes are set on what is no dict"));
}

TEST_CASE("pickle: one value is left at its end, and nothing after it is read") {
  CHECK(Read("N.\xff").value().kind == Kind::none);
  CHECK(refused(".", "0 values are left at its end"));
  CHECK(refused("NN.", "2 values are left at its end"));
  CHECK(refused("}(.", "2 values are left at its end"));
}

TEST_CASE(
    "pickle: every opcode that a state dict does not need is refused with its number and place") {
  const std::string known =
      ".\x80\x95N\x88\x89KMJ\x8aG\x8cX\x8d})]\x85\x86\x87(tusqr\x94hjc\x93QRb";
  for (int opcode = 0; opcode < 256; ++opcode) {
    const char c = static_cast<char>(opcode);
    if (known.find(c) != std::string::npos) continue;
    char expected[64];
    std::snprintf(expected, sizeof expected, "at byte 1: the opcode 0x%02x, which",
                  static_cast<unsigned>(opcode));
    CHECK(refused("N" + std::string(1, c) + ".", expected, mixtral::ErrorCode::unsupported));
  }
}

TEST_CASE("pickle: it may have four million values, and as many places in tuples, but no more") {
  constexpr std::size_t kMost = 4'000'000;
  const auto repeated = [](const std::string& text, std::size_t n) {
    std::string out;
    out.reserve(n * text.size() + 10);
    for (std::size_t i = 0; i < n; ++i) out += text;
    return out;
  };
  // Attributes of a dict, dropped one after the other.
  std::string many = "}" + repeated("Nb", kMost - 1);
  CHECK(Read(many + ".").error == "");
  CHECK(refused(many + "Nb.", "it has more than 4000000 values"));
  // One tuple of a value that is recalled again and again.
  many = "(Nq\0"s + repeated("h\0"s, kMost - 1);
  CHECK(Read(many + "t.").error == "");
  CHECK(refused(many + "h\0t."s, "it has more than 4000000 values"));
}
