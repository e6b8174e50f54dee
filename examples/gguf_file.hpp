// A GGUF file being written, with a progress bar.
#ifndef MIXTRAL_EXAMPLES_GGUF_FILE_HPP_
#define MIXTRAL_EXAMPLES_GGUF_FILE_HPP_

#include <atomic>
#include <filesystem>
#include <mixtral/quantize.hpp>

#include "program.hpp"

namespace program {

// A file under a temporary name, which becomes `path` by finish() and vanishes otherwise.
class GgufFile : public mixtral::GgufSink {
 public:
  // Writing ends when `interrupted` turns true.
  explicit GgufFile(const std::string& path, const std::atomic<bool>* interrupted = nullptr)
      : path_(std::filesystem::u8path(path)),
        temporary_(std::filesystem::u8path(path + ".part")),
        bar_("writing"),
        interrupted_(interrupted) {
    file_.open(temporary_, std::ios::binary | std::ios::trunc);
    if (!file_) throw std::runtime_error("cannot write '" + temporary_.u8string() + "'");
  }
  ~GgufFile() override {
    if (finished_) return;
    file_.close();
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  bool write(mixtral::Span<const std::uint8_t> bytes) override {
    file_.write(reinterpret_cast<const char*>(bytes.data()),
                static_cast<std::streamsize>(bytes.size()));
    size_ += bytes.size();
    return static_cast<bool>(file_);
  }
  void on_tensor(const mixtral::TensorReport& report) override {
    ++n_tensors_;
    n_fallbacks_ += report.fallback ? 1 : 0;
    n_with_importance_ += report.has_importance ? 1 : 0;
    requantized_ |= report.from != report.to && mixtral::block_format_info(report.from)->quantized;
  }
  bool on_progress(std::uint64_t done, std::uint64_t total) override {
    n_weights_ = total;
    bar_.update(done, total);
    return interrupted_ == nullptr || !*interrupted_;
  }

  void finish() {
    file_.close();
    if (!file_) throw std::runtime_error("cannot write '" + temporary_.u8string() + "'");
    std::filesystem::rename(temporary_, path_);
    finished_ = true;
  }

  void report(double seconds, bool with_importance) {
    bar_.clear();
    std::fprintf(stderr, "%s, %.2f bits a weight, %zu tensors, %.1f s\n", in_units(size_).c_str(),
                 8.0 * static_cast<double>(size_) / static_cast<double>(n_weights_), n_tensors_,
                 seconds);
    if (with_importance) std::fprintf(stderr, "%zu tensors had importance\n", n_with_importance_);
    if (n_fallbacks_ != 0) {
      std::fprintf(stderr, "%zu tensors got another format: their rows are not whole blocks\n",
                   n_fallbacks_);
    }
    if (requantized_) {
      std::fprintf(
          stderr, "note: the input was quantised already; from F16 or BF16 the result is better\n");
    }
  }

 private:
  std::filesystem::path path_, temporary_;
  std::ofstream file_;
  ProgressBar bar_;
  const std::atomic<bool>* interrupted_;
  std::uint64_t size_ = 0, n_weights_ = 0;
  std::size_t n_tensors_ = 0, n_fallbacks_ = 0, n_with_importance_ = 0;
  bool requantized_ = false, finished_ = false;
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_GGUF_FILE_HPP_
