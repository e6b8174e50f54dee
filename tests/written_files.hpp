// Models written as GGUF to memory, and read again.
#ifndef MIXTRAL_TESTS_WRITTEN_FILES_HPP_
#define MIXTRAL_TESTS_WRITTEN_FILES_HPP_

#include <mixtral/checkpoints.hpp>
#include <mixtral/quantize.hpp>

#include "model_files.hpp"

namespace support {

using mixtral::BlockFormat;
using mixtral::Token;

struct MemorySink : mixtral::GgufSink {
  bool write(mixtral::Span<const std::uint8_t> part) override {
    if (++n_writes > most_writes) return false;
    file.insert(file.end(), part.begin(), part.end());
    return true;
  }
  void on_tensor(const mixtral::TensorReport& report) override {
    formats[std::string(report.name)] = report.to;
    n_fallbacks += report.fallback ? 1 : 0;
    n_with_importance += report.has_importance ? 1 : 0;
  }
  bool on_progress(std::uint64_t done, std::uint64_t total) override {
    CHECK(done > last_done);
    CHECK(done <= total);
    last_done = done;
    all_done = done == total;
    return ++n_progress <= most_progress;
  }

  Blob file;
  std::map<std::string, BlockFormat> formats;
  int n_writes = 0, most_writes = 1 << 30, n_progress = 0, most_progress = 1 << 30;
  std::size_t n_fallbacks = 0, n_with_importance = 0;
  std::uint64_t last_done = 0;
  bool all_done = false;
};

inline mixtral::QuantizeOptions type(const char* name) {
  mixtral::QuantizeOptions options;
  options.type = mixtral::find_quantization(name);
  REQUIRE(options.type != nullptr);
  return options;
}

inline MemorySink write(const mixtral::Checkpoint& checkpoint,
                        const mixtral::QuantizeOptions& options) {
  MemorySink sink;
  const auto status = mixtral::write_gguf(checkpoint, options, sink);
  REQUIRE_MESSAGE(static_cast<bool>(status), (status ? "" : status.error().message()));
  CHECK(sink.all_done);
  return sink;
}

inline mixtral::Checkpoint read(const Blob& blob) {
  mixtral::Bytes view = mixtral::Bytes::view(bytes(blob));
  return value(mixtral::read_gguf({&view, 1}, std::pmr::get_default_resource()));
}

inline mixtral::Checkpoint read(Blob&& blob) {
  mixtral::Bytes bytes = owned(blob);
  return value(mixtral::read_gguf({&bytes, 1}, std::pmr::get_default_resource()));
}

inline std::vector<Token> some_tokens() {
  std::vector<Token> tokens;
  for (int i = 0; i < 30; ++i) tokens.push_back(static_cast<Token>((i * 37 + 11) % 300));
  return tokens;
}

// As large as the K formats need.
inline Synthetic wide(std::uint32_t n_experts = 8) {
  Synthetic s;
  s.dim = 256;
  s.n_heads = 8;
  s.n_kv_heads = 2;
  s.head_size = 32;
  s.hidden_dim = 256;
  s.n_experts = n_experts;
  s.n_experts_used = std::min(n_experts, 2u);
  s.randomize(8);
  return s;
}

}  // namespace support

#endif  // MIXTRAL_TESTS_WRITTEN_FILES_HPP_
