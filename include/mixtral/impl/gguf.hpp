#ifndef MIXTRAL_IMPL_GGUF_HPP_
#define MIXTRAL_IMPL_GGUF_HPP_

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "mixtral/gguf.hpp"

namespace mixtral::gguf {

namespace {

// Bytes of a scalar; 0 for strings, arrays and unknown types.
std::size_t scalar_size(ValueType type) noexcept {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean: return 1;
    case ValueType::u16:
    case ValueType::i16: return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32: return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64: return 8;
    case ValueType::string:
    case ValueType::array: return 0;
  }
  return 0;
}

template <class T>
T load(const std::uint8_t* data) noexcept {
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

template <class T>
std::optional<std::uint64_t> non_negative(const std::uint8_t* data) noexcept {
  const T value = load<T>(data);
  if (value < 0) return std::nullopt;
  return static_cast<std::uint64_t>(value);
}

// More is never seen (real files have arrays of arrays at most) and would only cost stack.
constexpr int kMaxArrayDepth = 4;
constexpr std::uint64_t kMaxNameLength = 65535;  // of keys and tensors, ggml/docs/gguf.md

}  // namespace

const char* value_type_name(ValueType type) noexcept {
  switch (type) {
    case ValueType::u8: return "u8";
    case ValueType::i8: return "i8";
    case ValueType::u16: return "u16";
    case ValueType::i16: return "i16";
    case ValueType::u32: return "u32";
    case ValueType::i32: return "i32";
    case ValueType::f32: return "f32";
    case ValueType::boolean: return "bool";
    case ValueType::string: return "string";
    case ValueType::array: return "array";
    case ValueType::u64: return "u64";
    case ValueType::i64: return "i64";
    case ValueType::f64: return "f64";
  }
  return "unknown";
}

std::optional<std::uint64_t> Value::as_uint() const noexcept {
  switch (type_) {
    case ValueType::u8: return load<std::uint8_t>(data_);
    case ValueType::u16: return load<std::uint16_t>(data_);
    case ValueType::u32: return load<std::uint32_t>(data_);
    case ValueType::u64: return load<std::uint64_t>(data_);
    case ValueType::i8: return non_negative<std::int8_t>(data_);
    case ValueType::i16: return non_negative<std::int16_t>(data_);
    case ValueType::i32: return non_negative<std::int32_t>(data_);
    case ValueType::i64: return non_negative<std::int64_t>(data_);
    default: return std::nullopt;
  }
}

std::optional<double> Value::as_double() const noexcept {
  switch (type_) {
    case ValueType::f32: return static_cast<double>(load<float>(data_));
    case ValueType::f64: return load<double>(data_);
    case ValueType::i8: return load<std::int8_t>(data_);
    case ValueType::i16: return load<std::int16_t>(data_);
    case ValueType::i32: return load<std::int32_t>(data_);
    case ValueType::i64: return static_cast<double>(load<std::int64_t>(data_));
    default:
      if (const auto value = as_uint()) return static_cast<double>(*value);
      return std::nullopt;
  }
}

std::optional<bool> Value::as_bool() const noexcept {
  if (type_ != ValueType::boolean) return std::nullopt;
  return *data_ != 0;
}

std::optional<std::string_view> Value::as_string() const noexcept {
  if (type_ != ValueType::string) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(data_), static_cast<std::size_t>(size_));
}

// Reads the file front to back; every read is checked against the end.
class Parser {
 public:
  Parser(Span<const std::uint8_t> bytes) : begin_(bytes.data()), size_(bytes.size()) {}

  Status parse(File& file) {
    MIXTRAL_RETURN_IF_ERROR(parse_header(file));
    MIXTRAL_RETURN_IF_ERROR(parse_metadata(file));
    MIXTRAL_RETURN_IF_ERROR(parse_tensors(file));
    return check_overlaps(file);
  }

