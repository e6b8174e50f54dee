// Optional: the JSON of tool calls and their results, spelled as the models were trained on it
// (mistral-common, InstructTokenizerV2 and V3: Python's json.dumps with ensure_ascii=False).
//
// JSON nested at most 64 deep is read as such, in which no object has more than 4096 members, and of large
// objects there are few (the squares of all numbers of members sum to at most 2^26). Beyond that,
// tool_list() and parse_tool_calls() give an error, and arguments and results are taken as text.
//
// Needs nlohmann-json where it is included. A call from the model comes as the control token
// [TOOL_CALLS], which decodes to nothing, then JSON, then EOS:
//
//   generation.token() == model.tokenizer().find("[TOOL_CALLS]")   // begins
//   auto calls = mixtral::parse_tool_calls(text);                  // when it has ended
//   std::string result = mixtral::tool_result(format, (*calls)[0], "{\"celsius\": 22}");
//   session.append_chat({{"tool", result}});
#ifndef MIXTRAL_TOOLS_HPP_
#define MIXTRAL_TOOLS_HPP_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral/chat.hpp"
#include "mixtral/error.hpp"
#include "mixtral/json_text.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON, mostly an object
  std::string id;         // nine letters or digits in v3; may be empty, and is in v2
};

namespace detail {

using ToolJson = nlohmann::ordered_json;  // members stay in order

constexpr std::size_t kMaxToolJsonDepth = 64;
constexpr std::size_t kMaxToolJsonMembers = 4096;
constexpr std::uint64_t kMaxToolJsonSquares = std::uint64_t{1} << 26;

// The value that `text` is the JSON of; discarded if it is none or beyond these limits, which is told before
// anything is parsed.
inline ToolJson parse_tool_json(std::string_view text) {
  const JsonShape shape = json_shape(text);
  if (shape.depth > kMaxToolJsonDepth || shape.most_members > kMaxToolJsonMembers ||
      shape.member_squares > kMaxToolJsonSquares) {
    return ToolJson(ToolJson::value_t::discarded);
  }
  return ToolJson::parse(text.begin(), text.end(), nullptr, false);
}

// The value that `text` is the JSON of, or `text` itself as a string.
inline ToolJson json_or_text(std::string_view text) {
  ToolJson json = parse_tool_json(text);
  return json.is_discarded() ? ToolJson(std::string(text)) : json;
}

// Appends the JSON of a value to `out`, with a space after commas and colons. Recurses as deep as the value
// is nested: two more than kMaxToolJsonDepth at most.
inline void dump_spaced(const ToolJson& json, std::string& out) {
  if (!json.is_structured()) {
    out += json.dump(-1, ' ', false, ToolJson::error_handler_t::replace);
    return;
  }
  out += json.is_array() ? '[' : '{';
  bool first = true;
  for (const auto& item : json.items()) {
    if (!first) out += ", ";
    first = false;
    if (json.is_object()) {
      dump_spaced(item.key(), out);
      out += ": ";
    }
    dump_spaced(item.value(), out);
  }
  out += json.is_array() ? ']' : '}';
}

inline std::string dump_spaced(const ToolJson& json) {
  std::string out;
  dump_spaced(json, out);
  return out;
}

}  // namespace detail

// For ChatOptions::tools, from a JSON array of tools: {"type": "function", "function": {"name": ...,
// "description": ..., "parameters": JSON schema}}. Errors: invalid_argument.
inline Result<std::string> tool_list(std::string_view json) {
  const detail::ToolJson tools = detail::parse_tool_json(json);
  if (!tools.is_array()) {
    return Error(ErrorCode::invalid_argument, "the list of tools must be a JSON array");
  }
  return detail::dump_spaced(tools);
}

// For Message::tool_calls, to repeat calls that were made earlier in a conversation.
inline std::string tool_calls(ChatFormat format, Span<const ToolCall> calls) {
  detail::ToolJson list = detail::ToolJson::array();
  for (const ToolCall& call : calls) {
    detail::ToolJson entry = {{"name", call.name},
                              {"arguments", detail::json_or_text(call.arguments)}};
    if (format == ChatFormat::mistral_v3 && !call.id.empty()) entry["id"] = call.id;
    list.push_back(std::move(entry));
  }
  return detail::dump_spaced(list);
}

// For the content of a "tool" Message: what `call` gave, JSON or plain text.
inline std::string tool_result(ChatFormat format, const ToolCall& call, std::string_view result) {
  detail::ToolJson content = detail::json_or_text(result);
  if (format == ChatFormat::mistral_v3) {
    return detail::dump_spaced({{"content", std::move(content)}, {"call_id", call.id}});
  }
  detail::ToolJson list = detail::ToolJson::array();
  list.push_back({{"name", call.name}, {"content", std::move(content)}});
  return detail::dump_spaced(list);
}

// The calls in what a model generated after [TOOL_CALLS]. Errors: bad_format, saying what is wrong.
inline Result<std::vector<ToolCall>> parse_tool_calls(std::string_view text) {
  const detail::ToolJson list = detail::parse_tool_json(text);
  if (!list.is_array()) {
    return Error(
        ErrorCode::bad_format, "tool calls: expected a JSON array, found %s",
        list.is_discarded() ? "text that is not JSON, or beyond its limits" : list.type_name());
  }
  std::vector<ToolCall> calls;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const detail::ToolJson& entry = list[i];
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() ||
        !entry.contains("arguments")) {
      return Error(ErrorCode::bad_format,
                   "tool call %zu: expected an object with a name and arguments", i);
    }
    ToolCall call;
    call.name = entry["name"].get_ref<const std::string&>();
    call.arguments = detail::dump_spaced(entry["arguments"]);
    if (entry.contains("id") && entry["id"].is_string()) {
      call.id = entry["id"].get_ref<const std::string&>();
    }
    calls.push_back(std::move(call));
  }
  return calls;
}

}  // namespace mixtral

#endif  // MIXTRAL_TOOLS_HPP_

#include "mixtral/implementation.hpp"
