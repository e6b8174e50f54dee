// Optional: opens models in every shape they are published in, not only GGUF.
//
// Needs nlohmann-json where MIXTRAL_IMPLEMENTATION is defined: include this there too, beside
// mixtral.hpp. JSON is parsed on the ordinary heap; all that stays is in the memory resource.
#ifndef MIXTRAL_CHECKPOINTS_HPP_
#define MIXTRAL_CHECKPOINTS_HPP_

#include <memory_resource>

#include "mixtral/checkpoint.hpp"
#include "mixtral/error.hpp"
#include "mixtral/model.hpp"
#include "mixtral/span.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

// The model at `path` (UTF-8), which is one of
//   - a GGUF file, or the first part of one;
//   - a folder in the Hugging Face layout: config.json, model.safetensors or shards with
//     model.safetensors.index.json, tokenizer.model or else tokenizer.json;
//   - a folder as Mistral and Meta release it: params.json, tokenizer.model, and weights in
//     consolidated.safetensors, consolidated.00.pth or consolidated.00.pt to .07.pt;
//   - a weights or index file in such a folder.
// JSON may be nested 32 deep and have 100 MiB. Of pickles, values may be nested as deep as they like.
// A folder that has both layouts is read as Hugging Face's. Weights stay mapped.
// Errors: io; bad_format or unsupported, naming the file, the key or tensor, what was expected and
// what was found; out_of_memory.
Result<Checkpoint> open_checkpoint(
    const char* path, std::pmr::memory_resource* resource = std::pmr::get_default_resource());

// The same, ready to run: Model::open for all formats.
Result<Model> open_model(const char* path, const ModelOptions& options = {});

// The tokenizer alone, from any of these or from a tokenizer.model or tokenizer.json file.
Result<Tokenizer> open_tokenizer(
    const char* path, std::pmr::memory_resource* resource = std::pmr::get_default_resource());

// A vocabulary from the bytes of a Hugging Face tokenizer.json: byte-fallback BPE with the
// normaliser and decoder of Mixtral and Llama 2 (github.com/huggingface/tokenizers). Errors:
// bad_format; unsupported, naming the part that is of another kind; out_of_memory.
Result<Vocabulary> read_tokenizer_json(Span<const std::uint8_t> bytes,
                                       std::pmr::memory_resource* resource);

}  // namespace mixtral

#endif  // MIXTRAL_CHECKPOINTS_HPP_

#include "mixtral/implementation.hpp"