  // Reads one value of `type` at the current position.
  Result<Value> read_value(ValueType type, int depth) {
    Value value;
    value.type_ = type;
    if (type == ValueType::string) {
      const Result<std::string_view> text = read_string("a string value");
      if (!text) return text.error();
      value.data_ = reinterpret_cast<const std::uint8_t*>(text->data());
      value.size_ = text->size();
      return value;
    }
    if (type == ValueType::array) return read_array(value, depth);
    const std::size_t size = scalar_size(type);
    if (size == 0) return error("unknown value type %u", static_cast<unsigned>(type));
    if (!has(size)) return truncated("a value");
    value.data_ = begin_ + position_;
    value.size_ = 1;
    position_ += size;
    return value;
  }

 private:
  friend class Value;

  bool has(std::uint64_t count) const noexcept { return count <= size_ - position_; }

  MIXTRAL_PRINTF_LIKE(2, 3)
  Error error(const char* format, ...) const {
    char what[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return Error(ErrorCode::bad_format, "GGUF, at byte %zu: %s", position_, what);
  }

  Error truncated(const char* what) const {
    return Error(ErrorCode::bad_format,
                 "GGUF, at byte %zu: the file ends inside %s (it has %zu bytes; incomplete "
                 "download?)",
                 position_, what, size_);
  }

  template <class T>
  bool read(T& value) noexcept {
    if (!has(sizeof(T))) return false;
    value = load<T>(begin_ + position_);
    position_ += sizeof(T);
    return true;
  }

  Result<std::string_view> read_string(const char* what) {
    std::uint64_t length;
    if (!read(length)) return truncated(what);
    if (!has(length)) {
      return error("%s has a length of %llu bytes, past the end of the file", what,
                   static_cast<unsigned long long>(length));
    }
    const std::string_view text(reinterpret_cast<const char*>(begin_ + position_),
                                static_cast<std::size_t>(length));
    position_ += text.size();
    return text;
  }

  Result<Value> read_array(Value value, int depth) {
    std::uint32_t element_type;
    std::uint64_t count;
    if (!read(element_type) || !read(count)) return truncated("an array's header");
    value.element_type_ = static_cast<ValueType>(element_type);
    value.size_ = count;
    value.data_ = begin_ + position_;
    if (const std::size_t size = scalar_size(value.element_type_); size != 0) {
      if (count > (size_ - position_) / size) {
        return error("an array of %llu elements runs past the end of the file",
                     static_cast<unsigned long long>(count));
      }
      position_ += static_cast<std::size_t>(count) * size;
      return value;
    }
    if (depth + 1 >= kMaxArrayDepth)
      return error("arrays nested more than %d deep", kMaxArrayDepth);
    // Each string or array takes 8 bytes at least, so this loop is bounded by the file's size.
    for (std::uint64_t i = 0; i < count; ++i) {
      const Result<Value> element = read_value(value.element_type_, depth + 1);
      if (!element) return element.error();
    }
    return value;
  }

  Status parse_header(File& file) {
    if (size_ < 24) return truncated("the header");
    if (!File::recognises(Span<const std::uint8_t>(begin_, size_))) {
      return Error(ErrorCode::bad_format,
                   "not a GGUF file: it begins with %02x %02x %02x %02x instead of 'GGUF'",
                   static_cast<unsigned>(begin_[0]), static_cast<unsigned>(begin_[1]),
                   static_cast<unsigned>(begin_[2]), static_cast<unsigned>(begin_[3]));
    }
    position_ = 4;
    read(file.version_);
    if (file.version_ != 2 && file.version_ != 3) {
      return Error(ErrorCode::unsupported,
                   "GGUF version %u; versions 2 and 3, little-endian, are supported; convert the "
                   "file again with a current converter",
                   static_cast<unsigned>(file.version_));
    }
    read(n_tensors_);
    read(n_metadata_);
    // The smallest entry of either kind has more than 12 bytes.
    if (n_tensors_ > size_ / 12 || n_metadata_ > size_ / 12) {
      return error("%llu tensors and %llu metadata keys do not fit a file of %zu bytes",
                   static_cast<unsigned long long>(n_tensors_),
                   static_cast<unsigned long long>(n_metadata_), size_);
    }
    return {};
  }

  Status parse_metadata(File& file) {
    for (std::uint64_t i = 0; i < n_metadata_; ++i) {
      const Result<std::string_view> key = read_string("a metadata key");
      if (!key) return key.error();
      if (key->empty() || key->size() > kMaxNameLength) {
        return error("a metadata key of %zu bytes", key->size());
      }
      std::uint32_t type;
      if (!read(type)) return truncated("a metadata entry");
      const Result<Value> value = read_value(static_cast<ValueType>(type), 0);
      if (!value) {
        return Error(value.error().code(), "metadata key '%.*s': %s",
                     static_cast<int>(std::min<std::size_t>(key->size(), 80)), key->data(),
                     value.error().message());
      }
      file.metadata_.push_back({*key, *value});
    }
    return check_unique(
        file.metadata_, [](const KeyValue& kv) { return kv.key; }, "metadata key");
  }

  template <class Items, class NameOf>
  Status check_unique(const Items& items, NameOf name_of, const char* what) {
    std::pmr::vector<std::string_view> names(items.get_allocator().resource());
    names.reserve(items.size());
    for (const auto& item : items) names.push_back(name_of(item));
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice == names.end()) return {};
    return error("the %s '%.*s' is there twice", what,
                 static_cast<int>(std::min<std::size_t>(twice->size(), 80)), twice->data());
  }

