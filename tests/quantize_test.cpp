// Encoding block formats, writing GGUF files.
#include "written_files.hpp"

#include <mixtral/simd/half.hpp>

using namespace support;
using mixtral::BlockFormat;
using mixtral::Token;

namespace {

constexpr BlockFormat kEncoded[] = {BlockFormat::f32,  BlockFormat::f16,    BlockFormat::bf16,
                                    BlockFormat::q8_0, BlockFormat::q4_0,   BlockFormat::q4_1,
                                    BlockFormat::q5_0, BlockFormat::q5_1,   BlockFormat::q2_k,
                                    BlockFormat::q3_k, BlockFormat::q4_k,   BlockFormat::q5_k,
                                    BlockFormat::q6_k, BlockFormat::iq4_nl, BlockFormat::iq4_xs};

mixtral::Status encode(BlockFormat format, const std::vector<float>& row, Blob& out,
                       const std::vector<float>& importance = {}) {
  const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
  out.assign((row.size() / info.block_size + 1) * info.block_bytes, 0xAA);
  return mixtral::encode_rows(format, row.data(), 1, row.size(),
                              {importance.data(), importance.size()}, out.data());
}

// The row after encoding and decoding, by the kernels that models are run with.
std::vector<float> coded(BlockFormat format, const std::vector<float>& row,
                         const std::vector<float>& importance = {}) {
  Blob block;
  const auto status = encode(format, row, block, importance);
  REQUIRE_MESSAGE(static_cast<bool>(status), (status ? "" : status.error().message()));
  const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
  const std::size_t end = row.size() / info.block_size * info.block_bytes;
  CHECK(block[end] == 0xAA);  // nothing is written past the row
  mixtral::simd::Matrix m;
  m.data = block.data();
  m.row_bytes = end;
  m.rows = 1;
  m.cols = row.size();
  m.format = format;
  std::vector<float> out(row.size());
  mixtral::simd::select_kernels()->decode_rows(m, 0, 1, out.data());
  return out;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b,
                     const std::vector<float>& weight = {}) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d * (weight.empty() ? 1.0 : static_cast<double>(weight[i]));
  }
  return sum;
}

std::vector<float> gaussian(std::size_t n, unsigned seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> row(n);
  for (float& x : row) x = normal(random);
  return row;
}

std::string name_of(BlockFormat format) { return mixtral::block_format_info(format)->name; }

}  // namespace

TEST_CASE("quantize: Gaussian numbers lose no more than with llama.cpp's quantiser") {
  // Mean squared errors over the variance of llama.cpp c392e50 (ggml_quantize_chunk without
  // importance) on 64 x 4096 numbers.
  const std::pair<BlockFormat, double> theirs[] = {
      {BlockFormat::f32, 0.0},        {BlockFormat::f16, 4.31e-8},
      {BlockFormat::bf16, 2.742e-6},  {BlockFormat::q8_0, 2.881e-5},
      {BlockFormat::q4_0, 7.429e-3},  {BlockFormat::q4_1, 6.127e-3},
      {BlockFormat::q5_0, 1.832e-3},  {BlockFormat::q5_1, 1.436e-3},
      {BlockFormat::q2_k, 9.292e-2},  {BlockFormat::q3_k, 2.300e-2},
      {BlockFormat::q4_k, 5.216e-3},  {BlockFormat::q5_k, 1.485e-3},
      {BlockFormat::q6_k, 3.201e-4},  {BlockFormat::iq4_nl, 5.812e-3},
      {BlockFormat::iq4_xs, 5.900e-3}};
  for (const float deviation : {0.02f, 1.0f}) {
    const std::vector<float> row = gaussian(32768, 3, deviation);
    const auto variance = static_cast<double>(deviation) * static_cast<double>(deviation);
    for (const auto& entry : theirs) {
      const BlockFormat format = entry.first;
      const double error = entry.second;
      CAPTURE(name_of(format));
      const double mean = squared_error(row, coded(format, row)) / 32768.0 / variance;
      // 32768 numbers tell the mean to about 1 %; rounding of floats depends on the deviation, too.
      CHECK(mean <= error * (mixtral::block_format_info(format)->quantized ? 1.01 : 1.05));
      // A loss much smaller would mean that the test does not measure what it should.
      CHECK(mean >= error * 0.5);
    }
  }
}

TEST_CASE("quantize: halves and bfloat16 are rounded to nearest, ties to even") {
  const std::vector<std::pair<float, float>> half = {
      {1.0f + 1.0f / 2048, 1.0f},
      {1.0f + 3.0f / 2048, 1.0f + 2.0f / 1024},
      {1.0f + 1.1f / 2048, 1.0f + 1.0f / 1024},
      {65504.0f, 65504.0f},
      {std::ldexp(1.0f, -24), std::ldexp(1.0f, -24)},
      {std::ldexp(1.0f, -25), 0.0f},
      {std::ldexp(1.5f, -24), std::ldexp(2.0f, -24)},
      {-0.1f, -0.0999755859375f},
      {std::ldexp(1023.5f, -24), std::ldexp(1024.0f, -24)}};
  for (const auto& pair : half) {
    CAPTURE(pair.first);
    CHECK(coded(BlockFormat::f16, {pair.first})[0] == pair.second);
  }
  for (const int sign :
       {0, 0x80}) {  // what is too large for a half becomes an infinity, and is read as one
    const std::uint8_t infinity[2] = {0x00, static_cast<std::uint8_t>(0x7c | sign)};
    const std::uint8_t none[2] = {0x01, static_cast<std::uint8_t>(0x7c | sign)};
    const std::uint8_t largest[2] = {0xff, static_cast<std::uint8_t>(0x7b | sign)};
    const float factor = sign == 0 ? 1.0f : -1.0f;
    CHECK(mixtral::simd::portable_half_to_float(infinity) ==
          factor * std::numeric_limits<float>::infinity());
    CHECK(std::isnan(mixtral::simd::portable_half_to_float(none)));
    CHECK(mixtral::simd::portable_half_to_float(largest) == factor * 65504.0f);
  }
  const std::vector<std::pair<float, float>> brain = {{1.0f + 1.0f / 256, 1.0f},
                                                      {1.0f + 3.0f / 256, 1.0f + 4.0f / 256},
                                                      {3.3895314e38f, 3.3895314e38f},
                                                      {-1e-40f, -9.183549615799121e-41f}};
  for (const auto& pair : brain) {
    CAPTURE(pair.first);
    CHECK(coded(BlockFormat::bf16, {pair.first})[0] == pair.second);
  }
}

