// Grammars, regular expressions and choices: which texts they take, and what is refused.
#include "grammars.hpp"
#include "small_stack.hpp"

using namespace support;

TEST_CASE("grammar: what GBNF takes") {
  const Feeder feeder;
  struct Case {
    const char* grammar;
    std::vector<const char*> whole, begins, dead;
  };
  const std::vector<Case> cases = {
      {"root ::= \"a\"", {"a"}, {""}, {"b", "aa"}},
      {"root ::= \"\"", {""}, {}, {"a"}},
      {"root ::=\n", {""}, {}, {"a"}},
      {"root ::= | \"x\" |", {"", "x"}, {}, {"xx"}},
      {"root ::= \"ab\" | \"ac\" # comment | \"ad\"", {"ab", "ac"}, {"", "a"}, {"ad", "b"}},
      {"root ::= \"ab\"\n  | \"ac\"\n  # comment\n  | \"ad\"\n", {"ad", "ac"}, {"a"}, {"ae"}},
      {"root ::= [a-cx] [^a-c] .", {"adz", "x\n\n"}, {"a", "xx"}, {"d", "ab"}},
      {"root ::= \"\\\"\\\\\\n\\r\\t\\x41\\u00e9\\U0001F600\"",
       {"\"\\\n\r\tA\xC3\xA9\xF0\x9F\x98\x80"},
       {"\"", "\"\\\n\r\tA\xC3"},
       {"\\"}},
      {"root ::= [\\]\\-\\^\\\\-] [-a]", {"]-", "^a", "\\-", "--"}, {}, {"a", "[a"}},
      {"root ::= \"a\"* \"b\"+ \"c\"?", {"b", "aabbc", "abb"}, {"", "aa"}, {"ac", "bcc"}},
      {"root ::= \"a\"{2} \"b\"{1,} \"c\"{,2} \"d\"{0,1}{2}",
       {"aab", "aabbcc", "aabcdd"},
       {"a", "aa"},
       {"b", "aaab", "aabccc", "aabcddd"}},
      {"root ::= (\"a\" | \"bc\"){2,3}", {"aa", "abc", "bcbcbc"}, {"a", "ab"}, {"aaaa", "c"}},
      {"root ::= (\"x\"\n \"y\" # what\n | z\n) end\nz ::= \"z\"\nend ::= \".\"\n",
       {"xy.", "z."},
       {"x", "z"},
       {"y"}},
      {"root ::= ((\"\" | \"a\")* (\"\")*)* \"b\"", {"b", "aab"}, {"", "aa"}, {"ba", "c"}},
      {"root ::= \"(\" root \")\" | \"[\" root \"]\" | \"\"",
       {"", "()", "([()])"},
       {"([", "("},
       {")", "(]", "()()"}},
      // Ambiguous, and with empty rules everywhere.
      {"root ::= e a e a e\na ::= \"a\" | \"aa\" | e \"a\" e\ne ::= \"\" | \" \" e",
       {"aa", "aaa", "aaaa", " a  a "},
       {"a", " "},
       {"aaaaa", "b"}},
      {"root ::= [\\u00e0-\\u07ff\\u4e00-\\U00010fff]",
       {"\xC3\xA9", "\xDF\xBF", "\xE4\xB8\x80", "\xF0\x90\xBF\xBF", "\xEF\xBF\xBF"},
       {"\xC3", "\xE4\xB8"},
       {"\xC3\x9F", "\xE0", "\xF0\x91", "\xED\xA0", "a"}},
      {"root ::= [^\\x00-\\x7f]",
       {"\xC2\x80", "\xF4\x8F\xBF\xBF"},
       {"\xED"},
       {"\xED\xA0", "\xF4\x90", "\xC0", "\xFF", "a"}},
      {"root ::= a-1_B\r\na-1_B ::= \"x\"\r\n", {"x"}, {""}, {"y"}},
      {"root ::= list\nlist ::= item (\",\" item)*\nitem ::= [0-9]+ | \"<\" list \">\"",
       {"1", "1,22", "<1,<2>>,3"},
       {"1,", "<", "<1"},
       {",", "1,,", ">"}},
  };
  for (const Case& one : cases) {
    CAPTURE(one.grammar);
    const Grammar grammar = gbnf(one.grammar);
    for (const char* text : one.whole) {
      CAPTURE(text);
      CHECK(feeder.match(grammar, text) == Match::whole);
    }
    for (const char* text : one.begins) {
      CAPTURE(text);
      CHECK(feeder.match(grammar, text) == Match::begins);
    }
    for (const char* text : one.dead) {
      CAPTURE(text);
      CHECK(feeder.match(grammar, text) == Match::dead);
    }
  }
}

