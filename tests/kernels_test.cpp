// Block formats and kernels, on every SIMD target that this machine runs, against scalar definitions.
#include "block_reference.hpp"
#include "exact_memory.hpp"

#include <mixtral/simd/half.hpp>
#include <mixtral/simd/software_fma.hpp>

#include <optional>

using namespace support;
using mixtral::BlockFormat;
using mixtral::simd::Kernels;
using mixtral::simd::Matrix;

TEST_CASE("kernels: the grids of IQ2 and IQ3 are those of ggml") {
  // 512 blocks of pseudo-random bytes with d = 1, as ggml (llama.cpp c392e50) decodes them: a hash of
  // the floats. Every point of each grid occurs.
  const std::pair<BlockFormat, std::uint64_t> expected[] = {
      {BlockFormat::iq2_xxs, 0x3461346f4d5f2a62ull},
      {BlockFormat::iq2_xs, 0x7663a1c24f887360ull},
      {BlockFormat::iq2_s, 0xc6843e96bd9d9c63ull},
      {BlockFormat::iq3_xxs, 0x8afe4af35421aaceull},
      {BlockFormat::iq3_s, 0x63781282d670a866ull}};
  for (const auto& [format, hash] : expected) {
    const auto& info = *mixtral::block_format_info(format);
    CAPTURE(std::string(info.name));
    Blob blocks(512 * info.block_bytes);
    std::uint32_t state = 1;
    for (auto& byte : blocks) {
      state = state * 1664525u + 1013904223u;
      byte = static_cast<std::uint8_t>(state >> 24);
    }
    for (std::size_t i = 0; i < 512; ++i) {
      blocks[i * info.block_bytes] = 0;
      blocks[i * info.block_bytes + 1] = 0x3c;
    }
    Matrix matrix;
    matrix.data = blocks.data();
    matrix.row_bytes = blocks.size();
    matrix.rows = 1;
    matrix.cols = 512 * 256;
    matrix.format = format;
    std::vector<float> out(matrix.cols);
    for (const Kernels* kernels : all_kernels()) {
      kernels->decode_rows(matrix, 0, 1, out.data());
      std::uint64_t fnv = 1469598103934665603u;  // FNV-1a
      for (const float value : out) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, 4);
        for (int b = 0; b < 4; ++b) fnv = (fnv ^ (bits >> (8 * b) & 255)) * 1099511628211u;
      }
      CHECK(fnv == hash);
    }
  }
}

TEST_CASE("kernels: the targets are listed best first and can be chosen") {
  const auto all = all_kernels();
  REQUIRE(!all.empty());
  MESSAGE("SIMD targets run here: ", all.size(), ", best ", std::string(all[0]->target),
          ", lowest ", std::string(all.back()->target));
  CHECK(mixtral::simd::select_kernels() == all[0]);
  for (const Kernels* kernels : all) {
    CHECK(mixtral::simd::select_kernels(kernels->target_bit) == kernels);
  }
  CHECK(mixtral::simd::select_kernels(all[0]->target_bit | all.back()->target_bit) == all[0]);
}

TEST_CASE("kernels: every block format decodes as its layout says, on every target") {
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(std::string(entry.info.name));
    for (const std::size_t cols : {256u, 768u, entry.info.block_size == 256 ? 512u : 352u}) {
      const RandomMatrix w(entry.format, 3, cols, 5);
      for (const Kernels* kernels : all_kernels()) {
        CAPTURE(std::string(kernels->target));
        std::vector<float> row(cols + 1, -12345.0f);
        for (std::size_t r = 0; r < 3; ++r) {
          kernels->decode_rows(w.matrix, r, 1, row.data());
          double worst = 0.0;
          for (std::size_t c = 0; c < cols; ++c) {
            const double expected = w.values[r][c];
            // Two roundings at most, of terms that may be 32 times the result.
            const double scale = std::max(std::abs(expected), 1e-3);
            keep_largest(worst, std::abs(static_cast<double>(row[c]) - expected) / scale);
          }
          CHECK(worst <= 64 * 6e-8);
          CHECK(row[cols] == -12345.0f);  // nothing past the end
        }
      }
    }
  }
}

TEST_CASE("kernels: half precision is exact for all 65536 values") {
  Blob data(65536 * 2);
  for (std::size_t i = 0; i < 65536; ++i) {
    data[2 * i] = static_cast<std::uint8_t>(i);
    data[2 * i + 1] = static_cast<std::uint8_t>(i >> 8);
  }
  const Matrix w{data.data(), data.size(), 1, 65536, BlockFormat::f16};
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    std::vector<float> out(65536);
    kernels->decode_rows(w, 0, 1, out.data());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < 65536; ++i) {
      if ((i >> 10 & 31) == 31) {
        wrong += (i & 1023) != 0 ? !std::isnan(out[i]) : !std::isinf(out[i]);
      } else {
        wrong += static_cast<double>(out[i]) != half(data.data() + 2 * i);
        wrong += std::signbit(out[i]) != (i >= 32768);
      }
    }
    CHECK(wrong == 0);
  }
}

// Activations quantised as kernels want them; aligned as the library's are.
struct Quantized {
  std::size_t cols = 0;
  std::vector<std::uint8_t> memory;
  std::uint8_t* data = nullptr;

  Quantized(std::size_t n_tokens, std::size_t n_cols)
      : cols(n_cols), memory(n_tokens * mixtral::simd::token_bytes(n_cols) + 64) {
    auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    data = memory.data() + (64 - address % 64);
  }
  std::uint8_t* tile(std::size_t i) const { return data + i * mixtral::simd::kTokenTileBytes; }
  double scale(std::size_t c) const {
    return static_cast<double>(mixtral::simd::tile_scale(tile(c / 256), 1)[c % 256 / 32]);
  }
  int q(std::size_t c) const { return mixtral::simd::tile_q(tile(c / 256))[c % 256]; }
  int q_sum(std::size_t c) const {
    return mixtral::simd::tile_q_sum(tile(c / 256), 1)[c / 16 % 2 * 8 + c % 256 / 32];
  }
};

