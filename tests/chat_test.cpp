// The Instruct format against ids made with the published tokenizer.
#include "small_stack.hpp"

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
