// The GGUF parser and the checks on a model's tensors: what is read, and how wrong files are refused.
#include "model_files.hpp"
#include "small_stack.hpp"

#include <memory>

#ifndef _WIN32
#include <sys/stat.h>
#include <unistd.h>
#endif

using namespace support;
namespace gguf = mixtral::gguf;

namespace {

std::string error_of(const Blob& blob) {
  const auto model = mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(blob)));
  REQUIRE(!model);
  return model.error().message();
}

Synthetic small() {
  Synthetic synthetic;
  synthetic.n_layers = 1;
  synthetic.randomize(1);
  return synthetic;
}

// The error of File::parse, or "" for a file that it accepts. The bytes lie in memory of exactly their
// size, so that the address sanitizer sees every read past their end.
std::string parse_error(const Blob& blob) {
  const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[blob.size()]);
  std::copy(blob.begin(), blob.end(), exact.get());
  const auto file = gguf::File::parse({exact.get(), blob.size()}, std::pmr::get_default_resource());
  if (file) return "";
  CHECK((file.error().code() == mixtral::ErrorCode::bad_format ||
         file.error().code() == mixtral::ErrorCode::unsupported));
  return file.error().message();
}

// A GGUF file whose every field is free, which GgufWriter's are not.
struct RawGguf {
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> shape;
    std::uint32_t type;
    std::uint64_t offset;
  };
  GgufWriter keys;
  std::vector<Tensor> tensors;

  // Header, metadata and tensor directory, with nothing behind them.
  Blob directory() const {
    Blob out = {'G', 'G', 'U', 'F'};
    GgufWriter::put(std::uint32_t{3}, out);
    GgufWriter::put(static_cast<std::uint64_t>(tensors.size()), out);
    GgufWriter::put(keys.n_keys, out);
    out.insert(out.end(), keys.metadata.begin(), keys.metadata.end());
    for (const Tensor& tensor : tensors) {
      GgufWriter::put_string(tensor.name, out);
      GgufWriter::put(static_cast<std::uint32_t>(tensor.shape.size()), out);
      for (const std::uint64_t n : tensor.shape) GgufWriter::put(n, out);
      GgufWriter::put(tensor.type, out);
      GgufWriter::put(tensor.offset, out);
    }
    return out;
  }
  // The directory, filled up to a multiple of `alignment`, and n bytes 1, 2, 3, ...
  Blob with_data(std::size_t n, std::size_t alignment = 32) const {
    Blob out = directory();
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    for (std::size_t i = 0; i < n; ++i) out.push_back(static_cast<std::uint8_t>(i + 1));
    return out;
  }
};

constexpr std::uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2;

}  // namespace

TEST_CASE("gguf: metadata of every value type, in versions 2 and 3") {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufWriter writer;
    writer.version = version;
    writer.scalar("u8", 0, std::uint8_t{200});
    writer.scalar("i8", 1, std::int8_t{-100});
    writer.scalar("u16", 2, std::uint16_t{60000});
    writer.scalar("i16", 3, std::int16_t{-30000});
    writer.scalar("u32", 4, std::uint32_t{4000000000u});
    writer.scalar("i32", 5, std::int32_t{-2000000000});
    writer.scalar("f32", 6, 1.5f);
    writer.boolean("yes", true);
    writer.string("text", std::string("a\0b", 3));
    writer.scalar("u64", 10, std::uint64_t{1} << 63);
    writer.scalar("i64", 11, std::int64_t{-5});
    writer.scalar("f64", 12, 2.25);
    writer.array("numbers", 5, std::vector<std::int32_t>{1, -2, 3});
    writer.strings("texts", {"x", "", "yz"});
    // An array of two arrays of u8.
    Blob nested;
    GgufWriter::put(std::uint32_t{9}, nested);
    GgufWriter::put(std::uint64_t{2}, nested);
    for (const std::uint8_t v : {std::uint8_t{7}, std::uint8_t{8}}) {
      GgufWriter::put(std::uint32_t{0}, nested);
      GgufWriter::put(std::uint64_t{1}, nested);
      nested.push_back(v);
    }
    GgufWriter::put_string("nested", writer.metadata);
    GgufWriter::put(std::uint32_t{9}, writer.metadata);
    writer.metadata.insert(writer.metadata.end(), nested.begin(), nested.end());
    ++writer.n_keys;

    const Blob blob = writer.finish();
    const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
    CHECK(file.version() == version);
    CHECK(file.metadata().size() == 15);
    CHECK(file.find("u8")->as_uint() == 200u);
    CHECK(file.find("i8")->as_double() == -100.0);
    CHECK(!file.find("i8")->as_uint());
    CHECK(file.find("u16")->as_uint() == 60000u);
    CHECK(file.find("i16")->as_double() == -30000.0);
    CHECK(file.find("u32")->as_uint() == 4000000000u);
    CHECK(file.find("i32")->as_double() == -2000000000.0);
    CHECK(file.find("f32")->as_double() == 1.5);
    CHECK(file.find("yes")->as_bool() == true);
    CHECK(!file.find("yes")->as_uint());
    CHECK(file.find("text")->as_string() == std::string_view("a\0b", 3));
    CHECK(file.find("u64")->as_uint() == std::uint64_t{1} << 63);
    CHECK(file.find("i64")->as_double() == -5.0);
    CHECK(file.find("f64")->as_double() == 2.25);
    CHECK(file.find("absent") == nullptr);
    std::vector<double> numbers;
    file.find("numbers")->for_each([&](std::uint64_t, const gguf::Value& v) {
      numbers.push_back(*v.as_double());
      return true;
    });
    CHECK(numbers == std::vector<double>{1, -2, 3});
    std::vector<std::string> texts;
    file.find("texts")->for_each([&](std::uint64_t i, const gguf::Value& v) {
      texts.emplace_back(*v.as_string());
      return i < 1;  // stops early
    });
    CHECK(texts == std::vector<std::string>{"x", ""});
    std::vector<std::uint64_t> inner;
    file.find("nested")->for_each([&](std::uint64_t, const gguf::Value& array) {
      array.for_each([&](std::uint64_t, const gguf::Value& v) {
        inner.push_back(*v.as_uint());
        return true;
      });
      return true;
    });
    CHECK(inner == std::vector<std::uint64_t>{7, 8});
  }
}

