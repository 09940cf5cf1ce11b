#include "eval/jsonl.h"

#include "base/file.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 32;

[[noreturn]] void throw_missing(const JsonLine& line, const char* key, const char* kind) {
  throw FormatError(line.place + ": \"" + key + "\" is missing or not " + kind);
}

}  // namespace

std::vector<JsonLine> read_jsonl(const std::string& path, int64_t max_lines) {
  return parse_jsonl(read_text(path, kMaxFileBytes), path, max_lines);
}

std::vector<JsonLine> parse_jsonl(const std::string& text, const std::string& path,
                                  int64_t max_lines) {
  std::vector<JsonLine> lines;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string place = path + ":" + std::to_string(number);
    lines.push_back({parse_json_object(line, place), place});
    if (max_lines > 0 && std::ssize(lines) == max_lines) break;
  }
  if (lines.empty()) throw FormatError(path + ": there is no line in it");
  return lines;
}

std::string require_text(const JsonLine& line, const char* key) {
  const auto found = line.object.find(key);
  if (found == line.object.end() || !found->is_string()) throw_missing(line, key, "a text");
  return found->get<std::string>();
}

std::vector<std::string> require_texts(const JsonLine& line, const char* key) {
  const auto found = line.object.find(key);
  if (found != line.object.end() && found->is_string()) return {found->get<std::string>()};
  if (found == line.object.end() || !found->is_array() || found->empty()) {
    throw_missing(line, key, "a list of texts");
  }
  std::vector<std::string> texts;
  for (const Json& item : *found) {
    if (!item.is_string()) throw_missing(line, key, "a list of texts");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

Json read_json(const std::string& path) {
  try {
    return Json::parse(read_text(path, kMaxFileBytes));
  } catch (const Json::exception& error) {
    throw FormatError(path + ": not JSON: " + error.what());
  }
}

}  // namespace kvquant
