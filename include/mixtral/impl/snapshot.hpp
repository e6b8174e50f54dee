// The format of saved sessions, version 1, little-endian:
//
//   SnapshotHeader, as it lies in memory; `checksum` is that of what comes before it
//   tokens           int32[n_tokens]
//   turns            uint8[n_tokens]
//   pages            for each page of 64 positions from first_page on: its first rows, as many as are
//                    in use, [layer][keys, values][kv head][position][head_size] in kv_format; none if a
//                    window has moved over all of them
//   logits           float32[vocab_size], if has_logits
//   checksum         uint64, of everything after the header: of the tokens, the turns, each run of rows
//                    of one head and the logits, each filled up with zeros to whole 64-bit words
//
// A saved generation is a saved session with what the transfer functions of Generation::Impl write after
// it, in the order that stands there. It begins with the bytes "MIXTRALG", a version of its own and the
// session's checksum, and ends with a checksum like the session's; numbers are little-endian, a flag is one
// byte, a sequence is its length as uint64 and its elements.
#ifndef MIXTRAL_IMPL_SNAPSHOT_HPP_
#define MIXTRAL_IMPL_SNAPSHOT_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "mixtral/byte_stream.hpp"
#include "mixtral/impl/fingerprint.hpp"

namespace mixtral::detail {

struct SnapshotHeader {
  static constexpr char kMagic[8] = {'M', 'I', 'X', 'T', 'R', 'A', 'L', 'S'};
  static constexpr std::uint32_t kVersion = 1;
  // More than any session comes to. With the highest frequencies that a model may have (rope factors and
  // scales of 0.001) angles are below 2^60, of which there are sines.
  static constexpr std::uint64_t kMaxRotaryOffset = std::uint64_t{1} << 39;

  char magic[8];
  std::uint32_t version;
  std::uint32_t kv_format;  // the number that GGUF gives the type
  std::uint64_t model;      // model_fingerprint()
  std::uint64_t rotary_offset;
  std::uint32_t n_tokens;
  std::uint32_t n_evaluated;
  std::uint32_t first_page;
  std::uint32_t has_logits;  // 0 or 1
  std::uint64_t checksum;

  std::uint64_t sum() const noexcept {
    Checksum sum;
    sum.add(this, offsetof(SnapshotHeader, checksum));
    return sum.value();
  }
};
static_assert(sizeof(SnapshotHeader) == 56, "no padding: it is written as it lies in memory");

// Writes with a running checksum. Reader and writer have functions of the same names, so that one template
// can state a format for both; kReads tells it which of them it has.
class SnapshotWriter {
 public:
  static constexpr bool kReads = false;

  explicit SnapshotWriter(ByteWriter write) : write_(write) {}
  void bytes(const void* from, std::size_t size) {
    if (!good_) return;
    sum_.add(from, size);
    good_ = write_(from, size);
  }
  template <class T>
  void value(const T& number) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    bytes(&number, sizeof number);
  }
  void flag(bool is_set) { value(static_cast<std::uint8_t>(is_set ? 1 : 0)); }
  // A vector or string of simple elements, `most` of them at most.
  template <class Sequence>
  void sequence(const Sequence& elements, std::size_t most) {
    static_assert(std::is_trivially_copyable_v<typename Sequence::value_type>);
    if (elements.size() > most) return fail();
    value(static_cast<std::uint64_t>(elements.size()));
    bytes(elements.data(), elements.size() * sizeof(typename Sequence::value_type));
  }
  // Returns what it writes.
  std::uint64_t put_checksum() {
    const std::uint64_t sum = sum_.value();
    if (good_) good_ = write_(&sum, sizeof sum);
    return sum;
  }
  // To be called for something that is too large for the format.
  void fail() noexcept {
    good_ = false;
    is_too_large_ = true;
  }
  bool good() const noexcept { return good_; }
  bool is_too_large() const noexcept { return is_too_large_; }

 private:
  ByteWriter write_;
  Checksum sum_;
  bool good_ = true;
  bool is_too_large_ = false;
};

// Reads what a SnapshotWriter wrote, or anything else: what cannot have been written, and what is read
// once something was not good, leaves zeros and empty sequences.
class SnapshotReader {
 public:
  static constexpr bool kReads = true;

  explicit SnapshotReader(ByteReader read) : read_(read) {}
  void bytes(void* to, std::size_t size) {
    if (good()) is_read_ = read_(to, size);
    if (good()) {
      sum_.add(to, size);
    } else {
      std::memset(to, 0, size);
    }
  }
  template <class T>
  void value(T& number) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    bytes(&number, sizeof number);
  }
  void flag(bool& is_set) {
    std::uint8_t byte = 0;
    value(byte);
    if (byte > 1) fail();
    is_set = good() && byte == 1;
  }
  // Takes memory as elements come, so that a damaged number of them takes none.
  template <class Sequence>
  void sequence(Sequence& elements, std::size_t most) {
    using Element = typename Sequence::value_type;
    static_assert(std::is_trivially_copyable_v<Element>);
    constexpr std::size_t kPiece = 4096;
    std::uint64_t size = 0;
    value(size);
    if (size > most) fail();
    elements.clear();
    while (good() && elements.size() < size) {
      const std::size_t begin = elements.size();
      const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, size - begin));
      elements.resize(begin + n);
      bytes(&elements[begin], n * sizeof(Element));
    }
    if (!good()) elements.clear();
  }
  std::uint64_t checksum() const noexcept { return sum_.value(); }
  // Does what was read have the checksum that comes now?
  bool checksum_matches() {
    std::uint64_t sum = 0;
    if (good()) is_read_ = read_(&sum, sizeof sum);
    return good() && sum == sum_.value();
  }
  // To be called for what cannot have been written.
  void fail() noexcept { is_valid_ = false; }
  bool good() const noexcept { return is_read_ && is_valid_; }
  bool is_read() const noexcept { return is_read_; }  // no read has failed

 private:
  ByteReader read_;
  Checksum sum_;
  bool is_read_ = true;
  bool is_valid_ = true;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_SNAPSHOT_HPP_
