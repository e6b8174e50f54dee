// Writes synthetic models in the layouts that other programs publish.
#ifndef MIXTRAL_TESTS_MODEL_FILES_HPP_
#define MIXTRAL_TESTS_MODEL_FILES_HPP_

#include "support.hpp"

namespace support {

// A folder that is removed with what is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    static int n = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("mixtral_test_" + std::to_string(std::random_device()()) + "_" + std::to_string(n++));
    std::filesystem::create_directory(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path() const { return path_.string(); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, const Blob& bytes) const {
    std::ofstream out(file(name), std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
  }
  void write(const std::string& name, const std::string& text) const {
    write(name, Blob(text.begin(), text.end()));
  }

 private:
  std::filesystem::path path_;
};

// A float32 tensor with its PyTorch shape.
struct FloatTensor {
  std::string name;
  std::vector<std::uint64_t> shape;
  std::vector<float> values;

  Blob bytes() const {
    Blob out(values.size() * sizeof(float));
    std::memcpy(out.data(), values.data(), out.size());
    return out;
  }
};

inline FloatTensor tensor(const std::string& name, const Synthetic::Matrix& m) {
  FloatTensor t{name, {m.size(), m[0].size()}, {}};
  for (const auto& row : m) t.values.insert(t.values.end(), row.begin(), row.end());
  return t;
}
inline FloatTensor tensor(const std::string& name, const std::vector<float>& v) {
  return {name, {v.size()}, v};
}

// Rows of each head with all even ones first: what transformers' converters do to wq and wk.
inline Synthetic::Matrix rotate_half(const Synthetic::Matrix& m, std::size_t head_size) {
  Synthetic::Matrix out;
  for (std::size_t head = 0; head < m.size(); head += head_size) {
    for (std::size_t i = 0; i < head_size; i += 2) out.push_back(m[head + i]);
    for (std::size_t i = 1; i < head_size; i += 2) out.push_back(m[head + i]);
  }
  return out;
}

inline std::vector<FloatTensor> huggingface_tensors(const Synthetic& s) {
  std::vector<FloatTensor> out = {tensor("model.embed_tokens.weight", s.embedding),
                                  tensor("model.norm.weight", s.output_norm)};
  if (!s.tied_output) out.push_back(tensor("lm_head.weight", s.output));
  for (std::size_t l = 0; l < s.layers.size(); ++l) {
    const auto& layer = s.layers[l];
    const std::string p = "model.layers." + std::to_string(l) + ".";
    out.push_back(tensor(p + "input_layernorm.weight", layer.attention_norm));
    out.push_back(tensor(p + "post_attention_layernorm.weight", layer.ffn_norm));
    out.push_back(tensor(p + "self_attn.q_proj.weight", rotate_half(layer.wq, s.head_size)));
    out.push_back(tensor(p + "self_attn.k_proj.weight", rotate_half(layer.wk, s.head_size)));
    out.push_back(tensor(p + "self_attn.v_proj.weight", layer.wv));
    out.push_back(tensor(p + "self_attn.o_proj.weight", layer.wo));
    if (s.n_experts == 1) {
      out.push_back(tensor(p + "mlp.gate_proj.weight", layer.w1[0]));
      out.push_back(tensor(p + "mlp.down_proj.weight", layer.w2[0]));
      out.push_back(tensor(p + "mlp.up_proj.weight", layer.w3[0]));
      continue;
    }
    out.push_back(tensor(p + "block_sparse_moe.gate.weight", layer.router));
    for (std::size_t e = 0; e < s.n_experts; ++e) {
      const std::string expert = p + "block_sparse_moe.experts." + std::to_string(e) + ".";
      out.push_back(tensor(expert + "w1.weight", layer.w1[e]));
      out.push_back(tensor(expert + "w2.weight", layer.w2[e]));
      out.push_back(tensor(expert + "w3.weight", layer.w3[e]));
    }
  }
  return out;
}

// `merged` as in the first release: all experts in one tensor, w2 transposed.
inline std::vector<FloatTensor> original_tensors(const Synthetic& s, bool merged) {
  std::vector<FloatTensor> out = {tensor("tok_embeddings.weight", s.embedding),
                                  tensor("norm.weight", s.output_norm),
                                  tensor("output.weight", s.output)};
  for (std::size_t l = 0; l < s.layers.size(); ++l) {
    const auto& layer = s.layers[l];
    const std::string p = "layers." + std::to_string(l) + ".";
    out.push_back(tensor(p + "attention_norm.weight", layer.attention_norm));
    out.push_back(tensor(p + "ffn_norm.weight", layer.ffn_norm));
    out.push_back(tensor(p + "attention.wq.weight", layer.wq));
    out.push_back(tensor(p + "attention.wk.weight", layer.wk));
    out.push_back(tensor(p + "attention.wv.weight", layer.wv));
    out.push_back(tensor(p + "attention.wo.weight", layer.wo));
    if (s.n_experts == 1) {
      out.push_back(tensor(p + "feed_forward.w1.weight", layer.w1[0]));
      out.push_back(tensor(p + "feed_forward.w2.weight", layer.w2[0]));
      out.push_back(tensor(p + "feed_forward.w3.weight", layer.w3[0]));
    } else if (!merged) {
      out.push_back(tensor(p + "feed_forward.gate.weight", layer.router));
      for (std::size_t e = 0; e < s.n_experts; ++e) {
        const std::string expert = p + "feed_forward.experts." + std::to_string(e) + ".";
        out.push_back(tensor(expert + "w1.weight", layer.w1[e]));
        out.push_back(tensor(expert + "w2.weight", layer.w2[e]));
        out.push_back(tensor(expert + "w3.weight", layer.w3[e]));
      }
    } else {
      out.push_back(tensor(p + "block_sparse_moe.gate.weight", layer.router));
      Synthetic::Matrix w1, w2, w3;
      for (std::size_t e = 0; e < s.n_experts; ++e) {
        w1.insert(w1.end(), layer.w1[e].begin(), layer.w1[e].end());
        w3.insert(w3.end(), layer.w3[e].begin(), layer.w3[e].end());
        for (std::size_t h = 0; h < s.hidden_dim; ++h) {
          w2.emplace_back();
          for (const auto& row : layer.w2[e]) w2.back().push_back(row[h]);
        }
      }
      out.push_back(tensor(p + "block_sparse_moe.w1", w1));
      out.push_back(tensor(p + "block_sparse_moe.w2", w2));
      out.push_back(tensor(p + "block_sparse_moe.w3", w3));
    }
  }
  return out;
}

inline Blob safetensors(const std::string& header, const Blob& data) {
  Blob out;
  GgufWriter::put(static_cast<std::uint64_t>(header.size()), out);
  out.insert(out.end(), header.begin(), header.end());
  out.insert(out.end(), data.begin(), data.end());
  return out;
}

inline Blob safetensors(const std::vector<FloatTensor>& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  Blob data;
  for (const auto& t : tensors) {
    const Blob bytes = t.bytes();
    header[t.name] = {{"dtype", "F32"},
                      {"shape", t.shape},
                      {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data.insert(data.end(), bytes.begin(), bytes.end());
  }
  return safetensors(header.dump(), data);
}

// A zip archive of stored entries; with zip64 fields throughout if asked.
inline Blob zip(const std::vector<std::pair<std::string, Blob>>& entries, bool zip64 = false) {
  const auto put16 = [](std::size_t v, Blob& out) {
    GgufWriter::put(static_cast<std::uint16_t>(v), out);
  };
  const auto put32 = [](std::size_t v, Blob& out) {
    GgufWriter::put(static_cast<std::uint32_t>(v), out);
  };
  const auto put64 = [](std::size_t v, Blob& out) {
    GgufWriter::put(static_cast<std::uint64_t>(v), out);
  };
  Blob out, directory;
  for (const auto& [name, data] : entries) {
    const std::size_t header = out.size();
    put32(0x04034b50, out);
    for (int i = 0; i < 5; ++i) put16(0, out);
    for (int i = 0; i < 3; ++i) put32(0, out);  // CRC and sizes: the directory has them
    put16(name.size(), out);
    const std::size_t padding = 64 - (out.size() + 2 + name.size()) % 64;  // as PyTorch aligns
    put16(padding, out);
    out.insert(out.end(), name.begin(), name.end());
    out.resize(out.size() + padding);
    out.insert(out.end(), data.begin(), data.end());
    put32(0x02014b50, directory);
    for (int i = 0; i < 6; ++i) put16(0, directory);
    put32(0, directory);
    put32(zip64 ? 0xffffffff : data.size(), directory);
    put32(zip64 ? 0xffffffff : data.size(), directory);
    put16(name.size(), directory);
    put16(zip64 ? 28 : 0, directory);
    put16(0, directory);
    put16(0, directory);
    put16(0, directory);
    put32(0, directory);
    put32(zip64 ? 0xffffffff : header, directory);
    directory.insert(directory.end(), name.begin(), name.end());
    if (zip64) {
      put16(1, directory);
      put16(24, directory);
      put64(data.size(), directory);
      put64(data.size(), directory);
      put64(header, directory);
    }
  }
  const std::size_t offset = out.size();
  out.insert(out.end(), directory.begin(), directory.end());
  if (zip64) {
    const std::size_t end64 = out.size();
    put32(0x06064b50, out);
    put64(44, out);
    put32(0, out);
    put64(0, out);
    put64(entries.size(), out);
    put64(entries.size(), out);
    put64(directory.size(), out);
    put64(offset, out);
    put32(0x07064b50, out);
    put32(0, out);
    put64(end64, out);
    put32(1, out);
  }
  put32(0x06054b50, out);
  put32(0, out);
  put16(zip64 ? 0xffff : entries.size(), out);
  put16(zip64 ? 0xffff : entries.size(), out);
  put32(zip64 ? 0xffffffff : directory.size(), out);
  put32(zip64 ? 0xffffffff : offset, out);
  put16(0, out);
  return out;
}

// The pickle of a state dict, as torch.save() writes it; all tensors in their own storages.
class PickleWriter {
 public:
  explicit PickleWriter(const std::vector<FloatTensor>& tensors) {
    text("\x80\x02");
    global("collections", "OrderedDict");
    text(")R(");
    std::size_t key = 0;
    for (const auto& t : tensors) {
      string(t.name);
      global("torch._utils", "_rebuild_tensor_v2");
      text("((");
      string("storage");
      global("torch", "FloatStorage");
      string(std::to_string(key++));
      string("cpu");
      integer(t.values.size());
      text("tQ");
      integer(0);
      std::vector<std::uint64_t> stride(t.shape.size(), 1);
      for (std::size_t i = t.shape.size(); i-- > 1;) stride[i - 1] = stride[i] * t.shape[i];
      for (const auto& list : {t.shape, stride}) {
        text("(");
        for (const std::uint64_t n : list) integer(n);
        text("t");
      }
      text("\x89");
      global("collections", "OrderedDict");
      text(")RtR");
    }
    text("u.");
  }

  Blob bytes;

 private:
  void text(const char* t) { bytes.insert(bytes.end(), t, t + std::strlen(t)); }
  void string(const std::string& s) {
    text("X");
    GgufWriter::put(static_cast<std::uint32_t>(s.size()), bytes);
    bytes.insert(bytes.end(), s.begin(), s.end());
    text("q");
    bytes.push_back(static_cast<std::uint8_t>(n_memo_++ % 256));
  }
  void global(const char* module, const char* name) {
    text("c");
    text(module);
    text("\n");
    text(name);
    text("\n");
  }
  void integer(std::uint64_t v) {
    text("J");
    GgufWriter::put(static_cast<std::uint32_t>(v), bytes);
  }
  std::size_t n_memo_ = 0;
};

inline Blob torch_file(const std::vector<FloatTensor>& tensors, bool zip64 = false) {
  std::vector<std::pair<std::string, Blob>> entries = {
      {"archive/data.pkl", PickleWriter(tensors).bytes}};
  std::size_t key = 0;
  for (const auto& t : tensors) {
    entries.push_back({"archive/data/" + std::to_string(key++), t.bytes()});
  }
  const std::string order = "little";
  entries.push_back({"archive/byteorder", Blob(order.begin(), order.end())});
  return zip(entries, zip64);
}

// A tokenizer.model file (sentencepiece_model.proto) with three special pieces, bytes and some words; BPE.
inline Blob sentencepiece() {
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
  return Blob(out.begin(), out.end());
}

// A tokenizer.json of the synthetic vocabulary.
inline nlohmann::json tokenizer_json(const Synthetic& s) {
  nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (unsigned b = 0; b < 256; ++b) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", b);
    vocab[text] = 3 + b;
  }
  for (std::uint32_t i = 259; i < s.vocab_size; ++i) vocab["piece" + std::to_string(i)] = i;
  const char* const symbol = "\xE2\x96\x81";
  const nlohmann::json space = {{"String", " "}}, marked = {{"String", symbol}};
  return {{"added_tokens",
           {{{"id", 0}, {"content", "<unk>"}, {"special", true}},
            {{"id", 1}, {"content", "<s>"}, {"special", true}},
            {{"id", 2}, {"content", "</s>"}, {"special", true}}}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", symbol}},
              {{"type", "Replace"}, {"pattern", space}, {"content", symbol}}}}}},
          {"pre_tokenizer", nullptr},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", marked}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", nlohmann::json::array()}}}};
}

