// The Instruct format against ids made with the published tokenizer.
#include "small_stack.hpp"

#include <list>
#include <mixtral/tools.hpp>

using namespace support;
using mixtral::ChatFormat;
using mixtral::Message;
using mixtral::Token;
using mixtral::Turn;

namespace {

std::vector<Token> encode_as(ChatFormat format, const mixtral::Tokenizer& tokenizer,
                             const std::vector<Message>& messages,
                             const mixtral::ChatOptions& options = {}) {
  std::pmr::vector<Token> out;
  Turn turn = Turn::start;
  const auto status = mixtral::encode_chat(tokenizer, format, {messages.data(), messages.size()},
                                           options, turn, out);
  REQUIRE_MESSAGE(status, status.error().message());
  return {out.begin(), out.end()};
}

std::vector<Token> encode(const mixtral::Tokenizer& tokenizer, const std::vector<Message>& messages,
                          bool continue_answer = false) {
  mixtral::ChatOptions options;
  options.continue_answer = continue_answer;
  return encode_as(ChatFormat::mistral_v1, tokenizer, messages, options);
}

// The tokens' pieces in a row, which shows where texts were cut.
std::string pieces_of(const mixtral::Tokenizer& tokenizer, const std::vector<Token>& tokens) {
  std::string text;
  for (const Token token : tokens) {
    std::string piece(tokenizer.piece(token).text);
    for (std::size_t at; (at = piece.find("\xE2\x96\x81")) != std::string::npos;) {
      piece.replace(at, 3, "_");
    }
    text += piece == "<0x0A>" ? "\n" : piece;
  }
  return text;
}

}  // namespace

TEST_CASE("chat: the v1 Instruct format of the real tokenizer" *
          needs_shared("tokenizer/mixtral-8x7b-v1.chat.json")) {
  const auto tokenizer = value(mixtral::Tokenizer::from_sentencepiece(
      bytes(read_file(shared("tokenizer/mixtral-8x7b-v1.tokenizer.model")))));
  const Blob text = read_file(shared("tokenizer/mixtral-8x7b-v1.chat.json"));
  const auto cases = nlohmann::json::parse(text.begin(), text.end());
  CHECK(cases.size() >= 9);
  for (const auto& c : cases) {
    CAPTURE(c["name"].get<std::string>());
    std::vector<std::string> keep;
    keep.reserve(64);
    std::vector<Message> messages;
    if (!c["system"].is_null()) {
      messages.push_back({"system", keep.emplace_back(c["system"].get<std::string>())});
    }
    for (const auto& m : c["messages"]) {
      const std::string_view role = keep.emplace_back(m["role"].get<std::string>());
      messages.push_back({role, keep.emplace_back(m["content"].get<std::string>())});
    }
    const auto ids = c["ids"].get<std::vector<Token>>();
    CHECK(encode(tokenizer, messages) == ids);
    if (messages.back().role == "assistant") {
      auto open_ended = ids;
      open_ended.pop_back();
      CHECK(encode(tokenizer, messages, true) == open_ended);
    }
  }
}

TEST_CASE("chat: one turn is what the golden prompt has") {
  const mixtral::Model model = open(bundled_model());
  const auto expected = golden("chat");
  const std::string before = "[INST] ", after = " [/INST]", text = expected["text"];
  REQUIRE(text.size() > before.size() + after.size());
  const std::string question =
      text.substr(before.size(), text.size() - before.size() - after.size());
  CHECK(encode(model.tokenizer(), {{"user", question}}) ==
        expected["ids"].get<std::vector<Token>>());
}

TEST_CASE("chat: roles out of order are refused and change nothing") {
  const mixtral::Model model = open(bundled_model());
  const std::vector<std::pair<std::vector<Message>, const char*>> cases = {
      {{}, "without messages"},
      {{{"assistant", "a"}}, "message 0"},
      {{{"user", "a"}, {"user", "b"}}, "message 1"},
      {{{"user", "a"}, {"assistant", "b"}, {"assistant", "c"}}, "message 2"},
      {{{"user", "a"}, {"system", "b"}}, "message 1"},
      {{{"system", "a"}}, "user turn must follow"},
      {{{"system", "a"}, {"assistant", "b"}}, "message 1"},
      {{{"tool", "a"}}, "'tool'"},
  };
  for (const auto& [messages, part] : cases) {
    std::pmr::vector<Token> out = {7};
    Turn turn = Turn::start;
    const auto status = mixtral::encode_chat(model.tokenizer(), model.chat_format(),
                                             {messages.data(), messages.size()}, {}, turn, out);
    REQUIRE(!status);
    CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
    CHECK_MESSAGE(std::string(status.error().message()).find(part) != std::string::npos,
                  status.error().message());
    CHECK(out.size() == 1);
    CHECK(turn == Turn::start);
  }
}