TEST_CASE("grammar: what is wrong with GBNF is told with its line") {
  const auto refused = [](const char* text, const char* part) {
    CAPTURE(text);
    check_refused(Grammar::from_gbnf(text), part);
  };
  refused("", "'root'");
  refused("a ::= \"b\"", "'root'");
  refused("root ::= b\n", "line 1: rule 'b' is used but not defined");
  refused("root ::= \"a\"\nroot ::= \"b\"", "line 2: a rule is defined twice");
  refused("root = \"a\"", "::=");
  refused("\n\n ::= \"a\"", "line 3: expected the name");
  refused("root ::= \"a", "no end");
  refused("root ::= \"a\nb\"", "no end");
  refused("root ::= [a", "no end");
  refused("root ::= []", "no characters");
  refused("root ::= [^\\x00-\\U0010ffff]", "no characters");
  refused("root ::= [b-a]", "before it begins");
  refused("root ::= (\"a\"", "expected )");
  refused("root ::= \"a\")", "expected the end");
  refused("root ::= *", "expected the end");
  refused("root ::= \"a\"{", "number");
  refused("root ::= \"a\"{,}", "number");
  refused("root ::= \"a\"{3,2}", "more than at most");
  refused("root ::= \"a\"{1000000}", "below 100000");
  refused("root ::= \"a\"{2", "expected }");
  refused("root ::= \"\\q\"", "unknown escape");
  refused("root ::= \"\\x4\"", "hexadecimal");
  refused("root ::= \"\\ud800\"", "no Unicode");
  refused("root ::= \"\\U00110000\"", "10FFFF");
  refused("root ::= \"\\Uffffffff\"", "10FFFF");
  refused("root ::= \"\xFF\"", "UTF-8");
  refused("root ::= <[1000]>", "tokens in grammars");
  refused("root ::= root \"a\" | \"b\"", "left recursion");
  refused("root ::= e a\ne ::= \" \"*\na ::= (b | \"x\") \"y\"\nb ::= e e a\n", "left recursion");
  refused("root ::= \"a\" root", "never comes to an end");
  refused("root ::= \"a\" | b\nb ::= \"c\" b", "'b' never comes");
  refused(("root ::= " + std::string(100000, '(')).c_str(), "deep");
  refused(("root ::= \"a\"" + std::string(100000, '*')).c_str(), "repetitions");
  check_refused(Grammar::from_gbnf("root ::= (((\"a\"{9999}){9999}){9999}){9999}"), "too large",
                ErrorCode::unsupported);
  check_refused(Grammar::from_gbnf("root ::= (((\"\"{9999}){9999}){9999}){9999}"), "too large",
                ErrorCode::unsupported);
  std::string many;
  for (int i = 0; i < 20000; ++i) many += "r" + std::to_string(i) + " ::= \"a\"\n";
  check_refused(Grammar::from_gbnf(many), "rules", ErrorCode::unsupported);
}

TEST_CASE("grammar: regular expressions take what std::regex takes") {
  const Feeder feeder;
  const char* patterns[] = {"a",
                            "",
                            "ab|cd|",
                            "a*b+c?",
                            "(ab)*",
                            "(?:a|b){2,3}c",
                            "[a-c]+[^a-c]",
                            "\\d{2}-\\d{2}",
                            "\\w+\\s\\W",
                            "a.c",
                            "^ab$",
                            "^a|b$",
                            "[\\d\\-a]*",
                            "\\.\\*\\(",
                            "(a(b(c)?)?)?",
                            "a{0,2}?b",
                            "[]a]?",
                            "\\x61\\u0062",
                            "(a|ab)(c|bcd)(d*)",
                            "\\D\\S",
                            "(a*)*b",
                            "[.*+]+"};
  const std::string alphabet = "abcd-1 .*(\n]";
  std::mt19937 random(5);
  for (const char* pattern : patterns) {
    CAPTURE(pattern);
    // ECMAScript has [] as the empty set; std::regex and this test's ']' first are apart.
    if (std::string(pattern) == "[]a]?") {
      check_refused(Grammar::from_regex(pattern), "no characters");
      continue;
    }
    GrammarMatcher matcher = feeder.matcher(value(Grammar::from_regex(pattern)));
    const std::regex expected(pattern);
    std::vector<std::string> texts = {"",     "ab", "cd",   "abab", "ac",  "11-11", "abc",   ".*(",
                                      "abcd", "b",  "a b.", "aab",  "1a-", "b",     "abbcd", "*.+"};
    for (int i = 0; i < 300; ++i) {
      std::string text(random() % 6, ' ');
      for (char& c : text) c = alphabet[random() % alphabet.size()];
      texts.push_back(text);
    }
    for (const std::string& text : texts) {
      CAPTURE(text);
      CHECK((feeder.match(matcher, text) == Match::whole) == std::regex_match(text, expected));
    }
  }
}

TEST_CASE("grammar: regular expressions in Unicode, and what is not supported") {
  const Feeder feeder;
  const auto whole = [&](const char* pattern, const char* text) {
    CAPTURE(pattern);
    CAPTURE(text);
    return feeder.match(value(Grammar::from_regex(pattern)), text) == Match::whole;
  };
  CHECK(whole(".", "\xC3\xA9"));
  CHECK(!whole(".", "\xC3"));
  CHECK(!whole(".", "\xE2\x80\xA8"));  // U+2028
  CHECK(whole("[\xC3\xA0-\xC3\xBC]+", "\xC3\xA9\xC3\xA8"));
  CHECK(whole("\\u{1F600}|\\ud83d\\ude01", "\xF0\x9F\x98\x81"));
  CHECK(whole("\\s", "\xE3\x80\x80"));  // U+3000
  CHECK(!whole("\\S", "\xE3\x80\x80"));
  CHECK(whole("(?<year>\\d{4})", "2026"));
  const auto refused = [](const char* pattern, const char* part,
                          ErrorCode code = ErrorCode::unsupported) {
    CAPTURE(pattern);
    check_refused(Grammar::from_regex(pattern), part, code);
  };
  refused("a(?=b)", "lookaround");
  refused("(?<!a)b", "lookaround");
  refused("(a)\\1", "references");
  refused("\\bfoo", "\\b");
  refused("\\p{L}", "\\p");
  refused("(?i)a", "flags");
  refused("a^b", "^");
  refused("(a$)", "$");
  refused("a$b", "$");
  refused("a**", "nothing to repeat", ErrorCode::bad_format);
  refused("*a", "nothing to repeat", ErrorCode::bad_format);
  refused("a|*", "nothing to repeat", ErrorCode::bad_format);
  refused("(a", "no end", ErrorCode::bad_format);
  refused("a)", "did not begin", ErrorCode::bad_format);
  refused("[a", "no end", ErrorCode::bad_format);
  refused("[a-", "no end", ErrorCode::bad_format);
  refused("[b-a]", "before it begins", ErrorCode::bad_format);
  refused("[\\d-z]", "class", ErrorCode::bad_format);
  refused("a{b}", "{n}", ErrorCode::bad_format);
  refused("a{1", "{n}", ErrorCode::bad_format);
  refused("a{1,2", "{n}", ErrorCode::bad_format);
  refused("a{2,1}", "more than", ErrorCode::bad_format);
  refused("\\", "nothing follows", ErrorCode::bad_format);
  refused("\\q", "unknown escape", ErrorCode::bad_format);
  refused("\\xg0", "hexadecimal", ErrorCode::bad_format);
  refused("\\ud800", "no Unicode", ErrorCode::bad_format);
  refused("\xFF", "UTF-8", ErrorCode::bad_format);
  refused(std::string(1000, '(').c_str(), "deep");
}

