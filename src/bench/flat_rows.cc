#include "bench/flat_rows.h"

namespace kvquant {
namespace {

// Numbers and names as they are; a spec has commas, and any text may have quotes.
std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
  return out;
}

std::string text_of(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::string out;
  for (const Json& item : value) {
    if (!out.empty()) out += ';';
    out += text_of(item);
  }
  return out;
}

}  // namespace

std::vector<Json> flat_rows(const Json& document) {
  Json common = {{"command", document.at("command")}};
  if (document.at("model").is_object()) {
    common["model"] = document["model"].at("name");
    common["model_fingerprint"] = document["model"].at("fingerprint");
  }
  for (const char* field : {"cpu", "version", "commit"}) {
    common[field] = document.at("machine").at(field);
  }
  for (const auto& [name, value] : document.at("config").items()) {
    common[name] = value.is_object() ? value.value("path", Json()) : value;
  }
  std::vector<Json> rows;
  for (const Json& result : document.at("results")) {
    rows.push_back(common);
    rows.back().update(result);
  }
  return rows;
}

std::string to_jsonl(const std::vector<Json>& rows) {
  std::string out;
  for (const Json& row : rows) {
    out += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return out;
}

std::string to_csv(const std::vector<Json>& rows) {
  std::string out;
  const auto add_line = [&](const Json& row, const auto& cell) {
    const char* separator = "";
    for (const auto& item : row.items()) {
      out += separator;
      out += quoted(cell(item));
      separator = ",";
    }
    out += "\n";
  };
  if (!rows.empty()) add_line(rows[0], [](const auto& item) { return item.key(); });
  for (const Json& row : rows) {
    add_line(row, [](const auto& item) { return text_of(item.value()); });
  }
  return out;
}

}  // namespace kvquant