TEST_CASE("quantize: odd rows come out near, too") {
  std::vector<std::pair<std::string, std::vector<float>>> rows;
  const auto row = [&](const std::string& name, auto&& number) {
    std::vector<float> r(512);
    for (std::size_t i = 0; i < r.size(); ++i)
      r[i] = static_cast<float>(number(static_cast<int>(i)));
    rows.emplace_back(name, r);
  };
  row("zero", [](int) { return 0.0; });
  row("one", [](int) { return 1.0; });
  row("minus one", [](int) { return -1.0; });
  row("one spike", [](int i) { return i == 77 ? 3.0 : 0.0; });
  row("a spike in noise", [](int i) { return i == 300 ? -50.0 : std::sin(i * 1.7); });
  row("positive", [](int i) { return 5.0 + std::sin(i * 1.3); });
  row("negative", [](int i) { return -5.0 + std::sin(i * 1.3); });
  row("largest", [](int i) { return i % 2 == 0 ? 65504.0 : -65504.0; });
  row("small", [](int i) { return 1e-3 * std::cos(i); });
  row("vanishing", [](int i) { return 1e-9 * std::cos(i); });
  row("subnormal", [](int i) { return i % 3 == 0 ? 1e-40 : 0.0; });
  row("growing", [](int i) { return std::pow(1.02, i % 256); });
  for (const auto& named : rows) {
    const std::vector<float>& r = named.second;
    double peak = 0.0;
    for (const float x : r) peak = std::max(peak, std::abs(static_cast<double>(x)));
    for (const BlockFormat format : kEncoded) {
      INFO(named.first, " as ", name_of(format));
      const std::vector<float> out = coded(format, r);
      for (const float y : out) REQUIRE(std::isfinite(y));
      const double worst = max_difference(r, out);
      // Two bits can be off by a step of a third of the range; below 2^-24 half precision has nothing.
      CHECK(worst <= peak * (format == BlockFormat::q2_k ? 0.75 : 0.36) + 1e-7);
      CHECK(squared_error(r, out) <= squared_error(r, std::vector<float>(512)) + 1e-12);
    }
  }
}

TEST_CASE("quantize: what has been encoded is encoded again without much loss") {
  const std::vector<float> row = gaussian(2048, 9);
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    const std::vector<float> once = coded(format, row);
    CHECK(squared_error(once, coded(format, once)) <= 0.1 * squared_error(row, once));
  }
}

TEST_CASE("quantize: numbers that a format cannot hold are refused by place") {
  Blob out;
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(), 1e6f, -1e6f}) {
      const bool holds =
          std::isfinite(bad) && (format == BlockFormat::f32 || format == BlockFormat::bf16);
      std::vector<float> row(512, 1.0f);
      row[300] = bad;
      const auto status = encode(format, row, out);
      CHECK(static_cast<bool>(status) == holds);
      if (status) continue;
      CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
      CHECK(std::string(status.error().message()).find("element 300") != std::string::npos);
    }
  }
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const bool listed =
        std::find(std::begin(kEncoded), std::end(kEncoded), entry.format) != std::end(kEncoded);
    CHECK(mixtral::can_encode(entry.format) == listed);
    CHECK(static_cast<bool>(encode(entry.format, std::vector<float>(256), out)) == listed);
  }
  const auto unknown =
      mixtral::encode_rows(static_cast<BlockFormat>(99), nullptr, 0, 0, {}, nullptr);
  REQUIRE(!unknown);  // its error lists what can be written, and nothing else
  std::string names = unknown.error().message();
  names = ", " + names.substr(names.find("use one of ") + 11) + ",";
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const bool named = names.find(std::string(", ") + entry.info.name + ",") != std::string::npos;
    CHECK(named == mixtral::can_encode(entry.format));
  }
  CHECK(!encode(BlockFormat::q4_k, std::vector<float>(128), out));
  CHECK(!encode(BlockFormat::q8_0, std::vector<float>(33), out));
  CHECK(!encode(BlockFormat::q8_0, std::vector<float>(64), out, std::vector<float>(32)));
}

TEST_CASE("quantize: importance moves the error to where it matters less") {
  const std::vector<float> row = gaussian(8192, 4);
  std::vector<float> importance(row.size());
  std::mt19937 random(5);
  std::exponential_distribution<float> share(1.0f);
  for (float& w : importance) w = share(random) * share(random);
  for (const BlockFormat format : kEncoded) {
    if (!mixtral::block_format_info(format)->quantized) continue;
    CAPTURE(name_of(format));
    const auto plain = coded(format, row);
    const auto weighted = coded(format, row, importance);
    CHECK(squared_error(row, weighted, importance) < 0.98 * squared_error(row, plain, importance));
    CHECK(squared_error(row, weighted) < 3.0 * squared_error(row, plain));
  }
  // Importance that says nothing changes nothing; one that is broken does no harm.
  CHECK(coded(BlockFormat::q4_k, row, std::vector<float>(row.size(), 0.0f)) ==
        coded(BlockFormat::q4_k, row));
  CHECK(coded(BlockFormat::q4_k, row, std::vector<float>(row.size(), 4.0f)) ==
        coded(BlockFormat::q4_k, row));
  for (const float y : coded(BlockFormat::q4_k, row, std::vector<float>(row.size(), 1e38f))) {
    CHECK(std::isfinite(y));
  }
}

// Rows of 512 whole numbers of up to ten bits times a power of two, and rows that are odd in some way. Nearly
// all that the encoders add up of these is exact, whatever order compilers and vectors add it in.
static std::vector<std::vector<float>> exact_rows() {
  std::vector<std::vector<float>> rows;
  std::uint32_t state = 1;
  const auto whole = [&](std::uint32_t n) {  // from 0 to n - 1
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 16) % n);
  };
  const auto row = [&](float unit, auto&& number) {
    rows.emplace_back(512);
    for (std::size_t i = 0; i < 512; ++i) {
      rows.back()[i] = static_cast<float>(number(static_cast<int>(i))) * unit;
    }
  };
  const auto bell = [&](int) { return whole(256) + whole(256) + whole(256) + whole(256) - 510; };
  for (int i = 0; i < 6; ++i) row(0x1p-12f, bell);
  row(0x1p-10f, [&](int) { return whole(1023) - 511; });
  row(0x1p-10f, [&](int) { return whole(941) + 67; });
  row(0x1p-10f, [&](int) { return -whole(971) - 53; });
  row(0x1p-8f, [&](int i) { return bell(i) / (1 + i / 16 % 7 * 3); });  // scales that differ
  row(0x1p-8f, [&](int i) { return i / 32 % 3 == 0 ? 0 : bell(i); });   // nothing here and there
  // Sub-blocks of positive numbers need no minimum: only their scales differ.
  row(0x1p-10f, [&](int i) { return (whole(700) + 300) / (1 + i / 16 % 7 * 3); });
  row(0x1p-8f, [&](int i) { return i % 37 == 0 ? 499 : whole(61) - 30; });  // spikes of either sign
  row(0x1p-8f, [&](int i) { return i % 41 == 0 ? -499 : whole(61) - 30; });
  row(0x1p-20f, bell);  // scales are small, or too small for half precision
  row(0x1p-32f, bell);
  row(0x1p-52f, bell);
  row(0x1p+6f, bell);
  row(0x1p-4f, [](int) { return 3; });
  row(0x1p-4f, [](int) { return -3; });
  row(1.0f, [](int) { return 0; });
  return rows;
}

