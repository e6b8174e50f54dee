// From a GGUF directory to a checkpoint: which key and which tensor name means what.
#ifndef MIXTRAL_IMPL_GGUF_CHECKPOINT_HPP_
#define MIXTRAL_IMPL_GGUF_CHECKPOINT_HPP_

#include "mixtral/checkpoint.hpp"
#include "mixtral/gguf.hpp"
#include "mixtral/impl/checkpoint.hpp"
#include "mixtral/impl/gguf_names.hpp"

namespace mixtral {

namespace detail {

// Typed access to metadata with errors that name the key.
class GgufKeys {
 public:
  explicit GgufKeys(const gguf::File& file) noexcept : file_(file) {}

  // Leaves `value` alone if the key is absent and not required.
  Status read_uint(const char* key, bool required, std::uint32_t low, std::uint32_t high,
                   std::uint32_t& value) const {
    const gguf::Value* found = file_.find(key);
    if (found == nullptr) return required ? missing(key) : Status();
    const auto number = found->as_uint();
    if (!number) return wrong_type(key, "a non-negative integer", *found);
    if (*number < low || *number > high) {
      return Error(ErrorCode::bad_format, "metadata key '%s' is %llu; expected %u to %u", key,
                   static_cast<unsigned long long>(*number), static_cast<unsigned>(low),
                   static_cast<unsigned>(high));
    }
    value = static_cast<std::uint32_t>(*number);
    return {};
  }

  Status read_float(const char* key, bool required, double low, double high, float& value) const {
    const gguf::Value* found = file_.find(key);
    if (found == nullptr) return required ? missing(key) : Status();
    const auto number = found->as_double();
    if (!number) return wrong_type(key, "a number", *found);
    if (!(*number >= low && *number <= high)) {
      return Error(ErrorCode::bad_format, "metadata key '%s' is %g; expected %g to %g", key,
                   *number, low, high);
    }
    value = static_cast<float>(*number);
    return {};
  }

  Status read_bool(const char* key, bool& value) const {
    const gguf::Value* found = file_.find(key);
    if (found == nullptr) return {};
    const auto flag = found->as_bool();
    if (!flag) return wrong_type(key, "a bool", *found);
    value = *flag;
    return {};
  }

  Result<std::string_view> read_string(const char* key) const {
    const gguf::Value* found = file_.find(key);
    if (found == nullptr) return missing(key);
    const auto text = found->as_string();
    if (!text) return wrong_type(key, "a string", *found);
    return *text;
  }

  // An array of `count` elements, or of any number if that is 0.
  Result<const gguf::Value*> find_array(const char* key, bool required, std::uint64_t count) const {
    const gguf::Value* found = file_.find(key);
    if (found == nullptr) {
      if (required) return missing(key);
      return found;
    }
    if (found->type() != gguf::ValueType::array) return wrong_type(key, "an array", *found);
    if (count != 0 && found->size() != count) {
      return Error(ErrorCode::bad_format, "metadata key '%s' has %llu elements; expected %llu", key,
                   static_cast<unsigned long long>(found->size()),
                   static_cast<unsigned long long>(count));
    }
    return found;
  }

  static Error missing(const char* key) {
    return Error(
        ErrorCode::bad_format,
        "metadata key '%s' is missing; the file is incomplete or holds another kind of model", key);
  }
  static Error wrong_type(const char* key, const char* expected, const gguf::Value& found) {
    return Error(ErrorCode::bad_format, "metadata key '%s': expected %s, found %s", key, expected,
                 gguf::value_type_name(found.type()));
  }

