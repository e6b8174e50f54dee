// Where the tiny model is that comes with this project.
#ifndef MIXTRAL_EXAMPLES_BUNDLED_MODEL_HPP_
#define MIXTRAL_EXAMPLES_BUNDLED_MODEL_HPP_

#include <filesystem>
#include <string>
#include <system_error>

#include "options.hpp"

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

namespace program {

// The file that this program runs from; empty where the system does not tell.
inline std::filesystem::path own_file() {
  namespace fs = std::filesystem;
#ifdef _WIN32
  wchar_t path[32768];
  const DWORD size = GetModuleFileNameW(nullptr, path, 32768);
  return size == 0 || size == 32768 ? fs::path() : fs::path(path, path + size);
#else
  std::error_code ignored;
#ifdef __APPLE__
  char path[4096];
  std::uint32_t size = sizeof path;
  return _NSGetExecutablePath(path, &size) == 0 ? fs::canonical(path, ignored) : fs::path();
#else
  return fs::read_symlink("/proc/self/exe", ignored);
#endif
#endif
}

// The tiny model's file. An installed program finds it from where it is itself, by the path
// MIXTRAL_INSTALLED_MODEL, so that what was installed may be moved; one in a build folder finds it in the
// sources, MIXTRAL_SOURCE_MODEL. Both are set by the build.
inline std::string bundled_model() {
  namespace fs = std::filesystem;
  const fs::path program = own_file();
  const fs::path installed =
      (program.parent_path() / fs::u8path(MIXTRAL_INSTALLED_MODEL)).lexically_normal();
  const fs::path source = fs::u8path(MIXTRAL_SOURCE_MODEL);
  std::error_code ignored;
  const bool is_installed =
      !program.empty() && (fs::exists(installed, ignored) || !fs::exists(source, ignored));
  return (is_installed ? installed : source).u8string();
}

// The option --model of a program that has a model without it.
inline void add_model_or_bundled(CLI::App& app, std::string& path) {
  path = bundled_model();
  add_path(app, "--model", path, "GGUF file or model folder (default: the bundled tiny model)");
}

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_BUNDLED_MODEL_HPP_
