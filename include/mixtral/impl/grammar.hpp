#ifndef MIXTRAL_IMPL_GRAMMAR_HPP_
#define MIXTRAL_IMPL_GRAMMAR_HPP_

#include <algorithm>

#include "mixtral/grammar.hpp"
#include "mixtral/impl/gbnf.hpp"
#include "mixtral/impl/grammar_automaton.hpp"
#include "mixtral/impl/grammar_program.hpp"
#include "mixtral/impl/model.hpp"
#include "mixtral/impl/regex.hpp"
#include "mixtral/impl/token_trie.hpp"

namespace mixtral {

namespace detail {

inline Result<std::shared_ptr<const GrammarProgram>> compile_grammar(
    const GrammarTree& tree, std::uint32_t root, std::pmr::memory_resource* resource) {
  auto program = std::allocate_shared<GrammarProgram>(
      std::pmr::polymorphic_allocator<GrammarProgram>(resource), resource);
  MIXTRAL_RETURN_IF_ERROR(GrammarCompiler(tree, *program, resource).compile(root));
  return std::shared_ptr<const GrammarProgram>(std::move(program));
}

}  // namespace detail

Result<Grammar> Grammar::from_gbnf(std::string_view text, std::pmr::memory_resource* resource) {
  if (text.size() > detail::kMostGrammarBytes) {
    return Error(ErrorCode::unsupported, "a grammar of %zu bytes; %zu are the most", text.size(),
                 detail::kMostGrammarBytes);
  }
  return detail::guard_memory("compiling a grammar", [&]() -> Result<Grammar> {
    detail::GrammarTree tree(resource);
    detail::GbnfReader reader(text, tree, resource);
    MIXTRAL_RETURN_IF_ERROR(reader.read());
    auto program = detail::compile_grammar(tree, reader.find("root"), resource);
    MIXTRAL_RETURN_IF_ERROR(program);
    return Grammar(*std::move(program));
  });
}

Result<Grammar> Grammar::from_regex(std::string_view pattern, std::pmr::memory_resource* resource) {
  const auto gbnf = regex_to_gbnf(pattern, RegexScope::whole, resource);
  MIXTRAL_RETURN_IF_ERROR(gbnf);
  return detail::guard_memory("compiling a regular expression", [&]() -> Result<Grammar> {
    return from_gbnf(std::pmr::string("root ::= ", resource) + *gbnf, resource);
  });
}

Result<Grammar> Grammar::from_choices(Span<const std::string_view> choices,
                                      std::pmr::memory_resource* resource) {
  if (choices.empty()) {
    return Error(ErrorCode::invalid_argument, "a grammar of no choices: give one at least");
  }
  std::size_t size = 0;
  for (const std::string_view choice : choices) {
    size += choice.size() + 1;
    if (size > detail::kMostGrammarParts || choice.size() > detail::kMostGrammarParts) {
      return detail::grammar_too_large();
    }
  }
  return detail::guard_memory("compiling choices", [&]() -> Result<Grammar> {
    detail::GrammarTree tree(resource);
    detail::ExpressionParts alternatives;
    tree.text.reserve(size);
    tree.expressions.reserve(choices.size() + 1);
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const std::string_view choice = choices[i];
      for (std::size_t at = 0; at < choice.size();) {
        std::uint32_t c = 0;
        if (!detail::next_code_point(choice, at, c)) {
          return Error(ErrorCode::bad_format, "choice %zu is not UTF-8 at byte %zu", i, at);
        }
      }
      detail::Expression literal{};
      literal.kind = detail::Expression::Kind::text;
      literal.part = static_cast<std::uint32_t>(tree.text.size());
      literal.n = static_cast<std::uint32_t>(choice.size());
      tree.text += choice;
      alternatives.append(tree, tree.add(literal));
    }
    const std::uint32_t root = alternatives.finish(tree, detail::Expression::Kind::choice);
    tree.rules.push_back({"root", root, 1});
    auto program = detail::compile_grammar(tree, 0, resource);
    MIXTRAL_RETURN_IF_ERROR(program);
    return Grammar(*std::move(program));
  });
}

Result<std::pmr::string> regex_to_gbnf(std::string_view pattern, RegexScope scope,
                                       std::pmr::memory_resource* resource) {
  return detail::guard_memory("translating a regular expression",
                              [&]() -> Result<std::pmr::string> {
                                std::pmr::string out(resource);
                                detail::RegexTranslator translator(pattern, scope, out, resource);
                                MIXTRAL_RETURN_IF_ERROR(translator.translate());
                                return out;
                              });
}

