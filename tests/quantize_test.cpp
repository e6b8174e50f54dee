// Encoding block formats, writing GGUF files.
#include "written_files.hpp"

using namespace support;
using mixtral::BlockFormat;
using mixtral::Token;

namespace {

constexpr BlockFormat kEncoded[] = {BlockFormat::f32,  BlockFormat::f16,    BlockFormat::bf16,
                                    BlockFormat::q8_0, BlockFormat::q4_0,   BlockFormat::q4_1,
                                    BlockFormat::q5_0, BlockFormat::q5_1,   BlockFormat::q2_k,
                                    BlockFormat::q3_k, BlockFormat::q4_k,   BlockFormat::q5_k,
                                    BlockFormat::q6_k, BlockFormat::iq4_nl, BlockFormat::iq4_xs};

mixtral::Status encode(BlockFormat format, const std::vector<float>& row, Blob& out,
                       const std::vector<float>& importance = {}) {
  const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
  out.assign((row.size() / info.block_size + 1) * info.block_bytes, 0xAA);
  return mixtral::encode_rows(format, row.data(), 1, row.size(),
                              {importance.data(), importance.size()}, out.data());
}

// The row after encoding and decoding, by the kernels that models are run with.
std::vector<float> coded(BlockFormat format, const std::vector<float>& row,
                         const std::vector<float>& importance = {}) {
  Blob block;
  const auto status = encode(format, row, block, importance);
  REQUIRE_MESSAGE(static_cast<bool>(status), (status ? "" : status.error().message()));
  const mixtral::BlockFormatInfo& info = *mixtral::block_format_info(format);
  const std::size_t end = row.size() / info.block_size * info.block_bytes;
  CHECK(block[end] == 0xAA);  // nothing is written past the row
  mixtral::simd::Matrix m;
  m.data = block.data();
  m.row_bytes = end;
  m.rows = 1;
  m.cols = row.size();
  m.format = format;
  std::vector<float> out(row.size());
  mixtral::simd::select_kernels()->decode_rows(m, 0, 1, out.data());
  return out;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b,
                     const std::vector<float>& weight = {}) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d * (weight.empty() ? 1.0 : static_cast<double>(weight[i]));
  }
  return sum;
}

std::vector<float> gaussian(std::size_t n, unsigned seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> row(n);
  for (float& x : row) x = normal(random);
  return row;
}

std::string name_of(BlockFormat format) { return mixtral::block_format_info(format)->name; }

}  // namespace

TEST_CASE("quantize: Gaussian numbers lose no more than with llama.cpp's quantiser") {
  // Mean squared errors over the variance of llama.cpp c392e50 (ggml_quantize_chunk without
  // importance) on 64 x 4096 numbers.
  const std::pair<BlockFormat, double> theirs[] = {
      {BlockFormat::f32, 0.0},        {BlockFormat::f16, 4.31e-8},
      {BlockFormat::bf16, 2.742e-6},  {BlockFormat::q8_0, 2.881e-5},
      {BlockFormat::q4_0, 7.429e-3},  {BlockFormat::q4_1, 6.127e-3},
      {BlockFormat::q5_0, 1.832e-3},  {BlockFormat::q5_1, 1.436e-3},
      {BlockFormat::q2_k, 9.292e-2},  {BlockFormat::q3_k, 2.300e-2},
      {BlockFormat::q4_k, 5.216e-3},  {BlockFormat::q5_k, 1.485e-3},
      {BlockFormat::q6_k, 3.201e-4},  {BlockFormat::iq4_nl, 5.812e-3},
      {BlockFormat::iq4_xs, 5.900e-3}};
  for (const float deviation : {0.02f, 1.0f}) {
    const std::vector<float> row = gaussian(32768, 3, deviation);
    const auto variance = static_cast<double>(deviation) * static_cast<double>(deviation);
    for (const auto& entry : theirs) {
      const BlockFormat format = entry.first;
      const double error = entry.second;
      CAPTURE(name_of(format));
      const double mean = squared_error(row, coded(format, row)) / 32768.0 / variance;
      // 32768 numbers tell the mean to about 1 %; rounding of floats depends on the deviation, too.
      CHECK(mean <= error * (mixtral::block_format_info(format)->quantized ? 1.01 : 1.05));
      // A loss much smaller would mean that the test does not measure what it should.
      CHECK(mean >= error * 0.5);
    }
  }
}

