// Conversations as token ids, in the Instruct formats of the family.
#ifndef MIXTRAL_CHAT_HPP_
#define MIXTRAL_CHAT_HPP_

#include <memory_resource>
#include <string_view>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

// Each part is encoded by itself, with its own leading space; BOS once (but see llama2).
//
//   mistral_v1  <s> [INST] question [/INST] answer</s>
//               Mixtral 8x7B, Mistral 7B v0.1 and v0.2: [INST] is ordinary text; system text goes
//               before the first question, with a blank line between; no tools.
//   mistral_v2  <s>[INST] question[/INST] answer</s>
//   mistral_v3  Mixtral 8x22B, Mistral 7B v0.3: [INST] and [/INST] are control tokens; system text
//               goes before the last question, and so do the tools (see below).
//   llama2      <s> [INST] <<SYS>>\nsystem\n<</SYS>>\n\nquestion [/INST] answer </s>
//               BOS before every question; spaces around texts are taken away; no tools.
//
// Tools in v2 and v3, in token order (mistral-common, InstructTokenizerV2 and V3):
//   [AVAILABLE_TOOLS] tools[/AVAILABLE_TOOLS][INST] question[/INST][TOOL_CALLS] calls</s>
//   [TOOL_RESULTS] result[/TOOL_RESULTS] answer</s>
// v2 leaves out calls and results from before the last question.
//
// Sources: mistral-common (github.com/mistralai), tokens/tokenizers/instruct.py; for llama2,
// github.com/meta-llama/llama, llama/generation.py.
enum class ChatFormat : std::uint8_t { mistral_v1, mistral_v2, mistral_v3, llama2 };

const char* chat_format_name(ChatFormat format) noexcept;

// The format that a model was trained for, from its vocabulary and its chat template (Jinja source
// as in GGUF's tokenizer.chat_template; empty if there is none).
ChatFormat detect_chat_format(const Tokenizer& tokenizer, std::string_view chat_template);

// Texts of tool calls, results and lists are JSON, put in as they stand; mixtral/tools.hpp makes
// them as mistral-common does.
struct Message {
  std::string_view role;          // "system" (at the start only), "user", "assistant" or "tool"
  std::string_view content;       // of a "tool": the JSON of its result
  std::string_view tool_calls{};  // of an "assistant": a JSON array of calls, instead of content
};

struct ChatOptions {
  // Leaves an assistant turn at the end without EOS, so that generation goes on with it.
  bool continue_answer = false;
  // A JSON array of the tools that the model may call; shown before the last question.
  std::string_view tools;
};

// Where a conversation stands.
enum class Turn {
  start,     // nothing yet: BOS, then system or user
  answer,    // a question was asked; an answer comes next, or is being given
  question,  // the last answer ended with EOS
  tool,      // tools were called, and that ended with EOS; their results come next
};

// Appends the tokens of `messages` to `out` and moves `turn` on. A question, or a tool's result,
// after an answer that has no EOS yet (generated text does not) gets it first.
// Errors: invalid_argument for roles that are unknown or out of order, for tools in a format that
// has none, and for a vocabulary that lacks the format's control tokens; then `out` and `turn` are
// unchanged; out_of_memory.
Status encode_chat(const Tokenizer& tokenizer, ChatFormat format, Span<const Message> messages,
                   const ChatOptions& options, Turn& turn, std::pmr::vector<Token>& out);

}  // namespace mixtral

#endif  // MIXTRAL_CHAT_HPP_
