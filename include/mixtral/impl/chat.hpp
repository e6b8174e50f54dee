#ifndef MIXTRAL_IMPL_CHAT_HPP_
#define MIXTRAL_IMPL_CHAT_HPP_

#include <algorithm>
#include <string>

#include "mixtral/chat.hpp"

namespace mixtral {

const char* chat_format_name(ChatFormat format) noexcept {
  switch (format) {
    case ChatFormat::mistral_v1: return "mistral-v1";
    case ChatFormat::mistral_v2: return "mistral-v2";
    case ChatFormat::mistral_v3: return "mistral-v3";
    case ChatFormat::llama2: return "llama2";
  }
  return "unknown";
}

ChatFormat detect_chat_format(const Tokenizer& tokenizer, std::string_view chat_template) {
  const auto has = [&](std::string_view part) {
    return chat_template.find(part) != std::string_view::npos;
  };
  if (has("<<SYS>>")) return ChatFormat::llama2;
  const Token begin = tokenizer.find("[INST]");
  if (begin == kNoToken || tokenizer.piece(begin).type != PieceType::control) {
    return ChatFormat::mistral_v1;
  }
  // The two differ in tools only: v3 tells which call a result is of.
  return has("[TOOL_RESULTS]") && !has("call_id") ? ChatFormat::mistral_v2 : ChatFormat::mistral_v3;
}

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
      if (turn != Turn::start || (i != 0 && !after_system)) {
        return wrong_role(i, role, "'system' only as the very first messages");
      }
      after_system = true;
    } else if (role == "user") {
      if ((turn == Turn::answer && i != 0 && !answered) || turn == Turn::tool) {
        return wrong_role(i, role, turn == Turn::tool ? "'tool' after a call" : "'assistant'");
      }
      turn = Turn::answer;
      answered = false;
      after_system = false;
    } else if (role == "assistant") {
      if (turn != Turn::answer || answered || after_system) {
        return wrong_role(i, role, "'user' before an answer");
      }
      answered = messages[i].tool_calls.empty();
      if (!answered) turn = Turn::tool;
    } else if (role == "tool") {
      // A call may also have been generated, then it is not in the list.
      const bool called = turn == Turn::tool || (turn == Turn::answer && !answered);
      if (!called || (i != 0 && turn == Turn::answer && messages[i - 1].role != "tool")) {
        return wrong_role(i, role, "'tool' only after a call");
      }
      // More results may follow, or the answer.
      turn = Turn::answer;
    } else {
      return wrong_role(i, role, "'system', 'user', 'assistant' or 'tool'");
    }
    if (role != "assistant" && !messages[i].tool_calls.empty()) {
      return Error(ErrorCode::invalid_argument,
                   "chat message %zu has tool calls, but is not of the assistant", i);
    }
    if (!messages[i].tool_calls.empty() && !messages[i].content.empty()) {
      return Error(ErrorCode::invalid_argument,
                   "chat message %zu has both content and tool calls; give one", i);
    }
  }
  if (after_system) {
    return Error(ErrorCode::invalid_argument,
                 "a chat of system text alone; a user turn must follow");
  }
  return {};
}

// Spaces and line breaks off both ends, as Python's str.strip() does.
inline std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// Encodes one list of messages in one format.
class ChatEncoder {
 public:
  ChatEncoder(const Tokenizer& tokenizer, ChatFormat format, const ChatOptions& options,
              std::pmr::memory_resource* resource)
      : tokenizer_(tokenizer),
        format_(format),
        options_(options),
        tokens_(resource),
        text_(resource),
        system_(resource) {}

