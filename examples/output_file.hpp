// How the programs write files: complete or not at all, and never over what the user wants to keep.
#ifndef MIXTRAL_EXAMPLES_OUTPUT_FILE_HPP_
#define MIXTRAL_EXAMPLES_OUTPUT_FILE_HPP_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif

namespace program {

#ifdef _WIN32
using SystemCode = DWORD;
inline SystemCode last_code() { return GetLastError(); }
#else
using SystemCode = int;
inline SystemCode last_code() { return errno; }
#endif

// The system's words, in UTF-8, for a code of last_code().
inline std::string system_reason(SystemCode code) {
#ifdef _WIN32
  wchar_t wide[512];
  DWORD size = FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr,
                              code, 0, wide, 512, nullptr);
  while (size > 0 && (wide[size - 1] <= L' ' || wide[size - 1] == L'.')) --size;
  char text[2048];
  const int n = WideCharToMultiByte(CP_UTF8, 0, wide, static_cast<int>(size), text, sizeof text,
                                    nullptr, nullptr);
  if (n > 0) return std::string(text, static_cast<std::size_t>(n));
  return "Windows error " + std::to_string(code);
#else
  return std::generic_category().message(code);
#endif
}

// What a program reads while it writes, so that it is never written over: the path of a model as
// the user gave it, which may stand for several files, and paths of single files. Empty ones are none.
struct Inputs {
  std::string model;
  std::vector<std::string> files;
};

// The beginning of a text in UTF-8: at most `most` bytes, and no part of a character.
inline std::string first_bytes(const std::string& text, std::size_t most) {
  std::size_t size = text.size() < most ? text.size() : most;
  while (size > 0 && size < text.size() && (text[size] & 0xC0) == 0x80) --size;
  return text.substr(0, size);
}

namespace detail {

namespace fs = std::filesystem;

inline bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Is this the name of a file by which a user can name the model of the folder that it lies in?
inline bool is_of_model_folder(std::string_view name) {
  for (const char* end : {".json", ".safetensors", ".pth", ".pt", ".jinja"}) {
    if (ends_with(name, end)) return true;
  }
  return name.substr(0, 15) == "tokenizer.model";
}

// Is `output` a file that is there under any name, and that a model is read from?
inline bool is_of_model(const fs::path& output, const fs::path& model) {
  std::error_code ignored;
  if (fs::equivalent(output, model, ignored)) return true;
  const std::string name = model.filename().u8string();
  const bool is_folder = fs::is_directory(model, ignored);
  // An index may give the files of a model folder any names. GGUF files there are others' results.
  const bool is_in_folder = is_folder || is_of_model_folder(name);
  // All parts of NAME-00001-of-00007.gguf have the name's beginning and end.
  constexpr std::size_t kNumberAndEnd = 19, kNumber = 5;
  const std::size_t at = name.size() > kNumberAndEnd ? name.size() - kNumberAndEnd : 0;
  const std::string_view beginning = std::string_view(name).substr(0, at);
  const std::string_view end = std::string_view(name).substr(at > 0 ? at + kNumber : 0);
  const bool in_parts = at > 0 && end.substr(0, 4) == "-of-" && ends_with(end, ".gguf");
  if (!is_in_folder && !in_parts) return false;
  const fs::path folder = is_folder ? model : model.has_parent_path() ? model.parent_path() : ".";
  fs::directory_iterator entry(folder, ignored);
  for (; !ignored && entry != fs::directory_iterator(); entry.increment(ignored)) {
    const std::string other = entry->path().filename().u8string();
    const bool belongs = is_in_folder ? !ends_with(other, ".gguf")
                                      : other.size() == name.size() && ends_with(other, end) &&
                                            other.compare(0, at, beginning) == 0;
    std::error_code none;
    if (belongs && fs::equivalent(output, entry->path(), none)) return true;
  }
  return false;
}

#ifndef _WIN32

struct TemporaryName {
  std::atomic<int> state{0};
  char name[4096];
};

// The temporary files that are being written. A handler of signals may run at any time, on any
// thread, and may do little: so their names lie in a fixed table, each under one atomic state.
class TemporaryFiles {
 public:
  // Gives the name a place in the table, or none (-1) if the table is full or the name too long. What
  // has the name is removed if a signal ends the process before release().
  static int add(const std::string& name) {
    static const bool installed = install();
    static_cast<void>(installed);
    if (name.size() >= sizeof places_[0].name) return -1;
    for (int i = 0; i < kPlaces; ++i) {
      int state = kFree;
      if (!places_[i].state.compare_exchange_strong(state, kFilling)) continue;
      std::memcpy(places_[i].name, name.c_str(), name.size() + 1);
      change(i, kFilling, kActive);
      return i;
    }
    return -1;
  }
  static void release(int place) { change(place, kActive, kFree); }

