// Grammars, regular expressions and choices: which texts they take, and what is refused.
#include "grammars.hpp"

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
  check_refused(Grammar::from_choices({"a\xFF"}), "UTF-8");
  CHECK(!Grammar());
  CHECK(!GrammarMatcher::create(Grammar(), feeder.model()));
}
