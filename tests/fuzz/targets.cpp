// The fuzz targets, one for each parser of files: every input gives an error or something that can be
// used. Compiled once; entry.cpp makes a program of each.
#define MIXTRAL_IMPLEMENTATION
#include <mixtral/checkpoints.hpp>
#include <mixtral/mixtral.hpp>
#include <mixtral/quantize.hpp>

#include <cstdlib>

namespace fuzz {

// Reads every byte that tensors claim to have; the sanitizers see if one is not there.
void touch(const mixtral::Result<mixtral::detail::StoredTensors>& tensors) {
  if (!tensors) return;
  volatile std::uint8_t sum = 0;
  for (const auto& tensor : *tensors) {
    for (std::uint64_t i = 0; i < tensor.bytes; i += 61) sum = sum ^ tensor.data[i];
    if (tensor.bytes != 0) sum = sum ^ tensor.data[tensor.bytes - 1];
    static_cast<void>(mixtral::detail::matrix_of(tensor, 2));
  }
}

// Encodes texts and decodes the tokens; ids must be in the vocabulary.
void use(const mixtral::Result<mixtral::Tokenizer>& tokenizer) {
  if (!tokenizer) return;
  for (const char* text : {"Once upon a time", " \xE2\x82 [INST]<s>\n", "aaaaaaaaaaaaaaaa"}) {
    const auto tokens = tokenizer->encode(text);
    if (!tokens) continue;
    for (const mixtral::Token token : *tokens) {
      if (!tokenizer->contains(token)) std::abort();
    }
    if (!tokenizer->decode({tokens->data(), tokens->size()})) std::abort();
  }
}

void check(const mixtral::Config& config) {
  const bool sane = config.n_heads % config.n_kv_heads == 0 && config.head_size % 2 == 0 &&
                    config.n_experts_used <= config.n_experts && config.n_experts_used > 0;
  if (!sane) std::abort();
}

// A GGUF file: opened, and if that works, run on a few tokens. Or one of importance.
int gguf(const std::uint8_t* data, std::size_t size) {
  mixtral::Config config;
  config.n_experts = 8;
  static_cast<void>(mixtral::Importance::read({data, size}, config));
  const auto model = mixtral::Model::from_bytes(mixtral::Bytes::view({data, size}));
  if (!model || model->weight_bytes() > (1u << 20)) return 0;
  mixtral::SessionOptions options;
  options.context = std::min(model->config().context_length, 8u);
  options.batch = 4;
  const auto needed = mixtral::Session::memory_needed(*model, options);
  if (!needed || *needed > (1u << 26)) return 0;
  auto session = mixtral::Session::open(*model, options);
  if (session && session->append(mixtral::Token{1}) && session->append(mixtral::Token{0})) {
    static_cast<void>(session->evaluate());
  }
  return 0;
}

// Numbers as every block format: what is not refused comes out finite.
int encode(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kCols = 256;
  float row[kCols] = {};
  float importance[kCols] = {};
  float decoded[kCols];
  std::memcpy(row, data, std::min(size, sizeof row));
  if (size > sizeof row) {
    std::memcpy(importance, data + sizeof row, std::min(size - sizeof row, sizeof importance));
  }
  std::uint8_t block[kCols * 4];
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const mixtral::Span<const float> weights(importance, size > sizeof row ? kCols : 0);
    if (!mixtral::encode_rows(entry.format, row, 1, kCols, weights, block)) continue;
    mixtral::simd::Matrix matrix;
    matrix.data = block;
    matrix.row_bytes = kCols / entry.info.block_size * entry.info.block_bytes;
    matrix.rows = 1;
    matrix.cols = kCols;
    matrix.format = entry.format;
    mixtral::simd::select_kernels()->decode_rows(matrix, 0, 1, decoded);
    for (const float x : decoded) {
      if (!std::isfinite(x)) std::abort();
    }
  }
  return 0;
}

// The directory of a safetensors file; every byte of every tensor must be there.
int safetensors(const std::uint8_t* data, std::size_t size) {
  touch(mixtral::detail::read_safetensors({data, size}, "fuzz", std::pmr::get_default_resource()));
  return 0;
}

// A file of torch.save(): zip archive and pickle; every byte of every tensor must be there.
int torch_file(const std::uint8_t* data, std::size_t size) {
  touch(mixtral::detail::read_torch_file({data, size}, "fuzz", std::pmr::get_default_resource()));
  return 0;
}

// config.json and params.json; what is accepted must be in bounds.
int json_config(const std::uint8_t* data, std::size_t size) {
  const auto json = mixtral::detail::parse_json({data, size}, "fuzz");
  if (!json) return 0;
  mixtral::Config huggingface, original;
  if (mixtral::detail::read_huggingface_config(*json, huggingface) &&
      mixtral::check_config(huggingface, "fuzz")) {
    check(huggingface);
  }
  if (mixtral::detail::read_params(*json, original) && mixtral::check_config(original, "fuzz")) {
    check(original);
  }
  return 0;
}

// A tokenizer.model file: read, and if that works, used.
int sentencepiece(const std::uint8_t* data, std::size_t size) {
  use(mixtral::Tokenizer::from_sentencepiece({data, size}));
  return 0;
}

// A tokenizer.json file: read, and if that works, used.
int tokenizer_json(const std::uint8_t* data, std::size_t size) {
  std::pmr::memory_resource* resource = std::pmr::get_default_resource();
  const auto vocabulary = mixtral::read_tokenizer_json({data, size}, resource);
  if (vocabulary) use(mixtral::Tokenizer::create(*vocabulary, resource));
  return 0;
}

}  // namespace fuzz
