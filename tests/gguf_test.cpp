// The GGUF parser and the checks on a model's tensors: what is read, and how wrong files are refused.
#include "model_files.hpp"
#include "small_stack.hpp"

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

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Synthetic small() {
  Synthetic synthetic;
  synthetic.n_layers = 1;
  synthetic.randomize(1);
  return synthetic;
}

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

TEST_CASE("model: thousands of mutated and truncated files: an error or success, nothing worse") {
  const Blob original = read_file(bundled_model());
  const auto directory =
      value(gguf::File::parse(bytes(original), std::pmr::get_default_resource()));
  std::size_t data_begin = original.size();
  for (const auto& tensor : directory.tensors()) {
    data_begin = std::min(data_begin, static_cast<std::size_t>(tensor.data - original.data()));
  }
  std::mt19937 random(99);
  std::size_t n_errors = 0;
  std::size_t n_runs = 0;
  // The vocabulary is large and mutated like any other part; the rest of the directory, where the
  // counts and offsets are, gets most of the attention.
  const std::size_t tensor_infos = data_begin - 4000;
  Blob blob = original;
  for (int round = 0; round < 4000; ++round) {
    std::vector<std::pair<std::size_t, std::uint8_t>> undo;
    for (std::size_t n = 1 + random() % 3; n > 0; --n) {
      std::size_t at = random() % data_begin;
      if (round % 4 == 1) at = random() % 1200;
      if (round % 4 == 2) at = tensor_infos + random() % 4000;
      undo.push_back({at, blob[at]});
      static constexpr std::uint8_t kExtreme[] = {0, 1, 0x7f, 0x80, 0xff};
      blob[at] = random() % 2 == 0 ? kExtreme[random() % 5] : static_cast<std::uint8_t>(random());
    }
    const std::size_t size =
        round % 8 == 7 ? random() % (round % 16 == 7 ? data_begin : blob.size()) : blob.size();
    const auto model = mixtral::Model::from_bytes(mixtral::Bytes::view({blob.data(), size}));
    if (!model) {
      ++n_errors;
      CHECK(std::strlen(model.error().message()) > 10);
    } else if (round % 10 == 0) {
      mixtral::SessionOptions options;
      options.context = std::min(model->config().context_length, 8u);
      options.batch = 4;
      auto s = mixtral::Session::open(*model, options);
      if (s && s->append(mixtral::Token{1})) {
        n_runs += static_cast<bool>(s->evaluate());
      }
    }
    for (std::size_t i = undo.size(); i-- > 0;) blob[undo[i].first] = undo[i].second;
  }
  CHECK(blob == original);
  CHECK(n_errors > 1000);
  CHECK(n_runs > 20);
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
  CHECK(parsed(4) == "");
  CHECK(has(parsed(5), "nested more than 4 deep"));
  CHECK(has(parsed(100000), "nested more than 4 deep"));
}