TEST_CASE("grammar: choices are taken as they are") {
  const Feeder feeder;
  const Grammar grammar =
      value(Grammar::from_choices({"yes", "yes!", "n\"o\\", "\xC3\xA9t\xC3\xA9", "a\nb[x]-^"}));
  for (const char* text : {"yes", "yes!", "n\"o\\", "\xC3\xA9t\xC3\xA9", "a\nb[x]-^"}) {
    CHECK(feeder.match(grammar, text) == Match::whole);
  }
  CHECK(feeder.match(grammar, "ye") == Match::begins);
  CHECK(feeder.match(grammar, "yesn") == Match::dead);
  check_refused(Grammar::from_choices({}), "no choices", ErrorCode::invalid_argument);
  check_refused(Grammar::from_choices({"b", "a\xFF"}), "choice 1 is not UTF-8 at byte 1");
  CHECK(!Grammar());
  CHECK(!GrammarMatcher::create(Grammar(), feeder.model()));
}

TEST_CASE("grammar: rules of any depth compile on a small stack") {
  // Each of 500 rules begins with the next one in 190 parentheses.
  std::string nested = "root ::= r0\n";
  for (int i = 0; i < 500; ++i) {
    nested += "r" + std::to_string(i) + " ::= " + std::string(190, '(') + "r" +
              std::to_string(i + 1) + std::string(190, ')') + " \"y\"?\n";
  }
  const std::string end = "r500 ::= \"x\"\n";
  // 2100 rules begin with one another; and so that they can be empty, and are repeated.
  std::string chain = "root ::= r0\n", empty_chain = chain, backwards = "r2100 ::= \"x\"\n";
  for (int i = 0; i < 2100; ++i) {
    const std::string rule = "r" + std::to_string(i) + " ::= ", next = "r" + std::to_string(i + 1);
    chain += rule + next + " | \"a\" " + next + "\n";
    empty_chain += rule + "(" + next + ")* \"b\"?\n";
    backwards.insert(0, rule + next + "\n");
  }
  backwards += "root ::= r0\n";
  // As many operators and parentheses as there may be.
  std::string deepest = "root ::= ";
  for (int i = 0; i < 200; ++i) deepest += '(';
  deepest += "\"x\"";
  for (int i = 0; i < 200; ++i) deepest += ")??????????";
  const auto compiled = [](const std::string& text) {
    mixtral::Result<Grammar> result = Grammar();
    on_small_stack([&] { result = Grammar::from_gbnf(text); });
    return result;
  };
  const Feeder feeder;
  for (const std::string& text : {nested + end, chain + "r2100 ::= \"x\"\n",
                                  empty_chain + "r2100 ::= \"x\"\n", backwards, deepest}) {
    CAPTURE(text.substr(0, 60));
    const Grammar grammar = value(compiled(text));
    CHECK(feeder.match(grammar, "x") == Match::whole);
  }
  check_refused(compiled(nested + "r500 ::= \"\" r0 \"x\" | \"z\"\n"), "left recursion");
  check_refused(compiled(chain + "r2100 ::= r7 | \"x\"\n"), "left recursion");
  check_refused(compiled(chain + "r2100 ::= \"x\" r2100\n"), "never comes to an end");
  check_refused(compiled("root ::= " + std::string(201, '(') + "\"x\"" + std::string(201, ')')),
                "deep");

  // Regular expressions, with as many groups as there may be.
  const auto regex = [](const std::string& pattern) {
    mixtral::Result<Grammar> result = Grammar();
    on_small_stack([&] { result = Grammar::from_regex(pattern); });
    return result;
  };
  CHECK(regex(std::string(150, '(') + "a" + std::string(150, ')')));
  check_refused(regex(std::string(151, '(') + "a" + std::string(151, ')')), "deep",
                ErrorCode::unsupported);
}

