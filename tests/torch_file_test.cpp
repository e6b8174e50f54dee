// Files of torch.save(): what a tensor's entry in the pickle must say, at each limit and beyond it.
#include <mixtral/impl/checkpoints/torch_file.hpp>

#include "model_files.hpp"

using namespace support;

namespace {

using namespace std::string_literals;
using mixtral::BlockFormat;

// Parts of a pickle.
std::string text(const std::string& s) {
  return "\x8c" + std::string(1, static_cast<char>(s.size())) + s;
}
std::string integer(std::uint64_t v) {
  std::string out = "\x8a\x08";  // LONG1, of eight bytes
  for (int i = 0; i < 8; ++i) out += static_cast<char>(v >> (8 * i));
  return out;
}
std::string tuple(const std::vector<std::string>& values) {
  std::string out = "(";
  for (const std::string& v : values) out += v;
  return out + "t";
}
std::string integers(const std::vector<std::uint64_t>& values) {
  std::vector<std::string> all;
  for (const std::uint64_t v : values) all.push_back(integer(v));
  return tuple(all);
}
std::string global(const std::string& name) {
  const bool is_storage = name.size() > 7 && name.substr(name.size() - 7) == "Storage";
  return "c" +
         std::string(name == "OrderedDict" ? "collections"
                     : is_storage          ? "torch"
                                           : "torch._utils") +
         "\n" + name + "\n";
}
std::string call(const std::string& name, const std::vector<std::string>& arguments) {
  return global(name) + tuple(arguments) + "R";
}
std::string storage(const std::string& type = "FloatStorage", const std::string& key = "0") {
  return tuple({text("storage"), global(type), text(key), text("cpu"), integer(12)}) + "Q";
}
std::string rebuilt(const std::vector<std::uint64_t>& size,
                    const std::vector<std::uint64_t>& stride, std::uint64_t offset = 0,
                    const std::string& type = "FloatStorage") {
  return call("_rebuild_tensor_v2",
              {storage(type), integer(offset), integers(size), integers(stride), "\x89", "}"});
}

// A file with one tensor "w", whose storage has 48 bytes: twelve numbers of float32.
using Entries = std::vector<std::pair<std::string, Blob>>;
Entries entries(const std::string& w) {
  const std::string pickle = "\x80\x02}" + text("w") + w + "s.";
  Blob data(48);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::uint8_t>(i);
  return {{"a/data.pkl", Blob(pickle.begin(), pickle.end())}, {"a/data/0", data}};
}

struct Read {
  Blob file;
  mixtral::Result<mixtral::detail::StoredTensors> tensors;

  explicit Read(const Entries& all)
      : file(zip(all)),
        tensors(mixtral::detail::read_torch_file(bytes(file), "w.pth",
                                                 std::pmr::get_default_resource())) {}

  std::string error() const { return tensors ? "" : tensors.error().message(); }
  const mixtral::detail::StoredTensor& first() const {
    REQUIRE_MESSAGE(static_cast<bool>(tensors), error());
    REQUIRE(tensors->size() == 1);
    return (*tensors)[0];
  }
  std::size_t begin() const {
    const std::uint8_t* const data = first().data;
    const std::uint8_t first_bytes[] = {0, 1, 2, 3, 4, 5, 6, 7};
    const auto storage_begin = std::search(file.begin(), file.end(), first_bytes, first_bytes + 8);
    return static_cast<std::size_t>(data - &*storage_begin);
  }
};

std::string error_of(const std::string& w) { return Read(entries(w)).error(); }

}  // namespace

