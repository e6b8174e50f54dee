// Saved sessions.
#include "support.hpp"

using namespace support;
using mixtral::ErrorCode;
using mixtral::Session;
using mixtral::Token;

namespace {

Session open_session(const mixtral::Model& model, std::uint32_t context = 300,
                     mixtral::BlockFormat format = mixtral::BlockFormat::f16,
                     std::uint32_t branches = 1) {
  mixtral::SessionOptions options;
  options.context = context;
  options.batch = 64;
  options.kv_format = format;
  options.branches = branches;
  return value(Session::open(model, options));
}

Blob save(const Session& s) {
  Blob saved;
  const auto write = [&](const void* from, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(from);
    saved.insert(saved.end(), bytes, bytes + size);
    return true;
  };
  REQUIRE(s.save(write));
  return saved;
}

mixtral::Status load(Session& s, const Blob& saved) {
  std::size_t at = 0;
  const auto read = [&](void* to, std::size_t size) {
    if (size > saved.size() - at) return false;
    std::memcpy(to, saved.data() + at, size);
    at += size;
    return true;
  };
  const auto status = s.load(read);
  if (status) CHECK(at == saved.size());
  return status;
}

std::string go_on(Session& s) {
  std::string text;
  for (const std::string_view piece : s.generate(exactly(20, s.model()))) text += piece;
  return text;
}

}  // namespace

TEST_CASE("snapshot: a loaded session goes on as the saved one would have") {
  const mixtral::Model model = open(bundled_model());
  for (const auto format : {mixtral::BlockFormat::f16, mixtral::BlockFormat::q8_0}) {
    Session s = open_session(model, 300, format);
    REQUIRE(s.append_chat({{"user",
                            "Tell me about a dog and a very big house with a garden, a tree, "
                            "a pond and a fence, and who lives there with whom, please."}}));
    SUBCASE("not evaluated") {}
    SUBCASE("in the middle of a pass") {
      for (int i = 0; i < 40; ++i) REQUIRE(s.advance(std::chrono::nanoseconds(0)));
    }
    SUBCASE("with logits") { REQUIRE(s.evaluate()); }
    SUBCASE("after some text") { go_on(s); }
    const Blob saved = save(s);
    Session other = open_session(model, 400, format, 2);
    REQUIRE(other.append("Something else"));
    REQUIRE(other.evaluate());
    Session fork = value(other.fork());
    REQUIRE(load(other, saved));
    CHECK(std::equal(other.tokens().begin(), other.tokens().end(), s.tokens().begin(),
                     s.tokens().end()));
    CHECK(other.has_logits() == s.has_logits());
    CHECK(save(other) == saved);
    CHECK(go_on(other) == go_on(s));
    REQUIRE(s.append_chat({{"user", "Why?"}}));  // still a chat
    REQUIRE(other.append_chat({{"user", "Why?"}}));
    CHECK(save(other).size() == save(s).size());
    CHECK(go_on(other) == go_on(s));
    REQUIRE(fork.append("."));
    CHECK(fork.evaluate());
  }
}

TEST_CASE("snapshot: of a session that has forgotten, or whose window has moved") {
  Synthetic synthetic;
  synthetic.context_length = 500;
  SUBCASE("window") { synthetic.sliding_window = 70; }
  SUBCASE("forgotten") {}
  synthetic.randomize(3);
  const mixtral::Model model = open(synthetic.writer().finish());
  Session s = open_session(model, 400, mixtral::BlockFormat::f32);
  std::vector<Token> tokens(300);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(i * i % 300);
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  if (synthetic.sliding_window == 0) REQUIRE(s.forget_oldest(3, 100));
  Session other = open_session(model, 400, mixtral::BlockFormat::f32);
  REQUIRE(load(other, save(s)));
  for (Session* one : {&s, &other}) {
    REQUIRE(one->append(Token{9}));
    REQUIRE(one->evaluate());
  }
  CHECK(std::equal(s.logits().begin(), s.logits().end(), other.logits().begin()));
}

TEST_CASE("snapshot: an empty session") {
  const mixtral::Model model = open(bundled_model());
  Session s = open_session(model);
  const Blob saved = save(s);
  REQUIRE(s.append("Once"));
  REQUIRE(load(s, saved));
  CHECK(s.tokens().empty());
  REQUIRE(s.append("Once"));
  CHECK(s.evaluate());
}

TEST_CASE("snapshot: damage is refused, wherever it is, and the session is usable") {
  const mixtral::Model model = open(bundled_model());
  Session s = open_session(model);
  REQUIRE(s.append("Once upon a time"));
  REQUIRE(s.evaluate());
  const Blob saved = save(s);
  Session other = open_session(model);
  std::mt19937 random(1);
  for (int i = 0; i < 600; ++i) {
    const std::size_t at = i < 80 ? static_cast<std::size_t>(i) : random() % saved.size();
    Blob bad = saved;
    bad[at] = static_cast<std::uint8_t>(bad[at] ^ (1u << random() % 8));
    const auto status = load(other, bad);
    CAPTURE(at);
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::bad_format);
    CHECK(std::string(status.error().message()).find("loading a session") == 0);
    CHECK(!other.has_logits());
    CHECK(other.tokens().empty());
  }
  for (int i = 0; i < 100; ++i) {
    Blob part(saved.begin(), saved.begin() + static_cast<std::ptrdiff_t>(random() % saved.size()));
    const auto status = load(other, part);
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::io);
    CHECK(other.tokens().empty());
  }
  const auto refuses = [](const void*, std::size_t) { return false; };
  const auto refused = s.save(refuses);
  REQUIRE(!refused);
  CHECK(refused.error().code() == ErrorCode::io);
  REQUIRE(load(other, saved));
  CHECK(go_on(other) == go_on(s));
}

