// What an observer is told, and only when it asks for it.
#include <mixtral/observer.hpp>

#include "written_files.hpp"

using namespace support;
using mixtral::Role;
using mixtral::Span;

namespace {

// Counts what it is told, and keeps the inputs of the first layer's wq, w1 and w2, one row for each token.
struct Counts : mixtral::Observer {
  bool wants_all_logits() const override { return all_logits; }
  bool wants_inputs() const override { return inputs; }
  bool wants_times() const override { return times; }
  void on_logits(std::uint32_t, Span<const float>) override { ++n_logits; }
  void on_input(Role role, std::uint32_t layer, std::uint32_t expert,
                Span<const float> input) override {
    ++n_inputs;
    if (role == Role::wq && layer == 0) wq.emplace_back(input.begin(), input.end());
    if (role == Role::w1 && layer == 0) w1[expert].emplace_back(input.begin(), input.end());
    if (role == Role::w2 && layer == 0) w2[expert].emplace_back(input.begin(), input.end());
  }
  void on_time(mixtral::Part, std::uint32_t, double) override { ++n_times; }

  bool all_logits = false, inputs = false, times = false;
  int n_logits = 0, n_inputs = 0, n_times = 0;
  std::vector<std::vector<float>> wq;
  std::map<std::uint32_t, std::vector<std::vector<float>>> w1, w2;  // of each expert
};

Counts observed(const mixtral::Model& model, std::uint32_t batch, Counts counts) {
  mixtral::Session s = session(model, 64, batch);
  const auto tokens = some_tokens();
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate(&counts));
  return counts;
}

}  // namespace

TEST_CASE("observer: logits, inputs and times are told if it wants them, and not else") {
  Synthetic s;
  s.randomize(3);
  const mixtral::Model model = open(s.writer().finish());
  for (int wanted = 0; wanted < 8; ++wanted) {
    CAPTURE(wanted);
    Counts counts;
    counts.all_logits = (wanted & 1) != 0;
    counts.inputs = (wanted & 2) != 0;
    counts.times = (wanted & 4) != 0;
    counts = observed(model, 7, counts);
    CHECK(counts.n_logits == (counts.all_logits ? 30 : 1));
    // wq, wo, and w1 and w2 of two experts, in two layers; and the output where logits are wanted.
    CHECK(counts.n_inputs == (counts.inputs ? 30 * 2 * (2 + 2 * 2) + counts.n_logits : 0));
    CHECK((counts.n_times > 0) == counts.times);
  }
}

TEST_CASE(
    "observer: inputs are those that are multiplied, in every form, of one token and of many") {
  Synthetic s = wide(4);
  const Blob file = s.writer().finish();
  // The first layer's inputs, in double: the embeddings, normalised.
  std::vector<std::vector<double>> expected;
  for (const Token token : some_tokens()) {
    const auto& row = s.embedding[static_cast<std::size_t>(token)];
    double mean = 0.0;
    for (const float x : row) mean += static_cast<double>(x) * static_cast<double>(x);
    mean = mean / static_cast<double>(s.dim) + static_cast<double>(s.norm_epsilon);
    expected.emplace_back();
    for (std::size_t i = 0; i < row.size(); ++i) {
      expected.back().push_back(static_cast<double>(row[i]) *
                                static_cast<double>(s.layers[0].attention_norm[i]) /
                                std::sqrt(mean));
    }
  }
  struct Form {
    const char* name;
    bool bf16_activations;
    double error;  // relative to the largest number
  };
  // Quantised activations have 8 bits, of which scales that are powers of two may leave one unused, and
  // the embeddings are rounded, too. BF16 keeps 8 bits of each number.
  const Form forms[] = {{"F32", false, 1e-6},
                        {"BF16", false, 1.0 / 256},
                        {"BF16", true, 1.0 / 128},
                        {"Q8_0", false, 1.0 / 50},
                        {"Q4_0", false, 1.0 / 5}};
  for (const Form& form : forms) {
    CAPTURE(form.name);
    CAPTURE(form.bf16_activations);
    const Blob written = write(read(file), type(form.name)).file;
    mixtral::ModelOptions options;
    options.bf16_activations = form.bf16_activations;
    const auto model = value(mixtral::Model::from_bytes(owned(written), options));
    Counts wants;
    wants.inputs = true;
    const Counts one = observed(model, 1, wants);
    for (const std::uint32_t batch : {3u, 30u}) {
      const Counts many = observed(model, batch, wants);
      CHECK(many.wq == one.wq);
      CHECK(many.w1 == one.w1);
      CHECK(many.w2 == one.w2);
    }
    REQUIRE(one.wq.size() == expected.size());
    double worst = 0.0;
    for (std::size_t t = 0; t < expected.size(); ++t) {
      REQUIRE(one.wq[t].size() == expected[t].size());
      double largest = 0.0;
      for (const double x : expected[t]) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < expected[t].size(); ++i) {
        const double error = std::abs(static_cast<double>(one.wq[t][i]) - expected[t][i]) / largest;
        if (!(error <= worst)) worst = error;
      }
    }
    CHECK(worst <= form.error);
    if (form.error > 1e-3) CHECK(worst > 0.0);
  }
}
