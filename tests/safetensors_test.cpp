// safetensors files: each rule of the format at its limit, and one beyond it.
#include <mixtral/impl/checkpoints/safetensors.hpp>

#include "model_files.hpp"

using namespace support;

namespace {

using Tensors = mixtral::detail::StoredTensors;

// The bytes have a buffer of their own size, so that sanitizers see what is read past the end.
mixtral::Result<Tensors> read(const Blob& exact) {
  return mixtral::detail::read_safetensors(bytes(exact), "a.safetensors",
                                           std::pmr::get_default_resource());
}

std::string error_of(const Blob& file, mixtral::ErrorCode code = mixtral::ErrorCode::bad_format) {
  const Blob exact(file);
  const auto tensors = read(exact);
  if (!tensors) CHECK(tensors.error().code() == code);
  return tensors ? "" : tensors.error().message();
}

std::string entry(const std::string& dtype, const nlohmann::json& shape, std::uint64_t begin,
                  std::uint64_t end) {
  return nlohmann::json{{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, end}}}.dump();
}

// A file with one tensor "w" and `size` bytes of data.
Blob one(const std::string& dtype, const nlohmann::json& shape, std::uint64_t begin,
         std::uint64_t end, std::size_t size) {
  return safetensors("{\"w\":" + entry(dtype, shape, begin, end) + "}", Blob(size));
}

}  // namespace

