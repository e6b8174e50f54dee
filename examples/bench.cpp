// How fast a model runs on this machine, and how near to what the machine can do.
#include <algorithm>
#include <chrono>
#include <optional>
#include <random>

#include "gguf_file.hpp"
#include "limits.hpp"
#include "synthetic.hpp"

namespace {

using mixtral::Token;
using nlohmann::json;

// Seconds of each part, over all layers.
class Profile : public mixtral::Observer {
 public:
  bool wants_times() const override { return true; }
  bool wants_all_tokens() const override { return false; }  // as in the runs without a profile
  void on_time(mixtral::Part part, std::uint32_t, double seconds) override {
    seconds_[static_cast<std::size_t>(part)] += seconds;
  }
  json shares() const {
    static constexpr const char* kNames[mixtral::kParts] = {
        "embedding", "attention projections", "attention", "router", "experts", "output"};
    double total = 0.0;
    for (const double s : seconds_) total += s;
    json shares = json::object();
    for (std::size_t i = 0; i < mixtral::kParts; ++i) shares[kNames[i]] = seconds_[i] / total;
    return shares;
  }

 private:
  double seconds_[mixtral::kParts] = {};
};

// What one token takes.
struct Work {
  std::uint64_t decode_bytes = 0;       // of weights read for it, alone in its pass
  std::uint64_t prompt_parameters = 0;  // multiplied for it, if it is not the last of a prompt
  bool quantized = false;               // most of them with 8-bit numbers
};

Work work_of(const mixtral::Checkpoint& checkpoint) {
  const mixtral::Config& config = checkpoint.config;
  const bool tied = std::none_of(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                                 [](const auto& t) { return t.role == mixtral::Role::output; });
  Work work;
  for (const auto& tensor : checkpoint.tensors) {
    if (tensor.role == mixtral::Role::token_embedding && !tied) continue;
    const bool is_expert = tensor.role >= mixtral::Role::w1;
    if (is_expert && tensor.expert >= config.n_experts_used) continue;
    work.decode_bytes += tensor.matrix.bytes();
    const bool is_output =
        tensor.role == mixtral::Role::output || tensor.role == mixtral::Role::token_embedding;
    // The last layer has to give keys and values.
    const bool is_needed = tensor.role < mixtral::Role::wo || tensor.layer + 1 < config.n_layers;
    if (!is_output && is_needed && tensor.matrix.rows > 1) {
      work.prompt_parameters += std::uint64_t{tensor.matrix.rows} * tensor.matrix.cols;
    }
    if (tensor.role == mixtral::Role::w1) {
      work.quantized = mixtral::block_format_info(tensor.matrix.format)->quantized;
    }
  }
  return work;
}

constexpr program::Range<std::uint32_t> kTokens = {0, 1 << 20};

struct Plan {
  std::uint32_t prompt = 512, generate = 32, depth = 0, repeat = 5;
  double slice_ms = 0.0;
  std::uint32_t sessions = 1;
};

class Runner {
 public:
  Runner(mixtral::Session& session, const Plan& plan) : session_(session), plan_(plan) {}

  // Seconds for n tokens, all at once or one after the other.
  double run(std::uint32_t n, bool at_once, mixtral::Observer* observer = nullptr) {
    return timed(n, at_once, [&] { program::check(session_.evaluate(observer)); });
  }

  // The same in slices of time; those that each took are added to `slices`.
  double run_in_slices(std::uint32_t n, bool at_once, std::vector<double>& slices) {
    const std::chrono::nanoseconds budget(std::llround(plan_.slice_ms * 1e6));
    return timed(n, at_once, [&] {
      for (auto progress = mixtral::Progress::working; progress == mixtral::Progress::working;) {
        const program::Stopwatch time;
        progress = program::value(session_.advance(budget));
        slices.push_back(time.seconds());
      }
    });
  }

  // Tokens a second of several sessions that decode n tokens each, together.
  double run_together(std::uint32_t n) {
    std::vector<mixtral::Session> forks;
    std::vector<mixtral::Session*> sessions = {&session_};
    forks.reserve(plan_.sessions);
    while (sessions.size() < plan_.sessions) {
      forks.push_back(program::value(session_.fork()));
      sessions.push_back(&forks.back());
    }
    const program::Stopwatch time;
    for (std::uint32_t i = 0; i < n; ++i) {
      for (mixtral::Session* session : sessions) program::check(session->append(any_token()));
      program::check(mixtral::Session::evaluate_all({sessions.data(), sessions.size()}));
    }
    return n * plan_.sessions / time.seconds();
  }

