// Grammars and models: which tokens are allowed, generation, memory, threads.
#include <set>
#include <thread>

#include "grammars.hpp"
#include "written_files.hpp"

using namespace support;

namespace {

mixtral::Model tiny() { return open(bundled_model()); }

// With these tokens, and unused ones up to 300.
mixtral::Model with_vocabulary(std::vector<mixtral::Piece> pieces, bool add_dummy_prefix = true,
                               bool remove_extra_whitespaces = false) {
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
  checkpoint.vocabulary.add_dummy_prefix = add_dummy_prefix;
  checkpoint.vocabulary.remove_extra_whitespaces = remove_extra_whitespaces;
  return value(mixtral::Model::from_checkpoint(std::move(checkpoint)));
}

bool has(mixtral::Span<const std::uint64_t> allowed, Token token) {
  const auto t = static_cast<std::size_t>(token);
  return (allowed[t / 64] >> (t % 64) & 1) != 0;
}

}  // namespace

namespace {

void check_tokens_allowed(const std::vector<mixtral::Model>& models) {
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
        CHECK(!tokens.empty());
      }
    }
  }
}

}  // namespace

TEST_CASE("grammar: the tokens allowed are those whose bytes go on") {
  check_tokens_allowed({tiny()});
}

TEST_CASE("grammar: the tokens allowed are those whose bytes go on, for the real tokenizers" *
          needs_shared("tokenizer")) {
  std::vector<mixtral::Model> models;
  for (const auto& entry : std::filesystem::directory_iterator(shared("tokenizer"))) {
    if (entry.path().extension() != ".model") continue;
    const Blob file = read_file(entry.path().string());
    const auto tokenizer = value(mixtral::Tokenizer::from_sentencepiece(bytes(file)));
    std::vector<mixtral::Piece> pieces;
    for (std::size_t t = 0; t < tokenizer.size(); ++t) {
      pieces.push_back(tokenizer.piece(static_cast<Token>(t)));
    }
    models.push_back(with_vocabulary(pieces));
  }
  REQUIRE(models.size() >= 3);
  check_tokens_allowed(models);
}