TEST_CASE("safetensors: the header ends with the file, or before it") {
  const std::string text = "{}";
  Blob file = safetensors(text, {});
  CHECK(error_of(file) == "");
  file.pop_back();
  CHECK(error_of(file) ==
        "a.safetensors: the safetensors header of 2 bytes is past the end of the file of 9 "
        "(incomplete download?)");
  // One byte more than there is, up to numbers whose sum with 8 is small.
  for (const std::uint64_t length : {std::uint64_t{3}, std::uint64_t{10}, std::uint64_t{11},
                                     ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    file = safetensors(text, {});
    std::memcpy(file.data(), &length, 8);
    CHECK(error_of(file) == "a.safetensors: the safetensors header of " + std::to_string(length) +
                                " bytes is past the end of the file of 10 (incomplete download?)");
  }
  for (std::size_t size = 0; size < 8; ++size)
    CHECK(has(error_of(Blob(size)), "past the end of the file"));
  CHECK(has(error_of(Blob(8)), "not valid JSON"));
  // All eight bytes count.
  for (std::size_t i = 1; i < 8; ++i) {
    file = safetensors(text, {});
    file[i] = 1;
    CHECK(has(error_of(file),
              "header of " + std::to_string(2 + (std::uint64_t{1} << (8 * i))) + " bytes"));
  }
}

TEST_CASE("safetensors: the header may have 100 MiB, as the format says, and no more") {
  // Memory that is only zeros is never touched.
  constexpr std::size_t kMost = std::size_t{100} << 20;
  struct Free {
    void operator()(std::uint8_t* p) const { std::free(p); }
  };
  const std::unique_ptr<std::uint8_t, Free> file(
      static_cast<std::uint8_t*>(std::calloc(kMost + 9, 1)));
  REQUIRE(file);
  const auto error_at = [&](std::uint64_t length) {
    std::memcpy(file.get(), &length, 8);
    const auto tensors = mixtral::detail::read_safetensors({file.get(), kMost + 9}, "a",
                                                           std::pmr::get_default_resource());
    REQUIRE(!tensors);
    return std::string(tensors.error().message());
  };
  CHECK(has(error_at(kMost), "not valid JSON"));
  CHECK(has(error_at(kMost + 1), "104857601 bytes of JSON; at most 104857600 are read"));
}

TEST_CASE(
    "safetensors: tensors have their name, type, shape and bytes, in the order of the bytes") {
  Blob data(4 + 6 + 2);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::uint8_t>(i);
  // An empty tensor may lie where another begins.
  const Blob file = safetensors(
      "{\"__metadata__\":{\"format\":\"pt\"},\"c\":" + entry("BF16", {1, 1, 1, 1}, 10, 12) +
          ",\"b\":" + entry("F16", {3, 1}, 4, 10) + ",\"d\":" + entry("F32", {0, 7}, 4, 4) +
          ",\"a\":" + entry("F32", nlohmann::json::array(), 0, 4) + "}",
      data);
  const auto tensors = value(read(file));
  REQUIRE(tensors.size() == 4);
  const auto expect = [&](std::size_t i, const char* name, mixtral::BlockFormat format,
                          std::vector<std::uint64_t> shape, std::size_t begin, std::size_t size) {
    const auto& tensor = tensors[i];
    CHECK(tensor.name == name);
    CHECK(tensor.type->format == format);
    CHECK(std::vector<std::uint64_t>(
              tensor.shape.begin(),
              tensor.shape.begin() + static_cast<std::ptrdiff_t>(tensor.n_dims)) == shape);
    CHECK(tensor.data == file.data() + file.size() - data.size() + begin);
    CHECK(tensor.bytes == size);
  };
  expect(0, "a", mixtral::BlockFormat::f32, {}, 0, 4);
  expect(1, "d", mixtral::BlockFormat::f32, {0, 7}, 4, 0);
  expect(2, "b", mixtral::BlockFormat::f16, {3, 1}, 4, 6);
  expect(3, "c", mixtral::BlockFormat::bf16, {1, 1, 1, 1}, 10, 2);
}

TEST_CASE("safetensors: every element type of the format has its size; only three are weights") {
  const std::pair<const char*, std::size_t> types[] = {
      {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8},     {"I64", 8},
      {"U64", 8}, {"I32", 4}, {"U32", 4},  {"I16", 2},     {"U16", 2},
      {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const auto& type : types) {
    const char* const name = type.first;
    const std::size_t size = type.second;
    CAPTURE(name);
    const Blob file = one(name, {2, 3}, 0, 6 * size, 6 * size);
    const auto tensors = value(read(file));
    const auto matrix = mixtral::detail::matrix_of(tensors[0]);
    CHECK(static_cast<bool>(matrix) == (tensors[0].type->format.has_value()));
    const bool is_weights =
        std::string(" F32 F16 BF16 ").find(" " + std::string(name) + " ") != std::string::npos;
    CHECK(tensors[0].type->format.has_value() == is_weights);
    if (!matrix) {
      CHECK(has(matrix.error().message(), "tensor 'w' has the element type " + std::string(name)));
      continue;
    }
    CHECK(matrix->rows == 2);
    CHECK(matrix->cols == 3);
    CHECK(matrix->row_bytes == 3 * size);
  }
  CHECK(has(error_of(one("F4", {1}, 0, 1, 1), mixtral::ErrorCode::unsupported),
            "'w' has the unknown dtype 'F4'"));
}

TEST_CASE("safetensors: a tensor has four dimensions at most") {
  CHECK(error_of(one("F32", {1, 2, 1, 2}, 0, 16, 16)) == "");
  CHECK(error_of(one("F32", {1, 2, 1, 2, 1}, 0, 16, 16)) ==
        "a.safetensors: tensor 'w': it has more than four dimensions");
  CHECK(has(error_of(one("F32", std::vector<int>(1000, 1), 0, 4, 4)), "more than four dimensions"));
}

TEST_CASE("safetensors: a shape of 2^56 elements is a shape, one of more is absurd") {
  const auto with = [](const nlohmann::json& shape) {
    return error_of(one("U8", shape, 0, 16, 16));
  };
  constexpr std::uint64_t kMost = std::uint64_t{1} << 56;
  const std::string mismatch = "tensor 'w': its data_offsets do not agree with its shape";
  CHECK(has(with({kMost}), mismatch));
  CHECK(has(with({1, kMost}), mismatch));
  CHECK(has(with({std::uint64_t{1} << 30, std::uint64_t{1} << 26}), mismatch));
  CHECK(has(with({kMost + 1}), "tensor 'w': its shape is absurd"));
  CHECK(has(with({kMost, 2}), "absurd"));
  CHECK(has(with({2, kMost}), "absurd"));
  CHECK(has(with({std::uint64_t{1} << 32, std::uint64_t{1} << 32}), "absurd"));
  CHECK(has(with({~std::uint64_t{0}}), "absurd"));
  CHECK(has(with({-1}), "shape must be of non-negative integers"));
  CHECK(has(with({1.0}), "shape must be of non-negative integers"));
  CHECK(has(with({"16"}), "shape must be of non-negative integers"));
}

TEST_CASE("safetensors: data_offsets lie in the file, in order, and agree with the shape") {
  CHECK(error_of(one("F32", {4}, 0, 16, 16)) == "");
  CHECK(has(error_of(one("F32", {4}, 0, 16, 15)),
            "tensor 'w': its data_offsets are past the end of the file"));
  CHECK(has(error_of(one("F32", {5}, 0, 20, 16)), "past the end of the file"));
  CHECK(has(error_of(one("F32", {4}, 17, 16, 16)), "past the end"));
  CHECK(has(error_of(one("F32", {4}, ~std::uint64_t{0}, 16, 16)), "past the end"));
  CHECK(has(error_of(one("F32", {4}, 0, ~std::uint64_t{0}, 16)), "past the end"));
  CHECK(has(error_of(one("F32", {4}, 0, 15, 16)), "do not agree with its shape"));
  CHECK(has(error_of(one("F32", {3}, 0, 13, 16)), "do not agree with its shape"));
  for (const char* offsets :
       {"null", "7", "[]", "[0]", "[0,16,16]", "[-1,16]", "[0,-16]", "[0.0,16]", "[0,\"16\"]"}) {
    CAPTURE(offsets);
    const std::string text =
        "{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":" + std::string(offsets) + "}}";
    CHECK(error_of(safetensors(text, Blob(16))) ==
          "a.safetensors: tensor 'w': data_offsets must be an array of two non-negative integers");
  }
  for (const char* dtype : {"null", "32", "[\"F32\"]"}) {
    const std::string text =
        "{\"w\":{\"dtype\":" + std::string(dtype) + ",\"shape\":[4],\"data_offsets\":[0,16]}}";
    CHECK(has(error_of(safetensors(text, Blob(16))), "tensor 'w': dtype must be a string"));
  }
  for (const char* shape : {"null", "4", "{\"0\":4}"}) {
    const std::string text =
        "{\"w\":{\"dtype\":\"F32\",\"shape\":" + std::string(shape) + ",\"data_offsets\":[0,16]}}";
    CHECK(has(error_of(safetensors(text, Blob(16))), "tensor 'w': shape must be an array"));
  }
  for (const char* value : {"null", "[]", "\"F32\"", "4"}) {
    CHECK(has(error_of(safetensors("{\"w\":" + std::string(value) + "}", Blob(16))),
              "'w': its entry is not an object"));
  }
}

