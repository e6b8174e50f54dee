// Text to token ids and back, on stdin and stdout.
#include "program.hpp"

namespace {

nlohmann::json encode(const mixtral::Tokenizer& tokenizer, const std::string& text, bool bos) {
  mixtral::EncodeOptions options;
  options.bos = bos;
  return program::value(tokenizer.encode(text, options));
}

std::string decode(const mixtral::Tokenizer& tokenizer, const nlohmann::json& ids) {
  std::vector<mixtral::Token> tokens;
  for (const nlohmann::json& id : ids.get<nlohmann::json::array_t>()) {
    if (!id.is_number_integer() || id < 0 || id >= tokenizer.size()) {
      throw std::runtime_error("not a token id: " + program::dump(id));
    }
    tokens.push_back(id);
  }
  return std::string(program::value(tokenizer.decode({tokens.data(), tokens.size()})));
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
    const auto convert = [&](const std::string& input) {
      if (decodes) return decode(tokenizer, nlohmann::json::parse(input));
      const std::string text = json_lines ? nlohmann::json::parse(input).get<std::string>() : input;
      return program::dump(encode(tokenizer, text, bos));
    };
    if (!json_lines) {
      std::cout << convert(program::read_all(std::cin, "standard input"));
      if (!decodes) std::cout << '\n';
      return;
    }
    std::size_t number = 0;
    for (std::string line; std::getline(std::cin, line);) {
      ++number;
      try {
        const std::string output = convert(line);
        std::cout << (decodes ? program::dump(output) : output) << '\n';
      } catch (const std::exception& error) {
        throw std::runtime_error("line " + std::to_string(number) + ": " + error.what());
      }
    }
  });
}