TEST_CASE("torch file: a tensor has its name, type and shape, and lies where its offset says") {
  const Read whole(entries(rebuilt({3, 4}, {4, 1})));
  CHECK(whole.first().name == "w");
  CHECK(whole.first().n_dims == 2);
  CHECK(whole.first().shape[0] == 3);
  CHECK(whole.first().shape[1] == 4);
  CHECK(whole.first().bytes == 48);
  CHECK(whole.first().type->format == BlockFormat::f32);
  CHECK(whole.begin() == 0);
  const Read part(entries(rebuilt({2, 4}, {4, 1}, 4)));
  CHECK(part.begin() == 16);
  CHECK(part.first().bytes == 32);
  const Read half(entries(rebuilt({5}, {1}, 19, "HalfStorage")));
  CHECK(half.begin() == 38);
  CHECK(half.first().bytes == 10);
  const Read number(entries(rebuilt({}, {}, 11)));
  CHECK(number.first().n_dims == 0);
  CHECK(number.first().bytes == 4);
}

TEST_CASE("torch file: every storage has its size of elements; three kinds are weights") {
  struct Type {
    const char* name;
    std::size_t bytes;
  };
  for (const Type& type : {Type{"FloatStorage", 4},
                           {"HalfStorage", 2},
                           {"BFloat16Storage", 2},
                           {"DoubleStorage", 8},
                           {"LongStorage", 8},
                           {"IntStorage", 4},
                           {"ShortStorage", 2},
                           {"CharStorage", 1},
                           {"ByteStorage", 1},
                           {"BoolStorage", 1}}) {
    CAPTURE(type.name);
    const std::uint64_t n = 48 / type.bytes;
    const Read read(entries(rebuilt({n}, {1}, 0, type.name)));
    CHECK(read.first().bytes == 48);
    CHECK(has(error_of(rebuilt({n + 1}, {1}, 0, type.name)), "larger than its storage"));
    const std::string name = type.name;
    std::optional<BlockFormat> format;
    if (name == "FloatStorage") format = BlockFormat::f32;
    if (name == "HalfStorage") format = BlockFormat::f16;
    if (name == "BFloat16Storage") format = BlockFormat::bf16;
    CHECK(read.first().type->format == format);
  }
  CHECK(has(error_of(rebuilt({1}, {1}, 0, "OrderedDict")),
            "'w': a storage of an unknown element type"));
}

TEST_CASE("torch file: a tensor ends with its storage, or before it") {
  CHECK(error_of(rebuilt({12}, {1})) == "");
  CHECK(error_of(rebuilt({1}, {1}, 11)) == "");
  CHECK(error_of(rebuilt({0}, {1}, 12)) == "");
  const std::string larger =
      "w.pth: 'w': the tensor is larger than its storage (incomplete download?)";
  CHECK(error_of(rebuilt({13}, {1})) == larger);
  CHECK(error_of(rebuilt({1}, {1}, 12)) == larger);
  CHECK(error_of(rebuilt({12}, {1}, 1)) == larger);
  CHECK(error_of(rebuilt({0}, {1}, 13)) == larger);
  CHECK(error_of(rebuilt({1}, {1}, (std::uint64_t{1} << 62) + 1)) == larger);
  CHECK(error_of(rebuilt({1}, {1}, ~std::uint64_t{0} >> 1)) == larger);
  // A storage that is cut within an element has none there.
  Entries cut = entries(rebuilt({12}, {1}));
  cut[1].second.resize(47);
  CHECK(Read(cut).error() == larger);
}

TEST_CASE("torch file: sizes and offsets are numbers that are not negative, as many as strides") {
  const std::string broken = "w.pth: 'w': a tensor with broken sizes";
  const auto with = [](const std::string& offset, const std::string& size,
                       const std::string& stride) {
    return error_of(call("_rebuild_tensor_v2", {storage(), offset, size, stride}));
  };
  CHECK(with(integer(0), integers({3}), integers({1})) == "");
  CHECK(with(integer(~std::uint64_t{0}), integers({3}), integers({1})) == broken);
  CHECK(with("N", integers({3}), integers({1})) == broken);
  CHECK(with(integer(0), integer(3), integers({1})) == broken);
  CHECK(with(integer(0), integers({3}), integer(1)) == broken);
  CHECK(with(integer(0), integers({3}), integers({1, 1})) == broken);
  CHECK(with(integer(0), integers({3, 1}), integers({1})) == broken);
  CHECK(with(integer(0), integers({~std::uint64_t{0}}), integers({1})) == broken);
  CHECK(with(integer(0), tuple({"N"}), integers({1})) == broken);
  CHECK(with(integer(0), integers({3}), tuple({"N"})) == broken);
}

