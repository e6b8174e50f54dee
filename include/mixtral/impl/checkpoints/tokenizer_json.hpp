#ifndef MIXTRAL_IMPL_CHECKPOINTS_TOKENIZER_JSON_HPP_
#define MIXTRAL_IMPL_CHECKPOINTS_TOKENIZER_JSON_HPP_

#include <algorithm>
#include <cstdio>

#include "mixtral/checkpoints.hpp"
#include "mixtral/impl/checkpoints/json.hpp"
#include "mixtral/utf8.hpp"

namespace mixtral {

namespace detail {

inline bool has_member(const Json& part, const char* key, const char* text) {
  const Json* found = find_member(part, key);
  return found != nullptr && *found == text;
}

inline bool is_type(const Json& part, const char* type) { return has_member(part, "type", type); }

// Reads the parts of a tokenizer.json one after the other into a vocabulary.
class TokenizerJsonReader {
 public:
  TokenizerJsonReader(const Json& json, Vocabulary& vocabulary)
      : json_(json), vocabulary_(vocabulary) {}

  Status run() {
    MIXTRAL_RETURN_IF_ERROR(read_normalizer());
    MIXTRAL_RETURN_IF_ERROR(check_decoder());
    const Json* model = find_member(json_, "model");
    if (model == nullptr || !is_type(*model, "BPE")) {
      return unsupported("the model is not of type BPE");
    }
    MIXTRAL_RETURN_IF_ERROR(read_pieces(*model));
    MIXTRAL_RETURN_IF_ERROR(read_added_tokens());
    MIXTRAL_RETURN_IF_ERROR(fill_holes());
    MIXTRAL_RETURN_IF_ERROR(read_merges(*model));
    vocabulary_.unknown_surface = "<unk>";
    return {};
  }

 private:
  static Error error(const char* what) {
    return Error(ErrorCode::bad_format, "tokenizer.json: %s", what);
  }
  static Error unsupported(const char* what) {
    return Error(ErrorCode::unsupported,
                 "tokenizer.json: %s; the tokenizers of Mixtral, Mistral and Llama 2 are read",
                 what);
  }
  static bool replaces(const Json& part, const char* pattern, const char* content) {
    const Json* from = find_member(part, "pattern");
    return is_type(part, "Replace") && from != nullptr && has_member(*from, "String", pattern) &&
           has_member(part, "content", content);
  }

  // The elements of a Sequence, or the part itself alone.
  static std::vector<const Json*> sequence(const Json& part, const char* key) {
    std::vector<const Json*> parts;
    if (!is_type(part, "Sequence")) return {&part};
    if (const Json* list = find_member(part, key); list != nullptr && list->is_array()) {
      for (const Json& element : *list) parts.push_back(&element);
    }
    return parts;
  }

  // Prepend and Replace, or (newer files) a Metaspace pre-tokeniser.
  Status read_normalizer() {
    vocabulary_.add_dummy_prefix = false;
    bool replaces_spaces = false;
    if (const Json* normalizer = find_member(json_, "normalizer")) {
      for (const Json* part : sequence(*normalizer, "normalizers")) {
        if (is_type(*part, "Prepend") && has_member(*part, "prepend", utf8::kSpaceSymbol)) {
          vocabulary_.add_dummy_prefix = true;
        } else if (replaces(*part, " ", utf8::kSpaceSymbol)) {
          replaces_spaces = true;
        } else {
          return unsupported("the normalizer has another part than Prepend and Replace of spaces");
        }
      }
    }
    if (const Json* splitter = find_member(json_, "pre_tokenizer")) {
      if (!is_type(*splitter, "Metaspace")) return unsupported("the pre_tokenizer is no Metaspace");
      if (const Json* split = find_member(*splitter, "split");
          split == nullptr || *split != false) {
        return unsupported("the pre_tokenizer splits at spaces");
      }
      if (!has_member(*splitter, "replacement", utf8::kSpaceSymbol)) {
        return unsupported("spaces do not become U+2581");
      }
      vocabulary_.add_dummy_prefix = !has_member(*splitter, "prepend_scheme", "never");
      replaces_spaces = true;
    }
    if (!replaces_spaces) return unsupported("spaces do not become U+2581");
    return {};
  }

  Status check_decoder() const {
    const Json* decoder = find_member(json_, "decoder");
    if (decoder == nullptr) return unsupported("there is no decoder");
    for (const Json* part : sequence(*decoder, "decoders")) {
      const bool known = replaces(*part, utf8::kSpaceSymbol, " ") ||
                         is_type(*part, "ByteFallback") || is_type(*part, "Fuse") ||
                         is_type(*part, "Strip") || is_type(*part, "Metaspace");
      if (!known) return unsupported("the decoder has an unknown part");
    }
    return {};
  }

  // The piece with this id; empty until it is set. There may be some holes between ids, but a short
  // file does not make a long vocabulary.
  Status place(const Json& id, Piece*& piece) {
    constexpr std::uint64_t kMaxPieces = std::uint64_t{1} << 20;  // thirty times what models have
    const std::uint64_t limit = std::min(kMaxPieces, 2 * n_entries_ + 1024);
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= limit) {
      return Error(ErrorCode::bad_format,
                   "tokenizer.json: a token id is not an integer from 0 to %llu, the most for "
                   "%llu tokens",
                   static_cast<unsigned long long>(limit - 1),
                   static_cast<unsigned long long>(n_entries_));
    }
    const auto index = id.get<std::size_t>();
    if (index >= vocabulary_.pieces.size()) vocabulary_.pieces.resize(index + 1);
    piece = &vocabulary_.pieces[index];
    return {};
  }

