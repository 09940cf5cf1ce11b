// Fields of JSON files, with errors that name the file and the key.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace kvquant {

using Json = nlohmann::json;

// An object. Throws FormatError when the text is not JSON, not an object, nests deeper than 64
// levels or names a key of an object twice.
Json parse_json_object(const std::string& text, const std::string& path);

// All below: `object` is an object; nothing when the key is absent or null; FormatError when the
// value has another type. Integers may be written as "2.0e3" as long as they are whole.
std::optional<int64_t> json_integer(const Json& object, const char* key, const std::string& path);
std::optional<double> json_number(const Json& object, const char* key, const std::string& path);
std::optional<bool> json_boolean(const Json& object, const char* key, const std::string& path);
std::optional<std::string> json_text(const Json& object, const char* key, const std::string& path);

// An integer or a list of them (eos_token_id); empty when it is absent.
std::vector<int64_t> json_integers(const Json& object, const char* key, const std::string& path);

// Throws FormatError when it is absent.
int64_t require_integer(const Json& object, const char* key, const std::string& path);

}  // namespace kvquant
