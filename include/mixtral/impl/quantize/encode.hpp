#ifndef MIXTRAL_IMPL_QUANTIZE_ENCODE_HPP_
#define MIXTRAL_IMPL_QUANTIZE_ENCODE_HPP_

#include "mixtral/impl/quantize/small_blocks.hpp"
#include "mixtral/impl/quantize/super_blocks.hpp"
#include "mixtral/quantize.hpp"

namespace mixtral {

namespace detail {

// The importance of a block's columns as weights of about 1. A block whose columns never mattered
// has all alike.
template <int n>
Numbers<n> block_weights(Span<const float> importance, std::size_t col) {
  if (importance.empty()) return Numbers<n>::Ones();
  const Eigen::Map<const Numbers<n>> of_block(importance.data() + col);
  const float mean = of_block.sum() / static_cast<float>(n);
  if (!(mean > 1e-30f && mean < 1e30f)) return Numbers<n>::Ones();
  // No column is worth nothing: what the model was not seen to use may yet be used.
  return Numbers<n>(of_block * (1.0f / mean)).max(1e-4f);
}

template <class Encode>
void encode_row(const float* row, std::size_t n_cols, Span<const float> importance,
                std::size_t block_bytes, std::uint8_t* out) {
  constexpr int n = Encode::kBlockSize;
  for (std::size_t col = 0; col < n_cols; col += n, out += block_bytes) {
    Encode::encode(Eigen::Map<const Numbers<n>>(row + col), block_weights<n>(importance, col), out);
  }
}

inline void encode_f32(const float* row, std::size_t n_cols, std::uint8_t* out) {
  for (std::size_t i = 0; i < n_cols; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, row + i, 4);
    for (int byte = 0; byte < 4; ++byte) {
      out[4 * i + static_cast<std::size_t>(byte)] = static_cast<std::uint8_t>(bits >> (8 * byte));
    }
  }
}

inline void encode_bf16(const float* row, std::size_t n_cols, std::uint8_t* out) {
  for (std::size_t i = 0; i < n_cols; ++i) {
    const std::uint16_t bits = simd::float_to_bfloat16(row[i]);
    out[2 * i] = static_cast<std::uint8_t>(bits);
    out[2 * i + 1] = static_cast<std::uint8_t>(bits >> 8);
  }
}

inline void encode_row(BlockFormat format, const float* row, std::size_t n_cols,
                       Span<const float> importance, std::uint8_t* out) {
  const std::size_t bytes = block_format_info(format)->block_bytes;
  const auto with = [&](auto encode) {
    encode_row<decltype(encode)>(row, n_cols, importance, bytes, out);
  };
  switch (format) {
    case BlockFormat::f32: return encode_f32(row, n_cols, out);
    case BlockFormat::f16:
      for (std::size_t i = 0; i < n_cols; ++i) put_half(row[i], out + 2 * i);
      return;
    case BlockFormat::bf16: return encode_bf16(row, n_cols, out);
    case BlockFormat::q8_0: return with(EncodeQ8_0());
    case BlockFormat::q4_0: return with(EncodeQ4_0());
    case BlockFormat::q4_1: return with(EncodeQ4_1());
    case BlockFormat::q5_0: return with(EncodeQ5_0());
    case BlockFormat::q5_1: return with(EncodeQ5_1());
    case BlockFormat::q2_k: return with(EncodeQ2_K());
    case BlockFormat::q3_k: return with(EncodeQ3_K());
    case BlockFormat::q4_k: return with(EncodeQ4_K());
    case BlockFormat::q5_k: return with(EncodeQ5_K());
    case BlockFormat::q6_k: return with(EncodeQ6_K());
    case BlockFormat::iq4_nl: return with(EncodeIq4_Nl());
    case BlockFormat::iq4_xs: return with(EncodeIq4_Xs());
    case BlockFormat::iq2_xxs:
    case BlockFormat::iq2_xs:
    case BlockFormat::iq2_s:
    case BlockFormat::iq3_xxs:
    case BlockFormat::iq3_s: return;  // see can_encode()
  }
}

}  // namespace detail

bool can_encode(BlockFormat format) noexcept {
  switch (format) {
    case BlockFormat::iq2_xxs:
    case BlockFormat::iq2_xs:
    case BlockFormat::iq2_s:
    case BlockFormat::iq3_xxs:
    case BlockFormat::iq3_s: return false;
    default: return block_format_info(format) != nullptr;
  }
}

namespace detail {

inline Error cannot_encode(BlockFormat format) {
  return Error(ErrorCode::invalid_argument, "block format %u cannot be written; use one of %s",
               static_cast<unsigned>(format), BlockFormatNames(can_encode).text());
}

}  // namespace detail

Status encode_rows(BlockFormat format, const float* rows, std::size_t n_rows, std::size_t n_cols,
                   Span<const float> importance, std::uint8_t* out) {
  if (!can_encode(format)) {
    return detail::cannot_encode(format);
  }
  const BlockFormatInfo& info = *block_format_info(format);
  if (n_cols % info.block_size != 0) {
    return Error(ErrorCode::invalid_argument,
                 "rows of %zu are not whole blocks of %s, which has %zu", n_cols, info.name,
                 info.block_size);
  }
  if (!importance.empty() && importance.size() != n_cols) {
    return Error(ErrorCode::invalid_argument, "%zu columns, but importance of %zu", n_cols,
                 importance.size());
  }
  // Half precision bounds the scales of all quantised formats, too.
  const float limit = format == BlockFormat::f32    ? std::numeric_limits<float>::max()
                      : format == BlockFormat::bf16 ? 3.3895314e38f
                                                    : 65504.0f;
  for (std::size_t r = 0; r < n_rows; ++r) {
    const float* row = rows + r * n_cols;
    for (std::size_t i = 0; i < n_cols; ++i) {
      if (std::abs(row[i]) <= limit) continue;
      return Error(ErrorCode::invalid_argument,
                   "element %zu of row %zu is %g, which %s cannot hold", i, r,
                   static_cast<double>(row[i]), info.name);
    }
    detail::encode_row(format, row, n_cols, importance,
                       out + r * (n_cols / info.block_size * info.block_bytes));
  }
  return {};
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_QUANTIZE_ENCODE_HPP_