TEST_CASE("quantize: halves and bfloat16 are rounded to nearest, ties to even") {
  const std::vector<std::pair<float, float>> half = {
      {1.0f + 1.0f / 2048, 1.0f},
      {1.0f + 3.0f / 2048, 1.0f + 2.0f / 1024},
      {1.0f + 1.1f / 2048, 1.0f + 1.0f / 1024},
      {65504.0f, 65504.0f},
      {std::ldexp(1.0f, -24), std::ldexp(1.0f, -24)},
      {std::ldexp(1.0f, -25), 0.0f},
      {std::ldexp(1.5f, -24), std::ldexp(2.0f, -24)},
      {-0.1f, -0.0999755859375f},
      {std::ldexp(1023.5f, -24), std::ldexp(1024.0f, -24)}};
  for (const auto& pair : half) {
    CAPTURE(pair.first);
    CHECK(coded(BlockFormat::f16, {pair.first})[0] == pair.second);
  }
  const std::vector<std::pair<float, float>> brain = {{1.0f + 1.0f / 256, 1.0f},
                                                      {1.0f + 3.0f / 256, 1.0f + 4.0f / 256},
                                                      {3.3895314e38f, 3.3895314e38f},
                                                      {-1e-40f, -9.183549615799121e-41f}};
  for (const auto& pair : brain) {
    CAPTURE(pair.first);
    CHECK(coded(BlockFormat::bf16, {pair.first})[0] == pair.second);
  }
}

TEST_CASE("quantize: odd rows come out near, too") {
  std::vector<std::pair<std::string, std::vector<float>>> rows;
  const auto row = [&](const std::string& name, auto&& number) {
    std::vector<float> r(512);
    for (std::size_t i = 0; i < r.size(); ++i)
      r[i] = static_cast<float>(number(static_cast<int>(i)));
    rows.emplace_back(name, r);
  };
  row("zero", [](int) { return 0.0; });
  row("one", [](int) { return 1.0; });
  row("minus one", [](int) { return -1.0; });
  row("one spike", [](int i) { return i == 77 ? 3.0 : 0.0; });
  row("a spike in noise", [](int i) { return i == 300 ? -50.0 : std::sin(i * 1.7); });
  row("positive", [](int i) { return 5.0 + std::sin(i * 1.3); });
  row("negative", [](int i) { return -5.0 + std::sin(i * 1.3); });
  row("largest", [](int i) { return i % 2 == 0 ? 65504.0 : -65504.0; });
  row("small", [](int i) { return 1e-3 * std::cos(i); });
  row("vanishing", [](int i) { return 1e-9 * std::cos(i); });
  row("subnormal", [](int i) { return i % 3 == 0 ? 1e-40 : 0.0; });
  row("growing", [](int i) { return std::pow(1.02, i % 256); });
  for (const auto& named : rows) {
    const std::vector<float>& r = named.second;
    double peak = 0.0;
    for (const float x : r) peak = std::max(peak, std::abs(static_cast<double>(x)));
    for (const BlockFormat format : kEncoded) {
      INFO(named.first, " as ", name_of(format));
      const std::vector<float> out = coded(format, r);
      for (const float y : out) REQUIRE(std::isfinite(y));
      const double worst = max_difference(r, out);
      // Two bits can be off by a step of a third of the range; below 2^-24 half precision has nothing.
      CHECK(worst <= peak * (format == BlockFormat::q2_k ? 0.75 : 0.36) + 1e-7);
      CHECK(squared_error(r, out) <= squared_error(r, std::vector<float>(512)) + 1e-12);
    }
  }
}

TEST_CASE("quantize: what has been encoded is encoded again without much loss") {
  const std::vector<float> row = gaussian(2048, 9);
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    const std::vector<float> once = coded(format, row);
    CHECK(squared_error(once, coded(format, once)) <= 0.1 * squared_error(row, once));
  }
}

