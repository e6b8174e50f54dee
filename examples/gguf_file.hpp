// A GGUF file being written, with a progress bar.
#ifndef MIXTRAL_EXAMPLES_GGUF_FILE_HPP_
#define MIXTRAL_EXAMPLES_GGUF_FILE_HPP_

#include <mixtral/quantize.hpp>

#include "output_file.hpp"
#include "program.hpp"

namespace program {

// Which type of file to write.
inline CLI::Option* add_type(CLI::App& app, const mixtral::Quantization*& type,
                             const std::string& description) {
  Names<const mixtral::Quantization*> names;
  for (const auto& each : mixtral::quantizations()) names.emplace_back(each.name, &each);
  const auto find = [](const std::string& text) -> std::optional<const mixtral::Quantization*> {
    const auto* found = mixtral::find_quantization(plain_name(text));  // "Q3_K", too
    return found == nullptr ? std::nullopt : std::optional<const mixtral::Quantization*>(found);
  };
  return add_choice(app, "--type", type, names, description, find);
}

// Which format matrices are to have.
inline CLI::Option* add_block_format(CLI::App& app, const std::string& option,
                                     std::optional<mixtral::BlockFormat>& format,
                                     const std::string& description) {
  Names<mixtral::BlockFormat> names;
  for (const auto& each : mixtral::detail::kBlockFormats) {
    if (mixtral::can_encode(each.format)) names.emplace_back(each.info.name, each.format);
  }
  return add_choice(app, option, format, names, description);
}

class GgufFile : public mixtral::GgufSink {
 public:
  // Errors: as OutputFile, whose arguments these are.
  GgufFile(const std::string& path, bool force, const Inputs& inputs)
      : file_(path, force, inputs), bar_("writing") {}

  bool write(mixtral::Span<const std::uint8_t> bytes) override {
    try {
      file_.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    } catch (const std::runtime_error& error) {
      error_ = error.what();
      return false;
    }
    size_ += bytes.size();
    return true;
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
    return true;
  }

  // `written` is what write_gguf() returned. Throws its error, or rather the system's that led to it.
  void finish(const mixtral::Status& written) {
    if (!error_.empty()) throw std::runtime_error(error_);
    check(written);
    file_.finish();
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
  OutputFile file_;
  std::string error_;  // why write() failed
  ProgressBar bar_;
  std::uint64_t size_ = 0, n_weights_ = 0;
  std::size_t n_tensors_ = 0, n_fallbacks_ = 0, n_with_importance_ = 0;
  bool requantized_ = false;
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_GGUF_FILE_HPP_