 private:
  enum : int { kFree = 0, kFilling = 1, kActive = 2, kDying = 4 };
  static constexpr int kPlaces = 8;
  static_assert(std::atomic<int>::is_always_lock_free, "handlers of signals change the state");

  static void change(int place, int from, int to) {
    if (places_[place].state.compare_exchange_strong(from, to)) return;
    for (;;)
      ::pause();  // A handler on another thread has the table and is about to end the process.
  }

  static void on_signal(int signal) {
    for (TemporaryName& place : places_) {
      if ((place.state.fetch_or(kDying) & kActive) != 0) ::unlink(place.name);
    }
    // The process ends as it would have without the handler, and its exit status tells the signal.
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    // The first process of a container outlives that. It ends with the exit status that a shell would give.
    ::_exit(128 + signal);
  }

  // Handles every signal that ends the process by default. One that the program handles itself or that
  // is ignored (as under nohup) stays as it is.
  static bool install() {
    for (int signal = 1; signal < NSIG; ++signal) {
      switch (signal) {
        case SIGKILL:
        case SIGSTOP:
        case SIGTSTP:
        case SIGTTIN:
        case SIGTTOU:
        case SIGCONT:
        case SIGCHLD:
        case SIGURG:
#ifdef SIGWINCH
        case SIGWINCH:
#endif
#ifdef SIGINFO
        case SIGINFO:
#endif
          continue;
        default: break;
      }
      struct sigaction action {};
      if (::sigaction(signal, nullptr, &action) != 0 || (action.sa_flags & SA_SIGINFO) != 0 ||
          action.sa_handler != SIG_DFL) {
        continue;
      }
      action = {};
      action.sa_handler = on_signal;
      action.sa_flags = SA_NODEFER;  // so that raise() above ends the process at once
      ::sigemptyset(&action.sa_mask);
      ::sigaction(signal, &action, nullptr);
    }
    return true;
  }

  static inline TemporaryName places_[kPlaces];
};

#endif

}  // namespace detail

