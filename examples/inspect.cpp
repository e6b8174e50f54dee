// What is in a model file, and what a model makes of given tokens.
#include <algorithm>
#include <filesystem>
#include <optional>

#include "output_file.hpp"
#include "router_stats.hpp"

namespace {

using nlohmann::json;

// Arrays longer than this are shown by their type and size.
constexpr std::uint64_t kLongArray = 16;

json to_json(const mixtral::gguf::Value& value) {
  using mixtral::gguf::ValueType;
  switch (value.type()) {
    case ValueType::boolean: return *value.as_bool();
    case ValueType::string: return std::string(*value.as_string());
    case ValueType::f32:
    case ValueType::f64: return *value.as_double();
    case ValueType::array: break;
    default:
      if (const auto unsigned_value = value.as_uint()) return *unsigned_value;
      return static_cast<std::int64_t>(*value.as_double());  // negative
  }
  if (value.size() > kLongArray) {
    return {{"type", mixtral::gguf::value_type_name(value.element_type())}, {"size", value.size()}};
  }
  json elements = json::array();
  value.for_each([&](std::uint64_t, const mixtral::gguf::Value& element) {
    elements.push_back(to_json(element));
    return true;
  });
  return elements;
}

json describe_tensor(std::string_view name, mixtral::BlockFormat format,
                     const std::vector<std::uint64_t>& shape, std::uint64_t bytes) {
  return {{"name", name},
          {"type", mixtral::block_format_info(format)->name},
          {"shape", shape},  // the row length first
          {"bytes", bytes}};
}

// Metadata and tensors of a GGUF file, all its parts together.
json describe_gguf(const std::pmr::vector<mixtral::Bytes>& parts) {
  json metadata = json::object(), tensors = json::array();
  for (const mixtral::Bytes& part : parts) {
    const auto file = program::value(
        mixtral::gguf::File::parse({part.data(), part.size()}, std::pmr::get_default_resource()));
    for (const auto& [key, value] : file.metadata()) {
      metadata.emplace(std::string(key), to_json(value));  // the first part's counts
    }
    for (const mixtral::gguf::Tensor& tensor : file.tensors()) {
      tensors.push_back(describe_tensor(
          tensor.name, tensor.format, {tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims},
          tensor.bytes));
    }
  }
  return {{"format", "GGUF"}, {"metadata", metadata}, {"tensors", tensors}};
}

// The same of a folder: its configuration, and the tensors as the model uses them.
json describe_folder(const mixtral::Checkpoint& checkpoint, const std::string& path) {
  json metadata = json::object(), tensors = json::array();
  const bool huggingface = checkpoint.config.head_order == mixtral::HeadOrder::halves;
  const auto given = std::filesystem::u8path(path);
  const auto file = std::filesystem::is_directory(given) ? given : given.parent_path();
  metadata = json::parse(
      program::read_file((file / (huggingface ? "config.json" : "params.json")).u8string()));
  for (const mixtral::NamedTensor& tensor : checkpoint.tensors) {
    const mixtral::simd::Matrix& matrix = tensor.matrix;
    std::vector<std::uint64_t> shape = {matrix.cols};
    if (matrix.rows > 1) shape.push_back(matrix.rows);
    tensors.push_back(describe_tensor(tensor.name, matrix.format, shape, matrix.bytes()));
  }
  return {{"format", huggingface ? "Hugging Face" : "original release"},
          {"metadata", metadata},
          {"tensors", tensors}};
}

json describe_model(const mixtral::Model& model, std::uint32_t context,
                    mixtral::BlockFormat kv_format) {
  const mixtral::Config& config = model.config();
  mixtral::SessionOptions options;
  options.context = context != 0 ? context : std::min(config.context_length, 4096u);
  options.kv_format = kv_format;
  const std::uint64_t session = program::value(mixtral::Session::memory_needed(model, options));
  return {{"config",
           {{"dim", config.dim},
            {"n_layers", config.n_layers},
            {"n_heads", config.n_heads},
            {"n_kv_heads", config.n_kv_heads},
            {"head_size", config.head_size},
            {"hidden_dim", config.hidden_dim},
            {"n_experts", config.n_experts},
            {"n_experts_used", config.n_experts_used},
            {"vocab_size", config.vocab_size},
            {"context_length", config.context_length},
            {"sliding_window", config.sliding_window},
            {"rope_theta", config.rope_theta},
            {"norm_epsilon", config.norm_epsilon}}},
          {"n_parameters", model.n_parameters()},
          {"n_active_parameters", model.n_active_parameters()},
          {"chat_format", mixtral::chat_format_name(model.chat_format())},
          {"simd_target", model.simd_target()},
          {"memory",
           {{"context", options.context},
            {"weight_bytes", model.weight_bytes()},
            {"session_bytes", session},
            {"total_bytes", model.weight_bytes() + session}}}};
}

// Keeps what an evaluation shows, in the order of positions.
class Recorder : public mixtral::Observer {
 public:
  bool wants_all_logits() const override { return true; }
  void on_logits(std::uint32_t position, mixtral::Span<const float> row) override {
    logits.insert(logits.end(), row.begin(), row.end());
    const auto best = std::max_element(row.begin(), row.end()) - row.begin();
    next.push_back(
        {{"position", position},
         {"best_next", best},
         {"log_probability", mixtral::log_probability(row, static_cast<mixtral::Token>(best))}});
  }
  void on_progress(const mixtral::Progress& progress) override {
    bar.update(progress.n_done, progress.n_total);
  }
  void on_router(std::uint32_t layer, std::uint32_t position,
                 mixtral::Span<const std::uint32_t> experts,
                 mixtral::Span<const float> weights) override {
    router.push_back({{"layer", layer},
                      {"position", position},
                      {"experts", std::vector<std::uint32_t>(experts.begin(), experts.end())},
                      {"weights", std::vector<float>(weights.begin(), weights.end())}});
  }

