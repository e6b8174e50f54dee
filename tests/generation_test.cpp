// Generation: pieces, stop reasons, stop strings across pieces.
#include "support.hpp"

#include <mixtral/stop_strings.hpp>

using namespace support;
using mixtral::StopReason;
using mixtral::Token;

namespace {

struct Outcome {
  std::string text;
  std::vector<Token> tokens;
  StopReason reason;
};

Outcome run(const mixtral::Model& model, const std::string& prompt,
            const mixtral::GenerateOptions& options) {
  mixtral::Session s = session(model, 256);
  REQUIRE(s.append(prompt));
  const std::size_t begin = s.tokens().size();
  auto generation = s.generate(options);
  Outcome outcome;
  for (const std::string_view piece : generation) {
    CHECK(!piece.empty());
    outcome.text += piece;
  }
  outcome.tokens.assign(s.tokens().begin() + begin, s.tokens().end());
  outcome.reason = generation.stop_reason();
  return outcome;
}

}  // namespace

TEST_CASE("generation: greedy text is the golden text's beginning") {
  const mixtral::Model model = open(bundled_model());
  const auto expected = golden("once");
  mixtral::GenerateOptions options;
  options.max_tokens = 20;
  const Outcome outcome = run(model, expected["text"], options);
  CHECK(outcome.reason == StopReason::max_tokens);
  CHECK(outcome.tokens.size() == 20);
  CHECK(outcome.text == expected["greedy_text"].get<std::string>().substr(0, outcome.text.size()));
  CHECK(outcome.text.size() > 20);
}

TEST_CASE("generation: an answer in a chat loses the space before it, a continuation does not") {
  const mixtral::Model model = open(bundled_model());
  const mixtral::Token space_and_word = value(model.tokenizer().encode("word"))[0];
  REQUIRE(model.tokenizer().piece(space_and_word).text.substr(0, 3) == "\u2581");
  mixtral::GenerateOptions options;
  options.max_tokens = 1;
  options.sampling.logit_bias = {{space_and_word, 1e9f}};
  const auto next_piece = [&](mixtral::Session& s) {
    auto generation = s.generate(options);
    return std::string(*generation.begin());
  };
  mixtral::Session s = session(model, 256);
  REQUIRE(s.append_chat({{"user", "Say a word."}}));
  const std::string answer = next_piece(s);
  CHECK(answer.substr(0, 1) == "w");
  CHECK(next_piece(s) == " " + answer);
  s.clear();
  REQUIRE(s.append("Say a"));
  CHECK(next_piece(s) == " " + answer);
}

TEST_CASE("generation: stop tokens and end of text") {
  const mixtral::Model model = open(bundled_model());
  const Outcome free = run(model, "Once upon a time", exactly(30, model));
  mixtral::GenerateOptions options = exactly(30, model);
  options.stop_tokens = {free.tokens[9]};
  const Outcome stopped = run(model, "Once upon a time", options);
  CHECK(stopped.reason == StopReason::stop_token);
  CHECK(stopped.tokens.size() <= 9);
  CHECK(std::equal(stopped.tokens.begin(), stopped.tokens.end(), free.tokens.begin()));
  options = {};
  options.sampling.logit_bias = {{model.tokenizer().eos(), 1e9f}};
  const Outcome ended = run(model, "Once upon a time", options);
  CHECK(ended.reason == StopReason::end_of_text);
  CHECK(ended.tokens.empty());
  CHECK(ended.text.empty());
  CHECK(run(model, "Once", exactly(0, model)).reason == StopReason::max_tokens);
}

TEST_CASE("generation: stop strings at every place of a text cut it right there") {
  const mixtral::Model model = open(bundled_model());
  const std::string text = run(model, "Once upon a time", exactly(24, model)).text;
  REQUIRE(text.size() > 24);
  mixtral::GenerateOptions options = exactly(24, model);
  for (std::size_t begin = 0; begin + 9 < text.size(); begin += 3) {
    const std::string stop = text.substr(begin, 9);
    CAPTURE(stop);
    options.stop = {"unseen", stop};
    const Outcome outcome = run(model, "Once upon a time", options);
    CHECK(outcome.reason == StopReason::stop_string);
    CHECK(outcome.text == text.substr(0, text.find(stop)));
  }
  // The start of a stop string that does not come is given out in the end.
  options.stop = {text.substr(text.size() - 3) + "never"};
  const Outcome kept = run(model, "Once upon a time", options);
  CHECK(kept.reason == StopReason::max_tokens);
  CHECK(kept.text == text);
}

TEST_CASE("generation: log-probabilities are the model's own, before sampling") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once upon a time"));
  mixtral::GenerateOptions options = exactly(10, model);
  options.sampling.temperature = 2.0f;
  options.sampling.seed = 3;
  auto generation = s.generate(options);
  mixtral::Session check = session(model, 64);
  REQUIRE(check.append("Once upon a time"));
  int n = 0;
  while (generation.next()) {
    REQUIRE(check.evaluate());
    CHECK(generation.log_probability() ==
          doctest::Approx(check.log_probability(generation.token())));
    REQUIRE(check.append(generation.token()));
    ++n;
  }
  CHECK(n == 10);
}

