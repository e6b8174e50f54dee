// Importance: gathering it, its files, quantising with it.
#include "written_files.hpp"

using namespace support;
using mixtral::Role;

namespace {

mixtral::Config config_of(std::uint32_t n_experts) {
  mixtral::Config config;
  config.n_experts = n_experts;
  return config;
}

GgufWriter::Tensor tensor(const std::string& name, std::vector<std::uint64_t> shape,
                          const std::vector<float>& numbers) {
  GgufWriter::Tensor t;
  t.name = name;
  t.shape = std::move(shape);
  for (const float v : numbers) GgufWriter::put(v, t.data);
  return t;
}

// A file of what was gathered of one tensor.
GgufWriter of_tensor(const std::string& name, std::vector<std::uint64_t> shape,
                     const std::vector<float>& sums, std::vector<std::uint64_t> counts_shape,
                     const std::vector<float>& counts) {
  GgufWriter writer;
  writer.string("general.type", "imatrix");
  writer.tensors.push_back(tensor(name + ".in_sum2", std::move(shape), sums));
  writer.tensors.push_back(tensor(name + ".counts", std::move(counts_shape), counts));
  return writer;
}

mixtral::Result<mixtral::Importance> read_file_of(const GgufWriter& writer,
                                                  std::uint32_t n_experts) {
  return mixtral::Importance::read(bytes(writer.finish()), config_of(n_experts));
}

std::vector<float> found(const mixtral::Importance& importance, Role role, std::uint32_t layer,
                         std::uint32_t expert, std::size_t n_cols) {
  std::vector<float> out(n_cols + 1, -7.0f);
  const bool is_there = importance.find(role, layer, expert, n_cols, out.data());
  CHECK(out[n_cols] == -7.0f);
  out.pop_back();
  if (!is_there) {
    CHECK(out == std::vector<float>(n_cols, -7.0f));  // as it was
    out.clear();
  }
  return out;
}

void gather(mixtral::Importance& importance, Role role, std::uint32_t layer, std::uint32_t expert,
            const std::vector<float>& input) {
  importance.on_input(role, layer, expert, {input.data(), input.size()});
}

using Floats = std::vector<float>;

}  // namespace

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

TEST_CASE("importance: mean squares are those of each matrix, shared where inputs are the same") {
  mixtral::Importance importance(config_of(4));
  gather(importance, Role::wq, 1, 0, {1.0f, -2.0f, 0.0f});
  gather(importance, Role::wq, 1, 0, {3.0f, 0.0f, 0.0f});
  gather(importance, Role::wo, 1, 0, {2.0f, 4.0f});
  gather(importance, Role::output, 0, 0, {8.0f});
  CHECK(found(importance, Role::wq, 1, 0, 3) == Floats{5.0f, 2.0f, 0.0f});
  CHECK(found(importance, Role::wk, 1, 0, 3) == Floats{5.0f, 2.0f, 0.0f});
  CHECK(found(importance, Role::wv, 1, 0, 3) == Floats{5.0f, 2.0f, 0.0f});
  CHECK(found(importance, Role::wo, 1, 0, 2) == Floats{4.0f, 16.0f});
  CHECK(found(importance, Role::output, 0, 0, 1) == Floats{64.0f});
  for (const std::size_t other : {2u, 4u}) {
    CHECK(found(importance, Role::wq, 1, 0, other).empty());
    CHECK(found(importance, Role::wv, 1, 0, other).empty());
  }
  CHECK(found(importance, Role::wq, 0, 0, 3).empty());
  CHECK(found(importance, Role::wq, 2, 0, 3).empty());
  CHECK(found(importance, Role::wq, 1, 1, 3).empty());
  CHECK(found(importance, Role::w1, 1, 0, 3).empty());
  CHECK(found(importance, Role::token_embedding, 0, 0, 1).empty());

  // An expert that was never chosen gets the mean of the others' means.
  gather(importance, Role::w1, 0, 1, {1.0f, 2.0f});
  gather(importance, Role::w1, 0, 3, {3.0f, 0.0f});
  gather(importance, Role::w1, 0, 3, {1.0f, 0.0f});
  gather(importance, Role::w2, 0, 2, {5.0f});
  for (const Role role : {Role::w1, Role::w3}) {
    CHECK(found(importance, role, 0, 1, 2) == Floats{1.0f, 4.0f});
    CHECK(found(importance, role, 0, 3, 2) == Floats{5.0f, 0.0f});
    CHECK(found(importance, role, 0, 0, 2) == Floats{3.0f, 2.0f});
    CHECK(found(importance, role, 0, 2, 2) == Floats{3.0f, 2.0f});
    CHECK(found(importance, role, 0, 0, 1).empty());
    CHECK(found(importance, role, 1, 0, 2).empty());
  }
  CHECK(found(importance, Role::w2, 0, 0, 1) == Floats{25.0f});
  CHECK(found(importance, Role::w2, 0, 2, 1) == Floats{25.0f});
  CHECK(importance.complete());
}

