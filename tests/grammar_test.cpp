// Grammars, regular expressions and choices: which texts they take, and which tokens they allow.
#include "support.hpp"
#include "written_files.hpp"

// g++ 12 with sanitizers sees uninitialised members in the library's own <regex>.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <regex>
#include <thread>

using namespace support;
using mixtral::ErrorCode;
using mixtral::Grammar;
using mixtral::GrammarMatcher;
using mixtral::Token;

namespace {

mixtral::Model tiny() { return open(bundled_model()); }

// A model that runs nothing, with all bytes and no other text: a text can be fed byte by byte.
mixtral::Model bytes_only() {
  Synthetic synthetic;
  synthetic.vocab_size = 259;
  synthetic.randomize(1);
  return open(synthetic.writer().finish());
}

// With these tokens, and unused ones up to 300.
mixtral::Model with_vocabulary(std::vector<mixtral::Piece> pieces) {
  std::vector<std::string> names(300);
  for (std::size_t i = pieces.size(); i < names.size(); ++i) {
    names[i] = "unused " + std::to_string(i);
    pieces.push_back({names[i], 0.0f, mixtral::PieceType::unused});
  }
  Synthetic synthetic;
  synthetic.dim = synthetic.hidden_dim = 16;
  synthetic.vocab_size = 300;
  synthetic.randomize(1);
  synthetic.vocab_size = static_cast<std::uint32_t>(pieces.size());
  synthetic.embedding.resize(pieces.size(), std::vector<float>(synthetic.dim));
  synthetic.output = synthetic.embedding;
  mixtral::Checkpoint checkpoint = read(synthetic.writer().finish());
  checkpoint.vocabulary.pieces.assign(pieces.begin(), pieces.end());
  return value(mixtral::Model::from_checkpoint(std::move(checkpoint)));
}

enum class Match { dead, begins, whole };

class Feeder {
 public:
  GrammarMatcher matcher(const Grammar& grammar) const {
    return value(GrammarMatcher::create(grammar, model_));
  }
  Match match(const Grammar& grammar, std::string_view text) const {
    GrammarMatcher made = matcher(grammar);
    return match(made, text);
  }
  static Match match(GrammarMatcher& matcher, std::string_view text) {
    matcher.restart();
    for (const char c : text) {
      const auto token = static_cast<Token>(3 + static_cast<unsigned char>(c));
      if (!matcher.accept(token)) return Match::dead;
    }
    return matcher.can_end() ? Match::whole : Match::begins;
  }
  const mixtral::Model& model() const { return model_; }

 private:
  mixtral::Model model_ = bytes_only();
};

Grammar gbnf(std::string_view text) { return value(Grammar::from_gbnf(text)); }

bool has(mixtral::Span<const std::uint64_t> allowed, Token token) {
  const auto t = static_cast<std::size_t>(token);
  return (allowed[t / 64] >> (t % 64) & 1) != 0;
}

void check_refused(const mixtral::Result<Grammar>& grammar, const std::string& part,
                   ErrorCode code = ErrorCode::bad_format) {
  CAPTURE(part);
  REQUIRE(!grammar);
  CAPTURE(grammar.error().message());
  CHECK(grammar.error().code() == code);
  CHECK(std::string(grammar.error().message()).find(part) != std::string::npos);
}

// A text that a grammar takes, drawn with random logits. Empty logits would prefer long texts, so
// that EOS gets a chance of its own.
std::string draw(const Grammar& grammar, const mixtral::Model& model, std::uint32_t seed,
                 std::size_t most_tokens = 400) {
  mixtral::SamplingOptions options;
  options.temperature = 1.0f;
  options.seed = seed;
  const std::size_t n = model.tokenizer().size();
  auto sampler = value(mixtral::Sampler::create(options, n, std::pmr::get_default_resource()));
  GrammarMatcher matcher = value(GrammarMatcher::create(grammar, model, true));
  std::mt19937 random(seed);
  std::vector<float> logits(n);
  std::vector<Token> tokens;
  while (!matcher.must_end()) {
    for (float& logit : logits) logit = static_cast<float>(random() % 1000) * 0.006f;
    if (random() % 4 == 0) logits[static_cast<std::size_t>(model.tokenizer().eos())] = 100.0f;
    // Ends that come sooner or later: what closes is likely.
    for (const char* piece : {"\"", "}", "]", "e", "1"}) {
      const Token token = model.tokenizer().find(piece);
      if (token != mixtral::kNoToken) logits[static_cast<std::size_t>(token)] = 9.0f;
    }
    const Token token = sampler.sample({logits.data(), n}, span(tokens), value(matcher.allowed()));
    REQUIRE(matcher.accept(token));
    if (token == model.tokenizer().eos()) break;
    tokens.push_back(token);
    REQUIRE(tokens.size() < most_tokens);
  }
  return std::string(value(model.tokenizer().decode(span(tokens))));
}

}  // namespace

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