TEST_CASE("grammar: what is told of rules names the right one, with its line") {
  const auto told = [](const char* text, const char* part) {
    CAPTURE(text);
    check_refused(Grammar::from_gbnf(text), part);
  };
  // Only b and c call themselves.
  told("root ::= a\na ::= \"x\" | b\nb ::= \"\" c | \"q\"\nc ::= \"y\"? b \"z\"\n",
       "left recursion");
  const auto cycle =
      Grammar::from_gbnf("root ::= a\na ::= \"x\" | b\nb ::= \"\" b | \"q\"\nc ::= root\n");
  check_refused(cycle, "line 3: rule 'b' calls itself");
  told("root ::= \"a\" | b\n\nb ::= \"c\" b", "line 3: rule 'b' never comes");
  told("root ::= \"a\"\n\n  # what\n | \"b\"\n\nx ::= (\n\"a\"\n\n| ]", "line 9: expected )");
  // Bounds of repetitions, at the limit and one beyond.
  CHECK(Grammar::from_gbnf("root ::= \"a\"{1,99999}"));
  told("root ::= \"a\"{100000}", "below 100000");
  told("root ::= \"a\"{1,100000}", "below 100000");
  // What is quoted ends with a whole character.
  told("root ::= \"a\" %\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9",
       "'%\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9\u00E9'");
  CHECK(Grammar::from_gbnf("\xEF\xBB\xBFroot ::= \"a\""));  // with a byte order mark
  // However long a name is, what is wrong with it is told.
  const std::string name(2000, 'n');
  told(("root ::= " + name).c_str(), "is used but not defined");
  told(("root ::= " + name + "\n" + name + " ::= " + name + " \"a\" | \"b\"").c_str(),
       "left recursion");
  told(("root ::= " + name + "\n" + name + " ::= \"a\" " + name).c_str(), "never comes");
}

TEST_CASE("grammar: large grammars compile, up to limits that are told before") {
  // Two megabytes of rules that follow one another, of which the first is defined last.
  const int n = 16000;
  std::string rules = "r" + std::to_string(n) + " ::= \"end\"\n";
  for (int i = n; i-- > 0;) {
    const std::string number = std::to_string(i);
    rules += "r" + number + " ::= \"" + std::string(100, 'a' + static_cast<char>(i % 26)) + "\" r" +
             std::to_string(i + 1) + " | r" + std::to_string(i + 1) + " # a comment\n";
  }
  rules += "root ::= \"<\" r0\n";
  CHECK(rules.size() > 2000000);
  const Feeder feeder;
  const Grammar grammar = gbnf(rules);
  CHECK(feeder.match(grammar, "<") == Match::begins);
  // One rule of as many lines.
  std::string lines = "root ::= \"a\"\n";
  while (lines.size() < 2000000) lines += "  | (\"b\" \"c\" |\n \"d\"*) \"x\" # or\n";
  CHECK(feeder.match(gbnf(lines), "bcx") == Match::whole);

  const auto refused = [](const mixtral::Result<Grammar>& made, const char* part) {
    check_refused(made, part, ErrorCode::unsupported);
  };
  // The size of the text, the number of rules, and literals with all other parts.
  const std::size_t most_bytes = std::size_t{1} << 24, most_parts = std::size_t{1} << 22;
  std::string text = "root ::= \"a\" #";
  text.resize(most_bytes, '.');
  CHECK(Grammar::from_gbnf(text));
  refused(Grammar::from_gbnf(text + "."), "bytes");
  std::string many = "root ::= r1\n";
  for (int i = 1; i < 16384; ++i) many += "r" + std::to_string(i) + " ::= \"a\"\n";
  CHECK(Grammar::from_gbnf(many));
  refused(Grammar::from_gbnf(many + "one ::= \"\"\n"), "16384 rules");
  std::string literal(most_parts - 1, 'x');
  CHECK(Grammar::from_gbnf("root ::= \"" + literal + "x\""));
  refused(Grammar::from_gbnf("root ::= \"" + literal + "xx\""), "too large");
  // 64 KiB are less than the work needs: what is not too large runs out of memory, and what is too large is
  // told before.
  std::vector<std::uint8_t> room(1 << 16);
  const auto error_of = [&](const auto& make) {
    std::pmr::monotonic_buffer_resource small(room.data(), room.size(),
                                              std::pmr::null_memory_resource());
    const mixtral::Result<Grammar> made = make(&small);
    REQUIRE(!made);
    return made.error();
  };
  const auto check = [](const mixtral::Error& error, bool is_too_large) {
    CAPTURE(error.message());
    CHECK(error.code() == (is_too_large ? ErrorCode::unsupported : ErrorCode::out_of_memory));
    CHECK((std::string(error.message()).find("too large") != std::string::npos) == is_too_large);
  };
  for (const bool is_too_large : {false, true}) {
    CAPTURE(is_too_large);
    const std::string large = is_too_large ? literal + "x" : literal;
    const std::size_t times = is_too_large ? 4096 : 4095;
    check(error_of([&](auto* small) {
            const std::string_view choice[] = {large};  // and one for the choice
            return Grammar::from_choices({choice, 1}, small);
          }),
          is_too_large);
    check(error_of([&](auto* small) {  // and one for the repetition
            return Grammar::from_gbnf(
                "root ::= \"" + std::string(1024, 'x') + "\"{" + std::to_string(times) + "}",
                small);
          }),
          is_too_large);
  }
  // A set of ASCII counts 1, and each of its ranges of two bytes in UTF-8 3 more.
  for (const bool is_too_large : {false, true}) {
    CAPTURE(is_too_large);
    // 585 * (1024 * 7 + 1) + 1 for the repetitions, 1 for the sequence, and the literal.
    const std::string rest(is_too_large ? 438 : 437, 'x');
    check(error_of([&](auto* small) {
            return Grammar::from_gbnf("root ::= \"" + rest + "\" ([a-\u00E9]{1024}){585}", small);
          }),
          is_too_large);
  }
  const std::string_view parts[] = {literal, literal};
  check(error_of([&](auto* small) { return Grammar::from_choices({parts, 2}, small); }), true);
  check(error_of([](auto* small) {
          return Grammar::from_gbnf("root ::= (\"a\"{99999}){99999}", small);
        }),
        true);
}

