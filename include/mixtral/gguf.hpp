// GGUF files, versions 2 and 3, little-endian (ggml/docs/gguf.md): metadata and tensor directory.
#ifndef MIXTRAL_GGUF_HPP_
#define MIXTRAL_GGUF_HPP_

#include <array>
#include <cstdint>
#include <memory_resource>
#include <optional>
#include <string_view>
#include <vector>

#include "mixtral/block_format.hpp"
#include "mixtral/error.hpp"
#include "mixtral/span.hpp"

namespace mixtral::gguf {

enum class ValueType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

const char* value_type_name(ValueType type) noexcept;

// One metadata value; points into the file. The accessors give nothing when the type does not fit.
class Value {
 public:
  ValueType type() const noexcept { return type_; }
  // For arrays: the type and number of the elements.
  ValueType element_type() const noexcept { return element_type_; }
  std::uint64_t size() const noexcept { return size_; }

  // Any integer type that holds a non-negative number.
  std::optional<std::uint64_t> as_uint() const noexcept;
  // Any number.
  std::optional<double> as_double() const noexcept;
  std::optional<bool> as_bool() const noexcept;
  std::optional<std::string_view> as_string() const noexcept;

  // Calls visit(context, index, element) for each element of an array until it returns false.
  // Elements of nested arrays are arrays; files with arrays nested more than 4 deep are refused.
  void for_each(void* context,
                bool (*visit)(void* context, std::uint64_t index, const Value& element)) const;

  // The same with any callable `bool(std::uint64_t index, const Value& element)`.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for_each(&visit, [](void* context, std::uint64_t index, const Value& element) {
      return (*static_cast<std::remove_reference_t<Visit>*>(context))(index, element);
    });
  }

 private:
  friend class Parser;
  ValueType type_ = ValueType::u8;
  ValueType element_type_ = ValueType::u8;
  std::uint64_t size_ = 0;              // elements of an array, bytes of a string
  const std::uint8_t* data_ = nullptr;  // the value, the string's characters, the first element
};

struct KeyValue {
  std::string_view key;
  Value value;
};

struct Tensor {
  std::string_view name;
  BlockFormat format = BlockFormat::f32;
  std::uint32_t n_dims = 0;
  std::array<std::uint64_t, 4> shape{1, 1, 1, 1};  // shape[0] is the row length
  std::uint64_t offset = 0;  // of the data, from the start of the data section
  std::uint64_t bytes = 0;
  const std::uint8_t* data = nullptr;  // row after row, unaligned
};

// The directory of a GGUF file. Strings and data point into the parsed bytes, which must outlive it.
class File {
 public:
  explicit File(std::pmr::memory_resource* resource) : metadata_(resource), tensors_(resource) {}

  // Checks every count, offset and size; the error names the key or tensor and the place.
  // Errors: bad_format, unsupported (other versions, tensor types not read), out_of_memory.
  static Result<File> parse(Span<const std::uint8_t> bytes, std::pmr::memory_resource* resource);

  // True if the bytes begin as a GGUF file does.
  static bool recognises(Span<const std::uint8_t> bytes) noexcept;

  std::uint32_t version() const noexcept { return version_; }
  const std::pmr::vector<KeyValue>& metadata() const noexcept { return metadata_; }
  const std::pmr::vector<Tensor>& tensors() const noexcept { return tensors_; }

  // Null when absent.
  const Value* find(std::string_view key) const noexcept;
  const Tensor* find_tensor(std::string_view name) const noexcept;

 private:
  friend class Parser;
  std::uint32_t version_ = 0;
  std::pmr::vector<KeyValue> metadata_;  // in file order
  std::pmr::vector<Tensor> tensors_;     // in file order
};

}  // namespace mixtral::gguf

#endif  // MIXTRAL_GGUF_HPP_
