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
    const std::string text = is_too_large ? literal + "x" : literal;
    const std::size_t times = is_too_large ? 4096 : 4095;
    check(error_of([&](auto* small) {
            const std::string_view choice[] = {text};  // and one for the choice
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
  const std::string_view parts[] = {literal, literal};
  check(error_of([&](auto* small) { return Grammar::from_choices({parts, 2}, small); }), true);
  check(error_of([](auto* small) {
          return Grammar::from_gbnf("root ::= (\"a\"{99999}){99999}", small);
        }),
        true);
}