// Some rows of a random matrix times some tokens: against the definition, one token and row alone
// against many, in both layouts of the tokens.
void check_products(const mixtral::detail::BlockFormatEntry& entry, std::size_t rows,
                    std::size_t cols, std::size_t n_tokens) {
  CAPTURE(rows);
  CAPTURE(cols);
  CAPTURE(n_tokens);
  const RandomMatrix w(entry.format, rows + 1, cols, 11);
  const std::size_t padded = mixtral::simd::padded(cols);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> x(n_tokens, std::vector<float>(padded, 0.0f));
  for (auto& row : x) {
    for (std::size_t c = 0; c < cols; ++c) row[c] = normal(random);
  }
  for (std::size_t c = 0; c < 64; ++c) x[0][c] = 0.0f;  // blocks of zeros
  std::vector<float> first_target;
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const std::size_t lanes = kernels->lanes();
    std::vector<Quantized> alone;
    const std::size_t n_groups = (n_tokens + lanes - 1) / lanes;
    const Quantized groups(n_groups * lanes, cols), packed(n_groups * lanes, cols);
    std::vector<const void*> inputs;
    std::vector<const std::uint8_t*> tokens;
    for (std::size_t t = 0; t < n_tokens; ++t) {
      alone.emplace_back(1, cols);
      kernels->quantize(x[t].data(), 0, cols, cols, alone[t].data, 1, 0);
      // The same in two pieces.
      std::uint8_t* group = groups.data + t / lanes * lanes * mixtral::simd::token_bytes(cols);
      kernels->quantize(x[t].data(), 0, 96, cols, group, lanes, t % lanes);
      kernels->quantize(x[t].data() + 96, 96, cols - 96, cols, group, lanes, t % lanes);
      inputs.push_back(entry.info.quantized ? static_cast<const void*>(alone[t].data)
                                            : static_cast<const void*>(x[t].data()));
      tokens.push_back(alone[t].data);
    }
    for (std::size_t t = 0; t < n_tokens; t += lanes) {
      kernels->pack(tokens.data() + t, std::min(lanes, n_tokens - t), cols,
                    packed.data + t * mixtral::simd::token_bytes(cols));
    }
    Results out, one, grouped;
    kernels->matmul(w.matrix, 1, rows, inputs.data(), n_tokens, out.values);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      for (std::size_t r = 0; r < rows; ++r) {
        double expected = 0.0;
        double magnitude = 1e-6;
        for (std::size_t c = 0; c < cols; ++c) {
          const double activation = entry.info.quantized ? alone[t].scale(c) * alone[t].q(c)
                                                         : static_cast<double>(x[t][c]);
          expected += w.values[r + 1][c] * activation;
          magnitude += std::abs(w.values[r + 1][c] * activation);
        }
        // Offsets are up to 32 times a quant's step and are subtracted in float.
        CHECK(std::abs(static_cast<double>(out.at(t, r)) - expected) <= 4e-6 * magnitude);
        // Alone, a row and token give the very same bits.
        kernels->matmul(w.matrix, 1 + r, 1, &inputs[t], 1, one.values);
        CHECK(one.at(0, 0) == out.at(t, r));
      }
    }
    for (const Quantized* together : {&groups, &packed}) {
      if (!entry.info.quantized) break;
      kernels->matmul_groups(w.matrix, 1, rows, together->data, n_tokens, grouped.values);
      std::size_t different = 0;
      for (std::size_t t = 0; t < n_tokens; ++t) {
        for (std::size_t r = 0; r < rows; ++r) different += grouped.at(t, r) != out.at(t, r);
      }
      CHECK(different == 0);
    }
    std::vector<float> results;
    double largest = 0.0;
    for (std::size_t t = 0; t < n_tokens; ++t) {
      for (std::size_t r = 0; r < rows; ++r) {
        results.push_back(out.at(t, r));
        largest = std::max(largest, std::abs(static_cast<double>(out.at(t, r))));
      }
    }
    if (first_target.empty()) first_target = results;
    CHECK(max_difference(results, first_target) <= 1e-5 * largest);
  }
}

TEST_CASE("kernels: multiplying directly equals decoding, then multiplying") {
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(std::string(entry.info.name));
    check_products(entry, 4, 256, 7);
    check_products(entry, 19, 1024, 3);
    check_products(entry, 32, 512, 37);
    check_products(entry, 19, 512, 31);  // too many over for a few, with 8 or 16 lanes
    if (entry.info.block_size < 256) check_products(entry, 9, 416, 1);
  }
}

TEST_CASE("kernels: each token's results are those it has alone, whatever their number") {
  constexpr std::size_t kRows = 32, kCols = 512, kMost = 17;
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    if (!entry.info.quantized) continue;
    CAPTURE(std::string(entry.info.name));
    const RandomMatrix w(entry.format, kRows, kCols, 14);
    for (const Kernels* kernels : all_kernels()) {
      CAPTURE(std::string(kernels->target));
      const Quantized tokens(kMost, kCols);
      const void* inputs[kMost];
      Results alone[kMost];
      for (std::size_t t = 0; t < kMost; ++t) {
        std::vector<float> x(kCols);
        for (float& v : x) v = normal(random);
        std::uint8_t* token = tokens.data + t * mixtral::simd::token_bytes(kCols);
        kernels->quantize(x.data(), 0, kCols, kCols, token, 1, 0);
        inputs[t] = token;
        kernels->matmul(w.matrix, 0, kRows, inputs + t, 1, alone[t].values);
      }
      for (std::size_t n = 2; n <= kMost; ++n) {
        Results together;
        kernels->matmul(w.matrix, 0, kRows, inputs, n, together.values);
        std::size_t different = 0;
        for (std::size_t t = 0; t < n; ++t) {
          for (std::size_t r = 0; r < kRows; ++r)
            different += together.at(t, r) != alone[t].at(0, r);
        }
        CAPTURE(n);
        CHECK(different == 0);
      }
    }
  }
}

// Tokens as a format takes them, alone and, if it is quantised, in groups.
struct Tokens {
  Tokens(const Kernels& kernels, bool quantized, std::size_t n_tokens, std::size_t n_cols,
         unsigned seed)
      : floats(n_tokens, std::vector<float>(mixtral::simd::padded(n_cols))) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const std::size_t lanes = kernels.lanes();
    groups.emplace((n_tokens + lanes - 1) / lanes * lanes, n_cols);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      for (std::size_t c = 0; c < n_cols; ++c) floats[t][c] = normal(random);
      alone.emplace_back(1, n_cols);
      kernels.quantize(floats[t].data(), 0, n_cols, n_cols, alone[t].data, 1, 0);
      inputs.push_back(quantized ? static_cast<const void*>(alone[t].data) : floats[t].data());
    }
    std::vector<const std::uint8_t*> data;
    for (const Quantized& token : alone) data.push_back(token.data);
    for (std::size_t t = 0; t < n_tokens; t += lanes) {
      kernels.pack(data.data() + t, std::min(lanes, n_tokens - t), n_cols,
                   groups->data + t * mixtral::simd::token_bytes(n_cols));
    }
  }

  // What the format multiplies with.
  double value(bool quantized, std::size_t t, std::size_t c) const {
    return quantized ? alone[t].scale(c) * alone[t].q(c) : static_cast<double>(floats[t][c]);
  }

  std::vector<std::vector<float>> floats;
  std::vector<Quantized> alone;
  std::vector<const void*> inputs;
  std::optional<Quantized> groups;
};

