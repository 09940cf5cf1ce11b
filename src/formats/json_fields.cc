#include "formats/json_fields.h"

#include <cmath>
#include <set>

#include "base/quote.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int kMaxDepth = 64;

[[noreturn]] void wrong_type(const std::string& path, const char* key, const char* wanted,
                             const Json& value) {
  throw FormatError(path + ": " + key + " is " + value.type_name() + ", not " + wanted);
}

// Null when the key is absent or its value is null.
const Json* find(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) <= 0x1p53 && number == std::floor(number)) {
      return static_cast<int64_t>(number);
    }
  }
  return std::nullopt;
}

}  // namespace

Json parse_json_object(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) {
      throw FormatError(path + ": nested deeper than " + std::to_string(kMaxDepth) + " levels");
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw FormatError(path + ": the key " + quote(key) + " is there twice");
      }
    }
    return true;
  };
  Json json;
  try {
    json = Json::parse(text, check);
  } catch (const Json::exception& error) {  // its text quotes the file: show the kind only
    const auto* at = dynamic_cast<const Json::parse_error*>(&error);
    throw FormatError(path + ": not valid JSON" +
                      (at == nullptr ? "" : " (at byte " + std::to_string(at->byte) + ")"));
  }
  if (!json.is_object()) throw FormatError(path + ": not a JSON object");
  return json;
}

std::optional<int64_t> json_integer(const Json& object, const char* key, const std::string& path) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  const auto number = whole_number(*value);
  if (!number) wrong_type(path, key, "an integer", *value);
  return number;
}

std::optional<double> json_number(const Json& object, const char* key, const std::string& path) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) wrong_type(path, key, "a number", *value);
  return value->get<double>();
}

std::optional<bool> json_boolean(const Json& object, const char* key, const std::string& path) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong_type(path, key, "true or false", *value);
  return value->get<bool>();
}

std::optional<std::string> json_text(const Json& object, const char* key, const std::string& path) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong_type(path, key, "a string", *value);
  return value->get<std::string>();
}

std::vector<int64_t> json_integers(const Json& object, const char* key, const std::string& path) {
  const Json* value = find(object, key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {*json_integer(object, key, path)};
  std::vector<int64_t> out;
  for (const Json& element : *value) {
    const auto number = whole_number(element);
    if (!number) wrong_type(path, key, "a list of integers", element);
    out.push_back(*number);
  }
  return out;
}

int64_t require_integer(const Json& object, const char* key, const std::string& path) {
  const auto value = json_integer(object, key, path);
  if (!value) throw FormatError(path + ": " + key + " is missing");
  return *value;
}

}  // namespace kvquant