TEST_CASE("importance: a file has each tensor's name, sums and counts, experts in one tensor") {
  mixtral::Importance importance(config_of(3));
  gather(importance, Role::output, 0, 0, {1.0f, 2.0f});
  gather(importance, Role::wq, 7, 0, {3.0f, 0.0f});
  gather(importance, Role::wq, 7, 0, {1.0f, 1.0f});
  gather(importance, Role::wo, 7, 0, {2.0f});
  gather(importance, Role::w1, 7, 2, {4.0f, 5.0f, 6.0f});
  gather(importance, Role::w2, 7, 0, {7.0f});
  const auto bytes_of_file = value(importance.to_gguf());
  const auto file = value(mixtral::gguf::File::parse({bytes_of_file.data(), bytes_of_file.size()},
                                                     std::pmr::get_default_resource()));
  CHECK(file.find("general.type")->as_string() == "imatrix");
  CHECK(file.find("imatrix.chunk_count")->as_uint() == 1u);
  CHECK(file.find("imatrix.chunk_size")->as_uint() == 1u);
  CHECK(file.find("imatrix.datasets")->size() == 0);
  struct Expected {
    const char* name;
    std::size_t n_cols;
    Floats sums, counts;
  };
  const Expected all[] = {
      {"output.weight", 2, {1, 4}, {1}},
      {"blk.7.attn_q.weight", 2, {10, 1}, {2}},
      {"blk.7.attn_k.weight", 2, {10, 1}, {2}},
      {"blk.7.attn_v.weight", 2, {10, 1}, {2}},
      {"blk.7.attn_output.weight", 1, {4}, {1}},
      {"blk.7.ffn_gate_exps.weight", 3, {0, 0, 0, 0, 0, 0, 16, 25, 36}, {0, 0, 1}},
      {"blk.7.ffn_up_exps.weight", 3, {0, 0, 0, 0, 0, 0, 16, 25, 36}, {0, 0, 1}},
      {"blk.7.ffn_down_exps.weight", 1, {49, 0, 0}, {1, 0, 0}}};
  CHECK(file.tensors().size() == 2 * std::size(all));
  const auto numbers = [](const mixtral::gguf::Tensor& t) {
    Floats out(static_cast<std::size_t>(t.shape[0] * t.shape[1]));
    std::memcpy(out.data(), t.data, out.size() * 4);
    return out;
  };
  for (const Expected& expected : all) {
    CAPTURE(std::string(expected.name));
    const auto* sums = file.find_tensor(std::string(expected.name) + ".in_sum2");
    const auto* counts = file.find_tensor(std::string(expected.name) + ".counts");
    REQUIRE(sums != nullptr);
    REQUIRE(counts != nullptr);
    CHECK(sums->n_dims == 2);
    CHECK(sums->shape[0] == expected.n_cols);
    CHECK(numbers(*sums) == expected.sums);
    CHECK(counts->n_dims == 2);
    CHECK(counts->shape[0] == 1);
    CHECK(numbers(*counts) == expected.counts);
  }
  // A dense model's tensors have the names of one expert.
  mixtral::Importance dense(config_of(1));
  gather(dense, Role::w1, 0, 0, {1.0f});
  const auto dense_bytes = value(dense.to_gguf());
  const auto dense_file = value(mixtral::gguf::File::parse({dense_bytes.data(), dense_bytes.size()},
                                                           std::pmr::get_default_resource()));
  CHECK(dense_file.find_tensor("blk.0.ffn_gate.weight.in_sum2") != nullptr);
  CHECK(dense_file.find_tensor("blk.0.ffn_up.weight.counts") != nullptr);
  CHECK(dense_file.tensors().size() == 4);
}