Result<std::pmr::string> literal_to_gbnf(std::string_view text,
                                         std::pmr::memory_resource* resource) {
  return detail::guard_memory("writing a literal", [&]() -> Result<std::pmr::string> {
    std::pmr::string out("\"", resource);
    for (std::size_t at = 0; at < text.size();) {
      std::uint32_t c = 0;
      if (!detail::next_code_point(text, at, c)) {
        return Error(ErrorCode::bad_format, "a text that is not UTF-8 at byte %zu", at);
      }
      detail::append_gbnf_character(c, out);
    }
    out += '"';
    return out;
  });
}

struct GrammarMatcher::Impl {
  using Automaton = detail::GrammarAutomaton;
  static constexpr std::size_t kMasks = 32;  // of states, remembered

  Impl(const Grammar& from, const Model& of, const detail::TokenTrie& tokens, bool begins_text,
       const detail::AutomatonSizes& sizes, std::pmr::memory_resource* resource)
      : grammar(from),
        model(of),
        trie(tokens),
        automaton(*from.program_, sizes, resource),
        path(trie.longest() + 1, Automaton::kDead, resource),
        mask_words((of.tokenizer().size() + 63) / 64),
        masks(kMasks * mask_words, resource),
        mask_states(kMasks, Automaton::kFull, resource) {
    path.resize(std::max<std::size_t>(path.size(), 2));
    restart(begins_text);
  }

  void restart(bool begins_text) {
    const Tokenizer& tokenizer = model.tokenizer();
    drops_space =
        begins_text && (tokenizer.add_dummy_prefix() || tokenizer.remove_extra_whitespaces());
    path[0] = automaton.start();
    failed = path[0] == Automaton::kFull;
  }

  Grammar grammar;
  Model model;
  const detail::TokenTrie& trie;
  Automaton automaton;
  std::pmr::vector<Automaton::State> path;  // the state, then those while looking for others
  bool drops_space;  // of the next token, if it begins with the vocabulary's space
  bool failed;

  std::size_t mask_words;
  std::pmr::vector<std::uint64_t> masks;           // [kMasks][mask_words]
  std::pmr::vector<Automaton::State> mask_states;  // whose they are
  std::size_t mask_generation = 0;
  std::size_t next_mask = 0;

  Error too_ambiguous() const {
    return Error(
        ErrorCode::unsupported,
        "the text can be read in too many ways, or is nested too deep, for the memory of a "
        "grammar; make its rules tell their alternatives apart earlier");
  }

  // Puts the state after a token into path[1]; false if memory is full.
  bool walk(Token token) {
    std::string_view text = trie.text(token);
    path[1] = text.empty() ? Automaton::kDead : path[0];
    if (drops_space && !text.empty()) {
      const Piece piece = model.tokenizer().piece(token);
      const std::string_view space(utf8::kSpaceSymbol);
      if (piece.text.substr(0, space.size()) == space) {
        text.remove_prefix(1);
        // A space alone leaves nothing, and further ones would be dropped, too, without end.
        if (text.empty() && model.tokenizer().remove_extra_whitespaces()) {
          path[1] = Automaton::kDead;
        }
      }
    }
    for (const char c : text) {
      if (path[1] == Automaton::kDead) break;
      const auto next = automaton.step(path.data(), 2, 1, static_cast<std::uint8_t>(c));
      if (next == Automaton::kFull) return false;
      path[1] = next;
    }
    return true;
  }

  static void allow(std::uint64_t* mask, Token token) noexcept {
    const auto t = static_cast<std::size_t>(token);
    mask[t / 64] |= std::uint64_t{1} << (t % 64);
  }

  bool fill(std::uint64_t* mask) {
    std::fill_n(mask, mask_words, std::uint64_t{0});
    if (drops_space) {
      for (std::size_t t = 0; t < model.tokenizer().size(); ++t) {
        if (!walk(static_cast<Token>(t))) return false;
        if (path[1] != Automaton::kDead) allow(mask, static_cast<Token>(t));
      }
    } else {
      const auto nodes = trie.nodes();
      for (std::size_t i = 0; i < nodes.size();) {
        const detail::TokenTrie::Node& node = nodes[i];
        const std::size_t depth = node.depth;
        const auto next = automaton.step(path.data(), depth, depth - 1, node.byte);
        if (next == Automaton::kFull) return false;
        if (next == Automaton::kDead) {
          i = node.end;
          continue;
        }
        path[depth] = next;
        for (const Token token : trie.tokens(i)) allow(mask, token);
        ++i;
      }
    }
    const Token eos = model.tokenizer().eos();
    if (eos != kNoToken && automaton.accepts(path[0])) allow(mask, eos);
    return true;
  }

