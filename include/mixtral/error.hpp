// Errors as values: every fallible call returns Result<T>; nothing in this library throws on its own account.
#ifndef MIXTRAL_ERROR_HPP_
#define MIXTRAL_ERROR_HPP_

#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <new>
#include <string_view>
#include <utility>
#include <variant>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

enum class ErrorCode {
  invalid_argument,  // the caller asked for something that makes no sense
  io,                // the operating system or the host's callback refused
  bad_format,        // the file contradicts its format or itself
  unsupported,       // a valid file that this library cannot run
  out_of_memory,     // the memory resource gave nothing
  context_full,      // the session has no room for the tokens
  cancelled,         // Session::cancel() was called
};

// What went wrong, where, and what to do. Holds its text inline, so that reporting an error
// never allocates; longer texts are cut, between UTF-8 characters. Unprintable bytes (file contents)
// become '?'.
class Error {
 public:
  static constexpr std::size_t kMaxLength = 319;  // of message(), in bytes

  MIXTRAL_PRINTF_LIKE(3, 4)
  Error(ErrorCode code, const char* format, ...) noexcept : code_(code) {
    va_list arguments;
    va_start(arguments, format);
    const int length = std::vsnprintf(text_, sizeof text_, format, arguments);
    va_end(arguments);
    if (length > static_cast<int>(kMaxLength)) drop_half_character();
    for (char* c = text_; *c != '\0'; ++c) {
      const auto byte = static_cast<unsigned char>(*c);
      if (byte < 0x20 || byte == 0x7f) *c = '?';
    }
  }

  ErrorCode code() const noexcept { return code_; }
  const char* message() const noexcept { return text_; }

 private:
  // Removes the last character if the cut left only some of its bytes.
  void drop_half_character() noexcept {
    std::size_t begin = kMaxLength - 1;
    const auto byte = [&] { return static_cast<unsigned char>(text_[begin]); };
    while (begin > kMaxLength - 4 && (byte() & 0xC0) == 0x80) --begin;
    const std::size_t size = byte() >= 0xF0 ? 4 : byte() >= 0xE0 ? 3 : byte() >= 0xC0 ? 2 : 1;
    if (begin + size > kMaxLength) text_[begin] = '\0';
  }

  ErrorCode code_;
  char text_[kMaxLength + 1];
};

// Either a T or an Error. Test it with `if (!result)`, then use *result, result-> or result.error().
// Using the value of a failed result (or the error of a good one) is undefined.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, error) {}

  explicit operator bool() const noexcept { return state_.index() == 0; }
  T& operator*() & noexcept { return *std::get_if<0>(&state_); }
  const T& operator*() const& noexcept { return *std::get_if<0>(&state_); }
  T&& operator*() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() noexcept { return std::get_if<0>(&state_); }
  const T* operator->() const noexcept { return std::get_if<0>(&state_); }
  const Error& error() const noexcept { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, Error> state_;
};

// Success, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() noexcept : error_(ErrorCode::invalid_argument, "%s", ""), ok_(true) {}
  Result(Error error) noexcept : error_(error), ok_(false) {}

  explicit operator bool() const noexcept { return ok_; }
  const Error& error() const noexcept { return error_; }

 private:
  Error error_;
  bool ok_;
};

using Status = Result<void>;

namespace detail {

// A path or name for an error's text: one longer than `most` bytes (at most kMaxLength) has "..." for its
// middle, so that both its end, which tells most, and what the error says of it find room.
class ShortName {
 public:
  static constexpr std::size_t kMost = 120;

  explicit ShortName(std::string_view name, std::size_t most = kMost) noexcept {
    constexpr std::size_t kDots = 3;
    const std::size_t size = name.size();
    if (most > Error::kMaxLength) most = Error::kMaxLength;
    if (most < kDots) most = kDots;
    const bool fits = size <= most;
    std::size_t head = fits ? size : (most - kDots) / 3;
    std::size_t tail = fits ? size : size - (most - kDots - head);
    while (!fits && head > 0 && is_inside_character(name[head])) --head;
    while (!fits && tail < size && is_inside_character(name[tail])) ++tail;
    char* out = text_;
    for (std::size_t i = 0; i < head; ++i) *out++ = name[i];
    for (std::size_t i = 0; !fits && i < kDots; ++i) *out++ = '.';
    for (std::size_t i = tail; i < size; ++i) *out++ = name[i];
    *out = '\0';
  }
  const char* text() const noexcept { return text_; }

 private:
  static bool is_inside_character(char c) noexcept {
    return (static_cast<unsigned char>(c) & 0xC0) == 0x80;  // of UTF-8
  }
  char text_[Error::kMaxLength + 1];
};

// `error` with the name of the file or other thing that it is about before it. All of the error's text
// is kept if that leaves the name 60 bytes.
inline Error error_in(std::string_view name, const Error& error) noexcept {
  constexpr std::size_t kBetween = 4, kLeast = 60;
  const std::size_t needed = std::string_view(error.message()).size() + kBetween;
  const std::size_t room = needed < Error::kMaxLength ? Error::kMaxLength - needed : 0;
  return Error(error.code(), "'%s': %s", ShortName(name, room < kLeast ? kLeast : room).text(),
               error.message());
}

// Runs `body` and turns the std::bad_alloc of a memory resource or container into an Error.
// Without exceptions a failed allocation cannot be seen here; see "Memory" in the README.
template <class Body>
auto guard_memory(const char* what, Body&& body) -> decltype(body()) {
#if defined(__cpp_exceptions)
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::out_of_memory,
                 "%s: the memory resource is exhausted; give it more room or ask for less", what);
  }
#else
  static_cast<void>(what);
  return body();
#endif
}

}  // namespace detail
}  // namespace mixtral

// Returns early with the error of `expression` (a Result of any type), if it has one.
#define MIXTRAL_RETURN_IF_ERROR(expression)                      \
  do {                                                           \
    if (auto&& mixtral_status = (expression); !mixtral_status) { \
      return mixtral_status.error();                             \
    }                                                            \
  } while (false)

#endif  // MIXTRAL_ERROR_HPP_
