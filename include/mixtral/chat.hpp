// Conversations in the Instruct format of Mixtral 8x7B and Mistral 7B v0.1/v0.2:
//
//   <s> [INST] first question [/INST] answer</s> [INST] next question [/INST]
//
// BOS once; each user turn and each answer is encoded by itself; EOS after each complete answer;
// system text goes before the first question, with a blank line between (mistral-common, v1).
#ifndef MIXTRAL_CHAT_HPP_
#define MIXTRAL_CHAT_HPP_

#include <memory_resource>
#include <string_view>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

struct Message {
  std::string_view role;  // "system" (first only), "user" or "assistant"
  std::string_view content;
};

struct ChatOptions {
  // Leaves an assistant turn at the end without EOS, so that generation goes on with it.
  bool continue_answer = false;
};

// Where a conversation stands.
enum class Turn {
  start,     // nothing yet: BOS, then system or user
  answer,    // a question was asked; an answer comes next, or is being given
  question,  // the last answer ended with EOS
};

// Appends the tokens of `messages` to `out` and moves `turn` on. A question after an answer that
// has no EOS yet (generated text does not) gets it first.
// Errors: invalid_argument for roles that are unknown or out of order, then `out` and `turn` are
// unchanged; out_of_memory.
Status encode_chat(const Tokenizer& tokenizer, Span<const Message> messages, ChatOptions options,
                   Turn& turn, std::pmr::vector<Token>& out);

}  // namespace mixtral

#endif  // MIXTRAL_CHAT_HPP_
