// Attention over keys and values in every format, on every SIMD target that this machine runs.
#include "exact_memory.hpp"

using namespace support;
using mixtral::BlockFormat;
using mixtral::simd::Kernels;
using mixtral::simd::Matrix;
using mixtral::simd::Query;

namespace {

// The past of one head with random rows.
struct RandomPast {
  Blob pages;
  std::vector<std::uint32_t> page_of;
  mixtral::simd::KeysAndValues past;
  std::vector<std::vector<float>> key, value;  // as stored

  RandomPast(const Kernels& kernels, BlockFormat format, std::size_t n, std::size_t size,
             std::mt19937& random, float spread = 1.0f) {
    const auto& info = *mixtral::block_format_info(format);
    const std::size_t stride = size / info.block_size * info.block_bytes;
    constexpr std::size_t kPage = mixtral::simd::kPagePositions;
    // Pages in falling order, each with another head's rows, the keys, the values and a byte.
    const std::size_t n_pages = (n + kPage - 1) / kPage;
    const std::size_t head_bytes = kPage * stride;
    const std::size_t page_bytes = 3 * head_bytes + 1;
    pages.assign(n_pages * page_bytes, 0xAA);
    for (std::size_t p = 0; p < n_pages; ++p) {
      page_of.push_back(static_cast<std::uint32_t>(n_pages - 1 - p));
    }
    past = {pages.data(), page_bytes, page_of.data(), head_bytes, 2 * head_bytes, stride, format};
    std::normal_distribution<float> normal(0.0f, spread);
    const auto fill = [&](std::size_t begin, std::vector<std::vector<float>>& stored) {
      for (std::size_t p = 0; p < n; ++p) {
        std::vector<float> row(size);
        for (float& x : row) x = normal(random);
        std::uint8_t* bytes =
            pages.data() + page_of[p / kPage] * page_bytes + begin + p % kPage * stride;
        bytes[stride] = 0xAA;
        kernels.store_kv(format, row.data(), size, bytes);
        CHECK(bytes[stride] == 0xAA);
        const Matrix matrix{bytes, stride, 1, size, format};
        stored.emplace_back(size);
        kernels.decode_rows(matrix, 0, 1, stored.back().data());
        const double largest = 5.0 * static_cast<double>(spread);
        CHECK(max_difference(stored.back(), row) <=
              largest * (format == BlockFormat::f32    ? 0.0
                         : format == BlockFormat::f16  ? 1.0 / 2048
                         : format == BlockFormat::bf16 ? 1.0 / 256
                                                       : 1.0 / 200));
      }
    };
    fill(past.keys, key);
    fill(past.values, value);
  }
};

constexpr BlockFormat kKvFormats[] = {BlockFormat::f32, BlockFormat::f16, BlockFormat::bf16,
                                      BlockFormat::q8_0};

}  // namespace

TEST_CASE("attention: heads that share keys and values attend as alone") {
  const std::size_t size = 32, n = 45;
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (const BlockFormat format : kKvFormats) {
      std::mt19937 random(12);
      const RandomPast r(*kernels, format, n, size, random);
      std::normal_distribution<float> normal;
      std::vector<float> q(6 * size), alone(6 * size);
      for (float& v : q) v = normal(random);
      for (std::size_t h = 0; h < 6; ++h) {
        const Query query{q.data() + h * size, alone.data() + h * size, 3, n};
        kernels->attend(&query, 1, 1, r.past, size, 0.25f);
      }
      for (const std::size_t n_heads : {2u, 4u, 5u, 6u}) {
        std::vector<float> together(6 * size, 7.0f);
        const Query query{q.data(), together.data(), 3, n};
        kernels->attend(&query, 1, n_heads, r.past, size, 0.25f);
        for (std::size_t i = 0; i < 6 * size; ++i) {
          CHECK(together[i] == (i < n_heads * size ? alone[i] : 7.0f));
        }
      }
    }
  }
}