TEST_CASE(
    "importance: files of others are read: experts together or apart, more or fewer of them") {
  const std::string gate = "blk.3.ffn_gate_exps.weight";
  const Floats sums{1, 2, 30, 40, 500, 600}, counts{1, 10, 100};
  const auto together = value(read_file_of(of_tensor(gate, {2, 3}, sums, {1, 3}, counts), 3));
  CHECK(found(together, Role::w1, 3, 0, 2) == Floats{1, 2});
  CHECK(found(together, Role::w3, 3, 1, 2) == Floats{3, 4});
  CHECK(found(together, Role::w1, 3, 2, 2) == Floats{5, 6});
  // Counts may lie along the first dimension, too.
  const auto along = value(read_file_of(of_tensor(gate, {2, 3}, sums, {3}, counts), 3));
  CHECK(found(along, Role::w1, 3, 2, 2) == Floats{5, 6});
  // Experts that the model does not have are passed over; those that the file lacks get the mean.
  const auto fewer = value(read_file_of(of_tensor(gate, {2, 3}, sums, {1, 3}, counts), 2));
  CHECK(found(fewer, Role::w1, 3, 1, 2) == Floats{3, 4});
  CHECK(found(fewer, Role::w1, 3, 2, 2) == Floats{2, 3});
  const auto more = value(read_file_of(of_tensor(gate, {2, 3}, sums, {1, 3}, counts), 5));
  CHECK(found(more, Role::w1, 3, 4, 2) == Floats{3, 4});
  // One expert by its name.
  const auto one =
      value(read_file_of(of_tensor("blk.3.ffn_down.1.weight", {2}, {8, 6}, {1}, {2}), 3));
  CHECK(found(one, Role::w2, 3, 1, 2) == Floats{4, 3});
  CHECK(value(one.to_gguf()) ==
        value(value(read_file_of(of_tensor("blk.3.ffn_down_exps.weight", {2, 3}, {0, 0, 8, 6, 0, 0},
                                           {1, 3}, {0, 2, 0}),
                                 3))
                  .to_gguf()));
  // What was never seen has a count of zero, and is as if it were not there.
  const auto none = value(read_file_of(of_tensor("blk.3.attn_q.weight", {2}, {0, 0}, {1}, {0}), 3));
  CHECK(found(none, Role::wq, 3, 0, 2).empty());
  // Tensors of other kinds, and those that share another's inputs, are passed over.
  GgufWriter several = of_tensor("blk.0.attn_output.weight", {1}, {9}, {1}, {1});
  several.tensors.push_back(tensor(".in_sum2", {1}, {-1}));
  several.tensors.push_back(tensor("in_sum2", {1}, {-1}));
  several.tensors.push_back(tensor("blk.0.ssm_in.weight.in_sum2", {1}, {-1}));
  several.tensors.push_back(tensor("blk.0.attn_k.weight.in_sum2", {1}, {-1}));
  several.tensors.push_back(tensor("blk.0.attn_v.weight.in_sum2", {1}, {-1}));
  several.tensors.push_back(tensor("blk.0.ffn_up.weight.in_sum2", {1}, {-1}));
  several.tensors.push_back(tensor("blk.0.attn_q.weight.in_sum3", {1}, {-1}));
  CHECK(found(value(read_file_of(several, 3)), Role::wo, 0, 0, 1) == Floats{9});
  several.tensors.erase(several.tensors.begin(), several.tensors.begin() + 2);
  const auto nothing = read_file_of(several, 3);
  REQUIRE(!nothing);
  CHECK(nothing.error().code() == mixtral::ErrorCode::bad_format);
  CHECK(std::string(nothing.error().message()).find("no tensor '*.in_sum2'") != std::string::npos);
}