TEST_CASE("generation: bad options end it at once, with the reason") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  mixtral::GenerateOptions options;
  auto empty = s.generate(options);
  CHECK(!empty.next());
  CHECK(empty.stop_reason() == StopReason::error);
  CHECK(std::string(empty.error().message()).find("append") != std::string::npos);
  REQUIRE(s.append("Once"));
  options.sampling.top_p = 2.0f;
  auto bad = s.generate(options);
  for (const auto piece : bad) FAIL(std::string(piece));
  CHECK(bad.stop_reason() == StopReason::error);
  CHECK(std::string(bad.error().message()).find("top_p") != std::string::npos);
  options = {};
  options.stop = {""};
  CHECK(s.generate(options).stop_reason() == StopReason::error);
  options = {};
  options.stop_tokens = {-2};
  CHECK(s.generate(options).stop_reason() == StopReason::error);
}

TEST_CASE("stop strings: any text, cut in any pieces, equals a search in the whole") {
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    const auto letters = [&](std::size_t n) {
      std::string text;
      while (text.size() < n) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    const std::vector<std::string> stops = {letters(1 + random() % 6), letters(2 + random() % 6)};
    const std::string text = letters(random() % 30);
    std::size_t found = std::min(text.find(stops[0]), text.find(stops[1]));
    mixtral::StopStrings matcher({stops.data(), stops.size()}, 8, std::pmr::get_default_resource());
    std::string shown;
    bool stopped = false;
    for (std::size_t i = 0; i < text.size() && !stopped;) {
      const std::size_t n = std::min<std::size_t>(text.size() - i, 1 + random() % 8);
      stopped = matcher.push(std::string_view(text).substr(i, n));
      shown += matcher.ready();
      i += n;
    }
    if (!stopped) {
      matcher.finish({});
      shown += matcher.ready();
    }
    CHECK(stopped == (found != std::string::npos));
    // A longer stop string may begin earlier but end later than the one seen first.
    const std::string expected = text.substr(0, found);
    CHECK(shown.size() >= expected.size());
    if (stops[0].size() == stops[1].size() || !stopped) CHECK(shown == expected);
  }
}

TEST_CASE("stop strings: one that begins or ends within a character cuts no character in half") {
  const std::string text = "a\u00E9\u20AC b\U0001F600c\u00E9";
  for (std::size_t begin = 0; begin < text.size(); ++begin) {
    for (std::size_t size = 1; begin + size <= text.size(); ++size) {
      const std::vector<std::string> stops = {text.substr(begin, size)};
      mixtral::StopStrings matcher({stops.data(), 1}, 4, std::pmr::get_default_resource());
      std::string shown;
      bool stopped = false;
      for (std::size_t i = 0; i < text.size() && !stopped;) {
        std::size_t n = 1;  // a character
        while ((static_cast<unsigned char>(text[i + n]) & 0xC0) == 0x80) ++n;
        stopped = matcher.push(std::string_view(text).substr(i, n));
        i += n;
        for (const std::string_view piece : {matcher.ready()}) {
          const bool whole = piece.empty() || (static_cast<unsigned char>(piece[0]) & 0xC0) != 0x80;
          CHECK(whole);
          shown += piece;
        }
        const std::string_view rest = std::string_view(text).substr(shown.size());
        const bool at_character =
            rest.empty() || (static_cast<unsigned char>(rest[0]) & 0xC0) != 0x80;
        CHECK(at_character);
        CHECK(text.compare(0, shown.size(), shown) == 0);
      }
      REQUIRE(stopped);
      // As much as is there of whole characters before the stop string.
      const std::size_t found = text.find(stops[0]);
      CHECK(shown.size() <= found);
      CHECK(found - shown.size() < 4);
    }
  }
}

TEST_CASE("stop strings: only what would be held back can be taken up again") {
  const std::vector<std::string> stops = {"abcd", "x"};
  mixtral::StopStrings matcher({stops.data(), 2}, 8, std::pmr::get_default_resource());
  matcher.push("zzabc");
  CHECK(matcher.held_back() == "abc");
  mixtral::StopStrings again({stops.data(), 2}, 8, std::pmr::get_default_resource());
  REQUIRE(again.hold_back("abc"));
  CHECK(again.ready().empty());
  CHECK(again.push("d"));
  CHECK(again.ready().empty());
  CHECK(again.held_back().empty());  // what follows a stop string is gone
  for (const char* text : {"hello", "zabc", "abcd", "abx", "abcabcabcabcabcabcabc"}) {
    CHECK(!again.hold_back(text));
    CHECK(again.held_back().empty());
  }
  CHECK(again.hold_back(""));
  const std::string longest(mixtral::StopStrings::kLongest, 'a');
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once"));
  mixtral::GenerateOptions options;
  options.stop = {longest};
  CHECK(s.generate(options).stop_reason() == StopReason::none);
  options.stop = {longest + "a"};
  CHECK(s.generate(options).stop_reason() == StopReason::error);
}

TEST_CASE("generation: moved from, it gives errors") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once"));
  mixtral::Generation first = s.generate(exactly(5, model));
  mixtral::Generation second = std::move(first);
  CHECK(!first.next());
  CHECK(first.stop_reason() == StopReason::error);
  CHECK(first.error().code() == mixtral::ErrorCode::invalid_argument);
  CHECK(first.advance(std::chrono::seconds(1)) == mixtral::Progress::done);
  CHECK(first.piece().empty());
  CHECK(!first.set_sampling({}));
  CHECK(!first.save([](const void*, std::size_t) { return true; }));
  for (const auto piece : first) FAIL(std::string(piece));
  CHECK(second.next());
  first = std::move(second);
  CHECK(first.next());
  mixtral::Session moved = std::move(s);
  CHECK(first.next());  // the session is the same wherever its handle is
  CHECK(!s.append("a"));
  CHECK(!s.evaluate());
  CHECK(!s.fork());
  CHECK(s.generate().stop_reason() == StopReason::error);
  CHECK(s.logits().empty());
  CHECK(s.tokens().empty());
  CHECK(s.remaining() == 0);
  s.cancel();
  s.clear();
  s = std::move(moved);
  CHECK(s.tokens().size() > 3);
}