 private:
  const gguf::File& file_;
};

inline Status read_config(const gguf::File& file, Config& config) {
  const GgufKeys keys(file);
  const Result<std::string_view> architecture = keys.read_string("general.architecture");
  if (!architecture) return architecture.error();
  if (*architecture != "llama") {
    return Error(
        ErrorCode::unsupported,
        "general.architecture is '%.*s'; expected 'llama', which Mixtral, Mistral and Llama 2 "
        "files have",
        static_cast<int>(std::min<std::size_t>(architecture->size(), 60)), architecture->data());
  }
  // The same limits as in check_config(), here with the key in the error.
  constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("llama.embedding_length", true, 1, 1u << 20, config.dim));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("llama.block_count", true, 1, kAny, config.n_layers));
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_uint("llama.feed_forward_length", true, 1, kAny, config.hidden_dim));
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_uint("llama.attention.head_count", true, 1, 65536, config.n_heads));
  config.n_kv_heads = config.n_heads;
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_uint("llama.attention.head_count_kv", false, 1, config.n_heads, config.n_kv_heads));
  if (config.n_heads % config.n_kv_heads != 0) {
    return Error(ErrorCode::bad_format,
                 "llama.attention.head_count is %u, not a multiple of head_count_kv, %u",
                 static_cast<unsigned>(config.n_heads), static_cast<unsigned>(config.n_kv_heads));
  }
  config.head_size = config.dim / config.n_heads;
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_uint("llama.attention.key_length", false, 1, kAny, config.head_size));
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"}) {
    std::uint32_t size = config.head_size;
    MIXTRAL_RETURN_IF_ERROR(keys.read_uint(key, false, 1, 65536, size));
    if (size != config.head_size) {
      return Error(ErrorCode::unsupported, "%s is %u; expected the head size, %u", key,
                   static_cast<unsigned>(size), static_cast<unsigned>(config.head_size));
    }
  }
  std::uint32_t n_experts = 0;
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("llama.expert_count", false, 0, kAny, n_experts));
  if (n_experts > 1) {
    config.n_experts = n_experts;
    MIXTRAL_RETURN_IF_ERROR(keys.read_uint("llama.expert_used_count", true, 1,
                                           std::min(n_experts, 64u), config.n_experts_used));
  }
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_uint("llama.context_length", true, 1, kAny, config.context_length));
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_float("llama.rope.freq_base", false, 1.0, 1e12, config.rope_theta));
  MIXTRAL_RETURN_IF_ERROR(keys.read_float("llama.attention.layer_norm_rms_epsilon", true, 0.0, 1.0,
                                          config.norm_epsilon));
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_uint("llama.attention.sliding_window", false, 0, kAny, config.sliding_window));
  if (file.find("llama.rope.scaling.type") != nullptr) {
    const Result<std::string_view> scaling = keys.read_string("llama.rope.scaling.type");
    if (!scaling) return scaling.error();
    if (*scaling == "linear") {
      float factor = 1.0f;
      MIXTRAL_RETURN_IF_ERROR(
          keys.read_float("llama.rope.scaling.factor", true, 1e-3, 1e6, factor));
      config.rope_scale = 1.0f / factor;
    } else if (*scaling != "none") {
      return Error(ErrorCode::unsupported,
                   "llama.rope.scaling.type is '%.*s'; 'none' and 'linear' are supported",
                   static_cast<int>(std::min<std::size_t>(scaling->size(), 40)), scaling->data());
    }
  }
  return {};
}

inline Status read_vocabulary(const gguf::File& file, Vocabulary& vocabulary) {
  const GgufKeys keys(file);
  const Result<std::string_view> model = keys.read_string("tokenizer.ggml.model");
  if (!model) return model.error();
  if (*model != "llama") {
    return Error(ErrorCode::unsupported,
                 "tokenizer.ggml.model is '%.*s'; expected 'llama' (SentencePiece BPE)",
                 static_cast<int>(std::min<std::size_t>(model->size(), 40)), model->data());
  }
  const auto tokens = keys.find_array("tokenizer.ggml.tokens", true, 0);
  if (!tokens) return tokens.error();
  const std::uint64_t n = (*tokens)->size();
  // Here, since find_array() takes 0 for any number: scores of no pieces would be written past the end.
  if (n == 0 || n > (1u << 24)) {
    return Error(ErrorCode::bad_format,
                 "metadata key 'tokenizer.ggml.tokens' has %llu elements; expected 1 to %u",
                 static_cast<unsigned long long>(n), 1u << 24);
  }
  const auto scores = keys.find_array("tokenizer.ggml.scores", true, n);
  if (!scores) return scores.error();
  const auto types = keys.find_array("tokenizer.ggml.token_type", true, n);
  if (!types) return types.error();
  const auto wrong_element = [](const char* key, const char* expected, const gguf::Value& array) {
    return Error(ErrorCode::bad_format,
                 "metadata key '%s': expected an array of %s, found one of %s", key, expected,
                 gguf::value_type_name(array.element_type()));
  };
  if ((*tokens)->element_type() != gguf::ValueType::string) {
    return wrong_element("tokenizer.ggml.tokens", "strings", **tokens);
  }
  if ((*scores)->element_type() != gguf::ValueType::f32) {
    return wrong_element("tokenizer.ggml.scores", "f32", **scores);
  }
  if ((*types)->element_type() != gguf::ValueType::i32 &&
      (*types)->element_type() != gguf::ValueType::u32) {
    return wrong_element("tokenizer.ggml.token_type", "i32", **types);
  }
  vocabulary.pieces.resize(static_cast<std::size_t>(n));
  (*tokens)->for_each([&](std::uint64_t i, const gguf::Value& value) {
    vocabulary.pieces[static_cast<std::size_t>(i)].text = *value.as_string();
    return true;
  });
  (*scores)->for_each([&](std::uint64_t i, const gguf::Value& value) {
    vocabulary.pieces[static_cast<std::size_t>(i)].score = static_cast<float>(*value.as_double());
    return true;
  });
  std::uint64_t bad_type_at = n;
  (*types)->for_each([&](std::uint64_t i, const gguf::Value& value) {
    const auto type = value.as_uint();
    if (!type || *type < 1 || *type > 6) {
      bad_type_at = i;
      return false;
    }
    vocabulary.pieces[static_cast<std::size_t>(i)].type = static_cast<PieceType>(*type);
    return true;
  });
  if (bad_type_at != n) {
    return Error(ErrorCode::bad_format, "tokenizer.ggml.token_type[%llu] is not one of 1 to 6",
                 static_cast<unsigned long long>(bad_type_at));
  }
  const auto read_id = [&](const char* key, Token& id) -> Status {
    std::uint32_t value = static_cast<std::uint32_t>(id);
    MIXTRAL_RETURN_IF_ERROR(
        keys.read_uint(key, false, 0, static_cast<std::uint32_t>(n - 1), value));
    id = static_cast<Token>(value);
    return {};
  };
  MIXTRAL_RETURN_IF_ERROR(read_id("tokenizer.ggml.unknown_token_id", vocabulary.unknown));
  MIXTRAL_RETURN_IF_ERROR(read_id("tokenizer.ggml.bos_token_id", vocabulary.bos));
  MIXTRAL_RETURN_IF_ERROR(read_id("tokenizer.ggml.eos_token_id", vocabulary.eos));
  MIXTRAL_RETURN_IF_ERROR(keys.read_bool("tokenizer.ggml.add_bos_token", vocabulary.add_bos));
  MIXTRAL_RETURN_IF_ERROR(
      keys.read_bool("tokenizer.ggml.add_space_prefix", vocabulary.add_dummy_prefix));
  return keys.read_bool("tokenizer.ggml.remove_extra_whitespaces",
                        vocabulary.remove_extra_whitespaces);
}

