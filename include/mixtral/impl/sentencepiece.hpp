// Reads a tokenizer.model file: the protocol buffer ModelProto of sentencepiece_model.proto.
#ifndef MIXTRAL_IMPL_SENTENCEPIECE_HPP_
#define MIXTRAL_IMPL_SENTENCEPIECE_HPP_

#include <cstring>

#include "mixtral/tokenizer.hpp"

namespace mixtral {

namespace detail {

// The fields of one protocol buffer message, in the order of the bytes
// (protobuf.dev, "Encoding"); only what sentencepiece models use: no groups.
class ProtobufReader {
 public:
  explicit ProtobufReader(std::string_view bytes) noexcept
      : position_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  // Moves to the next field; false at the end or when the bytes are broken (see ok()).
  bool next() noexcept {
    if (position_ == end_ || !ok_) return false;
    std::uint64_t tag;
    if (!read_varint(tag)) return fail();
    number_ = 0;
    bytes_ = {};
    field_ = tag >> 3;
    switch (tag & 7) {
      case 0: return read_varint(number_) || fail();
      case 1: return read_bytes(8) || fail();
      case 2: {
        std::uint64_t length;
        return (read_varint(length) && read_bytes(length)) || fail();
      }
      case 5: return read_bytes(4) || fail();
      default: return fail();
    }
  }

  bool ok() const noexcept { return ok_; }
  std::uint64_t field() const noexcept { return field_; }
  std::uint64_t number() const noexcept { return number_; }   // of a varint field
  std::string_view bytes() const noexcept { return bytes_; }  // of any other field

  float as_float() const noexcept {
    float value = 0.0f;
    if (bytes_.size() == sizeof value) std::memcpy(&value, bytes_.data(), sizeof value);
    return value;
  }

 private:
  bool fail() noexcept { return ok_ = false; }

  bool read_varint(std::uint64_t& value) noexcept {
    value = 0;
    for (unsigned shift = 0; shift < 64 && position_ != end_; shift += 7) {
      const auto byte = static_cast<std::uint8_t>(*position_++);
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool read_bytes(std::uint64_t length) noexcept {
    if (length > static_cast<std::uint64_t>(end_ - position_)) return false;
    bytes_ = std::string_view(position_, static_cast<std::size_t>(length));
    position_ += length;
    return true;
  }

  const char* position_;
  const char* end_;
  std::uint64_t field_ = 0;
  std::uint64_t number_ = 0;
  std::string_view bytes_;
  bool ok_ = true;
};

inline Error broken_model(const char* where) {
  return Error(ErrorCode::bad_format,
               "tokenizer.model: broken protocol buffer in %s (is it a SentencePiece model, and "
               "complete?)",
               where);
}

inline Status read_piece(std::string_view message, Vocabulary& vocabulary) {
  Piece piece;
  ProtobufReader reader(message);
  while (reader.next()) {
    if (reader.field() == 1) piece.text = reader.bytes();
    if (reader.field() == 2) piece.score = reader.as_float();
    if (reader.field() == 3) {
      if (reader.number() < 1 || reader.number() > 6) {
        return Error(ErrorCode::bad_format, "tokenizer.model: piece %zu has the unknown type %llu",
                     vocabulary.pieces.size(), static_cast<unsigned long long>(reader.number()));
      }
      piece.type = static_cast<PieceType>(reader.number());
    }
  }
  if (!reader.ok()) return broken_model("a piece");
  vocabulary.pieces.push_back(piece);
  return {};
}

inline Status read_trainer_spec(std::string_view message, Vocabulary& vocabulary) {
  ProtobufReader reader(message);
  std::uint64_t model_type = 1;
  bool whitespace_as_suffix = false;
  while (reader.next()) {
    switch (reader.field()) {
      case 3: model_type = reader.number(); break;
      case 24: whitespace_as_suffix = reader.number() != 0; break;
      case 40: vocabulary.unknown = static_cast<Token>(reader.number()); break;
      case 41: vocabulary.bos = static_cast<Token>(reader.number()); break;
      case 42: vocabulary.eos = static_cast<Token>(reader.number()); break;
      case 44: vocabulary.unknown_surface = reader.bytes(); break;
      default: break;
    }
  }
  if (!reader.ok()) return broken_model("the trainer_spec");
  if (model_type != 2) {
    return Error(ErrorCode::unsupported,
                 "tokenizer.model: model_type %llu; the models of this family have 2 (BPE)",
                 static_cast<unsigned long long>(model_type));
  }
  if (whitespace_as_suffix) {
    return Error(ErrorCode::unsupported,
                 "tokenizer.model: treat_whitespace_as_suffix is not supported");
  }
  return {};
}

inline Status read_normalizer_spec(std::string_view message, Vocabulary& vocabulary) {
  ProtobufReader reader(message);
  vocabulary.remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool has_rules = false;
  while (reader.next()) {
    switch (reader.field()) {
      case 2: has_rules = !reader.bytes().empty(); break;
      case 3: vocabulary.add_dummy_prefix = reader.number() != 0; break;
      case 4: vocabulary.remove_extra_whitespaces = reader.number() != 0; break;
      case 5: escape_whitespaces = reader.number() != 0; break;
      default: break;
    }
  }
  if (!reader.ok()) return broken_model("the normalizer_spec");
  if (has_rules || !escape_whitespaces) {
    return Error(ErrorCode::unsupported,
                 "tokenizer.model: normalisation rules (precompiled_charsmap, escape_whitespaces "
                 "off) are not supported; the models of this family use the identity");
  }
  return {};
}

// The vocabulary of a tokenizer.model file; points into its bytes.
inline Status read_sentencepiece(Span<const std::uint8_t> bytes, Vocabulary& vocabulary) {
  vocabulary.remove_extra_whitespaces = true;  // the proto's default
  bool has_trainer_spec = false;
  ProtobufReader reader(
      std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  while (reader.next()) {
    switch (reader.field()) {
      case 1: MIXTRAL_RETURN_IF_ERROR(read_piece(reader.bytes(), vocabulary)); break;
      case 2:
        has_trainer_spec = true;
        MIXTRAL_RETURN_IF_ERROR(read_trainer_spec(reader.bytes(), vocabulary));
        break;
      case 3: MIXTRAL_RETURN_IF_ERROR(read_normalizer_spec(reader.bytes(), vocabulary)); break;
      default: break;
    }
  }
  if (!reader.ok()) return broken_model("the model");
  if (!has_trainer_spec || vocabulary.pieces.empty()) {
    return Error(ErrorCode::bad_format,
                 "tokenizer.model: no pieces or no trainer_spec; is it a SentencePiece model?");
  }
  return {};
}

}  // namespace detail

Result<Tokenizer> Tokenizer::from_sentencepiece(Span<const std::uint8_t> bytes,
                                                std::pmr::memory_resource* resource) {
  return detail::guard_memory("reading tokenizer.model", [&]() -> Result<Tokenizer> {
    Vocabulary vocabulary(resource);
    MIXTRAL_RETURN_IF_ERROR(detail::read_sentencepiece(bytes, vocabulary));
    return create(vocabulary, resource);
  });
}

}  // namespace mixtral

#endif  // MIXTRAL_IMPL_SENTENCEPIECE_HPP_