TEST_CASE("gguf: the bundled model's directory") {
  const Blob blob = read_file(bundled_model());
  CHECK(gguf::File::recognises(bytes(blob)));
  const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
  CHECK(file.find("general.architecture")->as_string() == "llama");
  REQUIRE(file.find_tensor("output.weight") != nullptr);
  CHECK(file.find_tensor("output.weight")->format == mixtral::BlockFormat::q8_0);
  CHECK(file.find_tensor("nothing") == nullptr);
}

TEST_CASE("gguf: broken files are refused with the place and the reason") {
  const Blob good = small().writer().finish();
  CHECK(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(good))));
  CHECK(has(error_of({}), "ends inside the header"));
  Blob blob = good;
  blob[0] = 'X';
  CHECK(has(error_of(blob), "58 47 55 46 instead of 'GGUF'"));
  blob = good;
  blob[4] = 1;
  CHECK(has(error_of(blob), "version 1"));
  blob = good;
  blob[7] = 3;  // big-endian version 3
  blob[4] = 0;
  CHECK(has(error_of(blob), "little-endian"));
  blob = good;
  blob[14] = 0xff;
  CHECK(has(error_of(blob), "tensors"));
  blob = good;
  blob.resize(blob.size() - 64);
  CHECK(has(error_of(blob), "past the end of the file"));
  CHECK(has(error_of(blob), "ffn_up_exps"));

  Synthetic synthetic = small();
  auto writer = synthetic.writer();
  writer.uint32("llama.block_count", 2);
  CHECK(has(error_of(writer.finish()), "'llama.block_count' is there twice"));
  writer = synthetic.writer();
  writer.tensors.push_back(writer.tensors[0]);
  CHECK(has(error_of(writer.finish()), "'token_embd.weight' is there twice"));
  writer = synthetic.writer();
  writer.tensors[2].type = 99;
  CHECK(has(error_of(writer.finish()), "type 99"));
  writer = synthetic.writer();
  writer.tensors[2].type = 12;  // Q4_K needs rows of 256
  CHECK(has(error_of(writer.finish()), "multiple of Q4_K's block"));
  writer = synthetic.writer();
  writer.uint32("general.alignment", 3);
  CHECK(has(error_of(writer.finish()), "general.alignment"));
}

TEST_CASE("gguf: the error about a tensor's type lists all types that are read") {
  auto writer = small().writer();
  writer.tensors[2].type = 99;
  const std::string error = error_of(writer.finish());
  const std::size_t list = error.find("use one of ");
  REQUIRE(list != std::string::npos);
  const std::string names = ", " + error.substr(list + 11) + ",";
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(error);
    CHECK(has(names, std::string(", ") + entry.info.name + ","));
  }
}

TEST_CASE("gguf: overlapping tensors are refused") {
  Blob blob = small().writer().finish();
  // The second tensor's offset field: move it into the first.
  const std::string name = "output_norm.weight";
  const auto at = std::search(blob.begin(), blob.end(), name.begin(), name.end());
  REQUIRE(at != blob.end());
  const std::size_t offset = static_cast<std::size_t>(at - blob.begin()) + name.size() + 4 + 8 + 4;
  std::memset(blob.data() + offset, 0, 8);
  blob[offset] = 64;
  CHECK(has(error_of(blob), "overlap"));
  blob[offset] = 65;
  CHECK(has(error_of(blob), "alignment"));
}

