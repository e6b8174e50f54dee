// What the example programs share: exit codes, errors, files, the terminal, memory figures.
#ifndef MIXTRAL_EXAMPLES_PROGRAM_HPP_
#define MIXTRAL_EXAMPLES_PROGRAM_HPP_

#include <CLI/CLI.hpp>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <mixtral/checkpoints.hpp>
#include <mixtral/mixtral.hpp>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "options.hpp"
#include "output_file.hpp"
#include "utf8_arguments.hpp"

#ifdef _WIN32
#include <io.h>
#else
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace program {

// The name that a program was called by: installed ones are called otherwise than those in the build.
inline std::string name_of(const char* path, const std::string& otherwise) {
  std::string name = path == nullptr ? "" : path;
  const std::size_t slash = name.find_last_of("/\\");
  if (slash != std::string::npos) name.erase(0, slash + 1);
  if (name.size() > 4 && name.compare(name.size() - 4, 4, ".exe") == 0)
    name.resize(name.size() - 4);
  return name.empty() ? otherwise : name;
}

// Parses the command line, runs `body` and gives the exit code: 0 for success, 1 for an error, 2 for bad
// arguments, both told in one line on stderr. All programs get --version here, and answer the shell that
// completes their options (--completions WORD..., for completions.bash alone).
template <class Body>
int run(CLI::App& app, int argc, char** argv, Body&& body) {
  Utf8Arguments arguments(argc, argv);
  argc = arguments.count();
  argv = arguments.values();
  app.name(name_of(argc > 0 ? argv[0] : nullptr, app.get_name()));
  app.set_version_flag("--version", app.get_name() + ' ' + version(), "Print the version and exit");
  const auto tell = [&](const std::string& error) {
    std::cout.flush();
    std::cerr << app.get_name() << ": " << one_line(error) << '\n';
  };
  try {
    if (argc > 1 && std::string_view(argv[1]) == "--completions") {
      print_completions(app, std::vector<std::string>(argv + 2, argv + argc), std::cout);
    } else {
      app.parse(argc, argv);
      body();
    }
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      tell(message_of(error) + "; " + app.get_name() + " --help lists what there is");
      return 2;
    }
    app.exit(error);  // prints help or version
  } catch (const std::exception& error) {
    tell(error.what());
    return 1;
  }
  std::cout.flush();
  if (std::cout) return 0;
  tell("cannot write to standard output");
  return 1;
}

// The value of a Result; its error becomes an exception, as suits a program.
template <class T>
T value(mixtral::Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message());
  return *std::move(result);
}

inline void check(const mixtral::Status& status) {
  if (!status) throw std::runtime_error(status.error().message());
}

inline std::string read_all(std::istream& in, const std::string& name) {
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (in.bad()) throw std::runtime_error("cannot read " + name);
  return text;
}

// The text of a file; of a pipe, as the shell's <(...), or of a terminal, what comes until its end.
inline std::string read_file(const std::string& path) {
  constexpr std::size_t kMost = std::size_t{1} << 30;  // some devices never end
  const auto fail = [&](const std::string& reason) {
    throw std::runtime_error("cannot read '" + path + "': " + reason);
  };
  errno = 0;
#ifdef _WIN32
  std::FILE* const file = _wfopen(std::filesystem::u8path(path).c_str(), L"rb");
#else
  std::FILE* const file = std::fopen(path.c_str(), "rb");
#endif
  if (file == nullptr) fail(std::generic_category().message(errno));
  std::string text;
  char piece[1 << 14];
  std::size_t n;
  while ((n = std::fread(piece, 1, sizeof piece, file)) > 0 && text.size() <= kMost) {
    text.append(piece, n);
  }
  const int code = std::ferror(file) != 0 ? errno : 0;  // a folder opens, but cannot be read
  std::fclose(file);
  if (code != 0) fail(std::generic_category().message(code));
  if (text.size() > kMost) fail("more than " + std::to_string(kMost >> 20) + " MiB of text");
  return text;
}

