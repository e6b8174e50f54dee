// Completion as you type: a suggestion after the cursor, computed beside the editor, that every key
// cancels and that keeps what was computed for the text before.
//
// In a terminal, keys edit the text, Tab takes the suggestion, Ctrl-D ends. From a pipe, what comes is
// typed key by key, --typing-ms apart, which shows what cancelling and the common prefix save.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "bundled_model.hpp"
#include "program.hpp"

#ifndef _WIN32
#include <termios.h>
#endif

namespace {

// Computes suggestions on a thread of its own, always for the newest text.
class Completer {
 public:
  Completer(mixtral::Session session, mixtral::GenerateOptions options)
      : session_(std::move(session)), options_(std::move(options)), thread_([this] { work(); }) {}

  ~Completer() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
      session_.cancel();
    }
    changed_.notify_all();
    thread_.join();
  }

  // From the editor's thread; returns at once.
  void edit(const std::string& text) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      text_ = text;
      figures_.n_edits = ++newest_;
      suggestion_.clear();
      session_.cancel();  // what was begun for the text before
    }
    changed_.notify_all();
  }

  std::string suggestion() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return suggestion_;
  }

  // Until the suggestion for the newest text is complete.
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done_ == newest_; });
  }

  struct Figures {
    std::size_t n_edits = 0, n_begun = 0, n_cancelled = 0, n_failed = 0;
    std::size_t n_tokens = 0, n_kept = 0;  // of the texts; those that were computed before
  };
  Figures figures() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return figures_;
  }

 private:
  void work() {
    for (;;) {
      std::string text;
      std::size_t version;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return ends_ || done_ != newest_; });
        if (ends_) return;
        text = text_;
        version = newest_;
        ++figures_.n_begun;
      }
      const bool complete = suggest(text, version);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (complete) done_ = version;
      changed_.notify_all();
    }
  }

  // True if it was not cancelled for a newer text.
  bool suggest(const std::string& text, std::size_t version) {
    const auto kept = session_.replace(text);
    if (const std::lock_guard<std::mutex> lock(mutex_); !kept) {  // too long: no suggestion
      ++figures_.n_failed;
      return true;
    } else {
      figures_.n_kept += *kept;
      figures_.n_tokens += session_.tokens().size();
    }
    if (session_.tokens().empty()) return true;
    // A key that comes from now on cancels this, and one that came before is seen here: none is missed.
    auto generation = session_.generate(options_);
    const auto is_current = [&] { return version == newest_ && !ends_; };
    bool current = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      current = is_current();
    }
    while (current && generation.stop_reason() == mixtral::StopReason::none) {
      generation.next();
      const std::lock_guard<std::mutex> lock(mutex_);
      current = is_current();
      if (current) suggestion_ += generation.piece();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!current) ++figures_.n_cancelled;
    return current;
  }

  mixtral::Session session_;
  const mixtral::GenerateOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_, suggestion_;
  std::size_t newest_ = 0, done_ = 0;  // versions of the text
  bool ends_ = false;
  Figures figures_;
  std::thread thread_;
};

// Keys one by one and without echo, as long as this lives.
class RawTerminal {
 public:
#ifdef _WIN32
  bool works() const { return false; }
  int read_key() const { return -1; }
#else
  RawTerminal() : works_(program::is_terminal(stdin) && tcgetattr(0, &before_) == 0) {
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 1;  // a tenth of a second, then show what there is
    if (works_) tcsetattr(0, TCSANOW, &raw);
  }
  ~RawTerminal() {
    if (works_) tcsetattr(0, TCSANOW, &before_);
  }
  bool works() const { return works_; }
  // 0 if none came, negative at the end.
  int read_key() const {
    char key = 0;
    return ::read(0, &key, 1) < 0 || key == 4 ? -1 : static_cast<unsigned char>(key);
  }

 private:
  termios before_{};
  bool works_;
#endif
};

// Takes away the last character, all its bytes.
void erase_last(std::string& text) {
  while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back();
  if (!text.empty()) text.pop_back();
}

std::string edit_in_terminal(const RawTerminal& terminal, Completer& completer) {
  std::string text;
  for (int key = 0; key >= 0; key = terminal.read_key()) {
    const std::string suggestion = completer.suggestion();
    std::cout << "\r\033[J" << text << "\033[s\033[2m" << suggestion << "\033[0m\033[u"
              << std::flush;
    if (key == '\t') {
      text += suggestion;
    } else if (key == 127 || key == '\b') {
      erase_last(text);
    } else if (key >= ' ') {
      text += static_cast<char>(key);
    } else {
      continue;
    }
    completer.edit(text);
  }
  std::cout << "\r\033[J";
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Suggests how a text goes on, while it is typed.", "editor_complete"};
  std::string path;
  std::uint32_t threads = 0, context = 2048, typing_ms = 30;
  mixtral::GenerateOptions generate;
  generate.max_tokens = 16;
  generate.stop = {"\n"};
  bool as_json = false;
  program::add_model_or_bundled(app, path);
  program::add_number(app, "--max-tokens", generate.max_tokens, program::at_least(0u),
                      "Tokens of a suggestion, at most");
  program::add_number<std::uint32_t>(app, "--typing-ms", typing_ms, {0, 10000},
                                     "Milliseconds between two keys, from a pipe");
  program::add_number(app, "--context", context, program::at_least(1u),
                      "Tokens of the text and its suggestion");
  program::add_threads(app, threads);
  app.add_flag("--json", as_json, "Print one JSON object at the end");

  return program::run(app, argc, argv, [&] {
    const auto model = program::open_model(path);
    auto pool = program::value(mixtral::ThreadPool::create(threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.context = context;
    Completer completer(program::value(mixtral::Session::open(model, options)), generate);
    const RawTerminal terminal;
    std::string text;
    if (terminal.works()) {
      text = edit_in_terminal(terminal, completer);
    } else {
      for (char key; std::cin.get(key);) {
        if (key == '\b') {
          erase_last(text);
        } else {
          text += key;
        }
        completer.edit(text);
        std::this_thread::sleep_for(std::chrono::milliseconds(typing_ms));
      }
    }
    completer.wait();
    const Completer::Figures figures = completer.figures();
    if (as_json) {
      std::cout << program::dump({{"text", text},
                                  {"suggestion", completer.suggestion()},
                                  {"edits", figures.n_edits},
                                  {"begun", figures.n_begun},
                                  {"cancelled", figures.n_cancelled},
                                  {"failed", figures.n_failed},
                                  {"prompt_tokens", figures.n_tokens},
                                  {"prompt_tokens_kept", figures.n_kept}})
                << '\n';
    } else {
      std::cout << text << completer.suggestion() << std::endl;
      std::fprintf(stderr, "[%zu keys, %zu suggestions, %zu cancelled; %zu of %zu tokens kept]\n",
                   figures.n_edits, figures.n_begun, figures.n_cancelled, figures.n_kept,
                   figures.n_tokens);
    }
  });
}
