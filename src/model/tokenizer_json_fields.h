// Checked access to the values of tokenizer.json and tokenizer_config.json. What throws throws
// FormatError with a message that begins with the file's name.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

using Json = nlohmann::json;

inline constexpr const char* kTokenizerFile = "tokenizer.json";
inline constexpr const char* kTokenizerConfigFile = "tokenizer_config.json";

// One line, short enough for a message.
std::string shown(const Json& value);

// "tokenizer.json: <what> <value> is not supported".
[[noreturn]] void refuse(const char* what, const Json& value);

// An object whose nesting is bounded.
Json parse_object(std::string_view text, const char* file);

// The member, null when there is none.
const Json& member(const Json& object, const char* key);

inline bool is_type(const Json& object, const char* type) { return member(object, "type") == type; }

// A flag that may be missing or null; anything else throws.
bool flag(const Json& object, const char* key, bool fallback, const char* file = kTokenizerFile);

// The parts of a Sequence, or the one thing itself; none for null.
std::vector<Json> sequence(const Json& value, const char* parts);

}  // namespace kvquant