TEST_CASE("attention: several queries attend as alone, each to its own part of the past") {
  const std::size_t size = 40, n = 150, n_heads = 3, width = n_heads * size;
  struct Range {
    std::size_t first, end;
  };
  // Of a prompt, of a sliding window, with nothing in common, in any order.
  const std::vector<Range> all[] = {
      {{0, 61}, {0, 62}, {0, 63}, {0, 64}, {0, 65}, {0, 66}, {0, 67}, {0, 68}},
      {{30, 90}, {31, 91}, {32, 92}, {33, 93}, {34, 94}},
      {{0, 1}, {149, 150}, {64, 96}},
      {{100, 150}, {0, 40}}};
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (const BlockFormat format : kKvFormats) {
      if (format == BlockFormat::q8_0) continue;  // its rows are of 32 columns
      std::mt19937 random(13);
      const RandomPast r(*kernels, format, n, size, random);
      std::normal_distribution<float> normal;
      for (const std::vector<Range>& ranges : all) {
        std::vector<float> q(ranges.size() * width), alone(q.size()), together(q.size());
        for (float& v : q) v = normal(random);
        std::vector<Query> queries;
        for (std::size_t t = 0; t < ranges.size(); ++t) {
          const Query query{q.data() + t * width, alone.data() + t * width, ranges[t].first,
                            ranges[t].end};
          kernels->attend(&query, 1, n_heads, r.past, size, 0.25f);
          queries.push_back(query);
          queries.back().out = together.data() + t * width;
        }
        kernels->attend(queries.data(), queries.size(), n_heads, r.past, size, 0.25f);
        CHECK(together == alone);
      }
    }
  }
}

