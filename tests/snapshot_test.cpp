// Saved sessions.
#include "snapshots.hpp"

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

namespace {

// 24 wide, with heads of 32, whose rows all formats can keep.
Synthetic small_synthetic(std::uint32_t sliding_window = 0) {
  Synthetic synthetic;
  synthetic.head_size = 32;
  synthetic.context_length = 400;
  synthetic.sliding_window = sliding_window;
  synthetic.randomize(61);
  return synthetic;
}

std::vector<Token> small_tokens(std::size_t n, std::uint32_t seed) {
  std::vector<Token> tokens = some_tokens(n, seed);
  for (Token& t : tokens) t %= 300;
  return tokens;
}

}  // namespace

TEST_CASE("snapshot: a saved session is laid out as the format says") {
  const mixtral::Model model = open(small_synthetic().writer().finish());
  for (const auto format : {mixtral::BlockFormat::f32, mixtral::BlockFormat::q8_0}) {
    Session s = open_session(model, 300, format);
    const std::vector<Token> tokens = small_tokens(70, 1);
    REQUIRE(s.append(span(tokens)));
    REQUIRE(s.evaluate());
    REQUIRE(s.append(Token{9}));  // not evaluated
    const auto check = [&](std::uint32_t n_tokens, std::uint32_t n_evaluated, bool has_logits) {
      const Blob saved = save(s);
      const SnapshotHead head = head_of(saved);
      CHECK(std::string(head.magic, 8) == "MIXTRALS");
      CHECK(head.version == 1);
      CHECK(head.kv_format == static_cast<std::uint32_t>(format));
      CHECK(head.rotary_offset == 0);
      CHECK(head.n_tokens == n_tokens);
      CHECK(head.n_evaluated == n_evaluated);
      CHECK(head.first_page == 0);
      CHECK(head.has_logits == (has_logits ? 1 : 0));
      const Blob body = body_of(saved);
      CHECK(snapshot(head, model.config(), body) == saved);
      if (n_tokens == 0) return;
      CHECK(std::memcmp(body.data(), tokens.data(), tokens.size() * sizeof(Token)) == 0);
      if (!has_logits) return;
      const std::size_t n_bytes = s.logits().size() * sizeof(float);
      CHECK(std::memcmp(body.data() + body.size() - n_bytes, s.logits().data(), n_bytes) == 0);
    };
    check(71, 70, false);
    REQUIRE(s.evaluate());
    check(71, 71, true);
    s.clear();
    check(0, 0, false);
  }
}