TEST_CASE("kernels: any rows and tokens together give what each token gives alone, and no more") {
  constexpr std::size_t kMost = 53;
  constexpr std::size_t kTokens[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10,   12,
                                     15, 16, 17, 27, 28, 29, 30, 33, 45, kMost};
  constexpr std::size_t kRows[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32};
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(std::string(entry.info.name));
    const bool quantized = entry.info.quantized;
    std::vector<std::size_t> widths = {256, 512};
    if (entry.info.block_size == 32) widths = {32, 288};
    if (entry.info.block_size == 1) widths = {1, 33, 257};
    for (const std::size_t cols : widths) {
      CAPTURE(cols);
      constexpr std::size_t kFirst = 3;  // some rows before, none after the last
      const RandomMatrix w(entry.format, kFirst + 32, cols, 21);
      // Nothing can be read behind the last row, as at the end of a mapped file.
      const ExactMemory memory(w.matrix.bytes());
      std::memcpy(memory.data(), w.matrix.data, w.matrix.bytes());
      Matrix exact = w.matrix;
      exact.data = memory.data();
      for (const Kernels* kernels : all_kernels()) {
        CAPTURE(std::string(kernels->target));
        const Tokens tokens(*kernels, quantized, kMost, cols, 22);
        const std::size_t lanes = kernels->lanes();
        Results alone, out;
        std::size_t n_wrong = 0;
        std::vector<float> expected(kMost * 32);
        for (std::size_t t = 0; t < kMost; ++t) {
          kernels->matmul(exact, kFirst, 32, &tokens.inputs[t], 1, alone.values);
          std::copy(alone.values, alone.values + 32, expected.begin() + static_cast<int>(t * 32));
          for (std::size_t r = t % 8; r < 32; r += 8) {
            double sum = 0.0, magnitude = 1e-9;
            for (std::size_t c = 0; c < cols; ++c) {
              const double product = w.values[kFirst + r][c] * tokens.value(quantized, t, c);
              sum += product;
              magnitude += std::abs(product);
            }
            n_wrong += !(std::abs(static_cast<double>(alone.at(0, r)) - sum) <= 4e-6 * magnitude);
          }
        }
        CHECK(n_wrong == 0);
        constexpr float kUntouched = -1234.5f;
        const auto check = [&](std::size_t n_rows, std::size_t n_tokens, std::size_t n_room,
                               const auto& multiply) {
          const std::size_t room = n_room * kOutRows;
          std::fill(out.values, out.values + room + 2 * kOutRows, kUntouched);
          multiply();
          std::size_t n_different = 0;
          for (std::size_t t = 0; t < n_tokens; ++t) {
            for (std::size_t r = 0; r < n_rows; ++r) {
              n_different += out.at(t, r) != expected[t * 32 + 32 - n_rows + r];
            }
          }
          for (std::size_t i = room; i < room + 2 * kOutRows; ++i) {
            n_different += out.values[i] != kUntouched;
          }
          if (n_different != 0)
            FAIL_CHECK(n_different, " differ with ", n_rows, " rows, ", n_tokens, " tokens");
        };
        for (const std::size_t n_rows : kRows) {
          const std::size_t first = kFirst + 32 - n_rows;
          for (const std::size_t n : kTokens) {
            // Only some of all pairs, but each number of tokens with 1, 17 and 32 rows.
            if (n_rows % 15 != 2 && n_rows != 1 && (n + n_rows) % 4 != 0) continue;
            check(n_rows, n, (n + 3) / 4 * 4, [&] {
              kernels->matmul(exact, first, n_rows, tokens.inputs.data(), n, out.values);
            });
            if (!quantized) continue;
            check(n_rows, n, (n + lanes - 1) / lanes * lanes, [&] {
              kernels->matmul_groups(exact, first, n_rows, tokens.groups->data, n, out.values);
            });
          }
        }
      }
    }
  }
}

