// The texts of a vocabulary's tokens as one tree, so that a grammar looks at common beginnings once.
#ifndef MIXTRAL_IMPL_TOKEN_TRIE_HPP_
#define MIXTRAL_IMPL_TOKEN_TRIE_HPP_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <vector>

#include "mixtral/impl/tokenizer.hpp"
#include "mixtral/tokenizer.hpp"
#include "mixtral/utf8.hpp"

namespace mixtral::detail {

// Nodes are one byte each, a node before those that go on from it.
class TokenTrie {
 public:
  struct Node {
    std::uint32_t end;          // the node after all that go on from this one
    std::uint32_t first_token;  // in tokens(): up to the next node's are those that end here
    std::uint16_t depth;        // 1 for a first byte
    std::uint8_t byte;
  };

  // Tokens with a text of their own that is valid UTF-8, and single bytes.
  TokenTrie(const Tokenizer& tokenizer, std::pmr::memory_resource* resource)
      : nodes_(resource), tokens_(resource), begins_(resource), bytes_(resource) {
    const std::size_t size = tokenizer.size();
    begins_.reserve(size + 1);
    for (std::size_t i = 0; i < size; ++i) {
      begins_.push_back(static_cast<std::uint32_t>(bytes_.size()));
      append_text(tokenizer.piece(static_cast<Token>(i)));
      const std::size_t length = bytes_.size() - begins_.back();
      if (length > kLongest) bytes_.resize(begins_.back());
      if (length > 0 && length <= kLongest) tokens_.push_back(static_cast<Token>(i));
    }
    begins_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    std::sort(tokens_.begin(), tokens_.end(), [&](Token a, Token b) { return text(a) < text(b); });
    build();
  }

  Span<const Node> nodes() const noexcept { return {nodes_.data(), nodes_.size() - 1}; }
  // Those that end at node i.
  Span<const Token> tokens(std::size_t i) const noexcept {
    return {tokens_.data() + nodes_[i].first_token,
            nodes_[i + 1].first_token - nodes_[i].first_token};
  }
  // The bytes that a token adds to the text, empty if it has none of its own.
  std::string_view text(Token token) const noexcept {
    const auto t = static_cast<std::size_t>(token);
    return {bytes_.data() + begins_[t], begins_[t + 1] - begins_[t]};
  }
  std::size_t longest() const noexcept { return longest_; }

 private:
  static constexpr std::size_t kLongest = 1000;

  void append_text(const Piece& piece) {
    if (piece.type == PieceType::byte) {
      bytes_.push_back(static_cast<char>(byte_of_piece(piece.text)));
      return;
    }
    if (piece.type != PieceType::normal && piece.type != PieceType::user_defined) return;
    const auto* from = reinterpret_cast<const std::uint8_t*>(piece.text.data());
    const std::size_t begin = bytes_.size();
    for (std::size_t i = 0, length; i < piece.text.size(); i += length) {
      const std::size_t left = piece.text.size() - i;
      if (utf8::classify(from + i, left, length) != utf8::Sequence::valid) {
        bytes_.resize(begin);
        return;
      }
      if (piece.text.substr(i, length) == utf8::kSpaceSymbol) {
        bytes_.push_back(' ');
      } else {
        bytes_.insert(bytes_.end(), piece.text.begin() + static_cast<std::ptrdiff_t>(i),
                      piece.text.begin() + static_cast<std::ptrdiff_t>(i + length));
      }
    }
  }

  void build() {
    std::pmr::vector<std::uint32_t> path(nodes_.get_allocator());  // nodes of the last text
    std::string_view last;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const std::string_view now = text(tokens_[i]);
      const auto differ = std::mismatch(last.begin(), last.end(), now.begin(), now.end()).first;
      const auto common = static_cast<std::size_t>(differ - last.begin());
      close(path, common);
      for (std::size_t d = common; d < now.size(); ++d) {
        path.push_back(static_cast<std::uint32_t>(nodes_.size()));
        nodes_.push_back({0, static_cast<std::uint32_t>(i), static_cast<std::uint16_t>(d + 1),
                          static_cast<std::uint8_t>(now[d])});
      }
      longest_ = std::max(longest_, now.size());
      last = now;
    }
    close(path, 0);
    // A token ends at the last node of its text: nodes on the way there begin with it, and have none.
    nodes_.push_back({0, static_cast<std::uint32_t>(tokens_.size()), 0, 0});
  }

  void close(std::pmr::vector<std::uint32_t>& path, std::size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].end = static_cast<std::uint32_t>(nodes_.size());
    }
  }

  std::pmr::vector<Node> nodes_;            // and one after the last
  std::pmr::vector<Token> tokens_;          // by text
  std::pmr::vector<std::uint32_t> begins_;  // of each token's text in bytes_
  std::pmr::vector<char> bytes_;
  std::size_t longest_ = 0;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_TOKEN_TRIE_HPP_
