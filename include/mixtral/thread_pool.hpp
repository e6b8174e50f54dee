// A ready-made executor for hosts that have no job system of their own.
#ifndef MIXTRAL_THREAD_POOL_HPP_
#define MIXTRAL_THREAD_POOL_HPP_

#include <cstddef>
#include <memory>

#include "mixtral/error.hpp"
#include "mixtral/executor.hpp"

namespace mixtral {

// Eigen's work-stealing thread pool as an executor. The calling thread works too, so n threads
// means n - 1 started here; they are joined by the destructor. Any number of sessions may share it.
class ThreadPool {
 public:
  // `n_threads` 0 means one for each hardware thread. Errors: invalid_argument above 1024 threads,
  // out_of_memory when the system refuses a thread (where exceptions are enabled).
  static Result<ThreadPool> create(std::size_t n_threads = 0);

  ThreadPool(ThreadPool&&) noexcept;
  ThreadPool& operator=(ThreadPool&&) noexcept;
  ~ThreadPool();

  void run(std::size_t n, Chunks chunks);
  std::size_t concurrency() const noexcept;

 private:
  struct Impl;
  explicit ThreadPool(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mixtral

#endif  // MIXTRAL_THREAD_POOL_HPP_