TEST_CASE(
    "snapshot: each field of the header is taken up to its limit, and refused beyond it "
    "unchanged") {
  const mixtral::Model model = open(small_synthetic().writer().finish());
  Session s = open_session(model, 200, mixtral::BlockFormat::f32);
  REQUIRE(s.append(span(small_tokens(150, 2))));
  REQUIRE(s.evaluate());
  const Blob saved = save(s), body = body_of(saved);
  const SnapshotHead good = head_of(saved);
  Session other = open_session(model, 200, mixtral::BlockFormat::f32);
  REQUIRE(other.append(Token{7}));
  REQUIRE(other.evaluate());
  const std::vector<float> before = logits_of(other);
  const auto check_refused = [&](const SnapshotHead& head, ErrorCode code,
                                 const std::string& part) {
    const auto status = load(other, snapshot(head, model.config(), body));
    REQUIRE(!status);
    CHECK(status.error().code() == code);
    CAPTURE(status.error().message());
    CHECK(std::string(status.error().message()).find("loading a session") == 0);
    CHECK(std::string(status.error().message()).find(part) != std::string::npos);
    CHECK(tokens_of(other) == std::vector<Token>{7});
    CHECK(logits_of(other) == before);
  };
  const auto check_taken = [&](const SnapshotHead& head) {
    const Blob changed = snapshot(head, model.config(), {});  // zeros
    Session third = open_session(model, 200, mixtral::BlockFormat::f32);
    REQUIRE(load(third, changed));
    CHECK(third.tokens().size() == head.n_tokens);
    CHECK(third.has_logits() == (head.has_logits != 0));
    CHECK(save(third) == changed);
  };
  const auto with = [&](auto change) {
    SnapshotHead head = good;
    change(head);
    return head;
  };
  check_taken(good);
  for (std::size_t i = 0; i < 8; ++i) {
    check_refused(with([&](SnapshotHead& h) { h.magic[i] ^= 1; }), ErrorCode::bad_format,
                  "no saved session");
  }
  for (const std::uint32_t version : {0u, 2u}) {
    check_refused(with([&](SnapshotHead& h) { h.version = version; }), ErrorCode::bad_format,
                  "of version " + std::to_string(version));
  }
  check_refused(with([](SnapshotHead& h) { h.model ^= 1; }), ErrorCode::invalid_argument,
                "another model");
  check_refused(with([](SnapshotHead& h) {
                  h.kv_format = static_cast<std::uint32_t>(mixtral::BlockFormat::f16);
                }),
                ErrorCode::invalid_argument, "F16");
  {
    SnapshotHead head = good;  // a format that there is not has no rows to be made up here
    head.kv_format = 999;
    SnapshotSum sum;
    sum.add(reinterpret_cast<const std::uint8_t*>(&head), 48);
    head.checksum = sum.value();
    Blob unknown;
    GgufWriter::put(head, unknown);
    const auto status = load(other, unknown);
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::invalid_argument);
    CHECK(std::string(status.error().message()).find("unknown format") != std::string::npos);
  }
  {
    Blob bad = saved;  // the header's own checksum
    bad[48] ^= 1;
    const auto status = load(other, bad);
    REQUIRE(!status);
    CHECK(status.error().code() == ErrorCode::bad_format);
    CHECK(std::string(status.error().message()).find("header") != std::string::npos);
  }
  // What is evaluated are tokens that there are.
  check_taken(with([](SnapshotHead& h) { h.n_evaluated = 149, h.has_logits = 0; }));
  check_taken(with([](SnapshotHead& h) { h.n_evaluated = 0, h.has_logits = 0; }));
  check_refused(with([](SnapshotHead& h) { h.n_evaluated = 151, h.has_logits = 0; }),
                ErrorCode::bad_format, "header");
  check_refused(with([](SnapshotHead& h) { h.n_tokens = 149; }), ErrorCode::bad_format, "header");
  // Logits follow the last token, and are there or not.
  check_taken(with([](SnapshotHead& h) { h.has_logits = 0; }));
  check_refused(with([](SnapshotHead& h) { h.has_logits = 2; }), ErrorCode::bad_format, "header");
  check_refused(with([](SnapshotHead& h) { h.n_evaluated = 149; }), ErrorCode::bad_format,
                "header");
  check_refused(with([](SnapshotHead& h) { h.n_evaluated = h.n_tokens = 0; }),
                ErrorCode::bad_format, "header");
  check_taken(with([](SnapshotHead& h) { h.n_evaluated = h.n_tokens = h.has_logits = 0; }));
  // Pages that are gone come before the end of what was evaluated.
  check_taken(with([](SnapshotHead& h) { h.first_page = 2; }));
  check_taken(with([](SnapshotHead& h) { h.first_page = 3; }));  // and the last may be gone, too
  check_refused(with([](SnapshotHead& h) { h.first_page = 4; }), ErrorCode::bad_format, "header");
  check_refused(with([](SnapshotHead& h) { h.first_page = 0xFFFFFFFFu; }), ErrorCode::bad_format,
                "header");
  check_taken(with([](SnapshotHead& h) { h.n_tokens = h.n_evaluated = 128, h.first_page = 2; }));
  check_refused(with([](SnapshotHead& h) { h.n_tokens = h.n_evaluated = 128, h.first_page = 3; }),
                ErrorCode::bad_format, "header");
  // Positions beyond all that sessions come to would have no angles.
  check_taken(with([](SnapshotHead& h) { h.rotary_offset = (std::uint64_t{1} << 39); }));
  check_refused(with([](SnapshotHead& h) { h.rotary_offset = (std::uint64_t{1} << 39) + 1; }),
                ErrorCode::bad_format, "header");
  check_refused(with([](SnapshotHead& h) { h.rotary_offset = ~std::uint64_t{0}; }),
                ErrorCode::bad_format, "header");
  // The context.
  check_taken(with([](SnapshotHead& h) { h.n_tokens = 200, h.has_logits = 0; }));
  check_taken(with([](SnapshotHead& h) { h.n_tokens = h.n_evaluated = 200; }));
  check_refused(with([](SnapshotHead& h) { h.n_tokens = 201, h.has_logits = 0; }),
                ErrorCode::context_full, "201");
  // What the header shows is told before anything else is read.
  std::size_t n_read = 0;
  const auto only_head = [&](void* to, std::size_t size) {
    const Blob bad = snapshot(with([](SnapshotHead& h) { h.version = 2; }), model.config(), body);
    n_read += size;
    if (n_read > sizeof(SnapshotHead)) return false;
    std::memcpy(to, bad.data(), size);
    return true;
  };
  CHECK(other.load(only_head).error().code() == ErrorCode::bad_format);
  CHECK(n_read == sizeof(SnapshotHead));
}

