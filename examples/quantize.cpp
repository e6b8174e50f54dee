// Writes a model of any layout as one GGUF file of any type.
#include "gguf_file.hpp"

namespace {

std::map<std::string, mixtral::BlockFormat> block_formats() {
  std::map<std::string, mixtral::BlockFormat> formats;
  for (const auto& type : mixtral::quantizations()) {
    formats[mixtral::block_format_info(type.base)->name] = type.base;
  }
  return formats;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Writes a model of any layout as one GGUF file.", "quantize"};
  std::string input, output, type_name, importance_path;
  mixtral::BlockFormat output_type{}, expert_type{};
  std::uint32_t threads = 0;
  bool force = false, pure = false;
  std::string known;
  for (const auto& type : mixtral::quantizations()) known += " " + std::string(type.name);
  const auto is_type = [&](const std::string& name) {
    return mixtral::find_quantization(name) != nullptr ? "" : "must be one of" + known;
  };
  const CLI::CheckedTransformer is_format(block_formats(), CLI::ignore_case);
  app.add_option("--input", input, "GGUF file or model folder")->required();
  app.add_option("--output", output, "The file to write")->required();
  app.add_option("--type", type_name, "One of" + known)->required()->check(is_type);
  CLI::Option* has_output_type =
      app.add_option("--output-tensor-type", output_type, "Format of the output matrix")
          ->transform(is_format);
  CLI::Option* has_expert_type =
      app.add_option("--expert-type", expert_type, "Format of the experts' matrices")
          ->transform(is_format);
  app.add_option("--importance", importance_path, "What score --importance has written");
  app.add_flag("--pure", pure, "All matrices in the same format, no mixture");
  app.add_option("--threads", threads, "Threads to use (default: all)")->check(CLI::Range(1, 1024));
  app.add_flag("--force", force, "Overwrite the output if it is a file that is there");

  return program::run(app, argc, argv, [&] {
    program::GgufFile file(output, force, {input, {importance_path}});
    const auto checkpoint = program::value(mixtral::open_checkpoint(input.c_str()));
    std::optional<mixtral::Importance> importance;
    if (!importance_path.empty()) {
      const auto bytes = program::value(mixtral::Bytes::map_file(importance_path.c_str()));
      auto read = mixtral::Importance::read({bytes.data(), bytes.size()}, checkpoint.config);
      if (!read) throw std::runtime_error("'" + importance_path + "': " + read.error().message());
      importance.emplace(*std::move(read));
    }
    auto pool = program::value(mixtral::ThreadPool::create(threads));
    mixtral::QuantizeOptions options;
    options.type = mixtral::find_quantization(type_name);
    if (*has_output_type) options.output_tensor_type = output_type;
    if (*has_expert_type) options.expert_type = expert_type;
    options.pure = pure;
    options.importance = importance ? &*importance : nullptr;
    options.executor = pool;

    const program::Stopwatch time;
    file.finish(mixtral::write_gguf(checkpoint, options, file));
    file.report(time.seconds(), importance.has_value());
  });
}