TEST_CASE("quantize: rows of whole numbers are encoded to the same bytes everywhere") {
  // FNV-1a of all rows. Files quantised from the same weights stay the same as long as these do; the test
  // of Gaussian numbers tells whether other bytes are better ones.
  struct Expected {
    BlockFormat format;
    std::uint64_t plain, weighted;
  };
  static constexpr Expected kExpected[] = {
      {BlockFormat::f32, 0xd3b01b3cc45d4cb5u, 0xd3b01b3cc45d4cb5u},
      {BlockFormat::f16, 0x70db88c6cf238694u, 0x70db88c6cf238694u},
      {BlockFormat::bf16, 0x4ccb0fdf382bf0c1u, 0x4ccb0fdf382bf0c1u},
      {BlockFormat::q8_0, 0xd0acf2bd72759e46u, 0xdf5220c22ed83f09u},
      {BlockFormat::q4_0, 0x82ed6611fff76189u, 0xb164faf9f6becea7u},
      {BlockFormat::q4_1, 0x282c875ff8a73d75u, 0x58484536b52c3e86u},
      {BlockFormat::q5_0, 0x8fd2efedcb03f667u, 0x1192fde862ebcfe4u},
      {BlockFormat::q5_1, 0xb8bd0241cdaa5d33u, 0xb07c091bbfdc5898u},
      {BlockFormat::q2_k, 0xe8a931e9491a69ebu, 0xc61b931d6ffa6454u},
      {BlockFormat::q3_k, 0x6e79861a429be08au, 0x214bc5fbb49fb432u},
      {BlockFormat::q4_k, 0xed7137373e1eedbcu, 0x53b284c5ecabd7ecu},
      {BlockFormat::q5_k, 0x3781046ab57fcaa6u, 0x7f6080fe2dbcf734u},
      {BlockFormat::q6_k, 0xba85dabd08ececcbu, 0x93d5c6e17c8b1ed8u},
      {BlockFormat::iq4_nl, 0xa0ddaff3ba756be4u, 0x1507893717472f3du},
      {BlockFormat::iq4_xs, 0x4fef2ea14f7bb733u, 0xeb78d0d27960df7cu},
  };
  static_assert(std::size(kExpected) == std::size(kEncoded));
  // Weights whose mean is a power of two, another one in each 256 columns: again, sums are exact.
  std::vector<float> importance(512);
  for (std::size_t i = 0; i < importance.size(); ++i) {
    static constexpr float kWeights[8] = {1.0f, 0.25f, 2.0f, 1.0f, 0.75f, 0.5f, 1.5f, 1.0f};
    importance[i] = kWeights[(i * 5 + 3) % 8] * (i < 256 ? 0x1p9f : 0x1p-7f);
  }
  for (const Expected& expected : kExpected) {
    CAPTURE(name_of(expected.format));
    for (const bool weighted : {false, true}) {
      CAPTURE(weighted);
      std::uint64_t fnv = 1469598103934665603u;
      for (const std::vector<float>& row : exact_rows()) {
        Blob out;
        REQUIRE(encode(expected.format, row, out, weighted ? importance : std::vector<float>()));
        out.resize(512 / mixtral::block_format_info(expected.format)->block_size *
                   mixtral::block_format_info(expected.format)->block_bytes);
        for (const std::uint8_t byte : out) fnv = (fnv ^ byte) * 1099511628211u;
      }
      CHECK(fnv == (weighted ? expected.weighted : expected.plain));
    }
  }
}

TEST_CASE("quantize: columns of no importance still count a little") {
  // What importance was gathered from may not have used a column that other texts use.
  std::vector<float> row = gaussian(256, 12), importance(256, 1.0f);
  for (std::size_t i = 5; i < row.size(); i += 32) {
    row[i] = 4000.0f;
    importance[i] = 0.0f;
  }
  for (const BlockFormat format : kEncoded) {
    if (!mixtral::block_format_info(format)->quantized) continue;
    // These have no zero: beside such a number all others would become a 127th of it, which is worse.
    if (format == BlockFormat::iq4_nl || format == BlockFormat::iq4_xs) continue;
    CAPTURE(name_of(format));
    const std::vector<float> out = coded(format, row, importance);
    for (std::size_t i = 5; i < row.size(); i += 32) {
      CHECK(std::abs(out[i] - row[i]) < 0.1f * row[i]);
    }
  }
}

TEST_CASE("quantize: of importance only the proportions within a block count") {
  const std::vector<float> row = gaussian(1024, 13);
  std::vector<float> importance(row.size());
  std::mt19937 random(14);
  for (float& w : importance) w = static_cast<float>(1 + random() % 64);
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
    Blob plain, weighted, out;
    REQUIRE(encode(format, row, plain));
    REQUIRE(encode(format, row, weighted, importance));
    CHECK((plain != weighted) == info.quantized);
    const auto times = [&](float factor) {
      std::vector<float> scaled = importance;
      for (float& w : scaled) w *= factor;
      REQUIRE(encode(format, row, out, scaled));
      return out;
    };
    for (const float factor : {0x1p-90f, 0x1p-1f, 0x1p7f, 0x1p90f}) {
      CHECK(times(factor) == weighted);
    }
    // Beyond what can be computed with, as without importance.
    for (const float factor : {0x1p-120f, 0x1p105f, 0x1p119f, std::nanf("")})
      CHECK(times(factor) == plain);
    // Every block is encoded for itself, from its own columns of both.
    const std::size_t n = std::max<std::size_t>(info.block_size, 64);
    for (std::size_t begin = 0; begin < row.size(); begin += n) {
      const auto part = [&](const std::vector<float>& v) {
        const auto first = v.begin() + static_cast<std::ptrdiff_t>(begin);
        return std::vector<float>(first, first + static_cast<std::ptrdiff_t>(n));
      };
      REQUIRE(encode(format, part(row), out, part(importance)));
      const std::size_t n_bytes = n / info.block_size * info.block_bytes;
      CHECK(std::memcmp(out.data(), weighted.data() + begin / n * n_bytes, n_bytes) == 0);
    }
  }
}

TEST_CASE("quantize: the largest number that a format holds is encoded, the next one is not") {
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    const float most = format == BlockFormat::f32    ? std::numeric_limits<float>::max()
                       : format == BlockFormat::bf16 ? 0x1.fep127f
                                                     : 65504.0f;
    for (const float sign : {1.0f, -1.0f}) {
      std::vector<float> row(256, 1.0f);
      row[200] = sign * most;
      Blob out;
      CHECK(encode(format, row, out));
      CHECK(std::abs(coded(format, row)[200] - row[200]) <= 0.05f * most);
      row[200] = sign * std::nextafter(most, std::numeric_limits<float>::infinity());
      const auto status = encode(format, row, out);
      REQUIRE(!status);
      CHECK(std::string(status.error().message()).find("element 200 of row 0 ") !=
            std::string::npos);
    }
  }
}