TEST_CASE("chat: turn by turn in a session equals the whole conversation") {
  const mixtral::Model model = open(bundled_model());
  const auto whole = encode(model.tokenizer(), {{"system", "Be kind."},
                                                {"user", "Tell me a story."},
                                                {"assistant", "Once upon a time."},
                                                {"user", "Go on."}});
  mixtral::Session s = session(model, 200);
  REQUIRE(s.append_chat({{"system", "Be kind."}, {"user", "Tell me a story."}}));
  mixtral::ChatOptions open_answer;
  open_answer.continue_answer = true;
  SUBCASE("the answer given as text, left open") {
    REQUIRE(s.append_chat({{"assistant", "Once upon a time."}}, open_answer));
  }
  SUBCASE("the answer given complete") {
    REQUIRE(s.append_chat({{"assistant", "Once upon a time."}}));
  }
  SUBCASE("the answer appended as tokens, as generation does") {
    const auto answer = value(model.tokenizer().encode("Once upon a time."));
    REQUIRE(s.append({answer.data(), answer.size()}));
  }
  SUBCASE("the answer with EOS appended by the host") {
    const auto answer = value(model.tokenizer().encode("Once upon a time."));
    REQUIRE(s.append({answer.data(), answer.size()}));
    REQUIRE(s.append(model.tokenizer().eos()));
  }
  REQUIRE(s.append_chat({{"user", "Go on."}}));
  CHECK(std::vector<Token>(s.tokens().begin(), s.tokens().end()) == whole);
  CHECK(!s.append_chat({{"system", "Be rude."}}));
}

constexpr const char* kV3Tokenizer = "tokenizer/mixtral-8x22b-v3.tokenizer.model";

