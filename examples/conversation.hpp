// What was said in a chat: in a session of limited length, and in files.
#ifndef MIXTRAL_EXAMPLES_CONVERSATION_HPP_
#define MIXTRAL_EXAMPLES_CONVERSATION_HPP_

#include <algorithm>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "program.hpp"

// A saved conversation is, all numbers little-endian:
//
//   "MIXCHAT1"
//   u64 seed of the next answer
//   text instructions, text name of the chat format
//   u64 number of exchanges, then of each: text question, text answer
//   what Session::save() writes
//   u64 checksum of all before (FNV-1a)
//
// where a text is u64 its size in bytes, and the bytes.
namespace saved_conversation {

inline constexpr std::string_view kMagic = "MIXCHAT1";

class Checksum {
 public:
  void add(const void* bytes, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
      sum_ = (sum_ ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3u;
    }
  }
  std::uint64_t sum() const { return sum_; }

 private:
  std::uint64_t sum_ = 0xcbf29ce484222325u;
};

// `write` takes a std::string_view, and throws if it cannot.
template <class Write>
class Writer {
 public:
  explicit Writer(Write write) : write_(std::move(write)) {}

  void bytes(const void* data, std::size_t size) {
    checksum_.add(data, size);
    write_(std::string_view(static_cast<const char*>(data), size));
  }
  void number(std::uint64_t number) {
    char data[8];
    for (int i = 0; i < 8; ++i) data[i] = static_cast<char>(number >> 8 * i & 0xff);
    bytes(data, sizeof data);
  }
  void text(std::string_view text) {
    number(text.size());
    bytes(text.data(), text.size());
  }
  void finish() { number(checksum_.sum()); }

 private:
  Write write_;
  Checksum checksum_;
};

// Takes one part after the other; gives zeros and empty texts, and is bad, if there are no more.
class Reader {
 public:
  explicit Reader(std::string_view rest) : rest_(rest) {}

  bool good() const { return good_; }
  bool bytes(void* data, std::size_t size) {
    if (size > rest_.size()) good_ = false;
    if (!good_) return false;
    std::memcpy(data, rest_.data(), size);
    rest_.remove_prefix(size);
    return true;
  }
  std::uint64_t number() {
    unsigned char data[8] = {};
    std::uint64_t number = 0;
    if (bytes(data, sizeof data)) {
      for (int i = 7; i >= 0; --i) number = number << 8 | data[i];
    }
    return number;
  }
  std::string text() {
    const std::uint64_t size = number();
    if (size > rest_.size()) good_ = false;
    if (!good_) return "";
    std::string text(rest_.substr(0, static_cast<std::size_t>(size)));
    rest_.remove_prefix(text.size());
    return text;
  }

 private:
  std::string_view rest_;
  bool good_ = true;
};

// What comes before the checksum, if that is right.
inline std::string_view checked(std::string_view file, const std::string& name) {
  if (file.substr(0, kMagic.size()) != kMagic) {
    throw std::runtime_error(name + " is no saved conversation");
  }
  const std::string_view body = file.substr(0, file.size() - std::min<std::size_t>(file.size(), 8));
  Checksum checksum;
  checksum.add(body.data(), body.size());
  if (Reader(file.substr(body.size())).number() != checksum.sum()) {
    throw std::runtime_error(name + " is damaged: its checksum is wrong");
  }
  return body.substr(std::min(body.size(), kMagic.size()));
}

}  // namespace saved_conversation

// What was said. When the session is full, the oldest exchanges are dropped. A member that throws
// leaves the conversation as it was.
class Conversation {
 public:
  // Throws if the model cannot hold conversations, or none with these instructions.
  Conversation(mixtral::Session& session, std::string system, std::uint32_t max_tokens)
      : session_(session),
        system_(std::move(system)),
        room_(std::min(max_tokens, session.context() / 4)) {
    check_length("",
                 system_.empty() ? "an empty question has" : "the instructions of --system have");
  }

  std::size_t n_exchanges() const { return exchanges_.size(); }

  // Appends a question; returns how many tokens are to be evaluated for it.
  std::size_t ask(const std::string& question) {
    check_length(question,
                 system_.empty() ? "the question has" : "the question and the instructions have");
    before_ = exchanges_;
    n_before_ = static_cast<std::uint32_t>(session_.tokens().size());
    exchanges_.push_back({question, ""});
    mixtral::Status status =
        n_before_ == 0 ? append_all() : session_.append_chat({{"user", question}});
    while (exchanges_.size() > 1 && is_full(status)) {
      exchanges_.pop_front();
      session_.clear();
      n_before_ = 0;
      status = append_all();
    }
    if (!status) {
      take_back();
      program::check(status);
    }
    return session_.tokens().size() - n_before_;
  }

