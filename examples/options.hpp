// Options of the example programs: numbers within a range, choices by name, paths, and what a shell
// completes of all these.
//
// What help shows of an option's values, its type name, is what is completed: "{a,b}" lists names, kPath
// stands for a file or folder.
#ifndef MIXTRAL_EXAMPLES_OPTIONS_HPP_
#define MIXTRAL_EXAMPLES_OPTIONS_HPP_

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <mixtral/mixtral.hpp>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace program {

// "0.1.0"
inline std::string version() {
  return std::to_string(MIXTRAL_VERSION_MAJOR) + '.' + std::to_string(MIXTRAL_VERSION_MINOR) + '.' +
         std::to_string(MIXTRAL_VERSION_PATCH);
}

// A text for one line of a terminal: control characters, of arguments for example, become '?'.
inline std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text;
}

// What is wrong with a command line, in place of some of CLI11's phrases.
inline std::string message_of(const CLI::ParseError& error) {
  const std::string text = error.what();
  const auto has = [&](const char* part) { return text.find(part) != std::string::npos; };
  const std::string option = text.substr(0, text.find(':'));
  if (has(": At Most 1 required") || has(": At most 1 required"))
    return option + " is given more than once";
  if (has(": 1 required ") && has(" missing")) return option + " needs a value";
  const bool needs_one = text.rfind("Exactly 1 option from [", 0) == 0;
  const std::size_t list = text.find('['), end = text.rfind(']');
  if ((needs_one || text.rfind("Requires at most 1 option", 0) == 0) && list < end) {
    std::string options;
    for (const char c : text.substr(list + 1, end - list - 1)) {
      options += c == ',' ? std::string(", ") : std::string(1, c);
    }
    return needs_one && !has(" were given") ? "give one of " + options
                                            : "only one of " + options + " may be given";
  }
  return text;
}

// Paths. --------------------------------------------------------------------------------------------

inline constexpr char kPath[] = "PATH";

inline CLI::Option* add_path(CLI::App& app, const std::string& name, std::string& path,
                             const std::string& description) {
  return app.add_option(name, path, description)->type_name(kPath);
}

// Numbers. ------------------------------------------------------------------------------------------

// Which numbers an option takes: from `least` to `most`, or only those above `least`.
template <class Number>
struct Range {
  Number least;
  Number most;
  bool above = false;

  bool contains(Number number) const {
    return (above ? number > least : number >= least) && number <= most;
  }
  // "1 to 1024", "1 or more" where the type sets the upper bound, or nothing to speak of.
  std::string text() const {
    const bool has_most = most != std::numeric_limits<Number>::max();
    if (above) return "above " + show(least) + ", at most " + show(most);
    if (has_most) return show(least) + " to " + show(most);
    return least == 0 ? "" : show(least) + " or more";
  }

  static std::string show(Number number) {
    if constexpr (std::is_integral_v<Number>) {
      return std::to_string(number);
    } else {
      char text[32];
      std::snprintf(text, sizeof text, "%g", static_cast<double>(number));
      return text;
    }
  }
};

template <class Number>
constexpr Range<Number> at_least(Number least) {
  return {least, std::numeric_limits<Number>::max()};
}

// The whole text as a decimal number; none if it is anything else (nan and inf are), or too large.
template <class Number>
std::optional<Number> parse_number(const std::string& text) {
  const char* const end = text.data() + text.size();
  if constexpr (std::is_integral_v<Number>) {
    Number number = 0;
    const auto parsed = std::from_chars(text.data(), end, number);
    if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
    return number;
  } else {
    if (text.empty() || text.find_first_not_of("0123456789.+-eE") != std::string::npos) {
      return std::nullopt;
    }
    char* parsed = nullptr;
    const double number = std::strtod(text.c_str(), &parsed);
    const double most = static_cast<double>(std::numeric_limits<Number>::max());
    if (parsed != end || number < -most || number > most) return std::nullopt;
    return static_cast<Number>(number);
  }
}