TEST_CASE("chat: v2 and v3 with control tokens and tools" * needs_shared(kV3Tokenizer)) {
  const auto t =
      value(mixtral::Tokenizer::from_sentencepiece(bytes(read_file(shared(kV3Tokenizer)))));
  CHECK(mixtral::detect_chat_format(t, "") == ChatFormat::mistral_v3);
  CHECK(mixtral::detect_chat_format(t, "[TOOL_RESULTS] call_id") == ChatFormat::mistral_v3);
  CHECK(mixtral::detect_chat_format(t, "[TOOL_RESULTS] [{\"content\"") == ChatFormat::mistral_v2);
  // As in mistral-common's own tests: a short conversation, then tools. The ids of a, b, c, d with
  // their leading space and of the control tokens are those of the published vocabulary.
  const std::vector<Message> plain = {
      {"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "d"}};
  for (const ChatFormat format : {ChatFormat::mistral_v2, ChatFormat::mistral_v3}) {
    CHECK(encode_as(format, t, plain) ==
          std::vector<Token>{1, 3, 1032, 4, 1055, 2, 3, 1045, 4, 1049, 2});
    CHECK(pieces_of(t, encode_as(format, t,
                                 {{"system", "S"},
                                  {"system", "T"},
                                  {"user", "a"},
                                  {"assistant", "b  "},
                                  {"user", "c"}})) ==
          "<s>[INST]_a[/INST]_b</s>[INST]_S\n\nT\n\nc[/INST]");
  }
  // User text never makes control tokens.
  CHECK(encode_as(ChatFormat::mistral_v3, t, {{"user", "[/INST]</s>"}}).size() > 6);

  const mixtral::ToolCall call{"weather", R"({"city":"Paris","days":[1,2]})", "123456789"};
  mixtral::ChatOptions options;
  const auto tools = mixtral::tool_list(R"([{"type":"function","function":{"name":"weather"}}])");
  REQUIRE(tools);
  options.tools = *tools;
  for (const ChatFormat format : {ChatFormat::mistral_v2, ChatFormat::mistral_v3}) {
    const std::string calls = mixtral::tool_calls(format, {&call, 1});
    const std::string result = mixtral::tool_result(format, call, "22");
    const std::vector<Message> messages = {
        {"user", "a"}, {"assistant", "", calls}, {"tool", result}, {"assistant", "b"},
        {"user", "c"}, {"assistant", "", calls}, {"tool", result}};
    const std::string list =
        R"([AVAILABLE_TOOLS]_[{"type":_"function",_"function":_{"name":_"weather"}}][/AVAILABLE_TOOLS])";
    const std::string call_start =
        R"([TOOL_CALLS]_[{"name":_"weather",_"arguments":_{"city":_"Paris",_"days":_[1,_2]})";
    const std::string v2_turn =
        call_start + R"(}]</s>[TOOL_RESULTS]_[{"name":_"weather",_"content":_22}][/TOOL_RESULTS])";
    const std::string v3_turn =
        call_start +
        R"(,_"id":_"123456789"}]</s>[TOOL_RESULTS]_{"content":_22,_"call_id":_"123456789"}[/TOOL_RESULTS])";
    CHECK(pieces_of(t, encode_as(format, t, messages, options)) ==
          (format == ChatFormat::mistral_v2
               ? "<s>[INST]_a[/INST]_b</s>" + list + "[INST]_c[/INST]" + v2_turn
               : "<s>[INST]_a[/INST]" + v3_turn + "_b</s>" + list + "[INST]_c[/INST]" + v3_turn));
    const auto back = mixtral::parse_tool_calls(calls);
    REQUIRE(back);
    REQUIRE(back->size() == 1);
    CHECK((*back)[0].name == "weather");
    CHECK((*back)[0].arguments == R"({"city": "Paris", "days": [1, 2]})");
    CHECK((*back)[0].id == (format == ChatFormat::mistral_v3 ? "123456789" : ""));
  }
  // Text that is no JSON becomes a JSON string.
  CHECK(mixtral::tool_result(ChatFormat::mistral_v3, call, "warm \"here\"") ==
        R"({"content": "warm \"here\"", "call_id": "123456789"})");
  CHECK(!mixtral::tool_list("{}"));
  for (const char* broken : {"", "{}", "[1]", "[{\"name\": \"a\"}]", "[{]"}) {
    CHECK(!mixtral::parse_tool_calls(broken));
  }
  CHECK(!mixtral::parse_tool_calls(std::string(100000, '[')));
}

TEST_CASE("chat: tools need a format that has them, and calls come before results") {
  const mixtral::Model model = open(bundled_model());
  const auto error = [&](ChatFormat format, const std::vector<Message>& messages,
                         mixtral::ChatOptions options = {}) {
    std::pmr::vector<Token> out;
    Turn turn = Turn::start;
    const auto status = mixtral::encode_chat(
        model.tokenizer(), format, {messages.data(), messages.size()}, options, turn, out);
    REQUIRE(!status);
    CHECK(out.empty());
    return std::string(status.error().message());
  };
  const auto has = [](const std::string& text, const char* part) {
    INFO(text);
    return text.find(part) != std::string::npos;
  };
  mixtral::ChatOptions with_tools;
  with_tools.tools = "[]";
  CHECK(has(error(ChatFormat::mistral_v1, {{"user", "a"}}, with_tools), "has no tools"));
  CHECK(has(error(ChatFormat::llama2, {{"user", "a"}, {"assistant", "", "[]"}}), "has no tools"));
  CHECK(has(error(ChatFormat::mistral_v3, {{"user", "a"}}), "control token [INST]"));
  CHECK(has(error(ChatFormat::mistral_v3, {{"user", "a"}, {"tool", "1"}}), "'tool'"));
  CHECK(has(error(ChatFormat::mistral_v3, {{"user", "a"}, {"assistant", "", "[]"}, {"user", "b"}}),
            "message 2"));
  CHECK(has(error(ChatFormat::mistral_v3, {{"user", "a", "[]"}}), "not of the assistant"));
  CHECK(has(error(ChatFormat::mistral_v3, {{"user", "a"}, {"assistant", "b", "[]"}}), "both"));
}

TEST_CASE("chat: Llama 2's format") {
  const mixtral::Model model = open(bundled_model());
  const auto& t = model.tokenizer();
  CHECK(mixtral::detect_chat_format(t, "{{ '<<SYS>>' }}") == ChatFormat::llama2);
  CHECK(mixtral::detect_chat_format(t, "") == ChatFormat::mistral_v1);
  // github.com/meta-llama/llama, generation.py: question and answer are one text, BOS and EOS around.
  std::vector<Token> expected;
  const auto add = [&](const char* text, bool end) {
    mixtral::EncodeOptions with_bos;
    with_bos.bos = true;
    const auto tokens = value(t.encode(text, with_bos));
    expected.insert(expected.end(), tokens.begin(), tokens.end());
    if (end) expected.push_back(t.eos());
  };
  add("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nTell me a story. [/INST] Once upon a time. ", true);
  add("[INST] Go on. [/INST]", false);
  CHECK(encode_as(ChatFormat::llama2, t,
                  {{"system", "Be kind."},
                   {"user", "Tell me a story. "},
                   {"assistant", " Once upon a time.\n"},
                   {"user", "\tGo on."}}) == expected);
}

TEST_CASE("chat: the format can be set by hand") {
  mixtral::ModelOptions options;
  options.chat_format = ChatFormat::llama2;
  const auto model = value(mixtral::Model::open(bundled_model().c_str(), options));
  CHECK(model.chat_format() == ChatFormat::llama2);
  mixtral::Session s = session(model, 64);
  REQUIRE(s.append_chat({{"user", "Hello"}}));
  CHECK(std::vector<Token>(s.tokens().begin(), s.tokens().end()) ==
        encode_as(ChatFormat::llama2, model.tokenizer(), {{"user", "Hello"}}));
}

TEST_CASE(
    "chat: JSON of tools is read on a small stack, up to a depth and a size that are stated") {
  const auto nested = [](std::size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  // Brackets in strings are none.
  const auto disguised = [&](std::size_t n) {
    return R"([{"name":"f","arguments":{"a":"\")" + std::string(n, ']') + R"(","b":)" + nested(n) +
           "}}]";
  };
  const mixtral::ToolCall call{"f", disguised(61), "123456789"};
  bool reads = false, reads_deeper = true, reads_deepest = true, lists = false, lists_deeper = true;
  std::string result, deeper, deepest, calls;
  on_small_stack([&] {
    reads = bool(mixtral::parse_tool_calls(disguised(61)));
    reads_deeper = bool(mixtral::parse_tool_calls(disguised(62)));
    reads_deepest = bool(mixtral::parse_tool_calls(disguised(200000)));
    lists = bool(mixtral::tool_list(nested(64)));
    lists_deeper = bool(mixtral::tool_list(nested(65)));
    result = mixtral::tool_result(ChatFormat::mistral_v3, call, nested(64));
    deeper = mixtral::tool_result(ChatFormat::mistral_v3, call, nested(65));
    deepest = mixtral::tool_result(ChatFormat::mistral_v2, call,
                                   R"({"a":"]]]","b":)" + nested(200000) + "}");
    calls = mixtral::tool_calls(ChatFormat::mistral_v3, {&call, 1});
  });
  CHECK(reads);
  CHECK(!reads_deeper);
  CHECK(!reads_deepest);
  CHECK(lists);
  CHECK(!lists_deeper);
  CHECK(result == R"({"content": )" + nested(64) + R"(, "call_id": "123456789"})");
  CHECK(deeper == R"({"content": ")" + nested(65) + R"(", "call_id": "123456789"})");
  CHECK(deepest.find(R"("content": "{\"a\":)") != std::string::npos);
  CHECK(calls.find(R"("arguments": [{"name": "f")") != std::string::npos);

  const auto members = [](int n) {
    std::string text = "{";
    for (int i = 0; i < n; ++i) text += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\":\"";
    return text + "}";
  };
  CHECK(mixtral::tool_list("[" + members(4096) + "," + members(4096) + "]"));
  CHECK(!mixtral::tool_list("[" + members(4097) + "]"));
  for (const char* text : {"", "\"", "\"\\", "]]]", "{:", ":::", "[}{]"}) {
    CHECK(!mixtral::tool_list(text));
  }
}

