// What every checkpoint format turns its bytes into: a configuration, a vocabulary and named tensors.
#ifndef MIXTRAL_CHECKPOINT_HPP_
#define MIXTRAL_CHECKPOINT_HPP_

#include <cstdint>
#include <list>
#include <memory_resource>
#include <string>
#include <vector>

#include "mixtral/bytes.hpp"
#include "mixtral/chat.hpp"
#include "mixtral/config.hpp"
#include "mixtral/error.hpp"
#include "mixtral/role.hpp"
#include "mixtral/simd/kernels.hpp"
#include "mixtral/tokenizer.hpp"

namespace mixtral {

struct NamedTensor {
  Role role;
  std::uint32_t layer = 0;
  std::uint32_t expert = 0;
  simd::Matrix matrix;    // a vector is a matrix of one row
  std::string_view name;  // in the file, for error messages
};

// A model as a file format has it, before it is checked against its configuration. Owns the bytes
// that everything in it points into. Move only.
struct Checkpoint {
  explicit Checkpoint(std::pmr::memory_resource* resource)
      : files(resource),
        vocabulary(resource),
        names(resource),
        tensors(resource),
        chat_template(resource) {}

  std::pmr::vector<Bytes> files;
  Config config;
  Vocabulary vocabulary;
  std::pmr::list<std::pmr::string> names;  // of tensors, where no file holds them as they are
  std::pmr::vector<NamedTensor> tensors;
  std::pmr::string chat_template;  // Jinja source, empty if there is none
};

// The GGUF file at `path` (UTF-8), architecture "llama", which covers the whole family. Of a file
// in several parts (NAME-00001-of-0000N.gguf), give the first; the others are found beside it.
// Errors: io; bad_format or unsupported, naming the key or tensor, what was expected and what was
// found; out_of_memory.
Result<Checkpoint> open_gguf(const char* path, std::pmr::memory_resource* resource);

// The same from bytes: all parts of a file, in order, which are moved from.
Result<Checkpoint> read_gguf(Span<Bytes> parts, std::pmr::memory_resource* resource);

// True if the numbers in `config` make sense and no product of them overflows; every format's
// reader asks. `where` names the file in the error (bad_format).
Status check_config(const Config& config, const char* where);

}  // namespace mixtral

#endif  // MIXTRAL_CHECKPOINT_HPP_
