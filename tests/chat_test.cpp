// The Instruct format against ids made with the published tokenizer.
#include "support.hpp"

using namespace support;
using mixtral::Message;
using mixtral::Token;
using mixtral::Turn;

namespace {

std::vector<Token> encode(const mixtral::Tokenizer& tokenizer, const std::vector<Message>& messages,
                          bool continue_answer = false) {
  std::pmr::vector<Token> out;
  Turn turn = Turn::start;
  mixtral::ChatOptions options;
  options.continue_answer = continue_answer;
  const auto status = mixtral::encode_chat(tokenizer, mixtral::ChatFormat::mistral_v1,
                                           {messages.data(), messages.size()}, options, turn, out);
  REQUIRE_MESSAGE(status, status.error().message());
  return {out.begin(), out.end()};
}

}  // namespace

TEST_CASE("chat: the v1 Instruct format of the real tokenizer") {
  if (!has_shared("tokenizer/mixtral-8x7b-v1.chat.json")) return;
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