namespace {

// Every printable ASCII character, the line break and the control tokens of v2 and v3, so that pieces_of()
// shows a chat as it is.
mixtral::Tokenizer readable_tokenizer(
    bool with_tools = true, bool with_ends = true,
    mixtral::PieceType type_of_inst = mixtral::PieceType::control) {
  using mixtral::PieceType;
  mixtral::Vocabulary vocabulary(std::pmr::get_default_resource());
  vocabulary.pieces.push_back({"<unk>", 0.0f, PieceType::unknown});
  vocabulary.pieces.push_back({"<s>", 0.0f, PieceType::control});
  vocabulary.pieces.push_back({"</s>", 0.0f, PieceType::control});
  if (!with_ends) vocabulary.bos = vocabulary.eos = mixtral::kNoToken;
  vocabulary.pieces.push_back({"[INST]", 0.0f, type_of_inst});
  vocabulary.pieces.push_back({"[/INST]", 0.0f, PieceType::control});
  if (with_tools) {
    for (const char* text : {"[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
                             "[TOOL_RESULTS]", "[/TOOL_RESULTS]"}) {
      vocabulary.pieces.push_back({text, 0.0f, PieceType::control});
    }
  }
  std::list<std::string> texts = {"\u2581", "\n", "\t", "\v", "\f", "\r"};
  for (char c = '!'; c <= '~'; ++c) texts.emplace_back(1, c);
  for (const std::string& text : texts)
    vocabulary.pieces.push_back({text, 0.0f, PieceType::normal});
  return value(mixtral::Tokenizer::create(vocabulary, std::pmr::get_default_resource()));
}

struct Encoded {
  std::string text;  // or what the error says
  Turn turn;
};

Encoded encode_from(Turn turn, ChatFormat format, const std::vector<Message>& messages,
                    const mixtral::ChatOptions& options = {},
                    const mixtral::Tokenizer& tokenizer = readable_tokenizer()) {
  std::pmr::vector<Token> out = {0};
  const Turn before = turn;
  const auto status = mixtral::encode_chat(tokenizer, format, {messages.data(), messages.size()},
                                           options, turn, out);
  if (!status) {
    CHECK(out.size() == 1);
    CHECK(turn == before);
    CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
    return {status.error().message(), turn};
  }
  return {pieces_of(tokenizer, {out.begin() + 1, out.end()}), turn};
}

mixtral::ChatOptions going_on() {
  mixtral::ChatOptions options;
  options.continue_answer = true;
  return options;
}

}  // namespace

TEST_CASE("chat: each format's spelling of questions and answers, complete and continued") {
  const std::vector<Message> question = {{"user", "q"}};
  const std::vector<Message> answered = {{"user", "q"}, {"assistant", "a"}};
  const std::vector<Message> again = {{"user", "q"}, {"assistant", "a"}, {"user", "r"}};
  const std::vector<Message> rest = {{"assistant", "a"}, {"user", "r"}, {"assistant", "b"}};
  struct Spelling {
    ChatFormat format;
    const char *question, *answered, *continued, *again, *rest;
  };
  for (const Spelling& s :
       {Spelling{ChatFormat::mistral_v1, "<s>_[INST]_q_[/INST]", "<s>_[INST]_q_[/INST]_a</s>",
                 "<s>_[INST]_q_[/INST]_a", "<s>_[INST]_q_[/INST]_a</s>_[INST]_r_[/INST]",
                 "_a</s>_[INST]_r_[/INST]_b"},
        Spelling{ChatFormat::mistral_v2, "<s>[INST]_q[/INST]", "<s>[INST]_q[/INST]_a</s>",
                 "<s>[INST]_q[/INST]_a", "<s>[INST]_q[/INST]_a</s>[INST]_r[/INST]",
                 "_a</s>[INST]_r[/INST]_b"},
        Spelling{ChatFormat::mistral_v3, "<s>[INST]_q[/INST]", "<s>[INST]_q[/INST]_a</s>",
                 "<s>[INST]_q[/INST]_a", "<s>[INST]_q[/INST]_a</s>[INST]_r[/INST]",
                 "_a</s>[INST]_r[/INST]_b"},
        // A complete answer has a space after it, one that goes on has none.
        Spelling{ChatFormat::llama2, "<s>_[INST]_q_[/INST]", "<s>_[INST]_q_[/INST]_a_</s>",
                 "<s>_[INST]_q_[/INST]_a", "<s>_[INST]_q_[/INST]_a_</s><s>_[INST]_r_[/INST]",
                 "_a_</s><s>_[INST]_r_[/INST]_b"}}) {
    CAPTURE(std::string(mixtral::chat_format_name(s.format)));
    const Encoded asked = encode_from(Turn::start, s.format, question);
    CHECK(asked.text == s.question);
    CHECK(asked.turn == Turn::answer);
    const Encoded complete = encode_from(Turn::start, s.format, answered);
    CHECK(complete.text == s.answered);
    CHECK(complete.turn == Turn::question);
    const Encoded continued = encode_from(Turn::start, s.format, answered, going_on());
    CHECK(continued.text == s.continued);
    CHECK(continued.turn == Turn::answer);
    CHECK(encode_from(Turn::start, s.format, again).text == s.again);
    CHECK(encode_from(Turn::start, s.format, again, going_on()).text == s.again);
    // Only the last answer goes on.
    CHECK(encode_from(Turn::answer, s.format, rest, going_on()).text == s.rest);
    // A question after an answer without EOS gets it first; after one with EOS it does not.
    const std::string next = std::string(s.again).substr(std::string(s.answered).size());
    CHECK(encode_from(Turn::question, s.format, {{"user", "r"}}).text == next);
    CHECK(encode_from(Turn::answer, s.format, {{"user", "r"}}).text == "</s>" + next);
  }
}