TEST_CASE("snapshot: tokens and turns that cannot be are refused, and the session is empty") {
  const mixtral::Model model = open(small_synthetic().writer().finish());
  Session s = open_session(model, 200, mixtral::BlockFormat::f32);
  REQUIRE(s.append(span(small_tokens(20, 3))));
  REQUIRE(s.evaluate());
  const Blob saved = save(s);
  const SnapshotHead head = head_of(saved);
  const auto loads = [&](std::size_t at, auto number) {
    Blob body = body_of(saved);
    std::memcpy(body.data() + at, &number, sizeof number);
    Session other = open_session(model, 200, mixtral::BlockFormat::f32);
    REQUIRE(other.append(Token{7}));
    const auto status = load(other, snapshot(head, model.config(), body));
    if (status) return true;
    CHECK(status.error().code() == ErrorCode::bad_format);
    CHECK(other.tokens().empty());
    CHECK(!other.has_logits());
    CHECK(!other.evaluate());  // there is nothing
    REQUIRE(other.append(Token{7}));
    CHECK(other.evaluate());
    return false;
  };
  for (const std::size_t i : {0u, 19u}) {
    CHECK(loads(4 * i, std::int32_t{0}));
    CHECK(loads(4 * i, std::int32_t{299}));
    CHECK(!loads(4 * i, std::int32_t{300}));
    CHECK(!loads(4 * i, std::int32_t{-1}));
    CHECK(!loads(4 * i, std::numeric_limits<std::int32_t>::min()));
    for (const unsigned turn : {0u, 3u, 0x80u, 0x83u}) {
      CHECK(loads(80 + i, static_cast<std::uint8_t>(turn)));
    }
    for (const unsigned turn : {4u, 0x40u, 0x7Fu, 0x84u, 0xFFu}) {
      CHECK(!loads(80 + i, static_cast<std::uint8_t>(turn)));
    }
  }
}

TEST_CASE("snapshot: what was cancelled before a session was loaded is no longer wanted") {
  const mixtral::Model model = open(small_synthetic().writer().finish());
  Session s = open_session(model, 200, mixtral::BlockFormat::f32);
  REQUIRE(s.append(span(small_tokens(50, 10))));
  REQUIRE(s.evaluate());
  REQUIRE(s.append(span(small_tokens(30, 11))));
  const Blob saved = save(s);  // 30 tokens are to be computed
  Session other = open_session(model, 200, mixtral::BlockFormat::f32);
  REQUIRE(other.append(Token{1}));
  other.cancel();
  REQUIRE(load(other, saved));
  const mixtral::Progress progress = value(other.advance(std::chrono::nanoseconds(0)));
  CHECK(progress.n_total == 30 * (model.config().n_layers + 1));
  for (Session* one : {&s, &other}) REQUIRE(one->evaluate());
  CHECK(logits_of(other) == logits_of(s));
  // A load that the header forbids takes nothing back.
  REQUIRE(other.append(Token{1}));
  other.cancel();
  Blob bad = saved;
  bad[0] ^= 1;
  CHECK(!load(other, bad));
  const auto cancelled = other.evaluate();
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code() == ErrorCode::cancelled);
}