TEST_CASE("kernels: transposed matrices of floats give the same bits, and the same rows") {
  for (const BlockFormat format : {BlockFormat::f32, BlockFormat::f16, BlockFormat::bf16}) {
    CAPTURE(std::string(mixtral::block_format_info(format)->name));
    const std::size_t bytes = mixtral::block_format_info(format)->block_bytes;
    for (const std::size_t cols : {5u, 256u, 300u}) {
      constexpr std::size_t kRows = 301;  // more than a tile
      const RandomMatrix w(format, kRows, cols, 23);
      const ExactMemory turned(kRows * cols * bytes);
      for (std::size_t r = 0; r < kRows; ++r) {
        for (std::size_t c = 0; c < cols; ++c) {
          std::memcpy(turned.data() + (c * kRows + r) * bytes,
                      w.matrix.data + r * w.matrix.row_bytes + c * bytes, bytes);
        }
      }
      Matrix transposed = w.matrix;
      transposed.data = turned.data();
      transposed.row_bytes = kRows * bytes;
      transposed.transposed = true;
      CHECK(transposed.bytes() == kRows * cols * bytes);
      CHECK(w.matrix.bytes() == kRows * cols * bytes);
      for (const Kernels* kernels : all_kernels()) {
        CAPTURE(std::string(kernels->target));
        CHECK(kernels->interleaved_row_bytes(transposed) == 0);
        for (const auto& range : {std::pair<std::size_t, std::size_t>{0, 301},
                                  {0, 1},
                                  {300, 1},
                                  {7, 290},
                                  {44, 257},
                                  {45, 256},
                                  {16, 16}}) {
          const std::size_t first = range.first, n = range.second;
          CAPTURE(first);
          std::vector<float> plain(n * cols + 1, 9.0f), other(n * cols + 1, 9.0f);
          kernels->decode_rows(w.matrix, first, n, plain.data());
          kernels->decode_rows(transposed, first, n, other.data());
          CHECK(plain == other);
          CHECK(plain.back() == 9.0f);
          std::size_t n_wrong = 0;
          for (std::size_t i = 0; i < n * cols; ++i) {
            n_wrong += static_cast<double>(plain[i]) != w.values[first + i / cols][i % cols];
          }
          CHECK(n_wrong == 0);
        }
        const Tokens tokens(*kernels, false, 11, cols, 24);
        for (const std::size_t n_rows : {1u, 2u, 15u, 16u, 17u, 31u, 32u}) {
          for (const std::size_t n : {1u, 2u, 3u, 4u, 7u, 8u, 11u}) {
            Results plain, other;
            const std::size_t first = kRows - n_rows;
            kernels->matmul(w.matrix, first, n_rows, tokens.inputs.data(), n, plain.values);
            kernels->matmul(transposed, first, n_rows, tokens.inputs.data(), n, other.values);
            std::size_t n_different = 0;
            for (std::size_t t = 0; t < n; ++t) {
              for (std::size_t r = 0; r < n_rows; ++r)
                n_different += plain.at(t, r) != other.at(t, r);
            }
            CHECK(n_different == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("kernels: rows from anywhere are decoded, more than are unpacked together, too") {
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(std::string(entry.info.name));
    const std::size_t cols = entry.info.block_size == 256 ? 512 : 288;
    const RandomMatrix w(entry.format, 71, cols, 25);
    for (const Kernels* kernels : all_kernels()) {
      CAPTURE(std::string(kernels->target));
      for (const auto& range : {std::pair<std::size_t, std::size_t>{0, 71},
                                {31, 2},
                                {32, 32},
                                {33, 38},
                                {70, 1},
                                {5, 0}}) {
        const std::size_t first = range.first, n = range.second;
        CAPTURE(first);
        std::vector<float> out(n * cols + 1, -9.0f);
        kernels->decode_rows(w.matrix, first, n, out.data());
        std::size_t n_wrong = 0;
        for (std::size_t i = 0; i < n * cols; ++i) {
          const double expected = w.values[first + i / cols][i % cols];
          n_wrong += !(std::abs(static_cast<double>(out[i]) - expected) <=
                       4e-6 * std::max(std::abs(expected), 1e-3));
        }
        CHECK(n_wrong == 0);
        CHECK(out.back() == -9.0f);
      }
    }
  }
}

TEST_CASE("kernels: scales may be any half: zeros of either sign, subnormals, the largest") {
  constexpr std::uint16_t kScales[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff,
                                       0x0400, 0x8400, 0x3c00, 0xbc00, 0x7bff, 0xfbff};
  constexpr std::size_t kCols = 256, kRows = std::size(kScales) * 2;
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const auto offsets = half_offsets(entry.format);
    if (offsets.empty()) continue;
    CAPTURE(std::string(entry.info.name));
    RandomMatrix w(entry.format, kRows, kCols, 26);
    for (std::size_t r = 0; r < kRows; ++r) {
      w.values[r].clear();
      for (std::size_t b = 0; b < kCols / entry.info.block_size; ++b) {
        std::uint8_t* block =
            w.data.data() + 1 + r * w.matrix.row_bytes + b * entry.info.block_bytes;
        // First the scale, with the second number, if there is one, as it was; then the other way round.
        const std::size_t offset = offsets[r < std::size(kScales) ? 0 : offsets.size() - 1];
        block[offset] = static_cast<std::uint8_t>(kScales[r % std::size(kScales)]);
        block[offset + 1] = static_cast<std::uint8_t>(kScales[r % std::size(kScales)] >> 8);
        const auto decoded = decode_block(entry.format, block);
        w.values[r].insert(w.values[r].end(), decoded.begin(), decoded.end());
      }
    }
    for (const Kernels* kernels : all_kernels()) {
      CAPTURE(std::string(kernels->target));
      std::vector<float> out(kRows * kCols);
      kernels->decode_rows(w.matrix, 0, kRows, out.data());
      const Tokens tokens(*kernels, entry.info.quantized, 5, kCols, 27);
      Results products;
      kernels->matmul(w.matrix, 0, kRows, tokens.inputs.data(), 5, products.values);
      std::size_t n_wrong = 0;
      for (std::size_t r = 0; r < kRows; ++r) {
        double largest = 0.0;
        for (const double v : w.values[r]) largest = std::max(largest, std::abs(v));
        for (std::size_t c = 0; c < kCols; ++c) {
          const double error = std::abs(static_cast<double>(out[r * kCols + c]) - w.values[r][c]);
          n_wrong += !(error <= 4e-7 * largest);
        }
        for (std::size_t t = 0; t < 5; ++t) {
          double sum = 0.0, magnitude = 0.0;
          for (std::size_t c = 0; c < kCols; ++c) {
            const double product = w.values[r][c] * tokens.value(entry.info.quantized, t, c);
            sum += product;
            magnitude += std::abs(product);
          }
          n_wrong += !(std::abs(static_cast<double>(products.at(t, r)) - sum) <= 8e-6 * magnitude);
        }
      }
      CHECK(n_wrong == 0);
    }
  }
}

TEST_CASE("kernels: activations get the least power of two that holds them, from 2^-100 to 2^100") {
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const std::size_t lanes = kernels->lanes();
    const auto check = [&](float largest, double scale, int q) {
      CAPTURE(largest);
      for (const std::size_t at : {0u, 13u, 31u}) {
        std::vector<float> x(256);
        x[32 + at] = largest;
        x[32 + (at + 7) % 32] = 0.5f * largest;
        const Quantized alone(1, 256);
        kernels->quantize(x.data(), 0, 256, 256, alone.data, 1, 0);
        CHECK(alone.scale(32) == scale);
        CHECK(alone.q(32 + at) == q);
        const Quantized group(lanes, 256);
        std::vector<float> rows(lanes * 32);
        std::memcpy(rows.data() + (lanes - 1) * 32, x.data() + 32, 32 * sizeof(float));
        kernels->quantize_group(rows.data(), 32, lanes, 32, group.data);
        CHECK(mixtral::simd::tile_scale(group.data, lanes)[2 * lanes - 1] ==
              static_cast<float>(scale));
        CHECK(mixtral::simd::tile_q(group.data)[((8 + at / 4) * lanes + lanes - 1) * 4 + at % 4] ==
              q);
      }
    };
    for (const int k : {-100, -99, -50, -1, 0, 1, 60, 99, 100}) {
      CAPTURE(k);
      const auto unit = std::ldexp(1.0, k);
      for (const float sign : {1.0f, -1.0f}) {
        const auto most = sign * std::ldexp(127.0f, k);
        check(most, unit, sign > 0.0f ? 127 : -127);
        if (k < 100) check(std::nextafter(most, sign * 1e38f), 2.0 * unit, sign > 0.0f ? 64 : -64);
      }
    }
    check(std::ldexp(100.0f, -101), 0x1p-100, 50);  // what is less still has the least scale
    check(0x1p-120f, 0x1p-100, 0);
    check(0.0f, 0x1p-100, 0);
    check(0x1p127f, 0x1p100, 127);  // what is more becomes as much as there is
    check(-0x1p127f, 0x1p100, -127);
  }
}

TEST_CASE(
    "kernels: activations are rounded to the nearest, ties to even, and leave their neighbours "
    "alone") {
  std::vector<float> x(96);
  for (std::size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(static_cast<int>(i) - 16) + 0.5f;
  x[0] = 127.0f;
  x[1] = -126.5f;
  for (std::size_t i = 32; i < 64; ++i) x[i] = static_cast<float>(i % 2 == 0 ? 127 : -127);
  for (std::size_t i = 64; i < 96; ++i) x[i] = 127.0f;
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const std::size_t lanes = kernels->lanes();
    for (const std::size_t n_tokens : {std::size_t{1}, lanes}) {
      for (const std::size_t token : {std::size_t{0}, n_tokens / 2, n_tokens - 1}) {
        const std::size_t n_bytes = n_tokens * mixtral::simd::token_bytes(512);
        Blob memory(n_bytes + 128, 0x33);
        std::uint8_t* data =
            memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
        // Columns 128 to 223 of 512: not the last ones, so nothing is cleared after them.
        kernels->quantize(x.data(), 128, 96, 512, data, n_tokens, token);
        const auto q = [&](std::size_t c) {
          return int{mixtral::simd::tile_q(data)[(c / 4 * n_tokens + token) * 4 + c % 4]};
        };
        for (std::size_t i = 0; i < 96; ++i) {
          CHECK(q(128 + i) == static_cast<int>(std::nearbyint(x[i])));
        }
        CHECK(q(129) == -126);
        for (std::size_t b = 4; b < 7; ++b) {
          CHECK(mixtral::simd::tile_scale(data, n_tokens)[b * n_tokens + token] == 1.0f);
          for (std::size_t half = 0; half < 2; ++half) {
            int sum = 0;
            for (std::size_t i = 0; i < 16; ++i) sum += q(b * 32 + half * 16 + i);
            CHECK(mixtral::simd::tile_q_sum(data, n_tokens)[(half * 8 + b) * n_tokens + token] ==
                  sum);
          }
        }
        // 96 quants, three scales and six sums are no longer what they were.
        std::size_t n_changed = 0;
        Blob again(n_bytes, 0x33);
        for (std::size_t i = 0; i < n_bytes; ++i) n_changed += data[i] != 0x33;
        CHECK(n_changed <= 96 + 3 * 4 + 6 * 2);
        for (std::size_t c = 0; c < 256; ++c) {
          if (c < 128 || c >= 224) CHECK(q(c) == 0x33);
        }
        for (std::size_t i = n_bytes; data + i < memory.data() + memory.size(); ++i) {
          CHECK(data[i] == 0x33);
        }
        CHECK(std::all_of(memory.data(), data, [](std::uint8_t byte) { return byte == 0x33; }));
      }
    }
  }
}

TEST_CASE("kernels: a group is made of the tokens given, zeros after them, and nothing behind it") {
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const std::size_t lanes = kernels->lanes();
    for (const std::size_t cols : {32u, 256u, 300u}) {
      const std::size_t token_bytes = mixtral::simd::token_bytes(cols);
      const Tokens tokens(*kernels, true, lanes, cols, 28);
      for (std::size_t n = 1; n <= lanes; ++n) {
        const Quantized packed(lanes + 1, cols), one_by_one(lanes + 1, cols);
        std::memset(packed.data, 0x77, (lanes + 1) * token_bytes);
        std::memset(one_by_one.data, 0x77, (lanes + 1) * token_bytes);
        std::memset(one_by_one.data, 0, lanes * token_bytes);
        std::vector<const std::uint8_t*> data;
        for (std::size_t t = 0; t < n; ++t) {
          data.push_back(tokens.alone[t].data);
          kernels->quantize(tokens.floats[t].data(), 0, cols, cols, one_by_one.data, lanes, t);
        }
        kernels->pack(data.data(), n, cols, packed.data);
        CHECK(std::memcmp(packed.data, one_by_one.data, (lanes + 1) * token_bytes) == 0);
      }
    }
  }
}

TEST_CASE("kernels: targets are chosen among those allowed, groups from a number of tokens on") {
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const std::size_t lanes = kernels->lanes();
    CHECK(lanes >= 1);
    CHECK(lanes <= mixtral::simd::kMaxLanes);
    CHECK((lanes & (lanes - 1)) == 0);
    CHECK(kernels->min_grouped_tokens > 0);
    CHECK(!kernels->in_groups(kernels->min_grouped_tokens - 1));
    CHECK(kernels->in_groups(kernels->min_grouped_tokens));
    CHECK(mixtral::simd::select_kernels(kernels->target_bit, true) ==
          (kernels->fuses ? kernels : nullptr));
  }
  std::int64_t all = 0;
  const Kernels* first_that_fuses = nullptr;
  for (const Kernels* kernels : all_kernels()) {
    all |= kernels->target_bit;
    if (first_that_fuses == nullptr && kernels->fuses) first_that_fuses = kernels;
  }
  CHECK(mixtral::simd::select_kernels(0, true) == first_that_fuses);
  for (int bit = 0; bit < 62; ++bit) {
    if ((all >> bit & 1) == 0)
      CHECK(mixtral::simd::select_kernels(std::int64_t{1} << bit) == nullptr);
  }
}

TEST_CASE("kernels: interleaved rows give the same bits") {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(std::string(entry.info.name));
    constexpr std::size_t kRows = 64, kCols = 1280, kMost = 37;
    const RandomMatrix w(entry.format, kRows, kCols, 12);
    const RandomMatrix no_whole_group(entry.format, kRows + 1, kCols, 13);
    for (const Kernels* kernels : all_kernels()) {
      CAPTURE(std::string(kernels->target));
      CHECK(kernels->interleaved_row_bytes(no_whole_group.matrix) == 0);
      const std::size_t row_bytes = kernels->interleaved_row_bytes(w.matrix);
      if (row_bytes == 0) {
        const std::string name = entry.info.name;
        const bool has_grid = name.compare(0, 3, "IQ2") == 0 || name.compare(0, 3, "IQ3") == 0;
        CHECK((has_grid || entry.format == BlockFormat::f32 || entry.format == BlockFormat::f16));
        continue;
      }
      CHECK(row_bytes >= w.matrix.row_bytes);
      CHECK(row_bytes < w.matrix.row_bytes + kCols / 64);
      // All together, and with 192 bytes of something else after 32 rows.
      constexpr std::size_t kGap = 192, kBlock = mixtral::simd::kMaxMatmulRows;
      Blob memory(2 * kRows * row_bytes + kGap + 64, 0x55);
      auto* data = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
      Matrix together = w.matrix;
      together.row_bytes = row_bytes;
      together.interleaved = kernels->lanes();
      together.data = data;
      kernels->interleave(w.matrix, data);
      Matrix apart = together;
      data += kRows * row_bytes;
      apart.data = data;
      apart.gap_bytes = kGap;
      for (std::size_t row = 0; row < kRows; row += kBlock) {
        Matrix block = w.matrix;
        block.data += row * block.row_bytes;
        block.rows = kBlock;
        kernels->interleave(block, data);
        data += kBlock * row_bytes + kGap;
      }

      // Rows from anywhere as floats.
      for (const std::size_t first : {0u, 5u, 29u}) {
        const std::size_t n_rows = first == 0 ? kRows : 33;
        std::vector<float> plain(n_rows * kCols), other(n_rows * kCols, 1.0f);
        kernels->decode_rows(w.matrix, first, n_rows, plain.data());
        kernels->decode_rows(together, first, n_rows, other.data());
        CHECK(plain == other);
        std::fill(other.begin(), other.end(), 1.0f);
        kernels->decode_rows(apart, first, n_rows, other.data());
        CHECK(plain == other);
      }
      const Quantized tokens(kMost, kCols);
      const std::size_t lanes = kernels->lanes(), n_groups = (kMost + lanes - 1) / lanes;
      const Quantized groups(n_groups * lanes, kCols);
      std::vector<float> floats(kMost * kCols);
      std::vector<std::uint16_t> rounded(kMost * kCols);
      const void* inputs[kMost];
      const void* rounded_inputs[kMost];
      for (std::size_t t = 0; t < kMost; ++t) {
        float* x = floats.data() + t * kCols;
        for (std::size_t c = 0; c < kCols; ++c) x[c] = normal(random);
        kernels->to_bf16(x, kCols, rounded.data() + t * kCols);
        rounded_inputs[t] = rounded.data() + t * kCols;
        std::uint8_t* token = tokens.data + t * mixtral::simd::token_bytes(kCols);
        kernels->quantize(x, 0, kCols, kCols, token, 1, 0);
        inputs[t] = entry.info.quantized ? static_cast<const void*>(token) : x;
        std::uint8_t* group = groups.data + t / lanes * lanes * mixtral::simd::token_bytes(kCols);
        kernels->quantize(x, 0, kCols, kCols, group, lanes, t % lanes);
      }
      const auto compare = [&](std::size_t n_tokens, std::size_t n_rows, const auto& multiply) {
        CAPTURE(n_tokens);
        Results plain;
        multiply(w.matrix, plain);
        std::size_t different = 0;
        for (const Matrix& m : {together, apart}) {
          Results other;
          multiply(m, other);
          for (std::size_t t = 0; t < n_tokens; ++t) {
            for (std::size_t r = 0; r < n_rows; ++r) different += plain.at(t, r) != other.at(t, r);
          }
        }
        CHECK(different == 0);
      };
      for (const std::size_t n : {1u, 2u, 3u, 4u, 5u, 8u, 13u, 16u, 17u, 29u, 37u}) {
        compare(n, 32, [&](const Matrix& m, Results& out) {
          kernels->matmul(m, 32, 32, inputs, n, out.values);
        });
        compare(n, 32, [&](const Matrix& m, Results& out) {
          if (entry.info.quantized) {
            kernels->matmul_groups(m, 0, 32, groups.data, n, out.values);
          } else {
            kernels->matmul_bf16(m, 0, 32, rounded_inputs, n, out.values);
          }
        });
        compare(n, 16, [&](const Matrix& m, Results& out) {  // the last rows of all
          kernels->matmul(m, 48, 16, inputs, n, out.values);
        });
        compare(n, lanes, [&](const Matrix& m, Results& out) {  // one group
          kernels->matmul(m, kRows - lanes, lanes, inputs, n, out.values);
        });
      }
    }
  }
}

TEST_CASE("kernels: quantised activations are within half a step, sums included") {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> x(300);
  for (float& v : x) v = normal(random);
  for (std::size_t i = 64; i < 96; ++i) x[i] = 0.0f;
  x[100] = 1e30f;
  x[140] = -1e-30f;
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const Quantized token(1, 300);
    std::memset(token.data, 0x55, mixtral::simd::token_bytes(300));  // the end is cleared
    kernels->quantize(x.data(), 0, 300, 300, token.data, 1, 0);
    for (std::size_t i = 0; i < 512; ++i) {
      const double value = i < 300 ? static_cast<double>(x[i]) : 0.0;
      int exponent;
      if (i < 300) CHECK(std::frexp(token.scale(i), &exponent) == 0.5);
      CHECK(std::abs(token.scale(i) * token.q(i) - value) <= token.scale(i) * 0.5001);
      CHECK(token.q(i) >= -127);
    }
    for (std::size_t begin = 0; begin < 512; begin += 16) {
      int sum = 0;
      for (std::size_t i = 0; i < 16; ++i) sum += token.q(begin + i);
      CHECK(token.q_sum(begin) == sum);
    }
  }
}

