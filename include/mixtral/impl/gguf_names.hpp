// What the tensors of a model are called in GGUF files of architecture "llama".
#ifndef MIXTRAL_IMPL_GGUF_NAMES_HPP_
#define MIXTRAL_IMPL_GGUF_NAMES_HPP_

#include <charconv>
#include <cstdio>
#include <optional>
#include <string_view>

#include "mixtral/role.hpp"

namespace mixtral::detail {

struct GgufName {
  std::string_view name;
  Role role;
};
inline constexpr GgufName kGlobalNames[] = {{"token_embd.weight", Role::token_embedding},
                                            {"output_norm.weight", Role::output_norm},
                                            {"output.weight", Role::output},
                                            {"rope_freqs.weight", Role::rope_factors}};
// After "blk.N."
inline constexpr GgufName kLayerNames[] = {{"attn_norm.weight", Role::attention_norm},
                                           {"attn_q.weight", Role::wq},
                                           {"attn_k.weight", Role::wk},
                                           {"attn_v.weight", Role::wv},
                                           {"attn_output.weight", Role::wo},
                                           {"ffn_norm.weight", Role::ffn_norm},
                                           {"ffn_gate_inp.weight", Role::router}};
// After "blk.N.", before ".weight" (dense), ".E.weight" (one expert) or "_exps.weight" (all).
inline constexpr GgufName kExpertNames[] = {
    {"ffn_gate", Role::w1}, {"ffn_down", Role::w2}, {"ffn_up", Role::w3}};

struct GgufTensorName {
  enum class Kind { one, all_experts, not_needed };
  Role role = Role::token_embedding;
  std::uint32_t layer = 0;
  std::uint32_t expert = 0;
  Kind kind = Kind::one;
};

// Takes "12." off the front of "12.rest".
inline bool take_number(std::string_view& text, std::uint32_t& number) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
  if (result.ec != std::errc() || result.ptr == text.data() + text.size() || *result.ptr != '.') {
    return false;
  }
  text.remove_prefix(static_cast<std::size_t>(result.ptr - text.data()) + 1);
  return true;
}

inline std::optional<GgufTensorName> parse_tensor_name(std::string_view name) {
  using Kind = GgufTensorName::Kind;
  for (const GgufName& known : kGlobalNames) {
    if (name == known.name) return GgufTensorName{known.role, 0, 0, Kind::one};
  }
  std::uint32_t layer = 0;
  if (name.substr(0, 4) != "blk.") return std::nullopt;
  name.remove_prefix(4);
  if (!take_number(name, layer)) return std::nullopt;
  if (name == "attn_rot_embd.weight") {  // of old converters; follows from rope_theta
    return GgufTensorName{Role::rope_factors, layer, 0, Kind::not_needed};
  }
  for (const GgufName& known : kLayerNames) {
    if (name == known.name) return GgufTensorName{known.role, layer, 0, Kind::one};
  }
  for (const GgufName& known : kExpertNames) {
    if (name.substr(0, known.name.size()) != known.name) continue;
    std::string_view rest = name.substr(known.name.size());
    if (rest == "_exps.weight") return GgufTensorName{known.role, layer, 0, Kind::all_experts};
    if (rest == ".weight") return GgufTensorName{known.role, layer, 0, Kind::one};
    std::uint32_t expert = 0;
    if (!rest.empty() && rest.front() == '.') {
      rest.remove_prefix(1);
      if (take_number(rest, expert) && rest == "weight") {  // the early layout
        return GgufTensorName{known.role, layer, expert, Kind::one};
      }
    }
  }
  return std::nullopt;
}

// Writes the name of a tensor, with all experts in one where there are several, to `out`; gives its
// length. Any uint32_t fits.
template <std::size_t n>
std::size_t format_tensor_name(Role role, std::uint32_t layer, bool several_experts,
                               char (&out)[n]) {
  static_assert(n >= 48);
  const auto print = [&](const GgufName& known, const char* rest) {
    return static_cast<std::size_t>(std::snprintf(
        out, n, "blk.%u.%s%s", static_cast<unsigned>(layer), known.name.data(), rest));
  };
  for (const GgufName& known : kGlobalNames) {
    if (known.role != role) continue;
    return static_cast<std::size_t>(std::snprintf(out, n, "%s", known.name.data()));
  }
  for (const GgufName& known : kLayerNames) {
    if (known.role == role) return print(known, "");
  }
  for (const GgufName& known : kExpertNames) {
    if (known.role == role) return print(known, several_experts ? "_exps.weight" : ".weight");
  }
  return 0;
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_GGUF_NAMES_HPP_