TEST_CASE("safetensors: every byte of the data belongs to one tensor") {
  const auto two = [](std::uint64_t a_begin, std::uint64_t a_end, std::uint64_t b_begin,
                      std::uint64_t b_end) {
    return error_of(safetensors("{\"a\":" + entry("U8", {a_end - a_begin}, a_begin, a_end) +
                                    ",\"b\":" + entry("U8", {b_end - b_begin}, b_begin, b_end) +
                                    "}",
                                Blob(16)));
  };
  CHECK(two(0, 8, 8, 16) == "");
  CHECK(two(8, 16, 0, 8) == "");
  CHECK(two(0, 0, 0, 16) == "");
  CHECK(two(16, 16, 0, 16) == "");
  CHECK(has(two(0, 9, 8, 16), "tensor 'b' overlaps another"));
  CHECK(has(two(0, 16, 0, 16), "overlaps another"));
  CHECK(has(two(8, 8, 0, 16), "tensor 'a' overlaps another"));
  CHECK(has(two(0, 7, 8, 16), "tensor 'b' begins after a hole"));
  CHECK(has(two(1, 8, 8, 16), "tensor 'a' begins after a hole"));
  CHECK(has(two(0, 8, 8, 15), "a.safetensors: 1 bytes at the end belong to no tensor"));
  CHECK(error_of(safetensors("{}", Blob(1))) ==
        "a.safetensors: 1 bytes at the end belong to no tensor");
  CHECK(error_of(safetensors("{\"__metadata__\":7}", Blob())) == "");
}