  std::vector<float> logits;
  json next = json::array();
  json router = json::array();
  program::ProgressBar bar{"reading the tokens"};
};

void evaluate(const mixtral::Model& model, const std::vector<mixtral::Token>& tokens,
              mixtral::BlockFormat kv_format, Recorder& recorder) {
  mixtral::SessionOptions options;
  options.kv_format = kv_format;
  options.context = static_cast<std::uint32_t>(
      std::min<std::size_t>(tokens.size(), std::numeric_limits<std::uint32_t>::max()));
  auto session = program::value(mixtral::Session::open(model, options));
  program::check(session.append({tokens.data(), tokens.size()}));
  program::check(session.evaluate(&recorder));
  recorder.bar.clear();
}

// Routes a whole text, in windows of the context.
void route(const mixtral::Model& model, const std::pmr::vector<mixtral::Token>& tokens,
           mixtral::BlockFormat kv_format, program::RouterStats& stats) {
  auto pool = program::value(mixtral::ThreadPool::create());
  mixtral::SessionOptions options;
  options.kv_format = kv_format;
  options.executor = pool;
  auto session = program::value(mixtral::Session::open(model, options));
  const mixtral::Token bos = model.tokenizer().bos();
  for (std::size_t at = 0; at < tokens.size();) {
    session.clear();
    if (bos != mixtral::kNoToken) program::check(session.append(bos));
    const auto n = std::min<std::size_t>(session.remaining(), tokens.size() - at);
    program::check(session.append({tokens.data() + at, n}));
    stats.bar().begin_window(at, n);
    program::check(session.evaluate(&stats));
    at += n;
  }
}

std::string little_endian(const std::vector<float>& values) {
  std::string bytes;
  bytes.reserve(values.size() * 4);
  for (const float value : values) {
    std::uint32_t bits;
    static_assert(sizeof bits == sizeof value, "IEEE float");
    std::memcpy(&bits, &value, sizeof bits);
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(bits >> shift & 0xff);
  }
  return bytes;
}

void finish(program::OutputFile& file, const std::string& bytes) {
  file.write(bytes);
  file.finish();
}

void print_table(const json& report) {
  std::cout << report["format"].get_ref<const std::string&>() << "\n\nmetadata\n";
  for (const auto& [key, value] : report["metadata"].items()) {
    std::cout << "  " << key << " = " << program::dump(value) << '\n';
  }
  std::cout << "\ntensors (type, bytes, shape with the row length first, name)\n";
  for (const json& tensor : report["tensors"]) {
    char start[64];
    std::snprintf(start, sizeof start, "  %-5s %12llu  ",
                  tensor["type"].get_ref<const std::string&>().c_str(),
                  tensor["bytes"].get<unsigned long long>());
    std::cout << start << program::dump(tensor["shape"]) << "  "
              << tensor["name"].get_ref<const std::string&>() << '\n';
  }
  std::cout << "\nmodel\n";
  for (const auto& [key, value] : report["config"].items()) {
    std::cout << "  " << key << " = " << value << '\n';
  }
  const json& memory = report["memory"];
  std::cout << "\n  parameters        " << report["n_parameters"] << "\n  active per token  "
            << report["n_active_parameters"] << "\n  chat format       "
            << report["chat_format"].get_ref<const std::string&>() << "\n  SIMD target       "
            << report["simd_target"].get_ref<const std::string&>() << "\n\nmemory for a context of "
            << memory["context"] << " tokens\n  weights (mapped)  "
            << program::in_units(memory["weight_bytes"]) << "\n  session           "
            << program::in_units(memory["session_bytes"]) << "\n  total             "
            << program::in_units(memory["total_bytes"]) << '\n';
  if (!report.contains("tokens")) return;
  std::cout << "\nlikeliest next token\n";
  for (const json& row : report["tokens"]) {
    std::cout << "  after position " << row["position"] << ": " << row["best_next"]
              << "  ln p = " << row["log_probability"] << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Shows what a model file holds and what it needs.", "inspect"};
  std::string path, logits_path, router_path, stats_path, text, text_path;
  std::vector<mixtral::Token> tokens;
  std::uint32_t context = 0;
  mixtral::BlockFormat kv_format = mixtral::BlockFormat::f16;
  bool as_json = false, force = false;
  program::add_path(app, "--model", path, "GGUF file or model folder")->required();
  program::add_kv_format(app, kv_format);
  program::add_number(app, "--context", context, program::at_least(1u),
                      "Tokens of context to state the memory for",
                      "the model's context, 4096 at most");
  CLI::Option* with_tokens =
      program::add_numbers(app, "--tokens", tokens, "Token ids to evaluate: 1,2,3");
  CLI::Option* with_logits =
      program::add_path(app, "--logits", logits_path,
                        "Write the logits for every position: rows of little-endian float32")
          ->needs(with_tokens);
  CLI::Option* with_router =
      program::add_path(
          app, "--router", router_path,
          "Write the experts chosen for each layer and token, with their weights, as JSON")
          ->needs(with_tokens);
  CLI::Option_group* source = app.add_option_group("Text", "What --router-stats is about");
  source->add_option("--text", text, "A text");
  CLI::Option* with_text_file =
      program::add_path(*source, "--text-file", text_path, "A file with the text");
  source->require_option(0, 1);
  CLI::Option* with_stats = program::add_path(
      app, "--router-stats", stats_path,
      "Draw, as SVG, how the text's tokens use the experts of each layer, and keep them");
  app.add_flag("--force", force, "Overwrite what is to be written if it is there");
  app.final_callback([&] {  // each needs the other
    const bool has_text = source->count_all() != 0;
    if (with_stats->count() != 0 && !has_text) {
      throw CLI::ValidationError("--router-stats", "needs --text or --text-file");
    }
    if (with_stats->count() == 0 && has_text) {
      throw CLI::ValidationError("--text, --text-file", "need --router-stats");
    }
  });
  app.add_flag("--json", as_json, "Print one JSON object");

  return program::run(app, argc, argv, [&] {
    std::optional<program::OutputFile> logits, router, router_stats;
    const program::Inputs inputs{path, {text_path}};
    if (*with_logits) logits.emplace(logits_path, force, inputs);
    if (*with_router) router.emplace(router_path, force, inputs);
    if (*with_stats) router_stats.emplace(stats_path, force, inputs);
    if (logits && router) router->check_differs(*logits);
    if (logits && router_stats) router_stats->check_differs(*logits);
    if (router && router_stats) router_stats->check_differs(*router);
    auto checkpoint = program::value(mixtral::open_checkpoint(path.c_str()));
    const mixtral::Bytes& first = checkpoint.files[0];
    json report = mixtral::gguf::File::recognises({first.data(), first.size()})
                      ? describe_gguf(checkpoint.files)
                      : describe_folder(checkpoint, path);
    const auto model = program::value(mixtral::Model::from_checkpoint(std::move(checkpoint)));
    report.update(describe_model(model, context, kv_format));
    if (!tokens.empty()) {
      Recorder recorder;
      evaluate(model, tokens, kv_format, recorder);
      if (logits) finish(*logits, little_endian(recorder.logits));
      if (router) finish(*router, program::dump(recorder.router) + '\n');
      report["tokens"] = std::move(recorder.next);
    }
    if (router_stats) {
      const auto text_tokens = program::value(
          model.tokenizer().encode(*with_text_file ? program::read_file(text_path) : text));
      program::RouterStats stats(model.config(), text_tokens.size());
      route(model, text_tokens, kv_format, stats);
      finish(*router_stats, stats.svg());
      report["router_stats"] = stats.json();
    }
    if (as_json) {
      std::cout << program::dump(report, 2) << '\n';
    } else {
      print_table(report);
    }
  });
}
