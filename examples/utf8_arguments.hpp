// The command line in UTF-8 on every system.
#ifndef MIXTRAL_EXAMPLES_UTF8_ARGUMENTS_HPP_
#define MIXTRAL_EXAMPLES_UTF8_ARGUMENTS_HPP_

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
//
#include <shellapi.h>

#include <string>
#include <vector>
#endif

namespace program {

// What main() is given is UTF-8 already, except on Windows, where it is in the system's code page, without
// what that lacks: there the arguments are taken from the system once more, and the terminal is
// told that output is UTF-8.
class Utf8Arguments {
 public:
#ifdef _WIN32
  Utf8Arguments(int argc, char** argv) : pointers_(argv, argv + argc) {
    SetConsoleOutputCP(CP_UTF8);
    int n = 0;
    wchar_t** const wide = CommandLineToArgvW(GetCommandLineW(), &n);
    if (wide == nullptr) return;
    for (int i = 0; i < n; ++i) {
      const int size = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, nullptr, 0, nullptr, nullptr);
      std::string text(static_cast<std::size_t>(size > 0 ? size : 1), '\0');
      WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, &text[0], size, nullptr, nullptr);
      texts_.push_back(std::move(text));
    }
    LocalFree(wide);
    pointers_.clear();
    for (std::string& text : texts_) pointers_.push_back(&text[0]);
  }
  int count() const { return static_cast<int>(pointers_.size()); }
  char** values() { return pointers_.data(); }

 private:
  std::vector<std::string> texts_;
  std::vector<char*> pointers_;
#else
  Utf8Arguments(int argc, char** argv) : argc_(argc), argv_(argv) {}
  int count() const { return argc_; }
  char** values() { return argv_; }

 private:
  int argc_;
  char** argv_;
#endif
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_UTF8_ARGUMENTS_HPP_