TEST_CASE("kernels: columns of a group are quantised together as one by one") {
  constexpr std::size_t kCols = 512, kStride = 40;
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> x(mixtral::simd::kMaxLanes * kStride);
  for (float& v : x) v = normal(random);
  for (std::size_t c = 0; c < 32; ++c) x[2 * kStride + c] = 0.0f;
  x[5] = std::nanf("");
  x[kStride + 31] = -std::numeric_limits<float>::infinity();
  x[3 * kStride] = 1e38f;
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const std::size_t lanes = kernels->lanes(), bytes = lanes * mixtral::simd::token_bytes(kCols);
    for (std::size_t n : {std::size_t{1}, lanes - 1, lanes}) {
      const Quantized together(lanes, kCols), alone(lanes, kCols);
      std::memset(together.data, 0x55, bytes);
      std::memset(alone.data, 0x55, bytes);
      for (unsigned first : {0u, 96u, 256u, 480u}) {
        const std::vector<float> zeros(32);
        kernels->quantize_group(x.data(), kStride, n, first, together.data);
        for (std::size_t t = 0; t < lanes; ++t) {
          const float* values = t < n ? x.data() + t * kStride : zeros.data();
          kernels->quantize(values, first, 32, kCols, alone.data, lanes, t);
        }
      }
      CHECK(std::memcmp(together.data, alone.data, bytes) == 0);
    }
  }
}