  Status run(Span<const Message> messages, Turn& turn) {
    std::size_t last_question = messages.size();
    for (std::size_t i = 0; i < messages.size(); ++i) {
      if (messages[i].role == "user") last_question = i;
      if (!messages[i].tool_calls.empty() || messages[i].role == "tool") {
        MIXTRAL_RETURN_IF_ERROR(check_tools());
      }
    }
    if (!options_.tools.empty()) MIXTRAL_RETURN_IF_ERROR(check_tools());
    if (turn == Turn::start && format_ != ChatFormat::llama2) add_special(tokenizer_.bos());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const Message& message = messages[i];
      const bool last = i + 1 == messages.size();
      const bool forgotten = format_ == ChatFormat::mistral_v2 &&
                             last_question != messages.size() && i < last_question;
      if (message.role == "system") {
        if (!system_.empty()) system_.append("\n\n");
        system_.append(message.content);
      } else if (message.role == "user") {
        if (turn == Turn::answer) add_special(tokenizer_.eos());
        MIXTRAL_RETURN_IF_ERROR(add_question(message.content, i == last_question));
        turn = Turn::answer;
      } else if (message.role == "tool") {
        if (turn == Turn::answer && i == 0) add_special(tokenizer_.eos());
        if (!forgotten) {
          MIXTRAL_RETURN_IF_ERROR(
              add_between("[TOOL_RESULTS]", message.content, "[/TOOL_RESULTS]"));
        }
        turn = Turn::answer;
      } else if (!message.tool_calls.empty()) {
        turn = Turn::tool;
        if (forgotten) continue;
        MIXTRAL_RETURN_IF_ERROR(add_between("[TOOL_CALLS]", message.tool_calls, nullptr));
        add_special(tokenizer_.eos());
      } else {
        const bool goes_on = last && options_.continue_answer;
        MIXTRAL_RETURN_IF_ERROR(add_answer(message.content, goes_on));
        if (!goes_on) {
          add_special(tokenizer_.eos());
          turn = Turn::question;
        }
      }
    }
    return {};
  }

  const std::pmr::vector<Token>& tokens() const noexcept { return tokens_; }

 private:
  bool has_control_tokens() const noexcept {
    return format_ == ChatFormat::mistral_v2 || format_ == ChatFormat::mistral_v3;
  }

  Status check_tools() const {
    if (has_control_tokens()) return {};
    return Error(ErrorCode::invalid_argument,
                 "the chat format %s has no tools; mistral-v2 and mistral-v3 do",
                 chat_format_name(format_));
  }

  void add_special(Token token) {
    if (token != kNoToken) tokens_.push_back(token);
  }

  Status add_control(const char* piece) {
    const Token token = tokenizer_.find(piece);
    if (token == kNoToken || tokenizer_.piece(token).type != PieceType::control) {
      return Error(ErrorCode::invalid_argument,
                   "the chat format %s needs the control token %s, which the vocabulary lacks; "
                   "choose another format",
                   chat_format_name(format_), piece);
    }
    tokens_.push_back(token);
    return {};
  }

  Status add_between(const char* begin, std::string_view text, const char* end) {
    MIXTRAL_RETURN_IF_ERROR(add_control(begin));
    MIXTRAL_RETURN_IF_ERROR(tokenizer_.encode(text, {}, tokens_));
    return end == nullptr ? Status() : add_control(end);
  }

  Status add_question(std::string_view content, bool last) {
    if (has_control_tokens()) {
      if (!last) return add_between("[INST]", content, "[/INST]");
      if (!options_.tools.empty()) {
        MIXTRAL_RETURN_IF_ERROR(
            add_between("[AVAILABLE_TOOLS]", options_.tools, "[/AVAILABLE_TOOLS]"));
      }
      text_.clear();
      add_system("", "\n\n");
      text_.append(content);
      return add_between("[INST]", text_, "[/INST]");
    }
    text_.assign("[INST] ");
    if (format_ == ChatFormat::llama2) {
      add_special(tokenizer_.bos());
      if (!system_.empty()) {
        add_system("<<SYS>>\n", "\n<</SYS>>\n\n");
        text_.append(content);
        // The reference strips the two together.
        const std::size_t begin = 7;  // after "[INST] "
        const std::pmr::string both(stripped(std::string_view(text_).substr(begin)),
                                    text_.get_allocator());
        text_.resize(begin);
        text_.append(both);
      } else {
        text_.append(stripped(content));
      }
    } else {
      add_system("", "\n\n");
      text_.append(content);
    }
    text_.append(" [/INST]");
    return tokenizer_.encode(text_, {}, tokens_);
  }

  // System text is said once.
  void add_system(const char* before, const char* after) {
    if (system_.empty()) return;
    text_.append(before).append(system_).append(after);
    system_.clear();
  }

  Status add_answer(std::string_view content, bool goes_on) {
    if (format_ == ChatFormat::mistral_v1) return tokenizer_.encode(content, {}, tokens_);
    if (has_control_tokens()) {
      while (!content.empty() && content.back() == ' ') content.remove_suffix(1);
      return tokenizer_.encode(content, {}, tokens_);
    }
    text_.assign(" ");
    text_.append(stripped(content));
    if (!goes_on) text_.push_back(' ');
    EncodeOptions options;
    options.leading_space = false;
    return tokenizer_.encode(text_, options, tokens_);
  }

  const Tokenizer& tokenizer_;
  ChatFormat format_;
  const ChatOptions& options_;
  std::pmr::vector<Token> tokens_;
  std::pmr::string text_;
  std::pmr::string system_;  // not said yet
};

}  // namespace detail

Status encode_chat(const Tokenizer& tokenizer, ChatFormat format, Span<const Message> messages,
                   const ChatOptions& options, Turn& turn, std::pmr::vector<Token>& out) {
  MIXTRAL_RETURN_IF_ERROR(detail::check_roles(messages, turn));
  return detail::guard_memory("encoding a chat", [&]() -> Status {
    detail::ChatEncoder encoder(tokenizer, format, options, out.get_allocator().resource());
    Turn now = turn;
    MIXTRAL_RETURN_IF_ERROR(encoder.run(messages, now));
    out.insert(out.end(), encoder.tokens().begin(), encoder.tokens().end());
    turn = now;
    return {};
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_CHAT_HPP_