TEST_CASE("grammar: the tokens allowed are those whose bytes go on, for every tokenizer") {
  std::vector<mixtral::Model> models = {tiny()};
  for (const auto& entry : std::filesystem::recursive_directory_iterator(
           has_shared("tokenizer") ? shared("tokenizer") : source("tests/data"))) {
    if (entry.path().extension() != ".model") continue;
    const Blob file = read_file(entry.path().string());
    const auto tokenizer = value(mixtral::Tokenizer::from_sentencepiece(bytes(file)));
    std::vector<mixtral::Piece> pieces;
    for (std::size_t t = 0; t < tokenizer.size(); ++t) {
      pieces.push_back(tokenizer.piece(static_cast<Token>(t)));
    }
    models.push_back(with_vocabulary(pieces));
  }
  const Feeder feeder;
  const char* grammars[] = {
      "root ::= \"The \" [a-z]+ (\", \" [a-z]+)* \".\"",
      R"(root ::= obj
obj ::= "{" (pair (", " pair)*)? "}"
pair ::= str ": " (str | obj | [0-9]+)
str ::= "\"" [^"\\\x00-\x1f]* "\"")",
      "root ::= [\\u00e0-\\U00010fff]{1,3} \" \"?",
  };
  for (const mixtral::Model& model : models) {
    const mixtral::Tokenizer& tokenizer = model.tokenizer();
    const bool is_large = tokenizer.size() > 5000;
    for (const char* text : grammars) {
      if (is_large && text != grammars[1]) continue;
      const Grammar grammar = gbnf(text);
      GrammarMatcher by_bytes = feeder.matcher(grammar);
      for (const bool begins_text : {false, true}) {
        GrammarMatcher matcher = value(GrammarMatcher::create(grammar, model, begins_text));
        std::vector<Token> tokens;
        std::mt19937 random(9);
        if (is_large && !begins_text) continue;
        for (int step = 0; step < (is_large ? 2 : 5) && !matcher.must_end(); ++step) {
          const auto allowed = value(matcher.allowed());
          std::vector<Token> choices;
          std::size_t n_wrong = 0;
          for (std::size_t t = 0; t < tokenizer.size(); ++t) {
            const auto token = static_cast<Token>(t);
            bool expected = token == tokenizer.eos() ? matcher.can_end() : false;
            const auto type = tokenizer.piece(token).type;
            if (type == mixtral::PieceType::normal || type == mixtral::PieceType::byte ||
                type == mixtral::PieceType::user_defined) {
              // The text as it is given out, without an unfinished character, and that as bytes.
              std::string all;
              bool first = begins_text;
              std::vector<Token> with = tokens;
              with.push_back(token);
              for (const Token one : with) {
                const mixtral::Piece piece = tokenizer.piece(one);
                std::string part(piece.text);
                if (piece.type == mixtral::PieceType::byte) {
                  part = static_cast<char>(std::stoi(part.substr(3, 2), nullptr, 16));
                } else {
                  for (std::size_t at; (at = part.find("\xE2\x96\x81")) != std::string::npos;) {
                    part.replace(at, 3, " ");
                  }
                  if (first && part[0] == ' ') part.erase(0, 1);
                }
                first = false;
                all += part;
              }
              expected = feeder.match(by_bytes, all) != Match::dead;
            }
            if (has(allowed, token) != expected) ++n_wrong;
            if (expected && token != tokenizer.eos()) choices.push_back(token);
          }
          CHECK(n_wrong == 0);
          REQUIRE(!choices.empty());
          tokens.push_back(choices[random() % choices.size()]);
          REQUIRE(matcher.accept(tokens.back()));
        }
      }
    }
  }
}