TEST_CASE("model: a wrong file's error names the key or tensor, the expected and the found") {
  const Synthetic synthetic = small();
  const auto without_tensor = [&](const std::string& name) {
    auto writer = synthetic.writer();
    for (std::size_t i = 0; i < writer.tensors.size(); ++i) {
      if (writer.tensors[i].name == name)
        writer.tensors.erase(writer.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return error_of(writer.finish());
  };
  CHECK(has(without_tensor("token_embd.weight"), "token embedding"));
  CHECK(has(without_tensor("output_norm.weight"), "output norm"));
  CHECK(has(without_tensor("blk.0.attn_k.weight"), "wk tensor of layer 0"));
  CHECK(has(without_tensor("blk.0.ffn_gate_inp.weight"), "router"));
  CHECK(has(without_tensor("blk.0.ffn_down_exps.weight"), "w2 (down)"));

  auto writer = synthetic.writer();
  for (auto& tensor : writer.tensors) {
    if (tensor.name == "blk.0.attn_q.weight") tensor.shape = {20, 48};
  }
  CHECK(has(error_of(writer.finish()),
            "'blk.0.attn_q.weight' (wq): expected 40 rows of 24, found 48 rows of 20"));
  writer = synthetic.writer();
  writer.tensors.back().name = "blk.0.attn_q.bias";
  CHECK(has(error_of(writer.finish()), "'blk.0.attn_q.bias' is not part of"));
  writer = synthetic.writer();
  writer.tensors.back().name = "blk.7.attn_q.weight";
  writer.tensors.back().shape = {24, 40};
  CHECK(has(error_of(writer.finish()), "layer 7"));

  GgufWriter keys;
  CHECK(has(error_of(keys.finish()), "'general.architecture' is missing"));
  keys.string("general.architecture", "gpt2");
  CHECK(has(error_of(keys.finish()), "'gpt2'; expected 'llama'"));
  keys = {};
  keys.string("general.architecture", "llama");
  keys.string("llama.embedding_length", "many");
  CHECK(has(error_of(keys.finish()),
            "'llama.embedding_length': expected a non-negative integer, found string"));
  keys = {};
  keys.string("general.architecture", "llama");
  keys.uint32("llama.embedding_length", 0);
  CHECK(has(error_of(keys.finish()), "'llama.embedding_length' is 0; expected 1 to"));

  Synthetic odd = small();
  odd.n_kv_heads = 3;
  CHECK(has(error_of(odd.writer().finish()), "not a multiple of head_count_kv"));
  odd = small();
  odd.n_experts_used = 5;
  CHECK(has(error_of(odd.writer().finish()), "'llama.expert_used_count' is 5; expected 1 to 4"));
  odd = small();
  writer = odd.writer();
  writer.string("llama.rope.scaling.type", "yarn");
  CHECK(has(error_of(writer.finish()), "'yarn'"));
  writer = odd.writer();
  writer.uint32("llama.rope.dimension_count", 4);
  CHECK(has(error_of(writer.finish()),
            "llama.rope.dimension_count is 4; expected the head size, 10"));
}

TEST_CASE("model: an unreadable file says which and why") {
  const auto missing = mixtral::Model::open("/nonexistent/model.gguf");
  REQUIRE(!missing);
  CHECK(missing.error().code() == mixtral::ErrorCode::io);
  CHECK(has(missing.error().message(), "/nonexistent/model.gguf"));
  CHECK(!mixtral::Model::open(MIXTRAL_SOURCE_DIR));  // a folder
  const auto text = mixtral::Model::open(source("README.md").c_str());
  REQUIRE(!text);
  CHECK(has(text.error().message(), "README.md': not a GGUF file"));
}

TEST_CASE("bytes: what is no file with contents is refused at once, with the system's reason") {
  const support::TemporaryFolder folder;
  const auto error_of = [](const std::string& path) {
    const auto bytes = mixtral::Bytes::map_file(path.c_str());
    REQUIRE(!bytes);
    CHECK(bytes.error().code() == mixtral::ErrorCode::io);
    // Models are opened in this way.
    const auto model = mixtral::Model::open(path.c_str());
    REQUIRE(!model);
    CHECK(std::string(model.error().message()) == bytes.error().message());
    return std::string(bytes.error().message());
  };
  CHECK(has(error_of(folder.path()), "is a folder"));
  folder.write("empty.gguf", std::string());
  CHECK(has(error_of(folder.file("empty.gguf")), "empty.gguf' is empty"));
  const std::string missing = error_of(folder.file("caf\xC3\xA9.gguf"));
  CHECK(has(missing, "caf\xC3\xA9.gguf': "));
#ifndef _WIN32
  CHECK(has(missing, std::strerror(ENOENT)));
  CHECK(has(error_of(folder.file("empty.gguf/x")), std::strerror(ENOTDIR)));
  CHECK(has(error_of(folder.file(std::string(300, 'x'))), std::strerror(ENAMETOOLONG)));
  CHECK(has(error_of(""), std::strerror(ENOENT)));
  // To open it would wait for somebody who writes.
  REQUIRE(::mkfifo(folder.file("pipe.gguf").c_str(), 0600) == 0);
  CHECK(has(error_of(folder.file("pipe.gguf")), "is a pipe"));
  std::filesystem::create_symlink("pipe.gguf", folder.file("link.gguf"));
  CHECK(has(error_of(folder.file("link.gguf")), "is a pipe"));
  std::filesystem::create_symlink("link2.gguf", folder.file("link2.gguf"));
  CHECK(has(error_of(folder.file("link2.gguf")), std::strerror(ELOOP)));
  CHECK(has(error_of("/dev/null"), "is a device"));
#endif
}

#ifndef _WIN32
TEST_CASE("bytes: a file that may not be read is refused with the system's reason" *
          needs(::geteuid() != 0, "a user who may not read everything")) {
  const support::TemporaryFolder folder;
  folder.write("secret.gguf", std::string("x"));
  std::filesystem::permissions(folder.file("secret.gguf"), std::filesystem::perms::none);
  const auto refused = mixtral::Bytes::map_file(folder.file("secret.gguf").c_str());
  REQUIRE(!refused);
  CHECK(refused.error().code() == mixtral::ErrorCode::io);
  CHECK(has(refused.error().message(), std::strerror(EACCES)));
}
#endif

TEST_CASE("bytes: paths are UTF-8") {
  const support::TemporaryFolder folder;
  const auto name = std::filesystem::u8path("\xC3\xA9\xE6\x97\xA5\xF0\x9F\x90\x88.gguf");
  const auto path = std::filesystem::u8path(folder.path()) / name;
  std::filesystem::copy(bundled_model(), path);
  const auto bytes = mixtral::Bytes::map_file(path.u8string().c_str());
  REQUIRE(bytes);
  CHECK(bytes->size() == read_file(bundled_model()).size());
}

TEST_CASE("errors: a long name leaves room for what is said of it, and no character is cut") {
  using mixtral::Error;
  using mixtral::ErrorCode;
  const auto check = [](const std::string& name, const std::string& reason) {
    const Error error =
        mixtral::detail::error_in(name.c_str(), Error(ErrorCode::bad_format, "%s", reason.c_str()));
    const std::string message = error.message();
    CHECK(error.code() == ErrorCode::bad_format);
    CHECK(message.size() <= Error::kMaxLength);
    CHECK(has(message, reason.substr(0, 250)));
    CHECK_NOTHROW(nlohmann::json(message).dump());  // which wants whole characters
    return message;
  };
  CHECK(check("model.gguf", "why") == "'model.gguf': why");
  const std::string fits(Error::kMaxLength - 7, 'n');
  CHECK(check(fits, "why") == "'" + fits + "': why");
  CHECK(has(check(fits + 'n', "why"), "nnn...nnn"));
  CHECK(has(check("/begin/" + std::string(5000, 'x') + "/end.gguf", "why"), "/begin/x"));
  CHECK(has(check("/begin/" + std::string(5000, 'x') + "/end.gguf", "why"), "x/end.gguf': why"));
  for (std::size_t n = 0; n < 350; ++n) {
    for (const char* letter : {"x", "\xC3\xA9", "\xE6\x97\xA5", "\xF0\x9F\x90\x88"}) {
      std::string name;
      while (name.size() < 1000 + n) name += letter;
      check(name, std::string(n % 251, 'w'));
      check("x" + name, std::string(250, 'w') + name);
    }
  }
}

TEST_CASE("model: a long path leaves room for the reason") {
  const support::TemporaryFolder folder;
  std::string path = folder.path();
  for (int i = 0; i < 12; ++i) path += "/" + std::string(100, 'x');
  std::filesystem::create_directories(path);
  path += "/model.gguf";
  CHECK(has(mixtral::Model::open(path.c_str()).error().message(), "x/model.gguf': "));
  std::ofstream(path, std::ios::binary) << std::string(100, 't');
  CHECK(
      has(mixtral::Model::open(path.c_str()).error().message(), "x/model.gguf': not a GGUF file"));
}

TEST_CASE("bytes: a mapped file, a view and a callback give the same model") {
  const Blob blob = read_file(bundled_model());
  struct Archive {
    const Blob* blob;
    std::size_t n_reads = 0;
    bool broken = false;
  } archive{&blob};
  const auto read = [](void* context, std::uint64_t offset, void* to, std::size_t size) {
    auto& a = *static_cast<Archive*>(context);
    ++a.n_reads;
    if (a.broken) return false;
    std::memcpy(to, a.blob->data() + offset, size);
    return true;
  };
  auto loaded = value(
      mixtral::Bytes::read_all(blob.size(), read, &archive, std::pmr::get_default_resource()));
  CHECK(archive.n_reads >= 1);
  const auto from_callback = value(mixtral::Model::from_bytes(std::move(loaded)));
  const auto from_view = open(blob);
  const auto from_file = open(bundled_model());
  const std::vector<mixtral::Token> tokens = {1, 662, 567};
  const auto expected = evaluate(from_file, tokens).logits;
  CHECK(evaluate(from_callback, tokens).logits == expected);
  CHECK(evaluate(from_view, tokens).logits == expected);
  archive.broken = true;
  const auto failed =
      mixtral::Bytes::read_all(blob.size(), read, &archive, std::pmr::get_default_resource());
  REQUIRE(!failed);
  CHECK(failed.error().code() == mixtral::ErrorCode::io);
  // Memory need not be aligned.
  Blob shifted(blob.size() + 1);
  std::copy(blob.begin(), blob.end(), shifted.begin() + 1);
  const auto unaligned =
      value(mixtral::Model::from_bytes(mixtral::Bytes::view({shifted.data() + 1, blob.size()})));
  CHECK(evaluate(unaligned, tokens).logits == expected);
}

TEST_CASE("model: figures") {
  const auto model = open(bundled_model());
  CHECK(model.n_parameters() > model.n_active_parameters());
  CHECK(model.weight_bytes() < std::filesystem::file_size(bundled_model()));
  const Synthetic synthetic = small();
  const auto counted = open(synthetic.writer().finish());
  const std::uint64_t attention = 24 * 40 * 2 + 24 * 20 * 2;
  const std::uint64_t expert = 3 * 24 * 40;
  CHECK(counted.n_parameters() == 2 * 300 * 24 + 3 * 24 + attention + 4 * 24 + 4 * expert);
  CHECK(counted.n_active_parameters() == 300 * 24 + 3 * 24 + attention + 4 * 24 + 2 * expert);
}

TEST_CASE("gguf: arrays may be nested 4 deep, and are refused beyond on a small stack") {
  const auto parsed = [](std::size_t depth) {
    GgufWriter writer;
    GgufWriter::put_string("nested", writer.metadata);
    for (std::size_t i = 0; i < depth; ++i) {
      GgufWriter::put(std::uint32_t{9}, writer.metadata);
      if (i > 0) GgufWriter::put(std::uint64_t{1}, writer.metadata);
    }
    GgufWriter::put(std::uint32_t{0}, writer.metadata);
    GgufWriter::put(std::uint64_t{0}, writer.metadata);
    ++writer.n_keys;
    const Blob blob = writer.finish();
    std::string error;
    on_small_stack([&] {
      const auto file = gguf::File::parse(bytes(blob), std::pmr::get_default_resource());
      if (!file) error = file.error().message();
    });
    return error;
  };
  CHECK(parsed(1) == "");
  CHECK(parsed(4) == "");
  CHECK(has(parsed(5), "nested more than 4 deep"));
  CHECK(has(parsed(100000), "nested more than 4 deep"));
}

TEST_CASE("gguf: the shortest file is a header of 24 bytes; every beginning of a file is refused") {
  CHECK(parse_error(RawGguf{}.directory()) == "");
  RawGguf raw;
  raw.keys.scalar("a", 0, std::uint8_t{1});
  raw.keys.scalar("b", 12, 1.0);
  raw.keys.string("c", "text");
  raw.keys.array("d", 3, std::vector<std::int16_t>{1, 2, 3});
  raw.keys.strings("e", {"x", "yz"});
  raw.tensors = {{"t", {3, 2}, kF32, 0}, {"u", {1}, kF16, 32}};
  const Blob whole = raw.with_data(34);
  CHECK(parse_error(whole) == "");
  const std::size_t directory = raw.directory().size();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    const std::string error =
        parse_error(Blob(whole.begin(), whole.begin() + static_cast<long>(size)));
    if (size < 24) {
      CHECK(has(error, "at byte 0: the file ends inside the header"));
      CHECK(has(error, "it has " + std::to_string(size) + " bytes"));
    } else if (size < directory) {
      // It says where: at a byte that is there.
      const std::size_t at = error.find("at byte ");
      REQUIRE(at != std::string::npos);
      CHECK(std::stoul(error.substr(at + 8)) <= size);
      CHECK((has(error, "the file ends inside ") || has(error, "past the end of the file") ||
             has(error, "do not fit")));
    } else {
      CHECK(has(error, "past the end of the file (incomplete download?)"));
    }
  }
}

TEST_CASE("gguf: a file begins with the four letters and has version 2 or 3") {
  const Blob good = RawGguf{}.directory();
  for (std::size_t i = 0; i < 4; ++i) {
    Blob blob = good;
    blob[i] = static_cast<std::uint8_t>(blob[i] ^ 0x20);
    CHECK(has(parse_error(blob), "not a GGUF file"));
    CHECK(!gguf::File::recognises(bytes(blob)));
  }
  CHECK(gguf::File::recognises({good.data(), 4}));
  CHECK(!gguf::File::recognises({good.data(), 3}));
  CHECK(!gguf::File::recognises({}));
  for (std::uint8_t version = 0; version < 5; ++version) {
    CAPTURE(version);
    Blob blob = good;
    blob[4] = version;
    const auto file = gguf::File::parse(bytes(blob), std::pmr::get_default_resource());
    CHECK(static_cast<bool>(file) == (version == 2 || version == 3));
    if (!file) CHECK(file.error().code() == mixtral::ErrorCode::unsupported);
  }
}

TEST_CASE("gguf: counts that the file has no room for are refused before anything is read") {
  const auto with_counts = [](std::uint64_t n_tensors, std::uint64_t n_keys) {
    Blob blob = RawGguf{}.directory();
    std::memcpy(blob.data() + 8, &n_tensors, 8);
    std::memcpy(blob.data() + 16, &n_keys, 8);
    return parse_error(blob);
  };
  // An entry has 12 bytes at least.
  CHECK(has(with_counts(2, 0), "at byte 24: the file ends inside a tensor name"));
  CHECK(has(with_counts(0, 2), "at byte 24: the file ends inside a metadata key"));
  CHECK(has(with_counts(3, 0), "3 tensors and 0 metadata keys do not fit a file of 24 bytes"));
  CHECK(has(with_counts(0, 3), "0 tensors and 3 metadata keys do not fit a file of 24 bytes"));
  CHECK(has(with_counts(~std::uint64_t{0}, 0), "do not fit"));
  CHECK(has(with_counts(0, ~std::uint64_t{0}), "do not fit"));
}

TEST_CASE("gguf: names of keys and tensors have 1 to 65535 bytes, and occur once") {
  const auto key = [](const std::string& name) {
    RawGguf raw;
    raw.keys.scalar(name, 0, std::uint8_t{1});
    return parse_error(raw.directory());
  };
  CHECK(key("k") == "");
  CHECK(key(std::string(65535, 'k')) == "");
  CHECK(has(key(""), "a metadata key of 0 bytes"));
  CHECK(has(key(std::string(65536, 'k')), "a metadata key of 65536 bytes"));
  const auto tensor = [](const std::string& name) {
    RawGguf raw;
    raw.tensors = {{name, {8}, kF32, 0}};
    return parse_error(raw.with_data(32));
  };
  CHECK(tensor("t") == "");
  CHECK(tensor(std::string(65535, 't')) == "");
  CHECK(has(tensor(""), "a tensor name of 0 bytes"));
  CHECK(has(tensor(std::string(65536, 't')), "a tensor name of 65536 bytes"));

  // Two that are the same need not follow each other; case counts, and so does a zero byte.
  RawGguf raw;
  for (const char* name : {"a", "b", "A"}) raw.keys.scalar(name, 0, std::uint8_t{1});
  raw.keys.scalar(std::string("a\0", 2), 0, std::uint8_t{1});
  raw.tensors = {{"x", {8}, kF32, 0}, {"y", {8}, kF32, 32}, {"X", {8}, kF32, 64}};
  CHECK(parse_error(raw.with_data(96)) == "");
  RawGguf twice = raw;
  twice.keys.scalar("a", 0, std::uint8_t{2});
  CHECK(has(parse_error(twice.with_data(96)), "the metadata key 'a' is there twice"));
  twice = raw;
  twice.tensors[2].name = "x";
  CHECK(has(parse_error(twice.with_data(96)), "the tensor 'x' is there twice"));
}

TEST_CASE("gguf: a value, a string or an array may end where the file does, and not a byte later") {
  struct Type {
    std::uint32_t id;
    std::size_t size;
  };
  for (const Type type : {Type{0, 1}, Type{1, 1}, Type{2, 2}, Type{3, 2}, Type{4, 4}, Type{5, 4},
                          Type{6, 4}, Type{7, 1}, Type{10, 8}, Type{11, 8}, Type{12, 8}}) {
    CAPTURE(type.id);
    Blob blob = RawGguf{}.directory();
    blob[16] = 1;
    GgufWriter::put_string("key", blob);
    GgufWriter::put(type.id, blob);
    Blob scalar = blob;
    scalar.resize(blob.size() + type.size);
    CHECK(parse_error(scalar) == "");
    scalar.pop_back();
    CHECK(has(parse_error(scalar), "metadata key 'key'"));
    CHECK(has(parse_error(scalar), "the file ends inside a value"));

    blob.resize(blob.size() - 4);
    GgufWriter::put(std::uint32_t{9}, blob);
    GgufWriter::put(type.id, blob);
    GgufWriter::put(std::uint64_t{7}, blob);
    blob.resize(blob.size() + 7 * type.size, 0x01);
    const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
    CHECK(file.find("key")->size() == 7);
    CHECK(static_cast<std::uint32_t>(file.find("key")->element_type()) == type.id);
    std::size_t n = 0;
    file.find("key")->for_each([&](std::uint64_t i, const gguf::Value& element) {
      CHECK(i == n);
      CHECK(static_cast<std::uint32_t>(element.type()) == type.id);
      ++n;
      return true;
    });
    CHECK(n == 7);
    blob.pop_back();
    CHECK(has(parse_error(blob), "an array of 7 elements runs past the end of the file"));
    // As many elements as fill all addresses, and one more, which is none.
    const std::size_t count_at = 24 + 8 + 3 + 4 + 4;
    for (const std::uint64_t count :
         {~std::uint64_t{0}, ~std::uint64_t{0} / type.size + 1, ~std::uint64_t{0} / type.size}) {
      std::memcpy(blob.data() + count_at, &count, 8);
      if (count != 0) CHECK(has(parse_error(blob), "runs past the end of the file"));
    }
  }
  const auto string_of = [](std::uint64_t length, std::size_t n_there) {
    Blob blob = RawGguf{}.directory();
    blob[16] = 1;
    GgufWriter::put_string("key", blob);
    GgufWriter::put(std::uint32_t{8}, blob);
    GgufWriter::put(length, blob);
    blob.resize(blob.size() + n_there, 'x');
    return parse_error(blob);
  };
  CHECK(string_of(0, 0) == "");
  CHECK(string_of(5, 5) == "");
  CHECK(has(string_of(6, 5), "a string value has a length of 6 bytes, past the end of the file"));
  CHECK(has(string_of(~std::uint64_t{0}, 5), "past the end of the file"));
}

TEST_CASE("gguf: value types end at 12, in metadata and in arrays") {
  for (const std::uint32_t type : {13u, 255u, 0x80000000u}) {
    Blob blob = RawGguf{}.directory();
    blob[16] = 1;
    GgufWriter::put_string("key", blob);
    GgufWriter::put(type, blob);
    blob.resize(blob.size() + 16);
    CHECK(has(parse_error(blob), "unknown value type " + std::to_string(type)));
    RawGguf raw;
    raw.keys.array("key", type, std::vector<std::uint64_t>{1, 2});
    CHECK(has(parse_error(raw.directory()), "unknown value type " + std::to_string(type)));
  }
}

TEST_CASE("gguf: a value answers only for types that hold what is asked") {
  GgufWriter writer;
  const auto all = [&](auto zero) {
    using T = decltype(zero);
    return std::vector<T>{std::numeric_limits<T>::lowest(), T(0), std::numeric_limits<T>::max()};
  };
  writer.array("u8", 0, all(std::uint8_t{}));
  writer.array("i8", 1, all(std::int8_t{}));
  writer.array("u16", 2, all(std::uint16_t{}));
  writer.array("i16", 3, all(std::int16_t{}));
  writer.array("u32", 4, all(std::uint32_t{}));
  writer.array("i32", 5, all(std::int32_t{}));
  writer.array("u64", 10, all(std::uint64_t{}));
  writer.array("i64", 11, all(std::int64_t{}));
  writer.float32("f32", 1.0f);
  writer.scalar("f64", 12, 1.0);
  writer.boolean("true", true);
  writer.boolean("false", false);
  writer.string("string", "1");
  const Blob blob = writer.finish();
  const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
  const auto check = [&](const char* key, auto zero) {
    CAPTURE(key);
    using T = decltype(zero);
    const std::vector<T> expected = all(zero);
    CHECK(std::string(gguf::value_type_name(file.find(key)->element_type())) == key);
    file.find(key)->for_each([&](std::uint64_t i, const gguf::Value& v) {
      const T number = expected[static_cast<std::size_t>(i)];
      CHECK(v.as_double() == static_cast<double>(number));
      CHECK(v.as_uint().has_value() == !(number < 0));
      if (!(number < 0)) CHECK(v.as_uint() == static_cast<std::uint64_t>(number));
      CHECK(!v.as_bool());
      CHECK(!v.as_string());
      return true;
    });
  };
  check("u8", std::uint8_t{});
  check("i8", std::int8_t{});
  check("u16", std::uint16_t{});
  check("i16", std::int16_t{});
  check("u32", std::uint32_t{});
  check("i32", std::int32_t{});
  check("u64", std::uint64_t{});
  check("i64", std::int64_t{});
  for (const char* key : {"f32", "f64", "true", "false", "string", "u8"}) {
    CAPTURE(key);
    const gguf::Value& v = *file.find(key);
    const std::string name = gguf::value_type_name(v.type());
    CHECK(!v.as_uint());
    CHECK(v.as_double().has_value() == (name == "f32" || name == "f64"));
    CHECK(v.as_bool().has_value() == (name == "bool"));
    CHECK(v.as_string().has_value() == (name == "string"));
    if (name == "array") continue;
    v.for_each([&](std::uint64_t, const gguf::Value&) {
      FAIL("no array");
      return true;
    });
  }
  CHECK(file.find("true")->as_bool() == true);
  CHECK(file.find("false")->as_bool() == false);
  CHECK(std::string(gguf::value_type_name(file.find("f32")->type())) == "f32");
  CHECK(std::string(gguf::value_type_name(file.find("f64")->type())) == "f64");
  CHECK(std::string(gguf::value_type_name(file.find("u8")->type())) == "array");
  CHECK(std::string(gguf::value_type_name(static_cast<gguf::ValueType>(13))) == "unknown");
}

TEST_CASE("gguf: general.alignment is a multiple of 8 from 8 to 65536, and data begins at one") {
  const auto parse = [](std::uint64_t alignment, std::uint64_t offset, std::size_t n_data) {
    RawGguf raw;
    raw.keys.scalar("general.alignment", 10, alignment);
    raw.tensors = {{"t", {2}, kF32, offset}};
    return raw.with_data(n_data, alignment == 0 ? 32 : static_cast<std::size_t>(alignment));
  };
  for (const std::uint64_t alignment : {8u, 16u, 24u, 64u, 65536u}) {
    CAPTURE(alignment);
    for (const std::uint64_t offset : {std::uint64_t{0}, alignment}) {
      const Blob blob = parse(alignment, offset, static_cast<std::size_t>(offset) + 8);
      const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
      const gguf::Tensor& tensor = file.tensors()[0];
      CHECK(tensor.data == blob.data() + blob.size() - 8);
      CHECK(tensor.offset == offset);
      CHECK(tensor.data[0] == static_cast<std::uint8_t>(offset + 1));
    }
    CHECK(has(parse_error(parse(alignment, alignment / 2, static_cast<std::size_t>(alignment) + 8)),
              "'t' begins at offset " + std::to_string(alignment / 2) +
                  ", not a multiple of the alignment " + std::to_string(alignment)));
  }
  for (const std::uint64_t alignment : {0u, 4u, 12u, 65544u}) {
    CAPTURE(alignment);
    CHECK(has(parse_error(parse(alignment, 0, 8)),
              "general.alignment must be a multiple of 8 up to 65536"));
  }
  RawGguf raw;
  raw.keys.string("general.alignment", "32");
  CHECK(has(parse_error(raw.directory()), "general.alignment must be"));
  // Without the key it is 32.
  raw = {};
  raw.tensors = {{"t", {2}, kF32, 16}};
  CHECK(has(parse_error(raw.with_data(64)), "not a multiple of the alignment 32"));
  // A directory that ends at a multiple has no filling behind it.
  raw.keys.string("k", "");
  raw.tensors[0].offset = 0;
  while (raw.directory().size() % 32 != 0) raw.tensors[0].name += "t";
  const Blob blob = raw.with_data(8);
  const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
  CHECK(file.tensors()[0].data == blob.data() + raw.directory().size());
}

TEST_CASE(
    "gguf: a tensor has 1 to 4 dimensions, none of them 0, and no more numbers than fit 64 bits") {
  const auto shaped = [](const std::vector<std::uint64_t>& shape) {
    RawGguf raw;
    raw.tensors = {{"t", shape, kF32, 0}};
    return parse_error(raw.with_data(4 * 2 * 3 * 5 * 7));
  };
  CHECK(has(shaped({}), "'t' has 0 dimensions; 1 to 4 are allowed"));
  CHECK(shaped({2}) == "");
  CHECK(shaped({2, 3}) == "");
  CHECK(shaped({2, 3, 5}) == "");
  CHECK(shaped({2, 3, 5, 7}) == "");
  CHECK(has(shaped({2, 3, 5, 7, 1}), "'t' has 5 dimensions; 1 to 4 are allowed"));
  for (std::size_t d = 0; d < 4; ++d) {
    std::vector<std::uint64_t> shape = {2, 3, 5, 7};
    shape[d] = 0;
    CHECK(has(shaped(shape), "'t': dimension " + std::to_string(d) + " is 0"));
  }
  // A number may have 8 bytes, so that 2^61 of them are too many.
  const std::uint64_t most = (std::uint64_t{1} << 61) - 1;
  CHECK(has(shaped({most}), "runs past the end of the file"));
  CHECK(has(shaped({most + 1}), "'t': dimension 0 is 2305843009213693952"));
  CHECK(has(shaped({std::uint64_t{1} << 32, (std::uint64_t{1} << 29) - 1}), "runs past the end"));
  CHECK(has(shaped({std::uint64_t{1} << 32, std::uint64_t{1} << 29}), "dimension 1 is 536870912"));
  CHECK(has(shaped({2, 2, 2, ~std::uint64_t{0}}), "dimension 3 is"));

  RawGguf raw;
  raw.tensors = {{"t", {2, 3}, kF32, 0}, {"u", {2, 3, 5, 7}, kF16, 32}};
  const Blob blob = raw.with_data(32 + 2 * 3 * 5 * 7 * 2);
  const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
  CHECK(file.tensors()[0].n_dims == 2);
  CHECK(file.tensors()[0].shape == std::array<std::uint64_t, 4>{2, 3, 1, 1});
  CHECK(file.tensors()[0].bytes == 24);
  CHECK(file.tensors()[1].n_dims == 4);
  CHECK(file.tensors()[1].shape == std::array<std::uint64_t, 4>{2, 3, 5, 7});
  CHECK(file.tensors()[1].bytes == 2 * 3 * 5 * 7 * 2);
  CHECK(file.tensors()[1].data == file.tensors()[0].data + 32);
}

TEST_CASE("gguf: rows are whole blocks, and a tensor has the bytes of its blocks") {
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    CAPTURE(entry.info.name);
    const std::size_t block = entry.info.block_size;
    const auto type = static_cast<std::uint32_t>(entry.format);
    RawGguf raw;
    raw.tensors = {{"t", {2 * block, 3}, type, 0}};
    const Blob blob = raw.with_data(6 * entry.info.block_bytes);
    {
      const auto file = value(gguf::File::parse(bytes(blob), std::pmr::get_default_resource()));
      CHECK(file.tensors()[0].format == entry.format);
      CHECK(file.tensors()[0].bytes == 6 * entry.info.block_bytes);
    }
    CHECK(has(parse_error(raw.with_data(6 * entry.info.block_bytes - 1)),
              "'t' of " + std::to_string(6 * entry.info.block_bytes) +
                  " bytes at offset 0 runs past the end of the file"));
    if (block == 1) continue;
    // As many numbers as fill whole blocks, in rows that do not.
    for (const std::size_t cols : {block / 2, 2 * block - 1, 2 * block + 1}) {
      raw.tensors[0].shape = {cols, 2 * block};
      CHECK(has(parse_error(raw.with_data(4 * block * entry.info.block_bytes)),
                "'t' has rows of " + std::to_string(cols) + ", not a multiple of " +
                    entry.info.name + "'s block of " + std::to_string(block)));
    }
  }
}