// Empty if the text is a number of the range, else what it should be.
template <class Number>
std::string check_number(const std::string& text, const Range<Number>& range) {
  const std::optional<Number> number = parse_number<Number>(text);
  if (number && range.contains(*number)) return "";
  const std::string bounds = range.above ? range.text()
                                         : "from " + Range<Number>::show(range.least) + " to " +
                                               Range<Number>::show(range.most);
  return "'" + text + "' is not a " + (std::is_integral_v<Number> ? "whole " : "") + "number " +
         bounds;
}

// An option that is a number. Its help says the range, if there is one to speak of, and the default:
// `standard`, or else the number that is there already.
template <class Number>
CLI::Option* add_number(CLI::App& app, const std::string& name, Number& number,
                        const Range<Number>& range, const std::string& description,
                        const std::string& standard = "") {
  const std::string bounds = range.text();
  const std::string shown = standard.empty() ? Range<Number>::show(number) : standard;
  return app
      .add_option_function<std::string>(
          name, [&number](const std::string& text) { number = *parse_number<Number>(text); },
          description + " (" + (bounds.empty() ? "" : bounds + "; ") + "default: " + shown + ")")
      ->type_name("N")
      ->check(CLI::Validator([range](const std::string& text) { return check_number(text, range); },
                             ""));
}

// An option that is a list of numbers: 1,2,3.
template <class Number>
CLI::Option* add_numbers(CLI::App& app, const std::string& name, std::vector<Number>& numbers,
                         const std::string& description) {
  return app
      .add_option_function<std::vector<std::string>>(
          name,
          [&numbers](const std::vector<std::string>& texts) {
            for (const std::string& text : texts) numbers.push_back(*parse_number<Number>(text));
          },
          description)
      ->delimiter(',')
      ->type_name("N")
      ->check(CLI::Validator(
          [](const std::string& text) { return check_number(text, at_least<Number>(0)); }, ""));
}

// Threads to use; 0, all of them, is the default and no number to give.
inline CLI::Option* add_threads(CLI::App& app, std::uint32_t& threads) {
  return add_number<std::uint32_t>(app, "--threads", threads, {1, 1024}, "Threads to use", "all");
}

// Choices. ------------------------------------------------------------------------------------------

// Names are those of the C++ API or of files: capitals, and '-' for '_', make no difference.
inline std::string plain_name(std::string name) {
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return name;
}

template <class Value>
using Names = std::vector<std::pair<std::string, Value>>;

template <class Value>
std::optional<Value> find_name(const Names<Value>& names, const std::string& text) {
  for (const auto& [name, value] : names) {
    if (plain_name(name) == plain_name(text)) return value;
  }
  return std::nullopt;
}

template <class Value>
std::string list_names(const Names<Value>& names, const char* separator) {
  std::string list;
  for (const auto& item : names) list += (list.empty() ? "" : separator) + item.first;
  return list;
}

// An option whose value has one of these names; `find` may know more of them. `target` is a Value or
// whatever is assigned from one.
template <class Value, class Target, class Find>
CLI::Option* add_choice(CLI::App& app, const std::string& option, Target& target,
                        const Names<Value>& names, const std::string& description,
                        const Find& find) {
  return app
      .add_option_function<std::string>(
          option, [&target, find](const std::string& text) { target = *find(text); }, description)
      ->type_name("{" + list_names(names, ",") + "}")
      ->check(CLI::Validator(
          [names, find](const std::string& text) {
            if (find(text)) return std::string();
            return "'" + text + "' is none of " + list_names(names, ", ");
          },
          ""));
}
template <class Value, class Target>
CLI::Option* add_choice(CLI::App& app, const std::string& option, Target& target,
                        const Names<Value>& names, const std::string& description) {
  return add_choice(app, option, target, names, description,
                    [names](const std::string& text) { return find_name(names, text); });
}

// What several programs have. -----------------------------------------------------------------------

// How keys and values are kept.
inline void add_kv_format(CLI::App& app, mixtral::BlockFormat& format) {
  using mixtral::BlockFormat;
  const Names<BlockFormat> names = {{"f32", BlockFormat::f32},
                                    {"f16", BlockFormat::f16},
                                    {"bf16", BlockFormat::bf16},
                                    {"q8_0", BlockFormat::q8_0}};
  add_choice(app, "--kv-format", format, names, "How keys and values are kept (default: f16)");
}

