// The directory of a zip archive whose entries are stored, not compressed (PKWARE APPNOTE.TXT 6.3.9),
// with zip64: what torch.save() writes.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_ZIP_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_ZIP_HPP_

#include <algorithm>
#include <cstdint>
#include <memory_resource>
#include <string_view>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"

namespace mixtral::detail {

struct ZipEntry {
  std::string_view name;
  Span<const std::uint8_t> data;
};

class ZipReader {
 public:
  ZipReader(Span<const std::uint8_t> bytes, const char* where) : bytes_(bytes), where_(where) {}

  // All entries, in the order of the directory. Refuses whatever is compressed, encrypted, out of
  // bounds or overlapping.
  Result<std::pmr::vector<ZipEntry>> read(std::pmr::memory_resource* resource) {
    std::uint64_t count, size, offset;
    MIXTRAL_RETURN_IF_ERROR(find_directory(count, size, offset));
    if (offset > bytes_.size() || size > bytes_.size() - offset || count > size / 46) {
      return error("its directory of %llu entries, %llu bytes at %llu, does not fit the file",
                   Number{count}, Number{size}, Number{offset});
    }
    std::pmr::vector<ZipEntry> entries(resource);
    std::uint64_t at = offset;
    for (std::uint64_t i = 0; i < count; ++i) {
      ZipEntry entry;
      MIXTRAL_RETURN_IF_ERROR(read_entry(at, offset + size, entry));
      entries.push_back(entry);
    }
    MIXTRAL_RETURN_IF_ERROR(check_overlaps(entries, resource));
    return entries;
  }

 private:
  static constexpr std::uint32_t kMax32 = 0xffffffffu;
  using Number = unsigned long long;  // for %llu

  MIXTRAL_PRINTF_LIKE(2, 3)
  Error error(const char* format, ...) const {
    char what[200];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return Error(ErrorCode::bad_format, "%s: not a zip archive that can be read: %s", where_, what);
  }

  bool has(std::uint64_t at, std::uint64_t size) const noexcept {
    return at <= bytes_.size() && size <= bytes_.size() - at;
  }
  // A little-endian number of `size` bytes, which must be there.
  std::uint64_t number(std::uint64_t at, std::size_t size) const noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = size; i-- > 0;)
      value = value << 8 | bytes_[static_cast<std::size_t>(at) + i];
    return value;
  }
  std::string_view text(std::uint64_t at, std::uint64_t size) const noexcept {
    return std::string_view(reinterpret_cast<const char*>(bytes_.data()) + at,
                            static_cast<std::size_t>(size));
  }

  // Section 4.3.16, 4.3.14 and 4.3.15: the record at the end, and its zip64 version.
  Status find_directory(std::uint64_t& count, std::uint64_t& size, std::uint64_t& offset) const {
    constexpr std::uint64_t kEndSize = 22;
    if (bytes_.size() < kEndSize) return error("too short");
    const std::uint64_t last = bytes_.size() - kEndSize;
    const std::uint64_t first = last > 65535 ? last - 65535 : 0;
    for (std::uint64_t at = last + 1; at-- > first;) {
      if (number(at, 4) != 0x06054b50 || number(at + 20, 2) != last - at) continue;
      count = number(at + 10, 2);
      size = number(at + 12, 4);
      offset = number(at + 16, 4);
      if (count != 0xffff && size != kMax32 && offset != kMax32) return {};
      if (at < 20 || number(at - 20, 4) != 0x07064b50) return {};  // no zip64
      const std::uint64_t end64 = number(at - 12, 8);
      if (!has(end64, 56) || number(end64, 4) != 0x06064b50) {
        return error("its zip64 record is missing");
      }
      count = number(end64 + 32, 8);
      size = number(end64 + 40, 8);
      offset = number(end64 + 48, 8);
      return {};
    }
    return error("no directory at its end (incomplete download?)");
  }

  // Section 4.3.12; moves `at` to the next entry.
  Status read_entry(std::uint64_t& at, std::uint64_t end, ZipEntry& entry) const {
    if (end - at < 46 || number(at, 4) != 0x02014b50) {
      return error("a broken directory entry at byte %llu", Number{at});
    }
    const std::uint64_t flags = number(at + 8, 2);
    const std::uint64_t method = number(at + 10, 2);
    std::uint64_t packed = number(at + 20, 4);
    std::uint64_t size = number(at + 24, 4);
    const std::uint64_t name_length = number(at + 28, 2);
    const std::uint64_t extra_length = number(at + 30, 2);
    const std::uint64_t comment_length = number(at + 32, 2);
    std::uint64_t header = number(at + 42, 4);
    const std::uint64_t whole = 46 + name_length + extra_length + comment_length;
    if (end - at < whole)
      return error("a directory entry at byte %llu runs past its end", Number{at});
    entry.name = text(at + 46, name_length);
    // Section 4.5.3: 64-bit values, in this order, of those that did not fit 32 bits.
    std::uint64_t extra = at + 46 + name_length;
    const std::uint64_t extra_end = extra + extra_length;
    while (extra_end - extra >= 4) {
      const std::uint64_t field = number(extra, 2);
      const std::uint64_t field_end = extra + 4 + number(extra + 2, 2);
      if (field_end > extra_end) return error("a broken extra field at byte %llu", Number{extra});
      if (field == 1) {
        std::uint64_t value = extra + 4;
        for (std::uint64_t* large : {&size, &packed, &header}) {
          if (*large != kMax32) continue;
          if (field_end - value < 8)
            return error("a broken zip64 field at byte %llu", Number{extra});
          *large = number(value, 8);
          value += 8;
        }
      }
      extra = field_end;
    }
    char printable[64];
    std::snprintf(printable, sizeof printable, "%.*s",
                  static_cast<int>(std::min<std::size_t>(entry.name.size(), 60)),
                  entry.name.data());
    if (method != 0 || packed != size) return error("'%s' is compressed", printable);
    if ((flags & 1) != 0) return error("'%s' is encrypted", printable);
    // Section 4.3.7: the header before the data has lengths of its own.
    if (!has(header, 30) || number(header, 4) != 0x04034b50) {
      return error("'%s' has no header where the directory says", printable);
    }
    const std::uint64_t data = header + 30 + number(header + 26, 2) + number(header + 28, 2);
    if (!has(data, size)) return error("'%s' runs past the end of the file", printable);
    entry.data = bytes_.subspan(static_cast<std::size_t>(data), static_cast<std::size_t>(size));
    at += whole;
    return {};
  }

  Status check_overlaps(const std::pmr::vector<ZipEntry>& entries,
                        std::pmr::memory_resource* resource) const {
    std::pmr::vector<Span<const std::uint8_t>> places(resource);
    for (const ZipEntry& entry : entries) {
      if (!entry.data.empty()) places.push_back(entry.data);
    }
    std::sort(places.begin(), places.end(),
              [](const auto& a, const auto& b) { return a.data() < b.data(); });
    for (std::size_t i = 1; i < places.size(); ++i) {
      if (places[i - 1].end() > places[i].begin()) return error("its entries overlap");
    }
    return {};
  }

  Span<const std::uint8_t> bytes_;
  const char* where_;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_ZIP_HPP_
