// safetensors files (github.com/huggingface/safetensors, "Format"): a length, a JSON directory, data.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_SAFETENSORS_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_SAFETENSORS_HPP_

#include <cstring>

#include "mixtral/impl/checkpoints/json.hpp"
#include "mixtral/impl/checkpoints/stored_tensor.hpp"

namespace mixtral::detail {

inline constexpr ElementType kSafetensorsTypes[] = {
    {"F32", 4, BlockFormat::f32}, {"F16", 2, BlockFormat::f16}, {"BF16", 2, BlockFormat::bf16},
    {"F64", 8, std::nullopt},     {"I64", 8, std::nullopt},     {"U64", 8, std::nullopt},
    {"I32", 4, std::nullopt},     {"U32", 4, std::nullopt},     {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},     {"I8", 1, std::nullopt},      {"U8", 1, std::nullopt},
    {"BOOL", 1, std::nullopt},    {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
};

// Reads one tensor's entry; `data` are the bytes after the header.
inline Status read_safetensors_entry(const Json& entry, Span<const std::uint8_t> data,
                                     const char* where, StoredTensor& tensor) {
  const auto error = [&](const char* what) {
    return Error(ErrorCode::bad_format, "%s: tensor '%.*s': %s", where,
                 printable_length(tensor.name), tensor.name.data(), what);
  };
  if (!entry.is_object()) return error("its entry is not an object");
  const JsonKeys keys(entry, where);
  const Json* dtype = keys.find("dtype");
  const Json* shape = keys.find("shape");
  const Json* offsets = keys.find("data_offsets");
  if (dtype == nullptr || !dtype->is_string()) return error("dtype must be a string");
  if (shape == nullptr || !shape->is_array()) return error("shape must be an array");
  if (offsets == nullptr || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return error("data_offsets must be an array of two non-negative integers");
  }
  for (const ElementType& type : kSafetensorsTypes) {
    if (*dtype == type.name) tensor.type = &type;
  }
  if (tensor.type == nullptr) {
    return Error(ErrorCode::unsupported, "%s: tensor '%.*s' has the unknown dtype '%.40s'", where,
                 printable_length(tensor.name), tensor.name.data(),
                 dtype->get_ref<const std::string&>().c_str());
  }
  if (shape->size() > tensor.shape.size()) return error("it has more than four dimensions");
  tensor.n_dims = shape->size();
  for (std::size_t i = 0; i < tensor.n_dims; ++i) {
    if (!(*shape)[i].is_number_unsigned()) return error("shape must be of non-negative integers");
    tensor.shape[i] = (*shape)[i].get<std::uint64_t>();
  }
  if (!set_bytes(tensor)) return error("its shape is absurd");
  const auto begin = (*offsets)[0].get<std::uint64_t>();
  const auto end = (*offsets)[1].get<std::uint64_t>();
  if (begin > end || end > data.size()) {
    return error("its data_offsets are past the end of the file (incomplete download?)");
  }
  if (end - begin != tensor.bytes) return error("its data_offsets do not agree with its shape");
  tensor.data = data.data() + begin;
  return {};
}

inline Result<StoredTensors> read_safetensors(Span<const std::uint8_t> bytes, const char* where,
                                              std::pmr::memory_resource* resource) {
  std::uint64_t length = 0;
  if (bytes.size() >= 8) {
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | bytes[i];
  }
  if (bytes.size() < 8 || length > bytes.size() - 8) {
    return Error(ErrorCode::bad_format,
                 "%s: the safetensors header of %llu bytes is past the end of the file of %zu "
                 "(incomplete download?)",
                 where, static_cast<unsigned long long>(length), bytes.size());
  }
  const auto header_size = static_cast<std::size_t>(length);
  const Result<Json> header = parse_json(bytes.subspan(8, header_size), where);
  if (!header) return header.error();
  const auto data = bytes.subspan(8 + header_size, bytes.size() - 8 - header_size);
  StoredTensors tensors(resource);
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    StoredTensor tensor(resource);
    tensor.name = name;
    MIXTRAL_RETURN_IF_ERROR(read_safetensors_entry(entry, data, where, tensor));
    tensors.push_back(std::move(tensor));
  }
  // The specification wants every byte to belong to one tensor.
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return a.data < b.data || (a.data == b.data && a.bytes < b.bytes);
  });
  const std::uint8_t* position = data.data();
  for (const StoredTensor& tensor : tensors) {
    if (tensor.data != position) {
      return Error(ErrorCode::bad_format, "%s: tensor '%.*s' %s", where,
                   printable_length(tensor.name), tensor.name.data(),
                   tensor.data < position ? "overlaps another" : "begins after a hole");
    }
    position += tensor.bytes;
  }
  if (position != data.end()) {
    return Error(ErrorCode::bad_format, "%s: %zu bytes at the end belong to no tensor", where,
                 static_cast<std::size_t>(data.end() - position));
  }
  return tensors;
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_SAFETENSORS_HPP_
