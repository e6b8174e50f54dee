// From named tensors to weights: every tensor once, of the shape that the configuration says.
#include <mixtral/weights.hpp>

#include "written_files.hpp"

using namespace support;
using mixtral::Role;

namespace {

Synthetic small(std::uint32_t n_experts = 3) {
  Synthetic s;
  s.dim = 8;
  s.n_layers = 2;
  s.n_heads = 4;
  s.n_kv_heads = 2;
  s.head_size = 6;
  s.hidden_dim = 16;
  s.n_experts = n_experts;
  s.n_experts_used = std::min(n_experts, 2u);
  s.vocab_size = 262;
  s.randomize(1);
  return s;
}

mixtral::Result<mixtral::Weights> arrange(const mixtral::Checkpoint& checkpoint) {
  return mixtral::Weights::create(checkpoint, *mixtral::simd::select_kernels(),
                                  std::pmr::get_default_resource());
}

std::string error_of(const mixtral::Checkpoint& checkpoint) {
  const auto weights = arrange(checkpoint);
  if (!weights) CHECK(weights.error().code() == mixtral::ErrorCode::bad_format);
  return weights ? "" : weights.error().message();
}

bool has(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

// A model with a vector of factors for RoPE, so that it has every role.
Blob complete(std::uint32_t n_experts = 3) {
  GgufWriter writer = small(n_experts).writer();
  GgufWriter::Tensor factors;
  factors.name = "rope_freqs.weight";
  factors.shape = {3};
  for (const float v : {1.0f, 2.0f, 4.0f}) GgufWriter::put(v, factors.data);
  writer.tensors.push_back(factors);
  return writer.finish();
}

}  // namespace

TEST_CASE("weights: every tensor is found under its role, layer and expert") {
  for (const std::uint32_t n_experts : {3u, 1u}) {
    const Synthetic s = small(n_experts);
    const mixtral::Checkpoint checkpoint = read(complete(n_experts));
    const auto weights = value(arrange(checkpoint));
    const auto first = [](const mixtral::simd::Matrix& m) {
      float v;
      std::memcpy(&v, m.data, sizeof v);
      return v;
    };
    CHECK(first(weights.token_embedding) == s.embedding[0][0]);
    CHECK(first(weights.output) == s.output[0][0]);
    CHECK(std::vector<float>(weights.output_norm, weights.output_norm + s.dim) == s.output_norm);
    CHECK(std::vector<float>(weights.rope_factors, weights.rope_factors + 3) ==
          std::vector<float>{1, 2, 4});
    REQUIRE(weights.layers.size() == s.n_layers);
    for (std::size_t l = 0; l < s.n_layers; ++l) {
      const auto& found = weights.layers[l];
      const auto& expected = s.layers[l];
      CHECK(std::vector<float>(found.attention_norm, found.attention_norm + s.dim) ==
            expected.attention_norm);
      CHECK(std::vector<float>(found.ffn_norm, found.ffn_norm + s.dim) == expected.ffn_norm);
      CHECK(first(found.wq) == expected.wq[0][0]);
      CHECK(first(found.wk) == expected.wk[0][0]);
      CHECK(first(found.wv) == expected.wv[0][0]);
      CHECK(first(found.wo) == expected.wo[0][0]);
      if (n_experts > 1) CHECK(first(found.router) == expected.router[0][0]);
      for (std::size_t e = 0; e < n_experts; ++e) {
        CHECK(first(found.experts[e].w1) == expected.w1[e][0][0]);
        CHECK(first(found.experts[e].w2) == expected.w2[e][0][0]);
        CHECK(first(found.experts[e].w3) == expected.w3[e][0][0]);
      }
    }
    std::uint64_t n = 0;
    for (const auto& tensor : checkpoint.tensors) n += tensor.matrix.rows * tensor.matrix.cols;
    CHECK(weights.n_parameters == n);
    CHECK(weights.bytes == 4 * n);
    // Of the experts, as many as are used; of the embedding, nothing.
    const std::uint64_t unused = n_experts - s.n_experts_used;
    CHECK(weights.n_active_parameters ==
          n - s.vocab_size * s.dim - 2 * unused * 3 * s.dim * s.hidden_dim);
  }
}

TEST_CASE("weights: without an output matrix, the embedding is the output") {
  mixtral::Checkpoint checkpoint = read(complete());
  const auto untied = value(arrange(checkpoint));
  checkpoint.tensors.erase(
      std::find_if(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                   [](const auto& tensor) { return tensor.role == Role::output; }));
  const auto tied = value(arrange(checkpoint));
  CHECK(tied.output.data == tied.token_embedding.data);
  CHECK(tied.n_active_parameters == untied.n_active_parameters);
  CHECK(tied.n_parameters == untied.n_parameters - 262 * 8);
}

TEST_CASE("weights: a matrix or vector that two tensors give is refused, whatever its role") {
  for (const std::uint32_t n_experts : {3u, 1u}) {
    const mixtral::Checkpoint checkpoint = read(complete(n_experts));
    mixtral::Checkpoint twice = read(complete(n_experts));
    for (const mixtral::NamedTensor& tensor : checkpoint.tensors) {
      twice.tensors = checkpoint.tensors;
      twice.tensors.push_back(tensor);
      twice.tensors.back().name = "again";
      CHECK(error_of(twice) == "tensor 'again' gives a " +
                                   std::string(mixtral::role_name(tensor.role)) +
                                   " that another tensor gave already");
    }
  }
  // In a file, too: all experts in one tensor, and one of them in another.
  GgufWriter writer = small().writer();
  for (const auto& tensor : small().writer().tensors) {
    if (tensor.name != "blk.1.ffn_up_exps.weight") continue;
    writer.tensors.push_back(tensor);
    writer.tensors.back().name = "blk.1.ffn_up.2.weight";
    writer.tensors.back().shape.pop_back();
    writer.tensors.back().data.resize(writer.tensors.back().data.size() / 3);
  }
  const Blob file = writer.finish();
  const auto model = mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(file)));
  REQUIRE(!model);
  CHECK(has(model.error().message(),
            "'blk.1.ffn_up.2.weight' gives a expert w3 (up) that another tensor gave"));
}

