// How the host lends its threads: an executor runs n independent chunks and returns when all are done.
#ifndef MIXTRAL_EXECUTOR_HPP_
#define MIXTRAL_EXECUTOR_HPP_

#include <cstddef>
#include <memory>
#include <type_traits>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

// One unit of work: call it once for every index in [0, n), from any threads, in any order.
// Two pointers wide and trivially copyable, so that job systems can store it without allocating.
class Chunks {
 public:
  // Views any callable `void(std::size_t index)`, which must outlive the view.
  template <class Body, class = std::enable_if_t<!std::is_same_v<std::decay_t<Body>, Chunks>>>
  explicit Chunks(Body& body) noexcept
      : context_(const_cast<void*>(static_cast<const void*>(std::addressof(body)))),
        call_([](void* context, std::size_t index) { (*static_cast<Body*>(context))(index); }) {}

  void operator()(std::size_t index) const { call_(context_, index); }

 private:
  void* context_;
  void (*call_)(void*, std::size_t);
};

// A non-owning view of the host's threads. Default-constructed it runs everything inline, on the
// calling thread; this library starts no thread of its own. Built from any object that has
//
//   void run(std::size_t n, mixtral::Chunks chunks);   // calls chunks(0) .. chunks(n-1), then returns
//   std::size_t concurrency() const;                   // how many threads work at once, at least 1
//
// The object must outlive every session that uses it. `run` may be called from several sessions'
// threads at the same time if the sessions are used so. `run` may throw, but neither throws nor returns
// while a chunk is still running; the exception passes through the evaluation, which is then as after
// Session::cancel(). Observer tells what `run` may call. Chunks themselves never throw.
class Executor {
 public:
  Executor() noexcept = default;

  template <class Host, class = std::enable_if_t<!std::is_same_v<std::decay_t<Host>, Executor>>>
  Executor(Host& host) noexcept
      : host_(std::addressof(host)),
        run_([](void* self, std::size_t n, Chunks chunks) {
          static_cast<Host*>(self)->run(n, chunks);
        }),
        concurrency_(
            [](void* self) -> std::size_t { return static_cast<Host*>(self)->concurrency(); }) {}

  void run(std::size_t n, Chunks chunks) const {
    if (n > 1 && host_ != nullptr) {
      run_(host_, n, chunks);
    } else {
      for (std::size_t i = 0; i < n; ++i) chunks(i);
    }
  }

  std::size_t concurrency() const { return host_ == nullptr ? 1 : concurrency_(host_); }

 private:
  void* host_ = nullptr;
  void (*run_)(void*, std::size_t, Chunks) = nullptr;
  std::size_t (*concurrency_)(void*) = nullptr;
};

}  // namespace mixtral

#endif  // MIXTRAL_EXECUTOR_HPP_