  // To where the next measurement begins: an empty session, or one that is at its depth and stays.
  void prepare() {
    if (plan_.depth != 0) return;
    session_.clear();
  }

 private:
  Token any_token() {
    std::uniform_int_distribution<Token> any(
        3, static_cast<Token>(session_.model().config().vocab_size) - 1);
    return any(random_);
  }

  template <class Evaluate>
  double timed(std::uint32_t n, bool at_once, Evaluate evaluate) {
    std::vector<Token> tokens(n);
    for (Token& token : tokens) token = any_token();
    const program::Stopwatch time;
    for (std::size_t i = 0; i < n;) {
      const std::size_t count = at_once ? n : 1;
      program::check(session_.append(mixtral::Span<const Token>(tokens.data() + i, count)));
      evaluate();
      i += count;
    }
    return time.seconds();
  }

  mixtral::Session& session_;
  const Plan& plan_;
  std::mt19937 random_{1};
};

// How well slices of time were kept to, and what they cost.
json slice_summary(std::vector<double> slices, double budget, json ratios) {
  std::sort(slices.begin(), slices.end());
  const auto late = std::upper_bound(slices.begin(), slices.end(), budget * 1.25);
  const double n = static_cast<double>(slices.size());
  return {{"budget_seconds", budget},
          {"slices", slices.size()},
          {"within_125_percent", static_cast<double>(late - slices.begin()) / n},
          {"p99_seconds", slices[static_cast<std::size_t>(0.99 * (n - 1.0))]},
          {"longest_seconds", slices.back()},
          {"speed_of_unsliced", std::move(ratios)}};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2.0;
}

json summary(const std::vector<double>& rates) {
  const auto [least, most] = std::minmax_element(rates.begin(), rates.end());
  return {{"tokens_per_second", median(rates)}, {"least", *least}, {"most", *most}};
}

void write(const mixtral::Checkpoint& checkpoint, const mixtral::Quantization& type,
           const std::string& path, bool force) {
  program::GgufFile file(path, force, {});
  mixtral::QuantizeOptions options;
  options.type = &type;
  file.finish(mixtral::write_gguf(checkpoint, options, file));
}

void print(const json& report) {
  const auto number = [](const json& value) { return value.get<double>(); };
  std::printf("%s, %s, %zu threads, %s\n", report["model"].get_ref<const std::string&>().c_str(),
              program::in_units(report["weight_bytes"]).c_str(),
              report["threads"].get<std::size_t>(),
              report["target"].get_ref<const std::string&>().c_str());
  const json& limits = report["limits"];
  std::printf("machine   %.1f GB/s read, %.0f GOP/s int8, %.0f GFLOP/s float32\n",
              number(limits["read_bytes_per_second"]) / 1e9,
              number(limits["int8_ops_per_second"]) / 1e9,
              number(limits["f32_ops_per_second"]) / 1e9);
  std::printf("load      %.1f ms; first token after %.1f ms; peak memory %s, stated %s\n",
              number(report["load_seconds"]) * 1e3, number(report["first_token_seconds"]) * 1e3,
              program::in_units(report["peak_memory_bytes"]).c_str(),
              program::in_units(report["stated_memory_bytes"]).c_str());
  for (const char* part : {"prompt", "decode"}) {
    if (!report.contains(part)) continue;
    const json& figures = report[part];
    std::printf("%-9s %u tokens at depth %u: %.2f tokens/s (%.2f to %.2f), %.0f %% of %s\n", part,
                figures["tokens"].get<unsigned>(), report["depth"].get<unsigned>(),
                number(figures["tokens_per_second"]), number(figures["least"]),
                number(figures["most"]), number(figures["fraction_of_limit"]) * 100.0,
                figures["limit"].get_ref<const std::string&>().c_str());
    if (!figures.contains("profile")) continue;
    for (const auto& item : figures["profile"].items()) {
      std::printf("          %5.1f %%  %s\n", number(item.value()) * 100.0, item.key().c_str());
    }
  }
  if (report.contains("slices")) {
    const json& slices = report["slices"];
    std::printf(
        "slices    %zu of %.2f ms: %.2f %% within 1.25 of that, 99 %% within %.2f ms, the "
        "longest %.2f ms",
        slices["slices"].get<std::size_t>(), number(slices["budget_seconds"]) * 1e3,
        number(slices["within_125_percent"]) * 100.0, number(slices["p99_seconds"]) * 1e3,
        number(slices["longest_seconds"]) * 1e3);
    for (const auto& item : slices["speed_of_unsliced"].items()) {
      std::printf("; %s at %.1f %% of its speed", item.key().c_str(), number(item.value()) * 100.0);
    }
    std::printf("\n");
  }
  if (report.contains("sessions")) {
    const json& sessions = report["sessions"];
    std::printf("together  %u sessions: %.2f tokens/s (%.2f to %.2f), %.2f times one\n",
                sessions["sessions"].get<unsigned>(), number(sessions["tokens_per_second"]),
                number(sessions["least"]), number(sessions["most"]), number(sessions["ratio"]));
  }
}

// What runs need together has no bound, unlike each option.
std::uint32_t context_of(std::uint64_t n_tokens) {
  if (n_tokens <= std::numeric_limits<std::uint32_t>::max()) {
    return static_cast<std::uint32_t>(n_tokens);
  }
  throw std::runtime_error("these runs need a context of " + std::to_string(n_tokens) +
                           " tokens; ask for shorter or fewer ones");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Measures prompt and decode speed beside the limits of the machine.", "bench"};
  std::string path, shape, written;
  const mixtral::Quantization* type = mixtral::find_quantization("Q4_K_M");
  std::uint32_t threads = 0, n_layers = 0;
  Plan plan;
  mixtral::ModelOptions model_options;
  mixtral::BlockFormat kv_format = mixtral::BlockFormat::f16;
  bool as_json = false, profile = false, force = false;
  program::Names<std::string> shapes;
  for (const auto& item : program::model_shapes()) shapes.emplace_back(item.first, item.first);
  auto* source = app.add_option_group("Model", "One of these");
  program::add_path(*source, "--model", path, "GGUF file or model folder");
  CLI::Option* synthetic = program::add_choice(*source, "--synthetic", shape, shapes,
                                               "Random weights of these dimensions");
  source->require_option(1);
  program::add_number<std::uint32_t>(app, "--layers", n_layers, {1, 4096},
                                     "Layers of the synthetic model", "all")
      ->needs(synthetic);
  program::add_type(app, type, "Type of the synthetic model (default: Q4_K_M)")->needs(synthetic);
  CLI::Option* writes =
      program::add_path(app, "--write", written,
                        "Write the synthetic model to this GGUF file, measure nothing")
          ->needs(synthetic);
  app.add_flag("--force", force, "Overwrite the file of --write if it is there");
  program::add_threads(app, threads);
  program::add_number(app, "--prompt", plan.prompt, kTokens,
                      "Tokens of the prompt; 0 leaves it out");
  program::add_number(app, "--generate", plan.generate, kTokens,
                      "Tokens to decode; 0 leaves it out");
  program::add_number(app, "--depth", plan.depth, kTokens,
                      "Tokens that are there before; then runs go on from each other");
  program::add_number<std::uint32_t>(app, "--repeat", plan.repeat, {1, 1000},
                                     "Runs of each, of which the median counts");
  program::add_model_options(app, model_options);
  program::add_kv_format(app, kv_format);
  program::add_number(app, "--slice-ms", plan.slice_ms, {0.0, 60000.0, true},
                      "Also run in slices of so many milliseconds", "not");
  program::add_number<std::uint32_t>(app, "--sessions", plan.sessions, {2, 4096},
                                     "Also decode with so many sessions together", "not");
  app.add_flag("--profile", profile, "Tell the share of each part, in a run of its own");
  app.add_flag("--json", as_json, "Print one JSON object");

  return program::run(app, argc, argv, [&] {
    auto pool = program::value(mixtral::ThreadPool::create(threads));
    std::optional<program::SyntheticModel> random;
    std::optional<mixtral::Checkpoint> opened;
    program::Stopwatch load;
    if (*synthetic) {
      mixtral::Config config = program::model_shapes().at(shape);
      if (n_layers != 0) config.n_layers = n_layers;
      random.emplace(config, *type);
      if (*writes) return write(random->checkpoint, *type, written, force);
      load = program::Stopwatch();
    } else {
      opened = program::value(mixtral::open_checkpoint(path.c_str()));
    }
    mixtral::Checkpoint& checkpoint = random ? random->checkpoint : *opened;
    const Work work = work_of(checkpoint);
    const auto model =
        program::value(mixtral::Model::from_checkpoint(std::move(checkpoint), model_options));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.kv_format = kv_format;
    const std::uint64_t runs = plan.depth == 0 ? 1 : plan.repeat + (profile ? 1 : 0);
    const std::uint64_t each = (plan.slice_ms > 0.0 ? 2 : 1) * (plan.prompt + plan.generate) +
                               (plan.sessions > 1 ? plan.generate : 0);
    options.context = context_of(plan.depth + runs * each + 1);
    options.branches = plan.sessions;
    // The forks' own tokens, and the beginning that they share.
    options.kv_tokens =
        context_of(options.context + plan.sessions * std::uint64_t{plan.generate + 64});
    const std::uint64_t session_bytes =
        program::value(mixtral::Session::memory_needed(model, options));
    auto session = program::value(mixtral::Session::open(model, options));
    const double load_seconds = load.seconds();

    Runner runner(session, plan);
    const double first = runner.run(std::max(plan.prompt, 1u), true);
    session.clear();
    if (plan.depth != 0) runner.run(plan.depth, true);
    std::vector<double> prompts, decodes;
    std::vector<double> slices, prompt_ratios, decode_ratios, together, together_ratios;
    Profile of_prompt, of_decode;
    for (std::uint32_t i = 0; i < plan.repeat + (profile ? 1 : 0); ++i) {
      const bool profiled = i == plan.repeat;
      runner.prepare();
      if (plan.prompt != 0) {
        const double seconds = runner.run(plan.prompt, true, profiled ? &of_prompt : nullptr);
        if (!profiled) prompts.push_back(plan.prompt / seconds);
        if (!profiled && plan.slice_ms > 0.0) {
          runner.prepare();
          prompt_ratios.push_back(seconds / runner.run_in_slices(plan.prompt, true, slices));
        }
      }
      runner.prepare();
      if (plan.generate != 0) {
        const double seconds = runner.run(plan.generate, false, profiled ? &of_decode : nullptr);
        if (!profiled) decodes.push_back(plan.generate / seconds);
        if (!profiled && plan.slice_ms > 0.0) {
          runner.prepare();
          decode_ratios.push_back(seconds / runner.run_in_slices(plan.generate, false, slices));
        }
        if (!profiled && plan.sessions > 1) {
          runner.prepare();
          together.push_back(runner.run_together(plan.generate));
          together_ratios.push_back(together.back() / decodes.back());
        }
      }
    }
    const std::uint64_t memory = program::peak_memory();
    const program::Limits limits = program::measure_limits(pool);

    json report = {{"model", *synthetic ? shape + " " + type->name : path},
                   {"layers", model.config().n_layers},
                   {"threads", pool.concurrency()},
                   {"target", model.simd_target()},
                   {"weight_bytes", model.weight_bytes()},
                   {"decode_bytes_per_token", work.decode_bytes},
                   {"load_seconds", load_seconds},
                   {"first_token_seconds", first},
                   {"peak_memory_bytes", memory},
                   {"stated_memory_bytes", model.weight_bytes() + session_bytes},
                   {"depth", plan.depth},
                   {"limits",
                    {{"read_bytes_per_second", limits.read_bytes},
                     {"int8_ops_per_second", limits.int8_ops},
                     {"f32_ops_per_second", limits.f32_ops}}}};
    if (!prompts.empty()) {
      json figures = summary(prompts);
      const double ops = 2.0 * static_cast<double>(work.prompt_parameters) *
                         figures["tokens_per_second"].get<double>();
      figures["tokens"] = plan.prompt;
      figures["limit"] = work.quantized ? "int8 peak" : "float32 peak";
      figures["fraction_of_limit"] = ops / (work.quantized ? limits.int8_ops : limits.f32_ops);
      if (profile) figures["profile"] = of_prompt.shares();
      report["prompt"] = figures;
    }
    if (!decodes.empty()) {
      json figures = summary(decodes);
      figures["tokens"] = plan.generate;
      figures["limit"] = "read bandwidth";
      figures["fraction_of_limit"] = static_cast<double>(work.decode_bytes) *
                                     figures["tokens_per_second"].get<double>() / limits.read_bytes;
      if (profile) figures["profile"] = of_decode.shares();
      report["decode"] = figures;
    }
    if (!slices.empty()) {
      json ratios = json::object();
      if (!prompt_ratios.empty()) ratios["prompt"] = median(prompt_ratios);
      if (!decode_ratios.empty()) ratios["decode"] = median(decode_ratios);
      report["slices"] = slice_summary(slices, plan.slice_ms * 1e-3, ratios);
    }
    if (!together.empty()) {
      json figures = summary(together);
      figures["sessions"] = plan.sessions;
      figures["ratio"] = median(together_ratios);
      report["sessions"] = figures;
    }
    if (as_json) {
      std::cout << program::dump(report, 2) << '\n';
    } else {
      print(report);
    }
  });
}
