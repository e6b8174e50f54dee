#ifndef MIXTRAL_IMPL_CHAT_HPP_
#define MIXTRAL_IMPL_CHAT_HPP_

#include <algorithm>
#include <string>

#include "mixtral/chat.hpp"

namespace mixtral {

namespace detail {

inline Error wrong_role(std::size_t index, std::string_view role, const char* expected) {
  return Error(ErrorCode::invalid_argument, "chat message %zu has the role '%.*s'; expected %s",
               index, static_cast<int>(std::min<std::size_t>(role.size(), 40)), role.data(),
               expected);
}

// Checks the order of the roles without producing anything.
inline Status check_roles(Span<const Message> messages, Turn turn) {
  if (messages.empty()) return Error(ErrorCode::invalid_argument, "a chat without messages");
  bool after_system = false;
  bool answered = false;  // by a message of this very list
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string_view role = messages[i].role;
    if (role == "system") {
      if (turn != Turn::start || i != 0) {
        return wrong_role(i, role, "'system' only as the very first message");
      }
      after_system = true;
    } else if (role == "user") {
      if (turn == Turn::answer && i != 0 && !answered) {
        return wrong_role(i, role, "'assistant' after a question");
      }
      turn = Turn::answer;
      answered = false;
      after_system = false;
    } else if (role == "assistant") {
      if (turn != Turn::answer || answered || after_system) {
        return wrong_role(i, role, "'user' before an answer");
      }
      answered = true;
    } else {
      return wrong_role(i, role, "'system', 'user' or 'assistant'");
    }
  }
  if (after_system) {
    return Error(ErrorCode::invalid_argument,
                 "a chat of system text alone; a user turn must follow");
  }
  return {};
}

}  // namespace detail

Status encode_chat(const Tokenizer& tokenizer, Span<const Message> messages, ChatOptions options,
                   Turn& turn, std::pmr::vector<Token>& out) {
  MIXTRAL_RETURN_IF_ERROR(detail::check_roles(messages, turn));
  return detail::guard_memory("encoding a chat", [&]() -> Status {
    std::pmr::memory_resource* resource = out.get_allocator().resource();
    std::pmr::vector<Token> tokens(resource);
    std::pmr::string text(resource);
    Turn now = turn;
    if (now == Turn::start && tokenizer.bos() != kNoToken) tokens.push_back(tokenizer.bos());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const Message& message = messages[i];
      if (message.role == "system") {
        text.assign("[INST] ");
        text.append(message.content);
        text.append("\n\n");
        continue;
      }
      if (message.role == "user") {
        if (now == Turn::answer && tokenizer.eos() != kNoToken) tokens.push_back(tokenizer.eos());
        if (text.empty()) text.assign("[INST] ");
        text.append(message.content);
        text.append(" [/INST]");
        MIXTRAL_RETURN_IF_ERROR(tokenizer.encode(text, {}, tokens));
        text.clear();
        now = Turn::answer;
      } else {
        MIXTRAL_RETURN_IF_ERROR(tokenizer.encode(message.content, {}, tokens));
        const bool last = i + 1 == messages.size();
        if (!(last && options.continue_answer)) {
          if (tokenizer.eos() != kNoToken) tokens.push_back(tokenizer.eos());
          now = Turn::question;
        }
      }
    }
    out.insert(out.end(), tokens.begin(), tokens.end());
    turn = now;
    return {};
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_CHAT_HPP_