TEST_CASE(
    "torch file: a tensor has four dimensions at most, of which each may have 2^40, together "
    "2^56") {
  CHECK(error_of(rebuilt({1, 3, 2, 2}, {12, 4, 2, 1})) == "");
  CHECK(error_of(rebuilt({1, 1, 3, 2, 2}, {12, 12, 4, 2, 1})) ==
        "w.pth: 'w': it has more than four dimensions");
  constexpr std::uint64_t kMost = std::uint64_t{1} << 40;
  CHECK(has(error_of(rebuilt({kMost}, {1})), "larger than its storage"));
  CHECK(error_of(rebuilt({kMost + 1}, {1})) == "w.pth: 'w': its shape is absurd");
  CHECK(error_of(rebuilt({kMost + 1, 0}, {0, 1})) == "w.pth: 'w': its shape is absurd");
  CHECK(has(error_of(rebuilt({std::uint64_t{1} << 16, kMost}, {kMost, 1})),
            "larger than its storage"));
  CHECK(has(error_of(rebuilt({(std::uint64_t{1} << 16) + 1, kMost}, {kMost, 1})),
            "its shape is absurd"));
}

TEST_CASE(
    "torch file: a tensor's numbers lie one after the other; the stride of one row does not "
    "matter") {
  const std::string view =
      "w.pth: 'w': the tensor is a view that is not contiguous; save a copy of it";
  CHECK(error_of(rebuilt({3, 4}, {4, 1})) == "");
  CHECK(error_of(rebuilt({1, 12}, {777, 1})) == "");
  CHECK(error_of(rebuilt({12, 1}, {1, 777})) == "");
  CHECK(error_of(rebuilt({4, 3}, {1, 4})) == view);  // transposed
  CHECK(error_of(rebuilt({3, 4}, {5, 1})) == view);
  CHECK(error_of(rebuilt({2, 4}, {8, 1})) == view);
  CHECK(error_of(rebuilt({6}, {2})) == view);
  CHECK(error_of(rebuilt({2}, {0})) == view);
  CHECK(error_of(rebuilt({2}, {~std::uint64_t{0}})) == view);
}

TEST_CASE("torch file: a tensor is a call with a storage, an offset, sizes and strides") {
  const std::vector<std::string> arguments = {storage(), integer(0), integers({3}), integers({1})};
  CHECK(error_of(call("_rebuild_tensor_v2", arguments)) == "");
  for (std::size_t n = 0; n < 4; ++n) {
    CHECK(error_of(
              call("_rebuild_tensor_v2",
                   std::vector<std::string>(arguments.begin(),
                                            arguments.begin() + static_cast<std::ptrdiff_t>(n)))) ==
          "w.pth: 'w': expected a tensor, found another call");
  }
  CHECK(has(error_of(call("FloatStorage", arguments)), "found another call"));
  CHECK(has(error_of("N"), "'w': expected a tensor, found another value"));
  CHECK(has(error_of(tuple(arguments)), "found another value"));

  // A parameter holds a tensor.
  const Read parameter(entries(call("_rebuild_parameter", {rebuilt({3}, {1}), "\x88", "}"})));
  CHECK(parameter.first().bytes == 12);
  CHECK(error_of(call("_rebuild_parameter", {rebuilt({3}, {1})})) == "");
  CHECK(has(error_of(call("_rebuild_parameter", {})), "found another call"));
  CHECK(has(error_of(call("_rebuild_parameter", {"N"})), "'w': a parameter that is no tensor"));
  CHECK(has(error_of(call("_rebuild_parameter", {call("_rebuild_parameter", {rebuilt({3}, {1})})})),
            "a parameter that is no tensor"));
}

