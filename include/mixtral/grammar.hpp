// Text that follows rules: a grammar, a regular expression or a list of choices, applied to every token
// before it is chosen.
//
//   auto grammar = mixtral::Grammar::from_choices({"yes", "no"});        // or from_gbnf, from_regex,
//   options.grammar = *grammar;                                         // json_schema.hpp
//   for (auto piece : session.generate(options)) ...
#ifndef MIXTRAL_GRAMMAR_HPP_
#define MIXTRAL_GRAMMAR_HPP_

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <memory_resource>
#include <string>
#include <string_view>

#include "mixtral/error.hpp"
#include "mixtral/resource_ptr.hpp"
#include "mixtral/span.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

class Model;

namespace detail {
struct GrammarProgram;
}

// A set of texts, compiled; independent of models and tokenizers. An immutable handle, cheap to copy,
// for any number of threads. Default-constructed it is none.
class Grammar {
 public:
  Grammar() noexcept = default;

  // GBNF as llama.cpp describes it (grammars/README.md), the text being what `root` stands for:
  //
  //   root   ::= "yes" | "no, because " reason "."     # alternatives, literals, other rules
  //   reason ::= [a-zA-Z ]{1,80}                       # characters, also [^...] and . for any
  //
  // with ( ), *, +, ?, {n}, {n,}, {n,m}, and in literals and [] the escapes \n \r \t \\ \" \[ \] \- \^
  // \xHH \uHHHH \UHHHHHHHH, which name characters. Rules may call themselves, but not before they have
  // taken a character (left recursion).
  //
  // A text may have 16 MiB, 16384 rules, groups nested 200 deep, 10 repetitions of one another, numbers
  // below 100000 in {}, and 2^22 bytes of literals and other parts: each set of characters counts 1, and for
  // every range of bytes that its UTF-8 takes beyond ASCII its length + 1; each sequence, alternative,
  // repetition and use of a rule counts 1; all of it is counted as often as {n} repeats it, so that
  // ("ab"){10} counts more than 20. More is refused before it is compiled. A byte order mark is skipped.
  // Compiling takes time in proportion to the text and this count, and memory: up to 200 bytes for each byte
  // or part; no stack, however rules call one another.
  // Errors: bad_format, telling the line; unsupported, for more than that; out_of_memory.
  static Result<Grammar> from_gbnf(std::string_view text, std::pmr::memory_resource* resource =
                                                              std::pmr::get_default_resource());

  // The texts that an ECMAScript regular expression matches from beginning to end, in Unicode
  // characters. Refused by name are lookaround, back references, \b, \p, and anchors in the middle.
  // Groups may be nested 150 deep; as GBNF, the expression may have what from_gbnf() allows.
  // Errors: as from_gbnf.
  static Result<Grammar> from_regex(std::string_view pattern, std::pmr::memory_resource* resource =
                                                                  std::pmr::get_default_resource());

  // One of these texts, in UTF-8, some of which may begin with others or be equal. Together, they may have
  // 2^22 bytes, where each counts one more. Texts that begin alike are read together, so that their number
  // matters little. Errors: as from_gbnf; invalid_argument if there are none.
  static Result<Grammar> from_choices(
      Span<const std::string_view> choices,
      std::pmr::memory_resource* resource = std::pmr::get_default_resource());
  static Result<Grammar> from_choices(std::initializer_list<std::string_view> choices) {
    return from_choices(Span<const std::string_view>(choices.begin(), choices.size()));
  }

  explicit operator bool() const noexcept { return program_ != nullptr; }

 private:
  friend class GrammarMatcher;
  friend class Session;
  explicit Grammar(std::shared_ptr<const detail::GrammarProgram> program) noexcept
      : program_(std::move(program)) {}
  std::shared_ptr<const detail::GrammarProgram> program_;
};

// How regex_to_gbnf() understands a pattern.
enum class RegexScope {
  whole,        // it is matched from beginning to end
  json_string,  // it is searched for, as in JSON schemas, in what a JSON string without its quotes says
};

// A regular expression as the right-hand side of a rule in GBNF, in parentheses; see from_regex(). It may
// become 16 MiB of text. Errors: bad_format, unsupported, out_of_memory.
Result<std::pmr::string> regex_to_gbnf(
    std::string_view pattern, RegexScope scope,
    std::pmr::memory_resource* resource = std::pmr::get_default_resource());

// `text` as a literal of GBNF, in quotes. Errors: bad_format if it is not UTF-8; out_of_memory.
Result<std::pmr::string> literal_to_gbnf(
    std::string_view text, std::pmr::memory_resource* resource = std::pmr::get_default_resource());

// Follows one text through a grammar, token by token; what Generation uses, for hosts that choose tokens
// themselves. Takes its memory when it is made: a few megabytes, and up to 40 for a grammar in which one
// expression can begin in thousands of ways that are no literals. Keeps grammar and model alive.
class GrammarMatcher {
 public:
  // With `begins_text`, the tokens are those of a text of its own, such as an answer in a chat: the
  // space that the vocabulary puts before it is no part of it (Tokenizer::decode).
  // Errors: invalid_argument if the grammar is none; unsupported if there are too many ways to begin a text;
  // out_of_memory.
  static Result<GrammarMatcher> create(const Grammar& grammar, const Model& model,
                                       bool begins_text = false);

  GrammarMatcher(GrammarMatcher&&) noexcept;
  GrammarMatcher& operator=(GrammarMatcher&&) noexcept;
  ~GrammarMatcher();

  // Begins a new text in the same memory, with what was learnt of the grammar: much cheaper than
  // create(), which suits answers that come again and again.
  void restart(bool begins_text = false) noexcept;

  // Which tokens may come next: bit t % 64 of word t / 64 for token t. EOS may if the text can end;
  // other control tokens never may, nor unknown ones. Valid until the next call.
  // Errors: unsupported if there is no such token, or if the grammar leaves open too many ways to read
  // the text so far.
  Result<Span<const std::uint64_t>> allowed();

  // Goes on with a token. Errors: invalid_argument if it is not allowed, then nothing changes;
  // unsupported as above.
  Status accept(Token token);

  bool can_end() const noexcept;   // the text so far is one of the grammar's
  bool must_end() const noexcept;  // and nothing can follow

 private:
  friend class Generation;
  // For saved generations: a number that tells grammars apart, and the place in the grammar.
  std::uint64_t fingerprint() const noexcept;
  template <class Archive>
  void transfer(Archive& archive);

  struct Impl;
  explicit GrammarMatcher(detail::ResourcePtr<Impl> impl) noexcept;
  detail::ResourcePtr<Impl> impl_;
};

}  // namespace mixtral

#endif  // MIXTRAL_GRAMMAR_HPP_