  Result<Span<const std::uint64_t>> allowed() {
    if (failed) return too_ambiguous();
    if (mask_generation != automaton.generation()) {
      std::fill(mask_states.begin(), mask_states.end(), Automaton::kFull);
    }
    std::size_t slot = next_mask;
    if (!drops_space) {
      const auto found = std::find(mask_states.begin(), mask_states.end(), path[0]);
      if (found != mask_states.end()) {
        return mask(static_cast<std::size_t>(found - mask_states.begin()));
      }
    }
    if (!fill(masks.data() + slot * mask_words)) {
      failed = true;
      return too_ambiguous();
    }
    // Numbers of states may have changed on the way.
    if (mask_generation != automaton.generation()) {
      std::fill(mask_states.begin(), mask_states.end(), Automaton::kFull);
      mask_generation = automaton.generation();
    }
    mask_states[slot] = drops_space ? Automaton::kFull : path[0];
    next_mask = (next_mask + 1) % kMasks;
    return mask(slot);
  }

  Result<Span<const std::uint64_t>> mask(std::size_t slot) const {
    const Span<const std::uint64_t> words(masks.data() + slot * mask_words, mask_words);
    for (const std::uint64_t word : words) {
      if (word != 0) return words;
    }
    return Error(ErrorCode::unsupported,
                 "the vocabulary has no token that goes on with the grammar: it lacks a character "
                 "that has to come");
  }
};

GrammarMatcher::GrammarMatcher(detail::ResourcePtr<Impl> impl) noexcept : impl_(std::move(impl)) {}
GrammarMatcher::GrammarMatcher(GrammarMatcher&&) noexcept = default;
GrammarMatcher& GrammarMatcher::operator=(GrammarMatcher&&) noexcept = default;
GrammarMatcher::~GrammarMatcher() = default;

Result<GrammarMatcher> GrammarMatcher::create(const Grammar& grammar, const Model& model,
                                              bool begins_text) {
  if (!grammar) return Error(ErrorCode::invalid_argument, "matching with a grammar that is none");
  return detail::guard_memory("following a grammar", [&]() -> Result<GrammarMatcher> {
    std::pmr::memory_resource* resource = model.data_->resource;
    auto impl = detail::make_resource_ptr<Impl>(
        resource, grammar, model, model.data_->token_trie(), begins_text,
        detail::AutomatonSizes::of(*grammar.program_), resource);
    if (impl->failed) return impl->too_ambiguous();
    return GrammarMatcher(std::move(impl));
  });
}

void GrammarMatcher::restart(bool begins_text) noexcept { impl_->restart(begins_text); }

Result<Span<const std::uint64_t>> GrammarMatcher::allowed() { return impl_->allowed(); }

Status GrammarMatcher::accept(Token token) {
  if (impl_->failed) return impl_->too_ambiguous();
  const Tokenizer& tokenizer = impl_->model.tokenizer();
  if (token == tokenizer.eos() && can_end()) return {};
  const bool known = tokenizer.contains(token);
  if (known && !impl_->walk(token)) {
    impl_->failed = true;
    return impl_->too_ambiguous();
  }
  if (!known || impl_->path[1] == Impl::Automaton::kDead) {
    return Error(ErrorCode::invalid_argument, "token %d does not go on with the grammar",
                 static_cast<int>(token));
  }
  impl_->path[0] = impl_->path[1];
  impl_->drops_space = false;
  return {};
}

std::uint64_t GrammarMatcher::fingerprint() const noexcept {
  return impl_->grammar.program_->fingerprint();
}

template <class Archive>
void GrammarMatcher::transfer(Archive& archive) {
  archive.flag(impl_->drops_space);
  impl_->automaton.transfer(archive, impl_->path[0]);
}

bool GrammarMatcher::can_end() const noexcept {
  return !impl_->failed && impl_->automaton.accepts(impl_->path[0]);
}
bool GrammarMatcher::must_end() const noexcept {
  return can_end() && !impl_->automaton.goes_on(impl_->path[0]);
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_GRAMMAR_HPP_