TEST_CASE(
    "torch file: a storage says that it is one, its type and its key, and is in the archive") {
  const auto with = [](const std::string& id) {
    return error_of(call("_rebuild_tensor_v2", {id, integer(0), integers({3}), integers({1})}));
  };
  const std::string type = global("FloatStorage");
  CHECK(with(tuple({text("storage"), type, text("0")}) + "Q") == "");
  CHECK(with(tuple({text("storage"), type}) + "Q") == "w.pth: 'w': a storage without a key");
  CHECK(with(text("storage") + "Q") == "w.pth: 'w': a storage without a key");
  CHECK(with(tuple({text("storage"), type, text("0")})) == "w.pth: 'w': a tensor without storage");
  CHECK(has(with(tuple({text("module"), type, text("0")}) + "Q"), "a storage of an unknown kind"));
  CHECK(has(with(tuple({text("storage"), text("FloatStorage"), text("0")}) + "Q"),
            "a storage of an unknown kind"));
  CHECK(
      has(with(tuple({text("storage"), type, integer(0)}) + "Q"), "a storage of an unknown kind"));
  CHECK(with(tuple({text("storage"), type, text("1")}) + "Q") ==
        "w.pth: 'w': its storage is missing from the archive");
}

TEST_CASE(
    "torch file: the archive has one data.pkl and each storage once; numbers are little-endian") {
  const Entries good = entries(rebuilt({3}, {1}));
  const auto with = [&](const std::string& name, const std::string& contents) {
    Entries all = good;
    all.push_back({name, Blob(contents.begin(), contents.end())});
    return Read(all).error();
  };
  CHECK(with("a/byteorder", "little") == "");
  CHECK(with("a/version", "3\n") == "");
  CHECK(with("a/byteorder", "big") ==
        "w.pth: not a PyTorch state dict: its numbers are not little-endian");
  CHECK(with("a/data.pkl", "}.") == "w.pth: not a PyTorch state dict: data.pkl is there twice");
  CHECK(with("a/data/0", "x") == "w.pth: not a PyTorch state dict: a storage is there twice");
  CHECK(Read(Entries{good[1], {"a/version", {'3'}}}).error() ==
        "w.pth: not a PyTorch state dict: it has no data.pkl");
  // The name of the folder in the archive does not matter.
  Entries other = good;
  other[0].first = "data.pkl";
  other[1].first = "x/data/0";
  CHECK(Read(other).error() == "");
}

TEST_CASE("torch file: the pickle is a dict from names to tensors, each name once") {
  const auto pickled = [](const std::string& pickle) {
    Entries all = entries(rebuilt({3}, {1}));
    all[0].second = Blob(pickle.begin(), pickle.end());
    return Read(all).error();
  };
  const std::string w = rebuilt({3}, {1});
  CHECK(pickled("}.") == "");
  CHECK(pickled("}(" + text("a") + w + text("b") + w + "u.") == "");
  CHECK(pickled("}(" + text("a") + w + text("a") + w + "u.") == "w.pth: tensor 'a' is there twice");
  CHECK(pickled("N.") == "w.pth: not a PyTorch state dict: data.pkl holds no dict of tensors");
  CHECK(pickled("}N" + w + "s.") ==
        "w.pth: not a PyTorch state dict: a tensor's name is no string");
  // Attributes of the dict are no tensors.
  CHECK(pickled("}" + text("a") + w + "s}" + text("_metadata") + "Nsb.") == "");
}

TEST_CASE("torch file: it begins as a zip archive does; what older versions wrote is refused") {
  const Blob good = zip(entries(rebuilt({3}, {1})));
  for (std::size_t i = 0; i < 4; ++i) {
    Blob file = good;
    file[i] ^= 1;
    const auto read =
        mixtral::detail::read_torch_file(bytes(file), "w.pth", std::pmr::get_default_resource());
    REQUIRE(!read);
    CHECK(read.error().code() == mixtral::ErrorCode::unsupported);
    CHECK(has(read.error().message(),
              "w.pth: not a zip archive, as PyTorch has written since version 1.6"));
  }
  for (std::size_t size = 0; size < 4; ++size) {
    const Blob file(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(!mixtral::detail::is_zip(bytes(file)));
  }
}