TEST_CASE("grammar: texts drawn with random logits match") {
  const mixtral::Model model = tiny();
  const char* patterns[] = {"[a-z]{3,8}( [a-z]{1,5}){0,4}[.!?]", "(\\d{1,3}\\.){3}\\d{1,3}",
                            "(red|green|blue)(, (red|green|blue))*", "[^a-m]{0,9}x"};
  for (const char* pattern : patterns) {
    CAPTURE(pattern);
    const Grammar grammar = value(Grammar::from_regex(pattern));
    const std::regex expected(pattern);
    for (std::uint32_t seed = 0; seed < 100; ++seed) {
      const std::string text = draw(grammar, model, seed);
      CAPTURE(text);
      bool ascii = true;
      for (const char c : text) ascii = ascii && static_cast<unsigned char>(c) < 0x80;
      if (ascii) CHECK(std::regex_match(text, expected));
    }
  }
}

TEST_CASE("grammar: generation gives what the grammar takes, whole or in slices") {
  const mixtral::Model model = tiny();
  const Grammar grammar =
      gbnf("root ::= \" The \" [a-z]{2,5} \" is \" [a-z]{2,9} \".\" \" Yes.\"?");
  const std::regex expected(" The [a-z]{2,5} is [a-z]{2,9}\\.( Yes\\.)?");
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    mixtral::Session s = session(model, 200);
    REQUIRE(s.append("Once upon a time."));
    mixtral::GenerateOptions options;
    options.grammar = grammar;
    options.sampling.temperature = 1.5f;
    options.sampling.top_p = 0.9f;
    options.sampling.seed = seed;
    std::string text;
    auto generation = s.generate(options);
    if (seed % 2 == 0) {
      for (const std::string_view piece : generation) text += piece;
    } else {
      while (generation.stop_reason() == mixtral::StopReason::none) {
        static_cast<void>(generation.advance(std::chrono::microseconds(50)));
        text += generation.piece();
      }
    }
    CAPTURE(text);
    CHECK(std::regex_match(text, expected));
    const auto reason = generation.stop_reason();
    CHECK(
        (reason == mixtral::StopReason::grammar_end || reason == mixtral::StopReason::end_of_text));
    CHECK(generation.token() >= 0);
  }
  // Greedy, too, and as an answer, whose leading space is no part of it.
  mixtral::Session s = session(model, 200);
  REQUIRE(s.append_chat({{"user", "Is it?"}}));
  mixtral::GenerateOptions options;
  options.grammar = value(Grammar::from_choices({"Yes, it is.", "No."}));
  std::string text;
  for (const std::string_view piece : s.generate(options)) text += piece;
  CHECK((text == "Yes, it is." || text == "No."));
  CHECK(s.append_chat({{"user", "Really?"}}));

  // Stop tokens may come only where the text can end.
  s.clear();
  REQUIRE(s.append("Once"));
  options.grammar = gbnf("root ::= \" dog\" \" cat\"*");
  const Token stop = model.tokenizer().find(
      "\xE2\x96\x81"
      "cat");
  REQUIRE(stop != mixtral::kNoToken);
  options.stop_tokens = {stop, model.tokenizer().bos()};
  options.sampling.logit_bias = {{model.tokenizer().bos(), 1000.0f}};
  auto generation = s.generate(options);
  text.clear();
  for (const std::string_view piece : generation) text += piece;
  CHECK(text == " dog");
  CHECK(generation.stop_reason() == mixtral::StopReason::stop_token);
}

