// What complete and chat share: their options, and one generated text with its figures.
#ifndef MIXTRAL_EXAMPLES_ANSWER_HPP_
#define MIXTRAL_EXAMPLES_ANSWER_HPP_

#include <mixtral/json_schema.hpp>

#include <optional>
#include <random>

#include "program.hpp"

// The command line of programs that generate text.
struct AnswerFlags {
  std::string model = MIXTRAL_BUNDLED_MODEL;
  mixtral::GenerateOptions generate;
  mixtral::ModelOptions model_options;
  std::uint32_t threads = 0;
  std::uint32_t context = 0;
  mixtral::BlockFormat kv_format = mixtral::BlockFormat::f16;
  bool json = false;

  std::vector<std::string> choices;
  std::string regex, grammar_file, schema_file;
  mixtral::JsonSchemaOptions schema_options;

  // What the options let be generated; none of them, anything.
  mixtral::Result<mixtral::Grammar> grammar() const {
    if (!choices.empty()) {
      const std::vector<std::string_view> texts(choices.begin(), choices.end());
      return mixtral::Grammar::from_choices({texts.data(), texts.size()});
    }
    if (!regex.empty()) return mixtral::Grammar::from_regex(regex);
    if (!grammar_file.empty()) {
      return mixtral::Grammar::from_gbnf(program::read_file(grammar_file));
    }
    if (!schema_file.empty()) {
      return mixtral::json_schema_grammar(program::read_file(schema_file), schema_options);
    }
    return mixtral::Grammar();
  }

  mixtral::Result<mixtral::Model> open_model() const {
    return mixtral::open_model(model.c_str(), model_options);
  }

  void add_to(CLI::App& app) {
    generate.max_tokens = 256;
    mixtral::SamplingOptions& sampling = generate.sampling;
    sampling.temperature = 0.8f;
    sampling.min_p = 0.05f;
    sampling.seed = std::random_device()();
    app.add_option("--model", model, "GGUF file or model folder (default: the bundled tiny model)");
    program::add_model_options(app, model_options);
    app.add_option("--chat-format", model_options.chat_format,
                   "Instead of what the model itself implies")
        ->transform(CLI::CheckedTransformer(program::chat_formats()));
    app.add_option("--max-tokens", generate.max_tokens, "Tokens to generate at most")
        ->capture_default_str();
    app.add_option("--temperature", sampling.temperature, "0: greedy; more: more varied")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    app.add_option("--top-k", sampling.top_k, "Choose among the K likeliest tokens; 0: all")
        ->capture_default_str();
    app.add_option("--top-p", sampling.top_p, "Choose among the likeliest tokens of sum P; 1: all")
        ->capture_default_str()
        ->check(CLI::Range(0.0, 1.0));
    app.add_option("--min-p", sampling.min_p, "Choose among tokens P times as likely as the best")
        ->capture_default_str()
        ->check(CLI::Range(0.0, 1.0));
    app.add_option("--seed", sampling.seed, "The same seed gives the same text (default: random)");
    app.add_option("--stop", generate.stop, "End before this text appears; may be repeated")
        ->allow_extra_args(false)
        ->check([](const std::string& text) {
          return std::string(text.empty() ? "must not be empty" : "");
        });
    CLI::Option_group* rules = app.add_option_group("Rules", "What may be generated");
    rules->add_option("--choice", choices, "One of these texts; may be repeated")
        ->allow_extra_args(false);
    rules->add_option("--regex", regex, "What this regular expression matches");
    rules->add_option("--grammar", grammar_file, "What this file of GBNF says");
    CLI::Option* schema = rules->add_option("--json-schema", schema_file,
                                            "JSON that is valid under this file's schema");
    rules->require_option(0, 1);
    app.add_flag(
           "--json-blanks", schema_options.blanks,
           "Let that JSON have spaces and new lines (default: none, which takes fewer tokens)")
        ->needs(schema);
    app.add_option("--threads", threads, "Threads to use (default: all)")
        ->check(CLI::Range(1, 1024));
    app.add_option("--context", context, "Tokens that the session holds")
        ->check(CLI::PositiveNumber);
    program::add_kv_format(app, kv_format);
    app.add_flag("--json", json, "Print one JSON object instead of streaming the text");
  }
};

