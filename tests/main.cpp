// The test program: counts allocations, ends test cases that hang, and tells which were skipped and why.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <cstddef>
#include <cstdint>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "sanitized.hpp"

// Every allocation of the test program that is not from a memory resource of a test's own is counted.
namespace {
std::atomic<std::size_t> n_heap_allocations{0};

void* count_and_allocate(std::size_t size, std::size_t alignment) {
  ++n_heap_allocations;
  if (size == 0) size = 1;
  void* memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(size)
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

namespace support {
std::size_t heap_allocations() { return n_heap_allocations; }
}  // namespace support

// Not inlined, or g++ sees free() of what it takes for memory of another operator new.
#if defined(__GNUC__)
#define MIXTRAL_TESTS_NOINLINE __attribute__((noinline))
#else
#define MIXTRAL_TESTS_NOINLINE
#endif

void* operator new(std::size_t size) { return count_and_allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return count_and_allocate(size, static_cast<std::size_t>(alignment));
}
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory) noexcept { std::free(memory); }
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
MIXTRAL_TESTS_NOINLINE void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace {

// The seconds that a test case may take, many times what any takes, unless it has a doctest::timeout() of
// its own. With MIXTRAL_TESTS_SECONDS in the environment each case has that many; with 0, or in a debugger,
// it has any time.
constexpr double kSecondsPerCase = support::kSanitized ? 1800.0 : 300.0;

// Ends the program with an error that names the test case when one takes longer than it may.
class Watch {
 public:
  using Clock = std::chrono::steady_clock;

  Watch() {
#if !defined(__EMSCRIPTEN__)  // which has no threads here
    thread_ = std::thread([this] { run(); });
#endif
  }
  ~Watch() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  void begin(const char* name, double seconds) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      name_ = name;
      seconds_ = seconds;
      end_ = Clock::now() + std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000.0));
    }
    changed_.notify_all();
  }
  void end() {
    const std::lock_guard<std::mutex> lock(mutex_);
    name_ = nullptr;
  }

 private:
  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!is_over_) {
      if (name_ == nullptr) {
        changed_.wait(lock);
      } else if (Clock::now() < end_) {
        changed_.wait_until(lock, end_);
      } else {
        std::fflush(stdout);
        std::fprintf(stderr, "mixtral_tests: \"%s\" is ended: it has not come to an end in %g s\n",
                     name_, seconds_);
        std::fflush(stderr);
        std::_Exit(1);
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const char* name_ = nullptr;
  double seconds_ = 0.0;
  Clock::time_point end_;
  bool is_over_ = false;
  std::thread thread_;
};

// The test cases that the command line chooses, those that are to be skipped included.
std::vector<const doctest::TestCaseData*> chosen_cases;
bool have_run = false;

struct Listener : doctest::IReporter {
  explicit Listener(const doctest::ContextOptions&) {
    if (const char* text = std::getenv("MIXTRAL_TESTS_SECONDS")) seconds = std::atof(text);
    if (doctest::detail::isDebuggerActive()) seconds = 0.0;
  }
  void report_query(const doctest::QueryData& in) override {
    if (in.data != nullptr) chosen_cases.assign(in.data, in.data + in.num_data);
  }
  void test_run_start() override { have_run = true; }
  void test_run_end(const doctest::TestRunStats&) override {}
  void test_case_start(const doctest::TestCaseData& test) override {
    const double its_own = seconds < 0.0 ? test.m_timeout : 0.0;
    const double most = its_own > 0.0 ? its_own : seconds < 0.0 ? kSecondsPerCase : seconds;
    if (most > 0.0) watch.begin(test.m_name, most);
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override { watch.end(); }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}

  double seconds = -1.0;  // a case's own, or the usual ones
  Watch watch;
};

REGISTER_LISTENER("mixtral_tests", 0, Listener);

constexpr int kAllSkipped = 77;  // what ctest and meson take for a test that is skipped

}  // namespace

int main(int argc, char** argv) {
  std::vector<const char*> arguments(argv, argv + argc);
  for (const char* more : {"--list-test-cases", "--no-skip=true", "--quiet=true"}) {
    arguments.push_back(more);
  }
  doctest::Context(static_cast<int>(arguments.size()), arguments.data()).run();
  const std::vector<const doctest::TestCaseData*> chosen = chosen_cases;
  const int result = doctest::Context(argc, argv).run();
  if (!have_run) return result;  // nothing but a question was asked
  // Were that a success, a test whose name has changed would never be missed.
  if (chosen.empty()) {
    std::fprintf(stderr, "mixtral_tests: no test case is chosen\n");
    return 1;
  }
  std::size_t n_skipped = 0;
  for (const doctest::TestCaseData* test : chosen) {
    if (!test->m_skip) continue;
    ++n_skipped;
    const char* reason = test->m_description == nullptr ? "no reason given" : test->m_description;
    std::fprintf(stderr, "mixtral_tests: skipped \"%s\": %s\n", test->m_name, reason);
  }
  if (n_skipped != 0)
    std::fprintf(stderr, "mixtral_tests: %zu of %zu skipped\n", n_skipped, chosen.size());
  return result == 0 && n_skipped == chosen.size() ? kAllSkipped : result;
}
