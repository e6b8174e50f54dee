#ifndef MIXTRAL_IMPL_BYTES_HPP_
#define MIXTRAL_IMPL_BYTES_HPP_

#include <limits>

#include "mixtral/bytes.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/impl/system.hpp"

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/mman.h>
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

namespace detail {

// The errors of a path that cannot be mapped: it cannot be opened or read, or is no file with contents.
inline Error cannot(const char* what, const char* path, int code) {
  return Error(ErrorCode::io, "cannot %s '%s': %s", what, ShortName(path).text(),
               SystemReason(code).text());
}
inline Status check_is_file(const char* path, const PathStatus& status) {
  if (status.code != 0) return cannot("open", path, status.code);
  if (status.kind != PathKind::file) {
    return Error(ErrorCode::io, "'%s' %s", ShortName(path).text(), kind_text(status.kind));
  }
  if (status.size == 0) {
    return Error(ErrorCode::io, "'%s' is empty", ShortName(path).text());
  }
  if (status.size > std::numeric_limits<std::size_t>::max() / 2) {
    return Error(ErrorCode::io, "'%s' has %llu bytes, more than this machine has addresses for",
                 ShortName(path).text(), static_cast<unsigned long long>(status.size));
  }
  return {};
}

}  // namespace detail

#if defined(_WIN32)

Result<Bytes> Bytes::map_file(const char* path) {
  MIXTRAL_RETURN_IF_ERROR(detail::check_is_file(path, detail::path_status(path)));
  const HANDLE file = CreateFileW(detail::WidePath(path).text(), GENERIC_READ, FILE_SHARE_READ,
                                  nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) return detail::cannot("open", path, detail::last_system_code());
  LARGE_INTEGER size{};
  Bytes result;
  const bool is_file = GetFileType(file) == FILE_TYPE_DISK;
  HANDLE mapping = nullptr;
  if (is_file && GetFileSizeEx(file, &size)) {
    mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
  }
  if (mapping != nullptr) {
    result.data_ = static_cast<const std::uint8_t*>(MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0));
  }
  const int code = detail::last_system_code();
  if (mapping != nullptr) CloseHandle(mapping);
  CloseHandle(file);
  if (!is_file) return detail::check_is_file(path, {detail::PathKind::device, 0, 0}).error();
  if (result.data_ == nullptr) return detail::cannot("map", path, code);
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
  // Before it is opened: to open a device may do something, and to open a pipe may wait for ever. The
  // path may lead elsewhere by the time it is opened, hence O_NONBLOCK and another look.
  MIXTRAL_RETURN_IF_ERROR(detail::check_is_file(path, detail::path_status(path)));
  const int file = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file < 0) return detail::cannot("open", path, errno);
  struct stat info;
  const int failed = ::fstat(file, &info) == 0 ? 0 : errno;
  const Status is_file =
      failed != 0 ? detail::cannot("open", path, failed)
                  : detail::check_is_file(path, {detail::kind_of(info.st_mode),
                                                 static_cast<std::uint64_t>(info.st_size), 0});
  if (!is_file) {
    ::close(file);
    return is_file.error();
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  void* memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  const int code = errno;
  ::close(file);
  if (memory == MAP_FAILED) return detail::cannot("map", path, code);
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
