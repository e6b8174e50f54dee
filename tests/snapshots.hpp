// Saved sessions as bytes: taken apart, changed, and put together with checksums that are right.
#ifndef MIXTRAL_TESTS_SNAPSHOTS_HPP_
#define MIXTRAL_TESTS_SNAPSHOTS_HPP_

#include "sessions.hpp"

namespace support {

// The header of a saved session, as impl/snapshot.hpp describes it.
struct SnapshotHead {
  char magic[8];
  std::uint32_t version;
  std::uint32_t kv_format;
  std::uint64_t model;
  std::uint64_t rotary_offset;
  std::uint32_t n_tokens;
  std::uint32_t n_evaluated;
  std::uint32_t first_page;
  std::uint32_t has_logits;
  std::uint64_t checksum;
};
static_assert(sizeof(SnapshotHead) == 56);

// The checksum of saved sessions, written anew from its definition: files must not change their meaning.
class SnapshotSum {
 public:
  void add(const std::uint8_t* from, std::size_t size) {
    for (std::size_t i = 0; i < size; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, from + i, std::min<std::size_t>(8, size - i));
      sum_ = (sum_ ^ word) * 0x9E3779B97F4A7C15u;
      sum_ ^= sum_ >> 32;
    }
  }
  std::uint64_t value() const { return sum_; }

 private:
  std::uint64_t sum_ = 0xCBF29CE484222325u;
};

inline SnapshotHead head_of(const Blob& saved) {
  SnapshotHead head;
  REQUIRE(saved.size() >= sizeof head);
  std::memcpy(&head, saved.data(), sizeof head);
  return head;
}

// The sizes of the runs that a header announces, each of which the checksum fills up to whole words.
inline std::vector<std::size_t> snapshot_runs(const SnapshotHead& head,
                                              const mixtral::Config& config) {
  const auto& info = *mixtral::block_format_info(static_cast<mixtral::BlockFormat>(head.kv_format));
  const std::size_t row_bytes = config.head_size / info.block_size * info.block_bytes;
  std::vector<std::size_t> runs = {head.n_tokens * sizeof(mixtral::Token), head.n_tokens};
  for (std::size_t begin = std::size_t{head.first_page} * 64; begin < head.n_evaluated;
       begin += 64) {
    const std::size_t n = std::min<std::size_t>(64, head.n_evaluated - begin);
    for (std::size_t i = 0; i < std::size_t{2} * config.n_layers * config.n_kv_heads; ++i) {
      runs.push_back(n * row_bytes);
    }
  }
  if (head.has_logits != 0) runs.push_back(std::size_t{config.vocab_size} * sizeof(float));
  return runs;
}

// A saved session with this header, its checksum put right, and as much of `body` as that announces,
// again and again if it is too short, with its checksum.
inline Blob snapshot(SnapshotHead head, const mixtral::Config& config, const Blob& body) {
  SnapshotSum of_head;
  of_head.add(reinterpret_cast<const std::uint8_t*>(&head), offsetof(SnapshotHead, checksum));
  head.checksum = of_head.value();
  Blob out;
  GgufWriter::put(head, out);
  SnapshotSum sum;
  std::size_t at = 0;
  for (const std::size_t size : snapshot_runs(head, config)) {
    const std::size_t begin = out.size();
    for (std::size_t i = 0; i < size; ++i, ++at) {
      out.push_back(body.empty() ? std::uint8_t{0} : body[at % body.size()]);
    }
    sum.add(out.data() + begin, size);
  }
  GgufWriter::put(sum.value(), out);
  return out;
}

// What lies between the header and the last checksum.
inline Blob body_of(const Blob& saved) {
  return {saved.begin() + sizeof(SnapshotHead), saved.end() - 8};
}

inline Blob save(const mixtral::Session& s) {
  Blob saved;
  const auto write = [&](const void* from, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(from);
    saved.insert(saved.end(), bytes, bytes + size);
    return true;
  };
  REQUIRE(s.save(write));
  return saved;
}

// Loads all of it: what is left over would be another's.
inline mixtral::Status load(mixtral::Session& s, const Blob& saved) {
  std::size_t at = 0;
  const auto read = [&](void* to, std::size_t size) {
    if (size > saved.size() - at) return false;
    std::memcpy(to, saved.data() + at, size);
    at += size;
    return true;
  };
  const auto status = s.load(read);
  if (status) CHECK(at == saved.size());
  return status;
}

}  // namespace support

#endif  // MIXTRAL_TESTS_SNAPSHOTS_HPP_