TEST_CASE("quantize: rows are encoded one after the other, up to the first with a bad number") {
  const std::vector<float> rows = gaussian(3 * 512, 15);
  std::vector<float> importance(512);
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = static_cast<float>(i % 7);
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
    const std::size_t row_bytes = 512 / info.block_size * info.block_bytes;
    Blob together(3 * row_bytes + 1, 0xAA), alone(3 * row_bytes + 1, 0xAA);
    const mixtral::Span<const float> weights{importance.data(), importance.size()};
    REQUIRE(mixtral::encode_rows(format, rows.data(), 3, 512, weights, together.data()));
    for (std::size_t r = 0; r < 3; ++r) {
      REQUIRE(mixtral::encode_rows(format, rows.data() + r * 512, 1, 512, weights,
                                   alone.data() + r * row_bytes));
    }
    CHECK(together == alone);
    CHECK(together.back() == 0xAA);
    std::vector<float> bad = rows;
    bad[2 * 512 + 7] = bad[2 * 512 + 9] = std::nanf("");
    const auto status = mixtral::encode_rows(format, bad.data(), 3, 512, weights, together.data());
    REQUIRE(!status);
    CHECK(std::string(status.error().message()).find("element 7 of row 2 ") != std::string::npos);
    CHECK(mixtral::encode_rows(format, nullptr, 0, 512, weights, nullptr));
    for (const std::size_t n : {511u, 513u}) {
      std::vector<float> other(n, 1.0f);
      CHECK(!mixtral::encode_rows(format, rows.data(), 1, 512, {other.data(), n}, alone.data()));
    }
    if (info.block_size > 1) {
      for (const std::size_t n : {info.block_size - 1, info.block_size + 1}) {
        CHECK(!mixtral::encode_rows(format, rows.data(), 1, n, {}, alone.data()));
      }
    }
  }
}

TEST_CASE("quantize: a model written in F32 is the same model") {
  const auto check = [](const Synthetic& s) {
    const Blob original = s.writer().finish();
    const MemorySink sink = write(read(original), type("F32"));
    const mixtral::Model before = open(original);
    const mixtral::Model after = open(sink.file);
    CHECK(evaluate(after, some_tokens()).logits == evaluate(before, some_tokens()).logits);
    CHECK(after.config().context_length == before.config().context_length);
    CHECK(after.config().sliding_window == before.config().sliding_window);
    CHECK(after.n_parameters() == before.n_parameters());
    // Twice is once.
    CHECK(write(read(sink.file), type("F32")).file == sink.file);
  };
  Synthetic s;
  s.randomize(1);
  check(s);
  s.merged_experts = false;
  check(s);
  s.tied_output = true;
  s.output = s.embedding;
  check(s);
  s.rope_linear_factor = 4.0f;
  s.sliding_window = 7;
  check(s);
  Synthetic dense;
  dense.n_experts = dense.n_experts_used = 1;
  dense.randomize(2);
  check(dense);
}

