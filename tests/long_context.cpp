// Runs a layer of true width to the end of its context and compares the logits, at the positions where
// something could go wrong, with the published formulas in double precision:
//
//   long_context [--shape 8x7b] [--type BF16] [--kv-format f16] [--threads N]
//
// Not a test: it takes minutes and gigabytes. One layer, so that the reference needs all the past's
// keys and values, but the rest only at the positions compared.
#include <Eigen/Core>
#include <cmath>
#include <random>

#include "gguf_file.hpp"
#include "synthetic.hpp"

namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;
using mixtral::Role;
using mixtral::Token;

class Reference {
 public:
  Reference(const mixtral::Checkpoint& checkpoint)
      : checkpoint_(checkpoint), c_(checkpoint.config) {}

  // The logits after tokens[0 .. position] for each position.
  std::vector<Vector> logits(const std::vector<Token>& tokens,
                             const std::vector<std::size_t>& positions) const {
    const auto n = static_cast<Eigen::Index>(tokens.size());
    const Matrix wk = matrix(Role::wk), wv = matrix(Role::wv);
    const Vector norm = matrix(Role::attention_norm).row(0).transpose();
    Matrix keys(c_.kv_dim(), n), values(c_.kv_dim(), n);
    constexpr Eigen::Index kBlock = 512;
    for (Eigen::Index begin = 0; begin < n; begin += kBlock) {
      const Eigen::Index count = std::min(kBlock, n - begin);
      Matrix h(c_.dim, count);
      for (Eigen::Index i = 0; i < count; ++i) {
        h.col(i) = normalize(embedding(tokens[static_cast<std::size_t>(begin + i)]), norm);
      }
      keys.middleCols(begin, count).noalias() = wk * h;
      values.middleCols(begin, count).noalias() = wv * h;
    }
    for (Eigen::Index t = 0; t < n; ++t) rotate(keys.col(t), t);
    std::vector<Vector> result;
    for (const std::size_t position : positions) {
      result.push_back(after(tokens[position], static_cast<Eigen::Index>(position), keys, values));
    }
    return result;
  }

 private:
  Vector after(Token token, Eigen::Index position, const Matrix& keys, const Matrix& values) const {
    Vector x = embedding(token);
    Vector q = matrix(Role::wq) * normalize(x, matrix(Role::attention_norm).row(0).transpose());
    rotate(q, position);
    Vector attended(q.size());
    const Eigen::Index size = c_.head_size;
    for (Eigen::Index head = 0; head < c_.n_heads; ++head) {
      const Eigen::Index kv = head / (c_.n_heads / c_.n_kv_heads) * size;
      Vector p = keys.block(kv, 0, size, position + 1).transpose() * q.segment(head * size, size) /
                 std::sqrt(static_cast<double>(size));
      p = (p.array() - p.maxCoeff()).exp();
      attended.segment(head * size, size) = values.block(kv, 0, size, position + 1) * p / p.sum();
    }
    x += matrix(Role::wo) * attended;
    const Vector g = normalize(x, matrix(Role::ffn_norm).row(0).transpose());
    const Vector router = matrix(Role::router) * g;
    std::vector<std::pair<double, std::uint32_t>> best;
    for (std::uint32_t e = 0; e < c_.n_experts; ++e) best.emplace_back(-router[e], e);
    std::sort(best.begin(), best.end());
    best.resize(c_.n_experts_used);
    double total = 0.0;
    for (const auto& [negative, e] : best) total += std::exp(best[0].first - negative);
    for (const auto& [negative, e] : best) {
      const Vector gate = matrix(Role::w1, e) * g, up = matrix(Role::w3, e) * g;
      const Vector hidden = gate.array() / (1.0 + (-gate.array()).exp()) * up.array();
      x += std::exp(best[0].first - negative) / total * (matrix(Role::w2, e) * hidden);
    }
    return matrix(Role::output) * normalize(x, matrix(Role::output_norm).row(0).transpose());
  }

