// A host that has a job system already: the model's work becomes jobs among its own.
//
// The scheduler is one as engines have it: a deque for each worker, the owner takes from the back, who
// has nothing steals from the front, and who waits for jobs works. All that the library asks
// of it is run() and concurrency().
#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "bundled_model.hpp"
#include "program.hpp"

namespace {

class JobSystem {
 public:
  using Job = std::function<void()>;

  // The calling thread is worker 0.
  explicit JobSystem(std::size_t n_workers) : queues_(n_workers) {
    own_queue = 0;
    for (std::size_t i = 1; i < n_workers; ++i) {
      threads_.emplace_back([this, i] {
        own_queue = i;
        while (!ends_) {
          if (!run_one()) std::this_thread::yield();
        }
      });
    }
  }
  ~JobSystem() {
    ends_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

  void submit(Job job) {
    Queue& queue = queues_[own_queue];
    const std::lock_guard<std::mutex> lock(queue.mutex);
    queue.jobs.push_back(std::move(job));
  }

  // Works until this is true.
  template <class Condition>
  void work_until(const Condition& condition) {
    while (!condition()) {
      if (!run_one()) std::this_thread::yield();
    }
  }

  // What mixtral::Executor asks for. Called within a job or outside, on any worker.
  std::size_t concurrency() const { return queues_.size(); }
  void run(std::size_t n, mixtral::Chunks chunks) {
    std::atomic<std::size_t> n_left{n};
    for (std::size_t i = 1; i < n; ++i) {
      submit([chunks, i, &n_left] {
        chunks(i);
        --n_left;
      });
    }
    chunks(0);
    --n_left;
    work_until([&] { return n_left == 0; });
  }

  std::size_t n_stolen() const { return n_stolen_; }

 private:
  struct Queue {
    std::mutex mutex;
    std::deque<Job> jobs;
  };

  // A job of its own, the newest, or else the oldest of another's. False if there is none.
  bool run_one() {
    Job job;
    for (std::size_t i = 0; i < queues_.size() && !job; ++i) {
      Queue& queue = queues_[(own_queue + i) % queues_.size()];
      const std::lock_guard<std::mutex> lock(queue.mutex);
      if (queue.jobs.empty()) continue;
      if (i == 0) {
        job = std::move(queue.jobs.back());
        queue.jobs.pop_back();
      } else {
        job = std::move(queue.jobs.front());
        queue.jobs.pop_front();
        ++n_stolen_;
      }
    }
    if (job) job();
    return static_cast<bool>(job);
  }

  static thread_local std::size_t own_queue;
  std::vector<Queue> queues_;
  std::vector<std::thread> threads_;
  std::atomic<bool> ends_{false};
  std::atomic<std::size_t> n_stolen_{0};
};

thread_local std::size_t JobSystem::own_queue = 0;

std::string story(const mixtral::Model& model, mixtral::Executor executor, std::uint64_t seed,
                  std::uint32_t max_tokens) {
  mixtral::SessionOptions options;
  options.context = 256;
  options.executor = executor;
  auto session = program::value(mixtral::Session::open(model, options));
  program::check(session.append("Once upon a time"));
  mixtral::GenerateOptions generate;
  generate.max_tokens = max_tokens;
  generate.sampling.temperature = 0.8f;
  generate.sampling.seed = seed;
  std::string text;
  auto generation = session.generate(generate);
  for (const std::string_view piece : generation) text += piece;
  if (generation.stop_reason() == mixtral::StopReason::error) program::check(generation.error());
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Runs the model on a host's own work-stealing job system.", "job_system"};
  std::string path;
  std::uint32_t n_workers = 4, n_stories = 4, max_tokens = 40;
  program::add_model_or_bundled(app, path);
  program::add_number<std::uint32_t>(app, "--workers", n_workers, {1, 1024},
                                     "Threads of the job system");
  program::add_number<std::uint32_t>(app, "--stories", n_stories, {1, 200},
                                     "Sessions at the same time, each within a job");
  program::add_number(app, "--max-tokens", max_tokens, program::at_least(0u),
                      "Tokens of each story, at most");

  return program::run(app, argc, argv, [&] {
    const auto model = program::open_model(path);
    JobSystem jobs(n_workers);
    std::vector<std::string> stories(n_stories);
    std::atomic<std::size_t> n_told{0}, n_host_jobs{0};
    for (std::size_t i = 0; i < n_stories; ++i) {
      jobs.submit([&, i] {
        try {
          stories[i] = story(model, jobs, i, max_tokens);
        } catch (const std::exception& error) {
          stories[i] = error.what();
        }
        ++n_told;
      });
      // What else the host has to do.
      for (int k = 0; k < 100; ++k) jobs.submit([&] { ++n_host_jobs; });
    }
    jobs.work_until([&] { return n_told == n_stories && n_host_jobs == 100 * n_stories; });
    for (std::size_t i = 0; i < n_stories; ++i) {
      // The same as on one thread, to the token.
      const bool same = stories[i] == story(model, {}, i, max_tokens);
      std::cout << (same ? "" : "DIFFERENT: ") << "Once upon a time" << stories[i] << "\n\n";
      if (!same) throw std::runtime_error("a story depends on the threads: " + stories[i]);
    }
    std::fprintf(stderr, "[%zu stories among %zu jobs of the host; %zu jobs stolen]\n",
                 n_told.load(), n_host_jobs.load(), jobs.n_stolen());
  });
}
