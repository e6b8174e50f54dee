// Attention over keys and values in every format, on every SIMD target that this machine runs.
#include "support.hpp"

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
