// Block formats and kernels, on every SIMD target that this machine runs, against scalar definitions.
#include "block_reference.hpp"

#include <mixtral/simd/half.hpp>
#include <mixtral/simd/software_fma.hpp>

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
      for (const std::size_t n : {1u, 2u, 3u, 5u, 13u, 37u}) {
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