inline simd::Matrix matrix_of(const gguf::Tensor& tensor) {
  const BlockFormatInfo& info = *block_format_info(tensor.format);
  simd::Matrix matrix;
  matrix.data = tensor.data;
  matrix.cols = static_cast<std::size_t>(tensor.shape[0]);
  matrix.rows = static_cast<std::size_t>(tensor.shape[1]);
  matrix.row_bytes = matrix.cols / info.block_size * info.block_bytes;
  matrix.format = tensor.format;
  return matrix;
}

// Adds the matrix, or the matrices, of one tensor.
inline Status add_tensor(const gguf::Tensor& tensor, std::pmr::vector<NamedTensor>& tensors) {
  using Kind = GgufTensorName::Kind;
  const int length = static_cast<int>(std::min<std::size_t>(tensor.name.size(), 80));
  const std::optional<GgufTensorName> name = parse_tensor_name(tensor.name);
  if (!name) {
    return Error(
        ErrorCode::unsupported,
        "tensor '%.*s' is not part of a Mixtral, Mistral or Llama 2 model; running without it "
        "would give wrong results",
        length, tensor.name.data());
  }
  if (name->kind == Kind::not_needed) return {};
  const std::uint32_t most_dims = name->kind == Kind::all_experts ? 3 : 2;
  if (tensor.n_dims > most_dims || (most_dims == 3 && tensor.n_dims != 3)) {
    return Error(ErrorCode::bad_format, "tensor '%.*s' has %u dimensions; expected %u", length,
                 tensor.name.data(), static_cast<unsigned>(tensor.n_dims),
                 static_cast<unsigned>(most_dims));
  }
  if (tensor.shape[2] > 4096) {
    return Error(ErrorCode::bad_format, "tensor '%.*s' holds %llu experts; at most 4096", length,
                 tensor.name.data(), static_cast<unsigned long long>(tensor.shape[2]));
  }
  simd::Matrix matrix = matrix_of(tensor);
  for (std::uint32_t e = 0; e < tensor.shape[2]; ++e) {
    const std::uint32_t expert = name->kind == Kind::all_experts ? e : name->expert;
    tensors.push_back({name->role, name->layer, expert, matrix, tensor.name});
    matrix.data += matrix.rows * matrix.row_bytes;
  }
  return {};
}

constexpr std::string_view kFirstPartEnd = "-00001-of-";

// The path of part `number`, from 1, of the file in parts whose first part is at `first`;
// empty if `first` is not named as such.
inline std::pmr::string part_path(std::string_view first, std::size_t number,
                                  std::pmr::memory_resource* resource) {
  std::pmr::string path(first, resource);
  const std::size_t at = path.rfind(kFirstPartEnd);
  if (at == std::string::npos) return std::pmr::string(resource);
  char digits[24];
  std::snprintf(digits, sizeof digits, "-%05zu", number);
  path.replace(at, 6, digits);
  return path;
}