namespace {

std::string utf8_of(std::uint32_t c) {
  std::string out;
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  if (c >= 0x10000) {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
  } else if (c >= 0x800) {
    out += static_cast<char>(0xE0 | c >> 12);
  }
  out += c < 0x800 ? static_cast<char>(0xC0 | c >> 6) : static_cast<char>(0x80 | (c >> 6 & 0x3F));
  return out + static_cast<char>(0x80 | (c & 0x3F));
}

// Characters at and beside every border that classes, UTF-8 and Unicode have.
std::vector<std::uint32_t> border_characters() {
  std::vector<std::uint32_t> all;
  for (std::uint32_t c = 0; c < 0x100; ++c) all.push_back(c);
  for (const std::uint32_t c :
       {0x7FFu,   0x800u,   0xFFFu,   0x1000u,  0x167Fu,   0x1680u,  0x1681u, 0x180Eu,
        0x1FFFu,  0x2000u,  0x2001u,  0x200Au,  0x200Bu,   0x2027u,  0x2028u, 0x2029u,
        0x202Au,  0x202Eu,  0x202Fu,  0x2030u,  0x205Eu,   0x205Fu,  0x2060u, 0x2FFFu,
        0x3000u,  0x3001u,  0xD7FFu,  0xE000u,  0xFEFEu,   0xFEFFu,  0xFF00u, 0xFFFFu,
        0x10000u, 0x3FFFFu, 0x40000u, 0xFFFFFu, 0x100000u, 0x10FFFFu}) {
    all.push_back(c);
  }
  return all;
}

void check_takes(const Feeder& feeder, const Grammar& grammar,
                 const std::function<bool(std::uint32_t)>& expected) {
  static const std::vector<std::uint32_t> characters = border_characters();
  GrammarMatcher matcher = feeder.matcher(grammar);
  for (const std::uint32_t c : characters) {
    CAPTURE(c);
    CHECK((Feeder::match(matcher, utf8_of(c)) == Match::whole) == expected(c));
  }
}

}  // namespace

TEST_CASE("grammar: the classes of regular expressions are those of ECMA-262, to each border") {
  const Feeder feeder;
  const auto check = [&](const char* pattern, const std::function<bool(std::uint32_t)>& expected) {
    CAPTURE(pattern);
    check_takes(feeder, value(Grammar::from_regex(pattern)), expected);
  };
  const auto is_digit = [](std::uint32_t c) { return c >= '0' && c <= '9'; };
  const auto is_word = [&](std::uint32_t c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  };
  const auto ends_line = [](std::uint32_t c) {
    return c == '\n' || c == '\r' || c == 0x2028 || c == 0x2029;
  };
  // ECMA-262, tables 35 (WhiteSpace) and 36 (LineTerminator), with the space separators of Unicode.
  const auto is_space = [&](std::uint32_t c) {
    return ends_line(c) || c == '\t' || c == '\v' || c == '\f' || c == ' ' || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x202F || c == 0x205F ||
           c == 0x3000 || c == 0xFEFF;
  };
  check("\\d", is_digit);
  check("\\D", [&](std::uint32_t c) { return !is_digit(c); });
  check("\\w", is_word);
  check("\\W", [&](std::uint32_t c) { return !is_word(c); });
  check("\\s", is_space);
  check("\\S", [&](std::uint32_t c) { return !is_space(c); });
  check(".", [&](std::uint32_t c) { return !ends_line(c); });
  check("[.]", [](std::uint32_t c) { return c == '.'; });
  check("[\\s\\d]", [&](std::uint32_t c) { return is_space(c) || is_digit(c); });
  check("[^\\s\\d]", [&](std::uint32_t c) { return !is_space(c) && !is_digit(c); });
  check("[\\D]", [&](std::uint32_t c) { return !is_digit(c); });
  check("[^\\D]", is_digit);
  check("[\\s\\S]", [](std::uint32_t) { return true; });
  check("[^]", [](std::uint32_t) { return true; });
  check("[\\b]", [](std::uint32_t c) { return c == 8; });
  check("[a-c-]", [](std::uint32_t c) { return (c >= 'a' && c <= 'c') || c == '-'; });
  check("[-a]", [](std::uint32_t c) { return c == 'a' || c == '-'; });
  check("[a-a]", [](std::uint32_t c) { return c == 'a'; });
  check("[^^]", [](std::uint32_t c) { return c != '^'; });
  check("[a^]", [](std::uint32_t c) { return c == 'a' || c == '^'; });
  check("[\\]\\\\]", [](std::uint32_t c) { return c == ']' || c == '\\'; });
  check("[+--]", [](std::uint32_t c) { return c >= '+' && c <= '-'; });
  check("[\\x00-\\x1f]", [](std::uint32_t c) { return c < 0x20; });
  check("[\\u{0}-\\u{10FFFF}]", [](std::uint32_t) { return true; });
  check("[\\u07ff-\\u0800]", [](std::uint32_t c) { return c == 0x7FF || c == 0x800; });
  check("[\\ud7ff-\\ue000]", [](std::uint32_t c) { return c == 0xD7FF || c == 0xE000; });
  check("[\\uffff-\\u{10000}]", [](std::uint32_t c) { return c == 0xFFFF || c == 0x10000; });
}

