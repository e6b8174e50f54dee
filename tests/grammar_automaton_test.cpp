// States of a grammar's automaton as they are saved.
#include <mixtral/impl/grammar_automaton.hpp>

#include "support.hpp"

using namespace support;
using mixtral::detail::GrammarAutomaton;
using mixtral::detail::GrammarProgram;

namespace {

GrammarProgram program_of(const char* gbnf) {
  std::pmr::memory_resource* resource = std::pmr::get_default_resource();
  mixtral::detail::GrammarTree tree(resource);
  mixtral::detail::GbnfReader reader(gbnf, tree, resource);
  REQUIRE(reader.read());
  GrammarProgram program(resource);
  REQUIRE(mixtral::detail::GrammarCompiler(tree, program, resource).compile(reader.find("root")));
  return program;
}

GrammarAutomaton automaton_of(const GrammarProgram& program,
                              const mixtral::detail::AutomatonSizes& sizes = {}) {
  return GrammarAutomaton(program, sizes, std::pmr::get_default_resource());
}

GrammarAutomaton::State after(GrammarAutomaton& automaton, std::string_view text) {
  GrammarAutomaton::State state = automaton.start();
  for (const char c : text) state = automaton.step(&state, 1, 0, static_cast<std::uint8_t>(c));
  return state;
}

// The numbers of a saved state, one after the other.
struct Writer {
  static constexpr bool kReads = false;
  std::vector<std::uint32_t>& numbers;

  void value(std::uint32_t number) { numbers.push_back(number); }
  void flag(bool is_set) { numbers.push_back(is_set ? 1 : 0); }
  void fail() {}
  bool good() const { return true; }
};

struct Reader {
  static constexpr bool kReads = true;
  const std::vector<std::uint32_t>& numbers;
  std::size_t at = 0;
  bool is_good = true;

  void value(std::uint32_t& number) {
    is_good = is_good && at < numbers.size();
    number = is_good ? numbers[at++] : 0;
  }
  void flag(bool& is_set) {
    std::uint32_t number = 0;
    value(number);
    is_set = number != 0;
  }
  void fail() { is_good = false; }
  bool good() const { return is_good; }
};

std::vector<std::uint32_t> saved(GrammarAutomaton& automaton, GrammarAutomaton::State state) {
  std::vector<std::uint32_t> numbers;
  Writer writer{numbers};
  automaton.transfer(writer, state);
  return numbers;
}

// Whether a state with these numbers is taken; one that is not taken is dead.
bool loads(GrammarAutomaton& automaton, const std::vector<std::uint32_t>& numbers) {
  Reader reader{numbers};
  GrammarAutomaton::State state = 7;
  automaton.transfer(reader, state);
  if (!reader.good()) CHECK(state == GrammarAutomaton::kDead);
  return reader.good();
}

constexpr const char* kNested = "root ::= \"(\" root \")\" | [a-z]+ \n";

}  // namespace

TEST_CASE(
    "grammar automaton: a state that is saved takes what it took, in another automaton, too") {
  const GrammarProgram program = program_of(kNested);
  GrammarAutomaton automaton = automaton_of(program);
  for (const std::string_view text : {"", "(", "((", "(((ab", "(((ab)", "((ab))", "ab"}) {
    CAPTURE(std::string(text));
    const std::vector<std::uint32_t> numbers = saved(automaton, after(automaton, text));
    GrammarAutomaton other = automaton_of(program);
    after(other, "((x)");
    Reader reader{numbers};
    GrammarAutomaton::State state = GrammarAutomaton::kDead;
    other.transfer(reader, state);
    REQUIRE(reader.good());
    CHECK(reader.at == numbers.size());
    CHECK(saved(other, state) == numbers);
    for (const std::string_view rest :
         {"", ")", "a", "b)", "b))", "b)))", "))", ")))", "x", "(a)"}) {
      GrammarAutomaton::State here = state;
      for (const char c : rest) here = other.step(&here, 1, 0, static_cast<std::uint8_t>(c));
      const auto expected = after(automaton, std::string(text) + std::string(rest));
      CHECK(other.accepts(here) == automaton.accepts(expected));
      CHECK(other.goes_on(here) == automaton.goes_on(expected));
    }
  }
}

TEST_CASE(
    "grammar automaton: of a state that was saved each number is checked against its limits") {
  const GrammarProgram program = program_of(kNested);
  const auto n_instructions = static_cast<std::uint32_t>(program.code.size());
  GrammarAutomaton automaton = automaton_of(program);
  const std::vector<std::uint32_t> numbers = saved(automaton, after(automaton, "((a"));
  // The calls with the first one, which is none; for each its instruction and the one around it. Whether the
  // text may end; the threads, for each its instruction and its call.
  REQUIRE(numbers.size() >= 5);
  REQUIRE(numbers[0] == 3);
  const std::size_t accepts = 5, n_threads = 6;
  REQUIRE(numbers[n_threads] >= 1);
  REQUIRE(numbers.size() == 7 + 2 * numbers[n_threads]);
  REQUIRE(loads(automaton, numbers));
  const auto with = [&](std::size_t place, std::uint32_t number) {
    std::vector<std::uint32_t> changed = numbers;
    changed[place] = number;
    return loads(automaton, changed);
  };
  CHECK(!with(0, 0));
  CHECK(!with(0, 0xFFFFFFFFu));
  for (const std::size_t call : {1u, 3u}) {
    CHECK(with(call, 0));
    CHECK(with(call, n_instructions - 1));
    CHECK(!with(call, n_instructions));
    CHECK(!with(call, 0xFFFFFFFFu));
    // What is around a call was called before it.
    CHECK(!with(call + 1, static_cast<std::uint32_t>(call + 1) / 2));
    CHECK(!with(call + 1, 0xFFFFFFFFu));
  }
  CHECK(with(accepts, 1));
  CHECK(!with(n_threads, 0xFFFFFFFFu));
  for (std::size_t thread = 7; thread < numbers.size(); thread += 2) {
    for (std::uint32_t i = 0; i < n_instructions; ++i) {
      const bool takes_a_byte = program.code[i].op == GrammarProgram::Op::bytes;
      if (!takes_a_byte) CHECK(!with(thread, i));
    }
    CHECK(!with(thread, n_instructions));
    CHECK(!with(thread, 0xFFFFFFFFu));
    CHECK(with(thread + 1, 0));
    CHECK(!with(thread + 1, numbers[0]));
  }
  // One that ends early.
  for (std::size_t n = 0; n < numbers.size(); ++n) {
    CHECK(!loads(automaton, {numbers.begin(), numbers.begin() + static_cast<std::ptrdiff_t>(n)}));
  }
}

TEST_CASE("grammar automaton: a state has no more calls and threads than there is memory for") {
  const GrammarProgram program = program_of(kNested);
  mixtral::detail::AutomatonSizes sizes;
  sizes.calls = 4;
  sizes.threads = 16;
  GrammarAutomaton small = automaton_of(program, sizes);
  GrammarAutomaton large = automaton_of(program);
  CHECK(loads(small, saved(large, after(large, "(((a"))));
  CHECK(!loads(small, saved(large, after(large, "((((a"))));
  // Nothing of what was refused stays.
  CHECK(loads(small, saved(large, after(large, "(((a"))));
}
