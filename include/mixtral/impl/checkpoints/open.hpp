// From a path to a checkpoint: which layout it is, and which files belong to it.
#ifndef MIXTRAL_IMPL_CHECKPOINTS_OPEN_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_OPEN_HPP_

#include <limits>
#include <map>
#include <set>
#include <string>

#include "mixtral/checkpoints.hpp"
#include "mixtral/gguf.hpp"
#include "mixtral/impl/checkpoints/huggingface.hpp"
#include "mixtral/impl/checkpoints/original.hpp"
#include "mixtral/impl/checkpoints/safetensors.hpp"
#include "mixtral/impl/checkpoints/tokenizer_json.hpp"
#include "mixtral/impl/checkpoints/torch_file.hpp"
#include "mixtral/impl/system.hpp"

namespace mixtral {

namespace detail {

inline Span<const std::uint8_t> view_of(const Bytes& bytes) noexcept {
  return {bytes.data(), bytes.size()};
}

inline bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Opens the files of one model folder.
class FolderReader {
 public:
  FolderReader(std::string folder, std::pmr::memory_resource* resource)
      : folder_(std::move(folder)), resource_(resource), checkpoint_(resource) {}

  Result<Checkpoint> run() {
    const bool has_config = exists("config.json"), has_params = exists("params.json");
    const bool has_safetensors = exists("model.safetensors") || exists(kIndex);
    // Those who publish GGUF files often put config.json beside them.
    if (!has_safetensors && !has_params) MIXTRAL_RETURN_IF_ERROR(name_gguf_files());
    if (has_config && (has_safetensors || !has_params)) {
      MIXTRAL_RETURN_IF_ERROR(read_huggingface());
    } else if (has_params) {
      MIXTRAL_RETURN_IF_ERROR(read_original());
    } else {
      return Error(ErrorCode::unsupported,
                   "'%s': neither config.json (Hugging Face) nor params.json (original release) is "
                   "there; give a GGUF file or a folder with a model",
                   shown_folder().c_str());
    }
    return std::move(checkpoint_);
  }

  Result<Tokenizer> run_tokenizer() {
    MIXTRAL_RETURN_IF_ERROR(read_vocabulary());
    return Tokenizer::create(checkpoint_.vocabulary, resource_);
  }

 private:
  static constexpr const char* kIndex = "model.safetensors.index.json";

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  // Returns the path shortened for error messages, so that they have room for the rest.
  std::string shown(const std::string& name) const { return ShortName(path(name)).text(); }
  std::string shown_folder() const { return ShortName(folder_).text(); }

  // Is there anything of that name? What cannot be read is there as well: reading it then says why not.
  bool exists(const std::string& name) const {
    return path_status(path(name).c_str()).kind != PathKind::missing;
  }

  // An error that names the GGUF files of the folder, if it has any: up to three, and of a file in
  // parts the first.
  Status name_gguf_files() const {
    std::set<std::string> names;
    for_each_name(folder_.c_str(), [&](std::string_view name) {
      constexpr std::size_t kEnd = std::string_view("-00002-of-00003.gguf").size();
      const std::string_view end = name.substr(name.size() - std::min(name.size(), kEnd));
      const bool is_later_part = end.size() == kEnd && end[0] == '-' &&
                                 end.substr(6, 4) == "-of-" && end.substr(1, 5) != "00001";
      if (ends_with(name, ".gguf") && !is_later_part) names.emplace(name);
    });
    if (names.empty()) return {};
    constexpr std::size_t kMostNames = 3, kMostOfName = 50;
    std::string list;
    std::size_t n = 0;
    for (auto name = names.begin(); name != names.end() && n < kMostNames; ++name, ++n) {
      list += n == 0 ? "'" : ", '";
      list += ShortName(*name, kMostOfName).text();
      list += '\'';
    }
    if (names.size() > n) list += " and " + std::to_string(names.size() - n) + " more";
    return Error(ErrorCode::invalid_argument,
                 "'%s' is a folder of GGUF files; name one of them: %s",
                 ShortName(folder_, 80).text(), list.c_str());
  }

