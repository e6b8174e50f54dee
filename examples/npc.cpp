// A village whose people think between two frames: sixty frames a second by the clock, on one thread.
//
// Who meets the child ('@') weighs two courses on branches of a shared past, takes the likelier one, and
// answers as JSON, which the game obeys. All of it happens in slices of time; at the end the
// program tells how long frames took. In a terminal the village is drawn.
#include <mixtral/json_schema.hpp>

#include <array>
#include <optional>
#include <random>
#include <thread>

#include "bundled_model.hpp"
#include "program.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr int kWidth = 48, kHeight = 12;
constexpr std::chrono::nanoseconds kFrame(1000000000 / 60);

constexpr char kSchema[] = R"({"type": "object", "properties": {
    "says": {"type": "string", "pattern": "^[A-Z][a-z ,]{3,40}[.!?]$"},
    "step": {"enum": ["north", "south", "east", "west", "stay"]}}, "required": ["says", "step"]})";

struct Place {
  int x, y;
};

Place clamped(Place p) { return {std::clamp(p.x, 0, kWidth - 1), std::clamp(p.y, 0, kHeight - 1)}; }

// A person of the village: a place on the map and, sometimes, thoughts in progress.
class Villager {
 public:
  Villager(const char* name, const char* nature, Place place)
      : name_(name), nature_(nature), place_(place) {}

  char letter() const { return name_[0]; }
  Place place() const { return place_; }
  bool thinks() const { return !branches_.empty(); }
  const std::string& words() const { return words_; }
  std::size_t n_answers() const { return n_answers_; }

  // Begins to think, on branches of `root`, whose past is the village's.
  void meet_child(const mixtral::Session& root, std::uint64_t seed) {
    seed_ = seed;
    for (const char* course : kCourses) {
      branches_.push_back(program::value(root.fork()));
      program::check(branches_.back().append(" " + name_ + " was a " + nature_ + ". One day, " +
                                             name_ + " saw a little girl." + course));
    }
  }

  // Thinks until `end`, or until done.
  void think(Clock::time_point end, const mixtral::Grammar& grammar) {
    if (!answer_) {
      mixtral::Session* both[] = {&branches_[0], &branches_[1]};
      if (program::value(mixtral::Session::advance_all({both, 2}, end - Clock::now())) ==
          mixtral::Progress::working) {
        return;
      }
      answer_on_better_branch(grammar);
    }
    while (Clock::now() < end) {
      const auto progress = answer_->advance(end - Clock::now());
      json_ += answer_->piece();
      if (answer_->stop_reason() != mixtral::StopReason::none) return finish();
      if (progress == mixtral::Progress::working) return;
    }
  }

 private:
  static constexpr std::array<const char*, 2> kCourses = {" She was happy and said:",
                                                          " She was scared and said:"};

  // Which course goes on more surely? Its branch stays.
  void answer_on_better_branch(const mixtral::Grammar& grammar) {
    const mixtral::Token quote = branches_[0].model().tokenizer().find("\xE2\x96\x81\"");
    const auto favour = [&](const mixtral::Session& s) {
      return quote == mixtral::kNoToken ? 0.0 : s.log_probability(quote);
    };
    if (favour(branches_[1]) > favour(branches_[0])) branches_[0] = std::move(branches_[1]);
    branches_.pop_back();
    mixtral::GenerateOptions options;
    options.grammar = grammar;
    options.max_tokens = 100;
    options.sampling.temperature = 0.7f;
    options.sampling.seed = seed_;
    answer_.emplace(branches_[0].generate(options));
  }

  void finish() {
    if (answer_->stop_reason() == mixtral::StopReason::error) program::check(answer_->error());
    const json answer = json::parse(json_, nullptr, false);
    if (!answer.is_discarded()) {  // unless 100 tokens were not enough
      words_ = name_ + ": " + answer["says"].get<std::string>();
      const auto step = answer["step"].get<std::string>();
      const int dx = step == "east" ? 1 : step == "west" ? -1 : 0;
      const int dy = step == "south" ? 1 : step == "north" ? -1 : 0;
      place_ = clamped({place_.x + 2 * dx, place_.y + dy});
      ++n_answers_;
    }
    json_.clear();
    answer_.reset();
    branches_.clear();
  }

  std::string name_, nature_, words_, json_;
  Place place_;
  std::uint64_t seed_ = 0;
  std::vector<mixtral::Session> branches_;
  std::optional<mixtral::Generation> answer_;
  std::size_t n_answers_ = 0;
};

class Game {
 public:
  Game(const mixtral::Session& root, std::uint64_t seed) : root_(root), random_(seed) {
    villagers_.emplace_back("Lily", "baker who likes cake", Place{10, 3});
    villagers_.emplace_back("Ben", "farmer with a big dog", Place{24, 8});
    villagers_.emplace_back("Mia", "cat lady who sings", Place{38, 4});
  }