TEST_CASE("quantize: every layout gives the same file") {
  Synthetic s;
  s.randomize(6);
  const Blob original = s.writer().finish();
  const Blob expected = write(read(original), type("F32")).file;
  const auto expected_logits = evaluate(open(expected), some_tokens()).logits;
  const auto check = [&](const std::string& path) {
    const auto checkpoint = value(mixtral::open_checkpoint(path.c_str()));
    const MemorySink sink = write(checkpoint, type("F32"));  // which the model points into
    const mixtral::Model model = open(sink.file);
    CHECK(evaluate(model, some_tokens()).logits == expected_logits);
  };
  {
    const TemporaryFolder folder;  // rotate-half rows
    folder.write("config.json", huggingface_config(s).dump());
    folder.write("tokenizer.json", tokenizer_json(s).dump());
    folder.write("model.safetensors", safetensors(huggingface_tensors(s)));
    check(folder.path());
  }
  const TemporaryFolder folder;
  folder.write("params.json", params_json(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  folder.write("consolidated.00.pth", torch_file(original_tensors(s, true)));  // transposed w2
  check(folder.path());
}

TEST_CASE("quantize: the tiny model reads as well as the bits allow" *
          needs_shared("models/tiny-mixtral/hf")) {
  const auto checkpoint = value(mixtral::open_checkpoint(shared("models/tiny-mixtral/hf").c_str()));
  const auto tale = golden("tale");
  const auto tokens = tale["ids"].get<std::vector<Token>>();
  const auto nll = tale["nll"].get<std::vector<double>>();
  mixtral::ThreadPool pool = value(mixtral::ThreadPool::create(2));
  const std::pair<const char*, double> bounds[] = {
      {"Q8_0", 0.01}, {"Q4_K_M", 0.04}, {"IQ4_XS", 0.04}, {"Q2_K", 0.2}};
  for (const auto& entry : bounds) {
    CAPTURE(std::string(entry.first));
    mixtral::QuantizeOptions options = type(entry.first);
    options.executor = pool;
    const MemorySink sink = write(checkpoint, options);
    const mixtral::Model model = open(sink.file);
    const Recorder seen = evaluate(model, tokens);
    double loss = 0.0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      loss -=
          mixtral::log_probability({seen.logits[i].data(), seen.logits[i].size()}, tokens[i + 1]) +
          nll[i];
    }
    CHECK(std::abs(loss) / static_cast<double>(tokens.size() - 1) < entry.second);
  }
}

TEST_CASE("quantize: types are mixed as llama.cpp mixes them" *
          needs_shared("models/tiny-mixtral/gguf")) {
  const auto checkpoint = value(mixtral::open_checkpoint(shared("models/tiny-mixtral/hf").c_str()));
  int n_compared = 0;
  for (const mixtral::Quantization& q : mixtral::quantizations()) {
    const std::string name = q.name;
    CAPTURE(name);
    const std::string peer = "models/tiny-mixtral/gguf/tiny-mixtral-" + name + ".gguf";
    if (!std::filesystem::exists(shared(peer))) continue;
    // The head of the file tells the types; the numbers need not be there.
    MemorySink sink;
    sink.most_writes = 1;
    REQUIRE(!mixtral::write_gguf(checkpoint, type(q.name), sink));
    sink.file.resize(40 << 20);
    const Blob theirs = read_file(shared(peer));
    auto* resource = std::pmr::get_default_resource();
    const auto our_file = value(mixtral::gguf::File::parse(bytes(sink.file), resource));
    const auto their_file = value(mixtral::gguf::File::parse(bytes(theirs), resource));
    CHECK(our_file.tensors().size() == their_file.tensors().size());
    for (const auto& tensor : their_file.tensors()) {
      CAPTURE(std::string(tensor.name));
      const auto* ours = our_file.find_tensor(tensor.name);
      REQUIRE(ours != nullptr);
      CHECK(name_of(ours->format) == name_of(tensor.format));
      CHECK(ours->shape == tensor.shape);
    }
    for (const char* key : {"general.file_type", "llama.expert_count", "llama.context_length",
                            "tokenizer.ggml.bos_token_id", "llama.rope.dimension_count"}) {
      CAPTURE(std::string(key));
      REQUIRE(their_file.find(key) != nullptr);
      REQUIRE(our_file.find(key) != nullptr);
      CHECK(our_file.find(key)->as_uint() == their_file.find(key)->as_uint());
    }
    ++n_compared;
  }
  CHECK(n_compared >= 12);
}

TEST_CASE("quantize: types for the output and the experts, pure types, rows that do not fit") {
  const Blob original = wide().writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  mixtral::QuantizeOptions options = type("q4_k");
  options.output_tensor_type = BlockFormat::f16;
  options.expert_type = BlockFormat::q2_k;
  const MemorySink sink = write(checkpoint, options);
  CHECK(sink.formats.at("output.weight") == BlockFormat::f16);
  CHECK(sink.formats.at("token_embd.weight") == BlockFormat::q4_k);
  CHECK(sink.formats.at("blk.0.ffn_gate_exps.weight") == BlockFormat::q2_k);
  CHECK(sink.formats.at("blk.1.ffn_down_exps.weight") == BlockFormat::q2_k);
  CHECK(sink.formats.at("blk.1.attn_v.weight") == BlockFormat::q8_0);
  CHECK(sink.formats.at("blk.1.ffn_gate_inp.weight") == BlockFormat::f32);
  CHECK(sink.formats.at("blk.1.attn_norm.weight") == BlockFormat::f32);
  CHECK(evaluate(open(sink.file), some_tokens()).logits.size() == 30);

  options = type("Q4_K_M");
  options.pure = true;
  const auto pure_formats = write(checkpoint, options).formats;
  CHECK(pure_formats.size() == sink.formats.size());
  for (const auto& [name, format] : pure_formats) {
    const bool vector =
        name.find("norm") != std::string::npos || name.find("_inp") != std::string::npos;
    CHECK(format == (vector ? BlockFormat::f32 : BlockFormat::q4_k));
  }

  Synthetic narrow;  // rows of 24 and 40
  narrow.randomize(1);
  const MemorySink f16 = write(read(narrow.writer().finish()), type("Q4_K_M"));
  CHECK(f16.formats.at("blk.0.attn_q.weight") == BlockFormat::f16);
  CHECK(f16.n_fallbacks == 2 + 2 * 7);
  narrow.dim = 64;
  narrow.hidden_dim = 96;
  narrow.randomize(1);
  const MemorySink small = write(read(narrow.writer().finish()), type("Q4_K_S"));
  CHECK(small.formats.at("blk.0.attn_q.weight") == BlockFormat::q5_0);
  CHECK(small.formats.at("output.weight") == BlockFormat::q8_0);
  CHECK(evaluate(open(small.file), some_tokens()).logits.size() == 30);
}

TEST_CASE("quantize: a tensor that has its format already is copied") {
  const mixtral::Checkpoint checkpoint =
      value(mixtral::open_gguf(bundled_model().c_str(), std::pmr::get_default_resource()));
  const MemorySink again = write(checkpoint, type("Q8_0"));
  const std::vector<Token> tokens = golden("once")["ids"].get<std::vector<Token>>();
  CHECK(evaluate(open(again.file), tokens).logits ==
        evaluate(open(bundled_model()), tokens).logits);
  // What the file says of itself stays.
  const Blob before = read_file(bundled_model());
  const auto old_file =
      value(mixtral::gguf::File::parse(bytes(before), std::pmr::get_default_resource()));
  const auto new_file =
      value(mixtral::gguf::File::parse(bytes(again.file), std::pmr::get_default_resource()));
  std::size_t n_texts = 0;
  for (const auto& pair : old_file.metadata()) {
    if (pair.key.substr(0, 8) != "general.") continue;
    CAPTURE(std::string(pair.key));
    REQUIRE(new_file.find(pair.key) != nullptr);
    CHECK(new_file.find(pair.key)->as_string() == pair.value.as_string());
    CHECK(new_file.find(pair.key)->as_uint() == pair.value.as_uint());
    n_texts += pair.value.as_string().has_value();
  }
  CHECK(n_texts >= 2);
}

TEST_CASE("quantize: metadata of every type is taken over") {
  Synthetic s;
  s.randomize(1);
  GgufWriter writer = s.writer();
  writer.string("general.name", "Ünïcode");
  writer.array("general.numbers", 5, std::vector<std::int32_t>{-1, 2});
  writer.strings("general.tags", {"a", "", "b"});
  writer.boolean("general.flag", true);
  writer.scalar("general.i8", 1, std::int8_t{-3});
  writer.scalar("general.u16", 2, std::uint16_t{65535});
  writer.scalar("general.i64", 11, std::int64_t{-5});
  writer.scalar("general.f64", 12, 0.1);
  writer.float32("general.f32", 0.25f);
  const Blob file = write(read(writer.finish()), type("F16")).file;
  const auto parsed =
      value(mixtral::gguf::File::parse(bytes(file), std::pmr::get_default_resource()));
  CHECK(parsed.find("general.name")->as_string() == "Ünïcode");
  CHECK(parsed.find("general.flag")->as_bool() == true);
  CHECK(parsed.find("general.i8")->as_double() == -3.0);
  CHECK(parsed.find("general.u16")->as_uint() == 65535u);
  CHECK(parsed.find("general.i64")->as_double() == -5.0);
  CHECK(parsed.find("general.f64")->as_double() == 0.1);
  CHECK(parsed.find("general.f32")->as_double() == 0.25);
  CHECK(parsed.find("general.file_type")->as_uint() == 1u);
  std::vector<double> numbers;
  parsed.find("general.numbers")->for_each([&](std::uint64_t, const auto& v) {
    numbers.push_back(*v.as_double());
    return true;
  });
  CHECK(numbers == std::vector<double>{-1.0, 2.0});
  CHECK(parsed.find("general.tags")->size() == 3);
}

TEST_CASE("quantize: a sink that fails or wants no more ends the writing") {
  Synthetic s;
  s.randomize(1);
  const Blob original = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  const int n_writes = write(checkpoint, type("F16")).n_writes;
  CHECK(n_writes > 20);
  for (int most = 0; most < n_writes; ++most) {
    MemorySink sink;
    sink.most_writes = most;
    const auto status = mixtral::write_gguf(checkpoint, type("F16"), sink);
    REQUIRE(!status);
    CHECK(status.error().code() == mixtral::ErrorCode::io);
  }
  MemorySink sink;
  sink.most_progress = 3;
  auto status = mixtral::write_gguf(checkpoint, type("F16"), sink);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::cancelled);
  CHECK(sink.n_progress == 4);
  status = mixtral::write_gguf(checkpoint, {}, sink);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
  CHECK(mixtral::find_quantization("Q9_9") == nullptr);
  CHECK(mixtral::find_quantization("") == nullptr);
}

TEST_CASE("quantize: a number that does not fit is told by tensor, whatever the threads") {
  Synthetic s;
  s.randomize(1);
  s.layers[1].w2[3][17][5] = 1e9f;
  s.layers[1].w2[3][20][6] = std::numeric_limits<float>::infinity();
  const Blob original = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  mixtral::ThreadPool pool = value(mixtral::ThreadPool::create(3));
  for (const bool parallel : {false, true}) {
    mixtral::QuantizeOptions options = type("F16");
    if (parallel) options.executor = pool;
    MemorySink sink;
    const auto status = mixtral::write_gguf(checkpoint, options, sink);
    REQUIRE(!status);
    const std::string message = status.error().message();
    INFO(message);
    CHECK(message.find("blk.1.ffn_down_exps.weight") != std::string::npos);
    CHECK(message.find("element 5 of row 1 ") != std::string::npos);
  }
}

