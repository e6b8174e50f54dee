// Makes the table of what each block format loses on Gaussian numbers, beside another quantiser:
//
//   quantization_error --write gaussian.gguf        the numbers, as an F32 model
//   llama-quantize --pure gaussian.gguf q4.gguf Q4_K   ... and so on, with the other quantiser
//   quantization_error --peer q4.gguf ...           the table, with the other's losses
//
// Not a test: its figures are for the README. Errors are mean squares over the numbers' mean square.
#include <mixtral/checkpoints.hpp>
#include <mixtral/quantize.hpp>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>

namespace {

using mixtral::BlockFormat;
using mixtral::Role;

// A dense model of one layer whose matrices are Gaussian, as weights nearly are.
class GaussianModel {
 public:
  GaussianModel() : checkpoint(std::pmr::get_default_resource()) {
    mixtral::Config& config = checkpoint.config;
    config.dim = 512;
    config.n_layers = 1;
    config.n_heads = config.n_kv_heads = 8;
    config.head_size = 64;
    config.hidden_dim = 1024;
    config.vocab_size = 512;
    config.context_length = 128;
    add_vocabulary();
    add(Role::token_embedding, 512, 512);
    add(Role::output_norm, 1, 512);
    add(Role::output, 512, 512);
    add(Role::attention_norm, 1, 512);
    for (const Role role : {Role::wq, Role::wk, Role::wv, Role::wo}) add(role, 512, 512);
    add(Role::ffn_norm, 1, 512);
    add(Role::w1, 1024, 512);
    add(Role::w2, 512, 1024);
    add(Role::w3, 1024, 512);
  }

  mixtral::Checkpoint checkpoint;

 private:
  void add_vocabulary() {
    mixtral::Vocabulary& vocabulary = checkpoint.vocabulary;
    for (int id = 0; id < 512; ++id) {
      char text[16];
      const bool is_byte = id >= 3 && id < 259;
      std::snprintf(text, sizeof text, is_byte ? "<0x%02X>" : "<%d>",
                    static_cast<unsigned>(is_byte ? id - 3 : id));
      vocabulary.texts.emplace_back(text);
      const auto type = is_byte   ? mixtral::PieceType::byte
                        : id == 0 ? mixtral::PieceType::unknown
                        : id < 3  ? mixtral::PieceType::control
                                  : mixtral::PieceType::normal;
      vocabulary.pieces.push_back({vocabulary.texts.back(), 0.0f, type});
    }
  }

  void add(Role role, std::size_t rows, std::size_t cols) {
    std::normal_distribution<float> normal(0.0f, 0.02f);
    numbers_.emplace_back(rows * cols);
    for (float& x : numbers_.back()) x = normal(random_);
    mixtral::NamedTensor tensor{};
    tensor.role = role;
    tensor.name = mixtral::role_name(role);
    tensor.matrix.data = reinterpret_cast<const std::uint8_t*>(numbers_.back().data());
    tensor.matrix.rows = rows;
    tensor.matrix.cols = cols;
    tensor.matrix.row_bytes = cols * sizeof(float);
    checkpoint.tensors.push_back(tensor);
  }

  std::mt19937 random_{1};
  std::list<std::vector<float>> numbers_;
};

struct Sink : mixtral::GgufSink {
  bool write(mixtral::Span<const std::uint8_t> part) override {
    file.insert(file.end(), part.begin(), part.end());
    return true;
  }
  std::vector<std::uint8_t> file;
};

std::vector<float> decode(const mixtral::simd::Matrix& matrix) {
  std::vector<float> out(matrix.rows * matrix.cols);
  mixtral::simd::select_kernels()->decode_rows(matrix, 0, matrix.rows, out.data());
  return out;
}

// The loss of each format that a file has, over all its matrices.
std::map<BlockFormat, double> losses(const mixtral::Checkpoint& original, mixtral::Bytes file) {
  auto coded = mixtral::read_gguf({&file, 1}, std::pmr::get_default_resource());
  if (!coded) throw std::runtime_error(coded.error().message());
  std::map<BlockFormat, double> error, square;
  for (const auto& tensor : coded->tensors) {
    for (const auto& reference : original.tensors) {
      if (reference.role != tensor.role || tensor.matrix.rows == 1) continue;
      const auto x = decode(reference.matrix);
      const auto y = decode(tensor.matrix);
      if (x.size() != y.size()) throw std::runtime_error("the file is of another model");
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto a = static_cast<double>(x[i]), b = static_cast<double>(y[i]);
        error[tensor.matrix.format] += (a - b) * (a - b);
        square[tensor.matrix.format] += a * a;
      }
    }
  }
  for (auto& [format, sum] : error) sum /= square[format];
  return error;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"What each block format loses on Gaussian numbers."};
  std::string output;
  std::vector<std::string> peers;
  app.add_option("--write", output, "Write the numbers as a GGUF model of F32");
  app.add_option("--peer", peers, "Files quantised from that by another program");
  CLI11_PARSE(app, argc, argv);
  try {
    const GaussianModel model;
    mixtral::QuantizeOptions options;
    options.pure = true;
    const auto write = [&](const mixtral::Quantization& type) {
      options.type = &type;
      Sink sink;
      const auto status = mixtral::write_gguf(model.checkpoint, options, sink);
      if (!status) throw std::runtime_error(status.error().message());
      return sink.file;
    };
    if (!output.empty()) {
      const auto file = write(*mixtral::find_quantization("F32"));
      std::ofstream out(output, std::ios::binary);
      out.write(reinterpret_cast<const char*>(file.data()),
                static_cast<std::streamsize>(file.size()));
      return out.flush() ? 0 : 1;
    }
    std::map<BlockFormat, double> theirs;
    for (const std::string& path : peers) {
      auto bytes = mixtral::Bytes::map_file(path.c_str());
      if (!bytes) throw std::runtime_error(bytes.error().message());
      for (const auto& [format, loss] : losses(model.checkpoint, *std::move(bytes))) {
        theirs[format] = loss;
      }
    }
    std::printf(
        "| format | bits a weight | mixtral.hpp | other | ratio |\n|---|---|---|---|---|\n");
    std::map<BlockFormat, bool> done;
    for (const auto& type : mixtral::quantizations()) {
      if (done[type.base] || type.base == BlockFormat::f32) continue;
      done[type.base] = true;
      const auto file = write(type);
      const double ours =
          losses(model.checkpoint, mixtral::Bytes::view({file.data(), file.size()})).at(type.base);
      const auto& info = *mixtral::block_format_info(type.base);
      std::printf(
          "| %s | %.4g | %.3e |", info.name,
          8.0 * static_cast<double>(info.block_bytes) / static_cast<double>(info.block_size), ours);
      const auto other = theirs.find(type.base);
      if (other == theirs.end()) {
        std::printf(" | |\n");
      } else {
        std::printf(" %.3e | %.3f |\n", other->second, ours / other->second);
      }
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quantization_error: %s\n", error.what());
    return 1;
  }
}
