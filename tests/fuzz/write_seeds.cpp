// Writes small valid files for each fuzz target into FOLDER/TARGET.
#define DOCTEST_CONFIG_IMPLEMENT
#include "../model_files.hpp"
#include "../snapshots.hpp"

namespace support {
std::size_t heap_allocations() { return 0; }
}  // namespace support

namespace {

void write(const std::filesystem::path& folder, const char* target, const char* name,
           const support::Blob& bytes) {
  std::filesystem::create_directories(folder / target);
  std::ofstream out(folder / target / name, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

support::Blob text(const std::string& s) { return support::Blob(s.begin(), s.end()); }

// A dense model whose matrices with rows of 256 are random blocks of `format`.
support::Blob gguf_of_blocks(mixtral::BlockFormat format) {
  support::Synthetic s;
  s.dim = s.hidden_dim = 256;
  s.n_layers = s.n_heads = s.n_kv_heads = s.n_experts = s.n_experts_used = 1;
  s.head_size = 2;
  s.vocab_size = 262;
  s.tied_output = true;
  s.randomize(1);
  support::GgufWriter writer = s.writer();
  std::mt19937 random(1);
  const auto& info = *mixtral::block_format_info(format);
  for (auto& tensor : writer.tensors) {
    if (tensor.shape.size() != 2 || tensor.shape[0] != 256) continue;
    tensor.type = static_cast<std::uint32_t>(format);
    tensor.data.resize(tensor.shape[1] * info.block_bytes);
    // Small bytes make small scales, wherever a format has them.
    for (auto& byte : tensor.data) byte = static_cast<std::uint8_t>(random() & 0x1f);
  }
  return writer.finish();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  support::Synthetic s;
  s.dim = 8;
  s.n_layers = 1;
  s.n_heads = 2;
  s.n_kv_heads = 1;
  s.head_size = 4;
  s.hidden_dim = 8;
  s.n_experts = 2;
  s.vocab_size = 262;
  s.randomize(1);
  write(argv[1], "gguf", "merged", s.writer().finish());
  for (const auto format :
       {mixtral::BlockFormat::q4_k, mixtral::BlockFormat::iq2_xxs, mixtral::BlockFormat::iq2_xs,
        mixtral::BlockFormat::iq2_s, mixtral::BlockFormat::iq3_xxs, mixtral::BlockFormat::iq3_s}) {
    write(argv[1], "gguf", mixtral::block_format_info(format)->name, gguf_of_blocks(format));
  }
  {
    support::GgufWriter importance;
    importance.string("general.type", "imatrix");
    for (const char* of : {"blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"}) {
      const std::string name = of;
      const std::uint64_t n = name.find("exps") == std::string::npos ? 1 : 2;
      support::Blob data(8 * 4 * n, 0x3f);
      importance.tensors.push_back({name + ".in_sum2", {8, n}, 0, data});
      importance.tensors.push_back({name + ".counts", {1, n}, 0, support::Blob(4 * n, 0x3f)});
    }
    write(argv[1], "gguf", "importance", importance.finish());
    support::Blob numbers;
    for (int i = 0; i < 512; ++i)
      support::GgufWriter::put(std::sin(static_cast<float>(i)), numbers);
    write(argv[1], "encode", "importance", numbers);
    numbers.resize(1024);
    write(argv[1], "encode", "plain", numbers);
  }
  s.merged_experts = false;
  s.sliding_window = 3;
  write(argv[1], "gguf", "early", s.writer().finish());
  write(argv[1], "safetensors", "huggingface",
        support::safetensors(support::huggingface_tensors(s)));
  const auto tensors = support::original_tensors(s, true);
  write(argv[1], "torch_file", "zip", support::torch_file(tensors));
  write(argv[1], "torch_file", "zip64", support::torch_file(tensors, true));
  write(argv[1], "json_config", "huggingface", text(support::huggingface_config(s).dump()));
  write(argv[1], "json_config", "original", text(support::params_json(s).dump()));
  write(argv[1], "sentencepiece", "model", support::sentencepiece());
  auto json = support::tokenizer_json(s);
  json["model"]["merges"] = {"piece259 piece260"};
  json["model"]["vocab"]["piece259piece260"] = 262;
  write(argv[1], "tokenizer_json", "merges", text(json.dump()));
  json["model"]["merges"] = {{"piece259", "piece260"}};
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "Metaspace"}, {"split", false}};
  write(argv[1], "tokenizer_json", "newer", text(json.dump()));
  const auto grammar = [&](const char* name, char language, const std::string& source,
                           const std::string& sample) {
    write(argv[1], "grammar", name, text(language + source + '\0' + sample));
  };
  grammar("gbnf", 0,
          "root ::= item (\",\" item){0,3} | [^a-z\\x41]+ # list\nitem ::= [0-9]+ | \"<\" root "
          "\">\" | .?\n",
          "1,<22>");
  grammar("regex", 1, "^(?:a|\\d{2,3}|[^\\w-]*?)+\\u00e9.$", "a12\xC3\xA9x");
  grammar("schema", 2,
          R"({"type": "object", "properties": {"a": {"enum": [1, "b"]}, "c": {"type": "array",
          "items": {"$ref": "#"}, "maxItems": 2}, "d": {"type": "number", "minimum": -1.5},
          "e": {"type": "string", "pattern": "^x+$"}}, "required": ["a"], "additionalProperties":
          {"anyOf": [{"type": "string", "maxLength": 3}, {"format": "date"}]}})",
          "{\"a\":1,\"c\":[{\"a\":\"b\"}]}");
  grammar("blanks", 3,
          R"({"items": {"properties": {"n": {"minimum": 0}, "o": {"oneOf": [{"const": "k"},
          {"type": "null"}]}}, "additionalProperties": true}})",
          "[ {\"n\": 1,\n \"o\":null}]");
  grammar("choices", 4, "yes\nyes, indeed\nno\n\nyes", "yes,");
  grammar("alternatives", 0,
          "root ::= \"ab\" \"c\" [x-z] | a | (\"ab\" | \"abd\") \"!\"{2} | () \"abc\" root \"x\"\n"
          "a ::= \"one\" | \"two\" | \"\"\n",
          "abc");
  write(argv[1], "tools", "list",
        text(R"([{"type":"function","function":{"name":"f","parameters":{"a]":["\"}"]}}}])"));
  write(argv[1], "tools", "calls",
        text(R"([{"name": "f", "arguments": {"a": [1.5e3, null, {}]}, "id": "123456789"}])"));
  // A byte of choices, a header that the target completes, the tokens, their turns; the rest is zeros.
  const auto session = [&](const char* name, std::uint8_t choices, std::uint32_t n_tokens,
                           std::uint32_t n_evaluated, std::uint32_t first_page, bool has_logits) {
    support::SnapshotHead head{};
    head.n_tokens = n_tokens;
    head.n_evaluated = n_evaluated;
    head.first_page = first_page;
    head.has_logits = has_logits ? 1 : 0;
    support::Blob bytes = {choices};
    support::GgufWriter::put(head, bytes);
    for (std::uint32_t i = 0; i < n_tokens; ++i) support::GgufWriter::put(std::int32_t{70}, bytes);
    bytes.resize(bytes.size() + n_tokens);
    write(argv[1], "session", name, bytes);
  };
  session("empty", 0, 0, 0, 0, false);
  session("pending", 2, 20, 0, 0, false);
  session("with_logits", 0, 150, 150, 0, true);
  session("behind_window", 1, 190, 190, 2, true);
  session("in_part", 3, 200, 130, 1, false);
}