TEST_CASE(
    "quantize: of several numbers that do not fit the first in the file is told, in any order of "
    "work") {
  struct Backwards {
    static void run(std::size_t n, mixtral::Chunks chunks) {
      while (n > 0) chunks(--n);
    }
    static std::size_t concurrency() { return 1; }
  } backwards;
  mixtral::ThreadPool pool = value(mixtral::ThreadPool::create(3));
  const mixtral::Executor executors[] = {{}, backwards, pool};
  const auto error_of = [&](const Synthetic& s, std::size_t i) {
    const Blob original = s.writer().finish();
    mixtral::QuantizeOptions options = type("F16");
    options.executor = executors[i];
    MemorySink sink;
    const auto status = mixtral::write_gguf(read(original), options, sink);
    REQUIRE(!status);
    CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
    return std::string(status.error().message());
  };
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    Synthetic s;
    s.randomize(1);
    for (const std::size_t row : {5u, 30u, 100u, 290u}) s.output[row][3] = -1e9f;
    CHECK(error_of(s, i).find(
              "tensor 'output.weight', rows from 0: element 3 of row 5 is -1e+09") == 0);
    s.output[5][3] = 0.0f;
    s.output[290][1] = 1e9f;
    CHECK(error_of(s, i).find("tensor 'output.weight', rows from 16: element 3 of row 14 is") == 0);
    // The embedding is written before, layers and their experts after.
    s.layers[1].w3[2][39][23] = s.layers[1].w3[3][0][0] = 1e9f;
    CHECK(error_of(s, i).find("tensor 'output.weight'") == 0);
    s.randomize(1);
    s.layers[1].w3[2][39][23] = s.layers[1].w3[3][0][0] = 1e9f;
    CHECK(error_of(s, i).find(
              "tensor 'blk.1.ffn_up_exps.weight', rows from 32 of an expert: element 23 "
              "of row 7 is") == 0);
  }
}

TEST_CASE(
    "quantize: large matrices are written in bands, and the first that fails is told by its rows") {
  // A band has a few million weights: 32 of 48 rows of 131072, and 87376 of 131072 rows of 48.
  constexpr std::uint32_t kDim = 48, kHidden = 131072;
  std::vector<float> numbers(std::size_t{kDim} * kHidden);
  std::uint32_t state = 1;
  for (float& x : numbers) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 21) - 1024.0f;
  }
  const auto* data = reinterpret_cast<const std::uint8_t*>(numbers.data());
  const mixtral::simd::Matrix as_bf16{data, kDim * 2, kHidden, kDim, BlockFormat::bf16};
  Synthetic s;
  s.dim = kDim;
  s.n_layers = 1;
  s.n_heads = s.n_kv_heads = 1;
  s.hidden_dim = 8;
  s.n_experts = s.n_experts_used = 1;
  s.vocab_size = 259;
  s.randomize(1);
  const Blob small = s.writer().finish();
  mixtral::Checkpoint checkpoint = read(small);
  checkpoint.config.hidden_dim = kHidden;
  for (mixtral::NamedTensor& tensor : checkpoint.tensors) {
    if (tensor.role < mixtral::Role::w1) continue;
    tensor.matrix.data = data;
    tensor.matrix.rows = tensor.role == mixtral::Role::w2 ? kDim : kHidden;
    tensor.matrix.cols = tensor.role == mixtral::Role::w2 ? kHidden : kDim;
    tensor.matrix.row_bytes = tensor.matrix.cols * 4;
    if (tensor.role == mixtral::Role::w3) tensor.matrix = as_bf16;  // which are copied
  }
  struct Sink : MemorySink {
    void on_tensor(const mixtral::TensorReport& report) override {
      n_progress_after.push_back(n_progress);
      MemorySink::on_tensor(report);
    }
    std::vector<int> n_progress_after;
  } sink;
  REQUIRE(mixtral::write_gguf(checkpoint, type("BF16"), sink));
  REQUIRE(sink.n_progress_after.size() == 12);
  CHECK(sink.n_progress_after[8] == 9);  // one each; then two of ffn_gate, ffn_down, ffn_up
  CHECK(sink.n_progress_after[11] == 15);
  const auto file =
      value(mixtral::gguf::File::parse(bytes(sink.file), std::pmr::get_default_resource()));
  const auto* copied = file.find_tensor("blk.0.ffn_up.weight");
  REQUIRE(copied != nullptr);
  CHECK(std::memcmp(copied->data, data, numbers.size() * 2) == 0);
  for (const char* name : {"ffn_gate", "ffn_down"}) {
    CAPTURE(std::string(name));
    const auto* tensor = file.find_tensor("blk.0." + std::string(name) + ".weight");
    REQUIRE(tensor != nullptr);
    std::size_t n_wrong = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const std::uint16_t expected = mixtral::simd::float_to_bfloat16(numbers[i]);
      n_wrong +=
          tensor->data[2 * i] != (expected & 255) || tensor->data[2 * i + 1] != expected >> 8;
    }
    CHECK(n_wrong == 0);
  }
  // What is copied is not looked at; a number that does not fit is told by its row in the band.
  numbers[40 * std::size_t{kHidden} + 5] = std::numeric_limits<float>::infinity();
  for (mixtral::NamedTensor& tensor : checkpoint.tensors) {
    if (tensor.role == mixtral::Role::w1) tensor.matrix = as_bf16;
  }
  MemorySink failed;
  const auto status = mixtral::write_gguf(checkpoint, type("BF16"), failed);
  REQUIRE(!status);
  const std::string message = status.error().message();
  CHECK(message.find("tensor 'blk.0.ffn_down.weight', rows from 32: element 5 of row 8 is inf") ==
        0);
}

TEST_CASE("quantize: every tensor is reported with what it was and what it became") {
  struct Sink : MemorySink {
    void on_tensor(const mixtral::TensorReport& report) override {
      reports.push_back(report);
      names.emplace_back(report.name);
      sizes.push_back(file.size());
    }
    std::vector<mixtral::TensorReport> reports;
    std::vector<std::string> names;
    std::vector<std::size_t> sizes;  // of the file so far
  };
  Synthetic s = wide(2);
  s.hidden_dim = 96;  // rows of ffn_down are no whole blocks of 256
  s.vocab_size = 301;
  s.randomize(2);
  const Blob f16 = write(read(s.writer().finish()), type("F16")).file;
  const mixtral::Checkpoint checkpoint = read(f16);
  mixtral::Importance importance(checkpoint.config);
  const std::vector<float> input(256, 1.0f);
  for (const mixtral::Role role : {mixtral::Role::wq, mixtral::Role::w1, mixtral::Role::output}) {
    importance.on_input(role, 0, 0, {input.data(), input.size()});
  }
  Sink sink;
  mixtral::QuantizeOptions options = type("Q4_K_M");
  options.importance = &importance;
  options.output_tensor_type = BlockFormat::bf16;
  REQUIRE(mixtral::write_gguf(checkpoint, options, sink));
  const auto file =
      value(mixtral::gguf::File::parse(bytes(sink.file), std::pmr::get_default_resource()));
  REQUIRE(sink.reports.size() == file.tensors().size());
  CHECK(sink.reports.size() == 3 + 2 * 10);
  for (std::size_t i = 0; i < sink.reports.size(); ++i) {
    const mixtral::TensorReport& report = sink.reports[i];
    const std::string& name = sink.names[i];
    CAPTURE(name);
    const auto& tensor = file.tensors()[i];
    CHECK(name == tensor.name);
    CHECK(report.to == tensor.format);
    const bool is_float =
        name.find("norm") != std::string::npos || name.find("gate_inp") != std::string::npos;
    CHECK(report.from == (is_float ? BlockFormat::f32 : BlockFormat::f16));
    CHECK((report.to == BlockFormat::f32) == is_float);
    // Norms have one dimension; the matrices of a layer's experts are one tensor of three.
    const bool is_norm = name.find("norm") != std::string::npos;
    const bool is_of_experts = name.find("_exps") != std::string::npos;
    CHECK(tensor.n_dims == (is_norm ? 1u : is_of_experts ? 3u : 2u));
    CHECK(report.fallback == (name.find("ffn_down") != std::string::npos));
    const bool gathered = name == "blk.0.attn_q.weight" || name == "blk.0.attn_k.weight" ||
                          name == "blk.0.attn_v.weight" || name == "blk.0.ffn_gate_exps.weight" ||
                          name == "blk.0.ffn_up_exps.weight";
    CHECK(report.has_importance == gathered);  // none for the output, which is not quantised
    // Data are where the directory says, padded with zeros to multiples of 32 bytes, in this order.
    const auto begin = static_cast<std::size_t>(tensor.data - sink.file.data());
    CHECK(begin % 32 == 0);
    if (i > 0) CHECK(begin == sink.sizes[i - 1]);
    std::uint64_t n_bytes = mixtral::block_format_info(tensor.format)->block_bytes;
    for (const std::uint64_t n : tensor.shape) n_bytes *= n;
    n_bytes /= mixtral::block_format_info(tensor.format)->block_size;
    const std::size_t end = begin + static_cast<std::size_t>(n_bytes);
    CHECK(sink.sizes[i] == (end + 31) / 32 * 32);
    for (std::size_t at = end; at < sink.sizes[i]; ++at) CHECK(sink.file[at] == 0);
  }
  CHECK(sink.sizes.back() == sink.file.size());
}