TEST_CASE(
    "kernels: activations that are no numbers, or infinite, are quantised to something defined") {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> x(256, 1.0f);
  x[3] = std::nanf("");
  x[40] = inf;
  x[41] = -inf;
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const Quantized token(1, 256);
    kernels->quantize(x.data(), 0, 256, 256, token.data, 1, 0);
    CHECK(token.q(3) == 0);
    CHECK(token.q(40) == 127);  // as much as there is
    CHECK(token.q(41) == -127);
    CHECK(token.scale(40) == 0x1p100);
    CHECK(token.q(100) == 64);
    CHECK(token.scale(100) == 0x1p-6);
    for (std::size_t i = 0; i < 256; ++i) CHECK(token.q(i) >= -127);
  }
}

TEST_CASE("kernels: extreme 8-bit values do not overflow") {
  // Q8_0 allows -128, twice as likely to break as anything the quantiser writes.
  for (const int extreme : {-128, 127}) {
    Blob data(34 * 8);
    for (std::size_t b = 0; b < 8; ++b) {
      data[b * 34] = 0x00;
      data[b * 34 + 1] = 0x3c;  // 1.0
      for (std::size_t i = 0; i < 32; ++i) {
        data[b * 34 + 2 + i] = static_cast<std::uint8_t>(extreme);
      }
    }
    const Matrix w{data.data(), data.size(), 1, 256, BlockFormat::q8_0};
    const std::vector<float> x(256, 127.0f);
    for (const Kernels* kernels : all_kernels()) {
      CAPTURE(std::string(kernels->target));
      const Quantized group(kernels->lanes(), 256);
      kernels->quantize(x.data(), 0, 256, 256, group.data, 1, 0);
      const void* input = group.data;
      Results out;
      kernels->matmul(w, 0, 1, &input, 1, out.values);
      CHECK(out.at(0, 0) == doctest::Approx(256.0 * 127.0 * extreme));
      kernels->quantize(x.data(), 0, 256, 256, group.data, kernels->lanes(), 0);
      kernels->matmul_groups(w, 0, 1, group.data, 1, out.values);
      CHECK(out.at(0, 0) == doctest::Approx(256.0 * 127.0 * extreme));
    }
  }
}