TEST_CASE("chat: spaces at the ends of texts are kept or taken away as each format has it") {
  const std::vector<Message> messages = {{"user", " \n q\t "}, {"assistant", " \t a \n\v\f\r "}};
  CHECK(encode_from(Turn::start, ChatFormat::mistral_v1, messages).text ==
        "<s>_[INST]__\n_q\t__[/INST]__\t_a_\n\v\f\r_</s>");
  // Trailing spaces of answers alone.
  for (const ChatFormat format : {ChatFormat::mistral_v2, ChatFormat::mistral_v3}) {
    CHECK(encode_from(Turn::start, format, messages).text ==
          "<s>[INST]__\n_q\t_[/INST]__\t_a_\n\v\f\r</s>");
    CHECK(encode_from(Turn::start, format, {{"user", ""}, {"assistant", "  "}}).text ==
          "<s>[INST][/INST]</s>");
  }
  CHECK(encode_from(Turn::start, ChatFormat::llama2, messages).text ==
        "<s>_[INST]_q_[/INST]_a_</s>");
  CHECK(encode_from(Turn::start, ChatFormat::llama2, {{"user", " "}, {"assistant", "\n"}}).text ==
        "<s>_[INST]__[/INST]__</s>");
}

TEST_CASE("chat: system text goes where each format has it, once, paragraphs apart") {
  const std::vector<Message> messages = {
      {"system", "s"}, {"system", "t"}, {"user", "q"}, {"assistant", "a"}, {"user", "r"}};
  CHECK(encode_from(Turn::start, ChatFormat::mistral_v1, messages).text ==
        "<s>_[INST]_s\n\nt\n\nq_[/INST]_a</s>_[INST]_r_[/INST]");
  for (const ChatFormat format : {ChatFormat::mistral_v2, ChatFormat::mistral_v3}) {
    CHECK(encode_from(Turn::start, format, messages).text ==
          "<s>[INST]_q[/INST]_a</s>[INST]_s\n\nt\n\nr[/INST]");
  }
  CHECK(encode_from(Turn::start, ChatFormat::llama2, messages).text ==
        "<s>_[INST]_<<SYS>>\ns\n\nt\n<</SYS>>\n\nq_[/INST]_a_</s><s>_[INST]_r_[/INST]");
  // Llama 2's reference strips system text and question together.
  CHECK(encode_from(Turn::start, ChatFormat::llama2, {{"system", " s "}, {"user", " q "}}).text ==
        "<s>_[INST]_<<SYS>>\n_s_\n<</SYS>>\n\n_q_[/INST]");
}

TEST_CASE("chat: calls and results of tools, one or several, in the list or generated") {
  mixtral::ChatOptions options;
  options.tools = "T";
  const std::vector<Message> messages = {
      {"user", "q"}, {"assistant", "", "c"}, {"tool", "1"}, {"tool", "2"}, {"assistant", "a"},
      {"user", "r"}, {"assistant", "", "d"}, {"tool", "3"}, {"tool", "4"}};
  const std::string first =
      "[TOOL_CALLS]_c</s>[TOOL_RESULTS]_1[/TOOL_RESULTS][TOOL_RESULTS]_2[/TOOL_RESULTS]";
  const std::string last =
      "[AVAILABLE_TOOLS]_T[/AVAILABLE_TOOLS][INST]_r[/INST][TOOL_CALLS]_d</s>"
      "[TOOL_RESULTS]_3[/TOOL_RESULTS][TOOL_RESULTS]_4[/TOOL_RESULTS]";
  // v2 leaves out calls and results from before the last question.
  const Encoded v2 = encode_from(Turn::start, ChatFormat::mistral_v2, messages, options);
  CHECK(v2.text == "<s>[INST]_q[/INST]_a</s>" + last);
  CHECK(v2.turn == Turn::answer);
  const Encoded v3 = encode_from(Turn::start, ChatFormat::mistral_v3, messages, options);
  CHECK(v3.text == "<s>[INST]_q[/INST]" + first + "_a</s>" + last);
  CHECK(v3.turn == Turn::answer);
  for (const ChatFormat format : {ChatFormat::mistral_v2, ChatFormat::mistral_v3}) {
    // A call ends with EOS, also where an answer would go on.
    const Encoded called = encode_from(Turn::answer, format, {{"assistant", "", "c"}}, going_on());
    CHECK(called.text == "[TOOL_CALLS]_c</s>");
    CHECK(called.turn == Turn::tool);
    const Encoded results =
        encode_from(Turn::tool, format, {{"tool", "1"}, {"tool", "2"}, {"assistant", "a"}});
    CHECK(results.text == "[TOOL_RESULTS]_1[/TOOL_RESULTS][TOOL_RESULTS]_2[/TOOL_RESULTS]_a</s>");
    CHECK(results.turn == Turn::question);
    // A call that was generated has no EOS yet: the first result gets it, the second does not.
    const Encoded generated =
        encode_from(Turn::answer, format, {{"tool", "1"}, {"tool", "2"}}, options);
    CHECK(generated.text == "</s>[TOOL_RESULTS]_1[/TOOL_RESULTS][TOOL_RESULTS]_2[/TOOL_RESULTS]");
    CHECK(generated.turn == Turn::answer);
    // Tools stand before the last question, and nowhere without one.
    CHECK(encode_from(Turn::start, format, {{"user", "q"}, {"assistant", "a"}, {"user", "r"}},
                      options)
              .text ==
          "<s>[INST]_q[/INST]_a</s>[AVAILABLE_TOOLS]_T[/AVAILABLE_TOOLS][INST]_r[/INST]");
    CHECK(encode_from(Turn::answer, format, {{"assistant", "a"}}, options).text == "_a</s>");
  }
}

