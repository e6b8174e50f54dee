// Runs code on a thread with a small stack: recursion whose depth the input decides crashes there.
#ifndef MIXTRAL_TESTS_SMALL_STACK_HPP_
#define MIXTRAL_TESTS_SMALL_STACK_HPP_

#include "support.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace support {

// 256 KiB, as hosts give to their threads. Sanitizers make frames several times as large.
constexpr std::size_t kSmallStack = std::size_t{kSanitized ? 1024 : 256} << 10;

// Calls body() there. What it finds is to be checked afterwards: doctest needs a stack of its own.
template <class Body>
void on_small_stack(Body&& body) {
#if defined(__unix__) || defined(__APPLE__)
  pthread_attr_t attributes;
  REQUIRE(pthread_attr_init(&attributes) == 0);
  REQUIRE(pthread_attr_setstacksize(&attributes, kSmallStack) == 0);
  pthread_t thread;
  const auto start = [](void* of) -> void* {
    (*static_cast<std::remove_reference_t<Body>*>(of))();
    return nullptr;
  };
  REQUIRE(pthread_create(&thread, &attributes, start, &body) == 0);
  pthread_attr_destroy(&attributes);
  REQUIRE(pthread_join(thread, nullptr) == 0);
#else
  body();
#endif
}

}  // namespace support

#endif  // MIXTRAL_TESTS_SMALL_STACK_HPP_