TEST_CASE("kernels: sums of the largest weights and activations fit, whatever they are summed in") {
  constexpr std::size_t kRows = 32, kCols = 512, kMost = 37;
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    if (!entry.info.quantized) continue;
    CAPTURE(std::string(entry.info.name));
    RandomMatrix w(entry.format, kRows, kCols, 17);
    std::fill(w.data.begin(), w.data.end(), 0xff);
    double expected = 0.0, magnitude = 0.0;
    for (std::size_t i = 0; i < kRows * w.matrix.row_bytes; i += entry.info.block_bytes) {
      std::uint8_t* block = w.data.data() + 1 + i;
      for (const std::size_t offset : half_offsets(entry.format)) {
        block[offset] = 0x00;
        block[offset + 1] = 0x3c;  // 1.0
      }
      if (i >= w.matrix.row_bytes) continue;  // rows are equal
      for (const double v : decode_block(entry.format, block)) {
        expected += v * 127.0;
        magnitude += std::abs(v) * 127.0;
      }
    }
    for (const float x_value : {127.0f, -127.0f}) {
      const std::vector<float> x(kCols, x_value);
      for (const Kernels* kernels : all_kernels()) {
        CAPTURE(std::string(kernels->target));
        const std::size_t lanes = kernels->lanes();
        const Quantized token(1, kCols);
        const Quantized groups((kMost + lanes - 1) / lanes * lanes, kCols);
        kernels->quantize(x.data(), 0, kCols, kCols, token.data, 1, 0);
        const void* inputs[kMost];
        for (std::size_t t = 0; t < kMost; ++t) {
          inputs[t] = token.data;
          std::uint8_t* group = groups.data + t / lanes * lanes * mixtral::simd::token_bytes(kCols);
          kernels->quantize(x.data(), 0, kCols, kCols, group, lanes, t % lanes);
        }
        const auto check = [&](const Results& out, std::size_t n) {
          const double sum = x_value < 0.0f ? -expected : expected;
          std::size_t n_wrong = 0;  // what is not a number, too
          for (std::size_t t = 0; t < n; ++t) {
            for (std::size_t r = 0; r < kRows; ++r) {
              const double error = std::abs(static_cast<double>(out.at(t, r)) - sum);
              n_wrong += !(error <= 1e-5 * magnitude);
            }
          }
          CHECK(n_wrong == 0);
        };
        for (const std::size_t n : {std::size_t{1}, std::size_t{6}, kMost}) {
          CAPTURE(n);
          Results few, grouped;
          kernels->matmul(w.matrix, 0, kRows, inputs, n, few.values);
          check(few, n);
          kernels->matmul_groups(w.matrix, 0, kRows, groups.data, n, grouped.values);
          check(grouped, n);
        }
      }
    }
  }
}

TEST_CASE("kernels: vector operations equal their formulas for any length") {
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (std::size_t n = 2; n < 70; n += 2) {
      CAPTURE(n);
      std::vector<float> a(n + 1), b(n + 1), c(n + 1), d(n + 1);
      for (std::size_t i = 0; i <= n; ++i) {
        a[i] = normal(random);
        b[i] = normal(random);
        c[i] = d[i] = normal(random);
      }
      const auto at = [](const std::vector<float>& v, std::size_t i) {
        return static_cast<double>(v[i]);
      };
      std::vector<float> out(n + 1, 99.0f);
      kernels->rms_norm(a.data(), b.data(), 1e-5f, n, out.data());
      double mean = 0.0;
      for (std::size_t i = 0; i < n; ++i) mean += at(a, i) * at(a, i) / static_cast<double>(n);
      for (std::size_t i = 0; i < n; ++i) {
        CHECK(at(out, i) ==
              doctest::Approx(at(a, i) / std::sqrt(mean + 1e-5) * at(b, i)).epsilon(1e-5));
      }
      CHECK(out[n] == 99.0f);

      std::vector<float> gate = a;
      kernels->swiglu(gate.data(), b.data(), n);
      for (std::size_t i = 0; i < n; ++i) {
        const double expected = at(a, i) / (1.0 + std::exp(-at(a, i))) * at(b, i);
        CHECK(at(gate, i) == doctest::Approx(expected).epsilon(1e-5));
      }
      CHECK(gate[n] == a[n]);

      kernels->add_scaled(0.5f, a.data(), n, c.data());
      for (std::size_t i = 0; i < n; ++i) {
        CHECK(at(c, i) == doctest::Approx(at(d, i) + 0.5 * at(a, i)).epsilon(1e-5));
      }
      CHECK(c[n] == d[n]);

      std::vector<float> cosine(n), sine(n), turned = a;
      for (std::size_t i = 0; i < n; ++i) {
        cosine[i] = std::cos(static_cast<float>(i / 2));
        sine[i] = std::sin(static_cast<float>(i / 2));
      }
      kernels->rotate(turned.data(), cosine.data(), sine.data(), n);
      for (std::size_t i = 0; i < n; i += 2) {
        CHECK(at(turned, i) ==
              doctest::Approx(at(a, i) * at(cosine, i) - at(a, i + 1) * at(sine, i)).epsilon(1e-5));
        CHECK(at(turned, i + 1) ==
              doctest::Approx(at(a, i) * at(sine, i) + at(a, i + 1) * at(cosine, i)).epsilon(1e-5));
      }
      CHECK(turned[n] == a[n]);
    }
  }
}

