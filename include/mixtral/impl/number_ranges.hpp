// Decimal numbers from one to another, as GBNF.
#ifndef MIXTRAL_IMPL_NUMBER_RANGES_HPP_
#define MIXTRAL_IMPL_NUMBER_RANGES_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mixtral::detail {

inline std::int64_t power_of_10(int n) {
  std::int64_t power = 1;
  for (; n > 0; --n) power *= 10;
  return power;
}

// Digits [at, size) from those of `low` to those of `high`, which are as many and not less. Recurses at most
// once for each digit, of which there are 19 at most.
inline std::string digits_between(const std::string& low, const std::string& high, std::size_t at,
                                  std::size_t n_after) {
  std::string out;
  const auto put = [&](char from, char to, std::size_t place) {
    if (n_after > 0 && place == low.size() - n_after) out += "\".\" ";
    out += '[';
    out += from;
    if (to != from) {
      out += '-';
      out += to;
    }
    out += "] ";
  };
  while (at < low.size() && low[at] == high[at]) {
    put(low[at], low[at], at);
    ++at;
  }
  if (at == low.size()) return out;
  const auto any = [&](std::size_t from) {
    for (std::size_t i = from; i < low.size(); ++i) put('0', '9', i);
  };
  const bool from_zeros = low.find_first_not_of('0', at + 1) == std::string::npos;
  const bool to_nines = high.find_first_not_of('9', at + 1) == std::string::npos;
  const auto first = static_cast<char>(from_zeros ? low[at] : low[at] + 1);
  const auto last = static_cast<char>(to_nines ? high[at] : high[at] - 1);
  out += '(';
  const char* separator = "";
  if (!from_zeros) {
    put(low[at], low[at], at);
    out += digits_between(low, low.substr(0, at + 1) + std::string(low.size() - at - 1, '9'),
                          at + 1, n_after);
    separator = " | ";
  }
  if (first <= last) {
    out += separator;
    put(first, last, at);
    any(at + 1);
    separator = " | ";
  }
  if (!to_nines) {
    out += separator;
    put(high[at], high[at], at);
    out += digits_between(high.substr(0, at + 1) + std::string(high.size() - at - 1, '0'), high,
                          at + 1, n_after);
  }
  out += ")";
  return out;
}

// The numbers low to high, not negative, with the last n digits after a point.
inline std::string gbnf_of_range(std::int64_t low, std::int64_t high, int n) {
  std::string choice;
  const auto text = [n](std::int64_t value) {
    std::string digits = std::to_string(value);
    const auto least = static_cast<std::size_t>(n) + 1;
    if (digits.size() < least) digits.insert(0, least - digits.size(), '0');
    return digits;
  };
  // By number of digits.
  for (std::int64_t begin = low; begin <= high;) {
    const std::string from = text(begin);
    const auto n_digits = static_cast<int>(from.size());  // 19 of 10^18, the largest
    const std::int64_t end = n_digits < 19 ? std::min(power_of_10(n_digits) - 1, high) : high;
    choice += (choice.empty() ? "" : " | ") +
              digits_between(from, text(end), 0, static_cast<std::size_t>(n));
    begin = end + 1;
  }
  return "(" + choice + ")";
}

}  // namespace mixtral::detail

#endif  // MIXTRAL_IMPL_NUMBER_RANGES_HPP_