TEST_CASE(
    "snapshot: a model that differs in one number of its configuration or one matrix is another") {
  const Synthetic synthetic = small_synthetic();
  const Blob file = synthetic.writer().finish();
  Blob saved;
  {
    const mixtral::Model model = open(file);
    Session s = open_session(model, 20, mixtral::BlockFormat::f32);
    REQUIRE(s.append(Token{5}));
    saved = save(s);
  }
  const auto is_taken = [&](const Blob& of_model) {
    const mixtral::Model model = open(of_model);
    Session s = open_session(model, 20, mixtral::BlockFormat::f32);
    const auto status = load(s, saved);
    if (!status) CHECK(status.error().code() == ErrorCode::invalid_argument);
    return static_cast<bool>(status);
  };
  CHECK(is_taken(file));
  const auto with = [&](auto change) {
    Synthetic other = synthetic;
    change(other);
    return other.writer().finish();
  };
  CHECK(!is_taken(with([](Synthetic& s) { s.rope_theta = 20000.0f; })));
  CHECK(!is_taken(with([](Synthetic& s) { s.rope_linear_factor = 2.0f; })));
  CHECK(!is_taken(with([](Synthetic& s) { s.norm_epsilon = 2e-5f; })));
  CHECK(!is_taken(with([](Synthetic& s) { s.sliding_window = 30; })));
  CHECK(!is_taken(with([](Synthetic& s) { s.n_experts_used = 3; })));
  CHECK(is_taken(with([](Synthetic& s) { s.context_length = 500; })));  // only a limit
  // The first and the last numbers of each tensor; of experts, each has its own matrix.
  GgufWriter writer = synthetic.writer();
  for (auto& tensor : writer.tensors) {
    const std::size_t n_parts = tensor.shape.size() == 3 ? synthetic.n_experts : 1;
    const std::size_t part_bytes = tensor.data.size() / n_parts;
    for (std::size_t begin = 0; begin < tensor.data.size(); begin += part_bytes) {
      CAPTURE(tensor.name);
      CAPTURE(begin);
      for (const std::size_t at : {begin, begin + part_bytes - 4}) {
        tensor.data[at] ^= 1;
        CHECK(!is_taken(writer.finish()));
        tensor.data[at] ^= 1;
      }
    }
  }
}

