// Optional: JSON schemas as grammars, so that what a model generates is JSON that they allow.
//
// Needs nlohmann-json in the file that defines MIXTRAL_IMPLEMENTATION, where it has to be included, too.
//
//   auto grammar = mixtral::json_schema_grammar(R"({"type": "object", "properties": {
//       "mood": {"enum": ["calm", "angry"]}, "says": {"type": "string", "maxLength": 80}},
//       "required": ["mood", "says"]})");
//   options.grammar = *grammar;
//
// Understood are, of JSON Schema 2020-12 and the older spellings of the same:
//
//   true, {}          any JSON value
//   type              one or several; integer, number, string, boolean, null, object, array
//   enum, const       any values, spelled compactly
//   properties, required, additionalProperties
//   items, prefixItems, minItems, maxItems
//   minLength, maxLength, pattern, format (date, time, date-time, uuid, email, hostname, ipv4)
//   minimum, maximum, exclusiveMinimum, exclusiveMaximum
//   anyOf, oneOf whose parts exclude each other, allOf of one part
//   $ref into the same schema, also to itself
//
// Anything else that restricts is refused by name. All texts are valid under the schema, but not all
// valid texts are made: members come in the schema's order; members that it does not name come only if
// additionalProperties says so, after the others; keys of those have no escapes; there are no blanks
// outside strings, which would cost tokens, but for what JsonSchemaOptions::blanks lets in.
//
// A schema may be a text of 4 MiB, nested 100 deep, with objects of 4096 members, of which there may be a
// few (the squares of all numbers of members sum to at most 2^26), oneOf of 256 parts, and counts up to
// 10000; its grammar may have 16000 rules (about one for each member and each schema within a schema) and
// what grammar.hpp states. More is refused before it is parsed or compiled.
#ifndef MIXTRAL_JSON_SCHEMA_HPP_
#define MIXTRAL_JSON_SCHEMA_HPP_

#include <memory_resource>
#include <string>
#include <string_view>

#include "mixtral/error.hpp"
#include "mixtral/grammar.hpp"

namespace mixtral {

struct JsonSchemaOptions {
  // Whether there may be blanks, which some models write by habit: after each of { [ , : and before each
  // of } ] , : at most one space, or one new line and at most 20 spaces. Nothing is longer than that, so
  // that a model cannot go on with blanks for ever.
  bool blanks = false;
};

// The grammar, in GBNF, of JSON texts that are valid under a schema.
// Errors: bad_format, unsupported, naming what; out_of_memory.
Result<std::string> json_schema_to_gbnf(std::string_view schema,
                                        const JsonSchemaOptions& options = {});

// The grammar, compiled. Errors: as json_schema_to_gbnf() and Grammar::from_gbnf().
Result<Grammar> json_schema_grammar(
    std::string_view schema, const JsonSchemaOptions& options,
    std::pmr::memory_resource* resource = std::pmr::get_default_resource());
inline Result<Grammar> json_schema_grammar(
    std::string_view schema,
    std::pmr::memory_resource* resource = std::pmr::get_default_resource()) {
  return json_schema_grammar(schema, JsonSchemaOptions(), resource);
}

}  // namespace mixtral

#endif  // MIXTRAL_JSON_SCHEMA_HPP_

#include "mixtral/implementation.hpp"