  // Maps a file that the checkpoint keeps.
  Result<Span<const std::uint8_t>> map(const std::string& name) {
    Result<Bytes> bytes = Bytes::map_file(path(name).c_str());
    if (!bytes) return bytes.error();
    checkpoint_.files.push_back(*std::move(bytes));
    return view_of(checkpoint_.files.back());
  }

  Result<Json> read_json(const std::string& name) const {
    const Result<Bytes> bytes = Bytes::map_file(path(name).c_str());
    if (!bytes) return bytes.error();
    return parse_json(view_of(*bytes), shown(name).c_str());
  }

  Status read_huggingface() {
    const Result<Json> config = read_json("config.json");
    if (!config) return config.error();
    MIXTRAL_RETURN_IF_ERROR(read_huggingface_config(*config, checkpoint_.config));
    MIXTRAL_RETURN_IF_ERROR(read_vocabulary());
    MIXTRAL_RETURN_IF_ERROR(read_tokenizer_config());
    MIXTRAL_RETURN_IF_ERROR(fit_vocabulary());
    MIXTRAL_RETURN_IF_ERROR(check_config(checkpoint_.config, shown("config.json").c_str()));
    const auto add = [&](const StoredTensor& tensor) {
      return add_huggingface_tensor(tensor, checkpoint_);
    };
    MIXTRAL_RETURN_IF_ERROR(read_safetensors_files("model.safetensors", add));
    bool tied = false;
    MIXTRAL_RETURN_IF_ERROR(
        JsonKeys(*config, "config.json").read_bool("tie_word_embeddings", tied));
    if (tied) return {};
    for (const NamedTensor& tensor : checkpoint_.tensors) {
      if (tensor.role == Role::output) return {};
    }
    return Error(ErrorCode::bad_format,
                 "tensor 'lm_head.weight' is missing, and config.json does not say "
                 "tie_word_embeddings; the model is incomplete");
  }

  Status read_original() {
    const Result<Json> params = read_json("params.json");
    if (!params) return params.error();
    Config& config = checkpoint_.config;
    MIXTRAL_RETURN_IF_ERROR(read_params(*params, config));
    MIXTRAL_RETURN_IF_ERROR(read_vocabulary());
    if (config.vocab_size == 0) {
      config.vocab_size = static_cast<std::uint32_t>(checkpoint_.vocabulary.pieces.size());
    }
    MIXTRAL_RETURN_IF_ERROR(fit_vocabulary());
    if (config.n_experts == 0 || config.n_experts > 4096) {
      return check_config(config, shown("params.json").c_str());  // says so
    }
    const auto add = [&](const StoredTensor& tensor) {
      return add_original_tensor(tensor, config, checkpoint_);
    };
    if (exists("consolidated.safetensors") || exists("consolidated.safetensors.index.json")) {
      MIXTRAL_RETURN_IF_ERROR(read_safetensors_files("consolidated.safetensors", add));
    } else {
      MIXTRAL_RETURN_IF_ERROR(read_torch_files(add));
    }
    if (config.hidden_dim == 0) {
      for (const NamedTensor& tensor : checkpoint_.tensors) {
        if (tensor.role == Role::w1) {
          constexpr std::size_t kMost = std::numeric_limits<std::uint32_t>::max();
          config.hidden_dim = static_cast<std::uint32_t>(std::min(tensor.matrix.rows, kMost));
        }
      }
    }
    return check_config(config, shown("params.json").c_str());
  }

