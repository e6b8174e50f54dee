// Files of torch.save(): a zip archive with a pickled state dict and one entry for each storage
// (pytorch, torch/serialization.py). Tensors stay where they are in the file.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_TORCH_FILE_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_TORCH_FILE_HPP_

#include <unordered_map>

#include "mixtral/impl/checkpoints/pickle.hpp"
#include "mixtral/impl/checkpoints/stored_tensor.hpp"
#include "mixtral/impl/checkpoints/zip.hpp"

namespace mixtral::detail {

inline constexpr ElementType kTorchTypes[] = {
    {"FloatStorage", 4, BlockFormat::f32},     {"HalfStorage", 2, BlockFormat::f16},
    {"BFloat16Storage", 2, BlockFormat::bf16}, {"DoubleStorage", 8, std::nullopt},
    {"LongStorage", 8, std::nullopt},          {"IntStorage", 4, std::nullopt},
    {"ShortStorage", 2, std::nullopt},         {"CharStorage", 1, std::nullopt},
    {"ByteStorage", 1, std::nullopt},          {"BoolStorage", 1, std::nullopt},
};

class TorchFileReader {
 public:
  TorchFileReader(const char* where, std::pmr::memory_resource* resource)
      : where_(where), resource_(resource), storages_(resource) {}

  Result<StoredTensors> read(Span<const std::uint8_t> bytes) {
    const auto entries = ZipReader(bytes, where_).read(resource_);
    if (!entries) return entries.error();
    Span<const std::uint8_t> pickle;
    for (const ZipEntry& entry : *entries) {
      // ARCHIVE/data.pkl, ARCHIVE/data/KEY, ARCHIVE/byteorder ...
      std::string_view name = entry.name;
      name.remove_prefix(std::min(name.find('/') + 1, name.size()));
      const std::string_view text(reinterpret_cast<const char*>(entry.data.data()),
                                  entry.data.size());
      if (name == "data.pkl") {
        if (!pickle.empty()) return error("data.pkl is there twice");
        pickle = entry.data;
      } else if (name == "byteorder" && text != "little") {
        return error("its numbers are not little-endian");
      } else if (take_prefix(name, "data/")) {
        if (!storages_.emplace(name, entry.data).second) return error("a storage is there twice");
      }
    }
    if (pickle.empty()) return error("it has no data.pkl");
    PickleReader reader(pickle, where_, resource_);
    PickleReader::Id root;
    MIXTRAL_RETURN_IF_ERROR(reader.read(root));
    if (reader.value(root).kind != Kind::dict) return error("data.pkl holds no dict of tensors");
    StoredTensors tensors(resource_);
    for (const PickleReader::DictEntry& entry : reader.dict_entries()) {
      if (entry.dict != root) continue;
      if (reader.value(entry.key).kind != Kind::string)
        return error("a tensor's name is no string");
      StoredTensor tensor(resource_);
      tensor.name = reader.value(entry.key).text;
      MIXTRAL_RETURN_IF_ERROR(read_tensor(reader, reader.value(entry.value), tensor));
      tensors.push_back(std::move(tensor));
    }
    MIXTRAL_RETURN_IF_ERROR(check_unique_names(tensors, where_));
    return tensors;
  }

 private:
  using Kind = PickleReader::Kind;
  using Value = PickleReader::Value;

  Error error(const char* what) const {
    return Error(ErrorCode::bad_format, "%s: not a PyTorch state dict: %s", where_, what);
  }