TEST_CASE(
    "snapshot: loading needs as many free pages as what is loaded takes, and gives them back if it "
    "fails") {
  const mixtral::Model model = open(small_synthetic().writer().finish());
  Session s = open_session(model, 300, mixtral::BlockFormat::f32);
  REQUIRE(s.append(span(small_tokens(192, 4))));
  REQUIRE(s.evaluate());
  const Blob saved = save(s);  // three pages
  mixtral::SessionOptions options = options_for(300, 2);
  options.kv_tokens = 256;  // five pages
  Session one = value(Session::open(model, options));
  Session two = value(one.fork());
  const auto fill = [&](std::uint32_t n) {
    one.clear();
    REQUIRE(one.append(span(small_tokens(n, 5))));
    REQUIRE(one.evaluate());
  };
  fill(129);  // two are left
  REQUIRE(two.append(Token{1}));
  const auto full = load(two, saved);
  REQUIRE(!full);
  CHECK(full.error().code() == ErrorCode::context_full);
  CHECK(two.tokens().empty());
  fill(128);
  REQUIRE(load(two, saved));
  // Its own pages are free for what it loads.
  REQUIRE(load(two, saved));
  CHECK(save(two) == saved);
  // Loads that fail at any point keep none: the other can have all five.
  const auto check_room = [&] {
    CHECK(two.tokens().empty());
    fill(300);
    one.clear();
  };
  Blob damaged = saved;
  damaged[damaged.size() - 20] ^= 1;
  one.clear();
  CHECK(load(two, damaged).error().code() == ErrorCode::bad_format);
  check_room();
  for (const std::size_t size :
       {std::size_t{60}, std::size_t{900}, saved.size() / 2, saved.size() - 1}) {
    const Blob part(saved.begin(), saved.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(load(two, part).error().code() == ErrorCode::io);
    check_room();
  }
  SnapshotHead head = head_of(saved);
  Blob body = body_of(saved);
  body[3] = 0xFF;  // a token that is none
  CHECK(load(two, snapshot(head, model.config(), body)).error().code() == ErrorCode::bad_format);
  check_room();
  std::size_t at = 0;
  const auto throwing = [&](void* to, std::size_t size) {
    if (at + size > saved.size() / 2) throw std::runtime_error("thrown by the host");
    std::memcpy(to, saved.data() + at, size);
    at += size;
    return true;
  };
  CHECK_THROWS(static_cast<void>(two.load(throwing)));
  check_room();
}

TEST_CASE("snapshot: whatever a window or forgetting has left can be saved, and goes on the same") {
  for (const std::uint32_t window : {0u, 1u, 64u, 65u, 70u}) {
    const mixtral::Model model = open(small_synthetic(window).writer().finish());
    std::mt19937 random(window);
    for (int round = 0; round < 12; ++round) {
      CAPTURE(window);
      CAPTURE(round);
      Session s = open_session(model, 300, mixtral::BlockFormat::f32);
      const std::uint32_t n = round < 4 ? 192 : 150 + static_cast<std::uint32_t>(random() % 150);
      REQUIRE(s.append(span(small_tokens(n, 6))));
      if (round % 4 != 3) REQUIRE(s.evaluate());
      if (round % 4 == 3) {
        for (int k = 0; k < 150; ++k) REQUIRE(s.advance(std::chrono::nanoseconds(0)));
      }
      if (round % 2 == 0) {
        const auto keep = static_cast<std::uint32_t>(random() % n);
        REQUIRE(s.forget_oldest(keep, static_cast<std::uint32_t>(random() % (n - keep + 1))));
      }
      const Blob saved = save(s);
      Session other = open_session(model, 300, mixtral::BlockFormat::f32);
      REQUIRE(load(other, saved));
      CHECK(save(other) == saved);
      CHECK(other.has_logits() == s.has_logits());
      for (Session* one : {&s, &other}) {
        REQUIRE(one->append(Token{9}));
        REQUIRE(one->evaluate());
      }
      CHECK(logits_of(s) == logits_of(other));
      Session fork = open_session(model, 300, mixtral::BlockFormat::f32);
      REQUIRE(load(fork, save(s)));
      CHECK(logits_of(fork) == logits_of(s));
    }
  }
}

TEST_CASE(
    "snapshot: any numbers under right checksums are refused, or are a session that can be used") {
  constexpr int kRounds = kSanitized ? 300 : 1000;
  std::size_t n_loaded = 0, n_refused = 0, n_not_finite = 0;
  struct Case {
    mixtral::BlockFormat format;
    std::uint32_t window;
  };
  for (const Case& c : {Case{mixtral::BlockFormat::f32, 0}, Case{mixtral::BlockFormat::f16, 40},
                        Case{mixtral::BlockFormat::q8_0, 0}}) {
    const mixtral::Model model = open(small_synthetic(c.window).writer().finish());
    std::mt19937 random(7);
    const auto any = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
    std::vector<Blob> seeds;
    {
      Session s = open_session(model, 150, c.format);
      REQUIRE(s.append_chat({{"user", "Why?"}}));
      seeds.push_back(save(s));
      REQUIRE(s.evaluate());
      seeds.push_back(save(s));
      REQUIRE(s.append(span(small_tokens(100, 8))));
      REQUIRE(s.evaluate());
      REQUIRE(s.append(Token{4}));
      seeds.push_back(save(s));
      REQUIRE(s.forget_oldest(3, 40));
      REQUIRE(s.evaluate());
      seeds.push_back(save(s));
    }
    mixtral::SessionOptions options;
    options.context = 150;
    options.batch = 64;
    options.kv_format = c.format;
    options.branches = 2;
    options.kv_tokens = 192;
    Session s = value(Session::open(model, options));
    Session other = value(s.fork());
    for (int round = 0; round < kRounds; ++round) {
      CAPTURE(round);
      const Blob& seed = seeds[any(seeds.size())];
      SnapshotHead head = head_of(seed);
      Blob body = body_of(seed);
      const std::uint32_t numbers[] = {
          0,   1,   63,  64,         65,        head.n_tokens - 1, head.n_tokens, head.n_tokens + 1,
          149, 150, 151, 0x7FFFFFFF, 0xFFFFFFFF};
      for (std::size_t k = any(3); k > 0; --k) {
        const std::uint32_t number = numbers[any(std::size(numbers))];
        switch (any(6)) {
          case 0: head.n_tokens = number; break;
          case 1: head.n_evaluated = number; break;
          case 2: head.first_page = static_cast<std::uint32_t>(any(5)); break;
          case 3: head.has_logits = static_cast<std::uint32_t>(any(3)); break;
          case 4: head.rotary_offset = std::uint64_t{number} << any(33); break;
          default: head.n_tokens = head.n_evaluated = number;
        }
      }
      for (std::size_t k = any(3); k > 0 && !body.empty(); --k) {
        const std::size_t at = any(body.size());
        if (any(2) == 0) {
          body[at] = static_cast<std::uint8_t>(random());
        } else {
          body[at] ^= static_cast<std::uint8_t>(1u << any(8));
        }
      }
      const bool is_large = head.n_tokens > 400 || head.n_evaluated > 400;
      Blob changed = snapshot(is_large ? head_of(seed) : head, model.config(), body);
      if (is_large) {
        SnapshotSum sum;
        sum.add(reinterpret_cast<const std::uint8_t*>(&head), 48);
        head.checksum = sum.value();
        std::memcpy(changed.data(), &head, sizeof head);
      }
      if (any(20) == 0) changed.resize(any(changed.size()));
      Session& taker = any(4) == 0 ? other : s;
      const std::vector<Token> before = tokens_of(taker);
      const auto status = load(taker, changed);
      if (!status) {
        ++n_refused;
        CHECK(std::string(status.error().message()).find("loading a session") == 0);
        CHECK((taker.tokens().empty() || tokens_of(taker) == before));
      } else {
        ++n_loaded;
        CHECK(save(taker) == changed);
      }
      // It is used, whatever it is now.
      const auto code_of = [](const mixtral::Status& done) {
        return done ? ErrorCode::io : done.error().code();
      };
      const auto check_evaluated = [&] {
        const mixtral::Status done = taker.evaluate();
        if (done) return;
        CHECK((code_of(done) == ErrorCode::bad_format || code_of(done) == ErrorCode::context_full ||
               code_of(done) == ErrorCode::invalid_argument));
        n_not_finite += code_of(done) == ErrorCode::bad_format ? 1 : 0;
      };
      if (taker.remaining() > 0) REQUIRE(taker.append(Token{5}));
      if (any(4) == 0) static_cast<void>(taker.append_chat({{"user", "a"}}));
      check_evaluated();
      for (auto generation = taker.generate(exactly(2, model)); generation.next();) continue;
      const auto n = static_cast<std::uint32_t>(taker.tokens().size());
      if (n != 0 && any(3) == 0) {
        const auto keep = static_cast<std::uint32_t>(any(n));
        static_cast<void>(taker.forget_oldest(keep, static_cast<std::uint32_t>(any(n - keep + 1))));
        check_evaluated();
      }
      if (any(3) == 0) {
        REQUIRE(taker.rewind(static_cast<std::uint32_t>(any(taker.tokens().size() + 1))));
        check_evaluated();
      }
      const Blob again = save(taker);
      REQUIRE(load(taker, again));
      CHECK(save(taker) == again);
      if (any(8) == 0) other.clear();
    }
    s.clear();
    other.clear();
    REQUIRE(s.append(span(small_tokens(150, 9))));
    REQUIRE(s.evaluate());
    Session plain = open_session(model, 150, c.format);
    REQUIRE(plain.append(span(tokens_of(s))));
    REQUIRE(plain.evaluate());
    CHECK(logits_of(s) == logits_of(plain));  // nothing of all that is left
  }
  MESSAGE(n_loaded, " loaded, ", n_refused, " refused, ", n_not_finite, " with numbers not finite");
  CHECK(n_loaded > kRounds / 2);
  CHECK(n_refused > kRounds / 4);
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