  const mixtral::simd::Matrix& stored(Role role, std::uint32_t expert = 0) const {
    for (const auto& tensor : checkpoint_.tensors) {
      if (tensor.role == role && tensor.expert == expert) return tensor.matrix;
    }
    throw std::runtime_error("no such tensor");
  }
  Matrix matrix(Role role, std::uint32_t expert = 0) const {
    const auto& w = stored(role, expert);
    std::vector<float> row(w.cols);
    Matrix m(w.rows, w.cols);
    for (std::size_t r = 0; r < w.rows; ++r) {
      mixtral::simd::select_kernels()->decode_rows(w, r, 1, row.data());
      m.row(static_cast<Eigen::Index>(r)) =
          Eigen::Map<const Eigen::RowVectorXf>(row.data(), static_cast<Eigen::Index>(w.cols))
              .cast<double>();
    }
    return m;
  }
  Vector embedding(Token token) const {
    std::vector<float> row(c_.dim);
    mixtral::simd::select_kernels()->decode_rows(stored(Role::token_embedding),
                                                 static_cast<std::size_t>(token), 1, row.data());
    return Eigen::Map<const Eigen::VectorXf>(row.data(), c_.dim).cast<double>();
  }
  Vector normalize(const Vector& x, const Vector& weight) const {
    const double mean = x.squaredNorm() / static_cast<double>(x.size());
    return (x.array() * weight.array() / std::sqrt(mean + static_cast<double>(c_.norm_epsilon)))
        .matrix();
  }
  void rotate(Eigen::Ref<Vector> x, Eigen::Index position) const {
    for (Eigen::Index i = 0; i < x.size(); i += 2) {
      const double exponent = -static_cast<double>(i % c_.head_size) / c_.head_size;
      const double angle =
          static_cast<double>(position) * std::pow(static_cast<double>(c_.rope_theta), exponent);
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  const mixtral::Checkpoint& checkpoint_;
  const mixtral::Config& c_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Compares a full context with the formulas in double.", "long_context"};
  std::string shape = "8x7b";
  const mixtral::Quantization* type = mixtral::find_quantization("BF16");
  std::uint32_t threads = 0;
  mixtral::BlockFormat kv_format = mixtral::BlockFormat::f16;
  const program::Names<std::string> shapes = {{"8x7b", "8x7b"}, {"8x22b", "8x22b"}};
  program::add_choice(app, "--shape", shape, shapes, "Dimensions (default: 8x7b)");
  program::add_type(app, type,
                    "Type of the weights; quantised ones take 8-bit activations (default: BF16)");
  program::add_threads(app, threads);
  program::add_kv_format(app, kv_format);
  return program::run(app, argc, argv, [&] {
    mixtral::Config config = program::model_shapes().at(shape);
    config.n_layers = 1;
    program::SyntheticModel synthetic(config, *type);
    const std::size_t length = config.context_length;
    std::vector<Token> tokens(length);
    std::mt19937 random(5);
    for (Token& token : tokens) token = static_cast<Token>(3 + random() % (config.vocab_size - 3));
    const std::vector<std::size_t> positions = {0, 4095, 4096, length / 2, length - 1};
    program::Stopwatch time;
    const auto expected = Reference(synthetic.checkpoint).logits(tokens, positions);
    std::printf("reference in double: %.0f s\n", time.seconds());

    const auto model =
        program::value(mixtral::Model::from_checkpoint(std::move(synthetic.checkpoint)));
    auto pool = program::value(mixtral::ThreadPool::create(threads));
    mixtral::SessionOptions options;
    options.executor = pool;
    options.context = config.context_length;
    options.kv_format = kv_format;
    auto session = program::value(mixtral::Session::open(model, options));
    time = program::Stopwatch();
    std::size_t begin = 0;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      program::check(session.append({tokens.data() + begin, positions[i] + 1 - begin}));
      program::check(session.evaluate());
      begin = positions[i] + 1;
      const auto count = static_cast<Eigen::Index>(config.vocab_size);
      const Vector ours =
          Eigen::Map<const Eigen::VectorXf>(session.logits().data(), count).cast<double>();
      Eigen::Index best = 0, expected_best = 0;
      ours.maxCoeff(&best);
      expected[i].maxCoeff(&expected_best);
      std::printf(
          "position %5zu: largest difference %.2e of logits of deviation %.2f; best token %s\n",
          positions[i], (ours - expected[i]).cwiseAbs().maxCoeff(),
          std::sqrt(expected[i].squaredNorm() / static_cast<double>(count)),
          best == expected_best ? "the same" : "another");
    }
    std::printf("%zu tokens in %.0f s; peak memory %s\n", length, time.seconds(),
                program::in_units(program::peak_memory()).c_str());
  });
}