TEST_CASE("quantize: numbers that a format cannot hold are refused by place") {
  Blob out;
  for (const BlockFormat format : kEncoded) {
    CAPTURE(name_of(format));
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(), 1e6f, -1e6f}) {
      const bool holds =
          std::isfinite(bad) && (format == BlockFormat::f32 || format == BlockFormat::bf16);
      std::vector<float> row(512, 1.0f);
      row[300] = bad;
      const auto status = encode(format, row, out);
      CHECK(static_cast<bool>(status) == holds);
      if (status) continue;
      CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
      CHECK(std::string(status.error().message()).find("element 300") != std::string::npos);
    }
  }
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const bool listed =
        std::find(std::begin(kEncoded), std::end(kEncoded), entry.format) != std::end(kEncoded);
    CHECK(mixtral::can_encode(entry.format) == listed);
    CHECK(static_cast<bool>(encode(entry.format, std::vector<float>(256), out)) == listed);
  }
  const auto unknown =
      mixtral::encode_rows(static_cast<BlockFormat>(99), nullptr, 0, 0, {}, nullptr);
  REQUIRE(!unknown);  // its error lists what can be written, and nothing else
  std::string names = unknown.error().message();
  names = ", " + names.substr(names.find("use one of ") + 11) + ",";
  for (const auto& entry : mixtral::detail::kBlockFormats) {
    const bool named = names.find(std::string(", ") + entry.info.name + ",") != std::string::npos;
    CHECK(named == mixtral::can_encode(entry.format));
  }
  CHECK(!encode(BlockFormat::q4_k, std::vector<float>(128), out));
  CHECK(!encode(BlockFormat::q8_0, std::vector<float>(33), out));
  CHECK(!encode(BlockFormat::q8_0, std::vector<float>(64), out, std::vector<float>(32)));
}

TEST_CASE("quantize: importance moves the error to where it matters less") {
  const std::vector<float> row = gaussian(8192, 4);
  std::vector<float> importance(row.size());
  std::mt19937 random(5);
  std::exponential_distribution<float> share(1.0f);
  for (float& w : importance) w = share(random) * share(random);
  for (const BlockFormat format : kEncoded) {
    if (!mixtral::block_format_info(format)->quantized) continue;
    CAPTURE(name_of(format));
    const auto plain = coded(format, row);
    const auto weighted = coded(format, row, importance);
    CHECK(squared_error(row, weighted, importance) < 0.98 * squared_error(row, plain, importance));
    CHECK(squared_error(row, weighted) < 3.0 * squared_error(row, plain));
  }
  // Importance that says nothing changes nothing; one that is broken does no harm.
  CHECK(coded(BlockFormat::q4_k, row, std::vector<float>(row.size(), 0.0f)) ==
        coded(BlockFormat::q4_k, row));
  CHECK(coded(BlockFormat::q4_k, row, std::vector<float>(row.size(), 4.0f)) ==
        coded(BlockFormat::q4_k, row));
  for (const float y : coded(BlockFormat::q4_k, row, std::vector<float>(row.size(), 1e38f))) {
    CHECK(std::isfinite(y));
  }
}

TEST_CASE("quantize: a model written in F32 is the same model") {
  const auto check = [](const Synthetic& s) {
    const Blob original = s.writer().finish();
    const MemorySink sink = write(read(original), type("F32"));
    const mixtral::Model before = open(original);
    const mixtral::Model after = open(sink.file);
    CHECK(evaluate(after, some_tokens()).logits == evaluate(before, some_tokens()).logits);
    CHECK(after.config().context_length == before.config().context_length);
    CHECK(after.config().sliding_window == before.config().sliding_window);
    CHECK(after.n_parameters() == before.n_parameters());
    // Twice is once.
    CHECK(write(read(sink.file), type("F32")).file == sink.file);
  };
  Synthetic s;
  s.randomize(1);
  check(s);
  s.merged_experts = false;
  check(s);
  s.tied_output = true;
  s.output = s.embedding;
  check(s);
  s.rope_linear_factor = 4.0f;
  s.sliding_window = 7;
  check(s);
  Synthetic dense;
  dense.n_experts = dense.n_experts_used = 1;
  dense.randomize(2);
  check(dense);
}

TEST_CASE("quantize: every layout gives the same file") {
  Synthetic s;
  s.randomize(6);
  const Blob original = s.writer().finish();
  const Blob expected = write(read(original), type("F32")).file;
  const auto expected_logits = evaluate(open(expected), some_tokens()).logits;
  const auto check = [&](const std::string& path) {
    const auto checkpoint = value(mixtral::open_checkpoint(path.c_str()));
    const MemorySink sink = write(checkpoint, type("F32"));  // which the model points into
    const mixtral::Model model = open(sink.file);
    CHECK(evaluate(model, some_tokens()).logits == expected_logits);
  };
  {
    const TemporaryFolder folder;  // rotate-half rows
    folder.write("config.json", huggingface_config(s).dump());
    folder.write("tokenizer.json", tokenizer_json(s).dump());
    folder.write("model.safetensors", safetensors(huggingface_tensors(s)));
    check(folder.path());
  }
  const TemporaryFolder folder;
  folder.write("params.json", params_json(s).dump());
  folder.write("tokenizer.json", tokenizer_json(s).dump());
  folder.write("consolidated.00.pth", torch_file(original_tensors(s, true)));  // transposed w2
  check(folder.path());
}