  // One step of everything but thoughts.
  void update() {
    if (frame_++ % 6 == 0) {
      if (frame_ % 120 == 1) goal_ = {any(kWidth), any(kHeight)};
      child_.x += child_.x < goal_.x ? 1 : child_.x > goal_.x ? -1 : 0;
      child_.y += child_.y < goal_.y ? 1 : child_.y > goal_.y ? -1 : 0;
    }
    for (Villager& villager : villagers_) {
      const bool is_near = std::abs(villager.place().x - child_.x) < 14;
      if (is_near && !villager.thinks()) villager.meet_child(root_, random_());
    }
  }

  // Those who think take turns.
  void think(Clock::time_point end, const mixtral::Grammar& grammar) {
    for (std::size_t i = 0; i < villagers_.size() && Clock::now() < end; ++i) {
      Villager& villager = villagers_[turn_ % villagers_.size()];
      if (villager.thinks()) villager.think(end, grammar);
      if (!villager.thinks()) ++turn_;
    }
  }

  std::string picture() const {
    std::string picture(static_cast<std::size_t>((kWidth + 1) * kHeight), '.');
    for (int y = 0; y < kHeight; ++y) at(picture, {kWidth, y}) = '\n';
    for (const Villager& villager : villagers_) at(picture, villager.place()) = villager.letter();
    at(picture, child_) = '@';
    for (const Villager& villager : villagers_) picture += villager.words() + "\033[K\n";
    return picture;
  }

  const std::vector<Villager>& villagers() const { return villagers_; }

 private:
  static char& at(std::string& picture, Place p) {
    return picture[static_cast<std::size_t>(p.y * (kWidth + 1) + p.x)];
  }
  int any(int n) { return static_cast<int>(random_() % static_cast<std::uint64_t>(n)); }

  const mixtral::Session& root_;
  std::mt19937_64 random_;
  std::vector<Villager> villagers_;
  Place child_{2, 2}, goal_{2, 2};
  std::uint64_t frame_ = 0;
  std::size_t turn_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"A village whose people think between frames.", "npc"};
  std::string path;
  double seconds = 10.0, think_ms = 8.0;
  std::uint64_t seed = 1;
  bool as_json = false;
  program::add_model_or_bundled(app, path);
  program::add_number(app, "--seconds", seconds, {0.0, 86400.0, true}, "How long to play");
  program::add_number(app, "--think-ms", think_ms, {0.1, 14.0},
                      "Of each frame's 16.7 ms, what thinking gets");
  program::add_number(app, "--seed", seed, program::at_least(std::uint64_t{0}),
                      "Seed of where the child goes and what is said");
  app.add_flag("--json", as_json, "Print one JSON object at the end");

  return program::run(app, argc, argv, [&] {
    const auto model = program::open_model(path);
    const mixtral::Grammar grammar = program::value(mixtral::json_schema_grammar(kSchema));
    mixtral::SessionOptions options;
    options.context = 512;
    options.branches = 7;  // the village's, and two for each of three
    auto root = program::value(mixtral::Session::open(model, options));
    program::check(root.append("Once upon a time, there was a small village near a forest."));
    program::check(root.evaluate());

    Game game(root, seed);
    const bool drawn = program::is_terminal(stdout) && !as_json;
    const std::chrono::nanoseconds thinking(std::llround(think_ms * 1e6));
    std::vector<double> frames;  // what each took, in milliseconds
    const auto begin = Clock::now();
    const auto n_frames = std::max<std::int64_t>(1, std::llround(seconds * 60.0));
    if (drawn) std::cout << "\033[2J";
    for (std::int64_t frame = 0; frame < n_frames; ++frame) {
      const auto start = Clock::now();
      game.update();
      const std::string picture = game.picture();
      if (drawn) std::cout << "\033[H" << picture << std::flush;
      game.think(Clock::now() + thinking, grammar);
      frames.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
      std::this_thread::sleep_until(begin + kFrame * (frame + 1));
    }
    std::sort(frames.begin(), frames.end());
    const double last = static_cast<double>(frames.size() - 1);
    const double median = frames[static_cast<std::size_t>(0.5 * last)];
    const double p99 = frames[static_cast<std::size_t>(0.99 * last)];
    const auto n_late =
        std::count_if(frames.begin(), frames.end(), [](double ms) { return ms > 1000.0 / 60.0; });
    std::size_t n_answers = 0;
    json words = json::array();
    for (const Villager& villager : game.villagers()) {
      n_answers += villager.n_answers();
      if (!villager.words().empty()) words.push_back(villager.words());
    }
    if (as_json) {
      std::cout << program::dump({{"frames", frames.size()},
                                  {"median_ms", median},
                                  {"p99_ms", p99},
                                  {"longest_ms", frames.back()},
                                  {"late", n_late},
                                  {"answers", n_answers},
                                  {"words", words}})
                << '\n';
      return;
    }
    if (!drawn) {
      for (const json& line : words) std::cout << line.get<std::string>() << '\n';
    }
    std::printf(
        "%zu frame%s: %.2f ms in the median, 99 %% within %.2f ms, the longest %.2f ms, "
        "%lld late; %zu answer%s\n",
        frames.size(), frames.size() == 1 ? "" : "s", median, p99, frames.back(),
        static_cast<long long>(n_late), n_answers, n_answers == 1 ? "" : "s");
  });
}
