// Answers many prompts at once: one JSON object a line in, one a line out, as each is ready.
//
//   {"id": 7, "prompt": "Once upon a time"}
//   {"id": 8, "user": "Is it cold?", "choices": ["yes", "no"], "seed": 3}
//
// A prompt is continued, a "user" message answered as in a chat. Each may have "max_tokens",
// "temperature", "seed", "stop" (a list of texts), and "regex", "grammar" (GBNF), "json_schema" or
// "choices". All sessions go through the model together; what --prefix gives is computed once.
#include <mixtral/json_schema.hpp>

#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "bundled_model.hpp"
#include "program.hpp"

namespace {

using nlohmann::json;

// Lines of standard input, read by a thread of their own, so that who is slow to ask holds up nobody.
// That thread may wait for a line when the program ends, and ends with it.
class Lines {
 public:
  Lines() : shared_(std::make_shared<Shared>()) {
    std::thread([shared = shared_] { read(*shared); }).detach();
  }

  // The next line; if there is none yet, waits for it only if `wait`. At the end, none.
  std::optional<std::string> next(bool wait) {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    if (wait)
      shared_->changed.wait(lock, [&] { return shared_->ended || !shared_->lines.empty(); });
    if (shared_->lines.empty()) return std::nullopt;
    std::string line = std::move(shared_->lines.front());
    shared_->lines.pop_front();
    shared_->changed.notify_all();
    return line;
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::string> lines;
    bool ended = false;
  };

  static void read(Shared& shared) {
    constexpr std::size_t kMostWaiting = 1000;
    for (std::string line; std::getline(std::cin, line);) {
      if (line.empty() || line == "\r") continue;
      std::unique_lock<std::mutex> lock(shared.mutex);
      shared.changed.wait(lock, [&] { return shared.lines.size() < kMostWaiting; });
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

mixtral::Grammar grammar_of(const json& request) {
  if (request.contains("regex")) {
    return program::value(mixtral::Grammar::from_regex(request["regex"].get<std::string>()));
  }
  if (request.contains("grammar")) {
    return program::value(mixtral::Grammar::from_gbnf(request["grammar"].get<std::string>()));
  }
  if (request.contains("json_schema")) {
    return program::value(mixtral::json_schema_grammar(request["json_schema"].dump()));
  }
  if (!request.contains("choices")) return {};
  const auto choices = request["choices"].get<std::vector<std::string>>();
  const std::vector<std::string_view> views(choices.begin(), choices.end());
  return program::value(mixtral::Grammar::from_choices({views.data(), views.size()}));
}

mixtral::GenerateOptions options_of(const json& request, std::uint32_t max_tokens) {
  mixtral::GenerateOptions options;
  options.max_tokens = request.value("max_tokens", max_tokens);
  options.sampling.temperature = request.value("temperature", 0.8f);
  options.sampling.min_p = 0.05f;
  options.sampling.seed = request.value("seed", std::uint64_t{0});
  options.stop = request.value("stop", std::vector<std::string>());
  options.grammar = grammar_of(request);
  return options;
}

class Server {
 public:
  Server(mixtral::Session root, std::uint32_t max_tokens)
      : root_(std::move(root)), max_tokens_(max_tokens) {}

  std::size_t n_jobs() const { return jobs_.size(); }
  std::size_t n_tokens() const { return n_tokens_; }

  void accept(const std::string& line) {
    json id;
    try {
      const json request = json::parse(line);
      if (!request.is_object()) throw std::runtime_error("a request must be a JSON object");
      if (request.contains("id")) id = request["id"];
      Job job(id, program::value(root_.fork()));
      const std::size_t before = job.session.tokens().size();
      if (request.contains("prompt") == request.contains("user")) {
        throw std::runtime_error("a request must have a \"prompt\" or a \"user\" message");
      }
      if (request.contains("prompt")) {
        program::check(job.session.append(request["prompt"].get<std::string>()));
      } else {
        const auto user = request["user"].get<std::string>();
        program::check(job.session.append_chat({{"user", user}}));
      }
      if (job.session.tokens().empty()) throw std::runtime_error("the prompt is empty");
      job.n_prompt = job.session.tokens().size() - before;
      job.generation = job.session.generate(options_of(request, max_tokens_));
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
