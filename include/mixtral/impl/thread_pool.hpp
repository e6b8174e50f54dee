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

// Chunks [begin, end) of a run, taken from the front by the thread that they were given to and from
// the back by those that have nothing left of their own.
class ChunkRange {
 public:
  void set(std::size_t begin, std::size_t end) noexcept { range_.store(pack(begin, end)); }

  bool take(bool front, std::size_t& chunk) noexcept {
    std::uint64_t range = range_.load(std::memory_order_relaxed);
    for (;;) {
      const std::size_t begin = range >> 32;
      const std::size_t end = range & 0xffffffffu;
      if (begin >= end) return false;
      const std::uint64_t rest = front ? pack(begin + 1, end) : pack(begin, end - 1);
      if (range_.compare_exchange_weak(range, rest, std::memory_order_relaxed)) {
        chunk = front ? begin : end - 1;
        return true;
      }
    }
  }

 private:
  static std::uint64_t pack(std::size_t begin, std::size_t end) noexcept {
    return std::uint64_t{begin} << 32 | end;
  }
  alignas(64) std::atomic<std::uint64_t> range_{0};  // a line of the cache for each
};

// What the threads of one ThreadPool::run share; lives on the caller's stack until all have left.
// Each thread begins with a part of the chunks that lie together, as do their rows of the weights;
// whoever is done, or was held up less, takes over from the others.
struct ParallelRun {
  static constexpr std::size_t kMaxRanges = 32;

  ParallelRun(std::size_t n, std::size_t n_threads, const Chunks& work) : chunks(work) {
    n_ranges = n_threads < kMaxRanges ? n_threads : kMaxRanges;
    for (std::size_t i = 0; i < n_ranges; ++i) {
      ranges[i].set(n * i / n_ranges, n * (i + 1) / n_ranges);
    }
  }

  Chunks chunks;
  std::size_t n_ranges;
  ChunkRange ranges[kMaxRanges];
  std::atomic<std::size_t> next_thread{1};
  std::atomic<std::size_t> helpers_inside{0};

  void work(std::size_t thread) {
    std::size_t chunk;
    while (ranges[thread % n_ranges].take(true, chunk)) chunks(chunk);
    for (std::size_t i = 1; i < n_ranges; ++i) {
      while (ranges[(thread + i) % n_ranges].take(false, chunk)) chunks(chunk);
    }
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
  constexpr std::size_t kMost = 0xffffffffu;  // what a ChunkRange has room for
  while (n > kMost) {
    n -= kMost;
    const auto later = [&](std::size_t i) { chunks(n + i); };
    run(kMost, Chunks(later));
  }
  const std::size_t n_threads = n < impl_->n_threads ? n : impl_->n_threads;
  detail::ParallelRun shared(n, n_threads, chunks);
  shared.helpers_inside.store(n_threads - 1);
  for (std::size_t i = 1; i < n_threads; ++i) {
    // One captured pointer fits std::function's own storage: no allocation.
    impl_->pool.Schedule([run = &shared] {
      run->work(run->next_thread.fetch_add(1, std::memory_order_relaxed));
      run->helpers_inside.fetch_sub(1, std::memory_order_release);
    });
  }
  shared.work(0);
  // Chunks are short, so the wait is: spin a while, then let others run.
  for (int spins = 0; shared.helpers_inside.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

std::size_t ThreadPool::concurrency() const noexcept { return impl_->n_threads; }

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_THREAD_POOL_HPP_
