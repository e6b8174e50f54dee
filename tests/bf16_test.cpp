// Products of BF16 weights with activations rounded to BF16, on every SIMD target that this machine runs.
#include "support.hpp"

using namespace support;
using mixtral::BlockFormat;
using mixtral::simd::Kernels;
using mixtral::simd::Matrix;

namespace {

float bf16_value(std::uint16_t upper) {
  const std::uint32_t bits = std::uint32_t{upper} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

// Intel's Software Developer's Manual, VDPBF16PS: of two columns the second is multiplied and added first,
// rounding once each time. Here of a tile's pairs those 16 apart, from zero on; these sums are then added.
TEST_CASE("bf16: products are added in the order of the instruction for them" *
          needs(any_target_fuses(), kFusing)) {
  constexpr std::size_t kRows = 19, kCols = 300;
  std::mt19937 random(4);
  // Of all magnitudes, down to those that count as zeros.
  const auto any = [&] {
    const auto exponent = random() % 4 == 0 ? random() % 100 : 110 + random() % 30;
    return static_cast<std::uint16_t>((random() & 0x807fu) | exponent << 7);
  };
  constexpr std::size_t kTokens = 15;
  std::vector<std::uint16_t> weights(kRows * kCols);
  for (auto& w : weights) w = any();
  std::vector<std::vector<std::uint16_t>> x(
      kTokens, std::vector<std::uint16_t>(mixtral::simd::padded(kCols)));
  std::vector<float> floats(kTokens * kCols);
  for (auto& f : floats) f = bf16_value(any());
  const auto kept = [](std::uint16_t upper) {
    const float value = bf16_value(upper);
    return std::abs(value) < 0x1p-50f ? 0.0f : value;
  };
  Blob data(weights.size() * 2), turned(weights.size() * 2);
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t c = 0; c < kCols; ++c) {
      std::memcpy(data.data() + (r * kCols + c) * 2, &weights[r * kCols + c], 2);
      std::memcpy(turned.data() + (c * kRows + r) * 2, &weights[r * kCols + c], 2);
    }
  }
  Matrix w{data.data(), kCols * 2, kRows, kCols, BlockFormat::bf16};
  Matrix transposed{turned.data(), kRows * 2, kRows, kCols, BlockFormat::bf16};
  transposed.transposed = true;
  for (const Kernels* kernels : all_kernels()) {
    if (!kernels->fuses) continue;
    CAPTURE(std::string(kernels->target));
    const void* inputs[kTokens];
    for (std::size_t t = 0; t < kTokens; ++t) {
      kernels->to_bf16(floats.data() + t * kCols, kCols, x[t].data());
      inputs[t] = x[t].data();
    }
    Results out, other, one;
    kernels->matmul_bf16(w, 0, kRows, inputs, kTokens, out.values);
    kernels->matmul_bf16(transposed, 0, kRows, inputs, kTokens, other.values);
    for (std::size_t t = 0; t < kTokens; ++t) {
      kernels->matmul_bf16(w, 0, kRows, inputs + t, 1, one.values);
      for (std::size_t r = 0; r < kRows; ++r) {
        float sum = 0.0f;
        for (std::size_t col = 0; col < kCols; col += 256) {
          for (std::size_t first = col; first < col + 32; first += 2) {
            float part = 0.0f;
            for (std::size_t c = first; c < std::min(col + 256, kCols); c += 32) {
              for (const std::size_t i : {c + 1, c}) {
                part = std::fma(kept(weights[r * kCols + i]), kept(x[t][i]), part);
              }
            }
            sum = sum + part;
          }
        }
        CHECK(out.at(t, r) == sum);
        CHECK(other.at(t, r) == sum);
        CHECK(one.at(0, r) == sum);
      }
    }
  }
}

TEST_CASE("bf16: activations are rounded to the nearest BF16") {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> x{1.0f,       1.00390625f, 1.01171875f, -1.00390625f, 1.0039064f,
                       1.0039061f, 0x1p-50f,    0x1.fcp-51f, -0x1.fcp-51f, 0.0f,
                       infinity,   -infinity,   0x1.fep127f, 0x1.ffp127f,  std::nanf(""),
                       3.0f,       -7.0f};
  const std::vector<std::uint16_t> expected{0x3f80, 0x3f80, 0x3f82, 0xbf80, 0x3f81, 0x3f80,
                                            0x2680, 0,      0,      0,      0x7f80, 0xff80,
                                            0x7f7f, 0x7f80, 0x7fc0, 0x4040, 0xc0e0};
  for (const Kernels* kernels : all_kernels()) {
    CAPTURE(std::string(kernels->target));
    for (std::size_t n = 0; n <= x.size(); ++n) {
      std::vector<std::uint16_t> out(x.size() + 1, 0x1234);
      kernels->to_bf16(x.data(), n, out.data());
      for (std::size_t i = 0; i < n; ++i) {
        CAPTURE(i);
        CHECK((out[i] & (x[i] == 0.0f || std::abs(x[i]) < 0x1p-50f ? 0x7fff : 0xffff)) ==
              expected[i]);
      }
      CHECK(out[n] == 0x1234);
    }
  }
}