inline nlohmann::json huggingface_config(const Synthetic& s) {
  nlohmann::json config = {{"model_type", s.n_experts > 1 ? "mixtral" : "mistral"},
                           {"hidden_size", s.dim},
                           {"num_hidden_layers", s.n_layers},
                           {"num_attention_heads", s.n_heads},
                           {"num_key_value_heads", s.n_kv_heads},
                           {"head_dim", s.head_size},
                           {"intermediate_size", s.hidden_dim},
                           {"vocab_size", s.vocab_size},
                           {"max_position_embeddings", s.context_length},
                           {"rms_norm_eps", s.norm_epsilon},
                           {"rope_theta", s.rope_theta},
                           {"sliding_window", nullptr},
                           {"tie_word_embeddings", s.tied_output},
                           {"hidden_act", "silu"}};
  if (s.n_experts > 1) {
    config["num_local_experts"] = s.n_experts;
    config["num_experts_per_tok"] = s.n_experts_used;
  }
  return config;
}

inline nlohmann::json params_json(const Synthetic& s) {
  nlohmann::json params = {{"dim", s.dim},
                           {"n_layers", s.n_layers},
                           {"n_heads", s.n_heads},
                           {"n_kv_heads", s.n_kv_heads},
                           {"head_dim", s.head_size},
                           {"hidden_dim", s.hidden_dim},
                           {"vocab_size", s.vocab_size},
                           {"norm_eps", s.norm_epsilon},
                           {"rope_theta", s.rope_theta},
                           {"max_seq_len", s.context_length}};
  if (s.n_experts > 1) {
    params["moe"] = {{"num_experts", s.n_experts}, {"num_experts_per_tok", s.n_experts_used}};
  }
  return params;
}

}  // namespace support

#endif  // MIXTRAL_TESTS_MODEL_FILES_HPP_