TEST_CASE("chat: which role may come where, and where the chat stands after it") {
  constexpr const char* kCalls = "c";
  const Message system = {"system", "s"}, user = {"user", "u"}, assistant = {"assistant", "a"},
                tool = {"tool", "t"}, calls = {"assistant", "", kCalls};
  struct Case {
    Turn turn;
    std::vector<Message> messages;
    const char* error;  // null if there is none
    Turn after;
  };
  const std::vector<Case> cases = {
      {Turn::start, {user}, nullptr, Turn::answer},
      {Turn::start, {system, user}, nullptr, Turn::answer},
      {Turn::start, {system, system, user, assistant}, nullptr, Turn::question},
      {Turn::start, {user, calls}, nullptr, Turn::tool},
      {Turn::start, {user, calls, tool, calls, tool, tool}, nullptr, Turn::answer},
      {Turn::start, {user, calls, tool, assistant, user}, nullptr, Turn::answer},
      {Turn::start, {assistant}, "message 0 has the role 'assistant'; expected 'user'", {}},
      {Turn::start, {calls}, "message 0 has the role 'assistant'; expected 'user'", {}},
      {Turn::start, {tool}, "message 0 has the role 'tool'; expected 'tool' only after a call", {}},
      {Turn::start, {system}, "system text alone", {}},
      {Turn::start, {system, system}, "system text alone", {}},
      {Turn::start, {system, assistant}, "message 1", {}},
      {Turn::start, {system, tool}, "message 1", {}},
      {Turn::start, {user, system}, "message 1 has the role 'system'", {}},
      {Turn::start, {user, user}, "message 1 has the role 'user'; expected 'assistant'", {}},
      {Turn::start, {user, tool}, "message 1 has the role 'tool'", {}},
      {Turn::start, {user, assistant, assistant}, "message 2", {}},
      {Turn::start, {user, assistant, tool}, "message 2", {}},
      {Turn::start,
       {user, calls, user},
       "message 2 has the role 'user'; expected 'tool' after a call",
       {}},
      {Turn::start, {user, calls, assistant}, "message 2", {}},
      {Turn::start, {user, calls, calls}, "message 2", {}},
      {Turn::start,
       {user, calls, tool, user},
       "message 3 has the role 'user'; expected 'assistant'",
       {}},
      {Turn::start, {user, calls, tool, assistant, tool}, "message 4", {}},
      {Turn::answer, {user}, nullptr, Turn::answer},
      {Turn::answer, {assistant}, nullptr, Turn::question},
      {Turn::answer, {assistant, user, assistant}, nullptr, Turn::question},
      {Turn::answer, {calls}, nullptr, Turn::tool},
      {Turn::answer, {tool}, nullptr, Turn::answer},
      {Turn::answer, {tool, tool, assistant}, nullptr, Turn::question},
      {Turn::answer, {tool, user}, "message 1", {}},
      {Turn::answer, {system}, "'system' only as the very first messages", {}},
      {Turn::answer, {user, user}, "message 1", {}},
      {Turn::answer, {user, tool}, "message 1", {}},
      {Turn::answer, {assistant, assistant}, "message 1", {}},
      {Turn::answer, {assistant, tool}, "message 1", {}},
      {Turn::question, {user}, nullptr, Turn::answer},
      {Turn::question, {user, assistant}, nullptr, Turn::question},
      {Turn::question, {assistant}, "message 0", {}},
      {Turn::question, {tool}, "message 0", {}},
      {Turn::question, {system}, "message 0", {}},
      {Turn::question, {user, user}, "message 1", {}},
      {Turn::tool, {tool}, nullptr, Turn::answer},
      {Turn::tool, {tool, tool}, nullptr, Turn::answer},
      {Turn::tool, {tool, calls}, nullptr, Turn::tool},
      {Turn::tool, {user}, "message 0 has the role 'user'; expected 'tool' after a call", {}},
      {Turn::tool, {assistant}, "message 0", {}},
      {Turn::tool, {system}, "message 0", {}},
      {Turn::answer, {}, "without messages", {}},
      {Turn::start,
       {{"User", "u"}},
       "'User'; expected 'system', 'user', 'assistant' or 'tool'",
       {}},
      {Turn::start, {{"", "u"}}, "message 0", {}},
      {Turn::tool,
       {{"tool", "t", kCalls}},
       "message 0 has tool calls, but is not of the assistant",
       {}},
      {Turn::start, {{"user", "u", kCalls}}, "not of the assistant", {}},
      {Turn::start, {{"system", "u", kCalls}, user}, "not of the assistant", {}},
      {Turn::answer, {{"assistant", "a", kCalls}}, "both content and tool calls", {}},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(i);
    const Case& one = cases[i];
    const Encoded encoded = encode_from(one.turn, ChatFormat::mistral_v3, one.messages);
    CAPTURE(encoded.text);
    if (one.error == nullptr) {
      CHECK(encoded.turn == one.after);
    } else {
      CHECK(encoded.text.find(one.error) != std::string::npos);
    }
  }
  // An error tells 40 bytes of a role, however long it is.
  const std::string role(41, 'r');
  const Encoded encoded = encode_from(Turn::start, ChatFormat::mistral_v1, {{role, ""}});
  CHECK(encoded.text.find("'" + role.substr(1) + "'") != std::string::npos);
}

