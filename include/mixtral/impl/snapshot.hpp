// The format of saved sessions, version 1, little-endian:
//
//   SnapshotHeader, as it lies in memory; `checksum` is that of what comes before it
//   tokens           int32[n_tokens]
//   turns            uint8[n_tokens]
//   pages            for each page of 64 positions from first_page on: its first rows, as many as are
//                    in use, [layer][keys, values][kv head][position][head_size] in kv_format
//   logits           float32[vocab_size], if has_logits
//   checksum         uint64, of everything after the header: of the tokens, the turns, each run of rows
//                    of one head and the logits, each filled up with zeros to whole 64-bit words
#ifndef MIXTRAL_IMPL_SNAPSHOT_HPP_
#define MIXTRAL_IMPL_SNAPSHOT_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mixtral/byte_stream.hpp"
#include "mixtral/impl/model.hpp"

namespace mixtral::detail {

// Changes with any change of one 64-bit word, and with nearly all others: each step is a bijection
// of the sum for a given word, and of the word for a given sum.
class Checksum {
 public:
  void add(const void* bytes, std::size_t size) noexcept {
    const auto* from = static_cast<const std::uint8_t*>(bytes);
    for (; size >= sizeof(std::uint64_t); size -= sizeof(std::uint64_t)) {
      add_word(from, sizeof(std::uint64_t));
      from += sizeof(std::uint64_t);
    }
    if (size != 0) add_word(from, size);
  }
  std::uint64_t value() const noexcept { return sum_; }

 private:
  void add_word(const std::uint8_t* from, std::size_t size) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, from, size);
    sum_ = (sum_ ^ word) * 0x9E3779B97F4A7C15u;
    sum_ ^= sum_ >> 32;
  }
  std::uint64_t sum_ = 0xCBF29CE484222325u;
};

struct SnapshotHeader {
  static constexpr char kMagic[8] = {'M', 'I', 'X', 'T', 'R', 'A', 'L', 'S'};
  static constexpr std::uint32_t kVersion = 1;

  char magic[8];
  std::uint32_t version;
  std::uint32_t kv_format;  // the number that GGUF gives the type
  std::uint64_t model;      // model_fingerprint()
  std::uint64_t rotary_offset;
  std::uint32_t n_tokens;
  std::uint32_t n_evaluated;
  std::uint32_t first_page;
  std::uint32_t has_logits;  // 0 or 1
  std::uint64_t checksum;

  std::uint64_t sum() const noexcept {
    Checksum sum;
    sum.add(this, offsetof(SnapshotHeader, checksum));
    return sum.value();
  }
};
static_assert(sizeof(SnapshotHeader) == 56, "no padding: it is written as it lies in memory");

// Tells models apart: the configuration, and the shape, format, first and last bytes of each matrix.
inline std::uint64_t model_fingerprint(const ModelData& data) noexcept {
  Checksum sum;
  const Config& c = data.config;
  const std::uint32_t sizes[] = {c.dim,        c.n_layers,      c.n_heads,   c.n_kv_heads,
                                 c.head_size,  c.hidden_dim,    c.n_experts, c.n_experts_used,
                                 c.vocab_size, c.sliding_window};
  sum.add(sizes, sizeof sizes);
  const float numbers[] = {c.rope_theta, c.rope_scale, c.norm_epsilon};
  sum.add(numbers, sizeof numbers);
  const auto add = [&](const simd::Matrix& matrix) {
    const std::uint64_t shape[] = {matrix.rows, matrix.cols,
                                   static_cast<std::uint64_t>(matrix.format)};
    sum.add(shape, sizeof shape);
    if (matrix.data == nullptr || matrix.bytes() == 0) return;
    const std::size_t n = matrix.bytes() < 64 ? static_cast<std::size_t>(matrix.bytes()) : 64;
    sum.add(matrix.data, n);
    sum.add(matrix.data + matrix.bytes() - n, n);
  };
  const auto add_floats = [&](const float* floats, std::size_t n) {
    if (floats != nullptr) sum.add(floats, n * sizeof(float));
  };
  const Weights& weights = data.weights;
  add(weights.token_embedding);
  add(weights.output);
  add_floats(weights.output_norm, c.dim);
  add_floats(weights.rope_factors, c.head_size / 2);
  for (const LayerWeights& layer : weights.layers) {
    add_floats(layer.attention_norm, c.dim);
    add_floats(layer.ffn_norm, c.dim);
    for (const simd::Matrix* m : {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.router})
      add(*m);
    for (std::size_t e = 0; e < c.n_experts; ++e) {
      const ExpertWeights& expert = layer.experts[e];
      for (const simd::Matrix* m : {&expert.w1, &expert.w2, &expert.w3}) add(*m);
    }
  }
  return sum.value();
}

// Writes with a running checksum.
class SnapshotWriter {
 public:
  explicit SnapshotWriter(ByteWriter write) : write_(write) {}
  void put(const void* bytes, std::size_t size) {
    if (!good_) return;
    sum_.add(bytes, size);
    good_ = write_(bytes, size);
  }
  void put_checksum() {
    const std::uint64_t sum = sum_.value();
    if (good_) good_ = write_(&sum, sizeof sum);
  }
  bool good() const noexcept { return good_; }

 private:
  ByteWriter write_;
  Checksum sum_;
  bool good_ = true;
};

class SnapshotReader {
 public:
  explicit SnapshotReader(ByteReader read) : read_(read) {}
  void get(void* bytes, std::size_t size) {
    if (!good_) return;
    good_ = read_(bytes, size);
    if (good_) sum_.add(bytes, size);
  }
  // Does what was read have the checksum that comes now?
  bool checksum_matches() {
    std::uint64_t sum = 0;
    if (good_) good_ = read_(&sum, sizeof sum);
    return good_ && sum == sum_.value();
  }
  bool good() const noexcept { return good_; }

 private:
  ByteReader read_;
  Checksum sum_;
  bool good_ = true;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_SNAPSHOT_HPP_
