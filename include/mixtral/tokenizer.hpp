// Text to tokens and back: SentencePiece BPE with byte fallback, as the sentencepiece library does it
// (Kudo & Richardson 2018; Sennrich et al. 2016 for BPE).
#ifndef MIXTRAL_TOKENIZER_HPP_
#define MIXTRAL_TOKENIZER_HPP_

#include <array>
#include <cstdint>
#include <list>
#include <memory_resource>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mixtral/error.hpp"
#include "mixtral/span.hpp"

namespace mixtral {

using Token = std::int32_t;
constexpr Token kNoToken = -1;

// As in sentencepiece_model.proto and tokenizer.ggml.token_type.
enum class PieceType : std::uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,  // <s>, </s>: never produced from text, decoded to nothing
  user_defined = 4,
  unused = 5,
  byte = 6,  // <0x00> .. <0xFF>
};

struct Piece {
  std::string_view text;  // with U+2581 for a space
  float score = 0.0f;
  PieceType type = PieceType::normal;
};

// Two pieces whose texts in a row are a third.
struct Merge {
  Token left;
  Token right;
};

// What a tokenizer is made from; a checkpoint format fills it in.
struct Vocabulary {
  explicit Vocabulary(std::pmr::memory_resource* resource)
      : pieces(resource), merges(resource), texts(resource) {}

  std::pmr::vector<Piece> pieces;  // by id
  // The merges of a Hugging Face tokenizer, first ones first; if there are none, pieces are merged
  // by their scores, as SentencePiece does.
  std::pmr::vector<Merge> merges;
  std::pmr::list<std::pmr::string> texts;  // texts of pieces that no file holds as they are
  Token unknown = 0;
  Token bos = 1;
  Token eos = 2;
  bool add_bos = true;                    // texts begin with BOS by default
  bool add_dummy_prefix = true;           // a space is put before the text
  bool remove_extra_whitespaces = false;  // runs of spaces become one, those at the ends none
  std::string_view unknown_surface = " \xE2\x81\x87 ";  // what an unknown token decodes to
};

struct EncodeOptions {
  bool bos = false;           // put BOS first
  bool leading_space = true;  // apply the vocabulary's dummy prefix; false continues earlier text
};

// Immutable after creation: any number of threads may use it at once.
class Tokenizer {
 public:
  // Copies the vocabulary's texts. Errors: bad_format (no pieces, doubles, missing byte pieces ...),
  // out_of_memory.
  static Result<Tokenizer> create(const Vocabulary& vocabulary,
                                  std::pmr::memory_resource* resource);

  // From the bytes of a `tokenizer.model` file (sentencepiece_model.proto), which are copied.
  // Errors: as create; unsupported for other model types than BPE and for normalisation rules.
  static Result<Tokenizer> from_sentencepiece(
      Span<const std::uint8_t> bytes,
      std::pmr::memory_resource* resource = std::pmr::get_default_resource());

  // Appends the ids of `text` to `out`. Any bytes are accepted: an invalid UTF-8 byte becomes
  // U+FFFD as in sentencepiece, NUL is a character like others, and the text of special tokens is
  // ordinary text. Takes O(n log n) time and about 40 bytes of memory a character.
  // Errors: invalid_argument over 1 GiB of text, out_of_memory.
  Status encode(std::string_view text, EncodeOptions options, std::pmr::vector<Token>& out) const;
  Result<std::pmr::vector<Token>> encode(std::string_view text, EncodeOptions options = {}) const;

  // The text of `tokens`. With `strip_leading_space`, the space that encoding put before the text is
  // taken away again. Incomplete or invalid UTF-8 from byte tokens becomes U+FFFD.
  // Errors: invalid_argument for an id outside the vocabulary, out_of_memory.
  Result<std::pmr::string> decode(Span<const Token> tokens, bool strip_leading_space = true) const;

  std::size_t size() const noexcept { return pieces_.size(); }
  Token bos() const noexcept { return bos_; }  // kNoToken if there is none
  Token eos() const noexcept { return eos_; }
  Token unknown() const noexcept { return unknown_; }
  bool add_bos() const noexcept { return add_bos_; }
  bool add_dummy_prefix() const noexcept { return add_dummy_prefix_; }
  bool remove_extra_whitespaces() const noexcept { return remove_extra_whitespaces_; }

