// Puts together the head of a GGUF file, version 3 (ggml/docs/gguf.md): metadata and tensor directory.
#ifndef MIXTRAL_IMPL_QUANTIZE_GGUF_BUILDER_HPP_
#define MIXTRAL_IMPL_QUANTIZE_GGUF_BUILDER_HPP_

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory_resource>
#include <string_view>
#include <vector>

#include "mixtral/block_format.hpp"
#include "mixtral/gguf.hpp"

namespace mixtral::detail {

constexpr std::uint64_t kGgufAlignment = 32;

constexpr std::uint64_t aligned(std::uint64_t size) {
  return (size + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment;
}

class GgufBuilder {
 public:
  explicit GgufBuilder(std::pmr::memory_resource* resource)
      : metadata_(resource), directory_(resource) {}

  void add_string(std::string_view key, std::string_view value) {
    begin(key, gguf::ValueType::string);
    put_string(value, metadata_);
  }
  void add_u32(std::string_view key, std::uint32_t value) {
    begin(key, gguf::ValueType::u32);
    put(value, 4, metadata_);
  }
  void add_f32(std::string_view key, float value) {
    begin(key, gguf::ValueType::f32);
    put_float(value);
  }
  void add_bool(std::string_view key, bool value) {
    begin(key, gguf::ValueType::boolean);
    put(value ? 1u : 0u, 1, metadata_);
  }
  // A value of another file; nested arrays are left out.
  void add_value(std::string_view key, const gguf::Value& value) {
    if (value.type() == gguf::ValueType::array && value.element_type() == gguf::ValueType::array) {
      return;
    }
    begin(key, value.type());
    put_value(value);
  }

  // An array, whose elements follow.
  void begin_array(std::string_view key, gguf::ValueType element_type, std::uint64_t n) {
    begin(key, gguf::ValueType::array);
    put(static_cast<std::uint32_t>(element_type), 4, metadata_);
    put(n, 8, metadata_);
  }
  void put_string(std::string_view value) { put_string(value, metadata_); }
  void put_int(std::uint32_t value) { put(value, 4, metadata_); }
  void put_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    put(bits, 4, metadata_);
  }

  // Data follow each other in the order of these calls, each from an aligned place.
  void add_tensor(std::string_view name, BlockFormat format,
                  std::initializer_list<std::uint64_t> shape, std::uint64_t bytes) {
    put_string(name, directory_);
    put(shape.size(), 4, directory_);
    for (const std::uint64_t n : shape) put(n, 8, directory_);
    put(static_cast<std::uint32_t>(format), 4, directory_);
    put(offset_, 8, directory_);
    offset_ += aligned(bytes);
    ++n_tensors_;
  }

  // All of the file that comes before the first tensor's data.
  std::pmr::vector<std::uint8_t> head() const {
    std::pmr::vector<std::uint8_t> out(metadata_.get_allocator().resource());
    for (const char c : {'G', 'G', 'U', 'F'}) out.push_back(static_cast<std::uint8_t>(c));
    put(3, 4, out);
    put(n_tensors_, 8, out);
    put(n_keys_, 8, out);
    out.insert(out.end(), metadata_.begin(), metadata_.end());
    out.insert(out.end(), directory_.begin(), directory_.end());
    out.resize(static_cast<std::size_t>(aligned(out.size())));
    return out;
  }

 private:
  using ByteVector = std::pmr::vector<std::uint8_t>;

  static void put(std::uint64_t value, int n_bytes, ByteVector& out) {
    for (int i = 0; i < n_bytes; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
  static void put_string(std::string_view value, ByteVector& out) {
    put(value.size(), 8, out);
    out.insert(out.end(), value.begin(), value.end());
  }
  void begin(std::string_view key, gguf::ValueType type) {
    put_string(key, metadata_);
    put(static_cast<std::uint32_t>(type), 4, metadata_);
    ++n_keys_;
  }

  void put_value(const gguf::Value& value) {
    if (value.type() == gguf::ValueType::array) {
      put(static_cast<std::uint32_t>(value.element_type()), 4, metadata_);
      put(value.size(), 8, metadata_);
      value.for_each([&](std::uint64_t, const gguf::Value& element) {
        put_value(element);
        return true;
      });
      return;
    }
    if (const auto text = value.as_string()) return put_string(*text);
    if (const auto flag = value.as_bool()) return put(*flag ? 1u : 0u, 1, metadata_);
    const double number = value.as_double().value_or(0.0);
    switch (value.type()) {
      case gguf::ValueType::f32: return put_float(static_cast<float>(number));
      case gguf::ValueType::f64: {
        std::uint64_t bits;
        std::memcpy(&bits, &number, 8);
        return put(bits, 8, metadata_);
      }
      default: break;
    }
    const auto whole = value.as_uint();
    const std::uint64_t bits =
        whole ? *whole : static_cast<std::uint64_t>(static_cast<std::int64_t>(number));
    switch (value.type()) {
      case gguf::ValueType::u8:
      case gguf::ValueType::i8: return put(bits, 1, metadata_);
      case gguf::ValueType::u16:
      case gguf::ValueType::i16: return put(bits, 2, metadata_);
      case gguf::ValueType::u32:
      case gguf::ValueType::i32: return put(bits, 4, metadata_);
      default: return put(bits, 8, metadata_);
    }
  }

  ByteVector metadata_;
  ByteVector directory_;
  std::uint64_t n_keys_ = 0;
  std::uint64_t n_tensors_ = 0;
  std::uint64_t offset_ = 0;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_QUANTIZE_GGUF_BUILDER_HPP_
