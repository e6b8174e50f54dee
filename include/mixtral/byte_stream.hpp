// Bytes to and from wherever the host keeps them: a file, a socket, a save game.
#ifndef MIXTRAL_BYTE_STREAM_HPP_
#define MIXTRAL_BYTE_STREAM_HPP_

#include <cstddef>
#include <memory>
#include <type_traits>

#include "mixtral/impl/compiler.hpp"

namespace mixtral {

// Views any callable `bool(const void* bytes, std::size_t size)` that takes bytes from the first to the
// last and returns false if it cannot; it must outlive the view.
class ByteWriter {
 public:
  template <class Write, class = std::enable_if_t<!std::is_same_v<std::decay_t<Write>, ByteWriter>>>
  ByteWriter(Write&& write) noexcept
      : context_(const_cast<void*>(static_cast<const void*>(std::addressof(write)))),
        call_([](void* context, const void* bytes, std::size_t size) -> bool {
          return (*static_cast<std::remove_reference_t<Write>*>(context))(bytes, size);
        }) {}

  bool operator()(const void* bytes, std::size_t size) const {
    return call_(context_, bytes, size);
  }

 private:
  void* context_;
  bool (*call_)(void*, const void*, std::size_t);
};

// Views any callable `bool(void* bytes, std::size_t size)` that gives the next `size` bytes, all of
// them, and returns false if it cannot; it must outlive the view.
class ByteReader {
 public:
  template <class Read, class = std::enable_if_t<!std::is_same_v<std::decay_t<Read>, ByteReader>>>
  ByteReader(Read&& read) noexcept
      : context_(const_cast<void*>(static_cast<const void*>(std::addressof(read)))),
        call_([](void* context, void* bytes, std::size_t size) -> bool {
          return (*static_cast<std::remove_reference_t<Read>*>(context))(bytes, size);
        }) {}

  bool operator()(void* bytes, std::size_t size) const { return call_(context_, bytes, size); }

 private:
  void* context_;
  bool (*call_)(void*, void*, std::size_t);
};

}  // namespace mixtral

#endif  // MIXTRAL_BYTE_STREAM_HPP_
