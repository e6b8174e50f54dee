// The reader of zip archives: one crafted archive for each check, at its limit and one beyond.
#include <mixtral/checkpoints.hpp>
#include <mixtral/impl/compiler.hpp>

#include <cstdarg>
#include <cstdio>
#include <optional>

#include "model_files.hpp"
//
#include <mixtral/impl/checkpoints/zip.hpp>

using namespace support;
using mixtral::detail::ZipEntry;
using mixtral::detail::ZipReader;

namespace {

constexpr std::uint32_t kMax32 = 0xffffffff;

void put16(std::size_t v, Blob& out) { GgufWriter::put(static_cast<std::uint16_t>(v), out); }
void put32(std::size_t v, Blob& out) { GgufWriter::put(static_cast<std::uint32_t>(v), out); }
void put64(std::uint64_t v, Blob& out) { GgufWriter::put(v, out); }
void put(const Blob& bytes, Blob& out) { out.insert(out.end(), bytes.begin(), bytes.end()); }
void put(const std::string& text, Blob& out) { out.insert(out.end(), text.begin(), text.end()); }

// An extra field (section 4.5): its number, the length of what follows, and that.
Blob field(std::uint16_t number, const std::vector<std::uint64_t>& values) {
  Blob out;
  put16(number, out);
  put16(8 * values.size(), out);
  for (const std::uint64_t v : values) put64(v, out);
  return out;
}

// An archive whose every field can be wrong. Unset fields are right, and those that do not matter (versions,
// times, check sums, attributes) are never zero.
struct Entry {
  std::string name = "a";
  Blob data = {1, 2, 3};
  std::uint16_t flags = 0, method = 0;
  std::optional<std::uint32_t> packed, size, header;
  Blob extra, local_extra;
  std::string comment;
};

struct Archive {
  std::vector<Entry> entries = {Entry{}};
  std::string comment;
  std::optional<std::size_t> comment_length;
  std::optional<std::uint32_t> count, size, offset;
  bool zip64 = false;
  std::optional<std::uint64_t> count64, size64, offset64, record64;
  std::size_t directory = 0;  // where it begins, after bytes()

  Blob bytes() {
    Blob out, central;
    for (const Entry& entry : entries) {
      const std::size_t header = out.size();
      put32(0x04034b50, out);
      out.insert(out.end(), 22, 0x55);
      put16(entry.name.size(), out);
      put16(entry.local_extra.size(), out);
      put(entry.name, out);
      put(entry.local_extra, out);
      put(entry.data, out);
      put32(0x02014b50, central);
      put32(0x55555555, central);
      put16(entry.flags, central);
      put16(entry.method, central);
      central.insert(central.end(), 8, 0x55);
      put32(entry.packed.value_or(static_cast<std::uint32_t>(entry.data.size())), central);
      put32(entry.size.value_or(static_cast<std::uint32_t>(entry.data.size())), central);
      put16(entry.name.size(), central);
      put16(entry.extra.size(), central);
      put16(entry.comment.size(), central);
      central.insert(central.end(), 8, 0x55);
      put32(entry.header.value_or(static_cast<std::uint32_t>(header)), central);
      put(entry.name, central);
      put(entry.extra, central);
      put(entry.comment, central);
    }
    directory = out.size();
    put(central, out);
    if (zip64) {
      const std::size_t record = out.size();
      put_record64(central.size(), out);
      put32(0x07064b50, out);
      put32(0x55555555, out);
      put64(record64.value_or(record), out);
      put32(1, out);
    }
    put32(0x06054b50, out);
    put32(0x55555555, out);
    put16(count.value_or(static_cast<std::uint32_t>(zip64 ? 0xffff : entries.size())), out);
    put16(count.value_or(static_cast<std::uint32_t>(zip64 ? 0xffff : entries.size())), out);
    put32(size.value_or(zip64 ? kMax32 : static_cast<std::uint32_t>(central.size())), out);
    put32(offset.value_or(zip64 ? kMax32 : static_cast<std::uint32_t>(directory)), out);
    put16(comment_length.value_or(comment.size()), out);
    put(comment, out);
    return out;
  }

