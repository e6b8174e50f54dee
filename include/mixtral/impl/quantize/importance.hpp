#ifndef MIXTRAL_IMPL_QUANTIZE_IMPORTANCE_HPP_
#define MIXTRAL_IMPL_QUANTIZE_IMPORTANCE_HPP_

#include <algorithm>
#include <cmath>
#include <string>

#include "mixtral/impl/gguf_names.hpp"
#include "mixtral/impl/quantize/encode.hpp"
#include "mixtral/impl/quantize/gguf_builder.hpp"
#include "mixtral/importance.hpp"

namespace mixtral {

void Importance::on_input(Role role, std::uint32_t layer, std::uint32_t expert,
                          Span<const float> input) {
  const Status added = detail::guard_memory("gathering importance", [&]() -> Status {
    Sum& sum =
        sums_.try_emplace(Key(layer, role, expert), sums_.get_allocator().resource()).first->second;
    if (sum.squares.empty()) sum.squares.resize(input.size());
    if (sum.squares.size() != input.size()) {
      return Error(ErrorCode::invalid_argument, "%zu columns, but %zu were gathered before",
                   input.size(), sum.squares.size());
    }
    for (std::size_t i = 0; i < input.size(); ++i) {
      const auto x = static_cast<double>(input[i]);
      sum.squares[i] += x * x;
    }
    sum.count += 1.0;
    return {};
  });
  if (!added) complete_ = false;
}

bool Importance::find(Role role, std::uint32_t layer, std::uint32_t expert, std::size_t n_cols,
                      float* out) const {
  const Role gathered = shared(role);
  const auto of_expert = [&](std::uint32_t e) -> const Sum* {
    const auto found = sums_.find(Key(layer, gathered, e));
    if (found == sums_.end() || found->second.squares.size() != n_cols) return nullptr;
    return found->second.count > 0.0 ? &found->second : nullptr;
  };
  const auto mean = [](const Sum& sum, std::size_t i) {
    return static_cast<float>(sum.squares[i] / sum.count);
  };
  if (const Sum* sum = of_expert(expert)) {
    for (std::size_t i = 0; i < n_cols; ++i) out[i] = mean(*sum, i);
    return true;
  }
  if (role != Role::w1 && role != Role::w2 && role != Role::w3) return false;
  std::uint32_t n = 0;
  for (std::uint32_t e = 0; e < n_experts_; ++e) {
    const Sum* sum = of_expert(e);
    if (sum == nullptr) continue;
    if (n++ == 0) std::fill(out, out + n_cols, 0.0f);
    for (std::size_t i = 0; i < n_cols; ++i) out[i] += mean(*sum, i);
  }
  for (std::size_t i = 0; n != 0 && i < n_cols; ++i) out[i] /= static_cast<float>(n);
  return n != 0;
}

Result<std::pmr::vector<std::uint8_t>> Importance::to_gguf() const {
  if (sums_.empty()) {
    return Error(ErrorCode::invalid_argument,
                 "no importance was gathered; evaluate some text with it as observer first");
  }
  std::pmr::memory_resource* resource = sums_.get_allocator().resource();
  return detail::guard_memory(
      "writing importance", [&]() -> Result<std::pmr::vector<std::uint8_t>> {
        detail::GgufBuilder builder(resource);
        builder.add_string("general.type", "imatrix");
        builder.add_u32("imatrix.chunk_count", 1);
        builder.add_u32("imatrix.chunk_size", 1);
        builder.begin_array("imatrix.datasets", gguf::ValueType::string, 0);
        std::pmr::vector<float> data(resource);
        const auto pad = [&] { data.resize(detail::aligned(data.size() * 4) / 4); };
        // One matrix, or all experts of a layer, for each name that it has in a model's file.
        for (auto at = sums_.begin(); at != sums_.end();) {
          const std::uint32_t layer = std::get<0>(at->first);
          const Role role = std::get<1>(at->first);
          const std::size_t n_cols = at->second.squares.size();
          const bool is_expert = role == Role::w1 || role == Role::w2;
          const std::uint32_t n = is_expert ? n_experts_ : 1;
          const auto add = [&](Role of) {
            char name[64];
            const std::size_t length =
                detail::format_tensor_name(of, layer, is_expert && n > 1, name);
            const auto tensor_name = [&](const char* end) {
              return std::string_view(
                  name, length + static_cast<std::size_t>(std::snprintf(
                                     name + length, sizeof name - length, "%s", end)));
            };
            builder.add_tensor(tensor_name(".in_sum2"), BlockFormat::f32, {n_cols, n},
                               std::uint64_t{n_cols} * n * 4);
            builder.add_tensor(tensor_name(".counts"), BlockFormat::f32, {1, n},
                               std::uint64_t{n} * 4);
            // Null for an expert of which nothing, or another number of columns, was gathered.
            const auto sum_of = [&](std::uint32_t e) -> const Sum* {
              const auto sum = sums_.find(Key(layer, role, e));
              if (sum == sums_.end() || sum->second.squares.size() != n_cols) return nullptr;
              return &sum->second;
            };
            for (std::uint32_t e = 0; e < n; ++e) {
              const Sum* sum = sum_of(e);
              for (std::size_t i = 0; i < n_cols; ++i) {
                data.push_back(sum == nullptr ? 0.0f : static_cast<float>(sum->squares[i]));
              }
            }
            pad();
            for (std::uint32_t e = 0; e < n; ++e) {
              const Sum* sum = sum_of(e);
              data.push_back(sum == nullptr ? 0.0f : static_cast<float>(sum->count));
            }
            pad();
          };
          add(role);
          if (role == Role::wq) {
            add(Role::wk);
            add(Role::wv);
          }
          if (role == Role::w1) add(Role::w3);
          while (at != sums_.end() && std::get<0>(at->first) == layer &&
                 std::get<1>(at->first) == role) {
            ++at;
          }
        }
        std::pmr::vector<std::uint8_t> out = builder.head();
        const std::size_t head = out.size();
        out.resize(head + data.size() * 4);
        for (std::size_t i = 0; i < data.size(); ++i) {
          detail::encode_f32(&data[i], 1, out.data() + head + 4 * i);
        }
        return out;
      });
}

Result<Importance> Importance::read(Span<const std::uint8_t> bytes, const Config& config,
                                    std::pmr::memory_resource* resource) {
  return detail::guard_memory("reading importance", [&]() -> Result<Importance> {
    const Result<gguf::File> file = gguf::File::parse(bytes, resource);
    if (!file) return file.error();
    const auto number = [](const gguf::Tensor& tensor, std::uint64_t i) {
      float value;
      std::memcpy(&value, tensor.data + 4 * i, 4);
      return static_cast<double>(value);
    };
    constexpr std::string_view kSums = ".in_sum2";
    constexpr std::string_view kCounts = ".counts";
    // What find() gives of a file is finite in float32, also where it adds up the means of all experts.
    constexpr double kMostMean = 1e30;
    Importance importance(config, resource);
    for (const gguf::Tensor& sums : file->tensors()) {
      if (sums.name.size() < kSums.size() ||
          sums.name.substr(sums.name.size() - kSums.size()) != kSums) {
        continue;
      }
      const std::string_view of = sums.name.substr(0, sums.name.size() - kSums.size());
      const int length = static_cast<int>(std::min<std::size_t>(of.size(), 80));
      const auto name = detail::parse_tensor_name(of);
      if (!name || shared(name->role) != name->role) continue;
      std::pmr::string counts_name(of, resource);
      counts_name += kCounts;
      const gguf::Tensor* counts = file->find_tensor(counts_name);
      const std::uint64_t n_cols = sums.shape[0];
      const std::uint64_t n = sums.shape[1];
      if (counts == nullptr || counts->format != BlockFormat::f32 ||
          sums.format != BlockFormat::f32 || sums.n_dims > 2 || counts->n_dims > 2 ||
          counts->shape[0] * counts->shape[1] != n) {
        return Error(ErrorCode::bad_format,
                     "importance of '%.*s': expected F32 tensors in_sum2 of [columns, n] and "
                     "counts of [1, n]",
                     length, of.data());
      }
      for (std::uint64_t m = 0; m < n && m < config.n_experts; ++m) {
        const double count = number(*counts, m);
        const std::uint32_t expert = name->expert + static_cast<std::uint32_t>(m);
        const Key key(name->layer, name->role, expert);
        Sum& sum = importance.sums_.try_emplace(key, resource).first->second;
        sum.squares.assign(static_cast<std::size_t>(n_cols), 0.0);
        sum.count = count;
        for (std::uint64_t i = 0; i < n_cols; ++i) {
          const double square = number(sums, m * n_cols + i);
          if (!(count >= 0.0 && count < 1e30 && square >= 0.0 && square < 1e38) ||
              (count > 0.0 && square > kMostMean * count)) {
            return Error(ErrorCode::bad_format,
                         "importance of '%.*s': a sum of squares or a count is no such number, or "
                         "their mean is above %g",
                         length, of.data(), kMostMean);
          }
          sum.squares[static_cast<std::size_t>(i)] = square;
        }
      }
    }
    if (importance.sums_.empty()) {
      return Error(
          ErrorCode::bad_format,
          "the file has no tensor '*.in_sum2' of this model; expected an importance matrix "
          "in GGUF (older .dat files must be converted)");
    }
    return importance;
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_QUANTIZE_IMPORTANCE_HPP_
