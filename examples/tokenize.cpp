// Text to token ids and back, on stdin and stdout.
#include <algorithm>

#include "program.hpp"

namespace {

nlohmann::json encode(const mixtral::Tokenizer& tokenizer, const std::string& text, bool bos) {
  mixtral::EncodeOptions options;
  options.bos = bos;
  return program::value(tokenizer.encode(text, options));
}

// `name` is the input's in errors.
std::string decode(const mixtral::Tokenizer& tokenizer, const std::string& input,
                   const std::string& name) {
  bool too_deep = false;
  const nlohmann::json ids = program::parse_json(input, name, 1, too_deep);
  const auto is_number = [](const nlohmann::json& id) { return id.is_number(); };
  if (too_deep || !ids.is_array() || !std::all_of(ids.begin(), ids.end(), is_number)) {
    throw std::runtime_error(name + " must be one array of whole numbers");
  }
  std::vector<mixtral::Token> tokens;
  for (const nlohmann::json& id : ids) {
    if (!id.is_number_integer() || id < 0 || id >= tokenizer.size()) {
      throw std::runtime_error("not a token id: " + program::dump(id));
    }
    tokens.push_back(id.get<mixtral::Token>());
  }
  return std::string(program::value(tokenizer.decode({tokens.data(), tokens.size()})));
}

std::string text_of(const std::string& input, const std::string& name) {
  bool too_deep = false;
  const nlohmann::json text = program::parse_json(input, name, 0, too_deep);
  if (!text.is_string()) throw std::runtime_error(name + " must be a JSON string");
  return text.get<std::string>();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Turns the text on stdin into a JSON array of token ids, or back.", "tokenize"};
  std::string path;
  bool bos = false, decodes = false, json_lines = false;
  program::add_path(app, "--model", path,
                    "GGUF file, model folder, tokenizer.model or tokenizer.json")
      ->required();
  CLI::Option* with_bos = app.add_flag("--bos", bos, "Put the beginning-of-sequence token first");
  app.add_flag("--decode", decodes, "Turn ids into text")->excludes(with_bos);
  app.add_flag("--jsonl", json_lines, "A JSON string, or array of ids, on each line");

  return program::run(app, argc, argv, [&] {
    const auto tokenizer = program::value(mixtral::open_tokenizer(path.c_str()));
    if (!json_lines) {
      const std::string input = program::read_all(std::cin, "standard input");
      if (decodes) {
        std::cout << decode(tokenizer, input, "the input");
      } else {
        std::cout << program::dump(encode(tokenizer, input, bos)) << '\n';
      }
      return;
    }
    std::size_t number = 0;
    for (std::string line; std::getline(std::cin, line);) {
      ++number;
      try {
        const nlohmann::json output = decodes ? nlohmann::json(decode(tokenizer, line, "the line"))
                                              : encode(tokenizer, text_of(line, "the line"), bos);
        std::cout << program::dump(output) << '\n';
      } catch (const std::exception& error) {
        throw std::runtime_error("line " + std::to_string(number) + ": " + error.what());
      }
    }
  });
}