  void put_record64(std::size_t central_size, Blob& out) const {
    put32(0x06064b50, out);
    put64(44, out);
    put32(0x55555555, out);
    put64(0x5555555555555555, out);
    put64(count64.value_or(entries.size()), out);
    put64(count64.value_or(entries.size()), out);
    put64(size64.value_or(central_size), out);
    put64(offset64.value_or(directory), out);
  }
};

// What reading `bytes` says: an error's text, or the entries as "name=data;". What `behind` holds lies right
// behind the archive in memory, so that a reader that goes too far finds what it looks for. Without it the
// archive ends where its memory does, which the address sanitizer guards.
std::string read(const Blob& bytes, const Blob& behind = {}) {
  Blob memory(bytes.size() + behind.size());
  std::copy(behind.begin(), behind.end(), std::copy(bytes.begin(), bytes.end(), memory.begin()));
  const auto entries =
      ZipReader(mixtral::Span<const std::uint8_t>(memory.data(), bytes.size()), "x.zip")
          .read(std::pmr::get_default_resource());
  if (!entries) return entries.error().message();
  std::string out;
  for (const ZipEntry& entry : *entries) {
    out += std::string(entry.name) + "=";
    for (const std::uint8_t byte : entry.data) out += std::to_string(byte);
    out += ";";
  }
  return out;
}
std::string read(Archive archive) { return read(archive.bytes()); }
std::string read(const Entry& entry) {
  Archive archive;
  archive.entries = {entry};
  return read(archive);
}
std::string error(const std::string& what) {
  return "x.zip: not a zip archive that can be read: " + what;
}

}  // namespace

TEST_CASE("zip: stored entries, in the order of the directory, whatever surrounds them") {
  Archive archive;
  archive.entries = {Entry{}, Entry{}, Entry{}};
  archive.entries[1].name = "b/c";
  archive.entries[1].data = {4};
  archive.entries[2].name = "";
  archive.entries[2].data = {};
  CHECK(read(archive) == "a=123;b/c=4;=;");
  archive.comment = "a comment of the archive";
  archive.entries[0].comment = "and one of an entry";
  archive.entries[0].local_extra = field(0x1234, {5, 6});
  archive.entries[0].extra = field(0x1234, {7});
  archive.entries[1].extra = {1, 2, 3};  // too short for a field: padding
  CHECK(read(archive) == "a=123;b/c=4;=;");
  archive.zip64 = true;
  CHECK(read(archive) == "a=123;b/c=4;=;");
  archive.entries = {};
  archive.zip64 = false;
  CHECK(read(archive) == "");
}

TEST_CASE("zip: the directory is found behind whatever looks like one") {
  CHECK(read(Blob()) == error("too short"));
  Blob bytes = Archive().bytes();
  CHECK(read(Blob(bytes.end() - 22, bytes.end() - 1)) == error("too short"));
  bytes.pop_back();
  CHECK(read(bytes) == error("no directory at its end (incomplete download?)"));
  Archive empty;
  empty.entries = {};
  CHECK(empty.bytes().size() == 22);
  CHECK(read(empty) == "");

  // A comment of the greatest length, and one byte more than the directory can say.
  Archive archive;
  archive.comment = std::string(65535, 'c');
  CHECK(read(archive) == "a=123;");
  empty.comment = archive.comment;
  CHECK(read(empty) == "");
  archive.comment += "c";
  archive.comment_length = 65535;
  CHECK(read(archive) == error("no directory at its end (incomplete download?)"));
  archive.comment_length = 0;
  CHECK(read(archive) == error("no directory at its end (incomplete download?)"));
  archive.comment_length.reset();
  archive.comment = "PK";  // nothing here is a record
  CHECK(read(archive) == "a=123;");
  // A record whose comment does not end with the file is part of a comment, or of the data.
  archive.comment = "PK\5\6" + std::string(18, '\0') + "and more";
  archive.comment_length.reset();
  CHECK(read(archive) == "a=123;");
  archive.comment_length = archive.comment.size() - 1;
  CHECK(read(archive) == error("no directory at its end (incomplete download?)"));
}

TEST_CASE("zip: a directory that does not fit the file is refused") {
  Archive archive;
  archive.entries = {};
  const auto refused = [&](std::uint32_t count, std::uint32_t size, std::uint32_t offset) {
    archive.count = count;
    archive.size = size;
    archive.offset = offset;
    const std::string text = read(archive);
    INFO(text);
    return text ==
           error("its directory of " + std::to_string(count) + " entries, " + std::to_string(size) +
                 " bytes at " + std::to_string(offset) + ", does not fit the file");
  };
  CHECK(!refused(0, 0, 22));  // an empty directory at the very end
  CHECK(refused(0, 0, 23));
  CHECK(!refused(0, 22, 0));
  CHECK(refused(0, 23, 0));
  CHECK(refused(0, 22, 1));
  CHECK(!refused(0, 21, 1));
  CHECK(refused(1, 22, 0));
  archive.comment = std::string(70, 'c');  // room for two entries of 46 bytes each
  CHECK(read(archive) == error("its directory of 1 entries, 22 bytes at 0, does not fit the file"));
  CHECK(refused(2, 91, 0));
  CHECK(!refused(2, 92, 0));
  CHECK(read(archive) == error("a broken directory entry at byte 0"));
  CHECK(refused(3, 92, 0));
}

