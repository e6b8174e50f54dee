// Writes a model of any layout as one GGUF file of any type.
#include "gguf_file.hpp"

int main(int argc, char** argv) {
  CLI::App app{"Writes a model of any layout as one GGUF file.", "quantize"};
  std::string input, output, importance_path;
  mixtral::QuantizeOptions options;
  std::uint32_t threads = 0;
  bool force = false;
  program::add_path(app, "--input", input, "GGUF file or model folder")->required();
  program::add_path(app, "--output", output, "The file to write")->required();
  program::add_type(app, options.type, "What to write: a format, or a mixture of formats")
      ->required();
  program::add_block_format(app, "--output-tensor-type", options.output_tensor_type,
                            "Format of the output matrix (default: as the type says)");
  program::add_block_format(app, "--expert-type", options.expert_type,
                            "Format of the experts' matrices (default: as the type says)");
  CLI::Option* with_importance = program::add_path(app, "--importance", importance_path,
                                                   "What score --importance has written");
  app.add_flag("--pure", options.pure, "All matrices in the same format, no mixture");
  program::add_threads(app, threads);
  app.add_flag("--force", force, "Overwrite the output if it is a file that is there");

  return program::run(app, argc, argv, [&] {
    program::GgufFile file(output, force, {input, {importance_path}});
    const auto checkpoint = program::value(mixtral::open_checkpoint(input.c_str()));
    std::optional<mixtral::Importance> importance;
    if (*with_importance) {
      const auto bytes = program::value(mixtral::Bytes::map_file(importance_path.c_str()));
      auto read = mixtral::Importance::read({bytes.data(), bytes.size()}, checkpoint.config);
      if (!read) throw std::runtime_error("'" + importance_path + "': " + read.error().message());
      importance.emplace(*std::move(read));
    }
    auto pool = program::value(mixtral::ThreadPool::create(threads));
    options.importance = importance ? &*importance : nullptr;
    options.executor = pool;

    const program::Stopwatch time;
    file.finish(mixtral::write_gguf(checkpoint, options, file));
    file.report(time.seconds(), importance.has_value());
  });
}