TEST_CASE("generation: sampling can be changed on the way") {
  const mixtral::Model model = open(bundled_model());
  mixtral::GenerateOptions options = exactly(16, model);
  options.sampling.temperature = 1.5f;
  options.sampling.seed = 7;
  const auto forbidden = options.sampling.logit_bias;
  const auto generate = [&](const std::function<void(mixtral::Generation&, int)>& between) {
    mixtral::Session s = session(model, 64);
    REQUIRE(s.append("Once upon a time"));
    auto generation = s.generate(options);
    std::vector<Token> tokens;
    for (int i = 0; i < 16; ++i) {
      between(generation, i);
      REQUIRE(generation.next());
      tokens.push_back(generation.token());
    }
    return tokens;
  };
  const std::vector<Token> plain = generate([](mixtral::Generation&, int) {});
  // What is set to what it was changes nothing: random numbers go on.
  CHECK(generate([&](mixtral::Generation& g, int) { REQUIRE(g.set_sampling(options.sampling)); }) ==
        plain);
  // From the fifth token on, what is likeliest.
  const std::vector<Token> greedy = generate([&](mixtral::Generation& g, int i) {
    mixtral::SamplingOptions sampling = options.sampling;
    if (i == 4) sampling.temperature = 0.0f;
    if (i == 4) REQUIRE(g.set_sampling(sampling));
  });
  mixtral::Session check = session(model, 64);
  REQUIRE(check.append("Once upon a time"));
  for (std::size_t i = 0; i < greedy.size(); ++i) {
    REQUIRE(check.evaluate());
    if (i < 4) {
      CHECK(greedy[i] == plain[i]);
    } else {
      std::vector<float> logits(check.logits().begin(), check.logits().end());
      for (const auto& [token, bias] : forbidden) logits[static_cast<std::size_t>(token)] += bias;
      CHECK(greedy[i] == std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    REQUIRE(check.append(greedy[i]));
  }
  // Another seed begins another stream, and again the first one from its beginning.
  const std::vector<Token> reseeded = generate([&](mixtral::Generation& g, int i) {
    mixtral::SamplingOptions sampling = options.sampling;
    if (i == 0) sampling.seed = 8;
    REQUIRE(g.set_sampling(sampling));
  });
  CHECK(reseeded != plain);
  CHECK(generate([&](mixtral::Generation& g, int i) {
          mixtral::SamplingOptions sampling = options.sampling;
          if (i == 0) {
            sampling.seed = 8;
            REQUIRE(g.set_sampling(sampling));
            sampling.seed = 7;
            REQUIRE(g.set_sampling(sampling));
          }
        }) == plain);
  // A bad option changes nothing.
  CHECK(generate([&](mixtral::Generation& g, int) {
          mixtral::SamplingOptions sampling;
          sampling.seed = 99;
          sampling.top_p = 2.0f;
          const auto status = g.set_sampling(sampling);
          REQUIRE(!status);
          CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
        }) == plain);
}

namespace {

// Several sessions of one open(), each with a beginning of its own.
std::vector<mixtral::Session> characters(const mixtral::Model& model,
                                         const std::vector<std::string>& prompts) {
  mixtral::SessionOptions options;
  options.context = 128;
  options.branches = static_cast<std::uint32_t>(prompts.size());
  options.kv_format = mixtral::BlockFormat::f32;
  std::vector<mixtral::Session> sessions;
  sessions.push_back(value(mixtral::Session::open(model, options)));
  while (sessions.size() < prompts.size()) sessions.push_back(value(sessions[0].fork()));
  for (std::size_t i = 0; i < prompts.size(); ++i) REQUIRE(sessions[i].append(prompts[i]));
  return sessions;
}

}  // namespace

TEST_CASE("generation: several together give what each gives alone") {
  const mixtral::Model model = open(bundled_model());
  const std::vector<std::string> prompts = {"Once upon a time", "One day, a little dog",
                                            "The king said that", "Tom"};
  std::vector<mixtral::GenerateOptions> options;
  for (std::uint32_t i = 0; i < 4; ++i) {
    options.push_back(exactly(6 + 5 * i, model));
    options[i].sampling.temperature = 1.0f;
    options[i].sampling.seed = i;
  }
  options[2].stop = {"the"};
  options[3].grammar = value(mixtral::Grammar::from_regex("[a-z ]{10,30}"));
  std::vector<Outcome> expected;
  for (std::size_t i = 0; i < 4; ++i) {
    std::vector<mixtral::Session> alone = characters(model, {prompts[i]});
    const std::size_t begin = alone[0].tokens().size();
    auto generation = alone[0].generate(options[i]);
    Outcome outcome;
    for (const std::string_view piece : generation) outcome.text += piece;
    outcome.tokens.assign(alone[0].tokens().begin() + begin, alone[0].tokens().end());
    outcome.reason = generation.stop_reason();
    expected.push_back(outcome);
  }
  for (const bool sliced : {false, true}) {
    std::vector<mixtral::Session> sessions = characters(model, prompts);
    REQUIRE(sessions[1].evaluate());  // one may be ahead
    std::vector<mixtral::Generation> generations;
    std::vector<std::size_t> begins;
    for (std::size_t i = 0; i < 4; ++i) {
      begins.push_back(sessions[i].tokens().size());
      generations.push_back(sessions[i].generate(options[i]));
    }
    std::vector<mixtral::Generation*> all;
    for (auto& generation : generations) all.push_back(&generation);
    std::vector<std::string> texts(4);
    std::size_t n_steps = 0, n_working = 0;
    for (bool more = true; more;) {
      if (sliced) {
        const auto progress =
            value(mixtral::Generation::advance_all({all.data(), 4}, std::chrono::microseconds(20)));
        more = false;
        for (const auto& g : generations) more = more || g.stop_reason() == StopReason::none;
        if (progress == mixtral::Progress::working) {
          ++n_working;
          for (const auto& g : generations) CHECK(g.piece().empty());
        }
      } else {
        more = value(mixtral::Generation::next_all({all.data(), 4}));
      }
      for (std::size_t i = 0; i < 4; ++i) texts[i] += generations[i].piece();
      ++n_steps;
    }
    for (std::size_t i = 0; i < 4; ++i) {
      CAPTURE(i);
      texts[i] += generations[i].next() ? "?" : "";
      texts[i] += generations[i].piece();
      CHECK(texts[i] == expected[i].text);
      CHECK(generations[i].stop_reason() == expected[i].reason);
      const auto tokens = sessions[i].tokens();
      CHECK(std::vector<Token>(tokens.begin() + begins[i], tokens.end()) == expected[i].tokens);
    }
    if (sliced) CHECK(n_working > 100);
    if (!sliced) CHECK(n_steps <= 24);
  }
}

TEST_CASE("generation: of several together, one that is cancelled or fails stops alone") {
  const mixtral::Model model = open(bundled_model());
  std::vector<mixtral::Session> sessions = characters(model, {"Once", "One day", "Tom", "A"});
  std::vector<mixtral::Generation> generations;
  std::vector<mixtral::Generation*> all;
  for (auto& s : sessions) generations.push_back(s.generate(exactly(6, model)));
  for (auto& g : generations) all.push_back(&g);
  const mixtral::Span<mixtral::Generation* const> together(all.data(), all.size());
  CHECK(value(mixtral::Generation::next_all(together)));
  sessions[2].cancel();
  CHECK(value(mixtral::Generation::next_all(together)));
  CHECK(generations[2].stop_reason() == StopReason::cancelled);
  for (const std::size_t i : {0u, 1u, 3u}) CHECK(generations[i].stop_reason() == StopReason::none);
  while (value(mixtral::Generation::next_all(together))) continue;
  for (const std::size_t i : {0u, 1u, 3u}) {
    CHECK(generations[i].stop_reason() == StopReason::max_tokens);
  }
  CHECK(sessions[2].tokens().size() ==
        value(model.tokenizer().encode("Tom", {true, true})).size() + 1);

  // No room for keys and values of one of them.
  mixtral::SessionOptions options;
  options.context = 512;
  options.branches = 2;
  options.kv_tokens = 128;
  mixtral::Session one = value(mixtral::Session::open(model, options));
  mixtral::Session two = value(one.fork());
  REQUIRE(one.append("Once upon a time"));
  REQUIRE(two.append(mixtral::Span<const Token>(std::vector<Token>(200, 5).data(), 200)));
  mixtral::Generation of_one = one.generate(exactly(4, model));
  mixtral::Generation of_two = two.generate(exactly(4, model));
  mixtral::Generation* both[] = {&of_two, &of_one};
  int n = 0;
  while (value(mixtral::Generation::next_all({both, 2}))) ++n;
  CHECK(n == 4);
  CHECK(of_one.stop_reason() == StopReason::max_tokens);
  CHECK(of_two.stop_reason() == StopReason::error);
  CHECK(of_two.error().code() == mixtral::ErrorCode::context_full);

  // Mistakes.
  mixtral::Session stranger = session(model, 64);
  REQUIRE(stranger.append("Once"));
  mixtral::Generation of_stranger = stranger.generate(exactly(4, model));
  mixtral::Generation again = one.generate(exactly(4, model));
  mixtral::Generation more = two.generate(exactly(4, model));
  mixtral::Generation* strangers[] = {&again, &of_stranger};
  CHECK(!mixtral::Generation::next_all({strangers, 2}));
  mixtral::Generation twin = one.generate(exactly(4, model));
  mixtral::Generation* twins[] = {&again, &twin};
  CHECK(!mixtral::Generation::next_all({twins, 2}));
  mixtral::Generation* nothing[] = {&again, nullptr};
  CHECK(!mixtral::Generation::next_all({nothing, 2}));
  CHECK(again.stop_reason() == StopReason::none);
  CHECK(!value(mixtral::Generation::next_all({})));
  CHECK(again.next());
}

TEST_CASE("generation: a saved one goes on to the same text, wherever it was saved") {
  const mixtral::Model model = open(bundled_model());
  mixtral::GenerateOptions options = exactly(40, model);
  options.sampling.temperature = 1.2f;
  options.sampling.seed = 5;
  options.sampling.repetition_penalty = 1.1f;
  std::string prompt = "Once upon a time";
  SUBCASE("plain") {}
  SUBCASE("with stop strings that hold text back") {
    options.stop = {"never there", "a very", " the x", "\xE2\x82\xAC"};
  }
  SUBCASE("with a stop string that comes") { options.stop = {"e"}; }
  SUBCASE("with a grammar of nested rules") {
    options.grammar =
        value(mixtral::Grammar::from_gbnf("root ::= list\nlist ::= \"(\" item (\",\" item)* "
                                          "\")\"\nitem ::= list | [a-z \u00E9]{1,9}"));
  }
  SUBCASE("with a grammar in the middle of rules within rules") {
    options.grammar = value(mixtral::Grammar::from_gbnf(
        "root ::= \"x\" a \"y\"{3}\na ::= \"(\" b \")\" \".\"\nb ::= \"[\" [a-z]{20} \"]\" \";\""));
  }
  SUBCASE("with half characters") {
    options.grammar =
        value(mixtral::Grammar::from_gbnf("root ::= [\u4E00-\u4FFF\U0001F600]{12,20}"));
  }
  const mixtral::Grammar grammar = options.grammar;
  const auto write_to = [](Blob& blob) {
    return [&blob](const void* from, std::size_t size) {
      const auto* bytes = static_cast<const std::uint8_t*>(from);
      blob.insert(blob.end(), bytes, bytes + size);
      return true;
    };
  };
  mixtral::Session s = session(model, 128);
  REQUIRE(s.append(prompt));
  std::vector<Blob> saved;
  std::vector<std::string> before;  // the text seen when each was saved
  std::string text;
  auto generation = s.generate(options);
  for (;;) {
    saved.emplace_back();
    before.push_back(text);
    const mixtral::Status status = generation.save(write_to(saved.back()));
    REQUIRE_MESSAGE(status, status.error().message());
    if (generation.stop_reason() != StopReason::none) break;
    generation.next();
    text += generation.piece();
  }
  REQUIRE(saved.size() > (options.stop.size() == 1 ? 1 : 8));
  mixtral::Session other = session(model, 200);
  for (std::size_t i = 0; i < saved.size(); ++i) {
    std::size_t at = 0;
    const auto read = [&](void* to, std::size_t size) {
      if (size > saved[i].size() - at) return false;
      std::memcpy(to, saved[i].data() + at, size);
      at += size;
      return true;
    };
    auto loaded = value(other.load_generation(read, grammar));
    CHECK(at == saved[i].size());
    Blob again;
    REQUIRE(loaded.save(write_to(again)));
    CHECK(again == saved[i]);
    CHECK(loaded.piece().empty());
    std::string whole = before[i];
    while (loaded.stop_reason() == StopReason::none) {
      loaded.next();
      whole += loaded.piece();
    }
    CHECK(whole == text);
    CHECK(loaded.stop_reason() == generation.stop_reason());
    CHECK(std::equal(s.tokens().begin(), s.tokens().end(), other.tokens().begin(),
                     other.tokens().end()));
    CHECK(loaded.log_probability() == generation.log_probability());
    // A saved generation is a saved session, too.
    at = 0;
    REQUIRE(other.load(read));
    CHECK(at < saved[i].size());
  }

  if (saved.size() < 8) return;
  // The parts of two saves do not belong together.
  const auto size_of_session = [&](const Blob& blob) {
    std::size_t at = 0;
    REQUIRE(other.load([&](void* to, std::size_t size) {
      std::memcpy(to, blob.data() + at, size);
      at += size;
      return true;
    }));
    return static_cast<std::ptrdiff_t>(at);
  };
  Blob mixed(saved[3].begin(), saved[3].begin() + size_of_session(saved[3]));
  mixed.insert(mixed.end(), saved[5].begin() + size_of_session(saved[5]), saved[5].end());
  std::size_t mixed_at = 0;
  CHECK(!other.load_generation(
      [&](void* to, std::size_t size) {
        std::memcpy(to, mixed.data() + mixed_at, size);
        mixed_at += size;
        return true;
      },
      grammar));

  // What is damaged is refused, and leaves an empty session.
  std::mt19937 random(1);
  std::size_t session_size = 0;
  {
    std::size_t at = 0;
    REQUIRE(other.load([&](void* to, std::size_t size) {
      std::memcpy(to, saved[5].data() + at, size);
      at += size;
      return true;
    }));
    session_size = at;
  }
  for (int round = 0; round < 800; ++round) {
    Blob bad = saved[5];
    const std::size_t at = session_size + random() % (bad.size() - session_size);
    if (round % 4 == 0) {
      bad.resize(at);
    } else {
      bad[at] = static_cast<std::uint8_t>(bad[at] ^ (1u << random() % 8));
    }
    std::size_t place = 0;
    const auto refused = other.load_generation(
        [&](void* to, std::size_t size) {
          if (size > bad.size() - place) return false;
          std::memcpy(to, bad.data() + place, size);
          place += size;
          return true;
        },
        grammar);
    REQUIRE(!refused);
    CHECK(refused.error().code() != mixtral::ErrorCode::out_of_memory);
    CHECK(other.tokens().empty());
  }
}

TEST_CASE("generation: what cannot be saved or loaded says why") {
  const mixtral::Model model = open(bundled_model());
  const auto grammar = value(mixtral::Grammar::from_choices({"yes", "no"}));
  const auto another = value(mixtral::Grammar::from_choices({"yes", "maybe"}));
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once"));
  mixtral::GenerateOptions options;
  options.grammar = grammar;
  Blob with, without, session_alone;
  const auto write_to = [](Blob& blob) {
    return [&blob](const void* from, std::size_t size) {
      const auto* bytes = static_cast<const std::uint8_t*>(from);
      blob.insert(blob.end(), bytes, bytes + size);
      return true;
    };
  };
  REQUIRE(s.generate(options).save(write_to(with)));
  REQUIRE(s.generate().save(write_to(without)));
  REQUIRE(s.save(write_to(session_alone)));
  const auto load = [&](const Blob& blob, const mixtral::Grammar& with_grammar) {
    std::size_t at = 0;
    return s.load_generation(
        [&](void* to, std::size_t size) {
          if (size > blob.size() - at) return false;
          std::memcpy(to, blob.data() + at, size);
          at += size;
          return true;
        },
        with_grammar);
  };
  CHECK(load(with, grammar));
  CHECK(load(without, {}));
  const auto check_refused = [&](const Blob& blob, const mixtral::Grammar& g, const char* part) {
    const auto refused = load(blob, g);
    REQUIRE(!refused);
    CAPTURE(refused.error().message());
    CHECK(std::string(refused.error().message()).find(part) != std::string::npos);
    CHECK(s.tokens().empty());
  };
  check_refused(with, another, "another grammar");
  check_refused(with, {}, "another grammar");
  check_refused(without, grammar, "no grammar");
  check_refused(session_alone, {}, "read failed");
  REQUIRE(s.append("Once"));
  auto generation = s.generate();
  int n_writes = 0;
  const auto refused = generation.save([&](const void*, std::size_t) { return ++n_writes < 10; });
  REQUIRE(!refused);
  CHECK(refused.error().code() == mixtral::ErrorCode::io);
  options.sampling.top_p = 7.0f;
  CHECK(!s.generate(options).save(write_to(with)));
}

namespace {

// Options under which the model chooses this one token again and again.
mixtral::GenerateOptions always(Token token, std::uint32_t max_tokens) {
  mixtral::GenerateOptions options;
  options.max_tokens = max_tokens;
  options.sampling.logit_bias = {{token, 1e9f}};
  return options;
}

}  // namespace

TEST_CASE(
    "generation: what a character lacks at the end is given out as U+FFFD, for every reason to "
    "end") {
  const mixtral::Model model = open(bundled_model());
  const mixtral::Tokenizer& t = model.tokenizer();
  const Token lead = t.find("<0xE2>"), other = t.find("<0x82>");
  REQUIRE(lead != mixtral::kNoToken);
  const std::string broken = "\uFFFD";
  mixtral::Session s = session(model, 64);
  const auto generate = [&](const mixtral::GenerateOptions& options, StopReason reason) {
    s.clear();
    REQUIRE(s.append("Once"));
    auto generation = s.generate(options);
    std::vector<std::string> pieces;
    for (const std::string_view piece : generation) pieces.emplace_back(piece);
    CHECK(generation.stop_reason() == reason);
    return pieces;
  };
  using Pieces = std::vector<std::string>;
  CHECK(generate(always(lead, 1), StopReason::max_tokens) == Pieces{broken});
  CHECK(generate(always(lead, 2), StopReason::max_tokens) == Pieces{broken, broken});
  CHECK(generate(always(t.find("<0x41>"), 2), StopReason::max_tokens) == Pieces{"A", "A"});
  // After the last piece nothing is given out twice.
  s.clear();
  REQUIRE(s.append("Once"));
  auto generation = s.generate(always(lead, 1));
  CHECK(generation.next());
  CHECK(generation.piece().empty());
  CHECK(!generation.next());
  CHECK(generation.piece() == broken);
  CHECK(!generation.next());
  CHECK(generation.piece().empty());
  CHECK(generation.stop_reason() == StopReason::max_tokens);
  // EOS and stop tokens end it within a character, too.
  for (const bool by_stop_token : {false, true}) {
    s.clear();
    REQUIRE(s.append("Once"));
    auto options = always(lead, 9);
    if (by_stop_token) options.stop_tokens = {other};
    auto ended = s.generate(options);
    CHECK(ended.next());
    CHECK(ended.piece().empty());
    REQUIRE(ended.set_sampling(always(by_stop_token ? other : t.eos(), 9).sampling));
    CHECK(!ended.next());
    CHECK(ended.piece() == broken);
    CHECK(ended.stop_reason() ==
          (by_stop_token ? StopReason::stop_token : StopReason::end_of_text));
  }
  // A cancelled one, and one for which the session has no room.
  s.clear();
  REQUIRE(s.append("Once"));
  auto cancelled = s.generate(always(lead, 9));
  CHECK(cancelled.next());
  s.cancel();
  CHECK(!cancelled.next());
  CHECK(cancelled.piece() == broken);
  CHECK(cancelled.stop_reason() == StopReason::cancelled);
  // Text that is held back comes out together with it.
  auto options = always(lead, 2);
  options.stop = {broken + broken + "!"};
  CHECK(generate(options, StopReason::max_tokens) == Pieces{broken + broken});
}

TEST_CASE("generation: each reason to end, what is a token of the session then, and what is not") {
  const mixtral::Model model = open(bundled_model());
  const mixtral::Tokenizer& t = model.tokenizer();
  const Token letter = t.find("<0x41>");
  const auto prompt = value(t.encode("Once", {true, true}));
  const auto size = static_cast<std::uint32_t>(prompt.size());
  struct Ended {
    StopReason reason;
    std::string text;
    std::size_t n_tokens;  // beyond the prompt
    Token token;
  };
  const auto run = [&](const mixtral::GenerateOptions& options, std::uint32_t room) {
    mixtral::Session s = session(model, size + room);
    REQUIRE(s.append({prompt.data(), prompt.size()}));
    auto generation = s.generate(options);
    Ended ended{};
    for (const std::string_view piece : generation) ended.text += piece;
    ended.reason = generation.stop_reason();
    ended.n_tokens = s.tokens().size() - prompt.size();
    ended.token = generation.token();
    return ended;
  };
  const auto check = [](const Ended& ended, StopReason reason, const char* text,
                        std::size_t n_tokens, Token token) {
    CAPTURE(std::string(mixtral::stop_reason_name(ended.reason)));
    CHECK(ended.reason == reason);
    CHECK(ended.text == text);
    CHECK(ended.n_tokens == n_tokens);
    CHECK(ended.token == token);
  };
  check(run(always(letter, 0), 9), StopReason::max_tokens, "", 0, mixtral::kNoToken);
  check(run(always(letter, 3), 9), StopReason::max_tokens, "AAA", 3, letter);
  // The session's last token may be generated, one beyond it is chosen, but has no room.
  check(run(always(letter, 3), 3), StopReason::max_tokens, "AAA", 3, letter);
  check(run(always(letter, 4), 3), StopReason::context_full, "AAA", 3, letter);
  check(run(always(letter, 4), 0), StopReason::context_full, "", 0, letter);
  check(run(always(t.eos(), 4), 9), StopReason::end_of_text, "", 0, t.eos());
  auto options = always(t.eos(), 4);
  options.stop_tokens = {t.eos()};
  check(run(options, 9), StopReason::end_of_text, "", 0, t.eos());
  options = always(letter, 4);
  options.stop_tokens = {letter, static_cast<Token>(t.size() - 1)};
  check(run(options, 9), StopReason::stop_token, "", 0, letter);
  options = always(letter, 4);
  options.stop = {"AAA"};
  check(run(options, 9), StopReason::stop_string, "", 3, letter);
  options.stop = {"AAAAA"};
  check(run(options, 9), StopReason::max_tokens, "AAAA", 4, letter);
  options = always(letter, 9);
  options.grammar = value(mixtral::Grammar::from_gbnf("root ::= \"AA\""));
  check(run(options, 9), StopReason::grammar_end, "AA", 2, letter);
  // What a grammar ends is ended before its tokens are counted.
  options.max_tokens = 2;
  check(run(options, 9), StopReason::grammar_end, "AA", 2, letter);
  options.max_tokens = 1;
  check(run(options, 9), StopReason::max_tokens, "A", 1, letter);
  options = {};
  options.stop_tokens = {static_cast<Token>(t.size())};
  check(run(options, 9), StopReason::error, "", 0, mixtral::kNoToken);

  const std::pair<StopReason, const char*> names[] = {{StopReason::none, "none"},
                                                      {StopReason::end_of_text, "end_of_text"},
                                                      {StopReason::stop_token, "stop_token"},
                                                      {StopReason::stop_string, "stop_string"},
                                                      {StopReason::grammar_end, "grammar_end"},
                                                      {StopReason::max_tokens, "max_tokens"},
                                                      {StopReason::context_full, "context_full"},
                                                      {StopReason::cancelled, "cancelled"},
                                                      {StopReason::error, "error"},
                                                      {static_cast<StopReason>(99), "unknown"}};
  for (const auto& [reason, name] : names)
    CHECK(std::string(mixtral::stop_reason_name(reason)) == name);
}

TEST_CASE("generation: of what a saved one says, each number is checked against its limits") {
  const mixtral::Model model = open(bundled_model());
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append("Once"));
  mixtral::GenerateOptions options = always(model.tokenizer().find("n"), 5);
  options.sampling.temperature = 1.0f;
  options.stop = {"nnnnnnnnn"};
  auto generation = s.generate(options);
  REQUIRE(generation.next());
  REQUIRE(generation.next());
  REQUIRE(generation.piece().empty());
  Blob saved, session_alone;
  const auto write_to = [](Blob& blob) {
    return [&blob](const void* from, std::size_t size) {
      const auto* bytes = static_cast<const std::uint8_t*>(from);
      blob.insert(blob.end(), bytes, bytes + size);
      return true;
    };
  };
  REQUIRE(generation.save(write_to(saved)));
  REQUIRE(s.save(write_to(session_alone)));
  // The parts of which impl/snapshot.hpp tells, as the transfer functions of impl/generation.hpp write them.
  enum Part : std::size_t {
    magic,
    version,
    checksum,
    reason,
    max_tokens,
    temperature,
    top_k,
    typical_p,
    top_p,
    min_p,
    repetition_penalty,
    frequency_penalty,
    presence_penalty,
    penalty_window,
    seed,
    n_tokens,
    tokens,
    n_biases,
    biases,
    n_stops,
    stop_size,
    stop,
    n_stop_tokens,
    stop_tokens,
    has_grammar,
    fingerprint,
    n_generated,
    token,
    log_probability,
    n_drawn,
    pending,
    n_pending,
    at_begin,
    took_space,
    produced_text,
    held_back_size,
    held_back
  };
  const std::size_t sizes[] = {8, 4, 8, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 4, 8, 4,
                               8, 8, 9, 8, 0, 1, 8, 4, 4, 8, 8, 4, 1, 1, 1, 1, 8, 2};
  std::vector<Blob> parts;
  std::size_t at = session_alone.size();
  for (const std::size_t size : sizes) {
    REQUIRE(at + size <= saved.size());
    parts.emplace_back(saved.begin() + static_cast<std::ptrdiff_t>(at),
                       saved.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
  }
  REQUIRE(at + 8 == saved.size());
  const auto joined = [&](const std::vector<Blob>& from) {
    Blob out = session_alone;
    std::uint64_t sum = 0xCBF29CE484222325u;
    for (const Blob& part : from) {
      out.insert(out.end(), part.begin(), part.end());
      for (std::size_t i = 0; i < part.size(); i += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, part.data() + i, std::min<std::size_t>(8, part.size() - i));
        sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
        sum ^= sum >> 32;
      }
    }
    GgufWriter::put(sum, out);
    return out;
  };
  REQUIRE(joined(parts) == saved);
  REQUIRE(parts[held_back] == Blob{'n', 'n'});
  mixtral::Session other = session(model, 64);
  const auto load = [&](const std::vector<Blob>& from) {
    const Blob blob = joined(from);
    std::size_t place = 0;
    return other.load_generation([&](void* to, std::size_t size) {
      if (size > blob.size() - place) return false;
      std::memcpy(to, blob.data() + place, size);
      place += size;
      return true;
    });
  };
  const auto with = [&](Part part, auto number) {
    std::vector<Blob> changed = parts;
    changed[part].clear();
    GgufWriter::put(number, changed[part]);
    return changed;
  };
  const auto check_refused = [&](const std::vector<Blob>& changed,
                                 mixtral::ErrorCode code = mixtral::ErrorCode::bad_format) {
    const auto refused = load(changed);
    REQUIRE(!refused);
    CAPTURE(refused.error().message());
    CHECK(refused.error().code() == code);
    CHECK(other.tokens().empty());
  };
  const auto u32 = [](auto v) { return static_cast<std::uint32_t>(v); };
  const auto u64 = [](auto v) { return static_cast<std::uint64_t>(v); };
  const auto u8 = [](auto v) { return static_cast<std::uint8_t>(v); };
  REQUIRE(load(parts));
  std::vector<Blob> changed = parts;
  changed[magic][7] = 'S';
  check_refused(changed);
  check_refused(with(version, u32(0)));
  check_refused(with(version, u32(2)));
  changed = parts;
  changed[checksum][0] = static_cast<std::uint8_t>(changed[checksum][0] ^ 1);
  check_refused(changed);
  // Reasons other than an error, which is never saved.
  for (std::uint32_t r = 0; r < u32(StopReason::error); ++r) {
    const auto loaded = load(with(reason, r));
    REQUIRE(loaded);
    CHECK(loaded->stop_reason() == static_cast<StopReason>(r));
    const bool is_cancelled = loaded->stop_reason() == StopReason::cancelled;
    CHECK((loaded->error().code() == mixtral::ErrorCode::cancelled) == is_cancelled);
  }
  check_refused(with(reason, u32(StopReason::error)));
  check_refused(with(reason, u32(StopReason::error) + 1));
  check_refused(with(reason, ~std::uint32_t{0}));
  // Two tokens were generated.
  auto at_limit = value(load(with(max_tokens, u32(2))));
  CHECK(!at_limit.next());
  CHECK(at_limit.stop_reason() == StopReason::max_tokens);
  CHECK(at_limit.piece() == "nn");
  check_refused(with(max_tokens, u32(1)));
  check_refused(with(n_generated, u32(6)));
  CHECK(load(with(n_generated, u32(5))));
  // Options as they are checked at the beginning of a generation.
  check_refused(with(temperature, -1.0f));
  check_refused(with(typical_p, 1.5f));
  check_refused(with(top_p, 1.5f));
  check_refused(with(min_p, -0.5f));
  check_refused(with(repetition_penalty, 0.0f));
  check_refused(with(frequency_penalty, std::numeric_limits<float>::infinity()));
  check_refused(with(presence_penalty, std::numeric_limits<float>::quiet_NaN()));
  const auto vocab_size = static_cast<Token>(model.tokenizer().size());
  CHECK(load(with(tokens, vocab_size - 1)));
  check_refused(with(tokens, vocab_size));
  check_refused(with(biases, std::numeric_limits<float>::quiet_NaN()));
  // As many biases as tokens.
  changed = with(n_biases, u64(0));
  changed[biases].clear();
  check_refused(changed);
  changed = with(n_tokens, u64(0));
  changed[tokens].clear();
  check_refused(changed);
  changed = with(stop_size, u64(0));
  changed[stop].clear();
  check_refused(changed);
  changed = with(stop_size, u64(mixtral::StopStrings::kLongest));
  changed[stop].assign(mixtral::StopStrings::kLongest, 'n');
  CHECK(load(changed));
  changed = with(stop_size, u64(mixtral::StopStrings::kLongest + 1));
  changed[stop].assign(mixtral::StopStrings::kLongest + 1, 'n');
  check_refused(changed);
  for (const std::size_t list : {n_tokens, n_biases, n_stops, n_stop_tokens, held_back_size}) {
    check_refused(with(static_cast<Part>(list), ~std::uint64_t{0}));
    check_refused(with(static_cast<Part>(list), (std::uint64_t{1} << 24) + 1));
  }
  changed = with(n_stop_tokens, u64(1));
  changed[stop_tokens] = {5, 0, 0, 0};
  CHECK(load(changed));
  changed[stop_tokens] = {0xFF, 0xFF, 0xFF, 0xFF};
  check_refused(changed);
  check_refused(with(has_grammar, u8(1)), mixtral::ErrorCode::invalid_argument);
  check_refused(with(has_grammar, u8(2)));
  for (const Part flag : {at_begin, took_space, produced_text}) {
    CHECK(load(with(flag, u8(1))));
    check_refused(with(flag, u8(2)));
  }
  CHECK(load(with(token, Token{mixtral::kNoToken})));
  CHECK(load(with(token, vocab_size - 1)));
  check_refused(with(token, vocab_size));
  check_refused(with(token, Token{-2}));
  check_refused(with(n_drawn, (std::uint64_t{1} << 28) + 1));
  // Three bytes of a character may be waiting for the fourth.
  CHECK(load(with(n_pending, u8(3))));
  check_refused(with(n_pending, u8(4)));
  check_refused(with(n_pending, u8(255)));
  changed = parts;
  changed[held_back] = {'n', 'o'};
  check_refused(changed);
  // Random numbers go on with as many as were drawn: none are refused.
  CHECK(load(with(n_drawn, u64(0))));
}
