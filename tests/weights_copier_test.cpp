// Weights in the host's memory, in an order of their own: whatever the shapes, the results of a mapped file.
#include "sessions.hpp"

#include <mixtral/quantize.hpp>

using namespace support;
using mixtral::BlockFormat;
using mixtral::Token;

namespace {

// The formats of the experts' matrices; the others are float32.
struct Formats {
  BlockFormat w1, w2, w3;
};

Blob quantized(const Synthetic& synthetic, const Formats& formats) {
  GgufWriter writer = synthetic.writer();
  for (auto& tensor : writer.tensors) {
    const auto is = [&](const char* part) { return tensor.name.find(part) != std::string::npos; };
    const BlockFormat format = is("ffn_gate.") || is("ffn_gate_exps") ? formats.w1
                               : is("ffn_down")                       ? formats.w2
                               : is("ffn_up")                         ? formats.w3
                                                                      : BlockFormat::f32;
    if (format == BlockFormat::f32) continue;
    const auto& info = *mixtral::block_format_info(format);
    const std::size_t cols = static_cast<std::size_t>(tensor.shape[0]);
    REQUIRE(cols % info.block_size == 0);
    std::vector<float> values(tensor.data.size() / sizeof(float));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    const std::size_t rows = values.size() / cols;
    tensor.type = static_cast<std::uint32_t>(format);
    tensor.data.resize(rows * (cols / info.block_size * info.block_bytes));
    REQUIRE(mixtral::encode_rows(format, values.data(), rows, cols, {}, tensor.data.data()));
  }
  return writer.finish();
}

mixtral::Model open_model(const Blob& blob, bool copies) {
  mixtral::ModelOptions options;
  options.copy_weights = copies;
  return value(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(blob)), options));
}

// The logits after the last token, evaluated `batch` tokens at a time.
std::vector<float> logits_in_batches(const mixtral::Model& model, const std::vector<Token>& tokens,
                                     std::uint32_t batch) {
  mixtral::Session s = session(model, 128, batch);
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  return logits_of(s);
}

}  // namespace

TEST_CASE(
    "weights: copied or not, for one token or many, experts of any shape and format give the same "
    "bits") {
  constexpr BlockFormat kF32 = BlockFormat::f32, kQ8 = BlockFormat::q8_0, kQ4 = BlockFormat::q4_0,
                        kBf16 = BlockFormat::bf16, kIq4 = BlockFormat::iq4_nl;
  struct Case {
    std::uint32_t dim, hidden_dim;
    Formats formats;
  };
  const Case cases[] = {
      // Rows that fill chunks of 32, groups of 16 or 8 alone, or none of these.
      {256, 64, {kQ8, kQ8, kQ8}},
      {256, 48, {kQ8, kF32, kQ8}},
      {256, 80, {kQ8, kF32, kQ8}},
      {256, 40, {kQ8, kF32, kQ8}},
      {256, 50, {kQ8, kF32, kQ8}},
      // Columns that do not fill a tile, so that activations are filled up with zeros.
      {256, 96, {kQ8, kQ8, kQ8}},
      {96, 96, {kQ8, kQ8, kQ8}},
      {96, 288, {kQ4, kQ8, kQ4}},
      {96, 256, {kQ8, kQ8, kQ8}},
      // Matrices of an expert that differ in format.
      {256, 96, {kQ8, kQ8, kF32}},
      {256, 96, {kF32, kQ8, kQ8}},
      {256, 64, {kQ8, kQ8, kQ4}},
      {256, 64, {kQ8, kBf16, kBf16}},
      {256, 64, {kBf16, kF32, kQ4}},
      {256, 96, {kQ4, kF32, kIq4}},
      {256, 64, {kBf16, kBf16, kBf16}},
  };
  std::vector<Token> tokens = some_tokens(70, 5);
  for (Token& token : tokens) token %= 300;
  for (const Case& c : cases) {
    for (const std::uint32_t n_experts : {1u, 3u}) {
      Synthetic synthetic;
      synthetic.dim = c.dim;
      synthetic.hidden_dim = c.hidden_dim;
      synthetic.n_layers = 2;  // in the last one only the last token goes on
      synthetic.n_experts = n_experts;
      synthetic.n_experts_used = std::min(n_experts, 2u);
      synthetic.context_length = 128;
      synthetic.randomize(c.dim + c.hidden_dim);
      CAPTURE(c.dim);
      CAPTURE(c.hidden_dim);
      CAPTURE(n_experts);
      const Blob blob = quantized(synthetic, c.formats);
      const mixtral::Model mapped = open_model(blob, false), copied = open_model(blob, true);
      const std::vector<float> expected = logits_in_batches(mapped, tokens, 3);
      CHECK(logits_in_batches(mapped, tokens, 128) == expected);
      CHECK(logits_in_batches(copied, tokens, 3) == expected);
      CHECK(logits_in_batches(copied, tokens, 128) == expected);
    }
  }
}