TEST_CASE("grammar: texts drawn with random logits match") {
  const mixtral::Model model = tiny();
  const char* patterns[] = {"[a-z]{3,8}( [a-z]{1,5}){0,4}[.!?]", "(\\d{1,3}\\.){3}\\d{1,3}",
                            "(red|green|blue)(, (red|green|blue))*", "[^a-m]{0,9}x"};
  const auto shape = [&](std::mt19937& random, std::vector<float>& logits) {
    set_at_random(random, logits);
    if (random() % 4 == 0) logits[static_cast<std::size_t>(model.tokenizer().eos())] = 100.0f;
    for (const char* piece : {"\"", "}", "]", "e", "1"}) {
      const Token token = model.tokenizer().find(piece);
      if (token != mixtral::kNoToken) logits[static_cast<std::size_t>(token)] = 9.0f;
    }
  };
  for (const char* pattern : patterns) {
    CAPTURE(pattern);
    GrammarMatcher matcher =
        value(GrammarMatcher::create(value(Grammar::from_regex(pattern)), model));
    const std::regex expected(pattern);
    std::size_t n_compared = 0;
    for (std::uint32_t seed = 0; seed < 100; ++seed) {
      const std::string text = draw(matcher, model, seed, 400, shape);
      CAPTURE(text);
      bool ascii = true;
      for (const char c : text) ascii = ascii && static_cast<unsigned char>(c) < 0x80;
      if (!ascii) continue;  // std::regex would take bytes for characters
      CHECK(std::regex_match(text, expected));
      ++n_compared;
    }
    CHECK(n_compared >= 10);
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
  {
    // Every allocation there is passes through the resource.
    const std::size_t taken = resource.n_taken, before = heap_allocations();
    const auto matcher = GrammarMatcher::create(grammar, model);
    const std::size_t after = heap_allocations();
    CHECK(matcher);
    CHECK(resource.n_taken > taken);
    CHECK(after - before == resource.n_taken - taken);
  }
  mixtral::Session s = session(model, 100);
  REQUIRE(s.append("Once"));
  REQUIRE(s.evaluate());
  mixtral::GenerateOptions options = exactly(30, model);
  options.grammar = grammar;
  std::size_t n_short = 0;
  for (resource.n_left = 0; resource.n_left < 200;) {
    const std::size_t allowed = resource.n_left, n_taken = resource.n_taken;
    const std::size_t n_allocations = heap_allocations();
    auto generation = s.generate(options);
    CHECK(heap_allocations() - n_allocations == resource.n_taken - n_taken);
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
    ++n_short;
  }
  CHECK(resource.n_left > 200);
  CHECK(n_short >= 3);
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
    const std::size_t before = heap_allocations();
    again.restart(begins_text);
    CHECK(heap_allocations() == before);
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

namespace {

// The tokens that go on with a text so that it begins one of these, or with EOS is one: by the definition.
void check_allowed(const Grammar& grammar, const mixtral::Model& model,
                   const std::vector<std::string>& sorted, std::uint32_t seed) {
  const mixtral::Tokenizer& tokenizer = model.tokenizer();
  GrammarMatcher matcher = value(GrammarMatcher::create(grammar, model));
  std::mt19937 random(seed);
  std::string text;
  const auto begins = [&](const std::string& part) {
    const auto at = std::lower_bound(sorted.begin(), sorted.end(), part);
    return at != sorted.end() && at->compare(0, part.size(), part) == 0;
  };
  for (;;) {
    const auto allowed = value(matcher.allowed());
    std::vector<std::pair<Token, std::string>> choices;
    std::size_t n_wrong = 0;
    for (std::size_t t = 0; t < tokenizer.size(); ++t) {
      const auto token = static_cast<Token>(t);
      const mixtral::Piece piece = tokenizer.piece(token);
      std::string part(piece.text);
      bool expected = false;
      if (piece.type == mixtral::PieceType::byte) {
        part = static_cast<char>(std::stoi(part.substr(3, 2), nullptr, 16));
        expected = begins(text + part);
      } else if (piece.type == mixtral::PieceType::normal) {
        for (std::size_t at; (at = part.find("\xE2\x96\x81")) != std::string::npos;) {
          part.replace(at, 3, " ");
        }
        expected = begins(text + part);
      } else if (token == tokenizer.eos()) {
        expected = std::binary_search(sorted.begin(), sorted.end(), text);
      }
      if (has(allowed, token) != expected) ++n_wrong;
      if (expected && token != tokenizer.eos()) choices.emplace_back(token, text + part);
    }
    CAPTURE(text);
    CHECK(n_wrong == 0);
    CHECK(matcher.can_end() == std::binary_search(sorted.begin(), sorted.end(), text));
    CHECK(matcher.must_end() == choices.empty());
    if (choices.empty()) return;
    const auto& [token, now] = choices[random() % choices.size()];
    REQUIRE(matcher.accept(token));
    text = now;
  }
}

}  // namespace

TEST_CASE("grammar: thousands of choices are read at once, as choices, rules or alternatives") {
  const mixtral::Model model = tiny();
  std::mt19937 random(11);
  std::vector<std::string> texts;
  for (int i = 0; i < 12000; ++i) {
    std::string text = i % 3 == 0 ? "The " : i % 3 == 1 ? "" : "the dog \xC3\xA9";
    const std::size_t n = 1 + random() % 9;
    for (std::size_t k = 0; k < n; ++k) text += static_cast<char>('a' + random() % 26);
    texts.push_back(text);
  }
  texts.insert(texts.end(), {"", "a", "ab", "abc", texts[5], texts[7] + " and more"});
  std::string alternatives = "root ::= \"\"", rules = alternatives, tails = alternatives, of_rules;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string literal(value(mixtral::literal_to_gbnf(texts[i])));
    alternatives += "\n | " + literal;
    rules += "\n | r" + std::to_string(i);
    of_rules += "\nr" + std::to_string(i) + " ::= " + literal;
    tails += " | (" + literal + " (\"\"))";
  }
  std::vector<std::string_view> views(texts.begin(), texts.end());
  std::vector<std::string> sorted = texts;
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  const Grammar grammars[] = {value(Grammar::from_choices({views.data(), views.size()})),
                              gbnf(alternatives), gbnf(rules + of_rules), gbnf(tails)};
  for (const Grammar& grammar : grammars) {
    for (std::uint32_t seed = 0; seed < 3; ++seed) check_allowed(grammar, model, sorted, seed);
  }
  // Alternatives that go on with what is no literal.
  const Grammar mixed = gbnf(
      "root ::= \"ab\" \"c\" [x-z] | \"ab\" | (\"ab\" | \"abd\") \"!\"{2} | () \"abc\" \"x\" | "
      "\"b\"? "
      "\"y\" | word \"?\" | word\nword ::= \"one\" | \"two\" | \"\"");
  check_allowed(mixed, model,
                {"", "?", "ab", "ab!!", "abcx", "abcy", "abcz", "abd!!", "by", "one", "one?", "two",
                 "two?", "y"},
                1);

  // And they are generated.
  mixtral::Session s = session(model, 100);
  REQUIRE(s.append("Once upon a time"));
  mixtral::GenerateOptions options;
  options.grammar = grammars[0];
  options.sampling.temperature = 2.0f;
  std::string text;
  auto generation = s.generate(options);
  for (const std::string_view piece : generation) text += piece;
  CAPTURE(text);
  CHECK(generation.stop_reason() != mixtral::StopReason::error);
  CHECK(std::binary_search(sorted.begin(), sorted.end(), text));
}

TEST_CASE("grammar: a grammar that no memory suffices for is refused when a matcher is made") {
  const mixtral::Model model = tiny();
  // Alternatives that differ late, in rules: each stays a way of its own.
  std::string ways = "root ::= r0", rules;
  for (int i = 0; i < 16000; ++i) {
    const std::string number = std::to_string(i);
    if (i > 0) ways += " | r" + number;
    rules += "\nr" + number + " ::= [a-z]+ \"" + number + "\"";
  }
  GrammarMatcher matcher = value(GrammarMatcher::create(gbnf(ways + rules), model));
  CHECK(matcher.allowed());
  // More of them by every choice of those before: 2^17 ways.
  std::string doubled = "root ::= r17 \"!\"\nr0 ::= [a-z]\n";
  for (int i = 1; i <= 17; ++i) {
    const std::string rule = "r" + std::to_string(i - 1);
    doubled += "r" + std::to_string(i) + " ::= " + rule + " \"x\" | " + rule + " \"y\"\n";
  }
  const auto refused = GrammarMatcher::create(gbnf(doubled), model);
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::unsupported);
}

