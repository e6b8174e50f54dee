// Optional: writes models as GGUF, quantised to any block format, alone or in the mixtures people know.
//
// Needs nothing beside mixtral.hpp; include it where MIXTRAL_IMPLEMENTATION is defined, too:
//
//   auto checkpoint = mixtral::open_checkpoint("Mixtral-8x7B-v0.1");   // checkpoints.hpp
//   mixtral::QuantizeOptions options;
//   options.type = mixtral::find_quantization("Q4_K_M");
//   options.executor = pool;
//   auto written = mixtral::write_gguf(*checkpoint, options, file);    // a GgufSink
#ifndef MIXTRAL_QUANTIZE_HPP_
#define MIXTRAL_QUANTIZE_HPP_

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <optional>
#include <string_view>

#include "mixtral/block_format.hpp"
#include "mixtral/checkpoint.hpp"
#include "mixtral/config.hpp"
#include "mixtral/error.hpp"
#include "mixtral/executor.hpp"
#include "mixtral/importance.hpp"
#include "mixtral/role.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

// True if encode_rows() writes this format; some are only read.
bool can_encode(BlockFormat format) noexcept;

// Encodes n_rows x n_cols float32, row after row, to `out`, which has room for n_rows rows of
// n_cols / block_size * block_bytes bytes. Of all encodings that are tried, each block gets the one
// with the least sum of importance[column] * error^2; `importance` has n_cols numbers, or is empty
// if all columns count alike. Takes no memory.
// Errors: invalid_argument, if a row is not a whole number of blocks, the format cannot be written, or
// a number is not finite or beyond what half precision holds (65504; F32 and BF16 take any finite).
Status encode_rows(BlockFormat format, const float* rows, std::size_t n_rows, std::size_t n_cols,
                   Span<const float> importance, std::uint8_t* out);

// A rule that gives every tensor of a model its format.
struct Quantization {
  const char* name;         // "Q4_K_M"
  BlockFormat base;         // of most tensors
  std::uint32_t file_type;  // general.file_type in GGUF
};

// All that write_gguf() knows, from large to small.
Span<const Quantization> quantizations() noexcept;

// By name, in upper or lower case; null if there is none. "Q3_K" means Q3_K_M, and so on.
const Quantization* find_quantization(std::string_view name) noexcept;

// What the mixture `type` gives a matrix of this role, if its rows are whole blocks of it. Vectors and
// routers, which stay float32, have none to ask for.
BlockFormat mixture_format(const Quantization& type, const Config& config, Role role,
                           std::uint32_t layer) noexcept;

struct QuantizeOptions {
  const Quantization* type = nullptr;  // required
  // Instead of what `type` says: for the output matrix, for the matrices of the experts.
  std::optional<BlockFormat> output_tensor_type;
  std::optional<BlockFormat> expert_type;
  // All tensors in the base format, as for a comparison of formats.
  bool pure = false;
  const Importance* importance = nullptr;
  // Threads to use; the default runs everything on the calling thread.
  Executor executor;
  std::pmr::memory_resource* memory = nullptr;  // null: the default resource
};

struct TensorReport {
  std::string_view name;
  BlockFormat from;
  BlockFormat to;
  bool fallback =
      false;  // `to` is not what was asked for, because rows are not whole blocks of that
  bool has_importance = false;
};

// Takes what write_gguf() writes, from the first byte to the last, on the calling thread.
class GgufSink {
 public:
  virtual ~GgufSink() = default;

  // False stops with ErrorCode::io.
  virtual bool write(Span<const std::uint8_t> bytes) = 0;

  // After each tensor.
  virtual void on_tensor(const TensorReport& report) { static_cast<void>(report); }

  // Every few megabytes of weights. False stops with ErrorCode::cancelled.
  virtual bool on_progress(std::uint64_t n_weights_done, std::uint64_t n_weights) {
    static_cast<void>(n_weights_done);
    static_cast<void>(n_weights);
    return true;
  }
};

// Writes `checkpoint` as one GGUF file of version 3. Vectors and routers stay float32; a tensor that
// has the right format already is copied. Beside the checkpoint, which stays mapped, memory for
// a few million weights is taken, however large the tensors.
// Errors: those of Model::from_checkpoint; invalid_argument, naming the tensor, as in encode_rows, or
// for options that make no sense; io, cancelled; unsupported, if a tokenizer.json's merges have no
// equivalent in GGUF; out_of_memory.
Status write_gguf(const Checkpoint& checkpoint, const QuantizeOptions& options, GgufSink& sink);

}  // namespace mixtral

#endif  // MIXTRAL_QUANTIZE_HPP_

#include "mixtral/implementation.hpp"
