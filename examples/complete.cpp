// Continues a text.
#include <algorithm>

#include "answer.hpp"

int main(int argc, char** argv) {
  CLI::App app{"Continues a text with a Mixtral, Mistral or Llama 2 model.", "complete"};
  AnswerFlags flags;
  flags.add_to(app, "as many as the text can take");
  std::string prompt, prompt_file;
  CLI::Option_group* source = app.add_option_group("Prompt", "One of these");
  source->add_option("--prompt", prompt, "The text to continue");
  CLI::Option* with_file =
      program::add_path(*source, "--prompt-file", prompt_file, "A file with the text to continue");
  source->require_option(1);

  return program::run(app, argc, argv, [&] {
    if (*with_file) prompt = program::read_file(prompt_file);
    flags.generate.grammar = program::value(flags.grammar());
    const program::Stopwatch load_time;
    const mixtral::Model model = flags.open_model();
    const double load_seconds = load_time.seconds();

    mixtral::EncodeOptions with_bos;
    with_bos.bos = model.tokenizer().add_bos();
    const auto tokens = program::value(model.tokenizer().encode(prompt, with_bos));

    auto pool = program::value(mixtral::ThreadPool::create(flags.threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.kv_format = flags.kv_format;
    // Just as much context as this text can need.
    const std::uint64_t longest = tokens.size() + std::uint64_t{flags.generate.max_tokens};
    options.context = flags.context != 0 ? flags.context
                                         : static_cast<std::uint32_t>(std::min<std::uint64_t>(
                                               longest, model.config().context_length));
    auto session = program::value(mixtral::Session::open(model, options));
    program::check(session.append({tokens.data(), tokens.size()}));

    Answer answer;
    bool shown = false;
    try {
      answer = generate_answer(session, tokens.size(), flags.generate, [&](std::string_view piece) {
        if (flags.json || piece.empty()) return;
        std::cout << piece << std::flush;
        shown = true;
      });
    } catch (...) {
      if (shown) std::cout << std::endl;  // the error begins a line of its own
      throw;
    }
    if (flags.json) {
      nlohmann::json json = to_json(answer);
      json["timings"]["load_seconds"] = load_seconds;
      std::cout << program::dump(json) << '\n';
    } else {
      std::cout << std::endl;
      print_figures(answer);
    }
  });
}