TEST_CASE(
    "grammar: of a text of its own, the first token loses the space that decoding takes away") {
  const Grammar grammar = gbnf("root ::= \"ab\" | \" a\" | \"\"");
  enum : Token { space = 3, a, space_a, two_spaces, two_spaces_a, user, b };
  for (const bool add_dummy_prefix : {false, true}) {
    for (const bool remove_extra_whitespaces : {false, true}) {
      CAPTURE(add_dummy_prefix);
      CAPTURE(remove_extra_whitespaces);
      const mixtral::Model model =
          with_vocabulary({{"<unk>", 0.0f, mixtral::PieceType::unknown},
                           {"<s>", 0.0f, mixtral::PieceType::control},
                           {"</s>", 0.0f, mixtral::PieceType::control},
                           {"\u2581", 0.0f, mixtral::PieceType::normal},
                           {"a", 0.0f, mixtral::PieceType::normal},
                           {"\u2581a", 0.0f, mixtral::PieceType::normal},
                           {"\u2581\u2581", 0.0f, mixtral::PieceType::normal},
                           {"\u2581\u2581a", 0.0f, mixtral::PieceType::normal},
                           {"\u2581ab", 0.0f, mixtral::PieceType::user_defined},
                           {"b", 0.0f, mixtral::PieceType::normal}},
                          add_dummy_prefix, remove_extra_whitespaces);
      for (const bool begins_text : {false, true}) {
        CAPTURE(begins_text);
        GrammarMatcher matcher = value(GrammarMatcher::create(grammar, model, begins_text));
        const auto allowed = [&] {
          std::set<Token> tokens;
          const auto words = value(matcher.allowed());
          for (Token t = 0; t < static_cast<Token>(model.tokenizer().size()); ++t) {
            if (has(words, t)) tokens.insert(t);
          }
          return tokens;
        };
        const Token eos = model.tokenizer().eos();
        const bool drops = begins_text && (add_dummy_prefix || remove_extra_whitespaces);
        using Tokens = std::set<Token>;
        if (!drops) {
          CHECK(allowed() == Tokens{eos, space, a, space_a});
          CHECK(allowed() == Tokens{eos, space, a, space_a});  // remembered
        } else if (remove_extra_whitespaces) {
          // A space alone would be dropped, and so would all that follow it, for ever.
          CHECK(allowed() == Tokens{eos, a, space_a, two_spaces, two_spaces_a, user});
          CHECK(!matcher.accept(space));
        } else {
          CHECK(allowed() == Tokens{eos, space, a, space_a, two_spaces, two_spaces_a, user});
          REQUIRE(matcher.accept(space));
          CHECK(allowed() == Tokens{eos, space, a, space_a});  // the next one loses nothing
          matcher.restart(begins_text);
        }
        if (drops) {
          REQUIRE(matcher.accept(two_spaces));
          CHECK(allowed() == Tokens{a});
          matcher.restart(begins_text);
          REQUIRE(matcher.accept(user));
          CHECK(matcher.must_end());
          matcher.restart(begins_text);
          REQUIRE(matcher.accept(space_a));
          CHECK(allowed() == Tokens{b});
        }
        matcher.restart(begins_text);
        REQUIRE(matcher.accept(a));
        CHECK(allowed() == Tokens{b});
        CHECK(!matcher.can_end());
        REQUIRE(matcher.accept(b));
        CHECK(matcher.can_end());
        CHECK(matcher.must_end());
        CHECK(allowed() == Tokens{eos});
      }
    }
  }
}