TEST_CASE("chat: control tokens that a format needs are looked for, and are no ordinary pieces") {
  const mixtral::Tokenizer without_tools = readable_tokenizer(false);
  const mixtral::Tokenizer ordinary = readable_tokenizer(true, true, mixtral::PieceType::normal);
  const auto encoded = [](const mixtral::Tokenizer& t, ChatFormat format,
                          const std::vector<Message>& messages, const char* tools = "") {
    mixtral::ChatOptions options;
    options.tools = tools;
    return encode_from(Turn::start, format, messages, options, t).text;
  };
  const std::vector<Message> question = {{"user", "q"}};
  for (const ChatFormat format : {ChatFormat::mistral_v2, ChatFormat::mistral_v3}) {
    CHECK(encoded(without_tools, format, question) == "<s>[INST]_q[/INST]");
    CHECK(encoded(without_tools, format, question, "T")
              .find("needs the control token [AVAILABLE_TOOLS]") != std::string::npos);
    CHECK(encoded(without_tools, format, {{"user", "q"}, {"assistant", "", "c"}})
              .find("needs the control token [TOOL_CALLS]") != std::string::npos);
    CHECK(encoded(ordinary, format, question).find("needs the control token [INST]") !=
          std::string::npos);
  }
  for (const ChatFormat format : {ChatFormat::mistral_v1, ChatFormat::llama2}) {
    const std::string name = mixtral::chat_format_name(format);
    const std::string error = "the chat format " + name + " has no tools";
    CHECK(encoded(readable_tokenizer(), format, question, "T").find(error) != std::string::npos);
    CHECK(encoded(readable_tokenizer(), format, {{"user", "q"}, {"assistant", "", "c"}})
              .find(error) != std::string::npos);
    CHECK(encode_from(Turn::answer, format, {{"tool", "t"}}).text.find(error) != std::string::npos);
  }
  // A vocabulary without BOS and EOS has none put in.
  const mixtral::Tokenizer without_ends = readable_tokenizer(true, false);
  const std::vector<Message> answered = {{"user", "q"}, {"assistant", "a"}, {"user", "r"}};
  CHECK(encoded(without_ends, ChatFormat::mistral_v3, answered) ==
        "[INST]_q[/INST]_a[INST]_r[/INST]");
  CHECK(encoded(without_ends, ChatFormat::llama2, answered) ==
        "_[INST]_q_[/INST]_a__[INST]_r_[/INST]");

  CHECK(mixtral::detect_chat_format(ordinary, "") == ChatFormat::mistral_v1);
  CHECK(mixtral::detect_chat_format(ordinary, "[TOOL_RESULTS]") == ChatFormat::mistral_v1);
  const mixtral::Tokenizer control = readable_tokenizer();
  CHECK(mixtral::detect_chat_format(control, "") == ChatFormat::mistral_v3);
  CHECK(mixtral::detect_chat_format(control, "call_id") == ChatFormat::mistral_v3);
  CHECK(mixtral::detect_chat_format(control, "[TOOL_RESULTS]") == ChatFormat::mistral_v2);
  CHECK(mixtral::detect_chat_format(control, "[TOOL_RESULTS] <<SYS>>") == ChatFormat::llama2);
}

TEST_CASE("chat: formats have names") {
  CHECK(std::string(mixtral::chat_format_name(ChatFormat::mistral_v1)) == "mistral-v1");
  CHECK(std::string(mixtral::chat_format_name(ChatFormat::mistral_v2)) == "mistral-v2");
  CHECK(std::string(mixtral::chat_format_name(ChatFormat::mistral_v3)) == "mistral-v3");
  CHECK(std::string(mixtral::chat_format_name(ChatFormat::llama2)) == "llama2");
  CHECK(std::string(mixtral::chat_format_name(static_cast<ChatFormat>(77))) == "unknown");
}