  Status parse_tensors(File& file) {
    std::uint64_t alignment = 32;
    if (const Value* value = file.find("general.alignment")) {
      const auto given = value->as_uint();
      if (!given || *given == 0 || *given > 65536 || *given % 8 != 0) {
        return error("general.alignment must be a multiple of 8 up to 65536");
      }
      alignment = *given;
    }
    for (std::uint64_t i = 0; i < n_tensors_; ++i) MIXTRAL_RETURN_IF_ERROR(parse_tensor(file));
    const std::uint64_t data_begin = (position_ + alignment - 1) / alignment * alignment;
    for (Tensor& tensor : file.tensors_) {
      const std::uint64_t offset = tensor.offset;
      const int length = static_cast<int>(std::min<std::size_t>(tensor.name.size(), 80));
      if (offset % alignment != 0) {
        return error("tensor '%.*s' begins at offset %llu, not a multiple of the alignment %llu",
                     length, tensor.name.data(), static_cast<unsigned long long>(offset),
                     static_cast<unsigned long long>(alignment));
      }
      if (data_begin > size_ || offset > size_ - data_begin ||
          tensor.bytes > size_ - data_begin - offset) {
        return error(
            "tensor '%.*s' of %llu bytes at offset %llu runs past the end of the file "
            "(incomplete download?)",
            length, tensor.name.data(), static_cast<unsigned long long>(tensor.bytes),
            static_cast<unsigned long long>(offset));
      }
      tensor.data = begin_ + data_begin + offset;
    }
    return check_unique(
        file.tensors_, [](const Tensor& tensor) { return tensor.name; }, "tensor");
  }

  Status parse_tensor(File& file);
  Status check_overlaps(const File& file);

  const std::uint8_t* begin_;
  std::size_t size_;
  std::size_t position_ = 0;
  std::uint64_t n_tensors_ = 0;
  std::uint64_t n_metadata_ = 0;
};