// A file that is written under a temporary name beside its place and takes that place when it is
// complete, or vanishes: by the destructor, and by any signal that can be caught and ends the process.
//
// The temporary name is new and random, PATH.<16 digits>.part, so that no two runs write to the same
// file, and what a killed run has left is in nobody's way. The output must be a plain file or none:
// folders, devices, pipes, sockets and symbolic links are refused before anything is opened, as are
// files that the program reads (`inputs`) under any of their names. An existing file is replaced
// only by `force`, at once, and hands on its permissions; without `force` a file that appears while
// this one is written is kept as well, and `overwriting` tells the user what replaces it. All members
// throw std::runtime_error with the path and the system's reason.
class OutputFile {
 public:
  OutputFile(const std::string& path, bool force, const Inputs& inputs = {},
             const char* overwriting = "--force overwrites it")
      : path_(path),
        force_(force),
        inputs_(inputs),
        overwriting_(overwriting),
        target_(std::filesystem::u8path(path)) {
    if (path.empty()) throw std::runtime_error("the path of the output is empty");
    check_target();
    create();
  }
  ~OutputFile() {
    close();
    remove();
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::string& path() const { return path_; }

  // Throws if both are to become one file, so that the first one's contents would be lost.
  void check_differs(const OutputFile& other) const {
    if (!has_place_of(other)) return;
    throw std::runtime_error(path_ == other.path_
                                 ? "'" + path_ + "' is given twice as an output"
                                 : "'" + other.path_ + "' and '" + path_ + "' are the same output");
  }

  void write(std::string_view bytes) {
    if (buffer_.size() + bytes.size() > kBuffer) flush();
    if (bytes.size() > kBuffer) return put(bytes);
    buffer_.append(bytes);
  }

  // Gives the file its name, after all of it has reached the disk.
  void finish() {
    flush();
    synchronize();
    if (!close()) fail(last_code());
    check_target();
    take_place();
  }

 private:
  static constexpr std::size_t kBuffer = std::size_t{1} << 18;

  [[noreturn]] void fail(SystemCode code) const { fail(system_reason(code)); }
  [[noreturn]] void fail(const std::string& reason) const {
    throw std::runtime_error("cannot write '" + path_ + "': " + reason);
  }
  [[noreturn]] void fail_as_there() const {
    throw std::runtime_error("'" + path_ + "' is there already; " + overwriting_);
  }

  bool has_place_of(const OutputFile& other) const {
    namespace fs = std::filesystem;
    const auto folder_of = [](const fs::path& file) {
      return file.has_parent_path() ? file.parent_path() : fs::path(".");
    };
    std::error_code ignored;
    // One file under two names: of a disk that knows no capitals, perhaps.
    if (fs::equivalent(target_, other.target_, ignored)) return true;
#ifdef _WIN32
    const bool same_name =
        CompareStringOrdinal(target_.filename().c_str(), -1, other.target_.filename().c_str(), -1,
                             TRUE) == CSTR_EQUAL;
#else
    const bool same_name = target_.filename() == other.target_.filename();
#endif
    return same_name && fs::equivalent(folder_of(target_), folder_of(other.target_), ignored);
  }

  // Looks at what is at the path, without opening it.
  void check_target() {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::file_status status = fs::symlink_status(target_, error);
    switch (status.type()) {
      case fs::file_type::not_found: return;
      case fs::file_type::regular: break;
      case fs::file_type::none: fail(error.message());
      case fs::file_type::symlink: fail("it is a symbolic link; name the file that it leads to");
      case fs::file_type::directory: fail("it is a folder");
      case fs::file_type::fifo: fail("it is a pipe (FIFO), not a file");
      case fs::file_type::socket: fail("it is a socket, not a file");
      case fs::file_type::block:
      case fs::file_type::character: fail("it is a device, not a file");
      default: fail("it is not a plain file");
    }
    if (!inputs_.model.empty() && detail::is_of_model(target_, fs::u8path(inputs_.model))) {
      throw std::runtime_error("'" + path_ + "' is the input, or one of its files");
    }
    for (const std::string& input : inputs_.files) {
      if (!input.empty() && fs::equivalent(target_, fs::u8path(input), error)) {
        throw std::runtime_error("'" + path_ + "' is an input");
      }
    }
    if (!force_) fail_as_there();
  }

  // Keeps at most 200 bytes of the output's name, so that the whole is no longer than systems allow.
  std::filesystem::path random_name() const {
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string name = first_bytes(target_.filename().u8string(), 200);
    std::random_device random;
    name += '.';
    for (int i = 0; i < 16; ++i) name += kDigits[random() % 16];
    return target_.parent_path() / std::filesystem::u8path(name + ".part");
  }

  void flush() {
    put(buffer_);
    buffer_.clear();
  }

#ifdef _WIN32
  void create() {
    if (target_.filename().empty()) fail("it is the name of a folder");
    temporary_ = random_name();
    file_ = CreateFileW(temporary_.c_str(), GENERIC_WRITE | DELETE, FILE_SHARE_READ, nullptr,
                        CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file_ == INVALID_HANDLE_VALUE) fail(last_code());
    exists_ = true;
    if (GetFileType(file_) != FILE_TYPE_DISK) fail_to_create("it is a device, not a file");
    remove_on_close(true);
  }
  [[noreturn]] void fail_to_create(const std::string& reason) {
    close();
    remove();
    fail(reason);
  }

  // However the process ends, Windows closes its files, and removes this one.
  void remove_on_close(bool removed) {
    FILE_DISPOSITION_INFO info{};
    info.DeleteFile = removed ? TRUE : FALSE;
    SetFileInformationByHandle(file_, FileDispositionInfo, &info, sizeof info);
  }

  void put(std::string_view bytes) {
    while (!bytes.empty()) {
      constexpr std::size_t kMost = std::size_t{1} << 30;
      DWORD n = 0;
      const auto size = static_cast<DWORD>(bytes.size() < kMost ? bytes.size() : kMost);
      if (!WriteFile(file_, bytes.data(), size, &n, nullptr)) fail(last_code());
      bytes.remove_prefix(n);
    }
  }

  void synchronize() {
    if (!FlushFileBuffers(file_)) fail(last_code());
    remove_on_close(false);
  }

  bool close() {
    const HANDLE file = file_;
    file_ = INVALID_HANDLE_VALUE;
    return file == INVALID_HANDLE_VALUE || CloseHandle(file);
  }

  void take_place() {
    const DWORD flags = MOVEFILE_WRITE_THROUGH | (force_ ? MOVEFILE_REPLACE_EXISTING : 0);
    if (!MoveFileExW(temporary_.c_str(), target_.c_str(), flags)) {
      const DWORD code = last_code();
      if (code == ERROR_ALREADY_EXISTS || code == ERROR_FILE_EXISTS) fail_as_there();
      fail(code);
    }
    exists_ = false;
  }

  void remove() {
    if (exists_) DeleteFileW(temporary_.c_str());
    exists_ = false;
  }

  HANDLE file_ = INVALID_HANDLE_VALUE;
  bool exists_ = false;
#else
  // As any new file, or with what the file that it replaces allows.
  void create() {
    if (target_.filename().empty()) fail("it is the name of a folder");
    struct stat old {};
    const bool replaces = ::stat(target_.c_str(), &old) == 0;
    for (int tries = 0; file_ < 0; ++tries) {
      temporary_ = random_name();
      place_ = detail::TemporaryFiles::add(temporary_.string());
      if (place_ < 0) fail(ENAMETOOLONG);
      file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                     static_cast<mode_t>(replaces ? 0600 : 0666));
      if (file_ >= 0) break;
      const int code = errno;
      detail::TemporaryFiles::release(place_);
      place_ = -1;
      if (code != EEXIST || tries == 100) fail(code);
    }
    if (!replaces) return;
    // The owner first: a change of it may take permissions away. Only some users may change it. What
    // the old file's group may do, another group may not.
    constexpr uid_t kUnchanged = static_cast<uid_t>(-1);
    mode_t kept = 07777;
    if (::fchown(file_, old.st_uid, old.st_gid) != 0) {
      kept = 0777;
      struct stat now {};
      if (::fchown(file_, kUnchanged, old.st_gid) != 0 &&
          (::fstat(file_, &now) != 0 || now.st_gid != old.st_gid)) {
        kept = 0707;
      }
    }
    ::fchmod(file_, old.st_mode & kept);
  }