  // One file, or those that an index beside it names.
  template <class Add>
  Status read_safetensors_files(const std::string& name, const Add& add) {
    if (!exists(name + ".index.json")) return read_safetensors_file(name, add);
    const Result<Json> index = read_json(name + ".index.json");
    if (!index) return index.error();
    const Json* map = find_member(*index, "weight_map");
    if (map == nullptr || !map->is_object()) {
      return Error(ErrorCode::bad_format, "'%s.index.json': weight_map must be an object",
                   shown(name).c_str());
    }
    const auto files = files_of_index(*map, name);
    if (!files) return files.error();
    std::size_t n_tensors = 0;
    for (const std::string& file : *files) {
      const auto add_if_expected = [&](const StoredTensor& tensor) -> Status {
        const auto expected = map->find(std::string(tensor.name));
        if (expected == map->end() || *expected != file) {
          return Error(
              ErrorCode::bad_format,
              "tensor '%.*s' is not where the index says; the files do not belong together",
              printable_length(tensor.name), tensor.name.data());
        }
        ++n_tensors;
        return add(tensor);
      };
      MIXTRAL_RETURN_IF_ERROR(read_safetensors_file(file, add_if_expected));
    }
    if (n_tensors != map->size()) {
      return Error(ErrorCode::bad_format,
                   "'%s.index.json' names %zu tensors, but its files have %zu of them",
                   shown(name).c_str(), map->size(), n_tensors);
    }
    return {};
  }

  // The files that a weight_map names.
  Result<std::set<std::string>> files_of_index(const Json& map, const std::string& name) const {
    std::set<std::string> files;
    for (const auto& [tensor, file] : map.items()) {
      const std::string* text = file.get_ptr<const std::string*>();
      if (text == nullptr || text->empty() || text->find_first_of("/\\:") != std::string::npos) {
        return Error(ErrorCode::bad_format,
                     "'%s.index.json': the file of tensor '%.80s' is not a plain file name",
                     shown(name).c_str(), tensor.c_str());
      }
      files.insert(*text);
    }
    return files;
  }

  template <class Add>
  Status read_safetensors_file(const std::string& name, const Add& add) {
    const auto bytes = map(name);
    if (!bytes) return bytes.error();
    const auto tensors = read_safetensors(*bytes, shown(name).c_str(), resource_);
    if (!tensors) return tensors.error();
    return add_all(*tensors, name, add);
  }

  // consolidated.00.pth, or .pt; then .01 and so on, as long as there are more.
  template <class Add>
  Status read_torch_files(const Add& add) {
    const char* const end =
        exists("consolidated.00.pth") || !exists("consolidated.00.pt") ? ".pth" : ".pt";
    for (int i = 0; i < 100; ++i) {
      char name[32];
      std::snprintf(name, sizeof name, "consolidated.%02d%s", i, end);
      if (i > 0 && !exists(name)) break;
      const auto bytes = map(name);
      if (!bytes) return bytes.error();
      const auto tensors = read_torch_file(*bytes, shown(name).c_str(), resource_);
      if (!tensors) return tensors.error();
      if (has_shards(*tensors)) {
        return Error(ErrorCode::unsupported,
                     "'%s': its tensors are shards for model parallelism; take this model in the "
                     "Hugging Face layout or as GGUF",
                     shown(name).c_str());
      }
      MIXTRAL_RETURN_IF_ERROR(add_all(*tensors, name, add));
    }
    return {};
  }

  // Is there a tensor that another file had already?
  bool has_shards(const StoredTensors& tensors) const {
    std::set<std::string_view> known;
    for (const NamedTensor& tensor : checkpoint_.tensors) known.insert(tensor.name);
    for (const StoredTensor& tensor : tensors) {
      if (known.count(tensor.name) != 0) return true;
    }
    return false;
  }

  template <class Add>
  Status add_all(const StoredTensors& tensors, const std::string& name, const Add& add) {
    for (const StoredTensor& tensor : tensors) {
      const Status added = add(tensor);
      if (!added) return error_in(path(name).c_str(), added.error());
    }
    return {};
  }

  Status read_vocabulary() {
    // Mistral's repositories also number them by the version of their format.
    for (const char* name :
         {"tokenizer.model", "tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3"}) {
      if (!exists(name)) continue;
      const auto bytes = map(name);
      if (!bytes) return bytes.error();
      const Status read = read_sentencepiece(*bytes, checkpoint_.vocabulary);
      return read ? Status() : error_in(path(name).c_str(), read.error());
    }
    if (!exists("tokenizer.json")) {
      MIXTRAL_RETURN_IF_ERROR(name_gguf_files());
      return Error(ErrorCode::io, "'%s': there is neither tokenizer.model nor tokenizer.json",
                   shown_folder().c_str());
    }
    const Result<Bytes> bytes = Bytes::map_file(path("tokenizer.json").c_str());
    if (!bytes) return bytes.error();
    const Status read = detail::read_tokenizer_json(view_of(*bytes), checkpoint_.vocabulary);
    return read ? Status() : error_in(path("tokenizer.json").c_str(), read.error());
  }