TEST_CASE("quantize: types for the output and the experts must be such as can be written") {
  Synthetic s;
  s.randomize(1);
  s.tied_output = true;
  s.output = s.embedding;
  const Blob original = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(std::string(entry.info.name));
    for (const bool of_output : {true, false}) {
      mixtral::QuantizeOptions options = type("F16");
      (of_output ? options.output_tensor_type : options.expert_type) = entry.format;
      MemorySink sink;
      const auto status = mixtral::write_gguf(checkpoint, options, sink);
      REQUIRE(static_cast<bool>(status) == mixtral::can_encode(entry.format));
      if (!status) {
        CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
        CHECK(sink.n_writes == 0);
        continue;
      }
      // Rows of 24 and 40 are not whole blocks, so that quantised types end as F16.
      const BlockFormat fits = entry.info.quantized ? BlockFormat::f16 : entry.format;
      CHECK(sink.formats.at("token_embd.weight") == (of_output ? fits : BlockFormat::f16));
      CHECK(sink.formats.at("blk.1.ffn_down_exps.weight") == (of_output ? BlockFormat::f16 : fits));
      CHECK(sink.formats.at("blk.1.ffn_up_exps.weight") == (of_output ? BlockFormat::f16 : fits));
      CHECK(sink.formats.at("blk.1.attn_output.weight") == BlockFormat::f16);
    }
  }
}