  bool contains(Token token) const noexcept {
    return token >= 0 && static_cast<std::size_t>(token) < pieces_.size();
  }
  // An empty piece of type `unused` for a token that is not contained.
  Piece piece(Token token) const noexcept;
  // The token whose piece has exactly this text, special ones included; kNoToken if none.
  Token find(std::string_view piece) const noexcept;

 private:
  friend class Detokenizer;
  class Encoder;
  struct StoredPiece {
    std::uint32_t begin;
    std::uint32_t length;
    float score;
    PieceType type;
    std::uint8_t byte;  // the value of a byte piece
  };
  using Ids = std::pmr::unordered_map<std::string_view, Token>;

  explicit Tokenizer(std::pmr::memory_resource* resource)
      : texts_(resource),
        pieces_(resource),
        ids_(resource),
        reserved_ids_(resource),
        merge_ranks_(resource) {}

  static std::uint64_t merge_key(Token left, Token right) noexcept {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }

  std::string_view text_of(const StoredPiece& piece) const noexcept {
    return std::string_view(texts_.data() + piece.begin, piece.length);
  }

  std::string_view unknown_surface() const noexcept {
    return std::string_view(texts_.data() + texts_.size() - unknown_surface_length_,
                            unknown_surface_length_);
  }

  // Vectors rather than strings: moving them keeps the characters in place, which ids_ points to.
  std::pmr::vector<char> texts_;
  std::pmr::vector<StoredPiece> pieces_;
  Ids ids_;           // normal, user-defined and unused pieces
  Ids reserved_ids_;  // unknown, control and byte pieces
  std::pmr::unordered_map<std::uint64_t, std::uint32_t> merge_ranks_;  // if not by score
  std::array<Token, 256> byte_ids_{};
  std::size_t unknown_surface_length_ = 0;  // at the end of texts_
  std::size_t longest_piece_ = 0;
  std::size_t longest_user_defined_ = 0;
  bool byte_fallback_ = false;
  bool has_unused_ = false;
  bool add_bos_ = true;
  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = false;
  Token unknown_ = kNoToken;
  Token bos_ = kNoToken;
  Token eos_ = kNoToken;
};

// Decodes tokens as they come; never gives out a part of a UTF-8 character. The concatenation of
// all that push() and finish() return equals Tokenizer::decode() of the same tokens.
class Detokenizer {
 public:
  // `tokenizer` must outlive this object. Allocates once, here.
  Detokenizer(const Tokenizer& tokenizer, bool strip_leading_space,
              std::pmr::memory_resource* resource);

  // The text that `token` completes, possibly empty; valid until the next call. Tokens outside the
  // vocabulary give nothing.
  std::string_view push(Token token);
  // What remains of an incomplete character, as U+FFFD.
  std::string_view finish();

  // The most bytes that one call can return.
  std::size_t longest_text() const noexcept { return longest_text_; }

 private:
  friend class Generation;
  // Writes or reads what the next call depends on.
  template <class Archive>
  void transfer(Archive& archive) {
    archive.bytes(pending_.data(), pending_.size());
    auto n_pending = static_cast<std::uint8_t>(n_pending_);
    archive.value(n_pending);
    n_pending_ = n_pending;
    archive.flag(at_begin_);
    archive.flag(took_space_);
    archive.flag(produced_text_);
    if (n_pending_ >= pending_.size()) {  // push() adds one more
      n_pending_ = 0;
      archive.fail();
    }
  }

  void flush_bytes(bool at_end);

  const Tokenizer* tokenizer_;
  std::pmr::string text_;
  std::array<std::uint8_t, 4> pending_{};
  std::size_t n_pending_ = 0;
  std::size_t longest_text_ = 0;
  bool at_begin_;            // a leading space would still be taken away
  bool took_space_ = false;  // the last token was, or began with, that space
  bool produced_text_ = false;
};

}  // namespace mixtral

#endif  // MIXTRAL_TOKENIZER_HPP_
