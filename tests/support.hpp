// What the tests share: files, a GGUF writer, small synthetic models, a double-precision reference.
#ifndef MIXTRAL_TESTS_SUPPORT_HPP_
#define MIXTRAL_TESTS_SUPPORT_HPP_

#include <doctest/doctest.h>
#include <mixtral/mixtral.hpp>
#include <mixtral/simd/kernels.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "sanitized.hpp"

namespace support {

constexpr std::size_t kOutRows = mixtral::simd::kMaxMatmulRows;

// Room for the results of kernels.
struct Results {
  std::vector<float> memory;
  float* values;

  Results() : memory(mixtral::simd::kMaxMatmulTokens * kOutRows + 16) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    values = memory.data() + (64 - address % 64) / 4;
  }
  float at(std::size_t token, std::size_t row) const { return values[token * kOutRows + row]; }
};

// Of every SIMD target that this machine runs, best first.
inline std::vector<const mixtral::simd::Kernels*> all_kernels() {
  std::vector<const mixtral::simd::Kernels*> all;
  mixtral::simd::for_each_kernels(
      [](void* context, const mixtral::simd::Kernels& kernels) {
        static_cast<std::vector<const mixtral::simd::Kernels*>*>(context)->push_back(&kernels);
      },
      &all);
  return all;
}

// Whether there is one whose results are the same bits as those of the others like it.
inline bool any_target_fuses() {
  for (const mixtral::simd::Kernels* kernels : all_kernels()) {
    if (kernels->fuses) return true;
  }
  return false;
}
constexpr const char* kFusing = "a SIMD target that multiplies and adds in one step";

// How often operator new was called so far (main.cpp).
std::size_t heap_allocations();

using Blob = std::vector<std::uint8_t>;

// Whether a text has a part, such as a word that an error must tell.
inline bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

inline Blob read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), "cannot read ", path);
  // At once: one by one takes seconds with sanitizers.
  Blob bytes(std::filesystem::file_size(path));
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(in.good());
  return bytes;
}

inline std::string source(const std::string& path) {
  return std::string(MIXTRAL_SOURCE_DIR "/") + path;
}
inline std::string bundled_model() { return source("examples/models/tiny-mixtral-Q8_0.gguf"); }

// What a test case needs, which a machine may lack: TEST_CASE("..." * needs(...)). Without it the case
// counts as skipped, and main.cpp tells what is missing.
struct Needs {
  std::string what;
  bool is_there = false;
  const char* suite = nullptr;

  void fill(doctest::detail::TestCase& test) const {
    if (suite != nullptr) test.m_test_suite = suite;
    if (is_there || test.m_skip) return;
    static std::list<std::string> reasons;  // doctest keeps pointers
    test.m_skip = true;
    test.m_description = reasons.emplace_back("needs " + what).c_str();
  }
};
inline Needs needs(bool is_there, const std::string& what) { return {what, is_there}; }

// The files that stand beside the project where it is developed. The cases that need them are a suite, which
// is a test of its own for ctest, so that it shows where they are skipped.
inline std::string shared(const std::string& path) {
  return std::string(MIXTRAL_SOURCE_DIR "/../shared/") + path;
}
inline Needs needs_shared(const std::string& path) {
  return {"../shared/" + path, std::filesystem::exists(shared(path)), "shared"};
}

inline nlohmann::json golden() {
  const Blob text = read_file(source("tests/data/golden.json"));
  return nlohmann::json::parse(text.begin(), text.end());
}

inline nlohmann::json golden(const std::string& name) {
  for (const auto& entry : golden()) {
    if (entry["name"] == name) return entry;
  }
  FAIL("no golden data named ", name);
  return {};
}

inline mixtral::Span<const std::uint8_t> bytes(const Blob& blob) {
  return {blob.data(), blob.size()};
}

template <class T>
T value(mixtral::Result<T> result) {
  REQUIRE_MESSAGE(static_cast<bool>(result), (result ? "" : result.error().message()));
  return *std::move(result);
}

inline mixtral::Model open(const std::string& path, std::int64_t simd_targets = 0) {
  mixtral::ModelOptions options;
  options.simd_targets = simd_targets;
  return value(mixtral::Model::open(path.c_str(), options));
}

inline mixtral::Model open(const Blob& blob) {
  return value(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(blob))));
}

