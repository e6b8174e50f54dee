// Attention over keys and values in every format, on every SIMD target that this machine runs.
#include "support.hpp"

using namespace support;
using mixtral::BlockFormat;
using mixtral::simd::Kernels;
using mixtral::simd::Matrix;

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
        kernels->attend(q.data() + h * size, 1, r.past, 3, n, size, 0.25f, alone.data() + h * size);
      }
      for (const std::size_t n_heads : {2u, 4u, 5u, 6u}) {
        std::vector<float> together(6 * size, 7.0f);
        kernels->attend(q.data(), n_heads, r.past, 3, n, size, 0.25f, together.data());
        for (std::size_t i = 0; i < 6 * size; ++i) {
          CHECK(together[i] == (i < n_heads * size ? alone[i] : 7.0f));
        }
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
            kernels->attend(q.data(), 1, r.past, 0, n, size, static_cast<float>(scale), out.data());
            const std::vector<float> reference(expected.begin(), expected.end());
            // Scores of size s are rounded by s * 2^-24, which the exponential magnifies.
            CHECK(max_difference(out, reference) <= (spread > 1.0f ? 2e-1 : 1e-5));
          }
        }
      }
    }
  }
}
