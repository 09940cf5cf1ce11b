#include "bench/sweep_quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/quote.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using GridJson = nlohmann::json;
using Names = std::vector<std::string>;

constexpr int64_t kMost = int64_t{1} << 30;

std::string shown(const GridJson& value) { return value.dump(-1, ' ', true); }

// An object of a grid, with its place for messages: "grid.json: quality".
struct Object {
  const GridJson& json;
  std::string place;

  Object(const GridJson& value, const std::string& where, const Names& keys)
      : json(value), place(where) {
    if (!json.is_object())
      throw FormatError(fmt::format("{} is {}, not an object", place, shown(json)));
    for (const auto& [key, unused] : json.items()) {
      if (keys.empty() || std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
      throw FormatError(fmt::format("{}: unknown key {}: there are {}", place, quote(key),
                                    fmt::join(keys, ", ")));
    }
  }

  int64_t count(const std::string& key) const {
    if (!json.contains(key)) return 0;
    const GridJson& value = json[key];
    const bool ok = value.is_number_integer() && value >= 1 && value <= kMost;
    if (!ok) {
      throw FormatError(
          fmt::format("{}.{} is {}, not a whole number of at least 1", place, key, shown(value)));
    }
    return value.get<int64_t>();
  }
};

// Beside the grid, unless it is absolute.
std::string beside(const std::string& grid, const std::string& file) {
  return (std::filesystem::path(grid).parent_path() / file).lexically_normal().string();
}

// Keys that are options of a command: "--key=value", for each of a list.
Names arguments_of(const Object& object, const std::string& grid, const Names& files) {
  Names out;
  for (const auto& [key, value] : object.json.items()) {
    const GridJson list = value.is_array() ? value : GridJson::array({value});
    const bool is_file = std::find(files.begin(), files.end(), key) != files.end();
    std::string flag = "--" + key;
    std::replace(flag.begin(), flag.end(), '_', '-');
    for (const GridJson& one : list) {
      if (!one.is_string() && !one.is_number()) {
        throw FormatError(
            fmt::format("{}.{} is {}, neither text nor a number", object.place, key, shown(one)));
      }
      const std::string text = one.is_string() ? one.get<std::string>() : one.dump();
      out.push_back(flag + "=" + (is_file ? beside(grid, text) : text));
    }
  }
  return out;
}

bool is_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && std::all_of(name.begin(), name.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || std::strchr("_-+.%", c) != nullptr;
  });
}

std::vector<SweepCalibration> calibrations_of(const GridJson& json, const std::string& place,
                                              const std::string& grid) {
  const Object all(json, place, {});
  std::vector<SweepCalibration> out;
  for (const auto& [name, options] : all.json.items()) {
    if (!is_name(name)) {
      throw FormatError(
          fmt::format("{}: {} is no name: letters, digits and _-+.% make one", place, quote(name)));
    }
    const Object one(options, place + "." + name,
                     {"data", "samples", "seq_len", "recipe", "outliers", "feedback", "codebook",
                      "codebook_weights", "codebook_per", "bases", "fisher"});
    out.push_back({name, arguments_of(one, grid, {"data", "fisher"})});
  }
  return out;
}

}  // namespace

std::optional<SweepQuality> parse_quality(const std::string& text, const std::string& path) {
  const GridJson grid = parse_json_object(text, path);
  if (!grid.contains("quality")) return std::nullopt;
  const std::string place = path + ": quality";
  const Object quality(grid["quality"], place,
                       {"file", "context", "windows", "calibrations", "sensitivity"});
  SweepQuality out;
  out.context = quality.count("context");
  out.windows = quality.count("windows");
  if (quality.json.contains("file")) {
    const GridJson& file = quality.json["file"];
    if (!file.is_string()) {
      throw FormatError(fmt::format("{}.file is {}, not a file in quotes", place, shown(file)));
    }
    out.file = beside(path, file.get<std::string>());
  }
  if (quality.json.contains("calibrations")) {
    out.calibrations = calibrations_of(quality.json["calibrations"], place + ".calibrations", path);
  }
  if (quality.json.contains("sensitivity")) {
    const Object sensitivity(quality.json["sensitivity"], place + ".sensitivity",
                             {"bits", "codecs", "key_codecs", "value_codecs", "sink", "recent",
                              "windows", "test_windows"});
    out.sensitivity = arguments_of(sensitivity, path, {});
  }
  return out;
}

}  // namespace kvquant