TEST_CASE("quantize: the configuration and the vocabulary are written key by key") {
  Synthetic s;
  s.n_heads = 4;
  s.n_kv_heads = 2;
  s.head_size = 10;
  s.sliding_window = 7;
  s.rope_linear_factor = 4.0f;
  s.rope_theta = 123456.0f;
  s.norm_epsilon = 0.0625f;
  s.randomize(1);
  GgufWriter writer = s.writer();
  writer.uint32("tokenizer.ggml.bos_token_id", 2);
  writer.uint32("tokenizer.ggml.eos_token_id", 1);
  writer.boolean("tokenizer.ggml.add_bos_token", false);
  writer.boolean("tokenizer.ggml.add_space_prefix", false);
  writer.boolean("tokenizer.ggml.remove_extra_whitespaces", true);
  writer.string("tokenizer.chat_template", "{{ bos_token }}");
  const Blob original = writer.finish();
  const auto check = [&](const Blob& file, bool with_experts) {
    const auto parsed =
        value(mixtral::gguf::File::parse(bytes(file), std::pmr::get_default_resource()));
    const auto number = [&](const char* key) {
      CAPTURE(std::string(key));
      const auto* found = parsed.find(key);
      REQUIRE(found != nullptr);
      REQUIRE(found->as_double());
      return *found->as_double();
    };
    CHECK(parsed.find("general.architecture")->as_string() == "llama");
    CHECK(number("general.quantization_version") == 2.0);
    CHECK(number("llama.block_count") == 2.0);
    CHECK(number("llama.context_length") == 64.0);
    CHECK(number("llama.embedding_length") == 24.0);
    CHECK(number("llama.feed_forward_length") == 40.0);
    CHECK(number("llama.attention.head_count") == 4.0);
    CHECK(number("llama.attention.head_count_kv") == 2.0);
    CHECK(number("llama.attention.layer_norm_rms_epsilon") == 0.0625);
    CHECK(number("llama.attention.key_length") == 10.0);
    CHECK(number("llama.attention.value_length") == 10.0);
    CHECK(number("llama.rope.dimension_count") == 10.0);
    CHECK(number("llama.rope.freq_base") == 123456.0);
    CHECK(number("llama.rope.scaling.factor") == 4.0);
    CHECK(parsed.find("llama.rope.scaling.type")->as_string() == "linear");
    CHECK(number("llama.vocab_size") == 300.0);
    CHECK(number("llama.attention.sliding_window") == 7.0);
    CHECK((parsed.find("llama.expert_count") != nullptr) == with_experts);
    CHECK((parsed.find("llama.expert_used_count") != nullptr) == with_experts);
    if (with_experts) {
      CHECK(number("llama.expert_count") == 4.0);
      CHECK(number("llama.expert_used_count") == 2.0);
    }
    CHECK(number("tokenizer.ggml.bos_token_id") == 2.0);
    CHECK(number("tokenizer.ggml.eos_token_id") == 1.0);
    CHECK(number("tokenizer.ggml.unknown_token_id") == 0.0);
    CHECK(parsed.find("tokenizer.ggml.add_bos_token")->as_bool() == false);
    CHECK(parsed.find("tokenizer.ggml.add_eos_token")->as_bool() == false);
    CHECK(parsed.find("tokenizer.ggml.add_space_prefix")->as_bool() == false);
    CHECK(parsed.find("tokenizer.ggml.remove_extra_whitespaces")->as_bool() == true);
    CHECK(parsed.find("tokenizer.ggml.model")->as_string() == "llama");
    CHECK(parsed.find("tokenizer.chat_template")->as_string() == "{{ bos_token }}");
    const auto before =
        value(mixtral::gguf::File::parse(bytes(original), std::pmr::get_default_resource()));
    for (const char* key :
         {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
      CAPTURE(std::string(key));
      const auto all = [&](const mixtral::gguf::File& in) {
        std::vector<std::string> values;
        in.find(key)->for_each([&](std::uint64_t, const mixtral::gguf::Value& v) {
          const auto text = v.as_string();
          values.push_back(text ? std::string(*text) : std::to_string(v.as_double().value_or(-1)));
          return true;
        });
        return values;
      };
      CHECK(parsed.find(key)->size() == 300);
      CHECK(all(parsed) == all(before));
    }
  };
  check(write(read(original), type("F16")).file, true);
  mixtral::Checkpoint checkpoint = read(original);
  checkpoint.vocabulary.eos = mixtral::kNoToken;
  const Blob without = write(checkpoint, type("F16")).file;
  CHECK(value(mixtral::gguf::File::parse(bytes(without), std::pmr::get_default_resource()))
            .find("tokenizer.ggml.eos_token_id") == nullptr);

  Synthetic plain;  // what has its default is not written
  plain.n_experts = plain.n_experts_used = 1;
  plain.head_size = 6;
  plain.randomize(1);
  const Blob written = write(read(plain.writer().finish()), type("F16")).file;
  const auto parsed =
      value(mixtral::gguf::File::parse(bytes(written), std::pmr::get_default_resource()));
  for (const char* key :
       {"llama.attention.key_length", "llama.attention.value_length", "llama.rope.scaling.type",
        "llama.rope.scaling.factor", "llama.attention.sliding_window", "llama.expert_count",
        "llama.expert_used_count", "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.chat_template"}) {
    CAPTURE(std::string(key));
    CHECK(parsed.find(key) == nullptr);
  }
  CHECK(parsed.find("tokenizer.ggml.add_bos_token")->as_bool() == true);
  CHECK(parsed.find("tokenizer.ggml.add_space_prefix")->as_bool() == true);
}

TEST_CASE("quantize: of a file's description all is taken over but what the new file says itself") {
  Synthetic s;
  s.randomize(1);
  GgufWriter writer = s.writer();
  writer.uint32("general.file_type", 99);
  writer.uint32("general.quantization_version", 98);
  writer.uint32("general.alignment", 32);
  writer.string("generalise", "no");
  writer.string("other.name", "no");
  writer.scalar("general.u8", 0, std::uint8_t{200});
  writer.scalar("general.i16", 3, std::int16_t{-300});
  writer.scalar("general.u32", 4, std::uint32_t{4000000000u});
  writer.scalar("general.i32", 5, std::int32_t{-2000000000});
  writer.scalar("general.u64", 10, ~std::uint64_t{0});
  writer.scalar("general.i64", 11, std::int64_t{1} << 62);
  writer.boolean("general.off", false);
  writer.array("general.bytes", 0, std::vector<std::uint8_t>{0, 255});
  writer.array("general.longs", 11, std::vector<std::int64_t>{-1, 5});
  writer.array("general.doubles", 12, std::vector<double>{0.1, -1e300});
  writer.array("general.none", 4, std::vector<std::uint32_t>{});
  GgufWriter::put_string("general.nested", writer.metadata);
  for (const std::uint32_t v : {9u, 9u}) GgufWriter::put(v, writer.metadata);
  GgufWriter::put(std::uint64_t{1}, writer.metadata);
  GgufWriter::put(std::uint32_t{4}, writer.metadata);
  GgufWriter::put(std::uint64_t{1}, writer.metadata);
  GgufWriter::put(std::uint32_t{7}, writer.metadata);
  ++writer.n_keys;
  writer.string("general.last", "one");
  const Blob original = writer.finish();
  const Blob file = write(read(original), type("Q8_0")).file;
  const auto before =
      value(mixtral::gguf::File::parse(bytes(original), std::pmr::get_default_resource()));
  const auto after =
      value(mixtral::gguf::File::parse(bytes(file), std::pmr::get_default_resource()));
  CHECK(after.find("general.file_type")->as_uint() == 7u);
  CHECK(after.find("general.quantization_version")->as_uint() == 2u);
  for (const char* key : {"general.alignment", "generalise", "other.name", "general.nested"}) {
    CAPTURE(std::string(key));
    CHECK(after.find(key) == nullptr);
  }
  const auto numbers = [](const mixtral::gguf::Value& v) {
    std::vector<double> all;
    v.for_each([&](std::uint64_t, const mixtral::gguf::Value& element) {
      all.push_back(element.as_double().value_or(std::nan("")));
      return true;
    });
    return all;
  };
  for (const char* key : {"general.u8", "general.i16", "general.u32", "general.i32", "general.u64",
                          "general.i64", "general.off", "general.bytes", "general.longs",
                          "general.doubles", "general.none", "general.last"}) {
    CAPTURE(std::string(key));
    REQUIRE(after.find(key) != nullptr);
    const auto &a = *before.find(key), &b = *after.find(key);
    CHECK(a.type() == b.type());
    CHECK(a.as_uint() == b.as_uint());
    CHECK(a.as_double() == b.as_double());
    CHECK(a.as_bool() == b.as_bool());
    CHECK(a.as_string() == b.as_string());
    if (a.type() != mixtral::gguf::ValueType::array) continue;
    CHECK(a.element_type() == b.element_type());
    CHECK(numbers(a) == numbers(b));
  }
}

TEST_CASE("quantize: merges of a tokenizer.json become scores") {
  Synthetic s;
  s.randomize(6);
  const TemporaryFolder folder;
  folder.write("config.json", huggingface_config(s).dump());
  folder.write("model.safetensors", safetensors(huggingface_tensors(s)));
  nlohmann::json json = tokenizer_json(s);
  auto& vocabulary = json["model"]["vocab"];
  // The last pieces become letters and what is made of them.
  std::vector<std::string> kept;
  for (const auto& item : vocabulary.items()) {
    if (item.value().get<int>() < 259) kept.push_back(item.key());
  }
  nlohmann::json pieces;
  for (const auto& key : kept) pieces[key] = vocabulary[key];
  int id = 259;
  for (const char* text : {"a", "b", "c", "\xE2\x96\x81", "ab", "bc", "abc",
                           "\xE2\x96\x81"
                           "a"}) {
    pieces[text] = id++;
  }
  while (id < 300) {
    const int filler = id++;
    pieces["filler" + std::to_string(filler)] = filler;
  }
  vocabulary = pieces;
  json["model"]["merges"] = {"b c", "a b", "a bc", "ab c", "\xE2\x96\x81 a"};
  folder.write("tokenizer.json", json.dump());
  const auto checkpoint = value(mixtral::open_checkpoint(folder.path().c_str()));
  const MemorySink written = write(checkpoint, type("F16"));
  const mixtral::Model model = open(written.file);
  const auto before = value(mixtral::open_tokenizer(folder.path().c_str()));
  for (const char* text : {"abc", "aabbcc", "a b c", "bcabcab", "cab abc"}) {
    CAPTURE(std::string(text));
    CHECK(value(model.tokenizer().encode(text)) == value(before.encode(text)));
  }
  json["model"]["merges"] = {"a bc", "b c", "ab c", "a b"};
  folder.write("tokenizer.json", json.dump());
  MemorySink sink;
  const auto status = mixtral::write_gguf(value(mixtral::open_checkpoint(folder.path().c_str())),
                                          type("F16"), sink);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::unsupported);
  CHECK(std::string(status.error().message()).find("'abc'") != std::string::npos);
}