TEST_CASE("importance: shapes and numbers are taken up to their limits and refused beyond") {
  const std::string name = "blk.0.ffn_gate_exps.weight";
  const auto error_of = [&](const GgufWriter& writer) -> std::string {
    const auto read = read_file_of(writer, 2);
    if (read) return "";
    CHECK(read.error().code() == mixtral::ErrorCode::bad_format);
    CHECK(std::string(read.error().message()).find("'" + name + "'") != std::string::npos);
    return read.error().message();
  };
  const auto error_of_shapes = [&](std::vector<std::uint64_t> sums,
                                   std::vector<std::uint64_t> counts) {
    std::size_t n_sums = 1, n_counts = 1;
    for (const std::uint64_t n : sums) n_sums *= static_cast<std::size_t>(n);
    for (const std::uint64_t n : counts) n_counts *= static_cast<std::size_t>(n);
    return error_of(of_tensor(name, std::move(sums), Floats(n_sums, 1.0f), std::move(counts),
                              Floats(n_counts, 1.0f)));
  };
  const std::string shape = "expected F32 tensors in_sum2 of [columns, n] and counts of [1, n]";
  CHECK(error_of_shapes({3, 2}, {1, 2}) == "");
  CHECK(error_of_shapes({3}, {1}) == "");
  CHECK(error_of_shapes({3, 1}, {1, 1}) == "");
  for (const std::vector<std::uint64_t>& counts :
       {std::vector<std::uint64_t>{1, 1}, {1, 3}, {1}, {2, 2}, {1, 2, 1}, {1, 1, 2}, {1, 2, 2}}) {
    CHECK(error_of_shapes({3, 2}, counts).find(shape) != std::string::npos);
  }
  for (const std::vector<std::uint64_t>& sums :
       {std::vector<std::uint64_t>{3, 2, 1}, {3, 1, 2}, {6}, {6, 1}, {2, 3}}) {
    CHECK(error_of_shapes(sums, {1, 2}).find(shape) != std::string::npos);
  }
  GgufWriter halves = of_tensor(name, {4, 1}, Floats(2), {1, 1}, {1});
  halves.tensors[0].type = 1;
  CHECK(error_of(halves).find(shape) != std::string::npos);
  halves = of_tensor(name, {2, 1}, {1, 1}, {1, 1}, {1});
  halves.tensors[1].type = 1;
  CHECK(error_of(halves).find(shape) != std::string::npos);
  halves.tensors.pop_back();
  CHECK(error_of(halves).find(shape) != std::string::npos);

  const auto error_of_numbers = [&](float square, float count) {
    // The last of all.
    return error_of(of_tensor(name, {2, 2}, {1, 1, 1, square}, {1, 2}, {1, count}));
  };
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float good : {0.0f, -0.0f, 1e-29f, 1.0f, std::nextafter(1e30f, 0.0f)}) {
    CAPTURE(good);
    CHECK(error_of_numbers(good, 1.0f) == "");
    CHECK(error_of_numbers(1.0f, good) == "");
  }
  CHECK(error_of_numbers(std::nextafter(1e38f, 0.0f), 1e8f) == "");
  const std::string no_number = "a sum of squares or a count is no such number";
  for (const float bad : {-1e-45f, -1.0f, 2e38f, infinity, -infinity, std::nanf("")}) {
    CAPTURE(bad);
    CHECK(error_of_numbers(bad, 1.0f).find(no_number) != std::string::npos);
    CHECK(error_of_numbers(1.0f, bad).find(no_number) != std::string::npos);
  }
  CHECK(error_of_numbers(1.0f, std::nextafter(1e30f, infinity)).find(no_number) !=
        std::string::npos);
  CHECK(error_of_numbers(std::nextafter(1e38f, infinity), 1.0f).find(no_number) !=
        std::string::npos);
}