TEST_CASE("grammar: a byte piece of a space is a space of the text, never one that is dropped") {
  const mixtral::Model model = bytes_only();
  const Token space = model.tokenizer().find("<0x20>");
  REQUIRE(space != mixtral::kNoToken);
  GrammarMatcher matcher = value(GrammarMatcher::create(gbnf("root ::= \" a\""), model, true));
  REQUIRE(matcher.accept(space));
  REQUIRE(matcher.accept(model.tokenizer().find("<0x61>")));
  CHECK(matcher.must_end());
}

TEST_CASE("grammar: tokens longer than 1000 bytes are not looked at") {
  const std::string longest(1000, 'x'), longer(1001, 'x');
  const mixtral::Model model = with_vocabulary({{"<unk>", 0.0f, mixtral::PieceType::unknown},
                                                {"<s>", 0.0f, mixtral::PieceType::control},
                                                {"</s>", 0.0f, mixtral::PieceType::control},
                                                {longest, 0.0f, mixtral::PieceType::normal},
                                                {longer, 0.0f, mixtral::PieceType::normal},
                                                {"x", 0.0f, mixtral::PieceType::normal}});
  GrammarMatcher matcher = value(GrammarMatcher::create(gbnf("root ::= \"x\"+"), model));
  const auto allowed = value(matcher.allowed());
  CHECK(has(allowed, 3));
  CHECK(!has(allowed, 4));
  CHECK(has(allowed, 5));
  CHECK(!matcher.accept(4));
  CHECK(matcher.accept(3));
  CHECK(matcher.can_end());
  CHECK(!matcher.must_end());
}

TEST_CASE("grammar: a token without a text of its own has no space that could be dropped") {
  const std::string longer = "\u2581" + std::string(1001, 'x');
  const mixtral::Model model =
      with_vocabulary({{"<unk>", 0.0f, mixtral::PieceType::unknown},
                       {"<s>", 0.0f, mixtral::PieceType::control},
                       {"</s>", 0.0f, mixtral::PieceType::control},
                       {"\u2581control", 0.0f, mixtral::PieceType::control},
                       {longer, 0.0f, mixtral::PieceType::normal},
                       {"x", 0.0f, mixtral::PieceType::normal}});
  GrammarMatcher matcher = value(GrammarMatcher::create(gbnf("root ::= \"x\"+"), model, true));
  CHECK(!matcher.accept(3));
  CHECK(!matcher.accept(4));
  CHECK(matcher.accept(5));
}