TEST_CASE("weights: every tensor must be there") {
  for (const std::uint32_t n_experts : {3u, 1u}) {
    const mixtral::Checkpoint checkpoint = read(complete(n_experts));
    mixtral::Checkpoint less = read(complete(n_experts));
    for (std::size_t i = 0; i < checkpoint.tensors.size(); ++i) {
      const mixtral::NamedTensor& tensor = checkpoint.tensors[i];
      less.tensors = checkpoint.tensors;
      less.tensors.erase(less.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      CAPTURE(std::string(tensor.name));
      if (tensor.role == Role::output || tensor.role == Role::rope_factors) {
        CHECK(error_of(less) == "");
        continue;
      }
      char expected[200];
      std::snprintf(expected, sizeof expected,
                    "the %s tensor of layer %u, expert %u is missing; the file is incomplete",
                    mixtral::role_name(tensor.role), static_cast<unsigned>(tensor.layer),
                    static_cast<unsigned>(tensor.expert));
      CHECK(error_of(less) == expected);
    }
  }
}

TEST_CASE("weights: every tensor has the shape that the configuration says") {
  for (const std::uint32_t n_experts : {3u, 1u}) {
    const mixtral::Checkpoint checkpoint = read(complete(n_experts));
    mixtral::Checkpoint other = read(complete(n_experts));
    for (std::size_t i = 0; i < checkpoint.tensors.size(); ++i) {
      for (const int change : {-1, 1}) {
        for (const bool rows : {false, true}) {
          other.tensors = checkpoint.tensors;
          mixtral::simd::Matrix& matrix = other.tensors[i].matrix;
          const std::size_t n_rows = matrix.rows, n_cols = matrix.cols;
          (rows ? matrix.rows : matrix.cols) += static_cast<std::size_t>(change);
          char expected[200];
          std::snprintf(
              expected, sizeof expected, "(%s): expected %zu rows of %zu, found %zu rows of %zu",
              mixtral::role_name(other.tensors[i].role), n_rows, n_cols, matrix.rows, matrix.cols);
          CHECK(has(error_of(other), expected));
        }
      }
    }
  }
}

TEST_CASE("weights: layers and experts are those of the configuration") {
  mixtral::Checkpoint checkpoint = read(complete());
  const auto change = [&](Role role, std::uint32_t layer, std::uint32_t expert) {
    mixtral::Checkpoint changed = read(complete());
    for (auto& tensor : changed.tensors) {
      if (tensor.role != role || tensor.layer != 1 || tensor.expert != (expert == 0 ? 0u : 2u))
        continue;
      tensor.layer = layer;
      tensor.expert = expert;
      break;
    }
    return error_of(changed);
  };
  CHECK(change(Role::w1, 1, 2) == "");
  CHECK(has(change(Role::w1, 2, 2),
            "is of layer 2, expert 2; the metadata says 2 layers, 3 experts"));
  CHECK(has(change(Role::w1, 1, 3),
            "is of layer 1, expert 3; the metadata says 2 layers, 3 experts"));
  CHECK(has(change(Role::w1, ~0u, 2), "is of layer 4294967295, expert 2"));
  CHECK(has(change(Role::w1, 1, ~0u), "is of layer 1, expert 4294967295"));
  CHECK(change(Role::wq, 1, 0) == "");
  CHECK(has(change(Role::wq, 2, 0), "is of layer 2, expert 0"));
  // A dense model has no router.
  checkpoint = read(complete(1));
  mixtral::NamedTensor router = checkpoint.tensors.front();
  router.role = Role::router;
  router.name = "router";
  router.matrix.rows = 1;
  checkpoint.tensors.push_back(router);
  CHECK(error_of(checkpoint) ==
        "tensor 'router' is a router, but the metadata has no llama.expert_count");
}

TEST_CASE(
    "weights: a configuration of more experts than there are tensors is refused before memory is "
    "taken") {
  mixtral::Checkpoint checkpoint = read(complete(1));
  checkpoint.tensors.resize(3);  // token embedding, output norm, output
  checkpoint.config.n_layers = 3;
  CHECK(error_of(checkpoint) ==
        "the attention norm tensor of layer 0, expert 0 is missing; the file is incomplete");
  checkpoint.config.n_layers = 4;
  CHECK(error_of(checkpoint) ==
        "3 tensors are too few for 4 layers of 1 experts; the file is incomplete");
  checkpoint.config.n_layers = 1;
  checkpoint.config.n_experts = 3;
  CHECK(has(error_of(checkpoint), "is missing; the file is incomplete"));
  checkpoint.config.n_experts = 4;
  CHECK(has(error_of(checkpoint), "3 tensors are too few for 1 layers of 4 experts"));
  // Of these, there would be two GiB.
  checkpoint.config.n_layers = checkpoint.config.n_experts = 4096;
  CHECK(has(error_of(checkpoint), "3 tensors are too few for 4096 layers of 4096 experts"));
}