TEST_CASE("zip: a directory entry that runs past the directory's end is refused") {
  Archive archive;
  archive.entries[0].comment = "comment";
  const Blob bytes = archive.bytes();
  const auto size = static_cast<std::uint32_t>(bytes.size() - 22 - archive.directory);
  CHECK(size == 46 + 1 + 7);
  const std::string at = std::to_string(archive.directory);
  for (std::uint32_t less = 1; less <= 8; ++less) {
    archive.size = size - less;
    CHECK(read(archive) == error("a directory entry at byte " + at + " runs past its end"));
  }
  // Two entries in the room of 54 + 46 - 1 bytes.
  archive.entries = {archive.entries[0], archive.entries[0]};
  archive.entries[1].name = archive.entries[1].comment = "";
  archive.size.reset();
  CHECK(read(archive) == "a=123;=123;");
  archive.size = 54 + 46 - 1;
  const Blob two = archive.bytes();
  CHECK(read(two) ==
        error("a broken directory entry at byte " + std::to_string(archive.directory + 54)));
  // An entry whose signature is wrong.
  archive.size.reset();
  for (std::size_t i = 0; i < 4; ++i) {
    Blob wrong = archive.bytes();
    wrong[archive.directory + i] ^= 0x80;
    CHECK(read(wrong) ==
          error("a broken directory entry at byte " + std::to_string(archive.directory)));
  }
}

TEST_CASE("zip: 64-bit sizes and places are those of the fields that say they are there") {
  // Section 4.5.3: size, packed size and header, those of them that are 0xffffffff, in this order.
  Archive archive;
  archive.entries = {Entry{}, Entry{}};
  archive.entries[1].name = "b";
  Entry& entry = archive.entries[1];
  const std::uint64_t header = 34;  // behind the first entry
  entry.size = entry.packed = entry.header = kMax32;
  entry.extra = field(1, {3, 3, header});
  CHECK(read(archive) == "a=123;b=123;");
  entry.header.reset();
  entry.extra = field(1, {3, 3});
  CHECK(read(archive) == "a=123;b=123;");
  entry.size.reset();
  entry.extra = field(1, {3});
  CHECK(read(archive) == "a=123;b=123;");
  entry.packed.reset();
  entry.size = kMax32;
  CHECK(read(archive) == "a=123;b=123;");
  entry.size.reset();
  entry.header = kMax32;
  entry.extra = field(1, {header});
  CHECK(read(archive) == "a=123;b=123;");
  // What is not 0xffffffff is not looked up, and other fields are passed over.
  entry.header.reset();
  entry.extra = field(1, {99, 98, 97});
  CHECK(read(archive) == "a=123;b=123;");
  entry.size = entry.packed = entry.header = kMax32;
  entry.extra = field(2, {99, 98, 97});
  put(field(1, {3, 3, header}), entry.extra);
  CHECK(read(archive) == "a=123;b=123;");
  // Without the field, the numbers mean themselves.
  entry.extra = field(2, {3, 3, header});
  CHECK(read(archive) == error("'b' has no header where the directory says"));
}

TEST_CASE("zip: a zip64 field that is too short is refused, whatever follows it") {
  Archive archive;
  Entry& entry = archive.entries[0];
  entry.size = entry.packed = entry.header = kMax32;
  const std::vector<std::uint64_t> values = {3, 3, 0};
  for (std::size_t n = 0; n < 3; ++n) {
    entry.extra = field(1, {values.begin(), values.begin() + static_cast<std::ptrdiff_t>(n)});
    Blob rest;
    for (std::size_t i = n; i < 3; ++i) put64(values[i], rest);
    entry.comment.assign(rest.begin(), rest.end());
    CHECK(read(archive) == error("a broken zip64 field at byte " + std::to_string(34 + 46 + 1)));
  }
  // One byte too few of the last value.
  entry.extra = field(1, values);
  entry.comment.clear();
  CHECK(read(archive) == "a=123;");
  entry.extra.pop_back();
  entry.extra[2] = 23;
  entry.comment = std::string(1, '\0');
  CHECK(read(archive) == error("a broken zip64 field at byte " + std::to_string(34 + 46 + 1)));
}