  // The last question's answer.
  void answered(const std::string& text) { exchanges_.back().answer = text; }

  // Takes the last question back, with whatever was generated for it.
  void take_back() {
    exchanges_ = std::move(before_);
    // If exchanges were dropped for the question, the next one puts back what there is room for.
    if (!session_.rewind(n_before_)) session_.clear();
  }

  void forget() {
    exchanges_.clear();
    session_.clear();
  }

  // `seed` is that of the next answer.
  template <class Write>
  void save(std::uint64_t seed, Write write) const {
    saved_conversation::Writer<Write> out(std::move(write));
    out.bytes(saved_conversation::kMagic.data(), saved_conversation::kMagic.size());
    out.number(seed);
    out.text(system_);
    out.text(chat_format());
    out.number(exchanges_.size());
    for (const Exchange& exchange : exchanges_) {
      out.text(exchange.question);
      out.text(exchange.answer);
    }
    program::check(session_.save([&](const void* bytes, std::size_t size) {
      out.bytes(bytes, size);
      return true;
    }));
    out.finish();
  }

  // Makes this the conversation that the bytes of a file are, and returns the seed of its next answer.
  // `name` is the file's, for errors.
  std::uint64_t load(std::string_view file, const std::string& name) {
    saved_conversation::Reader in(saved_conversation::checked(file, name));
    const std::uint64_t seed = in.number();
    std::string system = in.text();
    const std::string format = in.text();
    std::deque<Exchange> exchanges;
    for (std::uint64_t n = in.number(); n > 0 && in.good(); --n) {
      std::string question = in.text();
      exchanges.push_back({std::move(question), in.text()});
    }
    if (!in.good()) throw std::runtime_error(name + " ends too early");
    if (format != chat_format()) {
      throw std::runtime_error(name + " was saved with --chat-format " + program::one_line(format) +
                               ", and this conversation has " + chat_format());
    }
    const auto loaded =
        session_.load([&](void* bytes, std::size_t size) { return in.bytes(bytes, size); });
    if (!loaded) throw std::runtime_error(name + ": " + loaded.error().message());
    system_ = std::move(system);
    exchanges_ = std::move(exchanges);
    return seed;
  }

 private:
  struct Exchange {
    std::string question, answer;
  };

  const char* chat_format() const {
    return mixtral::chat_format_name(session_.model().chat_format());
  }

  // Throws if the session could not hold a question with nothing but the instructions before it, and
  // one token of an answer.
  void check_length(const std::string& question, const char* what) const {
    std::vector<mixtral::Message> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    messages.push_back({"user", question});
    mixtral::Turn turn = mixtral::Turn::start;
    std::pmr::vector<mixtral::Token> tokens;
    program::check(mixtral::encode_chat(session_.model().tokenizer(),
                                        session_.model().chat_format(),
                                        {messages.data(), messages.size()}, {}, turn, tokens));
    if (tokens.size() < session_.context()) return;
    throw std::runtime_error(std::string(what) + " " + std::to_string(tokens.size()) +
                             " tokens, which do not fit with an answer into the context of " +
                             std::to_string(session_.context()) + "; --context makes it longer");
  }

  // Is it too full for the question, or for an answer of some length?
  bool is_full(const mixtral::Status& status) const {
    if (status) return session_.remaining() < room_;
    return status.error().code() == mixtral::ErrorCode::context_full;
  }

  mixtral::Status append_all() {
    std::vector<mixtral::Message> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    for (const Exchange& exchange : exchanges_) {
      messages.push_back({"user", exchange.question});
      if (&exchange != &exchanges_.back()) messages.push_back({"assistant", exchange.answer});
    }
    return session_.append_chat({messages.data(), messages.size()});
  }

  mixtral::Session& session_;
  std::string system_;
  std::uint32_t room_;
  std::deque<Exchange> exchanges_;
  // Before the last question: what was said, and the tokens that the session had, 0 if it was cleared.
  std::deque<Exchange> before_;
  std::uint32_t n_before_ = 0;
};

#endif  // MIXTRAL_EXAMPLES_CONVERSATION_HPP_
