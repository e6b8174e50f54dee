// A conversation in the terminal or from a pipe, one line a question.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <deque>

#include "answer.hpp"

namespace {

// Ctrl-C stops the answer that is being given, if any, and not the program.
std::atomic<mixtral::Session*> answering{nullptr};
std::atomic<bool> interrupted{false};
static_assert(std::atomic<mixtral::Session*>::is_always_lock_free, "used in a signal handler");

void stop_answer(int) {
  std::signal(SIGINT, stop_answer);  // some systems forget it
  interrupted = true;
  if (mixtral::Session* session = answering) session->cancel();
}

// What was said, in a session of limited length: when it is full, the oldest exchanges are dropped.
class Conversation {
 public:
  Conversation(mixtral::Session& session, const std::string& system, std::uint32_t max_tokens)
      : session_(session), system_(system), room_(std::min(max_tokens, session.context() / 4)) {}

  // Appends a question; returns how many tokens are to be evaluated for it.
  std::size_t ask(const std::string& question) {
    const std::size_t before = session_.tokens().size();
    exchanges_.push_back({question, ""});
    mixtral::Status status =
        before == 0 ? append_all() : session_.append_chat({{"user", question}});
    if (!is_full(status)) {
      program::check(status);
      return session_.tokens().size() - before;
    }
    while (exchanges_.size() > 1 && is_full(status)) {
      exchanges_.pop_front();
      session_.clear();
      status = append_all();
    }
    program::check(status);
    return session_.tokens().size();
  }

  void answered(const std::string& text) { exchanges_.back().answer = text; }

 private:
  struct Exchange {
    std::string question, answer;
  };

  // Too full for the question, or for an answer of some length?
  bool is_full(const mixtral::Status& status) const {
    if (status) return session_.remaining() < room_;
    return status.error().code() == mixtral::ErrorCode::context_full;
  }

  mixtral::Status append_all() {
    std::vector<mixtral::Message> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    for (const Exchange& exchange : exchanges_) {
      messages.push_back({"user", exchange.question});
      if (&exchange != &exchanges_.back()) messages.push_back({"assistant", exchange.answer});
    }
    return session_.append_chat({messages.data(), messages.size()});
  }

  mixtral::Session& session_;
  const std::string& system_;
  std::uint32_t room_;
  std::deque<Exchange> exchanges_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Talks with an Instruct model; each line of input is a question.", "chat"};
  AnswerFlags flags;
  flags.add_to(app);
  std::string system;
  app.add_option("--system", system, "Instructions for the whole conversation");

  return program::run(app, argc, argv, [&] {
    flags.generate.grammar = program::value(flags.grammar());
    const mixtral::Model model = program::value(flags.open_model());
    auto pool = program::value(mixtral::ThreadPool::create(flags.threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.kv_format = flags.kv_format;
    options.context = flags.context;
    auto session = program::value(mixtral::Session::open(model, options));
    Conversation conversation(session, system, flags.generate.max_tokens);

    const bool interactive = program::is_terminal(stdin);
    if (interactive) std::cerr << "Ctrl-C stops an answer, Ctrl-D ends the conversation.\n";
    std::signal(SIGINT, stop_answer);

    const auto read_question = [&](std::string& line) {
      if (interactive) std::cerr << "> ";
      return static_cast<bool>(std::getline(std::cin, line));
    };
    for (std::string line; read_question(line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.empty()) continue;
      const std::size_t prompt_tokens = conversation.ask(line);
      Answer answer;
      interrupted = false;
      answering = &session;
      do {  // again if a Ctrl-C came just after the answer before
        answer =
            generate_answer(session, prompt_tokens, flags.generate, [&](std::string_view piece) {
              if (!flags.json) std::cout << piece << std::flush;
            });
      } while (answer.stop_reason == mixtral::StopReason::cancelled && !interrupted);
      answering = nullptr;
      conversation.answered(answer.text);
      if (flags.json) {
        std::cout << program::dump(to_json(answer)) << std::endl;
      } else {
        std::cout << std::endl;
        print_figures(answer);
      }
      ++flags.generate.sampling.seed;  // or the same question would get the same answer
    }
    if (interactive) std::cerr << '\n';
  });
}