TEST_CASE("zip: an extra field that is longer than all of them together is refused") {
  Archive archive;
  Entry& entry = archive.entries[0];
  entry.extra = field(7, {1});
  CHECK(read(archive) == "a=123;");
  entry.extra[2] = 9;
  entry.comment = "comment";
  CHECK(read(archive) == error("a broken extra field at byte 81"));
  entry.extra[2] = 4;  // and another field in the second half, of 0 bytes
  entry.extra[8] = 9;
  entry.extra[10] = 0;
  CHECK(read(archive) == "a=123;");
  entry.extra[10] = 1;
  CHECK(read(archive) == error("a broken extra field at byte 89"));
}

TEST_CASE("zip: what is compressed or encrypted is refused by name") {
  Entry entry;
  entry.method = 8;
  CHECK(read(entry) == error("'a' is compressed"));
  entry.method = 256;
  CHECK(read(entry) == error("'a' is compressed"));
  entry.method = 0;
  entry.packed = 2;
  CHECK(read(entry) == error("'a' is compressed"));
  entry.packed.reset();
  entry.flags = 1;
  CHECK(read(entry) == error("'a' is encrypted"));
  entry.flags = 0x0800;  // the name is UTF-8
  CHECK(read(entry) == "a=123;");
  entry.flags = 0x0801;
  entry.name = std::string(60, 'n') + "and more";
  CHECK(read(entry) == error("'" + std::string(60, 'n') + "' is encrypted"));
}

TEST_CASE("zip: an entry's header and data lie inside the file") {
  Archive archive;
  Entry& entry = archive.entries[0];
  const auto size = static_cast<std::uint32_t>(archive.bytes().size());
  // A good header right behind the file, and one that begins inside and ends behind.
  Blob header;
  put32(0x04034b50, header);
  header.resize(26, 0x55);
  header.resize(30);
  entry.data = {};
  const std::string nowhere = error("'a' has no header where the directory says");
  const std::uint32_t end = size - 3;  // without data
  entry.header = end;
  CHECK(read(archive.bytes(), header) == nowhere);
  for (std::uint32_t inside = 1; inside < 30; ++inside) {
    Archive commented = archive;
    commented.comment.assign(header.begin(), header.begin() + inside);
    CHECK(read(commented.bytes(), Blob(header.begin() + inside, header.end())) == nowhere);
  }
  archive.comment.assign(header.begin(), header.end());
  CHECK(read(archive) == "a=;");
  entry.header = kMax32 - 1;
  CHECK(read(archive) == nowhere);
  for (std::size_t i = 0; i < 4; ++i) {
    Blob bytes = Archive().bytes();
    bytes[i] ^= 0x80;
    CHECK(read(bytes) == nowhere);
  }

  // Data up to the file's last byte, and one byte beyond; a zip64 size that overflows.
  Archive to_the_end;
  Entry& last = to_the_end.entries[0];
  const auto whole = static_cast<std::uint32_t>(to_the_end.bytes().size());
  last.size = last.packed = whole - 31;
  CHECK(read(to_the_end).substr(0, 5) == "a=123");
  last.size = last.packed = whole - 30;
  const std::string past = error("'a' runs past the end of the file");
  CHECK(read(to_the_end.bytes(), Blob(9)) == past);
  last.size = last.packed = kMax32;
  last.extra = field(1, {~std::uint64_t{0}, ~std::uint64_t{0}});
  CHECK(read(to_the_end) == past);
  last.extra = field(1, {~std::uint64_t{0} - 40, ~std::uint64_t{0} - 40});
  CHECK(read(to_the_end) == past);
  // A name in the local header that ends behind the file: then data of no bytes lie outside, too.
  Archive long_name;
  long_name.entries[0].data = {};
  Blob bytes = long_name.bytes();
  const std::size_t room = bytes.size() - 30;
  bytes[26] = static_cast<std::uint8_t>(room);
  CHECK(read(bytes) == "a=;");
  bytes[26] = static_cast<std::uint8_t>(room + 1);
  CHECK(read(bytes, Blob(9)) == past);
  bytes[26] = static_cast<std::uint8_t>(room);
  bytes[28] = 1;  // and an extra field behind the name
  CHECK(read(bytes, Blob(9)) == past);
}

