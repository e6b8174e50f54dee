#ifndef MIXTRAL_IMPL_TOKENIZER_HPP_
#define MIXTRAL_IMPL_TOKENIZER_HPP_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "mixtral/tokenizer.hpp"
#include "mixtral/utf8.hpp"

namespace mixtral {

namespace detail {

// The value of a byte piece's text "<0x0A>", or -1.
inline int byte_of_piece(std::string_view text) noexcept {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const int high = digit(text[3]);
  const int low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace detail

Result<Tokenizer> Tokenizer::create(const Vocabulary& vocabulary,
                                    std::pmr::memory_resource* resource) {
  return detail::guard_memory("building the tokenizer", [&]() -> Result<Tokenizer> {
    const auto& pieces = vocabulary.pieces;
    // Ranks of merges are compared as float32 scores and must be exact there.
    constexpr std::size_t kMaxPieces = std::size_t{1} << 24;
    if (pieces.empty() || pieces.size() > kMaxPieces) {
      return Error(ErrorCode::bad_format, "a vocabulary of %zu pieces", pieces.size());
    }
    Tokenizer result(resource);
    std::uint64_t n_bytes = vocabulary.unknown_surface.size();
    for (const Piece& piece : pieces) n_bytes += piece.text.size();
    if (n_bytes > std::numeric_limits<std::uint32_t>::max()) {
      return Error(ErrorCode::bad_format, "the vocabulary's texts have %llu bytes",
                   static_cast<unsigned long long>(n_bytes));
    }
    result.texts_.reserve(static_cast<std::size_t>(n_bytes));
    result.pieces_.reserve(pieces.size());
    result.ids_.reserve(pieces.size());
    result.byte_ids_.fill(kNoToken);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const Piece& piece = pieces[i];
      const auto id = static_cast<Token>(i);
      if (piece.text.empty()) {
        return Error(ErrorCode::bad_format, "piece %zu of the vocabulary is empty", i);
      }
      if (std::isnan(piece.score)) {
        return Error(ErrorCode::bad_format, "the score of piece %zu is not a number", i);
      }
      StoredPiece stored{};
      stored.begin = static_cast<std::uint32_t>(result.texts_.size());
      stored.length = static_cast<std::uint32_t>(piece.text.size());
      stored.score = piece.score;
      stored.type = piece.type;
      result.texts_.insert(result.texts_.end(), piece.text.begin(), piece.text.end());
      if (piece.type == PieceType::byte) {
        const int value = detail::byte_of_piece(piece.text);
        if (value < 0 || result.byte_ids_[static_cast<std::size_t>(value)] != kNoToken) {
          return Error(
              ErrorCode::bad_format, "byte piece %zu is '%.*s'; <0x00> to <0xFF> once each", i,
              static_cast<int>(std::min<std::size_t>(piece.text.size(), 40)), piece.text.data());
        }
        stored.byte = static_cast<std::uint8_t>(value);
        result.byte_ids_[static_cast<std::size_t>(value)] = id;
      }
      const bool reserved = piece.type == PieceType::unknown || piece.type == PieceType::control ||
                            piece.type == PieceType::byte;
      Ids& ids = reserved ? result.reserved_ids_ : result.ids_;
      if (!ids.emplace(result.text_of(stored), id).second) {
        return Error(ErrorCode::bad_format, "piece %zu, '%.*s', is in the vocabulary twice", i,
                     static_cast<int>(std::min<std::size_t>(piece.text.size(), 40)),
                     piece.text.data());
      }
      if (!reserved) result.longest_piece_ = std::max(result.longest_piece_, piece.text.size());
      if (piece.type == PieceType::user_defined) {
        result.longest_user_defined_ = std::max(result.longest_user_defined_, piece.text.size());
      }
      result.has_unused_ = result.has_unused_ || piece.type == PieceType::unused;
      result.pieces_.push_back(stored);
    }
    const auto n_byte_pieces =
        256 - std::count(result.byte_ids_.begin(), result.byte_ids_.end(), kNoToken);
    if (n_byte_pieces != 0 && n_byte_pieces != 256) {
      return Error(ErrorCode::bad_format, "the vocabulary has %d byte pieces; all 256 or none",
                   static_cast<int>(n_byte_pieces));
    }
    result.byte_fallback_ = n_byte_pieces == 256;
    result.merge_ranks_.reserve(vocabulary.merges.size());
    for (std::size_t i = 0; i < vocabulary.merges.size(); ++i) {
      const Merge& merge = vocabulary.merges[i];
      std::pmr::string text(resource);
      if (result.contains(merge.left) && result.contains(merge.right)) {
        text.append(result.piece(merge.left).text).append(result.piece(merge.right).text);
      }
      if (i > kMaxPieces || result.ids_.find(text) == result.ids_.end()) {
        return Error(ErrorCode::bad_format, "merge %zu, of pieces %d and %d, gives no piece", i,
                     static_cast<int>(merge.left), static_cast<int>(merge.right));
      }
      result.merge_ranks_.emplace(merge_key(merge.left, merge.right),
                                  static_cast<std::uint32_t>(i));
    }
    result.unknown_ = result.contains(vocabulary.unknown) ? vocabulary.unknown : kNoToken;
    result.bos_ = result.contains(vocabulary.bos) ? vocabulary.bos : kNoToken;
    result.eos_ = result.contains(vocabulary.eos) ? vocabulary.eos : kNoToken;
    if (result.unknown_ == kNoToken && !result.byte_fallback_) {
      return Error(ErrorCode::bad_format,
                   "the vocabulary has neither an unknown piece nor byte pieces");
    }
    result.add_bos_ = vocabulary.add_bos && result.bos_ != kNoToken;
    result.add_dummy_prefix_ = vocabulary.add_dummy_prefix;
    result.remove_extra_whitespaces_ = vocabulary.remove_extra_whitespaces;
    result.texts_.insert(result.texts_.end(), vocabulary.unknown_surface.begin(),
                         vocabulary.unknown_surface.end());
    result.unknown_surface_length_ = vocabulary.unknown_surface.size();
    return result;
  });
}

Piece Tokenizer::piece(Token token) const noexcept {
  if (!contains(token)) return {{}, 0.0f, PieceType::unused};
  const StoredPiece& stored = pieces_[static_cast<std::size_t>(token)];
  return {text_of(stored), stored.score, stored.type};
}

Token Tokenizer::find(std::string_view piece) const noexcept {
  if (const auto found = reserved_ids_.find(piece); found != reserved_ids_.end()) {
    return found->second;
  }
  const auto found = ids_.find(piece);
  return found == ids_.end() ? kNoToken : found->second;
}

// One encoding: normalised text, then the merges of bpe_model.cc (sentencepiece), in the same order.
class Tokenizer::Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, std::pmr::memory_resource* resource)
      : tokenizer_(tokenizer),
        text_(resource),
        symbols_(resource),
        agenda_(resource),
        parts_(resource),
        later_(resource) {}