TEST_CASE("attention: one head equals softmax in double, also for large scores") {
  std::mt19937 random(10);
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (const BlockFormat format : kKvFormats) {
      CAPTURE(std::string(mixtral::block_format_info(format)->name));
      for (const float spread : {1.0f, 30.0f}) {
        for (const std::size_t size : {8u, 18u, 128u}) {
          if (format == BlockFormat::q8_0 && size % 32 != 0) continue;
          for (const std::size_t n : {1u, 31u, 33u, 200u}) {
            const RandomPast r(*kernels, format, n, size, random, spread);
            std::normal_distribution<float> normal(0.0f, spread);
            std::vector<float> q(size), out(size);
            for (float& v : q) v = normal(random);
            const double scale = 1.0 / std::sqrt(static_cast<double>(size));
            std::vector<double> scores(n), expected(size);
            double largest = -1e300, sum = 0.0;
            for (std::size_t p = 0; p < n; ++p) {
              for (std::size_t i = 0; i < size; ++i) {
                scores[p] += static_cast<double>(q[i]) * static_cast<double>(r.key[p][i]) * scale;
              }
              largest = std::max(largest, scores[p]);
            }
            for (double& score : scores) sum += score = std::exp(score - largest);
            for (std::size_t p = 0; p < n; ++p) {
              for (std::size_t i = 0; i < size; ++i) {
                expected[i] += scores[p] / sum * static_cast<double>(r.value[p][i]);
              }
            }
            const Query query{q.data(), out.data(), 0, n};
            kernels->attend(&query, 1, 1, r.past, size, static_cast<float>(scale));
            const std::vector<float> reference(expected.begin(), expected.end());
            // Scores of size s are rounded by s * 2^-24, which the exponential magnifies.
            CHECK(max_difference(out, reference) <= (spread > 1.0f ? 2e-1 : 1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("attention: only the rows of a query's positions are read, and nothing past a page") {
  // The keys are the last thing in memory, then the values; what is past a query's end is NaN.
  constexpr std::size_t kPage = mixtral::simd::kPagePositions;
  struct Range {
    std::size_t first, end;
  };
  const Range ranges[] = {{kPage - 1, kPage},
                          {kPage - 2, kPage},
                          {kPage - 3, kPage},
                          {kPage - 5, kPage},
                          {kPage - 17, kPage},
                          {kPage - 33, kPage},
                          {0, kPage},
                          {0, 1},
                          {3, 33},
                          {31, 33},
                          {20, 61}};
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (const BlockFormat format : kKvFormats) {
      CAPTURE(std::string(mixtral::block_format_info(format)->name));
      const auto& info = *mixtral::block_format_info(format);
      for (const std::size_t size : {8u, 18u, 32u, 128u}) {
        if (size % info.block_size != 0) continue;
        const std::size_t stride = size / info.block_size * info.block_bytes;
        std::mt19937 random(17);
        std::normal_distribution<float> normal;
        Blob keys(kPage * stride), values(kPage * stride);
        std::vector<float> row(size);
        for (std::size_t p = 0; p < kPage; ++p) {
          for (Blob* rows : {&keys, &values}) {
            for (float& x : row) x = normal(random);
            kernels->store_kv(format, row.data(), size, rows->data() + p * stride);
          }
        }
        for (const bool keys_last : {true, false}) {
          for (const std::size_t n_heads : {1u, 3u, 4u}) {
            for (const Range& range : ranges) {
              CAPTURE(range.first);
              CAPTURE(range.end);
              const auto attend = [&](bool spoiled) {
                const ExactMemory page(2 * kPage * stride);
                const ExactMemory q(n_heads * size * sizeof(float));
                const ExactMemory out(n_heads * size * sizeof(float));
                const std::size_t at_keys = keys_last ? kPage * stride : 0;
                const std::size_t at_values = kPage * stride - at_keys;
                std::memcpy(page.data() + at_keys, keys.data(), keys.size());
                std::memcpy(page.data() + at_values, values.data(), values.size());
                for (std::size_t p = 0; spoiled && p < kPage; ++p) {
                  if (p >= range.first && p < range.end) continue;
                  std::memset(page.data() + at_keys + p * stride, 0xFF, stride);
                  std::memset(page.data() + at_values + p * stride, 0xFF, stride);
                }
                std::mt19937 queries(18);
                for (std::size_t i = 0; i < n_heads * size; ++i) q.floats()[i] = normal(queries);
                normal.reset();
                const std::uint32_t page_of[] = {0};
                const mixtral::simd::KeysAndValues past{
                    page.data(), 2 * kPage * stride, page_of, at_keys, at_values, stride, format};
                const Query query{q.floats(), out.floats(), range.first, range.end};
                kernels->attend(&query, 1, n_heads, past, size, 0.25f);
                return std::vector<float>(out.floats(), out.floats() + n_heads * size);
              };
              const std::vector<float> result = attend(true);
              CHECK(result == attend(false));
              for (const float x : result) CHECK(std::isfinite(x));
            }
          }
        }
      }
    }
  }
}

TEST_CASE(
    "attention: numbers that are too large for a half are stored as the largest, with their sign") {
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    const auto stored = [&](BlockFormat format, const std::vector<float>& x) {
      const auto& info = *mixtral::block_format_info(format);
      const std::size_t bytes = x.size() / info.block_size * info.block_bytes;
      const ExactMemory from(x.size() * sizeof(float)), row(bytes);
      std::memcpy(from.data(), x.data(), x.size() * sizeof(float));
      kernels->store_kv(format, from.floats(), x.size(), row.data());
      const Matrix matrix{row.data(), bytes, 1, x.size(), format};
      std::vector<float> out(x.size());
      kernels->decode_rows(matrix, 0, 1, out.data());
      return out;
    };
    const float infinite = std::numeric_limits<float>::infinity();
    CHECK(stored(BlockFormat::f16, {1e6f, -1e6f, 65504.0f, -65504.0f, 65503.0f, -65535.0f, infinite,
                                    -infinite, 3e38f, -3e38f, -0.0f, 1.5f}) ==
          std::vector<float>{65504.0f, -65504.0f, 65504.0f, -65504.0f, 65504.0f, -65504.0f,
                             65504.0f, -65504.0f, 65504.0f, -65504.0f, -0.0f, 1.5f});
    const std::vector<float> large = {1e6f, -1e6f, 65504.0f, 1e-30f};
    CHECK(stored(BlockFormat::f32, large) == large);
    CHECK(stored(BlockFormat::bf16, large)[1] == doctest::Approx(-1e6).epsilon(0.004));
    // The scale of a block of 8-bit numbers is a half.
    std::vector<float> block(64, 0.0f);
    block[0] = 127.0f * 65504.0f;
    block[1] = -block[0];
    block[33] = -1e30f;
    block[34] = 1e29f;
    const std::vector<float> got = stored(BlockFormat::q8_0, block);
    CHECK(got[0] == 127.0f * 65504.0f);
    CHECK(got[1] == -127.0f * 65504.0f);
    CHECK(got[33] == -127.0f * 65504.0f);
    CHECK(got[34] > 0.0f);
    CHECK(got[63] == 0.0f);
  }
}