TEST_CASE("importance: gathering on top of a file of other widths passes over what does not fit") {
  GgufWriter writer = of_tensor("blk.0.ffn_gate.0.weight", {4}, {4, 4, 4, 4}, {1}, {1});
  const GgufWriter narrow = of_tensor("blk.0.ffn_gate.1.weight", {2}, {9, 9}, {1}, {1});
  writer.tensors.insert(writer.tensors.end(), narrow.tensors.begin(), narrow.tensors.end());
  auto importance = value(read_file_of(writer, 2));
  gather(importance, Role::w1, 0, 0, {2.0f, 2.0f, 0.0f, 0.0f});
  CHECK(importance.complete());
  gather(importance, Role::w1, 0, 1, {1.0f, 1.0f, 1.0f, 1.0f});
  CHECK(!importance.complete());
  gather(importance, Role::w1, 0, 1, {1.0f});
  CHECK(found(importance, Role::w1, 0, 0, 4) == Floats{4, 4, 2, 2});
  CHECK(found(importance, Role::w1, 0, 1, 2) == Floats{9, 9});
  CHECK(found(importance, Role::w1, 0, 1, 4) == Floats{4, 4, 2, 2});  // the others' mean
  // In a file all experts have the first one's width; the other is as if it had never been chosen.
  const auto file = value(importance.to_gguf());
  const auto again = value(mixtral::Importance::read({file.data(), file.size()}, config_of(2)));
  CHECK(found(again, Role::w1, 0, 0, 4) == Floats{4, 4, 2, 2});
  CHECK(found(again, Role::w1, 0, 1, 4) == Floats{4, 4, 2, 2});
  CHECK(found(again, Role::w1, 0, 1, 2).empty());
}

TEST_CASE("importance: a thousand damaged files: an error, or something that can be used") {
  Synthetic s;
  s.n_experts = 2;
  s.dim = 32;
  s.head_size = 8;
  s.hidden_dim = 32;
  s.randomize(1);
  const Blob model = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(model);
  mixtral::Importance importance(checkpoint.config);
  const std::vector<float> input(32, 1.5f);
  const std::pair<Role, std::uint32_t> inputs[] = {{Role::wq, 0}, {Role::wo, 0}, {Role::w1, 0},
                                                   {Role::w1, 1}, {Role::w2, 1}, {Role::output, 0}};
  for (const auto& [role, expert] : inputs) gather(importance, role, 0, expert, input);
  const auto original = value(importance.to_gguf());
  std::mt19937 random(5);
  std::size_t n_errors = 0, n_used = 0;
  for (int round = 0; round < 1000; ++round) {
    Blob file(original.begin(), original.end());
    for (std::size_t n = 1 + random() % 3; n > 0; --n) {
      static constexpr std::uint8_t kExtreme[] = {0, 1, 0x7f, 0x80, 0xff};
      const std::size_t at = random() % file.size();
      switch (random() % 4) {
        case 0: file[at] = kExtreme[random() % 5]; break;
        case 1: file[at] = static_cast<std::uint8_t>(random()); break;
        case 2: file[at] ^= static_cast<std::uint8_t>(1u << random() % 8); break;
        default:  // a digit or letter of a name
          file[at] = static_cast<std::uint8_t>(file[at] + 1);
      }
    }
    if (round % 8 == 7) file.resize(random() % file.size());
    const std::vector<std::uint8_t> exact(file.begin(), file.end());
    auto damaged = mixtral::Importance::read(bytes(exact), checkpoint.config);
    if (!damaged) {
      ++n_errors;
      CHECK(std::strlen(damaged.error().message()) > 10);
      continue;
    }
    ++n_used;
    for (std::uint32_t layer = 0; layer < 2; ++layer) {
      for (const auto& [role, expert] : inputs) {
        if (role == Role::output && layer > 0) continue;
        for (const float x : found(*damaged, role, layer, expert, 32)) CHECK(x >= 0.0f);
        gather(*damaged, role, layer, expert, input);
      }
    }
    const auto again = damaged->to_gguf();
    REQUIRE(again);
    const auto reread =
        mixtral::Importance::read({again->data(), again->size()}, checkpoint.config);
    CHECK((reread ? "" : std::string(reread.error().message())) == "");
    if (n_used % 16 != 0) continue;
    mixtral::QuantizeOptions options = type("Q4_0");
    options.importance = &*damaged;
    options.pure = true;
    MemorySink sink;
    CHECK(mixtral::write_gguf(checkpoint, options, sink));
  }
  CHECK(n_errors > 200);
  CHECK(n_used > 200);
}

TEST_CASE("importance: broken files are refused by name") {
  const mixtral::Config config = open(bundled_model()).config();
  const auto error_of = [&](const GgufWriter& writer) {
    const Blob file = writer.finish();
    const auto read = mixtral::Importance::read(bytes(file), config);
    REQUIRE(!read);
    return std::string(read.error().message());
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