TEST_CASE("gguf: a tensor ends within the file, wherever it begins") {
  const auto at = [](std::uint64_t offset, std::size_t n_data) {
    RawGguf raw;
    raw.tensors = {{"t", {8}, kF32, offset}};
    return parse_error(raw.with_data(n_data));
  };
  CHECK(at(0, 32) == "");
  CHECK(has(at(0, 31), "'t' of 32 bytes at offset 0 runs past the end of the file"));
  CHECK(at(64, 96) == "");
  CHECK(has(at(64, 95), "'t' of 32 bytes at offset 64 runs past the end of the file"));
  CHECK(has(at(96, 96), "runs past the end of the file"));
  CHECK(has(at(128, 96), "runs past the end of the file"));
  CHECK(has(at(~std::uint64_t{31}, 96), "runs past the end of the file"));
  // Where the file ends before data may begin.
  RawGguf raw;
  raw.tensors = {{"t", {8}, kF32, 0}};
  REQUIRE(raw.directory().size() % 32 != 0);
  CHECK(has(parse_error(raw.directory()), "runs past the end of the file"));
}

TEST_CASE("gguf: tensors may touch, in any order of the directory, but not share a byte") {
  // A block of Q4_0 has 18 bytes, two of them 36: 4 more than 32.
  const auto parse = [](std::uint64_t n_blocks, std::uint64_t second, bool other_order) {
    RawGguf raw;
    raw.tensors = {{"first", {32 * n_blocks}, kQ4_0, 0}, {"second", {8}, kF32, second}};
    if (other_order) std::swap(raw.tensors[0], raw.tensors[1]);
    return parse_error(raw.with_data(2000));
  };
  for (const bool other_order : {false, true}) {
    CHECK(parse(1, 32, other_order) == "");
    CHECK(parse(2, 64, other_order) == "");
    CHECK(parse(16, 288, other_order) == "");  // whose 288 bytes end where the second begins
    const char* message = "the tensors 'first' and 'second' overlap";
    CHECK(has(parse(2, 32, other_order), message));    // 4 bytes
    CHECK(has(parse(16, 256, other_order), message));  // 32 bytes
    CHECK(has(parse(50, 32, other_order), message));   // all of the second
  }
  CHECK(has(parse(1, 0, false), "overlap"));
  // With an alignment of 8: by 2 bytes.
  RawGguf raw;
  raw.keys.uint32("general.alignment", 8);
  raw.tensors = {{"first", {4}, kF16, 0}, {"second", {4}, kF16, 8}};
  CHECK(parse_error(raw.with_data(16, 8)) == "");
  raw.tensors[0].shape[0] = 5;
  CHECK(has(parse_error(raw.with_data(16, 8)), "the tensors 'first' and 'second' overlap"));
}
