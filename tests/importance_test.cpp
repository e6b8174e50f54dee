// Importance: gathering it, its files, quantising with it.
#include "written_files.hpp"

using namespace support;

TEST_CASE("importance: gathers the inputs of every matrix") {
  Synthetic s;
  s.randomize(3);
  const mixtral::Model model = open(s.writer().finish());
  mixtral::Importance importance(model.config());
  mixtral::Session session = support::session(model, 30, 7);
  const auto tokens = some_tokens();
  REQUIRE(session.append(span(tokens)));
  CHECK(!importance.to_gguf());
  REQUIRE(session.evaluate(&importance));
  CHECK(importance.complete());

  // The first layer's input is known: the embeddings, normalised.
  std::vector<double> expected(s.dim);
  for (const Token token : tokens) {
    const auto& row = s.embedding[static_cast<std::size_t>(token)];
    double mean = 0.0;
    for (const float x : row) mean += static_cast<double>(x) * static_cast<double>(x);
    mean = mean / static_cast<double>(s.dim) + static_cast<double>(s.norm_epsilon);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double x =
          static_cast<double>(row[i]) * static_cast<double>(s.layers[0].attention_norm[i]);
      expected[i] += x * x / mean / 30.0;
    }
  }
  std::vector<float> found(s.dim);
  for (const mixtral::Role role : {mixtral::Role::wq, mixtral::Role::wk, mixtral::Role::wv}) {
    REQUIRE(importance.find(role, 0, 0, s.dim, found.data()));
    for (std::size_t i = 0; i < s.dim; ++i)
      CHECK(found[i] == doctest::Approx(expected[i]).epsilon(1e-4));
  }
  std::vector<float> down(s.hidden_dim), attended(s.n_heads * s.head_size), output(s.dim);
  for (std::uint32_t l = 0; l < 2; ++l) {
    CHECK(importance.find(mixtral::Role::wo, l, 0, attended.size(), attended.data()));
    for (std::uint32_t e = 0; e < 4; ++e) {
      CHECK(importance.find(mixtral::Role::w1, l, e, s.dim, found.data()));
      CHECK(importance.find(mixtral::Role::w3, l, e, s.dim, found.data()));
      CHECK(importance.find(mixtral::Role::w2, l, e, down.size(), down.data()));
    }
  }
  CHECK(importance.find(mixtral::Role::output, 0, 0, s.dim, output.data()));
  CHECK(!importance.find(mixtral::Role::token_embedding, 0, 0, s.dim, output.data()));
  CHECK(!importance.find(mixtral::Role::wq, 2, 0, s.dim, output.data()));

  // Through a file and back.
  const auto file = value(importance.to_gguf());
  const auto again = value(mixtral::Importance::read({file.data(), file.size()}, model.config()));
  std::vector<float> read_back(s.hidden_dim);
  REQUIRE(importance.find(mixtral::Role::w2, 1, 3, down.size(), down.data()));
  REQUIRE(again.find(mixtral::Role::w2, 1, 3, down.size(), read_back.data()));
  for (std::size_t i = 0; i < down.size(); ++i) CHECK(read_back[i] == doctest::Approx(down[i]));
  CHECK(value(again.to_gguf()) == file);

  mixtral::QuantizeOptions options = type("Q8_0");
  options.importance = &again;
  options.pure = true;
  Synthetic fitting = wide(4);
  const Blob wide_file = fitting.writer().finish();
  CHECK(write(read(wide_file), options).n_with_importance == 0);  // of another width
  const mixtral::Model wide_model = open(wide_file);
  mixtral::Importance of_wide(wide_model.config());
  mixtral::Session one = support::session(wide_model, 30);
  REQUIRE(one.append(Token{5}));  // two of four experts are used
  REQUIRE(one.evaluate(&of_wide));
  {
    // Two experts saw the same input, so that the mean, which the other two get, is that input.
    std::vector<float> first(256), other(256), nothing(257, 7.0f);
    for (std::uint32_t e = 0; e < 4; ++e) {
      REQUIRE(of_wide.find(mixtral::Role::w1, 0, e, 256, other.data()));
      if (e == 0) first = other;
      CHECK(max_difference(first, other) <= 1e-6);
    }
    CHECK(!of_wide.find(mixtral::Role::w1, 0, 0, 257, nothing.data()));
    CHECK(nothing == std::vector<float>(257, 7.0f));
  }
  options.importance = &of_wide;
  const MemorySink sink = write(read(wide_file), options);
  CHECK(sink.n_with_importance == 1 + 2 * 7);  // all but the embedding
  CHECK(sink.file != write(read(wide_file),
                           [&] {
                             options.importance = nullptr;
                             return options;
                           }())
                         .file);
}

TEST_CASE("importance: broken files are refused by name") {
  const mixtral::Config config = open(bundled_model()).config();
  const auto error_of = [&](const GgufWriter& writer) {
    const Blob file = writer.finish();
    const auto read = mixtral::Importance::read(bytes(file), config);
    REQUIRE(!read);
    return std::string(read.error().message());
  };
  const auto tensor = [](const std::string& name, std::vector<std::uint64_t> shape,
                         const std::vector<float>& numbers) {
    GgufWriter::Tensor t;
    t.name = name;
    t.shape = std::move(shape);
    for (const float v : numbers) GgufWriter::put(v, t.data);
    return t;
  };
  GgufWriter writer;
  writer.string("general.type", "imatrix");
  CHECK(error_of(writer).find("in_sum2") != std::string::npos);
  writer.tensors = {tensor("blk.0.attn_q.weight.in_sum2", {2}, {1, 2})};
  CHECK(error_of(writer).find("blk.0.attn_q.weight") != std::string::npos);
  writer.tensors.push_back(tensor("blk.0.attn_q.weight.counts", {1, 2}, {1, 2}));
  CHECK(error_of(writer).find("counts of [1, n]") != std::string::npos);
  writer.tensors[1] = tensor("blk.0.attn_q.weight.counts", {1}, {-1});
  CHECK(error_of(writer).find("no such number") != std::string::npos);
  writer.tensors[1] = tensor("blk.0.attn_q.weight.counts", {1}, {4});
  writer.tensors[0] = tensor("blk.0.attn_q.weight.in_sum2", {2}, {1, std::nanf("")});
  CHECK(error_of(writer).find("no such number") != std::string::npos);
  // A mean square is a number of float32, and so is the sum of those of all experts.
  writer.tensors[1] = tensor("blk.0.attn_q.weight.counts", {1}, {1e-20f});
  writer.tensors[0] = tensor("blk.0.attn_q.weight.in_sum2", {2}, {1, 1e20f});
  CHECK(error_of(writer).find("no such number") != std::string::npos);
  writer.tensors[0] = tensor("blk.0.attn_q.weight.in_sum2", {2}, {1, 1e9f});
  const Blob file = writer.finish();
  const auto importance = value(mixtral::Importance::read(bytes(file), config));
  float means[2];
  REQUIRE(importance.find(mixtral::Role::wq, 0, 0, 2, means));
  CHECK(means[1] == doctest::Approx(1e29f));
  CHECK(!mixtral::Importance::read({}, config));
}
