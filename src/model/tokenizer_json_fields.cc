#include "model/tokenizer_json_fields.h"

#include <fmt/core.h>

#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxQuoted = 120;  // bytes of a file's value in a message

void check_depth(std::string_view text, const char* file) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) {
        throw FormatError(fmt::format("{}: nested deeper than {} at byte {}", file, kMaxDepth, i));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

}  // namespace

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > kMaxQuoted) text = text.substr(0, kMaxQuoted) + "...";
  return text;
}

void refuse(const char* what, const Json& value) {
  throw FormatError(fmt::format("{}: {} {} is not supported", kTokenizerFile, what, shown(value)));
}

Json parse_object(std::string_view text, const char* file) {
  check_depth(text, file);
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    // what() quotes the file's bytes, which may be anything: only where it stopped is of use.
    const auto* parse_error = dynamic_cast<const Json::parse_error*>(&error);
    throw FormatError(
        fmt::format("{}: not JSON at byte {}", file, parse_error ? parse_error->byte : 0));
  }
  if (!json.is_object()) throw FormatError(fmt::format("{}: not a JSON object", file));
  return json;
}

const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

bool flag(const Json& object, const char* key, bool fallback, const char* file) {
  const Json& value = member(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) {
    throw FormatError(fmt::format("{}: {} is {}, not true or false", file, key, shown(value)));
  }
  return value.get<bool>();
}

std::vector<Json> sequence(const Json& value, const char* parts) {
  if (value.is_null()) return {};
  if (!is_type(value, "Sequence")) return {value};
  const Json& list = member(value, parts);
  if (!list.is_array()) refuse(parts, value);
  return list.get<std::vector<Json>>();
}

}  // namespace kvquant