TEST_CASE("zip: entries that share a byte are refused") {
  Archive archive;
  archive.entries = {Entry{}, Entry{}, Entry{}};
  archive.entries[1].name = "b";
  archive.entries[2].name = "c";
  archive.entries[2].data = {};
  CHECK(read(archive) == "a=123;b=123;c=;");
  // The first entry's data, up to the second's, and one byte of them: headers and directories are no data.
  const std::uint32_t between = 34 + 31 - 31;
  archive.entries[0].size = archive.entries[0].packed = between;
  CHECK(read(archive).substr(0, 5) == "a=123");
  archive.entries[0].size = archive.entries[0].packed = between + 1;
  CHECK(read(archive) == error("its entries overlap"));
  // Whatever their order in the directory.
  std::swap(archive.entries[0].name, archive.entries[1].name);
  archive.entries[0].size = archive.entries[0].packed = 3;
  archive.entries[0].header = 34;
  archive.entries[1].header = 0;
  CHECK(read(archive) == "b=123;a=123;c=;");
  archive.entries[1].size = archive.entries[1].packed = between + 1;
  CHECK(read(archive) == error("its entries overlap"));
  archive.entries[1].header = 34;
  archive.entries[1].size = archive.entries[1].packed = 3;
  CHECK(read(archive) == error("its entries overlap"));
}

TEST_CASE("zip: the zip64 record is taken where one is announced, and must lie inside the file") {
  Archive archive;
  archive.zip64 = true;
  archive.entries = {Entry{}, Entry{}};
  archive.entries[1].name = "b";
  CHECK(read(archive) == "a=123;b=123;");
  // One of the three numbers says so.
  archive.count = 2;
  CHECK(read(archive) == "a=123;b=123;");
  archive.size = 2 * 47;
  CHECK(read(archive) == "a=123;b=123;");
  archive.count.reset();
  archive.offset = 68;
  CHECK(read(archive) == "a=123;b=123;");
  archive.count = 2;
  archive.size.reset();
  CHECK(read(archive) == "a=123;b=123;");
  archive.size = 2 * 47;
  // None of them does: then the record does not count.
  archive.count = 2;
  archive.count64 = 1;
  CHECK(read(archive) == "a=123;b=123;");
  archive.count.reset();
  CHECK(read(archive) == "a=123;");
  // A record of 0xffff entries without a locator is what it says.
  Archive plain;
  plain.count = 0xffff;
  CHECK(read(plain) ==
        error("its directory of 65535 entries, 47 bytes at 34, does not fit the file"));

  Archive wrong;
  wrong.zip64 = true;
  const Blob bytes = wrong.bytes();
  const std::uint64_t end = bytes.size(), record = wrong.directory + 47;
  const std::string missing = error("its zip64 record is missing");
  Blob behind;
  wrong.put_record64(47, behind);
  for (const std::uint64_t place :
       {end, end + 1, record + 1, record - 1, ~std::uint64_t{0}, ~std::uint64_t{0} - 50}) {
    wrong.record64 = place;
    CHECK(read(wrong.bytes(), behind) == missing);
  }
  // One that begins inside the file and ends a byte behind it, and one that ends with it.
  for (const std::size_t inside : {std::size_t{55}, std::size_t{56}}) {
    wrong.record64 = end;
    wrong.comment.assign(behind.begin(), behind.begin() + static_cast<std::ptrdiff_t>(inside));
    const std::string text = read(
        wrong.bytes(), Blob(behind.begin() + static_cast<std::ptrdiff_t>(inside), behind.end()));
    CHECK(text == (inside == 56 ? "a=123;" : missing));
  }
  // Numbers of 64 bits that do not fit.
  wrong = Archive();
  wrong.zip64 = true;
  wrong.count64 = std::uint64_t{1} << 32 | 1;
  CHECK(read(wrong) ==
        error("its directory of 4294967297 entries, 47 bytes at 34, does not fit the file"));
  wrong.count64.reset();
  wrong.size64 = ~std::uint64_t{0};
  CHECK(
      read(wrong) ==
      error("its directory of 1 entries, 18446744073709551615 bytes at 34, does not fit the file"));
  wrong.size64.reset();
  wrong.offset64 = ~std::uint64_t{0} - 46;
  CHECK(
      read(wrong) ==
      error("its directory of 1 entries, 47 bytes at 18446744073709551569, does not fit the file"));
}