  // tokenizer_config.json, if it is there: added tokens, BOS, chat template. A template in a file of its own
  // comes before that, as in the transformers library.
  Status read_tokenizer_config() {
    if (const PathStatus status = path_status(path("chat_template.jinja").c_str());
        status.kind != PathKind::missing && !(status.kind == PathKind::file && status.size == 0)) {
      const Result<Bytes> bytes = Bytes::map_file(path("chat_template.jinja").c_str());
      if (!bytes) return bytes.error();
      checkpoint_.chat_template.assign(reinterpret_cast<const char*>(bytes->data()), bytes->size());
    }
    if (!exists("tokenizer_config.json")) return {};
    const Result<Json> json = read_json("tokenizer_config.json");
    if (!json) return json.error();
    const JsonKeys keys(*json, "tokenizer_config.json");
    Vocabulary& vocabulary = checkpoint_.vocabulary;
    MIXTRAL_RETURN_IF_ERROR(keys.read_bool("add_bos_token", vocabulary.add_bos));
    if (checkpoint_.chat_template.empty()) read_chat_template(keys.find("chat_template"));
    const Json* added = keys.find("added_tokens_decoder");
    if (added == nullptr) return {};
    if (!added->is_object()) return keys.wrong_type("added_tokens_decoder", "an object", *added);
    // The keys are in the order of texts, in which "1000" comes before "999".
    std::map<std::uint32_t, const Json*> tokens;
    for (const auto& [key, token] : added->items()) {
      std::uint32_t id = 0;
      const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
      const Json* content = find_member(token, "content");
      if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() ||
          id >= checkpoint_.config.vocab_size || content == nullptr || !content->is_string()) {
        return Error(ErrorCode::bad_format,
                     "tokenizer_config.json: added token '%.40s' has no content or is not in the "
                     "vocabulary of %u",
                     key.c_str(), static_cast<unsigned>(checkpoint_.config.vocab_size));
      }
      tokens.emplace(id, &token);
    }
    for (const auto& [id, token] : tokens) {
      if (id < vocabulary.pieces.size()) continue;  // known to the tokenizer itself
      MIXTRAL_RETURN_IF_ERROR(pad_vocabulary(id));
      vocabulary.texts.emplace_back((*token)["content"].get_ref<const std::string&>());
      const Json* special = find_member(*token, "special");
      vocabulary.pieces.push_back(
          {vocabulary.texts.back(), 0.0f,
           special != nullptr && *special == true ? PieceType::control : PieceType::user_defined});
    }
    return {};
  }

  // The template, or of several with names the one that is called "default".
  void read_chat_template(const Json* text) {
    if (text == nullptr) return;
    if (text->is_string()) checkpoint_.chat_template = text->get_ref<const std::string&>();
    if (!text->is_array()) return;
    for (const Json& entry : *text) {
      const Json *name = find_member(entry, "name"), *named = find_member(entry, "template");
      if (name != nullptr && *name == "default" && named != nullptr && named->is_string()) {
        checkpoint_.chat_template = named->get_ref<const std::string&>();
      }
    }
  }

  // Rows of the matrices that no piece belongs to get pieces that never appear.
  Status pad_vocabulary(std::size_t size) {
    Vocabulary& vocabulary = checkpoint_.vocabulary;
    constexpr std::size_t kMaxPadding = std::size_t{1} << 20;
    if (size > vocabulary.pieces.size() + kMaxPadding) {
      return Error(ErrorCode::bad_format,
                   "'%s': the configuration has a vocabulary of %zu, the tokenizer one of %zu",
                   shown_folder().c_str(), size, vocabulary.pieces.size());
    }
    while (vocabulary.pieces.size() < size) {
      vocabulary.texts.emplace_back("[PAD" + std::to_string(vocabulary.pieces.size()) + "]");
      vocabulary.pieces.push_back({vocabulary.texts.back(), 0.0f, PieceType::control});
    }
    return {};
  }

