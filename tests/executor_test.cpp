// Executors: inline, the ready-made pool, and a host's own.
#include "support.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

using namespace support;

namespace {

// The least that a host must write.
struct HostThreads {
  std::size_t n_runs = 0;
  std::size_t concurrency() const { return 3; }
  void run(std::size_t n, mixtral::Chunks chunks) {
    ++n_runs;
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < n; i = next++) chunks(i);
    };
    std::thread a(work), b(work);
    work();
    a.join();
    b.join();
  }
};

void check_each_once(const mixtral::Executor& executor, std::size_t n) {
  std::vector<std::atomic<int>> counts(n);
  const auto body = [&](std::size_t i) { ++counts[i]; };
  executor.run(n, mixtral::Chunks(body));
  for (const auto& count : counts) CHECK(count == 1);
}

}  // namespace

TEST_CASE("executor: each chunk runs exactly once") {
  auto pool = value(mixtral::ThreadPool::create(4));
  auto one = value(mixtral::ThreadPool::create(1));
  auto many = value(mixtral::ThreadPool::create(40));  // more than there are parts of a run
  HostThreads host;
  const mixtral::Executor executors[] = {{}, pool, one, many, host};
  for (const auto& executor : executors) {
    for (const std::size_t n : {0u, 1u, 2u, 3u, 100u, 10000u}) check_each_once(executor, n);
  }
  CHECK(mixtral::Executor().concurrency() == 1);
  CHECK(mixtral::Executor(pool).concurrency() == 4);
  CHECK(mixtral::Executor(host).concurrency() == 3);
}

TEST_CASE("executor: the pool may be used from many threads, and from inside itself") {
  auto pool = value(mixtral::ThreadPool::create(3));
  std::vector<std::thread> threads;
  std::atomic<std::size_t> total{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        const auto inner = [&](std::size_t) { ++total; };
        const auto outer = [&](std::size_t) { pool.run(5, mixtral::Chunks(inner)); };
        pool.run(7, mixtral::Chunks(outer));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(total == 4 * 50 * 7 * 5);
}

TEST_CASE("executor: who is done takes over chunks of a thread that is held up") {
  auto pool = value(mixtral::ThreadPool::create(2));
  constexpr std::size_t kChunks = 64;
  for (const std::size_t held_up : {std::size_t{0}, kChunks / 2}) {  // first of each thread's part
    std::atomic<std::size_t> n_done{0};
    const auto body = [&](std::size_t i) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (i == held_up && n_done < kChunks - 1 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();
      }
      if (i != held_up) {
        ++n_done;
      } else {
        CHECK(n_done == kChunks - 1);
      }
    };
    pool.run(kChunks, mixtral::Chunks(body));
    CHECK(n_done == kChunks - 1);
  }
}

TEST_CASE("executor: bad sizes are refused, 0 means the hardware's") {
  for (const std::size_t n : {std::size_t{1025}, std::size_t{5000}}) {
    const auto pool = mixtral::ThreadPool::create(n);
    REQUIRE(!pool);
    CHECK(pool.error().code() == mixtral::ErrorCode::invalid_argument);
  }
  CHECK(value(mixtral::ThreadPool::create(0)).concurrency() >= 1);
}

TEST_CASE("executor: a host's own threads run a session, to the same result") {
  const mixtral::Model model = open(bundled_model());
  HostThreads host;
  mixtral::Session threaded = session(model, 64, 256, host);
  mixtral::Session plain = session(model, 64);
  for (auto* s : {&threaded, &plain}) {
    REQUIRE(s->append("Once upon a time"));
    REQUIRE(s->evaluate());
  }
  CHECK(host.n_runs > 10);
  const mixtral::Logits a = threaded.logits(), b = plain.logits();
  CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
}