inline void add_chat_format(CLI::App& app, std::optional<mixtral::ChatFormat>& format) {
  Names<mixtral::ChatFormat> names;
  for (const auto each : {mixtral::ChatFormat::mistral_v1, mixtral::ChatFormat::mistral_v2,
                          mixtral::ChatFormat::mistral_v3, mixtral::ChatFormat::llama2}) {
    names.emplace_back(mixtral::chat_format_name(each), each);
  }
  add_choice(app, "--chat-format", format, names,
             "How conversations are written (default: as the model implies)");
}

// How a model's weights are used.
inline void add_model_options(CLI::App& app, mixtral::ModelOptions& options) {
  app.add_flag("--copy-weights", options.copy_weights,
               "Copy the weights into memory: slower to start, then faster on some machines");
  app.add_flag("--bf16-activations", options.bf16_activations,
               "Round what BF16 weights are multiplied with to BF16: faster, less exact");
}

// Completion by the shell. --------------------------------------------------------------------------

// All options, those of option groups too, in the order of help.
inline std::vector<const CLI::Option*> all_options(const CLI::App& app) {
  std::vector<const CLI::Option*> options = app.get_options();
  for (const CLI::App* group : app.get_subcommands(std::function<bool(const CLI::App*)>())) {
    for (const CLI::Option* option : group->get_options()) options.push_back(option);
  }
  std::set<const CLI::Option*> seen;  // some versions of CLI11 list those of groups twice
  const auto again = [&](const CLI::Option* option) { return !seen.insert(option).second; };
  options.erase(std::remove_if(options.begin(), options.end(), again), options.end());
  return options;
}

inline const CLI::Option* find_option(const std::vector<const CLI::Option*>& options,
                                      const std::string& word) {
  const auto found = std::find_if(options.begin(), options.end(), [&](const CLI::Option* option) {
    return word.size() > 1 && word[0] == '-' && option->check_name(word);
  });
  return found == options.end() ? nullptr : *found;
}

inline bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() != 0; }
inline bool is_repeatable(const CLI::Option& option) {
  return option.get_expected_max() == CLI::detail::expected_max_vector_size;
}

// Prints what the last of `words`, as far as it is typed, can become: "files" if that is any path, else
// "words" and, one a line, the words. A '=' between an option and its value may be a word by itself.
// completions.bash asks for this.
inline void print_completions(const CLI::App& app, std::vector<std::string> words,
                              std::ostream& out) {
  if (words.empty()) words.emplace_back();
  std::string word = words.back();
  words.pop_back();
  if (word == "=") {
    word.clear();
    words.emplace_back("=");
  }
  words.erase(std::remove(words.begin(), words.end(), "="), words.end());

  const auto options = all_options(app);
  std::set<const CLI::Option*> used;
  const CLI::Option* of_value = nullptr;  // whose value the word is
  for (const std::string& before : words) {
    const CLI::Option* option = of_value == nullptr ? find_option(options, before) : nullptr;
    if (option != nullptr && !is_repeatable(*option)) used.insert(option);
    of_value = option != nullptr && takes_value(*option) ? option : nullptr;
  }

  std::vector<std::string> candidates;
  if (of_value != nullptr) {
    const std::string type = of_value->get_type_name();
    if (type == kPath) {
      out << "files\n";
      return;
    }
    for (std::size_t at = 1; type[0] == '{' && at < type.size();) {
      const std::size_t end = type.find_first_of(",}", at);
      candidates.push_back(type.substr(at, end - at));
      at = end + 1;
    }
  } else {
    for (const CLI::Option* option : options) {
      const std::string name = "--" + option->get_lnames().front();
      // Each group has a --help of its own.
      if (std::find(candidates.begin(), candidates.end(), name) != candidates.end()) continue;
      if (used.count(option) == 0) candidates.push_back(name);
    }
  }
  out << "words\n";
  for (const std::string& candidate : candidates) {
    if (plain_name(candidate).rfind(plain_name(word), 0) == 0) out << candidate << '\n';
  }
}

}  // namespace program

#endif  // MIXTRAL_EXAMPLES_OPTIONS_HPP_
