// Writes small valid files for each fuzz target into FOLDER/TARGET.
#define DOCTEST_CONFIG_IMPLEMENT
#include "../model_files.hpp"

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

// sentencepiece_model.proto: three special pieces, bytes, some words; BPE.
support::Blob sentencepiece() {
  std::string out;
  const auto piece = [&](const std::string& s, int type) {
    std::string message = "\x0a" + std::string(1, static_cast<char>(s.size())) + s;
    message += std::string("\x15\0\0\0\0", 5);  // score 0
    message += "\x18" + std::string(1, static_cast<char>(type));
    out += "\x0a" + std::string(1, static_cast<char>(message.size())) + message;
  };
  piece("<unk>", 2);
  piece("<s>", 3);
  piece("</s>", 3);
  for (unsigned b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    piece(name, 6);
  }
  for (const char* s : {"\xE2\x96\x81", "a", "aa", "n", "ce", "\xE2\x96\x81upon"}) piece(s, 1);
  piece("ti", 5);
  piece("[INST]", 4);
  out += std::string("\x12\x02\x18\x02", 4);                  // trainer_spec: model_type BPE
  out += std::string("\x1a\x06\x18\x01\x20\x00\x28\x01", 8);  // normalizer_spec
  return text(out);
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
  write(argv[1], "sentencepiece", "model", sentencepiece());
  auto json = support::tokenizer_json(s);
  json["model"]["merges"] = {"piece259 piece260"};
  json["model"]["vocab"]["piece259piece260"] = 262;
  write(argv[1], "tokenizer_json", "merges", text(json.dump()));
  json["model"]["merges"] = {{"piece259", "piece260"}};
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "Metaspace"}, {"split", false}};
  write(argv[1], "tokenizer_json", "newer", text(json.dump()));
}