TEST_CASE("kernels: vector operations round in one order, whatever the lanes, and take any length" *
          needs(any_target_fuses(), kFusing)) {
  std::mt19937 random(29);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (const Kernels* kernels : all_kernels()) {
    if (!kernels->fuses) continue;
    CAPTURE(std::string(kernels->target));
    for (std::size_t n = 1; n < 68; ++n) {
      CAPTURE(n);
      std::vector<float> a(n), b(n), c(n);
      for (std::size_t i = 0; i < n; ++i)
        a[i] = normal(random), b[i] = normal(random), c[i] = normal(random);
      // Column i counts to sum i % 16 while there are whole sixteens, what is left to the first sums; then
      // neighbours are added until one is left.
      float sums[16] = {};
      for (std::size_t i = 0; i < n; ++i) sums[i % 16] = std::fma(a[i], a[i], sums[i % 16]);
      for (std::size_t left = 8; left > 0; left /= 2) {
        for (std::size_t i = 0; i < left; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
      }
      const float mean = sums[0] / static_cast<float>(n);
      const float scale = 1.0f / std::sqrt(mean + 1e-5f);
      std::vector<float> out(n + 1, 99.0f), expected(n + 1, 99.0f);
      for (std::size_t i = 0; i < n; ++i) {
        const float normalized = a[i] * scale;
        expected[i] = normalized * b[i];
      }
      kernels->rms_norm(a.data(), b.data(), 1e-5f, n, out.data());
      CHECK(out == expected);

      out = c;
      out.push_back(99.0f);
      for (std::size_t i = 0; i < n; ++i) expected[i] = std::fma(-0.7f, a[i], c[i]);
      kernels->add_scaled(-0.7f, a.data(), n, out.data());
      CHECK(out == expected);

      // Each number of a longer vector is what it is alone.
      out = a;
      out.push_back(99.0f);
      for (std::size_t i = 0; i < n; ++i) {
        expected[i] = a[i];
        kernels->swiglu(&expected[i], &b[i], 1);
      }
      kernels->swiglu(out.data(), b.data(), n);
      CHECK(out == expected);

      const std::size_t even = n / 2 * 2;
      for (std::size_t i = 0; i < even; i += 2) b[i + 1] = b[i], c[i + 1] = c[i];
      out = a;
      out.push_back(99.0f);
      expected = out;
      for (std::size_t i = 0; i < even; i += 2) {
        const float back = a[i + 1] * c[i], forth = a[i] * c[i + 1];
        expected[i] = std::fma(a[i], b[i], -back);
        expected[i + 1] = std::fma(a[i + 1], b[i + 1], forth);
      }
      kernels->rotate(out.data(), b.data(), c.data(), even);
      CHECK(out == expected);
    }
  }
}

TEST_CASE("kernels: swiglu's exponential holds at both ends") {
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (float x = -130.0f; x < 130.0f; x += 0.37f) {
      CAPTURE(x);
      const float up = 2.0f;
      float gate = x;
      kernels->swiglu(&gate, &up, 1);
      const double exact = static_cast<double>(x) / (1.0 + std::exp(-static_cast<double>(x))) * 2.0;
      CHECK(std::abs(static_cast<double>(gate) - exact) <= 3e-7 * std::abs(exact) + 3e-36);
    }
  }
}

TEST_CASE("kernels: products and sums in software are rounded once") {
  std::mt19937 random(14);
  std::size_t wrong = 0;
  const auto check = [&](float a, float b, float c) {
    const float mine = mixtral::simd::software_fma(a, b, c), expected = std::fma(a, b, c);
    wrong += std::memcmp(&mine, &expected, 4) != 0 && !(std::isnan(mine) && std::isnan(expected));
  };
  const auto any = [&] {
    const auto bits = static_cast<std::uint32_t>(random());
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  };
  for (int i = 0; i < 2'000'000; ++i) check(any(), any(), any());  // subnormals, infinities, NaNs
  // Near ties and cancellation: few bits, and c about -a * b or half a last place of it.
  std::uniform_int_distribution<int> bits(-4100, 4100), shift(-40, 40);
  for (int i = 0; i < 2'000'000; ++i) {
    const auto a = static_cast<float>(bits(random)), b = static_cast<float>(bits(random));
    const auto c = std::ldexp(static_cast<float>(bits(random)), shift(random));
    check(a, b, c);
    check(a, b, -a * b);
    check(std::ldexp(a, -70), std::ldexp(b, -70), std::ldexp(c, -145));  // results without all bits
  }
  CHECK(wrong == 0);
}

TEST_CASE("kernels: float32 to half and bfloat16 rounds to nearest, ties to even") {
  const auto to_float = [](std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  };
  std::size_t wrong = 0;
  for (std::uint32_t i = 0; i < 0x7c00; ++i) {
    const std::uint8_t bytes[4] = {static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(i >> 8),
                                   static_cast<std::uint8_t>(i + 1),
                                   static_cast<std::uint8_t>((i + 1) >> 8)};
    const double low = half(bytes), high = i + 1 == 0x7c00 ? 65536.0 : half(bytes + 2);
    const auto code = [](double value) {
      return mixtral::simd::portable_float_to_half(static_cast<float>(value));
    };
    const double middle = (low + high) / 2, near = (high - low) / 1024;
    wrong += code(low) != i;
    wrong += code(-low) != (i | 0x8000);
    wrong += code(middle) != i + i % 2;
    wrong += code(middle - near) != i;
    wrong += code(middle + near) != i + 1;
  }
  CHECK(wrong == 0);
  CHECK(mixtral::simd::portable_float_to_half(1e30f) == 0x7c00);
  CHECK(mixtral::simd::portable_float_to_half(std::nanf("")) == 0x7e00);
  using mixtral::simd::float_to_bfloat16;
  CHECK(float_to_bfloat16(1.0f) == 0x3f80);
  CHECK(float_to_bfloat16(to_float(0x3f808000)) == 0x3f80);
  CHECK(float_to_bfloat16(to_float(0x3f818000)) == 0x3f82);
  CHECK(float_to_bfloat16(to_float(0xbf808001)) == 0xbf81);
  CHECK(float_to_bfloat16(to_float(0x7f7fffff)) == 0x7f80);
  CHECK((float_to_bfloat16(to_float(0x7f800001)) & 0x7f) != 0);
}