  std::string_view keep(std::string_view text) {
    vocabulary_.texts.emplace_back(text);
    return vocabulary_.texts.back();
  }

  Status read_pieces(const Json& model) {
    const Json* vocab = find_member(model, "vocab");
    if (vocab == nullptr || !vocab->is_object()) return error("model.vocab must be an object");
    const Json* fallback = find_member(model, "byte_fallback");
    if (fallback == nullptr || *fallback != true) return unsupported("model.byte_fallback is off");
    const Json* unknown = find_member(model, "unk_token");
    const Json* added = find_member(json_, "added_tokens");
    n_entries_ = vocab->size() + (added == nullptr ? 0 : added->size());
    for (const auto& [text, id] : vocab->items()) {
      Piece* piece;
      MIXTRAL_RETURN_IF_ERROR(place(id, piece));
      if (!piece->text.empty()) return error("two pieces of model.vocab have the same id");
      piece->text = keep(text);
      if (byte_of_piece(text) >= 0) piece->type = PieceType::byte;
      if (unknown != nullptr && *unknown == text) {
        piece->type = PieceType::unknown;
        vocabulary_.unknown = id.get<Token>();
      }
      if (text == "<s>") vocabulary_.bos = id.get<Token>();
      if (text == "</s>") vocabulary_.eos = id.get<Token>();
    }
    return {};
  }

  Status read_added_tokens() {
    const Json* added = find_member(json_, "added_tokens");
    if (added == nullptr) return {};
    if (!added->is_array()) return error("added_tokens must be an array");
    for (const Json& token : *added) {
      const Json *id = find_member(token, "id"), *content = find_member(token, "content");
      if (id == nullptr || content == nullptr || !content->is_string()) {
        return error("an element of added_tokens has no id or content");
      }
      const auto& text = content->get_ref<const std::string&>();
      Piece* piece;
      MIXTRAL_RETURN_IF_ERROR(place(*id, piece));
      if (!piece->text.empty() && piece->text != text) {
        return error("an added token has the id of another piece");
      }
      if (piece->text.empty()) piece->text = keep(text);
      const Json* special = find_member(token, "special");
      if (piece->type == PieceType::unknown || piece->type == PieceType::byte) continue;
      piece->type =
          special != nullptr && *special == true ? PieceType::control : PieceType::user_defined;
    }
    return {};
  }

  Status fill_holes() {
    for (Piece& piece : vocabulary_.pieces) {
      if (!piece.text.empty()) continue;
      piece.text = keep("[PAD" + std::to_string(&piece - vocabulary_.pieces.data()) + "]");
      piece.type = PieceType::control;
    }
    return {};
  }

  // "left right", or (newer files) ["left", "right"].
  Status read_merges(const Json& model) {
    const Json* merges = find_member(model, "merges");
    if (merges == nullptr || !merges->is_array()) return error("model.merges must be an array");
    std::unordered_map<std::string_view, Token> ids;
    for (const Piece& piece : vocabulary_.pieces) {
      ids.emplace(piece.text, static_cast<Token>(&piece - vocabulary_.pieces.data()));
    }
    const auto n_merges = static_cast<float>(merges->size());
    // For programs that go by scores: earlier merges first, what is never merged last.
    for (Piece& piece : vocabulary_.pieces) {
      if (piece.type == PieceType::normal) piece.score = -n_merges;
    }
    for (std::size_t i = merges->size(); i-- > 0;) {
      const Json& merge = (*merges)[i];
      std::string_view left, right;
      if (merge.is_string()) {
        const std::string_view both = merge.get_ref<const std::string&>();
        const std::size_t space = both.find(' ');
        left = both.substr(0, space);
        right = space == std::string_view::npos ? "" : both.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get_ref<const std::string&>();
        right = merge[1].get_ref<const std::string&>();
      }
      std::string text(left);
      text += right;
      const auto left_id = ids.find(left), right_id = ids.find(right), id = ids.find(text);
      if (left_id == ids.end() || right_id == ids.end() || id == ids.end()) {
        return Error(ErrorCode::bad_format,
                     "tokenizer.json: model.merges[%zu] is not of two pieces that make a third", i);
      }
      vocabulary_.merges.push_back({left_id->second, right_id->second});
      vocabulary_.pieces[static_cast<std::size_t>(id->second)].score = -static_cast<float>(i);
    }
    std::reverse(vocabulary_.merges.begin(), vocabulary_.merges.end());
    return {};
  }

  const Json& json_;
  Vocabulary& vocabulary_;
  std::uint64_t n_entries_ = 0;  // in vocab and added_tokens
};

inline Status read_tokenizer_json(Span<const std::uint8_t> bytes, Vocabulary& vocabulary) {
  const Result<Json> json = parse_json(bytes, "tokenizer.json");
  if (!json) return json.error();
  return TokenizerJsonReader(*json, vocabulary).run();
}

}  // namespace detail

Result<Vocabulary> read_tokenizer_json(Span<const std::uint8_t> bytes,
                                       std::pmr::memory_resource* resource) {
  return detail::guard_memory("reading tokenizer.json", [&]() -> Result<Vocabulary> {
    Vocabulary vocabulary(resource);
    MIXTRAL_RETURN_IF_ERROR(detail::read_tokenizer_json(bytes, vocabulary));
    return vocabulary;
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_CHECKPOINTS_TOKENIZER_JSON_HPP_
