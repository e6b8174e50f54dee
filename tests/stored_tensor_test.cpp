// Arrays as files store them: their sizes, their names, and the matrices that they are.
#include <mixtral/impl/checkpoints/stored_tensor.hpp>

#include "support.hpp"

using namespace support;
using mixtral::BlockFormat;
using mixtral::ErrorCode;
using mixtral::detail::ElementType;
using mixtral::detail::StoredTensor;

namespace {

constexpr ElementType kFloat{"F32", 4, BlockFormat::f32};
constexpr ElementType kInteger{"I64", 8, std::nullopt};

StoredTensor stored(const char* name, const std::vector<std::uint64_t>& shape,
                    const ElementType& type = kFloat) {
  StoredTensor tensor(std::pmr::get_default_resource());
  tensor.name = name;
  tensor.type = &type;
  tensor.n_dims = shape.size();
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  tensor.bytes = type.bytes;
  for (const std::uint64_t n : shape) tensor.bytes *= n;
  return tensor;
}

template <class T>
std::string error_of(const T& result, ErrorCode code) {
  if (result) return "";
  CHECK(result.error().code() == code);
  return result.error().message();
}

}  // namespace

TEST_CASE("stored_tensor: a tensor has up to four dimensions, and is empty until they are known") {
  const StoredTensor tensor(std::pmr::get_default_resource());
  CHECK(tensor.shape == std::array<std::uint64_t, 4>{});
  CHECK(tensor.n_dims == 0);
  CHECK(tensor.bytes == 0);
  CHECK(tensor.type == nullptr);
  CHECK(tensor.data == nullptr);
}

TEST_CASE("stored_tensor: a tensor has up to 2^56 elements") {
  const auto size = [](const std::vector<std::uint64_t>& shape, const ElementType& type = kFloat) {
    StoredTensor tensor = stored("t", shape, type);
    tensor.bytes = 7;
    const bool set = mixtral::detail::set_bytes(tensor);
    if (!set) CHECK(tensor.bytes == 7);
    return set ? tensor.bytes : ~std::uint64_t{0};
  };
  constexpr std::uint64_t kMost = std::uint64_t{1} << 56, kRefused = ~std::uint64_t{0};
  CHECK(size({}) == 4);
  CHECK(size({3, 5}) == 60);
  CHECK(size({3, 5, 2, 7}, kInteger) == 1680);
  CHECK(size({3, 0, kRefused, 5}) == 0);
  CHECK(size({kMost}) == 4 * kMost);
  CHECK(size({1, kMost}) == 4 * kMost);
  CHECK(size({kMost + 1}) == kRefused);
  CHECK(size({kMost / 8, 8}) == 4 * kMost);
  CHECK(size({kMost / 8, 9}) == kRefused);
  CHECK(size({kMost, 2}) == kRefused);
  CHECK(size({std::uint64_t{1} << 32, std::uint64_t{1} << 32}) == kRefused);
}

TEST_CASE("stored_tensor: no two tensors have one name") {
  mixtral::detail::StoredTensors tensors(std::pmr::get_default_resource());
  const auto check = [&] {
    return error_of(mixtral::detail::check_unique_names(tensors, "a.pth"), ErrorCode::bad_format);
  };
  CHECK(check() == "");
  for (const char* name : {"b", "a", "ab", "c"}) tensors.push_back(stored(name, {1}));
  CHECK(check() == "");
  tensors.push_back(stored("b", {1}));
  CHECK(check() == "a.pth: tensor 'b' is there twice");
  const std::string name(81, 'n');
  tensors = {{stored(name.c_str(), {1}), stored(name.c_str(), {2})},
             std::pmr::get_default_resource()};
  CHECK(check() == "a.pth: tensor '" + std::string(80, 'n') + "' is there twice");
}