// How many parts a file says it has, and which one it is, from 0.
struct SplitInfo {
  std::uint32_t count = 1;
  std::uint32_t number = 0;
};

inline Result<SplitInfo> read_split(const gguf::File& file) {
  const GgufKeys keys(file);
  SplitInfo split;
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("split.count", false, 1, 65535, split.count));
  MIXTRAL_RETURN_IF_ERROR(keys.read_uint("split.no", false, 0, split.count - 1, split.number));
  return split;
}

inline Result<gguf::File> parse_part(const Bytes& bytes, std::pmr::memory_resource* resource) {
  return gguf::File::parse(Span<const std::uint8_t>(bytes.data(), bytes.size()), resource);
}

}  // namespace detail

Result<Checkpoint> read_gguf(Span<Bytes> parts, std::pmr::memory_resource* resource) {
  return detail::guard_memory("reading the GGUF file", [&]() -> Result<Checkpoint> {
    Checkpoint checkpoint(resource);
    std::uint32_t n_tensors = 0;  // in all parts, if the first one tells
    std::size_t n_found = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Result<gguf::File> file = detail::parse_part(parts[i], resource);
      if (!file) return file.error();
      const auto split = detail::read_split(*file);
      if (!split) return split.error();
      if (split->count != parts.size() || split->number != i) {
        return Error(ErrorCode::bad_format,
                     "this is part %u of %u of a GGUF file, given as part %zu of %zu; open the "
                     "first part by its path, with the others beside it",
                     static_cast<unsigned>(split->number) + 1, static_cast<unsigned>(split->count),
                     i + 1, parts.size());
      }
      if (i == 0) {
        MIXTRAL_RETURN_IF_ERROR(detail::read_config(*file, checkpoint.config));
        MIXTRAL_RETURN_IF_ERROR(detail::read_vocabulary(*file, checkpoint.vocabulary));
        checkpoint.config.vocab_size =
            static_cast<std::uint32_t>(checkpoint.vocabulary.pieces.size());
        MIXTRAL_RETURN_IF_ERROR(check_config(checkpoint.config, "GGUF metadata"));
        if (const gguf::Value* text = file->find("tokenizer.chat_template")) {
          checkpoint.chat_template = text->as_string().value_or(std::string_view());
        }
        MIXTRAL_RETURN_IF_ERROR(detail::GgufKeys(*file).read_uint("split.tensors.count", false, 0,
                                                                  1u << 30, n_tensors));
      }
      for (const gguf::Tensor& tensor : file->tensors()) {
        MIXTRAL_RETURN_IF_ERROR(detail::add_tensor(tensor, checkpoint.tensors));
      }
      n_found += file->tensors().size();
    }
    if (n_tensors != 0 && n_found != n_tensors) {
      return Error(ErrorCode::bad_format,
                   "metadata key 'split.tensors.count' is %u, but the %zu parts have %zu tensors",
                   static_cast<unsigned>(n_tensors), parts.size(), n_found);
    }
    for (Bytes& bytes : parts) checkpoint.files.push_back(std::move(bytes));
    return checkpoint;
  });
}

Result<Checkpoint> open_gguf(const char* path, std::pmr::memory_resource* resource) {
  const auto fail = [&](const Error& error) { return detail::error_in(path, error); };
  return detail::guard_memory("reading the GGUF file", [&]() -> Result<Checkpoint> {
    std::pmr::vector<Bytes> parts(resource);
    Result<Bytes> first = Bytes::map_file(path);
    if (!first) return first.error();
    parts.push_back(*std::move(first));
    std::size_t count;
    {
      const Result<gguf::File> file = detail::parse_part(parts[0], resource);
      if (!file) return fail(file.error());
      const auto split = detail::read_split(*file);
      if (!split) return fail(split.error());
      count = split->number == 0 ? split->count : 1;  // of a later part, read_gguf says so
    }
    for (std::size_t i = 1; i < count; ++i) {
      const std::pmr::string name = detail::part_path(path, i + 1, resource);
      if (name.empty()) {
        return fail(Error(ErrorCode::bad_format,
                          "the file has %zu parts, but is not named NAME-00001-of-%05zu.gguf, so "
                          "that the others could be found",
                          count, count));
      }
      Result<Bytes> part = Bytes::map_file(name.c_str());
      if (!part) return part.error();
      parts.push_back(*std::move(part));
    }
    Result<Checkpoint> checkpoint = read_gguf(Span<Bytes>(parts), resource);
    if (!checkpoint) return fail(checkpoint.error());
    return checkpoint;
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_GGUF_CHECKPOINT_HPP_