TEST_CASE("grammar: every escape of a regular expression names its character") {
  const Feeder feeder;
  const auto check = [&](const char* pattern, std::uint32_t character) {
    CAPTURE(pattern);
    check_takes(feeder, value(Grammar::from_regex(pattern)),
                [&](std::uint32_t c) { return c == character; });
    check_takes(feeder, value(Grammar::from_regex("[" + std::string(pattern) + "]")),
                [&](std::uint32_t c) { return c == character; });
  };
  check("\\n", '\n');
  check("\\r", '\r');
  check("\\t", '\t');
  check("\\f", '\f');
  check("\\v", '\v');
  check("\\0", 0);
  check("\\x00", 0);
  check("\\x4a", 'J');
  check("\\x4A", 'J');
  check("\\xfF", 0xFF);
  check("\\u007f", 0x7F);
  check("\\u2028", 0x2028);
  check("\\u{41}", 'A');
  check("\\u{0000000041}", 'A');
  check("\\u{10FFFF}", 0x10FFFF);
  check("\\u{10ffff}", 0x10FFFF);
  check("\\ud800\\udc00", 0x10000);
  check("\\uDBFF\\uDFFF", 0x10FFFF);
  // A character that is no letter or digit may be escaped, as itself.
  for (const char c : std::string("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")) {
    check((std::string("\\") + c).c_str(), static_cast<std::uint32_t>(c));
  }
  const auto refused = [](const char* pattern, const char* part,
                          ErrorCode code = ErrorCode::bad_format) {
    CAPTURE(pattern);
    check_refused(Grammar::from_regex(pattern), part, code);
  };
  refused("\\u{110000}", "no Unicode");
  refused("\\u{100000041}", "no Unicode");  // more digits than fit into 32 bits
  refused("\\u{ffffffffffffffffffff}", "no Unicode");
  refused("\\u{d800}", "no Unicode");
  refused("\\u{dfff}", "no Unicode");
  refused("\\udc00", "no Unicode");
  refused("\\udfff", "no Unicode");
  refused("\\ud800x", "no Unicode");
  refused("\\ud800\\u0041", "half a pair");
  refused("\\ud800\\udbff", "half a pair");
  refused("\\ud800\\ue000", "half a pair");
  for (const char* pattern : {"\\u{}", "\\u{4", "\\u{g}", "\\u{4 1}", "\\x", "\\x4", "\\x4g",
                              "\\xG4", "\\u004", "\\u00:1", "\\u00@1", "\\u00`1", "\\u00/1"}) {
    refused(pattern, "hexadecimal");
  }
  for (const char* letter :
       {"a", "e", "g", "h", "i", "j", "l", "m", "o", "q", "y", "z", "A", "C", "E", "Z"}) {
    refused((std::string("\\") + letter).c_str(), "unknown escape");
  }
  for (const char* pattern : {"\\1", "\\9", "\\k<a>", "\\p{L}", "\\P{L}", "\\B", "\\b", "\\cA"}) {
    refused(pattern, "not supported", ErrorCode::unsupported);
  }
}

TEST_CASE("grammar: repetitions, groups and anchors of regular expressions at their limits") {
  const Feeder feeder;
  // Which numbers of letters a pattern takes.
  const auto counts = [&](const char* pattern, const std::function<bool(std::size_t)>& expected) {
    CAPTURE(pattern);
    GrammarMatcher matcher = feeder.matcher(value(Grammar::from_regex(pattern)));
    for (std::size_t n = 0; n < 6; ++n) {
      CAPTURE(n);
      CHECK((Feeder::match(matcher, std::string(n, 'a')) == Match::whole) == expected(n));
    }
  };
  counts("a{2}", [](std::size_t n) { return n == 2; });
  counts("a{2,}", [](std::size_t n) { return n >= 2; });
  counts("a{2,4}", [](std::size_t n) { return n >= 2 && n <= 4; });
  counts("a{0}", [](std::size_t n) { return n == 0; });
  counts("a{0,1}", [](std::size_t n) { return n <= 1; });
  counts("a{3,3}", [](std::size_t n) { return n == 3; });
  counts("a*", [](std::size_t) { return true; });
  counts("a*?", [](std::size_t) { return true; });
  counts("a+", [](std::size_t n) { return n >= 1; });
  counts("a+?", [](std::size_t n) { return n >= 1; });
  counts("a?", [](std::size_t n) { return n <= 1; });
  counts("a??", [](std::size_t n) { return n <= 1; });
  counts("a{2,4}?", [](std::size_t n) { return n >= 2 && n <= 4; });
  counts("(aa)*", [](std::size_t n) { return n % 2 == 0; });
  counts("(?:aa){1,}", [](std::size_t n) { return n != 0 && n % 2 == 0; });
  counts("(?<name>a){1,2}", [](std::size_t n) { return n == 1 || n == 2; });
  counts("()a", [](std::size_t n) { return n == 1; });
  counts("()*a", [](std::size_t n) { return n == 1; });
  counts("^a$|^aaa$", [](std::size_t n) { return n == 1 || n == 3; });
  counts("^", [](std::size_t n) { return n == 0; });
  counts("$", [](std::size_t n) { return n == 0; });
  counts("^$|a|", [](std::size_t n) { return n <= 1; });
  const auto whole = [&](const char* pattern, const char* text) {
    return feeder.match(value(Grammar::from_regex(pattern)), text) == Match::whole;
  };
  CHECK(whole("a}", "a}"));
  CHECK(whole("a]", "a]"));
  const auto refused = [](const char* pattern, const char* part,
                          ErrorCode code = ErrorCode::bad_format) {
    CAPTURE(pattern);
    check_refused(Grammar::from_regex(pattern), part, code);
  };
  for (const char* pattern : {"a{2}{3}", "a???", "a*+", "^*", "(*a)", "(|*)", "{2}", "(?:+)"}) {
    refused(pattern, "nothing to repeat");
  }
  for (const char* pattern : {"a{", "a{}", "a{,}", "a{,2}", "a{2,,3}", "a{2,3,4}", "a{2;3}",
                              "a{ 2}", "a{2,3", "a{-1}", "a{2,a}"}) {
    refused(pattern, "{n}");
  }
  refused("a{100000}", "below 100000");
  refused("(?<name", "name has no end");
  refused("(?:a", "no end");
  refused("(?=a)", "lookaround", ErrorCode::unsupported);
  refused("(?!a)", "lookaround", ErrorCode::unsupported);
  refused("(?<=a)", "lookaround", ErrorCode::unsupported);
  refused("(?<!a)", "lookaround", ErrorCode::unsupported);
  refused("(^a)", "^", ErrorCode::unsupported);
  refused("(a|^b)", "^", ErrorCode::unsupported);
  refused("^^", "^", ErrorCode::unsupported);
  refused("$*", "$ before the end", ErrorCode::unsupported);
  refused("$$", "$ before the end", ErrorCode::unsupported);
  refused("$)", "$ before the end", ErrorCode::unsupported);
  refused("[a-\\d]", "class");
  refused("[\\w-a]", "class");
  refused("[", "no end");
  refused("[^", "no end");
  // A brace ends the digits that a brace began, no others.
  refused("\\x4}", "hexadecimal");
  refused("\\u004}", "hexadecimal");
  // An escape that is not supported is told where it begins.
  refused("ab\\1", "regular expression, byte 3:", ErrorCode::unsupported);
  refused("[\\]", "no end");
}