TEST_CASE("quantize: the tiny model reads as well as the bits allow" *
          needs_shared("models/tiny-mixtral/hf")) {
  const auto checkpoint = value(mixtral::open_checkpoint(shared("models/tiny-mixtral/hf").c_str()));
  const auto tale = golden("tale");
  const auto tokens = tale["ids"].get<std::vector<Token>>();
  const auto nll = tale["nll"].get<std::vector<double>>();
  mixtral::ThreadPool pool = value(mixtral::ThreadPool::create(2));
  const std::pair<const char*, double> bounds[] = {
      {"Q8_0", 0.01}, {"Q4_K_M", 0.04}, {"IQ4_XS", 0.04}, {"Q2_K", 0.2}};
  for (const auto& entry : bounds) {
    CAPTURE(std::string(entry.first));
    mixtral::QuantizeOptions options = type(entry.first);
    options.executor = pool;
    const MemorySink sink = write(checkpoint, options);
    const mixtral::Model model = open(sink.file);
    const Recorder seen = evaluate(model, tokens);
    double loss = 0.0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      loss -=
          mixtral::log_probability({seen.logits[i].data(), seen.logits[i].size()}, tokens[i + 1]) +
          nll[i];
    }
    CHECK(std::abs(loss) / static_cast<double>(tokens.size() - 1) < entry.second);
  }
}

TEST_CASE("quantize: types are mixed as llama.cpp mixes them" *
          needs_shared("models/tiny-mixtral/gguf")) {
  const auto checkpoint = value(mixtral::open_checkpoint(shared("models/tiny-mixtral/hf").c_str()));
  int n_compared = 0;
  for (const mixtral::Quantization& q : mixtral::quantizations()) {
    const std::string name = q.name;
    CAPTURE(name);
    const std::string peer = "models/tiny-mixtral/gguf/tiny-mixtral-" + name + ".gguf";
    if (!std::filesystem::exists(shared(peer))) continue;
    // The head of the file tells the types; the numbers need not be there.
    MemorySink sink;
    sink.most_writes = 1;
    REQUIRE(!mixtral::write_gguf(checkpoint, type(q.name), sink));
    sink.file.resize(40 << 20);
    const Blob theirs = read_file(shared(peer));
    auto* resource = std::pmr::get_default_resource();
    const auto our_file = value(mixtral::gguf::File::parse(bytes(sink.file), resource));
    const auto their_file = value(mixtral::gguf::File::parse(bytes(theirs), resource));
    CHECK(our_file.tensors().size() == their_file.tensors().size());
    for (const auto& tensor : their_file.tensors()) {
      CAPTURE(std::string(tensor.name));
      const auto* ours = our_file.find_tensor(tensor.name);
      REQUIRE(ours != nullptr);
      CHECK(name_of(ours->format) == name_of(tensor.format));
      CHECK(ours->shape == tensor.shape);
    }
    for (const char* key : {"general.file_type", "llama.expert_count", "llama.context_length",
                            "tokenizer.ggml.bos_token_id", "llama.rope.dimension_count"}) {
      CAPTURE(std::string(key));
      REQUIRE(their_file.find(key) != nullptr);
      REQUIRE(our_file.find(key) != nullptr);
      CHECK(our_file.find(key)->as_uint() == their_file.find(key)->as_uint());
    }
    ++n_compared;
  }
  CHECK(n_compared >= 12);
}

