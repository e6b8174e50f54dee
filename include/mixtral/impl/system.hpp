// What the library asks the operating system about paths: kinds, names in a folder, reasons of failure.
// Paths are UTF-8 on every system.
#ifndef MIXTRAL_IMPL_SYSTEM_HPP_
#define MIXTRAL_IMPL_SYSTEM_HPP_

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cwchar>
#include <string_view>

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <dirent.h>
#include <sys/stat.h>
#endif

#include "mixtral/error.hpp"

namespace mixtral::detail {

// What is at a path.
enum class PathKind { missing, file, folder, pipe, socket, device, unknown };

struct PathStatus {
  PathKind kind;
  std::uint64_t size;  // of a file, in bytes
  int code;            // the system's, if the kind is missing or unknown
};

// "is a folder"; what is wrong with a path that should be a file's.
inline const char* kind_text(PathKind kind) noexcept {
  switch (kind) {
    case PathKind::folder: return "is a folder, not a file; name a file in it";
    case PathKind::pipe: return "is a pipe (FIFO), not a file";
    case PathKind::socket: return "is a socket, not a file";
    case PathKind::device: return "is a device, not a file";
    default: return "is not a regular file";
  }
}

#if defined(_WIN32)

// A path in UTF-16, as Windows takes it.
class WidePath {
 public:
  explicit WidePath(const char* path) noexcept
      : valid_(MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, text_, kMaxSize) > 0) {}
  bool valid() const noexcept { return valid_; }
  const wchar_t* text() const noexcept { return text_; }
  // Appends ASCII, if there is room.
  void append(const char* ascii) noexcept {
    std::size_t n = std::wcslen(text_);
    for (; *ascii != '\0' && n + 1 < kMaxSize; ++ascii) text_[n++] = static_cast<wchar_t>(*ascii);
    text_[n] = 0;
  }

 private:
  static constexpr int kMaxSize = 32768;  // the system's limit
  wchar_t text_[kMaxSize] = {};
  bool valid_;
};

inline int last_system_code() noexcept { return static_cast<int>(GetLastError()); }

// The system's words for a code of last_system_code(), in UTF-8.
class SystemReason {
 public:
  explicit SystemReason(int code) noexcept {
    wchar_t wide[256];
    DWORD size = FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr,
                                static_cast<DWORD>(code), 0, wide, 256, nullptr);
    while (size > 0 && (wide[size - 1] <= L' ' || wide[size - 1] == L'.')) --size;  // the newline
    const int n = size == 0 ? 0
                            : WideCharToMultiByte(CP_UTF8, 0, wide, static_cast<int>(size), text_,
                                                  sizeof text_ - 1, nullptr, nullptr);
    text_[n] = '\0';
    if (n == 0) std::snprintf(text_, sizeof text_, "Windows error %d", code);
  }
  const char* text() const noexcept { return text_; }

 private:
  char text_[1024];
};

inline PathStatus path_status(const char* path) noexcept {
  const WidePath wide(path);
  if (!wide.valid()) return {PathKind::missing, 0, ERROR_NO_UNICODE_TRANSLATION};
  WIN32_FILE_ATTRIBUTE_DATA data;
  if (!GetFileAttributesExW(wide.text(), GetFileExInfoStandard, &data)) {
    const int code = last_system_code();
    const bool missing = code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND ||
                         code == ERROR_INVALID_NAME || code == ERROR_BAD_NETPATH;
    return {missing ? PathKind::missing : PathKind::unknown, 0, code};
  }
  if ((data.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0) return {PathKind::folder, 0, 0};
  if ((data.dwFileAttributes & FILE_ATTRIBUTE_DEVICE) != 0) return {PathKind::device, 0, 0};
  const std::uint64_t high = data.nFileSizeHigh;
  return {PathKind::file, high << 32 | data.nFileSizeLow, 0};
}

// Calls `each` with the name of everything in a folder; with nothing if it cannot be read.
template <class Each>
void for_each_name(const char* folder, const Each& each) {
  WidePath wide(folder);
  if (!wide.valid()) return;
  wide.append("\\*");
  WIN32_FIND_DATAW found;
  const HANDLE search = FindFirstFileW(wide.text(), &found);
  if (search == INVALID_HANDLE_VALUE) return;
  do {
    char name[3 * MAX_PATH + 1];
    if (WideCharToMultiByte(CP_UTF8, 0, found.cFileName, -1, name, sizeof name, nullptr, nullptr) >
        0) {
      each(std::string_view(name));
    }
  } while (FindNextFileW(search, &found));
  FindClose(search);
}

#else

inline int last_system_code() noexcept { return errno; }

// The system's words for a code of last_system_code(). Unlike strerror(), which may keep its text where
// other threads change it, strerror_r() writes here. There are two kinds of it, which return either
// the text or a code.
class SystemReason {
 public:
  explicit SystemReason(int code) noexcept : text_{} {
    use(::strerror_r(code, text_, sizeof text_));
  }
  const char* text() const noexcept { return text_; }

 private:
  void use(int failed) noexcept {
    if (failed != 0) std::snprintf(text_, sizeof text_, "unknown error");
  }
  void use(const char* text) noexcept {
    if (text != text_) std::snprintf(text_, sizeof text_, "%s", text);
  }
  char text_[256];
};

inline PathKind kind_of(mode_t mode) noexcept {
  if (S_ISREG(mode)) return PathKind::file;
  if (S_ISDIR(mode)) return PathKind::folder;
  if (S_ISFIFO(mode)) return PathKind::pipe;
  if (S_ISSOCK(mode)) return PathKind::socket;
  return S_ISCHR(mode) || S_ISBLK(mode) ? PathKind::device : PathKind::unknown;
}

inline PathStatus path_status(const char* path) noexcept {
  struct stat info;
  if (::stat(path, &info) != 0) {
    const int code = errno;
    const bool missing = code == ENOENT || code == ENOTDIR;
    return {missing ? PathKind::missing : PathKind::unknown, 0, code};
  }
  return {kind_of(info.st_mode), static_cast<std::uint64_t>(info.st_size), 0};
}

template <class Each>
void for_each_name(const char* folder, const Each& each) {
  DIR* const names = ::opendir(folder);
  if (names == nullptr) return;
  while (const dirent* entry = ::readdir(names)) each(std::string_view(entry->d_name));
  ::closedir(names);
}

#endif

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_SYSTEM_HPP_
