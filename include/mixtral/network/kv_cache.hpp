// The keys and values of the past, in pages that several sessions can share.
#ifndef MIXTRAL_NETWORK_KV_CACHE_HPP_
#define MIXTRAL_NETWORK_KV_CACHE_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mixtral/config.hpp"
#include "mixtral/impl/slab.hpp"
#include "mixtral/network/activations.hpp"
#include "mixtral/simd/kernels.hpp"

namespace mixtral::detail {

// Memory for a number of pages and how often each is used. A page is
// [layer][keys, values][kv head][position][head_size] in one of the formats that attention reads.
class KvPages {
 public:
  static constexpr std::size_t n_needed(std::size_t n_positions) {
    return (n_positions + simd::kPagePositions - 1) / simd::kPagePositions;
  }

  void take(Slab& slab, const Config& config, BlockFormat format, std::size_t n_pages) {
    const BlockFormatInfo& info = *block_format_info(format);
    format_ = format;
    row_bytes_ = config.head_size / info.block_size * info.block_bytes;
    head_bytes_ = row_bytes_ * simd::kPagePositions;
    n_kv_heads_ = config.n_kv_heads;
    n_streams_ = 2 * std::size_t{config.n_layers} * config.n_kv_heads;
    n_pages_ = n_pages;
    users_ = slab.take<std::uint32_t>(n_pages);
    free_ = slab.take<std::uint32_t>(n_pages);
    bytes_ = slab.take<std::uint8_t>(n_pages * page_bytes());
    if (users_ == nullptr) return;
    for (std::size_t i = 0; i < n_pages; ++i) {
      users_[i] = 0;
      free_[i] = static_cast<std::uint32_t>(n_pages - 1 - i);  // the first page is taken first
    }
    n_free_ = n_pages;
  }

  BlockFormat format() const noexcept { return format_; }
  std::size_t row_bytes() const noexcept { return row_bytes_; }
  std::size_t page_bytes() const noexcept { return n_streams_ * head_bytes_; }
  std::size_t n_pages() const noexcept { return n_pages_; }
  std::size_t n_free() const noexcept { return n_free_; }

  // A free page, for one user. Only if n_free() is not 0.
  std::uint32_t take_page() noexcept {
    const std::uint32_t page = free_[--n_free_];
    users_[page] = 1;
    return page;
  }
  void add_user(std::uint32_t page) noexcept { ++users_[page]; }
  void drop(std::uint32_t page) noexcept {
    if (--users_[page] == 0) free_[n_free_++] = page;
  }
  bool is_shared(std::uint32_t page) const noexcept { return users_[page] > 1; }

  std::size_t n_streams() const noexcept { return n_streams_; }

  // Copies the first n positions.
  void copy(std::uint32_t from, std::uint32_t to, std::size_t n) noexcept {
    for (std::size_t i = 0; i < n_streams_; ++i) {
      std::memcpy(stream(to, i), stream(from, i), n * row_bytes_);
    }
  }

  std::uint8_t* bytes() const noexcept { return bytes_; }
  // The rows of one head's keys or values in a page.
  std::uint8_t* stream(std::uint32_t page, std::size_t i) const noexcept {
    return bytes_ + page * page_bytes() + i * head_bytes_;
  }
  // Where in a page the keys of a head begin; its values are values_after() further.
  std::size_t head(std::size_t layer, std::size_t head) const noexcept {
    return (2 * layer * n_kv_heads_ + head) * head_bytes_;
  }
  std::size_t values_after() const noexcept { return n_kv_heads_ * head_bytes_; }

 private:
  BlockFormat format_ = BlockFormat::f32;
  std::size_t row_bytes_ = 0;
  std::size_t head_bytes_ = 0;
  std::size_t n_kv_heads_ = 0;
  std::size_t n_streams_ = 0;  // keys and values of all layers and heads
  std::size_t n_pages_ = 0;
  std::size_t n_free_ = 0;
  std::uint32_t* users_ = nullptr;
  std::uint32_t* free_ = nullptr;  // a stack of n_free_
  std::uint8_t* bytes_ = nullptr;
};

// The pages with one session's past: those of the positions [first(), end), of which the pages before
// first() were given back.
class KvPast {
 public:
  void take(Slab& slab, KvPages& pages, std::size_t n_positions) {
    pages_ = &pages;
    page_of_ = slab.take<std::uint32_t>(KvPages::n_needed(n_positions));
  }

  BlockFormat format() const noexcept { return pages_->format(); }

  bool is_empty() const noexcept { return first_page_ == end_page_; }
  // The first position whose page is held.
  std::size_t first() const noexcept { return first_page_ * simd::kPagePositions; }

  // How many free pages prepare() would take.
  std::size_t n_pages_to_take(std::size_t begin, std::size_t end) const noexcept {
    std::size_t n = 0;
    for (std::size_t p = begin / simd::kPagePositions; p < KvPages::n_needed(end); ++p) {
      n += p >= end_page_ || pages_->is_shared(page_of_[p]) ? 1 : 0;
    }
    return n;
  }

