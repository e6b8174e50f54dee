// What complete and chat share: their options, and one generated text with its figures.
#ifndef MIXTRAL_EXAMPLES_ANSWER_HPP_
#define MIXTRAL_EXAMPLES_ANSWER_HPP_

#include <mixtral/json_schema.hpp>

#include <optional>
#include <random>

#include "bundled_model.hpp"
#include "program.hpp"

// The command line of programs that generate text.
struct AnswerFlags {
  std::string model;
  mixtral::GenerateOptions generate;
  mixtral::ModelOptions model_options;
  std::uint32_t threads = 0;
  std::uint32_t context = 0;
  mixtral::BlockFormat kv_format = mixtral::BlockFormat::f16;
  bool json = false;

  std::vector<std::string> choices;
  std::string regex, grammar_file, schema_file;
  // Their options: an empty text that is given is a rule, too.
  const CLI::Option *with_regex = nullptr, *with_grammar = nullptr, *with_schema = nullptr;
  mixtral::JsonSchemaOptions schema_options;

  // What the options let be generated; none of them, anything.
  mixtral::Result<mixtral::Grammar> grammar() const {
    if (!choices.empty()) {
      const std::vector<std::string_view> texts(choices.begin(), choices.end());
      return mixtral::Grammar::from_choices({texts.data(), texts.size()});
    }
    if (*with_regex) return mixtral::Grammar::from_regex(regex);
    if (*with_grammar) {
      return mixtral::Grammar::from_gbnf(program::read_file(grammar_file));
    }
    if (*with_schema) {
      return mixtral::json_schema_grammar(program::read_file(schema_file), schema_options);
    }
    return mixtral::Grammar();
  }

  mixtral::Model open_model() const { return program::open_model(model, model_options); }

  // `standard_context` says in help what `context` is if it is not given.
  void add_to(CLI::App& app, const std::string& standard_context) {
    generate.max_tokens = 256;
    mixtral::SamplingOptions& sampling = generate.sampling;
    sampling.temperature = 0.8f;
    sampling.min_p = 0.05f;
    sampling.seed = std::random_device()();
    program::add_model_or_bundled(app, model);
    program::add_model_options(app, model_options);
    program::add_chat_format(app, model_options.chat_format);
    program::add_number(app, "--max-tokens", generate.max_tokens, program::at_least(0u),
                        "Tokens to generate at most");
    program::add_number(app, "--temperature", sampling.temperature, {0.0f, 1000.0f},
                        "0: greedy; more: more varied");
    program::add_number(app, "--top-k", sampling.top_k, program::at_least(0u),
                        "Choose among the K likeliest tokens; 0: all");
    program::add_number(app, "--top-p", sampling.top_p, {0.0f, 1.0f},
                        "Choose among the likeliest tokens of sum P; 1: all");
    program::add_number(app, "--min-p", sampling.min_p, {0.0f, 1.0f},
                        "Choose among tokens P times as likely as the best");
    program::add_number(app, "--seed", sampling.seed, program::at_least(std::uint64_t{0}),
                        "The same seed gives the same text", "random");
    app.add_option("--stop", generate.stop, "End before this text appears; may be repeated")
        ->allow_extra_args(false)
        ->check([](const std::string& text) {
          return std::string(text.empty() ? "must not be empty" : "");
        });
    CLI::Option_group* rules = app.add_option_group("Rules", "What may be generated");
    rules->add_option("--choice", choices, "One of these texts; may be repeated")
        ->allow_extra_args(false);
    with_regex = rules->add_option("--regex", regex, "What this regular expression matches");
    with_grammar =
        program::add_path(*rules, "--grammar", grammar_file, "What this file of GBNF says");
    CLI::Option* schema = program::add_path(*rules, "--json-schema", schema_file,
                                            "JSON that is valid under this file's schema");
    with_schema = schema;
    rules->require_option(0, 1);
    app.add_flag("--json-blanks", schema_options.blanks,
                 "Allow spaces and new lines in the JSON of --json-schema (costs tokens)")
        ->needs(schema);
    program::add_threads(app, threads);
    program::add_number(app, "--context", context, program::at_least(1u),
                        "Tokens that the session holds", standard_context);
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

// Evaluates what was appended to the session and generates; `show` gets the text as it comes. A cancel()
// of the session from now on ends it.
template <class Show>
Answer generate_answer(mixtral::Session& session, std::size_t prompt_tokens,
                       const mixtral::GenerateOptions& options, Show&& show) {
  Answer answer;
  answer.seed = options.sampling.seed;
  answer.prompt_tokens = prompt_tokens;
  mixtral::Generation generation = session.generate(options);
  if (generation.stop_reason() == mixtral::StopReason::error) {
    throw std::runtime_error(generation.error().message());
  }
  const program::Stopwatch prompt_time;
  program::EvaluationBar bar("reading the prompt");
  const mixtral::Status evaluated = session.evaluate(&bar);
  bar.clear();
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