  void run(std::string_view text, bool leading_space, std::pmr::vector<Token>& out) {
    normalize(text, leading_space && tokenizer_.add_dummy_prefix_);
    if (text_.empty()) return;
    split();
    for (std::size_t i = 1; i < symbols_.size(); ++i) consider(static_cast<int>(i) - 1);
    while (!agenda_.empty()) {
      std::pop_heap(agenda_.begin(), agenda_.end());
      const Pair best = agenda_.back();
      agenda_.pop_back();
      Symbol& left = symbols_[static_cast<std::size_t>(best.left)];
      if (left.length == 0 || left.next < 0) continue;
      Symbol& right = symbols_[static_cast<std::size_t>(left.next)];
      if (left.next != best.right || left.length + right.length != best.length) continue;
      left.length += right.length;
      right.length = 0;
      left.next = right.next;
      if (left.next >= 0) symbols_[static_cast<std::size_t>(left.next)].previous = best.left;
      if (left.previous >= 0) consider(left.previous);
      consider(best.left);
    }
    bool after_unknown = false;
    for (int i = 0; i >= 0; i = symbols_[static_cast<std::size_t>(i)].next) {
      const Symbol& symbol = symbols_[static_cast<std::size_t>(i)];
      emit(view(symbol.begin, symbol.length), after_unknown, out);
    }
  }

 private:
  struct Symbol {
    int previous;
    int next;
    std::uint32_t begin;
    std::uint32_t length;  // 0 once merged into the symbol before
    bool frozen;           // a user-defined piece: never merged
  };
  struct Pair {
    float score;
    int left;
    int right;
    std::uint32_t length;
    // Highest score first, leftmost among equals.
    bool operator<(const Pair& other) const noexcept {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  std::string_view view(std::size_t begin, std::size_t length) const noexcept {
    return std::string_view(text_.data() + begin, length);
  }

  // normalizer.cc with the identity rule: spaces become U+2581, invalid bytes U+FFFD.
  void normalize(std::string_view text, bool add_prefix) {
    const bool collapse = tokenizer_.remove_extra_whitespaces_;
    if (collapse) {
      while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    }
    if (text.empty()) return;
    text_.reserve(text.size() + text.size() / 2 + utf8::kSymbolLength);
    if (add_prefix) text_.append(utf8::kSpaceSymbol);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data());
    bool after_space = collapse;
    for (std::size_t i = 0; i < text.size();) {
      std::size_t length;
      const auto sequence = utf8::classify(bytes + i, text.size() - i, length);
      if (text[i] == ' ') {
        if (!after_space) text_.append(utf8::kSpaceSymbol);
        after_space = collapse;
      } else {
        if (sequence == utf8::Sequence::valid) {
          text_.append(text.substr(i, length));
        } else {
          text_.append(utf8::kReplacement);
          length = 1;
        }
        after_space = false;
      }
      i += length;
    }
    if (!collapse) return;
    const std::string_view space(utf8::kSpaceSymbol);
    while (text_.size() >= space.size() &&
           std::string_view(text_).substr(text_.size() - space.size()) == space) {
      text_.resize(text_.size() - space.size());
    }
  }