// One line of JSON; bytes that are not UTF-8 (from odd vocabularies) become U+FFFD.
inline std::string dump(const nlohmann::json& json, int indent = -1) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Parses JSON that comes from outside. Of arrays and objects in one another, only `most_depth` are kept,
// since copying and writing JSON recurses; `too_deep` tells whether there were more. `name` is the
// text's in errors: "the line".
inline nlohmann::json parse_json(const std::string& text, const std::string& name, int most_depth,
                                 bool& too_deep) {
  using Event = nlohmann::json::parse_event_t;
  too_deep = false;
  // The parser itself does not recurse. What it drops here is never built.
  const auto keep = [&](int depth, Event event, nlohmann::json&) {
    const bool opens = event == Event::object_start || event == Event::array_start;
    if (opens && depth >= most_depth) too_deep = true;
    return !too_deep || !opens;
  };
  try {
    return nlohmann::json::parse(text, keep);
  } catch (const nlohmann::json::parse_error& error) {
    throw std::runtime_error(name + " is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const nlohmann::json::out_of_range&) {
    throw std::runtime_error(name + " has a number that is too large");
  }
}

inline bool is_terminal(std::FILE* file) {
#ifdef _WIN32
  return _isatty(_fileno(file)) != 0;
#else
  return isatty(fileno(file)) != 0;
#endif
}

// The most memory this process had in use so far, with the mapped weights it touched, in bytes;
// 0 where the system does not tell.
inline std::uint64_t peak_memory() {
#ifdef _WIN32
  return 0;
#else
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
  return static_cast<std::uint64_t>(usage.ru_maxrss);
#else
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
#endif
#endif
}

// "1.25 GiB"
inline std::string in_units(std::uint64_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto size = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (size >= 1024.0 && unit + 1 < std::size(units)) {
    size /= 1024.0;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", size, units[unit]);
  return text;
}

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A bar on stderr with the time left, if that is a terminal, else nothing. What is done within a tenth of a
// second needs none.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label) : label_(std::move(label)), shown_(is_terminal(stderr)) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::uint64_t done, std::uint64_t total) {
    constexpr std::size_t kWidth = 40;
    const auto percent = static_cast<int>(total == 0 ? 100 : done * 100 / total);
    if (!shown_ || percent == last_ || time_.seconds() < 0.1) return;
    last_ = percent;
    const std::size_t filled = kWidth * static_cast<std::size_t>(percent) / 100;
    std::cerr << '\r' << label_ << " [" << std::string(filled, '#')
              << std::string(kWidth - filled, ' ') << "] " << percent << "%, "
              << time_left(done, total) << "\033[K" << std::flush;
  }

  // Takes the bar away.
  void clear() {
    if (last_ >= 0) std::cerr << "\r\033[K";
    last_ = -1;
  }

 private:
  std::string time_left(std::uint64_t done, std::uint64_t total) const {
    if (done == 0) return "";
    const auto share = static_cast<double>(total - done) / static_cast<double>(done);
    const auto seconds = static_cast<std::uint64_t>(time_.seconds() * share + 0.5);
    char text[48];
    std::snprintf(text, sizeof text, "%llu:%02llu left",
                  static_cast<unsigned long long>(seconds / 60),
                  static_cast<unsigned long long>(seconds % 60));
    return text;
  }

  std::string label_;
  bool shown_;
  int last_ = -1;
  Stopwatch time_;
};

// Shows how far an evaluation is, for example of a long prompt, or of a short one whose weights come from
// the disk.
class EvaluationBar : public mixtral::Observer {
 public:
  explicit EvaluationBar(std::string label) : bar_(std::move(label)) {}
  bool wants_all_tokens() const override { return false; }
  void on_progress(const mixtral::Progress& progress) override {
    bar_.update(progress.n_done, progress.n_total);
  }
  void clear() { bar_.clear(); }

 private:
  ProgressBar bar_;
};

// Shows how far a text is that is evaluated in windows of some of its tokens.
class TextBar {
 public:
  TextBar(std::string label, std::size_t n_tokens) : bar_(std::move(label)), n_tokens_(n_tokens) {}

  // The next window brings n tokens that are new after the first n_done ones.
  void begin_window(std::size_t n_done, std::size_t n) {
    n_done_ = n_done;
    n_new_ = n;
  }
  // Takes the progress of the window's evaluation.
  void update(const mixtral::Progress& progress) {
    const double share = progress.fraction() * static_cast<double>(n_new_);
    bar_.update(n_done_ + static_cast<std::size_t>(share), n_tokens_);
  }

 private:
  ProgressBar bar_;
  std::size_t n_tokens_, n_done_ = 0, n_new_ = 0;
};

// Opens a model, and shows how far that is where it takes long: with copied weights.
inline mixtral::Model open_model(const std::string& path, mixtral::ModelOptions options = {}) {
  ProgressBar bar("loading");
  const auto listen = [&](const mixtral::Progress& progress) {
    bar.update(progress.n_done, progress.n_total);
    return true;
  };
  options.progress = listen;
  return value(mixtral::open_model(path.c_str(), options));
}

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_PROGRAM_HPP_