  // Makes the positions [begin, end) writable, of which those before `begin` stay as they are; `begin`
  // is not after the held pages. Only if there are free pages enough.
  void prepare(std::size_t begin, std::size_t end) noexcept {
    for (std::size_t p = begin / simd::kPagePositions; p < KvPages::n_needed(end); ++p) {
      if (p >= end_page_) {
        page_of_[p] = pages_->take_page();
        end_page_ = p + 1;
      } else if (pages_->is_shared(page_of_[p])) {
        const std::uint32_t own = pages_->take_page();
        const std::size_t start = p * simd::kPagePositions;
        if (begin > start) pages_->copy(page_of_[p], own, begin - start);
        pages_->drop(page_of_[p]);
        page_of_[p] = own;
      }
    }
  }

  // The past begins with the page of `position`. Only if it is empty.
  void begin_at(std::size_t position) noexcept {
    first_page_ = end_page_ = position / simd::kPagePositions;
  }

  // Takes out the positions [begin, begin + n), n in whole pages: those after them come to lie n
  // earlier. If the first ones are still there, those before `begin` stay, in pages that no other
  // session uses; if not, they go, too. Positions after these are left. False, and nothing changes,
  // if there are too few free pages.
  bool take_out(std::size_t begin, std::size_t n) noexcept {
    constexpr std::size_t kSize = simd::kPagePositions;
    const std::size_t page = begin / kSize;  // keeps its first `rest` positions
    const std::size_t rest = begin % kSize;
    const std::size_t shift = n / kSize;
    const bool keeps = first_page_ == 0;
    if (keeps) {
      const auto is_shared = [&](std::size_t p) { return pages_->is_shared(page_of_[p]); };
      std::size_t n_needed = rest != 0 && is_shared(page + shift) ? 1 : 0;
      for (std::size_t p = 0; p < page; ++p) n_needed += is_shared(p) ? 1 : 0;
      if (n_needed > pages_->n_free()) return false;
      for (std::size_t p = 0; p < page; ++p) own(p);
      if (rest != 0) {
        own(page + shift);
        pages_->copy(page_of_[page], page_of_[page + shift], rest);
      }
    }
    const std::size_t first_kept = keeps ? page : 0;  // pages [first_kept, first_moved) go
    const std::size_t first_moved = page + shift + (keeps || rest == 0 ? 0 : 1);
    for (std::size_t p = std::max(first_page_, first_kept); p < first_moved; ++p) {
      pages_->drop(page_of_[p]);
    }
    const std::size_t from = std::max(first_page_, first_moved);
    std::copy(page_of_ + from, page_of_ + end_page_, page_of_ + from - shift);
    if (!keeps) first_page_ = from - shift;
    end_page_ -= shift;
    return true;
  }

  // Gives back the pages that lie wholly before `position`.
  void drop_before(std::size_t position) noexcept {
    while (first_page_ < end_page_ && (first_page_ + 1) * simd::kPagePositions <= position) {
      pages_->drop(page_of_[first_page_++]);
    }
  }

  // Gives back the pages that lie wholly from `position` on.
  void drop_from(std::size_t position) noexcept {
    while (first_page_ < end_page_ && (end_page_ - 1) * simd::kPagePositions >= position) {
      pages_->drop(page_of_[--end_page_]);
    }
    if (first_page_ == end_page_) first_page_ = end_page_ = 0;
  }

  // Uses the pages that `other` has for its first n positions.
  void share(const KvPast& other, std::size_t n) noexcept {
    drop_from(0);
    first_page_ = other.first_page_;
    end_page_ = KvPages::n_needed(n) < first_page_ ? first_page_ : KvPages::n_needed(n);
    for (std::size_t p = first_page_; p < end_page_; ++p) {
      page_of_[p] = other.page_of_[p];
      pages_->add_user(page_of_[p]);
    }
  }

  // Calls visit(bytes, size) for the rows of [first(), end) as they lie in memory, page after page.
  template <class Visit>
  void for_each_run(std::size_t end, Visit visit) const {
    for (std::size_t p = first_page_; p < KvPages::n_needed(end); ++p) {
      const std::size_t n = std::min(end - p * simd::kPagePositions, simd::kPagePositions);
      for (std::size_t i = 0; i < pages_->n_streams(); ++i) {
        visit(pages_->stream(page_of_[p], i), n * pages_->row_bytes());
      }
    }
  }

  std::uint8_t* key(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return pages_->bytes() + page_of_[position / simd::kPagePositions] * pages_->page_bytes() +
           pages_->head(layer, head) + position % simd::kPagePositions * pages_->row_bytes();
  }
  std::uint8_t* value(std::size_t layer, std::size_t head, std::size_t position) const noexcept {
    return key(layer, head, position) + pages_->values_after();
  }

  simd::KeysAndValues head(std::size_t layer, std::size_t head) const noexcept {
    const std::size_t keys = pages_->head(layer, head);
    return {
        pages_->bytes(),     pages_->page_bytes(), page_of_, keys, keys + pages_->values_after(),
        pages_->row_bytes(), pages_->format()};
  }

 private:
  // Makes page p one that no other session uses. Needs a free page if it is not.
  void own(std::size_t p) noexcept {
    if (!pages_->is_shared(page_of_[p])) return;
    const std::uint32_t copy = pages_->take_page();
    pages_->copy(page_of_[p], copy, simd::kPagePositions);
    pages_->drop(page_of_[p]);
    page_of_[p] = copy;
  }

  KvPages* pages_ = nullptr;
  std::uint32_t* page_of_ = nullptr;  // [position / kPagePositions]
  std::size_t first_page_ = 0;
  std::size_t end_page_ = 0;
};

}  // namespace mixtral::detail

#endif  // MIXTRAL_NETWORK_KV_CACHE_HPP_
