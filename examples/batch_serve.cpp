// Answers many prompts at once: one JSON object a line in, one a line out, as each is ready.
//
//   {"id": 7, "prompt": "Once upon a time"}
//   {"id": 8, "user": "Is it cold?", "choices": ["yes", "no"], "seed": 3}
//
// A prompt is continued, a "user" message answered as in a chat. Each may have "max_tokens",
// "temperature", "seed", "stop" (a list of texts), and "regex", "grammar" (GBNF), "json_schema" or
// "choices". All sessions go through the model together; what --prefix gives is computed once.
// Whatever is wrong with a request, the answer is an "error" that names the field, and others go on.
// A line may have 16 MiB and JSON nested 128 deep.
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "bundled_model.hpp"
#include "request.hpp"

namespace {

using nlohmann::json;

// A line of input without its end, or none if it is longer than any request may be.
using Line = std::optional<std::string>;

// Lines of standard input, read by a thread of their own, so that who is slow to ask holds up nobody.
// That thread may wait for a line when the program ends, and ends with it.
class Lines {
 public:
  Lines() : shared_(std::make_shared<Shared>()) {
    std::thread([shared = shared_] { read(*shared); }).detach();
  }

  // The next line; if there is none yet, waits for it only if `wait`. At the end, none.
  std::optional<Line> next(bool wait) {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    if (wait)
      shared_->changed.wait(lock, [&] { return shared_->ended || !shared_->lines.empty(); });
    if (shared_->lines.empty()) return std::nullopt;
    Line line = std::move(shared_->lines.front());
    shared_->lines.pop_front();
    shared_->n_bytes -= line ? line->size() : 0;
    shared_->changed.notify_all();
    return line;
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Line> lines;
    std::size_t n_bytes = 0;  // of all lines
    bool ended = false;
  };

  // Reads to the end of a line; false at the end of the input. Of a line that is too long, nothing is kept.
  static bool read_line(std::streambuf& in, Line& line) {
    line.emplace();
    for (int c = in.sbumpc(); c != '\n'; c = in.sbumpc()) {
      if (c == std::char_traits<char>::eof()) return !line || !line->empty();
      if (!line) continue;
      line->push_back(static_cast<char>(c));
      if (line->size() > program::Request::kMaxLine) line.reset();
    }
    return true;
  }

  static void read(Shared& shared) {
    constexpr std::size_t kMostWaiting = 1000, kMostBytes = 4 * program::Request::kMaxLine;
    for (Line line; read_line(*std::cin.rdbuf(), line);) {
      if (line && (line->empty() || *line == "\r")) continue;
      std::unique_lock<std::mutex> lock(shared.mutex);
      shared.changed.wait(
          lock, [&] { return shared.lines.size() < kMostWaiting && shared.n_bytes < kMostBytes; });
      shared.n_bytes += line ? line->size() : 0;
      shared.lines.push_back(std::move(line));
      shared.changed.notify_all();
    }
    const std::lock_guard<std::mutex> lock(shared.mutex);
    shared.ended = true;
    shared.changed.notify_all();
  }

  std::shared_ptr<Shared> shared_;
};

// A request that is being answered.
struct Job {
  Job(json its_id, mixtral::Session its_session)
      : id(std::move(its_id)), session(std::move(its_session)) {}

  json id;
  mixtral::Session session;
  std::optional<mixtral::Generation> generation;
  std::string text;
  std::size_t n_prompt = 0, n_generated = 0;
};

class Server {
 public:
  Server(mixtral::Session root, std::uint32_t max_tokens)
      : root_(std::move(root)), max_tokens_(max_tokens) {}

  std::size_t n_jobs() const { return jobs_.size(); }
  std::size_t n_tokens() const { return n_tokens_; }