  Status fit_vocabulary() {
    MIXTRAL_RETURN_IF_ERROR(pad_vocabulary(checkpoint_.config.vocab_size));
    if (checkpoint_.vocabulary.pieces.size() == checkpoint_.config.vocab_size) return {};
    return Error(ErrorCode::bad_format,
                 "'%s': the tokenizer has %zu pieces, the configuration a vocabulary of %u",
                 shown_folder().c_str(), checkpoint_.vocabulary.pieces.size(),
                 static_cast<unsigned>(checkpoint_.config.vocab_size));
  }

  std::string folder_;
  std::pmr::memory_resource* resource_;
  Checkpoint checkpoint_;
};

// The folder that a file of weights or configuration is in; any other path as it is.
inline std::string folder_of(std::string_view path) {
  for (const char* end :
       {".safetensors", ".pth", ".pt", ".index.json", "config.json", "params.json"}) {
    if (!ends_with(path, end)) continue;
    const std::size_t slash = path.find_last_of("/\\");
    return slash == std::string_view::npos ? "." : std::string(path.substr(0, slash));
  }
  while (path.size() > 1 && (path.back() == '/' || path.back() == '\\')) path.remove_suffix(1);
  return std::string(path);
}

}  // namespace detail

Result<Checkpoint> open_checkpoint(const char* path, std::pmr::memory_resource* resource) {
  return detail::guard_memory("opening the model", [&]() -> Result<Checkpoint> {
    if (detail::path_status(path).kind != detail::PathKind::folder) {
      const Result<Bytes> bytes = Bytes::map_file(path);
      if (!bytes) return bytes.error();
      // A file that is not part of a folder's layout is GGUF, or the error says that it is not.
      if (gguf::File::recognises(detail::view_of(*bytes)) || detail::folder_of(path) == path) {
        return open_gguf(path, resource);
      }
    }
    return detail::FolderReader(detail::folder_of(path), resource).run();
  });
}

Result<Model> open_model(const char* path, const ModelOptions& options) {
  Result<Checkpoint> checkpoint = open_checkpoint(path, detail::resource_of(options));
  if (!checkpoint) return checkpoint.error();
  Result<Model> model = Model::from_checkpoint(*std::move(checkpoint), options);
  if (!model) return detail::error_in(path, model.error());
  return model;
}

Result<Tokenizer> open_tokenizer(const char* path, std::pmr::memory_resource* resource) {
  return detail::guard_memory("opening the tokenizer", [&]() -> Result<Tokenizer> {
    const bool is_folder = detail::path_status(path).kind == detail::PathKind::folder;
    const Result<Bytes> bytes = is_folder ? Bytes() : Bytes::map_file(path);
    if (!bytes) return bytes.error();
    if (is_folder || detail::folder_of(path) != path) {
      return detail::FolderReader(detail::folder_of(path), resource).run_tokenizer();
    }
    const auto view = detail::view_of(*bytes);
    Result<Tokenizer> tokenizer = [&]() -> Result<Tokenizer> {
      if (gguf::File::recognises(view)) {
        const Result<Checkpoint> checkpoint = open_gguf(path, resource);
        if (!checkpoint) return checkpoint.error();
        return Tokenizer::create(checkpoint->vocabulary, resource);
      }
      if (!detail::ends_with(path, ".json")) return Tokenizer::from_sentencepiece(view, resource);
      const Result<Vocabulary> vocabulary = read_tokenizer_json(view, resource);
      if (!vocabulary) return vocabulary.error();
      return Tokenizer::create(*vocabulary, resource);
    }();
    if (!tokenizer && !gguf::File::recognises(view)) {
      return detail::error_in(path, tokenizer.error());
    }
    return tokenizer;
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_CHECKPOINTS_OPEN_HPP_