// A generated text and how long it took.
struct Answer {
  std::string text;
  std::vector<mixtral::Token> tokens;
  std::vector<double> log_probabilities;
  mixtral::StopReason stop_reason = mixtral::StopReason::none;
  std::uint64_t seed = 0;
  std::size_t prompt_tokens = 0;    // evaluated for this answer
  double prompt_seconds = 0.0;      // to evaluate them
  double generation_seconds = 0.0;  // from the first token to the last

  double prompt_rate() const {
    return prompt_seconds > 0.0 ? static_cast<double>(prompt_tokens) / prompt_seconds : 0.0;
  }
  // Of decoding: the first token comes from the prompt's evaluation.
  double generation_rate() const {
    return generation_seconds > 0.0 && tokens.size() > 1
               ? static_cast<double>(tokens.size() - 1) / generation_seconds
               : 0.0;
  }
};

// Evaluates what was appended to the session and generates; `show` gets the text as it comes.
template <class Show>
Answer generate_answer(mixtral::Session& session, std::size_t prompt_tokens,
                       const mixtral::GenerateOptions& options, Show&& show) {
  Answer answer;
  answer.seed = options.sampling.seed;
  answer.prompt_tokens = prompt_tokens;
  const program::Stopwatch prompt_time;
  const mixtral::Status evaluated = session.evaluate();
  answer.prompt_seconds = prompt_time.seconds();
  if (!evaluated) {
    if (evaluated.error().code() != mixtral::ErrorCode::cancelled) program::check(evaluated);
    answer.stop_reason = mixtral::StopReason::cancelled;
    return answer;
  }
  const auto take = [&](std::string_view piece) {
    answer.text += piece;
    show(piece);
  };
  mixtral::Generation generation = session.generate(options);
  program::Stopwatch generation_time;
  while (generation.next()) {
    if (answer.tokens.empty()) generation_time = program::Stopwatch();
    answer.tokens.push_back(generation.token());
    answer.log_probabilities.push_back(generation.log_probability());
    take(generation.piece());
    answer.generation_seconds = generation_time.seconds();
  }
  take(generation.piece());
  answer.stop_reason = generation.stop_reason();
  if (answer.stop_reason == mixtral::StopReason::error) {
    throw std::runtime_error(generation.error().message());
  }
  return answer;
}

inline nlohmann::json to_json(const Answer& answer) {
  return {{"text", answer.text},
          {"tokens", answer.tokens},
          {"log_probabilities", answer.log_probabilities},
          {"stop_reason", mixtral::stop_reason_name(answer.stop_reason)},
          {"seed", answer.seed},
          {"timings",
           {{"prompt_tokens", answer.prompt_tokens},
            {"prompt_seconds", answer.prompt_seconds},
            {"prompt_tokens_per_second", answer.prompt_rate()},
            {"generated_tokens", answer.tokens.size()},
            {"generation_seconds", answer.generation_seconds},
            {"generation_tokens_per_second", answer.generation_rate()}}},
          {"peak_memory_bytes", program::peak_memory()}};
}

// One line for people, on stderr.
inline void print_figures(const Answer& answer) {
  std::fprintf(
      stderr,
      "[prompt %zu tokens, %.1f/s; generated %zu tokens, %.1f/s; peak memory %s; seed %llu; "
      "%s]\n",
      answer.prompt_tokens, answer.prompt_rate(), answer.tokens.size(), answer.generation_rate(),
      program::in_units(program::peak_memory()).c_str(),
      static_cast<unsigned long long>(answer.seed), mixtral::stop_reason_name(answer.stop_reason));
}

#endif  // MIXTRAL_EXAMPLES_ANSWER_HPP_
