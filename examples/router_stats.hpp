// How a model's routers treat a text: how often each expert is chosen, layer by layer, and how often a
// token keeps an expert of the token before, as in Jiang et al. 2024, Mixtral of Experts, section 5.
#ifndef MIXTRAL_EXAMPLES_ROUTER_STATS_HPP_
#define MIXTRAL_EXAMPLES_ROUTER_STATS_HPP_

#include <algorithm>
#include <sstream>

#include "program.hpp"

namespace program {

class RouterStats : public mixtral::Observer {
 public:
  // For a text of n_tokens.
  RouterStats(const mixtral::Config& config, std::size_t n_tokens)
      : n_experts_(config.n_experts),
        n_used_(config.n_experts_used),
        layers_(config.n_layers),
        bar_("reading the text", n_tokens) {
    if (!config.has_router()) throw std::runtime_error("a dense model has no routers");
    for (Layer& layer : layers_) layer.n_chosen.resize(n_experts_);
  }

  TextBar& bar() { return bar_; }
  void on_progress(const mixtral::Progress& progress) override { bar_.update(progress); }

  void on_router(std::uint32_t l, std::uint32_t position,
                 mixtral::Span<const std::uint32_t> experts, mixtral::Span<const float>) override {
    Layer& layer = layers_[l];
    for (const std::uint32_t e : experts) ++layer.n_chosen[e];
    ++layer.n_tokens;
    if (position != 0 && !layer.last.empty()) {
      ++layer.n_pairs;
      const auto was_chosen = [&](std::uint32_t e) {
        return std::find(layer.last.begin(), layer.last.end(), e) != layer.last.end();
      };
      layer.n_first_kept += experts[0] == layer.last[0] ? 1 : 0;
      layer.n_any_kept += std::any_of(experts.begin(), experts.end(), was_chosen) ? 1 : 0;
    }
    layer.last.assign(experts.begin(), experts.end());
  }

  // Of each layer: the share of choices that fell on each expert, and the shares of tokens whose first
  // choice, or any choice, was so for the token before.
  nlohmann::json json() const {
    nlohmann::json layers = nlohmann::json::array();
    for (const Layer& layer : layers_) {
      nlohmann::json use = nlohmann::json::array();
      for (const std::uint64_t n : layer.n_chosen)
        use.push_back(ratio(n, layer.n_tokens * n_used_));
      layers.push_back({{"use", std::move(use)},
                        {"first_kept", ratio(layer.n_first_kept, layer.n_pairs)},
                        {"any_kept", ratio(layer.n_any_kept, layer.n_pairs)}});
    }
    return {{"tokens", layers_[0].n_tokens},
            {"random_first_kept", 1.0 / n_experts_},
            {"random_any_kept", random_any_kept()},
            {"layers", std::move(layers)}};
  }

  std::string svg() const {
    constexpr int kCell = 26, kLeft = 70, kTop = 60, kChart = 360;
    const auto n_layers = static_cast<int>(layers_.size());
    const auto n_experts = static_cast<int>(n_experts_);
    const int bottom = kTop + n_layers * kCell;
    const int chart = kLeft + n_experts * kCell + 70;
    const int width = chart + kChart + 30, height = bottom + 60;
    std::ostringstream out;
    out.precision(3);
    out << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << width << "\" height=\"" << height
        << "\" font-family=\"sans-serif\" font-size=\"12\">\n"
        << "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
    text(out, kLeft, 20, "How often experts are used");
    text(out, kLeft, bottom + 38, "darkest: twice an even share, or more");
    text(out, chart, 20, "Tokens that keep an expert: first choice (blue), any (red)");
    for (int e = 0; e < n_experts; ++e) {
      text(out, kLeft + e * kCell + kCell / 2, kTop - 8, std::to_string(e), "middle");
    }
    for (int l = 0; l < n_layers; ++l) {
      const Layer& layer = layers_[static_cast<std::size_t>(l)];
      text(out, kLeft - 8, kTop + l * kCell + 17, std::to_string(l), "end");
      for (int e = 0; e < n_experts; ++e) {
        const double share =
            ratio(layer.n_chosen[static_cast<std::size_t>(e)], layer.n_tokens * n_used_);
        const double shade = std::min(1.0, share * n_experts / 2.0);
        const auto grey = static_cast<int>(255.0 - 215.0 * shade);
        out << "<rect x=\"" << kLeft + e * kCell << "\" y=\"" << kTop + l * kCell << "\" width=\""
            << kCell - 1 << "\" height=\"" << kCell - 1 << "\" fill=\"rgb(" << grey << ',' << grey
            << ",255)\"><title>layer " << l << ", expert " << e << ": " << share * 100.0
            << " %</title></rect>\n";
      }
    }
    text(out, kLeft - 8, kTop - 8, "layer", "end");
    for (int percent = 0; percent <= 100; percent += 25) {
      const int x = chart + kChart * percent / 100;
      line(out, x, kTop, x, bottom, "#ccc");
      text(out, x, bottom + 18, std::to_string(percent) + " %", "middle");
    }
    const auto at = [&](double share) { return chart + static_cast<int>(kChart * share); };
    line(out, at(1.0 / n_experts_), kTop, at(1.0 / n_experts_), bottom, "blue", "4");
    line(out, at(random_any_kept()), kTop, at(random_any_kept()), bottom, "red", "4");
    text(out, chart, bottom + 38, "dashed: if experts were chosen at random");
    for (const bool any : {false, true}) {
      out << "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" << (any ? "red" : "blue")
          << "\" points=\"";
      for (int l = 0; l < n_layers; ++l) {
        const Layer& layer = layers_[static_cast<std::size_t>(l)];
        out << at(ratio(any ? layer.n_any_kept : layer.n_first_kept, layer.n_pairs)) << ','
            << kTop + l * kCell + kCell / 2 << ' ';
      }
      out << "\"/>\n";
    }
    out << "</svg>\n";
    return out.str();
  }

 private:
  struct Layer {
    std::vector<std::uint64_t> n_chosen;  // by expert
    std::uint64_t n_tokens = 0, n_pairs = 0, n_first_kept = 0, n_any_kept = 0;
    std::vector<std::uint32_t> last;  // what the token before chose, best first
  };

  static double ratio(std::uint64_t a, std::uint64_t b) {
    return b == 0 ? 0.0 : static_cast<double>(a) / static_cast<double>(b);
  }

  // That one of k choices of n is among k others: 1 - C(n - k, k) / C(n, k).
  double random_any_kept() const {
    double none = 1.0;
    for (std::uint32_t i = 0; i < n_used_; ++i) {
      none *= std::max(0.0, static_cast<double>(n_experts_) - n_used_ - i) / (n_experts_ - i);
    }
    return 1.0 - none;
  }

  static void text(std::ostream& out, int x, int y, const std::string& words,
                   const char* anchor = "start") {
    out << "<text x=\"" << x << "\" y=\"" << y << "\" text-anchor=\"" << anchor << "\">" << words
        << "</text>\n";
  }
  static void line(std::ostream& out, int x1, int y1, int x2, int y2, const char* colour,
                   const char* dashes = "none") {
    out << "<line x1=\"" << x1 << "\" y1=\"" << y1 << "\" x2=\"" << x2 << "\" y2=\"" << y2
        << "\" stroke=\"" << colour << "\" stroke-dasharray=\"" << dashes << "\"/>\n";
  }

  std::uint32_t n_experts_, n_used_;
  std::vector<Layer> layers_;
  TextBar bar_;
};

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_ROUTER_STATS_HPP_