TEST_CASE("grammar: every escape and set of GBNF names its characters") {
  const Feeder feeder;
  const auto check = [&](const std::string& text,
                         const std::function<bool(std::uint32_t)>& expected) {
    CAPTURE(text);
    check_takes(feeder, gbnf("root ::= " + text), expected);
  };
  const std::pair<const char*, std::uint32_t> escapes[] = {{"\\n", '\n'},
                                                           {"\\r", '\r'},
                                                           {"\\t", '\t'},
                                                           {"\\\\", '\\'},
                                                           {"\\\"", '"'},
                                                           {"\\[", '['},
                                                           {"\\]", ']'},
                                                           {"\\-", '-'},
                                                           {"\\^", '^'},
                                                           {"\\x00", 0},
                                                           {"\\x7f", 0x7F},
                                                           {"\\xFf", 0xFF},
                                                           {"\\u00A0", 0xA0},
                                                           {"\\uFFFF", 0xFFFF},
                                                           {"\\ud7ff", 0xD7FF},
                                                           {"\\ue000", 0xE000},
                                                           {"\\U0010FFFF", 0x10FFFF},
                                                           {"\\U00000041", 'A'}};
  for (const auto& [escape, character] : escapes) {
    const std::uint32_t named = character;
    check("\"" + std::string(escape) + "\"", [&](std::uint32_t c) { return c == named; });
    check("[" + std::string(escape) + "]", [&](std::uint32_t c) { return c == named; });
    check("[^" + std::string(escape) + "]", [&](std::uint32_t c) { return c != named; });
  }
  check(".", [](std::uint32_t) { return true; });
  check("[a-c]", [](std::uint32_t c) { return c >= 'a' && c <= 'c'; });
  check("[a-]", [](std::uint32_t c) { return c == 'a' || c == '-'; });
  check("[-a]", [](std::uint32_t c) { return c == 'a' || c == '-'; });
  check("[b-b]", [](std::uint32_t c) { return c == 'b'; });
  check("[a^]", [](std::uint32_t c) { return c == 'a' || c == '^'; });
  check("[a-cb-d]", [](std::uint32_t c) { return c >= 'a' && c <= 'd'; });
  check("[a-bc-d]", [](std::uint32_t c) { return c >= 'a' && c <= 'd'; });
  check("[da]", [](std::uint32_t c) { return c == 'a' || c == 'd'; });
  check("[a-zc]", [](std::uint32_t c) { return c >= 'a' && c <= 'z'; });
  check("[^a-zc]", [](std::uint32_t c) { return c < 'a' || c > 'z'; });
  check("[\\x80-\\U0010ffff]", [](std::uint32_t c) { return c >= 0x80; });
  check("[\\x7f-\\u0800]", [](std::uint32_t c) { return c >= 0x7F && c <= 0x800; });
  check("[\\u1000-\\U00040000]", [](std::uint32_t c) { return c >= 0x1000 && c <= 0x40000; });
  check("[^\\u0800-\\uFFFF]", [](std::uint32_t c) { return c < 0x800 || c > 0xFFFF; });
  const auto refused = [](const std::string& text, const char* part) {
    CAPTURE(text);
    check_refused(Grammar::from_gbnf("root ::= " + text), part);
  };
  for (const char* escape :
       {"\\x4", "\\xg0", "\\u004", "\\u00g0", "\\U0000041", "\\x:0", "\\x@0", "\\x`0"}) {
    refused("\"" + std::string(escape) + "\"", "hexadecimal");
  }
  for (const char* escape : {"\\ud800", "\\udfff", "\\U0000D800"}) {
    refused("\"" + std::string(escape) + "\"", "no Unicode character");
  }
  refused("\"\\U00110000\"", "U+10FFFF");
  refused("\"\\U10000000\"", "U+10FFFF");
  for (const char letter : std::string("abcdefghijklmopqsvwyzAXN0./'")) {
    refused(std::string("\"\\") + letter + "\"", "unknown escape");
  }
}