TEST_CASE("snapshot: what does not fit is refused by name and changes nothing") {
  const mixtral::Model model = open(bundled_model());
  Session s = open_session(model);
  std::vector<Token> tokens(200, 5);
  REQUIRE(s.append(span(tokens)));
  REQUIRE(s.evaluate());
  const Blob saved = save(s);
  const auto check_refused = [&](Session& other, ErrorCode code, const std::string& part) {
    REQUIRE(other.append(Token{7}));
    const auto status = load(other, saved);
    REQUIRE(!status);
    CHECK(status.error().code() == code);
    CAPTURE(status.error().message());
    CHECK(std::string(status.error().message()).find(part) != std::string::npos);
    CHECK(other.tokens().size() == 1);
    CHECK(other.evaluate());
  };
  Session small = open_session(model, 100);
  check_refused(small, ErrorCode::context_full, "200");
  Session other_format = open_session(model, 300, mixtral::BlockFormat::q8_0);
  check_refused(other_format, ErrorCode::invalid_argument, "F16");
  Synthetic synthetic;
  synthetic.randomize(1);
  const mixtral::Model stranger = open(synthetic.writer().finish());
  Session of_stranger = open_session(stranger, 64);
  check_refused(of_stranger, ErrorCode::invalid_argument, "another model");
  synthetic.randomize(2);  // the same shape
  const mixtral::Model twin = open(synthetic.writer().finish());
  Session of_twin = open_session(twin, 64, mixtral::BlockFormat::f32);
  Session at_home = open_session(stranger, 64, mixtral::BlockFormat::f32);
  CHECK(!load(of_twin, save(at_home)));
  CHECK(load(at_home, save(at_home)));

  // Forks that have taken all pages.
  mixtral::SessionOptions options;
  options.context = 300;
  options.branches = 2;
  options.kv_tokens = 200;
  Session one = value(Session::open(model, options));
  Session two = value(one.fork());
  REQUIRE(one.append(span(tokens)));
  REQUIRE(one.evaluate());
  const auto full = load(two, saved);
  REQUIRE(!full);
  CHECK(full.error().code() == ErrorCode::context_full);
  CHECK(two.tokens().empty());
  one.clear();
  CHECK(load(two, saved));
}

TEST_CASE("snapshot: weights in a mapped file or copied are the same model") {
  mixtral::ModelOptions copied;
  copied.copy_weights = true;
  const mixtral::Model in_file = open(bundled_model());
  const mixtral::Model in_memory = value(mixtral::Model::open(bundled_model().c_str(), copied));
  const mixtral::Model* const models[] = {&in_file, &in_memory};
  for (const auto* from : models) {
    Session s = open_session(*from);
    REQUIRE(s.append("Once upon a time"));
    REQUIRE(s.evaluate());
    const Blob saved = save(s);
    const std::string text = go_on(s);
    for (const auto* to : models) {
      Session other = open_session(*to);
      REQUIRE(load(other, saved));
      CHECK(save(other) == saved);
      CHECK(go_on(other) == text);
    }
  }
  // Copies of other models are others, also in their weights alone.
  Synthetic synthetic;
  std::vector<mixtral::Model> twins;
  for (const unsigned seed : {1u, 2u}) {
    synthetic.randomize(seed);
    const Blob blob = synthetic.writer().finish();
    twins.push_back(value(mixtral::Model::from_bytes(mixtral::Bytes::view(bytes(blob)), copied)));
  }
  Session one = open_session(twins[0], 64, mixtral::BlockFormat::f32);
  Session two = open_session(twins[1], 64, mixtral::BlockFormat::f32);
  CHECK(!load(two, save(one)));
}

TEST_CASE("model: copying weights tells how far it is, and can be cancelled") {
  std::vector<mixtral::Progress> told;
  std::size_t most = 1u << 30;
  const auto listen = [&](const mixtral::Progress& progress) {
    told.push_back(progress);
    return told.size() <= most;
  };
  mixtral::ModelOptions options;
  options.progress = listen;
  CHECK(mixtral::Model::open(bundled_model().c_str(), options));
  CHECK(told.empty());  // a mapped file is not read
  options.copy_weights = true;
  const mixtral::Model model = value(mixtral::Model::open(bundled_model().c_str(), options));
  REQUIRE(told.size() > 50);
  CHECK(told.front().n_done == 0);
  for (std::size_t i = 0; i < told.size(); ++i) {
    CHECK(told[i].n_total == told.back().n_done);
    if (i != 0) CHECK(told[i].n_done > told[i - 1].n_done);
    CHECK((told[i] == mixtral::Progress::done) == (i + 1 == told.size()));
  }
  CHECK(told.back().n_total >= model.weight_bytes());
  for (most = 0; most < 60; most += 13) {
    told.clear();
    const auto cancelled = mixtral::Model::open(bundled_model().c_str(), options);
    REQUIRE(!cancelled);
    CHECK(cancelled.error().code() == ErrorCode::cancelled);
    CHECK(told.size() == most + 1);
  }
}