  void split() {
    symbols_.reserve(text_.size());
    for (std::size_t i = 0; i < text_.size();) {
      const std::size_t user_defined = match_user_defined(i);
      const std::size_t length =
          user_defined != 0 ? user_defined
                            : std::min(utf8::length_from_lead(static_cast<std::uint8_t>(text_[i])),
                                       text_.size() - i);
      const int index = static_cast<int>(symbols_.size());
      symbols_.push_back({index - 1, index + 1, static_cast<std::uint32_t>(i),
                          static_cast<std::uint32_t>(length), user_defined != 0});
      i += length;
    }
    symbols_.back().next = -1;
  }

  // The length of the longest user-defined piece that begins at `begin`, 0 if none does.
  std::size_t match_user_defined(std::size_t begin) const {
    for (std::size_t n = std::min(tokenizer_.longest_user_defined_, text_.size() - begin); n > 0;
         --n) {
      const auto found = tokenizer_.ids_.find(view(begin, n));
      if (found != tokenizer_.ids_.end() && type(found->second) == PieceType::user_defined)
        return n;
    }
    return 0;
  }

  PieceType type(Token token) const noexcept {
    return tokenizer_.pieces_[static_cast<std::size_t>(token)].type;
  }

  // Puts the pair of symbol `left` and its successor on the agenda if they form a piece.
  void consider(int left_index) {
    const Symbol& left = symbols_[static_cast<std::size_t>(left_index)];
    if (left.next < 0) return;
    const Symbol& right = symbols_[static_cast<std::size_t>(left.next)];
    if (left.frozen || right.frozen) return;
    const std::uint32_t length = left.length + right.length;
    if (length > tokenizer_.longest_piece_) return;
    const std::string_view merged = view(left.begin, length);
    const auto found = tokenizer_.ids_.find(merged);
    if (found == tokenizer_.ids_.end()) return;
    float score = tokenizer_.pieces_[static_cast<std::size_t>(found->second)].score;
    if (!tokenizer_.merge_ranks_.empty() && !find_rank(left, right, score)) return;
    agenda_.push_back({score, left_index, left.next, length});
    std::push_heap(agenda_.begin(), agenda_.end());
    // Unused pieces help merging but are taken apart again at the end.
    if (tokenizer_.has_unused_ && type(found->second) == PieceType::unused) {
      parts_[merged] = {view(left.begin, left.length), view(right.begin, right.length)};
    }
  }

  // As a score: lower ranks come first.
  bool find_rank(const Symbol& left, const Symbol& right, float& score) const {
    const auto left_id = tokenizer_.ids_.find(view(left.begin, left.length));
    const auto right_id = tokenizer_.ids_.find(view(right.begin, right.length));
    if (left_id == tokenizer_.ids_.end() || right_id == tokenizer_.ids_.end()) return false;
    const auto rank = tokenizer_.merge_ranks_.find(merge_key(left_id->second, right_id->second));
    if (rank == tokenizer_.merge_ranks_.end()) return false;
    score = -static_cast<float>(rank->second);
    return true;
  }

  // Gives out a piece; one that is unused, as the two that it was merged from, and so on. Their number is
  // up to the text: hence no recursion.
  void emit(std::string_view piece, bool& after_unknown, std::pmr::vector<Token>& out) {
    for (;;) {
      const auto found = tokenizer_.ids_.find(piece);
      const bool is_piece = found != tokenizer_.ids_.end();
      if (is_piece && type(found->second) == PieceType::unused) {
        if (const auto parts = parts_.find(piece); parts != parts_.end()) {
          later_.push_back(parts->second.second);
          piece = parts->second.first;
          continue;
        }
      }
      if (is_piece) {
        out.push_back(found->second);
        after_unknown = false;
      } else if (tokenizer_.byte_fallback_) {
        for (const char c : piece) {
          out.push_back(tokenizer_.byte_ids_[static_cast<std::uint8_t>(c)]);
        }
      } else {
        if (!after_unknown) out.push_back(tokenizer_.unknown_);  // a run of unknowns is one token
        after_unknown = true;
      }
      if (later_.empty()) return;
      piece = later_.back();
      later_.pop_back();
    }
  }

