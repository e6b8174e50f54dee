// Where a model's bytes come from: a mapped file, memory the host holds, or a host callback.
#ifndef MIXTRAL_BYTES_HPP_
#define MIXTRAL_BYTES_HPP_

#include <cstddef>
#include <cstdint>
#include <memory_resource>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

// Contiguous read-only bytes, released by the destructor if this object owns them. Move only.
class Bytes {
 public:
  // Reads `size` bytes at `offset` into `destination`; returns false on failure.
  using ReadFunction = bool (*)(void* context, std::uint64_t offset, void* destination,
                                std::size_t size);

  Bytes() noexcept = default;
  Bytes(Bytes&& other) noexcept;
  Bytes& operator=(Bytes&& other) noexcept;
  ~Bytes();

  // Maps the file read-only; nothing is copied and pages are shared between processes.
  // `path` is UTF-8. The file must not shrink while it is mapped: the operating system then ends
  // the process at the next access (SIGBUS), which no library can prevent. Errors: io, with the
  // system's reason, or that the path is no regular file (a folder, pipe, socket or device, none of which
  // is opened) or an empty one.
  static Result<Bytes> map_file(const char* path);

  // Views bytes that the host keeps alive and unchanged for as long as this object lives.
  static Bytes view(Span<const std::uint8_t> bytes) noexcept;

  // Reads all `size` bytes through `read` into memory of `resource` (an archive, an asset system),
  // one piece after the other. Linux is asked for large pages, from which weights are read faster.
  // Errors: io when `read` fails, out_of_memory.
  static Result<Bytes> read_all(std::uint64_t size, ReadFunction read, void* context,
                                std::pmr::memory_resource* resource);

  // Takes what was read of a mapped file out of the process's memory; it stays in the system's, and reading it
  // again costs a little time. Does nothing to other bytes, and nothing on Windows.
  void drop_pages() const noexcept;

  const std::uint8_t* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  enum class Owner { none, mapping, resource };
  void release() noexcept;

  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  Owner owner_ = Owner::none;
  std::pmr::memory_resource* resource_ = nullptr;
};

}  // namespace mixtral

#endif  // MIXTRAL_BYTES_HPP_
