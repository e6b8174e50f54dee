// Finds stop strings in text that comes in pieces.
#ifndef MIXTRAL_STOP_STRINGS_HPP_
#define MIXTRAL_STOP_STRINGS_HPP_

#include <algorithm>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral/span.hpp"

namespace mixtral {

// Lets text through up to the first stop string, holding back what might become one. Text comes in whole
// UTF-8 characters and goes on in whole characters: of one that a stop string begins in the middle of, the
// beginning is not shown either.
class StopStrings {
 public:
  static constexpr std::size_t kLongest = std::size_t{1}
                                          << 16;  // bytes of a stop string, for Generation

  // `longest_piece` is the most bytes that one push() will bring, so that none needs to allocate.
  StopStrings(Span<const std::string> stops, std::size_t longest_piece,
              std::pmr::memory_resource* resource)
      : stops_(resource), text_(resource) {
    stops_.reserve(stops.size());
    std::size_t longest_stop = 0;
    for (const std::string& stop : stops) {
      if (!stop.empty()) stops_.emplace_back(stop);
      longest_stop = (std::max)(longest_stop, stop.size());
    }
    most_text_ = longest_stop + kLongestCharacter + longest_piece;
    text_.reserve(most_text_);
  }

  // Takes the next piece; the text that may be shown now is in ready(). True if a stop string was
  // found: ready() then ends just before it, and nothing more will come.
  bool push(std::string_view piece) {
    text_.erase(0, n_ready_);
    text_.append(piece);
    std::size_t found = std::string_view::npos;
    for (const auto& stop : stops_) found = (std::min)(found, text_.find(stop));
    n_ready_ = whole_characters(
        found != std::string_view::npos ? found : text_.size() - longest_partial_stop());
    if (found == std::string_view::npos) return false;
    text_.resize(n_ready_);  // nothing more will come
    return true;
  }

  // Takes the last piece and releases what was held back.
  void finish(std::string_view piece) {
    if (!push(piece)) n_ready_ = text_.size();
  }

  void clear() {
    text_.clear();
    n_ready_ = 0;
  }

  const std::pmr::vector<std::pmr::string>& stops() const noexcept { return stops_; }

  // The text that is held back, which was pushed and is not ready.
  std::string_view held_back() const noexcept { return std::string_view(text_).substr(n_ready_); }
  // Begins with text held back, as held_back() gave it for the same stop strings. False, and nothing is
  // held back, if that cannot be.
  bool hold_back(std::string_view text) {
    clear();
    const bool fits = text.size() <= most_text_;
    const bool is_held = fits && !push(text) && n_ready_ == 0;
    if (!is_held) clear();
    return is_held;
  }

  std::string_view ready() const noexcept { return std::string_view(text_).substr(0, n_ready_); }

 private:
  static constexpr std::size_t kLongestCharacter = 4;

  // The largest number of bytes up to n that does not end within a character.
  std::size_t whole_characters(std::size_t n) const noexcept {
    const auto continues = [&](std::size_t i) {
      return i < text_.size() && (static_cast<unsigned char>(text_[i]) & 0xC0) == 0x80;
    };
    std::size_t begin = n;
    for (std::size_t i = 1; i < kLongestCharacter && begin > 0 && continues(begin); ++i) --begin;
    return continues(begin) ? n : begin;  // n if it is no UTF-8
  }

  // The length of the longest end of the text that a stop string begins with.
  std::size_t longest_partial_stop() const {
    std::size_t longest = 0;
    const std::string_view text(text_);
    for (const auto& stop : stops_) {
      for (std::size_t n = (std::min)(stop.size() - 1, text.size()); n > longest; --n) {
        if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
      }
    }
    return longest;
  }

  std::pmr::vector<std::pmr::string> stops_;
  std::pmr::string text_;  // n_ready_ bytes that may be shown, then those held back
  std::size_t n_ready_ = 0;
  std::size_t most_text_ = 0;
};

}  // namespace mixtral

#endif  // MIXTRAL_STOP_STRINGS_HPP_
