// How likely a model finds a text: perplexity and the log-probability of each token.
#include <algorithm>
#include <cmath>
#include <mixtral/quantize.hpp>
#include <optional>

#include "output_file.hpp"
#include "program.hpp"

namespace {

using mixtral::Token;

// Reads off, while a window of the text is evaluated, what the model thought of each next token.
class Scorer : public mixtral::Observer {
 public:
  // The window is BOS and the tokens [begin, end) of the text; `scores` has ln p of those before.
  Scorer(mixtral::Span<const Token> text, std::size_t begin, std::size_t end,
         std::vector<double>& scores, program::TextBar& bar, mixtral::Importance* importance)
      : text_(text),
        begin_(begin),
        end_(end),
        scores_(scores),
        bar_(bar),
        importance_(importance) {}

  bool wants_all_logits() const override { return true; }
  void on_logits(std::uint32_t position, mixtral::Span<const float> logits) override {
    const std::size_t next = begin_ + position;
    if (next < scores_.size() || next >= end_) return;
    scores_.push_back(mixtral::log_probability(logits, text_[next]));
  }
  void on_progress(const mixtral::Progress& progress) override { bar_.update(progress); }

  bool wants_inputs() const override { return importance_ != nullptr; }
  void on_input(mixtral::Role role, std::uint32_t layer, std::uint32_t expert,
                mixtral::Span<const float> input) override {
    importance_->on_input(role, layer, expert, input);
  }

 private:
  mixtral::Span<const Token> text_;
  std::size_t begin_, end_;
  std::vector<double>& scores_;
  program::TextBar& bar_;
  mixtral::Importance* importance_;
};

// ln p of every token. A text longer than the session is scored in windows that overlap by half, so
// that each token sees at least half a window before it, except at the beginning.
std::vector<double> score(mixtral::Session& session, mixtral::Span<const Token> text, Token bos,
                          mixtral::Importance* importance) {
  program::TextBar bar("scoring", text.size());
  std::vector<double> scores;
  const std::size_t room = session.context() - 1;
  for (std::size_t begin = 0; scores.size() < text.size(); begin += (room + 1) / 2) {
    const std::size_t end = std::min(begin + room, text.size());
    bar.begin_window(scores.size(), end - scores.size());
    Scorer scorer(text, begin, end, scores, bar, importance);
    session.clear();
    program::check(session.append(bos));
    program::check(session.append(text.subspan(begin, end - begin)));
    program::check(session.evaluate(&scorer));
  }
  return scores;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Scores a text: perplexity and the log-probability of each token.", "score"};
  std::string model_path, text_path, importance_path;
  std::uint32_t threads = 0, context = 0;
  mixtral::BlockFormat kv_format = mixtral::BlockFormat::f16;
  bool json = false, force = false;
  program::add_path(app, "--model", model_path, "GGUF file or model folder")->required();
  program::add_path(app, "--file", text_path, "The file with the text")->required();
  program::add_threads(app, threads);
  program::add_number(app, "--context", context, program::at_least(2u),
                      "Tokens of a window, for texts that are longer",
                      "the model's context, 4096 at most");
  program::add_kv_format(app, kv_format);
  CLI::Option* with_importance =
      program::add_path(app, "--importance", importance_path,
                        "Write here how much each column of the matrices mattered, for quantize");
  app.add_flag("--force", force, "Overwrite the file of --importance if it is there");
  app.add_flag("--json", json, "Print one JSON object");

  return program::run(app, argc, argv, [&] {
    std::optional<program::OutputFile> output;
    if (*with_importance) {
      output.emplace(importance_path, force, program::Inputs{model_path, {text_path}});
    }
    const std::string text = program::read_file(text_path);
    const mixtral::Model model = program::open_model(model_path);
    const mixtral::Tokenizer& tokenizer = model.tokenizer();
    if (tokenizer.bos() == mixtral::kNoToken)
      throw std::runtime_error("the model has no BOS token");
    const auto tokens = program::value(tokenizer.encode(text));
    if (tokens.empty()) throw std::runtime_error("'" + text_path + "' has no token to score");

    auto pool = program::value(mixtral::ThreadPool::create(threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.context = context;
    options.kv_format = kv_format;
    auto session = program::value(mixtral::Session::open(model, options));
    const program::Stopwatch time;
    mixtral::Importance importance(model.config());
    const std::vector<double> scores = score(session, {tokens.data(), tokens.size()},
                                             tokenizer.bos(), output ? &importance : nullptr);
    const double seconds = time.seconds();
    if (output) {
      const auto bytes = program::value(importance.to_gguf());
      output->write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
      output->finish();
    }

    double sum = 0.0;
    for (const double s : scores) sum += s;
    const double mean = sum / static_cast<double>(scores.size());
    const double perplexity = std::exp(-mean);
    if (json) {
      nlohmann::json list = nlohmann::json::array();
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const Token token = tokens[i];
        list.push_back({{"id", token},
                        {"piece", tokenizer.piece(token).text},
                        {"log_probability", scores[i]}});
      }
      std::cout << program::dump({{"perplexity", perplexity},
                                  {"mean_log_probability", mean},
                                  {"n_scored", scores.size()},
                                  {"tokens", list},
                                  {"seconds", seconds}})
                << '\n';
      return;
    }
    for (std::size_t i = 0; i < scores.size(); ++i) {
      char number[32];
      std::snprintf(number, sizeof number, "%10.4f", scores[i]);
      std::cout << number << '\t' << tokens[i] << '\t' << tokenizer.piece(tokens[i]).text << '\n';
    }
    std::cout << "perplexity " << perplexity << " over " << scores.size()
              << " tokens (mean log-probability " << mean << ")\n";
    std::fprintf(stderr, "[%.1f tokens/s]\n", static_cast<double>(scores.size()) / seconds);
  });
}