  const Tokenizer& tokenizer_;
  std::pmr::string text_;
  std::pmr::vector<Symbol> symbols_;
  std::pmr::vector<Pair> agenda_;  // a heap
  std::pmr::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> parts_;
  std::pmr::vector<std::string_view> later_;  // pieces that emit() has still to give out
};

Status Tokenizer::encode(std::string_view text, EncodeOptions options,
                         std::pmr::vector<Token>& out) const {
  if (text.size() > (std::size_t{1} << 30)) {
    return Error(ErrorCode::invalid_argument,
                 "a text of %zu bytes; at most 1 GiB is encoded at once: give it in parts",
                 text.size());
  }
  return detail::guard_memory("encoding text", [&]() -> Status {
    if (options.bos && bos_ != kNoToken) out.push_back(bos_);
    Encoder(*this, pieces_.get_allocator().resource()).run(text, options.leading_space, out);
    return {};
  });
}

Result<std::pmr::vector<Token>> Tokenizer::encode(std::string_view text,
                                                  EncodeOptions options) const {
  std::pmr::vector<Token> tokens(pieces_.get_allocator().resource());
  MIXTRAL_RETURN_IF_ERROR(encode(text, options, tokens));
  return tokens;
}

Result<std::pmr::string> Tokenizer::decode(Span<const Token> tokens,
                                           bool strip_leading_space) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (!contains(tokens[i])) {
      return Error(ErrorCode::invalid_argument,
                   "token %d at index %zu; the vocabulary has 0 to %zu",
                   static_cast<int>(tokens[i]), i, pieces_.size() - 1);
    }
  }
  return detail::guard_memory("decoding tokens", [&]() -> Result<std::pmr::string> {
    std::pmr::memory_resource* resource = pieces_.get_allocator().resource();
    std::pmr::string text(resource);
    Detokenizer detokenizer(*this, strip_leading_space, resource);
    for (const Token token : tokens) text.append(detokenizer.push(token));
    text.append(detokenizer.finish());
    return text;
  });
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool strip_leading_space,
                         std::pmr::memory_resource* resource)
    : tokenizer_(&tokenizer),
      text_(resource),
      at_begin_(strip_leading_space &&
                (tokenizer.add_dummy_prefix_ || tokenizer.remove_extra_whitespaces_)) {
  std::size_t longest = tokenizer.unknown_surface_length_;
  for (const auto& piece : tokenizer.pieces_)
    longest = std::max<std::size_t>(longest, piece.length);
  longest_text_ = longest + pending_.size() * utf8::kSymbolLength;
  text_.reserve(longest_text_);
}

// Moves finished characters from pending_ to text_; at the end of a run of bytes, all of it.
void Detokenizer::flush_bytes(bool at_end) {
  std::size_t begin = 0;
  while (begin < n_pending_) {
    std::size_t length;
    const auto sequence = utf8::classify(pending_.data() + begin, n_pending_ - begin, length);
    if (sequence == utf8::Sequence::valid) {
      text_.append(reinterpret_cast<const char*>(pending_.data()) + begin, length);
    } else if (sequence == utf8::Sequence::incomplete && !at_end) {
      break;
    } else {
      text_.append(utf8::kReplacement);
      length = 1;
    }
    begin += length;
  }
  std::memmove(pending_.data(), pending_.data() + begin, n_pending_ - begin);
  n_pending_ -= begin;
}

std::string_view Detokenizer::push(Token token) {
  text_.clear();
  if (!tokenizer_->contains(token)) return text_;
  const auto& piece = tokenizer_->pieces_[static_cast<std::size_t>(token)];
  if (piece.type == PieceType::byte) {
    pending_[n_pending_++] = piece.byte;
    flush_bytes(false);
    produced_text_ = produced_text_ || !text_.empty();
    return text_;
  }
  flush_bytes(true);
  // The rule of sentencepiece_processor.cc: the space of the first piece that is not special goes.
  if (took_space_ || produced_text_ || !text_.empty()) at_begin_ = false;
  took_space_ = false;
  if (piece.type == PieceType::unknown) {
    text_.append(tokenizer_->unknown_surface());
  } else if (piece.type != PieceType::control) {
    std::string_view rest = tokenizer_->text_of(piece);
    const std::string_view space(utf8::kSpaceSymbol);
    if (at_begin_ && rest.substr(0, space.size()) == space) {
      rest.remove_prefix(space.size());
      took_space_ = !tokenizer_->remove_extra_whitespaces_;
    }
    for (;;) {
      const std::size_t at = rest.find(space);
      text_.append(rest.substr(0, at));
      if (at == std::string_view::npos) break;
      text_.push_back(' ');
      rest.remove_prefix(at + space.size());
    }
  }
  produced_text_ = produced_text_ || !text_.empty();
  return text_;
}

std::string_view Detokenizer::finish() {
  text_.clear();
  flush_bytes(true);
  return text_;
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_TOKENIZER_HPP_