// Bytes of its own, for a blob that is gone when the model is used.
inline mixtral::Bytes owned(const Blob& blob) {
  const auto copy = [](void* context, std::uint64_t offset, void* to, std::size_t size) {
    std::memcpy(to, static_cast<const Blob*>(context)->data() + offset, size);
    return true;
  };
  return value(mixtral::Bytes::read_all(blob.size(), copy, const_cast<Blob*>(&blob),
                                        std::pmr::get_default_resource()));
}

inline mixtral::Model open(Blob&& blob) { return value(mixtral::Model::from_bytes(owned(blob))); }

inline mixtral::Session session(const mixtral::Model& model, std::uint32_t context = 0,
                                std::uint32_t batch = 256, mixtral::Executor executor = {}) {
  mixtral::SessionOptions options;
  options.context = context;
  options.batch = batch;
  options.kv_format = mixtral::BlockFormat::f32;  // as the references keep keys and values
  options.executor = executor;
  return value(mixtral::Session::open(model, options));
}

inline mixtral::Span<const mixtral::Token> span(const std::vector<mixtral::Token>& tokens) {
  return {tokens.data(), tokens.size()};
}

// Keeps everything that an evaluation shows.
struct Recorder : mixtral::Observer {
  bool wants_all_logits() const override { return true; }
  void on_logits(std::uint32_t position, mixtral::Span<const float> row) override {
    CHECK(position == logits.size());
    logits.emplace_back(row.begin(), row.end());
  }
  void on_router(std::uint32_t layer, std::uint32_t position,
                 mixtral::Span<const std::uint32_t> chosen,
                 mixtral::Span<const float> shares) override {
    experts[{layer, position}] = {chosen.begin(), chosen.end()};
    weights[{layer, position}] = {shares.begin(), shares.end()};
  }

  std::vector<std::vector<float>> logits;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<std::uint32_t>> experts;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<float>> weights;
};

// Sets `most` to `value` if that is larger. NaN is larger than all numbers, whichever of the two it is;
// std::max would lose it.
inline void keep_largest(double& most, double value) {
  if (std::isnan(value) || value > most) most = value;
}

inline double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    keep_largest(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return most;
}

// Options under which a model of any training generates exactly n tokens.
inline mixtral::GenerateOptions exactly(std::uint32_t n, const mixtral::Model& model) {
  mixtral::GenerateOptions options;
  options.max_tokens = n;
  options.sampling.logit_bias = {
      {model.tokenizer().eos(), -std::numeric_limits<float>::infinity()}};
  return options;
}

// All logits of `tokens`, evaluated at once.
inline Recorder evaluate(const mixtral::Model& model, const std::vector<mixtral::Token>& tokens) {
  mixtral::Session s = session(model, static_cast<std::uint32_t>(tokens.size()));
  Recorder recorder;
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate(&recorder));
  return recorder;
}

// Writes GGUF version 3 (ggml/docs/gguf.md) into memory.
class GgufWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> shape;  // row length first
    std::uint32_t type = 0;
    Blob data;
  };

  void uint32(const std::string& key, std::uint32_t v) { scalar(key, 4, v); }
  void float32(const std::string& key, float v) { scalar(key, 6, v); }
  void boolean(const std::string& key, bool v) { scalar(key, 7, static_cast<std::uint8_t>(v)); }
  void string(const std::string& key, const std::string& v) {
    begin(key, 8);
    put_string(v, metadata);
  }
  template <class T>
  void scalar(const std::string& key, std::uint32_t type, T v) {
    begin(key, type);
    put(v, metadata);
  }
  template <class T>
  void array(const std::string& key, std::uint32_t type, const std::vector<T>& values) {
    begin(key, 9);
    put(type, metadata);
    put(static_cast<std::uint64_t>(values.size()), metadata);
    for (const T& v : values) put(v, metadata);
  }
  void strings(const std::string& key, const std::vector<std::string>& values) {
    begin(key, 9);
    put(std::uint32_t{8}, metadata);
    put(static_cast<std::uint64_t>(values.size()), metadata);
    for (const auto& v : values) put_string(v, metadata);
  }

  Blob finish() const {
    Blob out;
    for (const char c : {'G', 'G', 'U', 'F'}) out.push_back(static_cast<std::uint8_t>(c));
    put(version, out);
    put(static_cast<std::uint64_t>(tensors.size()), out);
    put(n_keys, out);
    out.insert(out.end(), metadata.begin(), metadata.end());
    std::uint64_t offset = 0;
    for (const Tensor& tensor : tensors) {
      put_string(tensor.name, out);
      put(static_cast<std::uint32_t>(tensor.shape.size()), out);
      for (const std::uint64_t n : tensor.shape) put(n, out);
      put(tensor.type, out);
      put(offset, out);
      offset += (tensor.data.size() + 31) / 32 * 32;
    }
    out.resize((out.size() + 31) / 32 * 32);
    for (const Tensor& tensor : tensors) {
      out.insert(out.end(), tensor.data.begin(), tensor.data.end());
      out.resize((out.size() + 31) / 32 * 32);
    }
    return out;
  }

  std::uint32_t version = 3;
  std::vector<Tensor> tensors;
  Blob metadata;
  std::uint64_t n_keys = 0;

  template <class T>
  static void put(T v, Blob& out) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(&v);
    out.insert(out.end(), from, from + sizeof v);
  }
  static void put_string(const std::string& v, Blob& out) {
    put(static_cast<std::uint64_t>(v.size()), out);
    out.insert(out.end(), v.begin(), v.end());
  }

 private:
  void begin(const std::string& key, std::uint32_t type) {
    put_string(key, metadata);
    put(type, metadata);
    ++n_keys;
  }
};