  void put(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(file_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail(n < 0 ? errno : EIO);
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
  }

  void synchronize() {
    int code = 0;
    do {
      code = ::fsync(file_) == 0 ? 0 : errno;
    } while (code == EINTR);
    if (code != 0 && code != EINVAL && code != ENOTSUP && code != ENOSYS) fail(code);
  }

  bool close() {
    const int file = file_;
    file_ = -1;
    return file < 0 || ::close(file) == 0 || errno == EINTR;
  }

  void take_place() {
    if (force_) {
      if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail(errno);
    } else if (::link(temporary_.c_str(), target_.c_str()) == 0) {
      ::unlink(temporary_.c_str());
    } else if (errno == EEXIST || !rename_to_free_name()) {
      switch (errno) {
        case EEXIST: fail_as_there();
        case EINVAL:
        case ENOSYS:
        case EPERM:
        case ENOTSUP:
#if EOPNOTSUPP != ENOTSUP
        case EOPNOTSUPP:
#endif
          // The file system knows neither way. A file that appears between these two lines is lost.
          check_target();
          if (::rename(temporary_.c_str(), target_.c_str()) == 0) break;
          [[fallthrough]];
        default: fail(errno);
      }
    }
    detail::TemporaryFiles::release(place_);
    place_ = -1;
  }

  // Where a file system has no second names for a file. Leaves the reason in errno.
  bool rename_to_free_name() {
#if defined(__linux__) && defined(SYS_renameat2)
    constexpr unsigned kNoReplace = 1;  // RENAME_NOREPLACE
    return ::syscall(SYS_renameat2, AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(),
                     kNoReplace) == 0;
#elif defined(__APPLE__)
    return ::renamex_np(temporary_.c_str(), target_.c_str(), RENAME_EXCL) == 0;
#else
    errno = ENOSYS;
    return false;
#endif
  }

  void remove() {
    if (place_ < 0) return;
    ::unlink(temporary_.c_str());
    detail::TemporaryFiles::release(place_);
    place_ = -1;
  }

  int file_ = -1, place_ = -1;
#endif

  std::string path_;
  bool force_;
  Inputs inputs_;
  std::string overwriting_;
  std::filesystem::path target_, temporary_;
  std::string buffer_;
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_OUTPUT_FILE_HPP_
