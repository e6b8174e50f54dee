// How numbers are stored in weight files: names, sizes and ids of the block formats.
//
// The ids are those of GGUF (ggml/docs/gguf.md, "ggml_type"). What a block looks like inside is in
// mixtral/formats/, one file a format.
#ifndef MIXTRAL_BLOCK_FORMAT_HPP_
#define MIXTRAL_BLOCK_FORMAT_HPP_

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

enum class BlockFormat : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  bf16 = 30,
};

struct BlockFormatInfo {
  const char* name;        // as in file names: "Q4_K"
  std::size_t block_size;  // numbers in a block; a row is a whole number of blocks
  std::size_t block_bytes;
  bool quantized;  // multiplied with activations quantised to 8 bits, else with float32 ones
};

namespace detail {
struct BlockFormatEntry {
  BlockFormat format;
  BlockFormatInfo info;
};
inline constexpr BlockFormatEntry kBlockFormats[] = {
    {BlockFormat::f32, {"F32", 1, 4, false}},
    {BlockFormat::f16, {"F16", 1, 2, false}},
    {BlockFormat::bf16, {"BF16", 1, 2, false}},
    {BlockFormat::q8_0, {"Q8_0", 32, 34, true}},
    {BlockFormat::q4_0, {"Q4_0", 32, 18, true}},
    {BlockFormat::q4_1, {"Q4_1", 32, 20, true}},
    {BlockFormat::q5_0, {"Q5_0", 32, 22, true}},
    {BlockFormat::q5_1, {"Q5_1", 32, 24, true}},
    {BlockFormat::q2_k, {"Q2_K", 256, 84, true}},
    {BlockFormat::q3_k, {"Q3_K", 256, 110, true}},
    {BlockFormat::q4_k, {"Q4_K", 256, 144, true}},
    {BlockFormat::q5_k, {"Q5_K", 256, 176, true}},
    {BlockFormat::q6_k, {"Q6_K", 256, 210, true}},
    {BlockFormat::iq2_xxs, {"IQ2_XXS", 256, 66, true}},
    {BlockFormat::iq2_xs, {"IQ2_XS", 256, 74, true}},
    {BlockFormat::iq2_s, {"IQ2_S", 256, 82, true}},
    {BlockFormat::iq3_xxs, {"IQ3_XXS", 256, 98, true}},
    {BlockFormat::iq3_s, {"IQ3_S", 256, 110, true}},
    {BlockFormat::iq4_nl, {"IQ4_NL", 32, 18, true}},
    {BlockFormat::iq4_xs, {"IQ4_XS", 256, 136, true}},
};
}  // namespace detail

// Null for a format that this library does not read.
constexpr const BlockFormatInfo* block_format_info(BlockFormat format) noexcept {
  for (const auto& entry : detail::kBlockFormats) {
    if (entry.format == format) return &entry.info;
  }
  return nullptr;
}

namespace detail {

// The names of all formats that `wanted(format)` is true of, in the order of the table: "F32, F16, BF16".
// The text lies in the object, for errors that must not allocate.
class BlockFormatNames {
 public:
  template <class Wanted>
  explicit constexpr BlockFormatNames(const Wanted& wanted) {
    for (const auto& entry : kBlockFormats) {
      if (!wanted(entry.format)) continue;
      if (size_ != 0) add(", ");
      add(entry.info.name);
    }
  }
  constexpr const char* text() const noexcept { return text_; }

 private:
  static constexpr std::size_t kSize = std::size(kBlockFormats) * 10;  // "IQ3_XXS, " has nine
  constexpr void add(const char* part) {
    for (; *part != '\0' && size_ + 1 < kSize; ++part) text_[size_++] = *part;
  }

  char text_[kSize] = {};
  std::size_t size_ = 0;
};

}  // namespace detail

}  // namespace mixtral

#endif  // MIXTRAL_BLOCK_FORMAT_HPP_