// A random float32 model of any shape, to be written as GGUF and to be computed in double.
struct Synthetic {
  std::uint32_t dim = 24, n_layers = 2, n_heads = 4, n_kv_heads = 2, head_size = 10,
                hidden_dim = 40, n_experts = 4, n_experts_used = 2, vocab_size = 300,
                context_length = 64;
  std::uint32_t sliding_window = 0;
  float rope_theta = 10000.0f, norm_epsilon = 1e-5f, rope_linear_factor = 1.0f;
  bool tied_output = false;
  bool merged_experts = true;

  using Matrix = std::vector<std::vector<float>>;
  struct Layer {
    std::vector<float> attention_norm, ffn_norm;
    Matrix wq, wk, wv, wo, router;
    std::vector<Matrix> w1, w2, w3;
  };
  Matrix embedding, output;
  std::vector<float> output_norm;
  std::vector<Layer> layers;

  void randomize(unsigned seed) {
    // The same numbers with every compiler and its flags: no product of those here is rounded before it is
    // added to something.
    std::mt19937 random(seed);
    const auto bits = [&] { return static_cast<std::int32_t>(random() >> 8); };  // 24
    const auto matrix = [&](std::uint32_t rows, std::uint32_t cols) {
      // Four uniform numbers together are nearly normal; their variance is a third of 2^48.
      const float scale = std::sqrt(3.0f / static_cast<float>(cols)) * 0x1p-24f;
      Matrix m(rows, std::vector<float>(cols));
      for (auto& row : m) {
        for (float& v : row) {
          std::int32_t sum = -(1 << 25);
          for (int i = 0; i < 4; ++i) sum += bits();
          v = static_cast<float>(sum) * scale;
        }
      }
      return m;
    };
    const auto vector = [&](std::uint32_t n) {
      std::vector<float> v(n);
      for (float& x : v) x = 0.5f + static_cast<float>(bits()) * 0x1p-24f;
      return v;
    };
    embedding = matrix(vocab_size, dim);
    for (auto& row : embedding) {
      for (float& v : row) v *= 4.0f;
    }
    output = matrix(vocab_size, dim);
    if (tied_output) output = embedding;
    output_norm = vector(dim);
    layers.assign(n_layers, {});
    for (Layer& layer : layers) {
      layer.attention_norm = vector(dim);
      layer.ffn_norm = vector(dim);
      layer.wq = matrix(n_heads * head_size, dim);
      layer.wk = matrix(n_kv_heads * head_size, dim);
      layer.wv = matrix(n_kv_heads * head_size, dim);
      layer.wo = matrix(dim, n_heads * head_size);
      layer.router = matrix(n_experts, dim);
      for (std::uint32_t e = 0; e < n_experts; ++e) {
        layer.w1.push_back(matrix(hidden_dim, dim));
        layer.w2.push_back(matrix(dim, hidden_dim));
        layer.w3.push_back(matrix(hidden_dim, dim));
      }
    }
  }

