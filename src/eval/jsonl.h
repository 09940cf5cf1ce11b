// Data sets as JSON lines, with errors that name file and line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/json_fields.h"

namespace kvquant {

struct JsonLine {
  Json object;
  std::string place;  // "path:12"
};

// Every line that is not blank is an object; at most max_lines of them, 0: all. Throws IoError,
// FormatError with the place: of a line that is none, or when there is no line.
std::vector<JsonLine> read_jsonl(const std::string& path, int64_t max_lines = 0);

// The same of a text that comes from `path`.
std::vector<JsonLine> parse_jsonl(const std::string& text, const std::string& path,
                                  int64_t max_lines = 0);

// Throw FormatError with the place when the key is absent or its value of another type.
std::string require_text(const JsonLine& line, const char* key);
std::vector<std::string> require_texts(const JsonLine& line, const char* key);  // or one text

// A whole JSON file of any kind. Throws IoError, FormatError.
Json read_json(const std::string& path);

}  // namespace kvquant
