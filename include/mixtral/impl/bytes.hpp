#ifndef MIXTRAL_IMPL_BYTES_HPP_
#define MIXTRAL_IMPL_BYTES_HPP_

#include <cerrno>
#include <cstring>
#include <limits>

#include "mixtral/bytes.hpp"
#include "mixtral/impl/slab.hpp"

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace mixtral {

Bytes::Bytes(Bytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      owner_(std::exchange(other.owner_, Owner::none)),
      resource_(other.resource_) {}

Bytes& Bytes::operator=(Bytes&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    owner_ = std::exchange(other.owner_, Owner::none);
    resource_ = other.resource_;
  }
  return *this;
}

Bytes::~Bytes() { release(); }

Bytes Bytes::view(Span<const std::uint8_t> bytes) noexcept {
  Bytes result;
  result.data_ = bytes.data();
  result.size_ = bytes.size();
  return result;
}

Result<Bytes> Bytes::read_all(std::uint64_t size, ReadFunction read, void* context,
                              std::pmr::memory_resource* resource) {
  if (size > std::numeric_limits<std::size_t>::max() / 2) {
    return Error(ErrorCode::invalid_argument, "a size of %llu bytes does not fit this machine",
                 static_cast<unsigned long long>(size));
  }
  Bytes result;
  result.size_ = static_cast<std::size_t>(size);
  if (size == 0) return result;
  void* memory = detail::allocate(resource, result.size_);
  if (memory == nullptr) {
    return Error(ErrorCode::out_of_memory, "no memory for the %llu bytes of the model file",
                 static_cast<unsigned long long>(size));
  }
  result.data_ = static_cast<const std::uint8_t*>(memory);
  result.owner_ = Owner::resource;
  result.resource_ = resource;
  detail::advise_large_pages(memory, result.size_);
  // In pieces, so that a host callback with a 32-bit interface underneath is not asked too much.
  constexpr std::size_t kPiece = std::size_t{1} << 24;
  for (std::size_t offset = 0; offset < result.size_; offset += kPiece) {
    const std::size_t count = result.size_ - offset < kPiece ? result.size_ - offset : kPiece;
    if (!read(context, offset, static_cast<std::uint8_t*>(memory) + offset, count)) {
      return Error(ErrorCode::io, "the host's read callback failed for %zu bytes at offset %zu",
                   count, offset);
    }
  }
  return result;
}

#if defined(_WIN32)

Result<Bytes> Bytes::map_file(const char* path) {
  wchar_t wide[32768];
  if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 32768) == 0) {
    return Error(ErrorCode::invalid_argument, "the path '%s' is not valid UTF-8", path);
  }
  const HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING,
                                  FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) {
    return Error(ErrorCode::io, "cannot open '%s' (Windows error %lu); check the path", path,
                 GetLastError());
  }
  LARGE_INTEGER size;
  Bytes result;
  if (GetFileSizeEx(file, &size) && size.QuadPart > 0) {
    const HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    if (mapping != nullptr) {
      result.data_ =
          static_cast<const std::uint8_t*>(MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0));
      CloseHandle(mapping);
    }
  }
  const DWORD code = GetLastError();
  CloseHandle(file);
  if (result.data_ == nullptr) {
    return Error(ErrorCode::io, "cannot map '%s' (empty, or Windows error %lu)", path, code);
  }
  result.size_ = static_cast<std::size_t>(size.QuadPart);
  result.owner_ = Owner::mapping;
  return result;
}

void Bytes::drop_pages() const noexcept {}

void Bytes::release() noexcept {
  if (owner_ == Owner::mapping) UnmapViewOfFile(data_);
  if (owner_ == Owner::resource) {
    detail::deallocate(resource_, const_cast<std::uint8_t*>(data_), size_);
  }
  owner_ = Owner::none;
}

#else

Result<Bytes> Bytes::map_file(const char* path) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return Error(ErrorCode::io, "cannot open '%s': %s", path, std::strerror(errno));
  }
  struct stat info;
  if (::fstat(file, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0) {
    ::close(file);
    return Error(ErrorCode::io, "'%s' is not a regular file with contents", path);
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  void* memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  const int code = errno;
  ::close(file);
  if (memory == MAP_FAILED) {
    return Error(ErrorCode::io, "cannot map '%s': %s", path, std::strerror(code));
  }
  Bytes result;
  result.data_ = static_cast<const std::uint8_t*>(memory);
  result.size_ = size;
  result.owner_ = Owner::mapping;
  return result;
}

void Bytes::drop_pages() const noexcept {
  if (owner_ != Owner::mapping) return;
  ::madvise(const_cast<std::uint8_t*>(data_), size_, MADV_DONTNEED);
}

void Bytes::release() noexcept {
  if (owner_ == Owner::mapping) ::munmap(const_cast<std::uint8_t*>(data_), size_);
  if (owner_ == Owner::resource) {
    detail::deallocate(resource_, const_cast<std::uint8_t*>(data_), size_);
  }
  owner_ = Owner::none;
}

#endif

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_BYTES_HPP_