TEST_CASE("quantize: types for the output and the experts, pure types, rows that do not fit") {
  const Blob original = wide().writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  mixtral::QuantizeOptions options = type("q4_k");
  options.output_tensor_type = BlockFormat::f16;
  options.expert_type = BlockFormat::q2_k;
  const MemorySink sink = write(checkpoint, options);
  CHECK(sink.formats.at("output.weight") == BlockFormat::f16);
  CHECK(sink.formats.at("token_embd.weight") == BlockFormat::q4_k);
  CHECK(sink.formats.at("blk.0.ffn_gate_exps.weight") == BlockFormat::q2_k);
  CHECK(sink.formats.at("blk.1.ffn_down_exps.weight") == BlockFormat::q2_k);
  CHECK(sink.formats.at("blk.1.attn_v.weight") == BlockFormat::q8_0);
  CHECK(sink.formats.at("blk.1.ffn_gate_inp.weight") == BlockFormat::f32);
  CHECK(sink.formats.at("blk.1.attn_norm.weight") == BlockFormat::f32);
  CHECK(evaluate(open(sink.file), some_tokens()).logits.size() == 30);

  options = type("Q4_K_M");
  options.pure = true;
  const auto pure_formats = write(checkpoint, options).formats;
  CHECK(pure_formats.size() == sink.formats.size());
  for (const auto& [name, format] : pure_formats) {
    const bool vector =
        name.find("norm") != std::string::npos || name.find("_inp") != std::string::npos;
    CHECK(format == (vector ? BlockFormat::f32 : BlockFormat::q4_k));
  }

  Synthetic narrow;  // rows of 24 and 40
  narrow.randomize(1);
  const MemorySink f16 = write(read(narrow.writer().finish()), type("Q4_K_M"));
  CHECK(f16.formats.at("blk.0.attn_q.weight") == BlockFormat::f16);
  CHECK(f16.n_fallbacks == 2 + 2 * 7);
  narrow.dim = 64;
  narrow.hidden_dim = 96;
  narrow.randomize(1);
  const MemorySink small = write(read(narrow.writer().finish()), type("Q4_K_S"));
  CHECK(small.formats.at("blk.0.attn_q.weight") == BlockFormat::q5_0);
  CHECK(small.formats.at("output.weight") == BlockFormat::q8_0);
  CHECK(evaluate(open(small.file), some_tokens()).logits.size() == 30);
}

TEST_CASE("quantize: a tensor that has its format already is copied") {
  const mixtral::Checkpoint checkpoint =
      value(mixtral::open_gguf(bundled_model().c_str(), std::pmr::get_default_resource()));
  const MemorySink again = write(checkpoint, type("Q8_0"));
  const std::vector<Token> tokens = golden("once")["ids"].get<std::vector<Token>>();
  CHECK(evaluate(open(again.file), tokens).logits ==
        evaluate(open(bundled_model()), tokens).logits);
  // What the file says of itself stays.
  const Blob before = read_file(bundled_model());
  const auto old_file =
      value(mixtral::gguf::File::parse(bytes(before), std::pmr::get_default_resource()));
  const auto new_file =
      value(mixtral::gguf::File::parse(bytes(again.file), std::pmr::get_default_resource()));
  std::size_t n_texts = 0;
  for (const auto& pair : old_file.metadata()) {
    if (pair.key.substr(0, 8) != "general.") continue;
    CAPTURE(std::string(pair.key));
    REQUIRE(new_file.find(pair.key) != nullptr);
    CHECK(new_file.find(pair.key)->as_string() == pair.value.as_string());
    CHECK(new_file.find(pair.key)->as_uint() == pair.value.as_uint());
    n_texts += pair.value.as_string().has_value();
  }
  CHECK(n_texts >= 2);
}

TEST_CASE("quantize: metadata of every type is taken over") {
  Synthetic s;
  s.randomize(1);
  GgufWriter writer = s.writer();
  writer.string("general.name", "Ünïcode");
  writer.array("general.numbers", 5, std::vector<std::int32_t>{-1, 2});
  writer.strings("general.tags", {"a", "", "b"});
  writer.boolean("general.flag", true);
  writer.scalar("general.i8", 1, std::int8_t{-3});
  writer.scalar("general.u16", 2, std::uint16_t{65535});
  writer.scalar("general.i64", 11, std::int64_t{-5});
  writer.scalar("general.f64", 12, 0.1);
  writer.float32("general.f32", 0.25f);
  const Blob file = write(read(writer.finish()), type("F16")).file;
  const auto parsed =
      value(mixtral::gguf::File::parse(bytes(file), std::pmr::get_default_resource()));
  CHECK(parsed.find("general.name")->as_string() == "Ünïcode");
  CHECK(parsed.find("general.flag")->as_bool() == true);
  CHECK(parsed.find("general.i8")->as_double() == -3.0);
  CHECK(parsed.find("general.u16")->as_uint() == 65535u);
  CHECK(parsed.find("general.i64")->as_double() == -5.0);
  CHECK(parsed.find("general.f64")->as_double() == 0.1);
  CHECK(parsed.find("general.f32")->as_double() == 0.25);
  CHECK(parsed.find("general.file_type")->as_uint() == 1u);
  std::vector<double> numbers;
  parsed.find("general.numbers")->for_each([&](std::uint64_t, const auto& v) {
    numbers.push_back(*v.as_double());
    return true;
  });
  CHECK(numbers == std::vector<double>{-1.0, 2.0});
  CHECK(parsed.find("general.tags")->size() == 3);
}

