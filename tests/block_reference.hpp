// Block formats by the letter of their layouts, slowly and in double, and matrices of random blocks.
#ifndef MIXTRAL_TESTS_BLOCK_REFERENCE_HPP_
#define MIXTRAL_TESTS_BLOCK_REFERENCE_HPP_

#include "support.hpp"

#include <mixtral/simd/grids.hpp>

namespace support {

using mixtral::BlockFormat;
using mixtral::simd::Matrix;

inline double half(const std::uint8_t* p) {
  const unsigned bits = p[0] | static_cast<unsigned>(p[1]) << 8;
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const double mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// One block by the letter of its layout (ggml-common.h, ggml-quants.c), slowly and in double.
inline std::vector<double> decode_block(BlockFormat format, const std::uint8_t* b) {
  std::vector<double> out;
  const auto nibble = [](const std::uint8_t* qs, int i) {
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
  };
  const auto nibble_of_byte = [](std::uint8_t byte, int i) { return byte >> (4 * i) & 15; };
  static constexpr int kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
  const auto bit = [](const std::uint8_t* bits, int i) { return bits[i / 8] >> (i % 8) & 1; };
  const auto uint32 = [](const std::uint8_t* p) {
    std::uint32_t word;
    std::memcpy(&word, p, 4);
    return word;
  };
  const auto magnitude = [](std::uint64_t point, int i) {
    return static_cast<double>(point >> (8 * i) & 255);
  };
  const auto sign_of_seven = [](unsigned signs, int i) {
    int minuses = 0;
    for (int j = 0; j < 7; ++j) minuses += signs >> j & 1;
    return (i < 7 ? signs >> i & 1 : minuses % 2) ? -1.0 : 1.0;
  };
  switch (format) {
    case BlockFormat::q8_0:
      for (int i = 0; i < 32; ++i) out.push_back(half(b) * static_cast<std::int8_t>(b[2 + i]));
      break;
    case BlockFormat::q4_0:
      for (int i = 0; i < 32; ++i) out.push_back(half(b) * (nibble(b + 2, i) - 8));
      break;
    case BlockFormat::q4_1:
      for (int i = 0; i < 32; ++i) out.push_back(half(b) * nibble(b + 4, i) + half(b + 2));
      break;
    case BlockFormat::q5_0:
      for (int i = 0; i < 32; ++i) {
        out.push_back(half(b) * ((nibble(b + 6, i) | bit(b + 2, i) << 4) - 16));
      }
      break;
    case BlockFormat::q5_1:
      for (int i = 0; i < 32; ++i) {
        out.push_back(half(b) * (nibble(b + 8, i) | bit(b + 4, i) << 4) + half(b + 2));
      }
      break;
    case BlockFormat::q2_k:
      for (int i = 0; i < 256; ++i) {
        const int q = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        const int scale = b[i / 16];
        out.push_back(half(b + 80) * (scale & 15) * q - half(b + 82) * (scale >> 4));
      }
      break;
    case BlockFormat::q3_k: {
      // The scales as ggml-quants.c unpacks them, four bytes at a time.
      std::uint32_t aux[4];
      std::memcpy(aux, b + 96, 12);
      const std::uint32_t top = aux[2];
      aux[2] = (aux[0] >> 4 & 0x0f0f0f0fu) | (top >> 4 & 0x03030303u) << 4;
      aux[3] = (aux[1] >> 4 & 0x0f0f0f0fu) | (top >> 6 & 0x03030303u) << 4;
      aux[0] = (aux[0] & 0x0f0f0f0fu) | (top & 0x03030303u) << 4;
      aux[1] = (aux[1] & 0x0f0f0f0fu) | (top >> 2 & 0x03030303u) << 4;
      std::uint8_t scales[16];
      std::memcpy(scales, aux, 16);
      for (int i = 0; i < 256; ++i) {
        const int low = b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        const int high = b[i % 32] >> (i / 32) & 1;
        out.push_back(half(b + 108) * (scales[i / 16] - 32) * (low - (high ? 0 : 4)));
      }
      break;
    }
    case BlockFormat::q4_k:
    case BlockFormat::q5_k: {
      const bool five = format == BlockFormat::q5_k;
      const std::uint8_t* s = b + 4;
      for (int i = 0; i < 256; ++i) {
        const int j = i / 32;
        const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        const int min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
        const std::uint8_t packed = b[(five ? 48 : 16) + i / 64 * 32 + i % 32];
        int q = i % 64 < 32 ? packed & 15 : packed >> 4;
        if (five) q |= (b[16 + i % 32] >> j & 1) << 4;
        out.push_back(half(b) * scale * q - half(b + 2) * min);
      }
      break;
    }
    case BlockFormat::q6_k:
      for (int i = 0; i < 256; ++i) {
        const int part = i / 128, g = i % 128 / 32, l = i % 32;
        const std::uint8_t low = b[part * 64 + g % 2 * 32 + l];
        const int q = (g < 2 ? low & 15 : low >> 4) | (b[128 + part * 32 + l] >> (2 * g) & 3) << 4;
        out.push_back(half(b + 208) * static_cast<std::int8_t>(b[192 + i / 16]) * (q - 32));
      }
      break;
    case BlockFormat::iq4_nl:
      for (int i = 0; i < 32; ++i) out.push_back(half(b) * kLevels[nibble(b + 2, i)]);
      break;
    case BlockFormat::iq4_xs:
      for (int i = 0; i < 256; ++i) {
        const int s = i / 32;
        const int high = (b[2] | b[3] << 8) >> (2 * s) & 3;
        const int scale = (nibble_of_byte(b[4 + s / 2], s % 2) | high << 4) - 32;
        out.push_back(half(b) * scale * kLevels[nibble(b + 8 + 16 * s, i % 32)]);
      }
      break;
    case BlockFormat::iq2_xxs:
      for (int i = 0; i < 256; ++i) {
        const std::uint8_t* part = b + 2 + i / 32 * 8;
        const std::uint32_t word = uint32(part + 4);
        const auto point = mixtral::simd::kIq2XxsGrid[part[i % 32 / 8]];
        out.push_back(half(b) * (0.5 + (word >> 28)) * 0.25 * magnitude(point, i % 8) *
                      sign_of_seven(word >> (7 * (i % 32 / 8)) & 127, i % 8));
      }
      break;
    case BlockFormat::iq2_xs:
      for (int i = 0; i < 256; ++i) {
        const unsigned q = b[2 + i / 8 * 2] | static_cast<unsigned>(b[3 + i / 8 * 2]) << 8;
        const int scale = nibble_of_byte(b[66 + i / 32], i % 32 / 16);
        out.push_back(half(b) * (0.5 + scale) * 0.25 *
                      magnitude(mixtral::simd::kIq2XsGrid[q & 511], i % 8) *
                      sign_of_seven(q >> 9, i % 8));
      }
      break;
    case BlockFormat::iq2_s:
      for (int i = 0; i < 256; ++i) {
        const int scale = nibble_of_byte(b[74 + i / 32], i % 32 / 16);
        const unsigned high = b[66 + i / 32] >> (i % 32 / 8 * 2) & 3u;
        const auto point = mixtral::simd::kIq2SGrid[b[2 + i / 8] | high << 8];
        out.push_back(half(b) * (0.5 + scale) * 0.25 * magnitude(point, i % 8) *
                      (bit(b + 34, i) ? -1 : 1));
      }
      break;
    case BlockFormat::iq3_xxs:
      for (int i = 0; i < 256; ++i) {
        const std::uint32_t word = uint32(b + 66 + i / 32 * 4);
        out.push_back(half(b) * (0.5 + (word >> 28)) * 0.5 *
                      magnitude(mixtral::simd::kIq3XxsGrid[b[2 + i / 4]], i % 4) *
                      sign_of_seven(word >> (7 * (i % 32 / 8)) & 127, i % 8));
      }
      break;
    case BlockFormat::iq3_s:
      for (int i = 0; i < 256; ++i) {
        const unsigned high = b[66 + i / 32] >> (i % 32 / 4) & 1u;
        const auto point = mixtral::simd::kIq3SGrid[b[2 + i / 4] | high << 8];
        out.push_back(half(b) * (1 + 2 * nibble_of_byte(b[106 + i / 64], i % 64 / 32)) *
                      magnitude(point, i % 4) * (bit(b + 74, i) ? -1 : 1));
      }
      break;
    case BlockFormat::f32: {
      float value;
      std::memcpy(&value, b, 4);
      out.push_back(static_cast<double>(value));
      break;
    }
    case BlockFormat::f16: out.push_back(half(b)); break;
    case BlockFormat::bf16: {
      const std::uint32_t bits =
          static_cast<std::uint32_t>(b[0]) << 16 | static_cast<std::uint32_t>(b[1]) << 24;
      float value;
      std::memcpy(&value, &bits, 4);
      out.push_back(static_cast<double>(value));
      break;
    }
  }
  return out;
}

// Where a block has half-precision numbers, so that random bytes can be given sane ones.
inline std::vector<std::size_t> half_offsets(BlockFormat format) {
  switch (format) {
    case BlockFormat::q4_1:
    case BlockFormat::q5_1:
    case BlockFormat::q4_k:
    case BlockFormat::q5_k: return {0, 2};
    case BlockFormat::q2_k: return {80, 82};
    case BlockFormat::q3_k: return {108};
    case BlockFormat::q6_k: return {208};
    case BlockFormat::f32:
    case BlockFormat::bf16: return {};
    default: return {0};
  }
}

struct RandomMatrix {
  Blob data;
  Matrix matrix;
  std::vector<std::vector<double>> values;

  RandomMatrix(BlockFormat format, std::size_t rows, std::size_t cols, unsigned seed) {
    std::mt19937 random(seed);
    const auto& info = *mixtral::block_format_info(format);
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.format = format;
    matrix.row_bytes = cols / info.block_size * info.block_bytes;
    // One byte of offset: file data has no alignment.
    data.resize(rows * matrix.row_bytes + 1);
    for (auto& byte : data) byte = static_cast<std::uint8_t>(random());
    for (std::size_t r = 0; r < rows; ++r) {
      values.emplace_back();
      for (std::size_t c = 0; c < cols / info.block_size; ++c) {
        std::uint8_t* block = data.data() + 1 + r * matrix.row_bytes + c * info.block_bytes;
        for (const std::size_t offset : half_offsets(format)) {
          // 2^-10 to 2^-3, either sign, now and then a subnormal.
          block[offset + 1] = static_cast<std::uint8_t>(
              (random() % 16 == 0 ? 0 : (5 + random() % 7) << 2) | (random() & 0x83));
        }
        if (format == BlockFormat::f32 || format == BlockFormat::bf16) {
          std::uint8_t* top = block + info.block_bytes - 1;
          *top = static_cast<std::uint8_t>((random() & 0x80) | (0x3c + random() % 4));
        }
        const auto decoded = decode_block(format, block);
        values.back().insert(values.back().end(), decoded.begin(), decoded.end());
      }
    }
    matrix.data = data.data() + 1;
  }
};

}  // namespace support

#endif  // MIXTRAL_TESTS_BLOCK_REFERENCE_HPP_