TEST_CASE("chat: JSON of tools is spelled as Python's json.dumps(ensure_ascii=False) does") {
  // The expected text is the output of Python's json module for the same values.
  const std::string compact =
      R"([{},[],{"a":[],"b":{},"c":[1,-2.5,true,false,null]},"\u00e9\"\\\n\/\u0001","a, b: c"])";
  const std::string spaced =
      "[{}, [], {\"a\": [], \"b\": {}, \"c\": [1, -2.5, true, false, null]}, "
      "\"\u00E9\\\"\\\\\\n/\\u0001\", \"a, b: c\"]";
  CHECK(value(mixtral::tool_list(compact)) == spaced);
  CHECK(value(mixtral::tool_list("[]")) == "[]");
  for (const char* text : {"{}", "1", "\"a\"", "null", "", "[", "[1,]", "[] []"}) {
    const auto refused = mixtral::tool_list(text);
    REQUIRE(!refused);
    CHECK(refused.error().code() == mixtral::ErrorCode::invalid_argument);
  }
  const mixtral::ToolCall calls[] = {{"f", "{\"x\":1}", "abcdefghi"}, {"g", "no JSON", ""}};
  CHECK(mixtral::tool_calls(ChatFormat::mistral_v2, {calls, 2}) ==
        R"([{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "no JSON"}])");
  CHECK(mixtral::tool_calls(ChatFormat::mistral_v3, {calls, 2}) ==
        R"([{"name": "f", "arguments": {"x": 1}, "id": "abcdefghi"}, )"
        R"({"name": "g", "arguments": "no JSON"}])");
  CHECK(mixtral::tool_calls(ChatFormat::mistral_v3, {}) == "[]");
  CHECK(mixtral::tool_result(ChatFormat::mistral_v2, calls[0], "{\"y\":[2]}") ==
        R"([{"name": "f", "content": {"y": [2]}}])");
  CHECK(mixtral::tool_result(ChatFormat::mistral_v3, calls[0], "{\"y\":[2]}") ==
        R"({"content": {"y": [2]}, "call_id": "abcdefghi"})");
  CHECK(mixtral::tool_result(ChatFormat::mistral_v3, calls[1], "") ==
        R"({"content": "", "call_id": ""})");
}

TEST_CASE("chat: what a model generated is read as calls, or told what is wrong with it") {
  const auto calls = value(mixtral::parse_tool_calls(
      R"([{"name":"f","arguments":{"b":1,"a":[2]},"id":"123456789"},{"arguments":"x","id":5,"name":""}])"));
  REQUIRE(calls.size() == 2);
  CHECK(calls[0].name == "f");
  CHECK(calls[0].arguments == R"({"b": 1, "a": [2]})");
  CHECK(calls[0].id == "123456789");
  CHECK(calls[1].name.empty());
  CHECK(calls[1].arguments == "\"x\"");
  CHECK(calls[1].id.empty());
  CHECK(value(mixtral::parse_tool_calls(" [] ")).empty());
  const auto refused = [](const char* text, const char* part) {
    CAPTURE(text);
    const auto result = mixtral::parse_tool_calls(text);
    REQUIRE(!result);
    CHECK(result.error().code() == mixtral::ErrorCode::bad_format);
    CHECK(std::string(result.error().message()).find(part) != std::string::npos);
  };
  const std::string good = R"({"name":"f","arguments":{}})";
  refused("", "text that is not JSON");
  refused("[", "text that is not JSON");
  refused("{}", "found object");
  refused("3", "found number");
  refused(("[" + good + ",7]").c_str(), "tool call 1");
  refused(("[" + good + R"(,{"name":"f"}])").c_str(), "tool call 1");
  refused(("[" + good + R"(,{"arguments":{}}])").c_str(), "tool call 1");
  refused(R"([{"name":7,"arguments":{}}])", "tool call 0");
}

TEST_CASE("json_text: the shape of a text is that of its arrays and objects, not of its strings") {
  const auto depth = [](const std::string& text) { return mixtral::json_shape(text).depth; };
  CHECK(depth("") == 0);
  CHECK(depth("\"a\"") == 0);
  CHECK(depth("[[]]") == 2);
  CHECK(depth("[{},[{}]]") == 3);
  CHECK(depth("[][][]") == 1);
  CHECK(depth("]]][") == 1);
  CHECK(depth(R"("[[[")") == 0);
  CHECK(depth(R"("\"[[[")") == 0);      // an escaped quote ends no string
  CHECK(depth(R"(["\\",[[]]])") == 3);  // after an escaped backslash, a quote does
  CHECK(depth(R"({"a\"":"[","b":[[]]})") == 3);
  CHECK(depth(R"("\\\"[[")") == 0);
  CHECK(depth("\"[[") == 0);
  CHECK(depth("\"\\") == 0);
  CHECK(depth(std::string(300, '[') + std::string(300, ']') + "[") == 300);

  const auto members = [](const std::string& text) {
    return mixtral::json_shape(text).most_members;
  };
  CHECK(members("[1,2,3]") == 0);
  CHECK(members(R"({"a":1})") == 1);
  CHECK(members(R"({"a:b":":","c":2})") == 2);
  CHECK(members(R"([{"a":1,"b":2},{"c":3}])") == 2);
  CHECK(members(R"({"a":{"b":1,"c":2,"d":3},"e":4})") == 3);
  CHECK(members(":::") == 0);
  // Members are counted of objects that are nested at most 128 deep.
  const auto nested = [](std::size_t n) { return std::string(n - 1, '[') + R"({"a":1)"; };
  CHECK(mixtral::kJsonShapeDepth == 128);
  CHECK(members(nested(128)) == 1);
  CHECK(members(nested(129)) == 0);
  // One that begins anew at a depth has none yet.
  CHECK(members(std::string(127, '[') + R"({"a":1},{"a":1,"b":2})") == 2);

  const auto squares = [](const std::string& text) {
    return mixtral::json_shape(text).member_squares;
  };
  CHECK(squares("[]") == 0);
  CHECK(squares(R"({"a":1})") == 1);
  CHECK(squares(R"({"a":1,"b":2,"c":3})") == 9);
  CHECK(squares(R"([{"a":1,"b":2},{"c":{"d":1,"e":2,"f":3}}])") == 4 + 1 + 9);
}