TEST_CASE("quantize: a sink that fails or wants no more ends the writing") {
  Synthetic s;
  s.randomize(1);
  const Blob original = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  const int n_writes = write(checkpoint, type("F16")).n_writes;
  CHECK(n_writes > 20);
  for (int most = 0; most < n_writes; ++most) {
    MemorySink sink;
    sink.most_writes = most;
    const auto status = mixtral::write_gguf(checkpoint, type("F16"), sink);
    REQUIRE(!status);
    CHECK(status.error().code() == mixtral::ErrorCode::io);
  }
  MemorySink sink;
  sink.most_progress = 3;
  auto status = mixtral::write_gguf(checkpoint, type("F16"), sink);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::cancelled);
  CHECK(sink.n_progress == 4);
  status = mixtral::write_gguf(checkpoint, {}, sink);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::invalid_argument);
  CHECK(mixtral::find_quantization("Q9_9") == nullptr);
  CHECK(mixtral::find_quantization("") == nullptr);
}

TEST_CASE("quantize: a number that does not fit is told by tensor, whatever the threads") {
  Synthetic s;
  s.randomize(1);
  s.layers[1].w2[3][17][5] = 1e9f;
  s.layers[1].w2[3][20][6] = std::numeric_limits<float>::infinity();
  const Blob original = s.writer().finish();
  const mixtral::Checkpoint checkpoint = read(original);
  mixtral::ThreadPool pool = value(mixtral::ThreadPool::create(3));
  for (const bool parallel : {false, true}) {
    mixtral::QuantizeOptions options = type("F16");
    if (parallel) options.executor = pool;
    MemorySink sink;
    const auto status = mixtral::write_gguf(checkpoint, options, sink);
    REQUIRE(!status);
    const std::string message = status.error().message();
    INFO(message);
    CHECK(message.find("blk.1.ffn_down_exps.weight") != std::string::npos);
    CHECK(message.find("element 5 of row 1 ") != std::string::npos);
  }
}

TEST_CASE("quantize: merges of a tokenizer.json become scores") {
  Synthetic s;
  s.randomize(6);
  const TemporaryFolder folder;
  folder.write("config.json", huggingface_config(s).dump());
  folder.write("model.safetensors", safetensors(huggingface_tensors(s)));
  nlohmann::json json = tokenizer_json(s);
  auto& vocabulary = json["model"]["vocab"];
  // The last pieces become letters and what is made of them.
  std::vector<std::string> kept;
  for (const auto& item : vocabulary.items()) {
    if (item.value().get<int>() < 259) kept.push_back(item.key());
  }
  nlohmann::json pieces;
  for (const auto& key : kept) pieces[key] = vocabulary[key];
  int id = 259;
  for (const char* text : {"a", "b", "c", "\xE2\x96\x81", "ab", "bc", "abc",
                           "\xE2\x96\x81"
                           "a"}) {
    pieces[text] = id++;
  }
  while (id < 300) {
    const int filler = id++;
    pieces["filler" + std::to_string(filler)] = filler;
  }
  vocabulary = pieces;
  json["model"]["merges"] = {"b c", "a b", "a bc", "ab c", "\xE2\x96\x81 a"};
  folder.write("tokenizer.json", json.dump());
  const auto checkpoint = value(mixtral::open_checkpoint(folder.path().c_str()));
  const MemorySink written = write(checkpoint, type("F16"));
  const mixtral::Model model = open(written.file);
  const auto before = value(mixtral::open_tokenizer(folder.path().c_str()));
  for (const char* text : {"abc", "aabbcc", "a b c", "bcabcab", "cab abc"}) {
    CAPTURE(std::string(text));
    CHECK(value(model.tokenizer().encode(text)) == value(before.encode(text)));
  }
  json["model"]["merges"] = {"a bc", "b c", "ab c", "a b"};
  folder.write("tokenizer.json", json.dump());
  MemorySink sink;
  const auto status = mixtral::write_gguf(value(mixtral::open_checkpoint(folder.path().c_str())),
                                          type("F16"), sink);
  REQUIRE(!status);
  CHECK(status.error().code() == mixtral::ErrorCode::unsupported);
  CHECK(std::string(status.error().message()).find("'abc'") != std::string::npos);
}
