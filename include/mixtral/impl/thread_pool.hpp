#ifndef MIXTRAL_IMPL_THREAD_POOL_HPP_
#define MIXTRAL_IMPL_THREAD_POOL_HPP_

#include <atomic>
#include <thread>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "mixtral/thread_pool.hpp"

namespace mixtral {

struct ThreadPool::Impl {
  explicit Impl(std::size_t n) : n_threads(n), pool(static_cast<int>(n) - 1) {}
  std::size_t n_threads;
  Eigen::ThreadPool pool;
};

namespace detail {

// What the threads of one ThreadPool::run share; lives on the caller's stack until all have left.
struct ParallelRun {
  std::size_t n;
  Chunks chunks;
  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> helpers_inside{0};

  void work() {
    for (std::size_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) chunks(i);
  }
};

}  // namespace detail

ThreadPool::ThreadPool(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&&) noexcept = default;
ThreadPool::~ThreadPool() = default;

Result<ThreadPool> ThreadPool::create(std::size_t n_threads) {
  if (n_threads == 0) n_threads = std::thread::hardware_concurrency();
  if (n_threads == 0) n_threads = 1;
  if (n_threads > 1024) {
    return Error(ErrorCode::invalid_argument, "a pool of %zu threads; at most 1024 are allowed",
                 n_threads);
  }
#if defined(__cpp_exceptions)
  try {
    return ThreadPool(std::make_unique<Impl>(n_threads));
  } catch (const std::exception& problem) {
    return Error(ErrorCode::out_of_memory, "cannot start %zu threads: %s", n_threads,
                 problem.what());
  }
#else
  return ThreadPool(std::make_unique<Impl>(n_threads));
#endif
}

void ThreadPool::run(std::size_t n, Chunks chunks) {
  if (n == 0) return;
  if (impl_->pool.CurrentThreadId() != -1) {  // called from inside a chunk: waiting could deadlock
    for (std::size_t i = 0; i < n; ++i) chunks(i);
    return;
  }
  detail::ParallelRun shared{n, chunks};
  const std::size_t n_helpers = (n < impl_->n_threads ? n : impl_->n_threads) - 1;
  shared.helpers_inside.store(n_helpers);
  for (std::size_t i = 0; i < n_helpers; ++i) {
    // One captured pointer fits std::function's own storage: no allocation.
    impl_->pool.Schedule([run = &shared] {
      run->work();
      run->helpers_inside.fetch_sub(1, std::memory_order_release);
    });
  }
  shared.work();
  // Chunks are short, so the wait is: spin a while, then let others run.
  for (int spins = 0; shared.helpers_inside.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

std::size_t ThreadPool::concurrency() const noexcept { return impl_->n_threads; }

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_THREAD_POOL_HPP_