  // _rebuild_tensor_v2(storage, offset, size, stride, ...), or that in a _rebuild_parameter(...).
  Status read_tensor(const PickleReader& reader, const Value& call, StoredTensor& tensor) const {
    const auto fail = [&](const char* what) {
      return Error(ErrorCode::bad_format, "%s: '%.*s': %s", where_, printable_length(tensor.name),
                   tensor.name.data(), what);
    };
    if (call.kind != Kind::call) return fail("expected a tensor, found another value");
    const Value& function = reader.value(reader.child(call, 0));
    const Value& arguments = reader.value(reader.child(call, 1));
    if (function.text == "_rebuild_parameter" && arguments.count >= 1) {
      const Value& data = reader.value(reader.child(arguments, 0));
      if (data.kind != Kind::call ||
          reader.value(reader.child(data, 0)).text != "_rebuild_tensor_v2") {
        return fail("a parameter that is no tensor");
      }
      return read_tensor(reader, data, tensor);
    }
    if (function.text != "_rebuild_tensor_v2" || arguments.count < 4) {
      return fail("expected a tensor, found another call");
    }
    const auto argument = [&](std::size_t i) -> const Value& {
      return reader.value(reader.child(arguments, i));
    };
    const Value& offset = argument(1);
    const Value& size = argument(2);
    const Value& stride = argument(3);
    if (offset.kind != Kind::integer || offset.number < 0 || size.kind != Kind::tuple ||
        stride.kind != Kind::tuple || size.count != stride.count) {
      return fail("a tensor with broken sizes");
    }
    if (size.count > tensor.shape.size()) return fail("it has more than four dimensions");
    tensor.n_dims = size.count;
    std::uint64_t expected_stride = 1;
    for (std::size_t i = tensor.n_dims; i-- > 0;) {
      const Value& n = reader.value(reader.child(size, i));
      const Value& step = reader.value(reader.child(stride, i));
      if (n.kind != Kind::integer || n.number < 0 || step.kind != Kind::integer) {
        return fail("a tensor with broken sizes");
      }
      tensor.shape[i] = static_cast<std::uint64_t>(n.number);
      if (n.number > 1 && static_cast<std::uint64_t>(step.number) != expected_stride) {
        return fail("the tensor is a view that is not contiguous; save a copy of it");
      }
      if (n.number > (std::int64_t{1} << 40)) return fail("its shape is absurd");
      if (expected_stride >
          (std::uint64_t{1} << 56) / std::max<std::uint64_t>(tensor.shape[i], 1)) {
        return fail("its shape is absurd");
      }
      expected_stride *= tensor.shape[i];
    }
    Span<const std::uint8_t> storage;
    MIXTRAL_RETURN_IF_ERROR(find_storage(reader, argument(0), tensor, storage));
    if (!set_bytes(tensor)) return fail("its shape is absurd");
    const std::uint64_t n_elements = storage.size() / tensor.type->bytes;
    const auto begin = static_cast<std::uint64_t>(offset.number);
    if (begin > n_elements || tensor.bytes / tensor.type->bytes > n_elements - begin) {
      return fail("the tensor is larger than its storage (incomplete download?)");
    }
    tensor.data = storage.data() + begin * tensor.type->bytes;
    return {};
  }

  // The persistent id ('storage', type, key, location, number of elements).
  Status find_storage(const PickleReader& reader, const Value& persistent, StoredTensor& tensor,
                      Span<const std::uint8_t>& storage) const {
    const auto fail = [&](const char* what) {
      return Error(ErrorCode::bad_format, "%s: '%.*s': %s", where_, printable_length(tensor.name),
                   tensor.name.data(), what);
    };
    if (persistent.kind != Kind::persistent) return fail("a tensor without storage");
    const Value& id = reader.value(reader.child(persistent, 0));
    if (id.kind != Kind::tuple || id.count < 3) return fail("a storage without a key");
    const Value& type = reader.value(reader.child(id, 1));
    const Value& key = reader.value(reader.child(id, 2));
    if (reader.value(reader.child(id, 0)).text != "storage" || type.kind != Kind::global ||
        key.kind != Kind::string) {
      return fail("a storage of an unknown kind");
    }
    for (const ElementType& known : kTorchTypes) {
      if (type.text == known.name) tensor.type = &known;
    }
    if (tensor.type == nullptr) return fail("a storage of an unknown element type");
    const auto found = storages_.find(key.text);
    if (found == storages_.end()) return fail("its storage is missing from the archive");
    storage = found->second;
    return {};
  }

  const char* where_;
  std::pmr::memory_resource* resource_;
  std::pmr::unordered_map<std::string_view, Span<const std::uint8_t>> storages_;
};

// True if the bytes begin as a zip archive does.
inline bool is_zip(Span<const std::uint8_t> bytes) noexcept {
  return bytes.size() >= 4 && bytes[0] == 'P' && bytes[1] == 'K' && bytes[2] == 3 && bytes[3] == 4;
}

inline Result<StoredTensors> read_torch_file(Span<const std::uint8_t> bytes, const char* where,
                                             std::pmr::memory_resource* resource) {
  if (!is_zip(bytes)) {
    return Error(ErrorCode::unsupported,
                 "%s: not a zip archive, as PyTorch has written since version 1.6; load it there "
                 "and save it again",
                 where);
  }
  return TorchFileReader(where, resource).read(bytes);
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_CHECKPOINTS_TORCH_FILE_HPP_