  GgufWriter writer() const {
    GgufWriter gguf;
    gguf.string("general.architecture", "llama");
    gguf.uint32("llama.embedding_length", dim);
    gguf.uint32("llama.block_count", n_layers);
    gguf.uint32("llama.feed_forward_length", hidden_dim);
    gguf.uint32("llama.attention.head_count", n_heads);
    gguf.uint32("llama.attention.head_count_kv", n_kv_heads);
    gguf.uint32("llama.context_length", context_length);
    gguf.float32("llama.attention.layer_norm_rms_epsilon", norm_epsilon);
    gguf.float32("llama.rope.freq_base", rope_theta);
    if (head_size != dim / n_heads) gguf.uint32("llama.attention.key_length", head_size);
    if (rope_linear_factor != 1.0f) {
      gguf.string("llama.rope.scaling.type", "linear");
      gguf.float32("llama.rope.scaling.factor", rope_linear_factor);
    }
    if (sliding_window != 0) gguf.uint32("llama.attention.sliding_window", sliding_window);
    if (n_experts > 1) {
      gguf.uint32("llama.expert_count", n_experts);
      gguf.uint32("llama.expert_used_count", n_experts_used);
    }
    add_vocabulary(gguf);
    add(gguf, "token_embd.weight", {embedding});
    add(gguf, "output_norm.weight", {{output_norm}});
    if (!tied_output) add(gguf, "output.weight", {output});
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const Layer& layer = layers[l];
      const std::string prefix = "blk." + std::to_string(l) + ".";
      add(gguf, prefix + "attn_norm.weight", {{layer.attention_norm}});
      add(gguf, prefix + "ffn_norm.weight", {{layer.ffn_norm}});
      add(gguf, prefix + "attn_q.weight", {layer.wq});
      add(gguf, prefix + "attn_k.weight", {layer.wk});
      add(gguf, prefix + "attn_v.weight", {layer.wv});
      add(gguf, prefix + "attn_output.weight", {layer.wo});
      if (n_experts > 1) add(gguf, prefix + "ffn_gate_inp.weight", {layer.router});
      add_experts(gguf, prefix + "ffn_gate", layer.w1);
      add_experts(gguf, prefix + "ffn_down", layer.w2);
      add_experts(gguf, prefix + "ffn_up", layer.w3);
    }
    return gguf;
  }

  // The published formulas, one by one, in double: logits after every token.
  // In a model of one layer, only those that follow the positions `wanted`, if there are any: others
  // are there for their keys and values alone.
  std::vector<std::vector<float>> reference(const std::vector<mixtral::Token>& tokens,
                                            const std::vector<std::size_t>& wanted = {}) const;

  // Three special pieces, 256 bytes, then filler.
  void add_vocabulary(GgufWriter& gguf) const {
    std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
    std::vector<std::int32_t> types = {2, 3, 3};
    for (int b = 0; b < 256; ++b) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", static_cast<unsigned>(b));
      pieces.emplace_back(text);
      types.push_back(6);
    }
    while (pieces.size() < vocab_size) {
      pieces.push_back("piece" + std::to_string(pieces.size()));
      types.push_back(1);
    }
    gguf.string("tokenizer.ggml.model", "llama");
    gguf.strings("tokenizer.ggml.tokens", pieces);
    gguf.array("tokenizer.ggml.scores", 6, std::vector<float>(pieces.size(), 0.0f));
    gguf.array("tokenizer.ggml.token_type", 5, types);
  }

 private:
  static void add(GgufWriter& gguf, const std::string& name, const std::vector<Matrix>& parts) {
    GgufWriter::Tensor tensor;
    tensor.name = name;
    tensor.shape = {parts[0][0].size()};
    if (parts[0].size() > 1) tensor.shape.push_back(parts[0].size());
    if (parts.size() > 1) tensor.shape.push_back(parts.size());
    for (const Matrix& part : parts) {
      for (const auto& row : part) {
        for (const float v : row) GgufWriter::put(v, tensor.data);
      }
    }
    gguf.tensors.push_back(tensor);
  }

  void add_experts(GgufWriter& gguf, const std::string& name,
                   const std::vector<Matrix>& experts) const {
    if (n_experts == 1) return add(gguf, name + ".weight", experts);
    if (merged_experts) return add(gguf, name + "_exps.weight", experts);
    for (std::size_t e = 0; e < experts.size(); ++e) {
      add(gguf, name + "." + std::to_string(e) + ".weight", {experts[e]});
    }
  }
};