TEST_CASE("grammar: all memory comes from the host's resource, and running out is an error") {
  const std::string text =
      "root ::= item (\",\" item){2,5} | [^a-c\\u00e9]+\nitem ::= \"x\" (\"[\" root \"]\")?";
  std::vector<std::uint8_t> room(1 << 20);
  std::size_t n_refused = 0;
  for (std::size_t size = 0; size < room.size(); size = size * 5 / 4 + 64) {
    std::pmr::monotonic_buffer_resource arena(room.data(), size, std::pmr::null_memory_resource());
    const std::size_t before = heap_allocations();
    const auto grammar = Grammar::from_gbnf(text, &arena);
    const std::size_t after = heap_allocations();
    if (grammar) {
      CHECK(after == before);  // nothing from elsewhere
      continue;
    }
    CHECK(grammar.error().code() == ErrorCode::out_of_memory);
    ++n_refused;
  }
  CHECK(n_refused > 5);
  REQUIRE(n_refused < 40);

  // A matcher takes its memory when it is made, from the model's resource.
  struct Limited : std::pmr::memory_resource {
    std::size_t n_left = 1u << 30, n_taken = 0;
    void* do_allocate(std::size_t size, std::size_t alignment) override {
      if (n_left == 0) throw std::bad_alloc();
      --n_left;
      ++n_taken;
      return std::pmr::new_delete_resource()->allocate(size, alignment);
    }
    void do_deallocate(void* memory, std::size_t size, std::size_t alignment) override {
      std::pmr::new_delete_resource()->deallocate(memory, size, alignment);
    }
    bool do_is_equal(const memory_resource& o) const noexcept override { return this == &o; }
  } resource;
  mixtral::ModelOptions model_options;
  model_options.memory = &resource;
  const auto model = value(mixtral::Model::open(bundled_model().c_str(), model_options));
  const Grammar grammar = gbnf("root ::= (\" \" [a-z]+)+ \".\"");
  mixtral::Session s = session(model, 100);
  REQUIRE(s.append("Once"));
  REQUIRE(s.evaluate());
  mixtral::GenerateOptions options = exactly(30, model);
  options.grammar = grammar;
  for (resource.n_left = 0; resource.n_left < 200;) {
    const std::size_t allowed = resource.n_left;
    auto generation = s.generate(options);
    if (generation.stop_reason() == mixtral::StopReason::none) {
      const std::size_t taken = resource.n_taken, before = heap_allocations();
      while (generation.next()) {
      }
      CHECK(resource.n_taken == taken);
      CHECK(heap_allocations() == before);
      CHECK(generation.stop_reason() != mixtral::StopReason::error);
      resource.n_left = 1u << 30;
      break;
    }
    REQUIRE(generation.stop_reason() == mixtral::StopReason::error);
    CHECK(generation.error().code() == ErrorCode::out_of_memory);
    resource.n_left = allowed + 1;
  }
  CHECK(resource.n_left > 200);
}

TEST_CASE("grammar: many threads share one") {
  const mixtral::Model model = tiny();
  const Grammar grammar = value(Grammar::from_regex(" [a-z]{2,9}( [a-z]{2,9}){3}\\."));
  std::vector<std::string> texts(6);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    threads.emplace_back([&, i] {
      mixtral::Session s = *mixtral::Session::open(model);
      mixtral::GenerateOptions options;
      options.grammar = grammar;
      options.sampling.temperature = 1.0f;
      options.sampling.seed = i / 2;
      if (!s.append("Once")) return;
      auto generation = s.generate(options);
      for (const std::string_view piece : generation) texts[i] += piece;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    CHECK(std::regex_match(texts[i], std::regex(" [a-z]{2,9}( [a-z]{2,9}){3}\\.")));
    CHECK(texts[i] == texts[i / 2 * 2]);
  }
}

TEST_CASE("grammar: what cannot go on is told, not made up") {
  const mixtral::Model model = tiny();
  mixtral::Session s = session(model, 100);
  REQUIRE(s.append("Once"));
  mixtral::GenerateOptions options;
  options.grammar = gbnf("root ::= \"\"");
  auto empty = s.generate(options);
  CHECK(!empty.next());
  CHECK(empty.stop_reason() == mixtral::StopReason::grammar_end);
  options.grammar = gbnf("root ::= \" \" [a-z]+");
  options.stop_tokens.clear();
  for (std::size_t t = 0; t < model.tokenizer().size(); ++t) {
    options.stop_tokens.push_back(static_cast<Token>(t));
  }
  auto none = s.generate(options);
  CHECK(!none.next());
  REQUIRE(none.stop_reason() == mixtral::StopReason::error);
  CHECK(none.error().code() == ErrorCode::unsupported);

  GrammarMatcher matcher = value(GrammarMatcher::create(gbnf("root ::= \"ab\""), model));
  const Token a = model.tokenizer().find("a");
  CHECK(!matcher.can_end());
  CHECK(!matcher.accept(-1));
  CHECK(!matcher.accept(1 << 20));
  CHECK(!matcher.accept(model.tokenizer().bos()));
  CHECK(!matcher.accept(model.tokenizer().eos()));
  const auto refused = matcher.accept(model.tokenizer().find("b"));
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::invalid_argument);
  REQUIRE(matcher.accept(a));
  REQUIRE(matcher.accept(model.tokenizer().find("b")));
  CHECK(matcher.must_end());
  CHECK(matcher.accept(model.tokenizer().eos()));

  // A vocabulary that lacks a letter.
  const mixtral::Model letters =
      with_vocabulary({{"<unk>", 0.0f, mixtral::PieceType::unknown},
                       {"<s>", 0.0f, mixtral::PieceType::control},
                       {"</s>", 0.0f, mixtral::PieceType::control},
                       {"a", 0.0f, mixtral::PieceType::normal},
                       {"b\xE2\x96\x81", 0.0f, mixtral::PieceType::user_defined},
                       {"a\xFF", 0.0f, mixtral::PieceType::normal}});  // not UTF-8: never allowed
  GrammarMatcher stuck = value(GrammarMatcher::create(gbnf("root ::= \"ab c\""), letters));
  CHECK(has(value(stuck.allowed()), 3));
  CHECK(!has(value(stuck.allowed()), 4));
  CHECK(!has(value(stuck.allowed()), 5));
  REQUIRE(stuck.accept(3));
  REQUIRE(stuck.accept(4));
  const auto lacking = stuck.allowed();
  REQUIRE(!lacking);
  CHECK(lacking.error().code() == ErrorCode::unsupported);
  CHECK(std::string(lacking.error().message()).find("lacks a character") != std::string::npos);
}

