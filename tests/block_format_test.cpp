// The list of block formats, beside ggml's.
#include "support.hpp"

using mixtral::BlockFormat;

TEST_CASE("block formats: numbers, sizes and names are those of ggml") {
  struct Row {
    BlockFormat format;
    std::uint32_t number;  // ggml.h, enum ggml_type
    const char* name;
    std::size_t block_size, block_bytes;  // ggml-common.h, the sizes of the structs block_*
  };
  static constexpr Row kRows[] = {
      {BlockFormat::f32, 0, "F32", 1, 4},
      {BlockFormat::f16, 1, "F16", 1, 2},
      {BlockFormat::q4_0, 2, "Q4_0", 32, 18},
      {BlockFormat::q4_1, 3, "Q4_1", 32, 20},
      {BlockFormat::q5_0, 6, "Q5_0", 32, 22},
      {BlockFormat::q5_1, 7, "Q5_1", 32, 24},
      {BlockFormat::q8_0, 8, "Q8_0", 32, 34},
      {BlockFormat::q2_k, 10, "Q2_K", 256, 84},
      {BlockFormat::q3_k, 11, "Q3_K", 256, 110},
      {BlockFormat::q4_k, 12, "Q4_K", 256, 144},
      {BlockFormat::q5_k, 13, "Q5_K", 256, 176},
      {BlockFormat::q6_k, 14, "Q6_K", 256, 210},
      {BlockFormat::iq2_xxs, 16, "IQ2_XXS", 256, 66},
      {BlockFormat::iq2_xs, 17, "IQ2_XS", 256, 74},
      {BlockFormat::iq3_xxs, 18, "IQ3_XXS", 256, 98},
      {BlockFormat::iq4_nl, 20, "IQ4_NL", 32, 18},
      {BlockFormat::iq3_s, 21, "IQ3_S", 256, 110},
      {BlockFormat::iq2_s, 22, "IQ2_S", 256, 82},
      {BlockFormat::iq4_xs, 23, "IQ4_XS", 256, 136},
      {BlockFormat::bf16, 30, "BF16", 1, 2},
  };
  CHECK(std::size(mixtral::detail::kBlockFormats) == std::size(kRows));
  for (const Row& row : kRows) {
    CAPTURE(std::string(row.name));
    CHECK(static_cast<std::uint32_t>(row.format) == row.number);
    const mixtral::BlockFormatInfo* info = mixtral::block_format_info(row.format);
    REQUIRE(info != nullptr);
    CHECK(std::string(info->name) == row.name);
    CHECK(info->block_size == row.block_size);
    CHECK(info->block_bytes == row.block_bytes);
    CHECK(info->quantized == (row.block_size != 1));
  }
}

TEST_CASE("block formats: other numbers of ggml are none of them") {
  for (const std::uint32_t number : {4u, 5u, 9u, 15u, 19u, 24u, 28u, 29u, 31u, 39u, 0xFFFFFFFFu}) {
    CAPTURE(number);
    CHECK(mixtral::block_format_info(static_cast<BlockFormat>(number)) == nullptr);
  }
}