inline std::vector<std::vector<float>> Synthetic::reference(
    const std::vector<mixtral::Token>& tokens, const std::vector<std::size_t>& wanted) const {
  using Vector = std::vector<double>;
  const auto multiply = [](const Matrix& w, const Vector& x) {
    Vector y;
    for (const auto& row : w) {
      double sum = 0.0;
      for (std::size_t i = 0; i < row.size(); ++i) sum += static_cast<double>(row[i]) * x[i];
      y.push_back(sum);
    }
    return y;
  };
  const auto normalize = [&](const Vector& x, const std::vector<float>& weight) {
    double mean = 0.0;
    for (const double v : x) mean += v * v;
    mean /= static_cast<double>(x.size());
    Vector y;
    for (std::size_t i = 0; i < x.size(); ++i) {
      y.push_back(x[i] / std::sqrt(mean + static_cast<double>(norm_epsilon)) *
                  static_cast<double>(weight[i]));
    }
    return y;
  };
  const auto rotate = [&](Vector& x, std::size_t position) {
    for (std::size_t i = 0; i < x.size(); i += 2) {
      const auto pair = static_cast<double>(i % head_size / 2);
      const double angle =
          static_cast<double>(position) / static_cast<double>(rope_linear_factor) *
          std::pow(static_cast<double>(rope_theta), -2.0 * pair / static_cast<double>(head_size));
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  };
  const auto is_wanted = [&](std::size_t position) {
    return wanted.empty() || std::find(wanted.begin(), wanted.end(), position) != wanted.end();
  };
  REQUIRE((wanted.empty() || n_layers == 1));
  std::vector<std::vector<Vector>> keys(n_layers), values(n_layers);
  std::vector<std::vector<float>> result;
  for (std::size_t position = 0; position < tokens.size(); ++position) {
    const auto& row = embedding[static_cast<std::size_t>(tokens[position])];
    Vector x(row.begin(), row.end());
    for (std::size_t l = 0; l < n_layers; ++l) {
      const Layer& layer = layers[l];
      const Vector h = normalize(x, layer.attention_norm);
      Vector q = multiply(layer.wq, h), k = multiply(layer.wk, h);
      rotate(q, position);
      rotate(k, position);
      keys[l].push_back(k);
      values[l].push_back(multiply(layer.wv, h));
      if (!is_wanted(position)) break;
      Vector attended(q.size(), 0.0);
      for (std::size_t head = 0; head < n_heads; ++head) {
        const std::size_t kv = head / (n_heads / n_kv_heads) * head_size;
        Vector p;
        double sum = 0.0;
        const std::size_t first =
            sliding_window == 0 || position < sliding_window ? 0 : position + 1 - sliding_window;
        for (std::size_t t = first; t <= position; ++t) {
          double score = 0.0;
          for (std::size_t i = 0; i < head_size; ++i) {
            score += q[head * head_size + i] * keys[l][t][kv + i];
          }
          p.push_back(std::exp(score / std::sqrt(static_cast<double>(head_size))));
          sum += p.back();
        }
        for (std::size_t t = first; t <= position; ++t) {
          for (std::size_t i = 0; i < head_size; ++i) {
            attended[head * head_size + i] += p[t - first] / sum * values[l][t][kv + i];
          }
        }
      }
      const Vector projected = multiply(layer.wo, attended);
      for (std::size_t i = 0; i < dim; ++i) x[i] += projected[i];
      const Vector g = normalize(x, layer.ffn_norm);
      std::vector<std::pair<double, std::size_t>> chosen;
      if (n_experts == 1) {
        chosen = {{0.0, 0}};
      } else {
        const Vector logits = multiply(layer.router, g);
        for (std::size_t e = 0; e < n_experts; ++e) chosen.push_back({-logits[e], e});
        std::sort(chosen.begin(), chosen.end());
        chosen.resize(n_experts_used);
      }
      double total = 0.0;
      for (const auto& [negative, e] : chosen) total += std::exp(-negative);
      for (const auto& [negative, e] : chosen) {
        const Vector gate = multiply(layer.w1[e], g), up = multiply(layer.w3[e], g);
        Vector hidden;
        for (std::size_t i = 0; i < hidden_dim; ++i) {
          hidden.push_back(gate[i] / (1.0 + std::exp(-gate[i])) * up[i]);
        }
        const Vector down = multiply(layer.w2[e], hidden);
        for (std::size_t i = 0; i < dim; ++i) x[i] += std::exp(-negative) / total * down[i];
      }
    }
    if (!is_wanted(position)) continue;
    const Vector logits = multiply(output, normalize(x, output_norm));
    result.emplace_back(logits.begin(), logits.end());
  }
  return result;
}

}  // namespace support

#endif  // MIXTRAL_TESTS_SUPPORT_HPP_