Status Parser::parse_tensor(File& file) {
  const Result<std::string_view> name = read_string("a tensor name");
  if (!name) return name.error();
  if (name->empty() || name->size() > kMaxNameLength) {
    return error("a tensor name of %zu bytes", name->size());
  }
  const int length = static_cast<int>(std::min<std::size_t>(name->size(), 80));
  Tensor tensor;
  tensor.name = *name;
  if (!read(tensor.n_dims)) return truncated("a tensor's entry");
  if (tensor.n_dims == 0 || tensor.n_dims > 4) {
    return error("tensor '%.*s' has %u dimensions; 1 to 4 are allowed", length, name->data(),
                 static_cast<unsigned>(tensor.n_dims));
  }
  std::uint64_t elements = 1;
  for (std::uint32_t d = 0; d < tensor.n_dims; ++d) {
    if (!read(tensor.shape[d])) return truncated("a tensor's shape");
    if (tensor.shape[d] == 0 ||
        elements > std::numeric_limits<std::uint64_t>::max() / 8 / tensor.shape[d]) {
      return error("tensor '%.*s': dimension %u is %llu", length, name->data(),
                   static_cast<unsigned>(d), static_cast<unsigned long long>(tensor.shape[d]));
    }
    elements *= tensor.shape[d];
  }
  std::uint32_t type;
  if (!read(type) || !read(tensor.offset)) return truncated("a tensor's entry");
  tensor.format = static_cast<BlockFormat>(type);
  const BlockFormatInfo* info = block_format_info(tensor.format);
  if (info == nullptr) {
    constexpr detail::BlockFormatNames readable([](BlockFormat) { return true; });
    return Error(ErrorCode::unsupported,
                 "tensor '%.*s' has GGUF type %u, which is not supported; use one of %s", length,
                 name->data(), static_cast<unsigned>(type), readable.text());
  }
  if (tensor.shape[0] % info->block_size != 0) {
    return error("tensor '%.*s' has rows of %llu, not a multiple of %s's block of %zu", length,
                 name->data(), static_cast<unsigned long long>(tensor.shape[0]), info->name,
                 info->block_size);
  }
  tensor.bytes = elements / info->block_size * info->block_bytes;
  file.tensors_.push_back(tensor);
  return {};
}

Status Parser::check_overlaps(const File& file) {
  std::pmr::vector<const Tensor*> by_place(file.tensors_.get_allocator().resource());
  by_place.reserve(file.tensors_.size());
  for (const Tensor& tensor : file.tensors_) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(),
            [](const Tensor* a, const Tensor* b) { return a->data < b->data; });
  for (std::size_t i = 1; i < by_place.size(); ++i) {
    const Tensor& before = *by_place[i - 1];
    if (before.data + before.bytes > by_place[i]->data) {
      return error("the tensors '%.*s' and '%.*s' overlap",
                   static_cast<int>(std::min<std::size_t>(before.name.size(), 80)),
                   before.name.data(),
                   static_cast<int>(std::min<std::size_t>(by_place[i]->name.size(), 80)),
                   by_place[i]->name.data());
    }
  }
  return {};
}

void Value::for_each(void* context, bool (*visit)(void* context, std::uint64_t index,
                                                  const Value& element)) const {
  if (type_ != ValueType::array) return;
  // The array was walked once when the file was parsed, so no element can run past its end.
  Parser parser(Span<const std::uint8_t>(data_, std::numeric_limits<std::size_t>::max()));
  for (std::uint64_t i = 0; i < size_; ++i) {
    const Result<Value> element = parser.read_value(element_type_, 0);
    if (!element || !visit(context, i, *element)) return;
  }
}

bool File::recognises(Span<const std::uint8_t> bytes) noexcept {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

Result<File> File::parse(Span<const std::uint8_t> bytes, std::pmr::memory_resource* resource) {
  return detail::guard_memory("reading the GGUF directory", [&]() -> Result<File> {
    File file(resource);
    MIXTRAL_RETURN_IF_ERROR(Parser(bytes).parse(file));
    return file;
  });
}

const Value* File::find(std::string_view key) const noexcept {
  for (const KeyValue& entry : metadata_) {
    if (entry.key == key) return &entry.value;
  }
  return nullptr;
}

const Tensor* File::find_tensor(std::string_view name) const noexcept {
  for (const Tensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

}  // namespace mixtral::gguf

#endif  // MIXTRAL_IMPL_GGUF_HPP_
