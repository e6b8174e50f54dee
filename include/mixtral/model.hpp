// An opened model: immutable, shared by any number of sessions on any threads.
#ifndef MIXTRAL_MODEL_HPP_
#define MIXTRAL_MODEL_HPP_

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>

#include "mixtral/bytes.hpp"
#include "mixtral/chat.hpp"
#include "mixtral/checkpoint.hpp"
#include "mixtral/config.hpp"
#include "mixtral/error.hpp"
#include "mixtral/progress.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

struct ModelOptions {
  // Where all memory comes from; null means std::pmr::get_default_resource(). It must outlive the
  // model and its sessions and be safe to use from every thread that uses them.
  std::pmr::memory_resource* memory = nullptr;
  // Highway target bits to choose from (HWY_AVX2 | HWY_SSSE3 ...); 0 means the best there is.
  std::int64_t simd_targets = 0;
  // For lock-step games and replays: only SIMD targets whose results are the same bits, so that the same
  // build gives the same tokens on other CPUs. Those are the ones that multiply and add in one step:
  // AVX2 and all later ones of x86, and those of aarch64 and RISC-V. Others (SSE, WebAssembly) are refused,
  // unless MIXTRAL_STRICT_EVERYWHERE was defined where the kernels are: then they do it in software.
  bool strict = false;
  // Round what BF16 weights are multiplied with to BF16, as the reference does when it runs in BF16: CPUs
  // with instructions for it (Zen 4, Sapphire Rapids and later) take up to half the time in prompts.
  // Logits move by about as much as they do when the weights are rounded to BF16. Other formats are
  // not concerned.
  bool bf16_activations = false;
  // Copy the weights from the mapped file to `memory`. That takes their size there (up to 2 % more), is not
  // shared with other processes, and delays the start; they are then in the order that the SIMD target
  // reads fastest and, on Linux, in large pages. Results are the same bits.
  bool copy_weights = false;
  // Told, on the calling thread, how many bytes of the weights were copied of how many, from 0 on; opening
  // ends with ErrorCode::cancelled when it returns false. Without copy_weights opening reads little, so
  // that there is nothing to tell: weights are then read from the file when they are first needed, and
  // Observer::on_progress() tells how far the evaluation is.
  ProgressListener progress;
  // Instead of what the file says or implies. GGUF files of Mistral 7B v0.1 do not tell its sliding
  // window of 4096 tokens; 0 is none.
  std::optional<ChatFormat> chat_format;
  std::optional<std::uint32_t> sliding_window;
};

namespace detail {
struct ModelData;
}

// A handle; copies share the same model, which lives as long as any handle or session.
class Model {
 public:
  // Maps the GGUF file at `path` (UTF-8), the first part if it has several, and checks it; weights
  // are not copied. For other formats than GGUF see mixtral/checkpoints.hpp.
  // Errors: io; bad_format or unsupported, naming the key or tensor; out_of_memory; cancelled.
  static Result<Model> open(const char* path, const ModelOptions& options = {});

  // The same from bytes that the host has: Bytes::view() of memory, Bytes::read_all() by callback.
  static Result<Model> from_bytes(Bytes bytes, const ModelOptions& options = {});

  // From what a reader of any file format gives.
  static Result<Model> from_checkpoint(Checkpoint checkpoint, const ModelOptions& options = {});

  const Config& config() const noexcept;
  const Tokenizer& tokenizer() const noexcept;
  ChatFormat chat_format() const noexcept;

  std::uint64_t n_parameters() const noexcept;
  std::uint64_t n_active_parameters() const noexcept;  // multiplied with one token
  std::uint64_t weight_bytes() const noexcept;         // of all tensors in the file
  const char* simd_target() const noexcept;            // the Highway target in use, "AVX2" ...

 private:
  friend class Session;
  friend class GrammarMatcher;
  explicit Model(std::shared_ptr<const detail::ModelData> data) noexcept;
  std::shared_ptr<const detail::ModelData> data_;
};

}  // namespace mixtral

#endif  // MIXTRAL_MODEL_HPP_
