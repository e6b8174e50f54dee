// A conversation in the terminal or from a pipe, one line a question.
#include <algorithm>
#include <atomic>
#include <csignal>

#include "answer.hpp"
#include "conversation.hpp"
#include "output_file.hpp"

namespace {

// Ctrl-C stops the answer that is being given, if any, and not the program.
std::atomic<mixtral::Session*> answering{nullptr};
static_assert(std::atomic<mixtral::Session*>::is_always_lock_free, "used in a signal handler");

void stop_answer(int) {
  std::signal(SIGINT, stop_answer);  // some systems forget it
  if (mixtral::Session* session = answering) session->cancel();
}

constexpr char kHelp[] =
    "/help        shows this\n"
    "/reset       forgets what was said, but not the instructions of --system\n"
    "/save FILE   writes the conversation to a file; /save! FILE replaces one that is there\n"
    "/load FILE   goes on with the conversation in a file, instead of this one\n"
    "/exit        ends the program, as the end of the input does\n"
    "//TEXT       asks /TEXT, which is no command then\n";

// A line that begins with one '/'.
struct Command {
  explicit Command(const std::string& line) {
    const std::size_t end = std::min(line.find(' '), line.size());
    name = line.substr(0, end);
    argument = line.substr(std::min(line.find_first_not_of(' ', end), line.size()));
    argument.resize(argument.find_last_not_of(' ') + 1);
  }

  std::string name, argument;
};

bool is_command(const std::string& line) {
  return line[0] == '/' && (line.size() == 1 || line[1] != '/');
}

// The conversation of this program, and its next answer's seed.
class Chat {
 public:
  Chat(const AnswerFlags& flags, mixtral::Session& session, const std::string& system)
      : flags_(flags),
        options_(flags.generate),
        session_(session),
        conversation_(session, system, flags.generate.max_tokens) {}

  // Prints an answer as it comes. Throws if there is none; then the question was not asked.
  void ask(const std::string& question) {
    const std::size_t prompt_tokens = conversation_.ask(question);
    Answer answer;
    bool shown = false;
    answering = &session_;
    try {
      answer = generate_answer(session_, prompt_tokens, options_, [&](std::string_view piece) {
        if (flags_.json || piece.empty()) return;
        std::cout << piece << std::flush;
        shown = true;
      });
    } catch (...) {
      answering = nullptr;
      conversation_.take_back();
      if (shown) std::cout << std::endl;
      throw;
    }
    answering = nullptr;
    conversation_.answered(answer.text);
    if (flags_.json) {
      std::cout << program::dump(to_json(answer)) << std::endl;
    } else {
      std::cout << std::endl;
      print_figures(answer);
    }
    ++options_.sampling.seed;  // or the same question would get the same answer
  }

  // False if it ends the program.
  bool run(const Command& command) {
    const auto is = [&](const char* name) { return command.name == name; };
    const bool saves = is("/save") || is("/save!");
    if ((saves || is("/load")) && command.argument.empty()) {
      throw std::runtime_error(command.name + " needs a file's name: " + command.name + " FILE");
    }
    if ((is("/help") || is("/exit") || is("/reset")) && !command.argument.empty()) {
      throw std::runtime_error(command.name + " takes nothing after it; //... asks such a text");
    }
    if (is("/exit")) return false;
    if (is("/help")) {
      std::cerr << kHelp;
    } else if (is("/reset")) {
      conversation_.forget();
      std::cerr << "[a new conversation]\n";
    } else if (saves) {
      save(command.argument, is("/save!"));
    } else if (is("/load")) {
      load(command.argument);
    } else {
      throw std::runtime_error("there is no command " + command.name +
                               "; /help lists them, and // begins a question with /");
    }
    return true;
  }

 private:
  void save(const std::string& path, bool replaces) {
    program::OutputFile file(path, replaces, {flags_.model, {}}, "/save! replaces it");
    conversation_.save(options_.sampling.seed, [&](std::string_view bytes) { file.write(bytes); });
    file.finish();
    tell("saved to", path);
  }

  void load(const std::string& path) {
    const auto file = program::value(mixtral::Bytes::map_file(path.c_str()));
    options_.sampling.seed = conversation_.load(
        {reinterpret_cast<const char*>(file.data()), file.size()}, "'" + path + "'");
    tell("loaded from", path);
  }

  void tell(const char* what, const std::string& path) const {
    const std::size_t n = conversation_.n_exchanges();
    std::cerr << '[' << n << (n == 1 ? " question" : " questions") << " and "
              << session_.tokens().size() << " tokens " << what << " '" << program::one_line(path)
              << "']\n";
  }

  const AnswerFlags& flags_;
  mixtral::GenerateOptions options_;
  mixtral::Session& session_;
  Conversation conversation_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Talks with an Instruct model; each line of input is a question, or a command: /help lists "
      "them.",
      "chat"};
  AnswerFlags flags;
  flags.add_to(app, "the model's, 4096 at most");
  std::string system;
  app.add_option("--system", system,
                 "Instructions for the whole conversation; one that is loaded brings its own");

  return program::run(app, argc, argv, [&] {
    flags.generate.grammar = program::value(flags.grammar());
    const mixtral::Model model = flags.open_model();
    auto pool = program::value(mixtral::ThreadPool::create(flags.threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.kv_format = flags.kv_format;
    options.context = flags.context;
    auto session = program::value(mixtral::Session::open(model, options));
    Chat chat(flags, session, system);

    const bool interactive = program::is_terminal(stdin);
    if (interactive) {
      std::cerr << "Ctrl-C stops an answer, Ctrl-D ends the conversation, /help lists commands.\n";
    }
    std::signal(SIGINT, stop_answer);

    const auto read_line = [&](std::string& line) {
      if (interactive) std::cerr << "> ";
      return std::cout && std::getline(std::cin, line);
    };
    for (std::string line; read_line(line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.empty()) continue;
      const bool commands = is_command(line);
      try {
        if (!commands) {
          chat.ask(line[0] == '/' ? line.substr(1) : line);
        } else if (!chat.run(Command(line))) {
          return;
        }
      } catch (const std::exception& error) {  // of this line; the conversation goes on
        if (flags.json && !commands) {
          std::cout << program::dump({{"error", error.what()}}) << std::endl;
        } else {
          std::cerr << app.get_name() << ": " << program::one_line(error.what()) << '\n';
        }
      }
    }
    if (interactive) std::cerr << '\n';
  });
}