  void accept(const Line& line) {
    json id;
    try {
      if (!line) throw std::runtime_error("a request must not have more than 16 MiB");
      const program::Request request(*line, id);
      Job job(id, program::value(root_.fork()));
      const std::size_t before = job.session.tokens().size();
      const std::string text = request.text();
      program::check(request.is_chat() ? job.session.append_chat({{"user", text}})
                                       : job.session.append(text));
      if (job.session.tokens().empty()) throw std::runtime_error("the prompt is empty");
      job.n_prompt = job.session.tokens().size() - before;
      job.generation = job.session.generate(request.options(max_tokens_));
      if (job.generation->stop_reason() == mixtral::StopReason::error) {
        throw std::runtime_error(job.generation->error().message());
      }
      jobs_.push_back(std::move(job));
    } catch (const std::exception& error) {  // of this request, and of no other
      std::cout << program::dump({{"id", id}, {"error", error.what()}}) << std::endl;
    }
  }

  // One token for each; those that are ready are given out.
  void step() {
    std::vector<mixtral::Session*> sessions;
    for (Job& job : jobs_) sessions.push_back(&job.session);
    program::check(mixtral::Session::evaluate_all({sessions.data(), sessions.size()}));
    for (auto job = jobs_.begin(); job != jobs_.end();) {
      const bool more = job->generation->next();
      job->text += job->generation->piece();
      if (more) {
        ++job->n_generated;
        ++n_tokens_;
        ++job;
      } else {
        finish(*job);
        job = jobs_.erase(job);
      }
    }
  }

 private:
  static void finish(const Job& job) {
    json answer = {{"id", job.id},
                   {"text", job.text},
                   {"prompt_tokens", job.n_prompt},
                   {"generated_tokens", job.n_generated},
                   {"stop_reason", mixtral::stop_reason_name(job.generation->stop_reason())}};
    if (job.generation->stop_reason() == mixtral::StopReason::error) {
      answer["error"] = job.generation->error().message();
    }
    std::cout << program::dump(answer) << std::endl;
  }

  mixtral::Session root_;
  std::uint32_t max_tokens_;
  std::list<Job> jobs_;
  std::size_t n_tokens_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Answers prompts from standard input, one JSON object a line, many at once.",
               "batch_serve"};
  std::string path, prefix;
  mixtral::ModelOptions model_options;
  std::uint32_t parallel = 16, context = 1024, max_tokens = 128, threads = 0;
  program::add_model_or_bundled(app, path);
  app.add_option("--prefix", prefix, "A text that all prompts begin with");
  program::add_number<std::uint32_t>(app, "--parallel", parallel, {1, 4096},
                                     "Prompts answered at once, at most");
  program::add_number(app, "--context", context, program::at_least(1u),
                      "Tokens of a prompt and its answer");
  program::add_number(app, "--max-tokens", max_tokens, program::at_least(0u),
                      "Tokens of an answer, if its prompt does not say");
  program::add_model_options(app, model_options);
  program::add_threads(app, threads);

  return program::run(app, argc, argv, [&] {
    const auto model = program::value(mixtral::open_model(path.c_str(), model_options));
    auto pool = program::value(mixtral::ThreadPool::create(threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.context = context;
    options.branches = parallel + 1;
    auto root = program::value(mixtral::Session::open(model, options));
    if (!prefix.empty()) {
      program::check(root.append(prefix));
      program::check(root.evaluate());
    }
    Server server(std::move(root), max_tokens);
    Lines lines;
    double busy = 0.0;
    for (bool ended = false; !ended;) {
      while (server.n_jobs() < parallel) {
        const auto line = lines.next(server.n_jobs() == 0);
        if (!line) break;
        server.accept(*line);
      }
      ended = server.n_jobs() == 0;
      const program::Stopwatch time;
      if (!ended) server.step();
      busy += time.seconds();
    }
    std::fprintf(stderr, "[%zu tokens, %.1f/s]\n", server.n_tokens(),
                 busy > 0.0 ? static_cast<double>(server.n_tokens()) / busy : 0.0);
  });
}