TEST_CASE(
    "stored_tensor: a vector is a matrix of one row, and several matrices lie one below the "
    "other") {
  using mixtral::detail::matrix_of;
  const std::uint8_t data = 0;
  StoredTensor tensor = stored("t", {6, 5});
  tensor.data = &data;
  const auto check = [&](std::uint64_t n, std::size_t rows, std::size_t cols) {
    const auto matrix = value(matrix_of(tensor, n));
    CHECK(matrix.rows == rows);
    CHECK(matrix.cols == cols);
    CHECK(matrix.row_bytes == 4 * cols);
    CHECK(matrix.data == &data);
    CHECK(matrix.format == BlockFormat::f32);
  };
  check(1, 6, 5);
  check(2, 3, 5);
  check(6, 1, 5);
  tensor = stored("t", {5});
  tensor.data = &data;
  check(1, 1, 5);

  const auto error = [](const StoredTensor& of, std::uint64_t n) {
    return error_of(matrix_of(of, n), ErrorCode::bad_format);
  };
  const std::string expected = "; expected one or two, and a multiple of ";
  CHECK(error(stored("t", {6, 5}), 4) ==
        "tensor 't' has 2 dimensions, the first of 6" + expected + "4");
  CHECK(error(stored("t", {6, 5}), 12) ==
        "tensor 't' has 2 dimensions, the first of 6" + expected + "12");
  CHECK(error(stored("t", {6}), 2) ==
        "tensor 't' has 1 dimensions, the first of 6" + expected + "2");
  CHECK(error(stored("t", {}), 1) ==
        "tensor 't' has 0 dimensions, the first of 0" + expected + "1");
  CHECK(error(stored("t", {2, 3, 5}), 1) ==
        "tensor 't' has 3 dimensions, the first of 2" + expected + "1");
  CHECK(error(stored("t", {0, 3}), 1) ==
        "tensor 't' has 2 dimensions, the first of 0" + expected + "1");
  CHECK(error(stored("t", {3, 0}), 1) ==
        "tensor 't' has 2 dimensions, the first of 3" + expected + "1");
  const std::string name(81, 'n');
  CHECK(error(stored(name.c_str(), {}), 1).find("'" + std::string(80, 'n') + "' has 0") !=
        std::string::npos);
  CHECK(error_of(matrix_of(stored(name.c_str(), {2}, kInteger)), ErrorCode::unsupported) ==
        "tensor '" + std::string(80, 'n') +
            "' has the element type I64; weights in F32, F16 or BF16 are read");
}

TEST_CASE("stored_tensor: a prefix is taken off the names that have it") {
  using mixtral::detail::take_prefix;
  std::string_view text = "layers.5";
  CHECK(!take_prefix(text, "layers.56"));
  CHECK(!take_prefix(text, "layert"));
  CHECK(!take_prefix(text, "ayers"));
  CHECK(text == "layers.5");
  CHECK(take_prefix(text, "layers."));
  CHECK(text == "5");
  CHECK(take_prefix(text, "5"));
  CHECK(text.empty());
}

TEST_CASE("stored_tensor: a tensor that no model has is refused by name") {
  const mixtral::Error error = mixtral::detail::unknown_tensor(stored("q.bias", {1}));
  CHECK(error.code() == ErrorCode::unsupported);
  CHECK(std::string(error.message()) ==
        "tensor 'q.bias' is not part of a Mixtral, Mistral or Llama 2 model; running without it "
        "would "
        "give wrong results");
}

TEST_CASE("stored_tensor: a checkpoint keeps the names of its tensors") {
  mixtral::Checkpoint checkpoint(std::pmr::get_default_resource());
  {
    const StoredTensor tensor = stored("a name that is longer than strings are inline", {3, 2});
    const auto matrix = value(mixtral::detail::matrix_of(tensor));
    mixtral::detail::add_matrix(tensor, mixtral::Role::w2, 5, 7, matrix, checkpoint);
  }
  REQUIRE(checkpoint.tensors.size() == 1);
  const mixtral::NamedTensor& added = checkpoint.tensors[0];
  CHECK(added.role == mixtral::Role::w2);
  CHECK(added.layer == 5);
  CHECK(added.expert == 7);
  CHECK(added.matrix.rows == 3);
  CHECK(added.name == "a name that is longer than strings are inline");
}