TEST_CASE(
    "grammar: counts of repetitions, and spaces, comments and lines between the parts of GBNF") {
  const Feeder feeder;
  const auto takes = [&](const std::string& text, std::size_t least, std::size_t most) {
    CAPTURE(text);
    GrammarMatcher matcher = feeder.matcher(gbnf(text));
    for (std::size_t n = 0; n < 7; ++n) {
      CAPTURE(n);
      CHECK((Feeder::match(matcher, std::string(n, 'a')) == Match::whole) ==
            (n >= least && n <= most));
    }
  };
  const std::size_t any = 100;
  takes("root ::= \"a\"*", 0, any);
  takes("root ::= \"a\"+", 1, any);
  takes("root ::= \"a\"?", 0, 1);
  takes("root ::= \"a\"{3}", 3, 3);
  takes("root ::= \"a\"{3,}", 3, any);
  takes("root ::= \"a\"{,3}", 0, 3);
  takes("root ::= \"a\"{0}", 0, 0);
  takes("root ::= \"a\"{,0}", 0, 0);
  takes("root ::= \"a\"{0,0}", 0, 0);
  takes("root ::= \"a\"{2,2}", 2, 2);
  takes("root ::= \"a\"{2}{2}", 4, 4);
  takes("root ::= \"a\"{1,2}{2}", 2, 4);
  takes("root ::= \"a\" {\t2 , 3 } ", 2, 3);
  takes("root::=\"a\"", 1, 1);
  takes("\t root \t ::= \t \"a\" \t ", 1, 1);
  takes("# first\n\n  root ::= \"a\"", 1, 1);
  takes("root ::=\n\n# what\n \"a\"", 1, 1);
  takes("root ::= \"a\" # the end", 1, 1);
  takes("root ::= \"a\" \"a\"", 2, 2);
  takes("root ::= \"a\"\n| \"aa\"\n\n| \"aaa\"", 1, 3);
  takes("root ::= \"a\" | ( \n \"aa\" # c\n | # d\n \"aaa\" \n ) \n", 1, 3);
  takes("root ::= (\"a\"\n*)", 0, any);  // in a group a repetition may stand on the next line
  takes("root ::= \"a\" b\r\nb ::= \"a\"\r\n\r\n", 2, 2);
  takes("0 ::= \"a\"\nroot ::= 0 Z_z-9\nZ_z-9 ::= \"a\"", 2, 2);
  takes("root ::= \"a\"??????????", 0, 1);
  const auto refused = [](const std::string& text, const char* part) {
    CAPTURE(text);
    check_refused(Grammar::from_gbnf(text), part);
  };
  refused("root ::= \"a\"???????????", "too many repetitions");
  refused("root ::= \"a\"\n*", "expected the name of a rule");
  refused("root ::= \"a\"\n\"b\"", "expected the name of a rule");
  refused("root\n::= \"a\"", "expected ::=");
  refused("root := \"a\"", "expected ::=");
  refused("root ::= \"a\"{2 3}", "expected }");
  refused("root ::= \"a\"{a}", "expected a number");
  refused("root ::= \"a\"{-1}", "expected a number");
  refused("root ::= \"a\"{2,1}", "more than at most");
  refused("root ::= !\"a\"", "tokens in grammars");
  refused("root ::= %", "expected the end of the rule");
  refused("root ::= (\"a\" | )) ", "expected the end of the rule");
  refused("root ::= \"\\", "unknown escape");
  refused("root ::= [\\", "unknown escape");
  refused("root ::= [a\n]", "no end");
  // What stands in a comment is none of the grammar, but is UTF-8.
  CHECK(Grammar::from_gbnf("root ::= \"a\" # \u00E9 ] ) \""));
  refused("root ::= \"a\" # \xC3", "byte 15 is not UTF-8");
}

TEST_CASE("grammar: a literal of GBNF takes its text alone, whatever characters it has") {
  const Feeder feeder;
  std::string all;
  for (const std::uint32_t c : border_characters()) all += utf8_of(c);
  const Grammar grammar = gbnf("root ::= " + std::string(value(mixtral::literal_to_gbnf(all))));
  CHECK(feeder.match(grammar, all) == Match::whole);
  // One by one, each with its number after it.
  std::string each = "root ::= \"\"";
  for (const std::uint32_t c : border_characters()) {
    const auto literal = value(mixtral::literal_to_gbnf(utf8_of(c)));
    each += " | " + std::string(literal) + " \"=" + std::to_string(c) + "\"";
  }
  GrammarMatcher matcher = feeder.matcher(gbnf(each));
  for (const std::uint32_t c : border_characters()) {
    CAPTURE(c);
    CHECK(Feeder::match(matcher, utf8_of(c) + "=" + std::to_string(c)) == Match::whole);
    CHECK(Feeder::match(matcher, utf8_of(c) + "=" + std::to_string(c == 0 ? 1 : c - 1)) !=
          Match::whole);
  }
  CHECK(value(mixtral::literal_to_gbnf("")) == "\"\"");
  for (const char* text : {"\xFF", "a\xC3", "\xED\xA0\x80"}) {
    const auto refused = mixtral::literal_to_gbnf(text);
    REQUIRE(!refused);
    CHECK(refused.error().code() == ErrorCode::bad_format);
  }
  // Patterns become GBNF of the same meaning, in parentheses.
  CHECK(value(mixtral::regex_to_gbnf("a[b-d]+", mixtral::RegexScope::whole)) == "(\"a\"[b-d]+)");
}

TEST_CASE("grammar: choices have their texts in common, with one more each, up to 2^22 bytes") {
  // 2^11 choices of 2^11 - 1 bytes.
  std::vector<std::string> texts;
  for (int i = 0; i < 2048; ++i) {
    texts.push_back(std::string(2043, 'x') + std::to_string(1000 + i));
    REQUIRE(texts.back().size() == 2047);
  }
  std::vector<std::string_view> views(texts.begin(), texts.end());
  const auto grammar = Grammar::from_choices({views.data(), views.size()});
  CHECK(grammar);
  views.push_back("");
  check_refused(Grammar::from_choices({views.data(), views.size()}), "too large",
                ErrorCode::unsupported);
}