TEST_CASE("grammar: deep, long and ambiguous texts go on in the memory that was taken") {
  const Feeder feeder;
  const auto feed = [&](const Grammar& grammar, const std::string& text) {
    GrammarMatcher matcher = value(GrammarMatcher::create(grammar, feeder.model()));
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto token = static_cast<Token>(3 + static_cast<unsigned char>(text[i]));
      if (i % 1000 == 0) REQUIRE(has(value(matcher.allowed()), token));
      const auto status = matcher.accept(token);
      if (!status) return std::make_pair(i, status.error().code());
    }
    return std::make_pair(text.size(), ErrorCode::io);
  };
  // Each depth is a state of its own; they do not fit all at once.
  const Grammar nested = gbnf("root ::= \"(\" root \")\" | [a-z]*");
  std::string text;
  for (int i = 0; i < 10000; ++i) text += '(';
  text += "abc";
  for (int i = 0; i < 10000; ++i) text += ')';
  CHECK(feed(nested, text).first == text.size());
  CHECK(feed(nested, text + ")").first == text.size());
  std::string back_and_forth;
  for (int i = 0; i < 300000; ++i) back_and_forth += "(";
  const auto too_deep = feed(nested, back_and_forth);
  CHECK(too_deep.second == ErrorCode::unsupported);
  CHECK(too_deep.first > 10000);
  // A regular expression whose automaton has 2^16 states.
  const Grammar many = value(Grammar::from_regex("[ab]*a[ab]{16}"));
  std::mt19937 random(3);
  std::string letters;
  for (int i = 0; i < 200000; ++i) letters += "ab"[random() % 2];
  letters[letters.size() - 17] = 'a';
  CHECK(feed(many, letters).first == letters.size());
  // Twice as many ways with every letter.
  const Grammar exponential = gbnf("root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"\"");
  const auto gave_up = feed(exponential, std::string(64, 'a'));
  CHECK(gave_up.second == ErrorCode::unsupported);
  CHECK(gave_up.first > 10);
  // After all that, a new text is read as by a matcher that is new.
  GrammarMatcher matcher = feeder.matcher(nested);
  CHECK(feeder.match(matcher, back_and_forth) == Match::dead);
  CHECK(!matcher.allowed());
  CHECK(feeder.match(matcher, "((ab))") == Match::whole);
  CHECK(feeder.match(matcher, "(()") == Match::begins);
  CHECK(feeder.match(matcher, ")") == Match::dead);
  CHECK(feeder.match(matcher, text) == Match::whole);
}

TEST_CASE("grammar: a matcher restarts, with or without the vocabulary's space before the text") {
  const mixtral::Model model = tiny();
  const Grammar grammar = gbnf("root ::= \"The \" [a-z]+ \".\"");
  GrammarMatcher again = value(GrammarMatcher::create(grammar, model));
  const std::size_t n_words = (model.tokenizer().size() + 63) / 64;
  for (const bool begins_text : {true, false, true, true, false, false}) {
    CAPTURE(begins_text);
    again.restart(begins_text);
    GrammarMatcher fresh = value(GrammarMatcher::create(grammar, model, begins_text));
    for (const Token token : value(model.tokenizer().encode("The dog."))) {
      const auto seen = value(again.allowed()), expected = value(fresh.allowed());
      REQUIRE(seen.size() == n_words);
      CHECK(std::equal(seen.begin(), seen.end(), expected.begin(), expected.end()));
      CHECK(again.can_end() == fresh.can_end());
      const bool taken = bool(again.accept(token));
      CHECK(taken == bool(fresh.accept(token)));
      if (!taken) break;
    }
    CHECK(again.must_end() == begins_text);
  }
}
