// Which block format each tensor gets: the mixtures that llama.cpp made known (llama-quant.cpp).
#ifndef MIXTRAL_IMPL_QUANTIZE_MIXTURE_HPP_
#define MIXTRAL_IMPL_QUANTIZE_MIXTURE_HPP_

#include <cstring>
#include <iterator>

#include "mixtral/config.hpp"
#include "mixtral/quantize.hpp"

namespace mixtral {

namespace detail {

// general.file_type (ggml/docs/gguf.md).
enum FileType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ8_0 = 7,
  kQ5_0 = 8,
  kQ5_1 = 9,
  kQ2_K = 10,
  kQ3_K_S = 11,
  kQ3_K_M = 12,
  kQ3_K_L = 13,
  kQ4_K_S = 14,
  kQ4_K_M = 15,
  kQ5_K_S = 16,
  kQ5_K_M = 17,
  kQ6_K = 18,
  kQ2_K_S = 21,
  kIq4_Nl = 25,
  kIq4_Xs = 30,
  kBf16 = 32,
};

inline constexpr Quantization kQuantizations[] = {
    {"F32", BlockFormat::f32, kF32},          {"BF16", BlockFormat::bf16, kBf16},
    {"F16", BlockFormat::f16, kF16},          {"Q8_0", BlockFormat::q8_0, kQ8_0},
    {"Q6_K", BlockFormat::q6_k, kQ6_K},       {"Q5_1", BlockFormat::q5_1, kQ5_1},
    {"Q5_K_M", BlockFormat::q5_k, kQ5_K_M},   {"Q5_K_S", BlockFormat::q5_k, kQ5_K_S},
    {"Q5_0", BlockFormat::q5_0, kQ5_0},       {"Q4_1", BlockFormat::q4_1, kQ4_1},
    {"Q4_K_M", BlockFormat::q4_k, kQ4_K_M},   {"Q4_K_S", BlockFormat::q4_k, kQ4_K_S},
    {"Q4_0", BlockFormat::q4_0, kQ4_0},       {"IQ4_NL", BlockFormat::iq4_nl, kIq4_Nl},
    {"IQ4_XS", BlockFormat::iq4_xs, kIq4_Xs}, {"Q3_K_L", BlockFormat::q3_k, kQ3_K_L},
    {"Q3_K_M", BlockFormat::q3_k, kQ3_K_M},   {"Q3_K_S", BlockFormat::q3_k, kQ3_K_S},
    {"Q2_K", BlockFormat::q2_k, kQ2_K},       {"Q2_K_S", BlockFormat::q2_k, kQ2_K_S},
};

// What a mixture looks at.
struct MixtureInput {
  const Quantization& type;
  const Config& config;
  Role role;
  std::uint32_t layer;
  bool tied_output;  // the token embedding is the output matrix, too
  bool has_importance;
};

inline BlockFormat mixture_of_values(const MixtureInput& in, bool more_bits) {
  const std::uint32_t n_queries = in.config.n_heads / in.config.n_kv_heads;  // that share a head
  BlockFormat format = in.type.base;
  switch (in.type.file_type) {
    case kQ2_K: format = n_queries >= 4 ? BlockFormat::q4_k : BlockFormat::q3_k; break;
    case kQ2_K_S:
      if (n_queries >= 4) format = BlockFormat::q4_k;
      break;
    case kQ3_K_M: format = in.layer < 2 ? BlockFormat::q5_k : BlockFormat::q4_k; break;
    case kQ3_K_L: format = BlockFormat::q5_k; break;
    case kQ4_K_S:
      if (in.layer < 4) format = BlockFormat::q5_k;
      break;
    case kQ4_K_M:
    case kQ5_K_M:
      if (more_bits) format = BlockFormat::q6_k;
      break;
    case kIq4_Nl:
    case kIq4_Xs:
      if (n_queries >= 4) format = BlockFormat::q5_k;
      break;
    default: break;
  }
  // As llama.cpp tells the models of 70B from that of 65B, which had as many layers.
  const bool is_llama_70b = in.config.n_layers == 80 && n_queries > 1;
  if (is_llama_70b && (format == BlockFormat::q3_k || format == BlockFormat::q4_k)) {
    format = BlockFormat::q5_k;
  }
  return format;
}

inline BlockFormat mixture_of_down(const MixtureInput& in, bool more_bits) {
  const bool first_eighth = in.layer < in.config.n_layers / 8;
  switch (in.type.file_type) {
    case kQ2_K: return BlockFormat::q3_k;
    case kQ2_K_S: return first_eighth ? BlockFormat::q4_k : in.type.base;
    case kQ3_K_M: return in.layer < in.config.n_layers / 16 ? BlockFormat::q5_k : BlockFormat::q4_k;
    case kQ3_K_L: return BlockFormat::q5_k;
    case kQ4_K_S: return first_eighth ? BlockFormat::q5_k : in.type.base;
    case kQ4_K_M:
    case kQ5_K_M: return more_bits ? BlockFormat::q6_k : in.type.base;
    case kIq4_Nl:
    case kIq4_Xs: return first_eighth && !in.has_importance ? BlockFormat::q5_k : in.type.base;
    case kQ4_0: return first_eighth && in.has_importance ? BlockFormat::q4_1 : in.type.base;
    case kQ5_0: return first_eighth && in.has_importance ? BlockFormat::q5_1 : in.type.base;
    default: return in.type.base;
  }
}

inline BlockFormat mixture_of_attention_output(const MixtureInput& in) {
  const bool mixtral_8x = in.config.n_experts == 8;
  switch (in.type.file_type) {
    case kQ2_K: return mixtral_8x ? BlockFormat::q5_k : BlockFormat::q3_k;
    case kQ3_K_M: return mixtral_8x ? BlockFormat::q5_k : BlockFormat::q4_k;
    case kQ3_K_L: return mixtral_8x ? in.type.base : BlockFormat::q5_k;
    case kQ3_K_S:
    case kQ4_K_S:
    case kQ4_K_M:
    case kIq4_Nl:
    case kIq4_Xs: return mixtral_8x ? BlockFormat::q5_k : in.type.base;
    default: return in.type.base;
  }
}

inline BlockFormat mixture_format(const MixtureInput& in) {
  if (!block_format_info(in.type.base)->quantized) return in.type.base;
  const std::uint32_t n = in.config.n_layers;
  const bool more_bits = in.layer < n / 8 || in.layer >= 7 * n / 8 || (in.layer - n / 8) % 3 == 2;
  // With eight experts the keys and values are a small part of the model.
  const bool mixtral_8x = in.config.n_experts == 8;
  switch (in.role) {
    case Role::output:
      return in.type.base == BlockFormat::q8_0 ? BlockFormat::q8_0 : BlockFormat::q6_k;
    case Role::token_embedding:
      if (!in.tied_output) return in.type.base;
      return in.type.base == BlockFormat::q8_0 ? BlockFormat::q8_0 : BlockFormat::q6_k;
    case Role::wk: return mixtral_8x ? BlockFormat::q8_0 : in.type.base;
    case Role::wv: return mixtral_8x ? BlockFormat::q8_0 : mixture_of_values(in, more_bits);
    case Role::wo: return mixture_of_attention_output(in);
    case Role::w2: return mixture_of_down(in, more_bits);
    default: return in.type.base;
  }
}

// The format for rows that are not whole blocks of the one wanted.
inline BlockFormat fitting_format(BlockFormat wanted, std::size_t n_cols) {
  const auto fits = [&](BlockFormat format) {
    return n_cols % block_format_info(format)->block_size == 0;
  };
  if (fits(wanted)) return wanted;
  BlockFormat smaller = BlockFormat::q8_0;
  switch (wanted) {
    case BlockFormat::q2_k:
    case BlockFormat::q3_k:
    case BlockFormat::iq4_xs: smaller = BlockFormat::iq4_nl; break;
    case BlockFormat::q4_k: smaller = BlockFormat::q5_0; break;
    case BlockFormat::q5_k: smaller = BlockFormat::q5_1; break;
    default: break;
  }
  return fits(smaller) ? smaller : BlockFormat::f16;
}

}  // namespace detail

Span<const Quantization> quantizations() noexcept {
  return {detail::kQuantizations, std::size(detail::kQuantizations)};
}

BlockFormat mixture_format(const Quantization& type, const Config& config, Role role,
                           std::uint32_t layer) noexcept {
  return detail::mixture_format({type, config, role, layer, false, false});
}

const Quantization* find_quantization(std::string_view name) noexcept {
  const auto same = [](std::string_view a, std::string_view b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const char c = a[i] >= 'a' && a[i] <= 'z' ? static_cast<char>(a[i] - 'a' + 'A') : a[i];
      if (c != b[i]) return false;
    }
    return true;
  };
  static constexpr std::string_view kShort[][2] = {
      {"Q3_K", "Q3_K_M"}, {"Q4_K", "Q4_K_M"}, {"Q5_K", "Q5_K_M"}};
  for (const auto& [shorter, full] : kShort) {
    if (same(name, shorter)) name = full;
  }
  for (const Quantization& q : detail::kQuantizations) {
    if (same(name, q.name)) return &q;
  }
  return nullptr;
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_QUANTIZE_MIXTURE_HPP_
