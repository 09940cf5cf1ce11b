#include "bench/sweep_grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "base/check.h"
#include "base/quote.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using GridJson = nlohmann::json;

constexpr int64_t kMost = int64_t{1} << 30;
constexpr size_t kMaxPoints = 100000;

// Values of one key, each with its place for messages.
class Axis {
 public:
  Axis(const GridJson& grid, const std::string& path, const std::string& key) {
    const auto it = grid.find(key);
    if (it == grid.end()) return;
    if (!it->is_array()) {
      add(*it, fmt::format("{}: {}", path, key));
    } else if (it->empty()) {
      throw FormatError(fmt::format("{}: {} is an empty list", path, key));
    }
    for (size_t i = 0; it->is_array() && i < it->size(); ++i) {
      add((*it)[i], fmt::format("{}: {}[{}]", path, key, i));
    }
  }

  bool empty() const { return values_.empty(); }

  std::vector<int64_t> integers(int64_t least, bool allows_max = false) const {
    std::vector<int64_t> out;
    for (size_t i = 0; i < values_.size(); ++i) {
      if (allows_max && values_[i] == "max") {
        out.push_back(0);
        continue;
      }
      const bool ok = values_[i].is_number_integer() && values_[i] >= least && values_[i] <= kMost;
      if (!ok) {
        throw FormatError(fmt::format("{} is {}, not a whole number of at least {}{}", places_[i],
                                      values_[i].dump(-1, ' ', true), least,
                                      allows_max ? ", nor \"max\"" : ""));
      }
      out.push_back(values_[i].get<int64_t>());
    }
    return out;
  }

  // Specs with the items appended.
  std::vector<CacheSpec> specs(const std::vector<std::string>& items) const {
    std::vector<CacheSpec> out;
    for (size_t i = 0; i < values_.size(); ++i) {
      if (!values_[i].is_string()) {
        throw FormatError(fmt::format("{} is {}, not a cache spec in quotes", places_[i],
                                      values_[i].dump(-1, ' ', true)));
      }
      for (const std::string& item : items) {
        try {
          out.push_back(parse_spec(values_[i].get<std::string>() + item));
          check_spec_built(out.back());
        } catch (const std::invalid_argument& error) {
          throw FormatError(fmt::format("{}: {}", places_[i], error.what()));
        }
      }
    }
    return out;
  }

 private:
  void add(const GridJson& value, const std::string& place) {
    values_.push_back(value);
    places_.push_back(place);
  }

  std::vector<GridJson> values_;
  std::vector<std::string> places_;
};

// Every combination of ",block=…", ",sink=…" and ",recent=…" that the grid names.
std::vector<std::string> spec_items(const GridJson& grid, const std::string& path) {
  std::vector<std::string> items = {""};
  for (const char* key : {"block", "sink", "recent"}) {
    const Axis axis(grid, path, key);
    if (axis.empty()) continue;
    std::vector<std::string> longer;
    for (const auto& item : items) {
      for (const int64_t value : axis.integers(0)) {
        longer.push_back(fmt::format("{},{}={}", item, key, value));
      }
    }
    items = std::move(longer);
  }
  return items;
}

void check_keys(const GridJson& grid, const std::string& path) {
  constexpr const char* kKeys[] = {"prompt", "batch",  "kv",      "gen",        "block",
                                   "sink",   "recent", "quality", "description"};
  for (const auto& [key, value] : grid.items()) {
    const bool is_known = std::any_of(std::begin(kKeys), std::end(kKeys),
                                      [&, &name = key](const char* k) { return name == k; });
    if (!is_known) {
      throw FormatError(fmt::format("{}: unknown key {}: a grid has {}", path, quote(key),
                                    fmt::join(kKeys, ", ")));
    }
  }
  for (const char* key : {"prompt", "batch", "kv"}) {
    if (!grid.contains(key)) throw FormatError(fmt::format("{}: {} is missing", path, key));
  }
}

// "len512": the number behind `word`; nothing when the part doesn't begin with it.
std::optional<int64_t> number_behind(std::string_view part, std::string_view word) {
  if (part.substr(0, word.size()) != word) return std::nullopt;
  const std::string_view digits = part.substr(word.size());
  int64_t value = -1;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool ok = error == std::errc() && stop == digits.data() + digits.size() && value >= 0;
  return ok && value <= kMost ? std::optional(value) : std::nullopt;
}

}  // namespace

std::vector<SweepPoint> parse_grid(const std::string& text, const std::string& path) {
  const GridJson grid = parse_json_object(text, path);
  check_keys(grid, path);
  const auto prompts = Axis(grid, path, "prompt").integers(1);
  const auto batches = Axis(grid, path, "batch").integers(1, true);
  const auto specs = Axis(grid, path, "kv").specs(spec_items(grid, path));
  auto gens = Axis(grid, path, "gen").integers(0);
  if (gens.empty()) gens = {kDefaultGen};
  if (prompts.size() * batches.size() > kMaxPoints / (gens.size() * specs.size())) {
    throw FormatError(fmt::format("{}: more than {} configurations", path, kMaxPoints));
  }
  std::vector<SweepPoint> points;
  std::set<std::string> names;
  for (const int64_t prompt : prompts) {
    for (const int64_t batch : batches) {
      for (const int64_t gen : gens) {
        for (const CacheSpec& spec : specs) {
          SweepPoint point{.prompt = prompt, .batch = batch, .gen = gen, .spec = spec};
          if (names.insert(point_name(point)).second) points.push_back(std::move(point));
        }
      }
    }
  }
  return points;
}

SweepPoint parse_point_name(const std::string& name) {
  SweepPoint point;
  point.gen = kDefaultGen;
  bool has_prompt = false, has_batch = false;
  size_t at = 0;
  for (size_t end; (end = name.find('_', at)) != std::string::npos; at = end + 1) {
    const std::string_view part = std::string_view(name).substr(at, end - at);
    if (const auto prompt = number_behind(part, "len")) {
      point.prompt = *prompt;
      has_prompt = *prompt > 0;
    } else if (const auto batch = number_behind(part, "batch"); batch || part == "batchmax") {
      point.batch = batch.value_or(0);
      has_batch = part == "batchmax" || point.batch > 0;
    } else if (const auto gen = number_behind(part, "gen")) {
      point.gen = *gen;
    } else {
      throw std::invalid_argument(fmt::format(
          "configuration {}: {} is none of len…, batch… and gen…", quote(name), quote(part)));
    }
  }
  check_arg(has_prompt && has_batch && at < name.size(),
            fmt::format("configuration {}: expected a prompt, a batch and a spec, such as "
                        "len16384_batch16_nuq3-1%",
                        quote(name)));
  try {
    point.spec = parse_spec(std::string_view(name).substr(at));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(fmt::format("configuration {}: {}", quote(name), error.what()));
  }
  return point;
}

std::string point_name(const SweepPoint& point) {
  const std::string batch = point.batch == 0 ? "max" : std::to_string(point.batch);
  const std::string gen = point.gen == kDefaultGen ? "" : fmt::format("gen{}_", point.gen);
  return fmt::format("len{}_batch{}_{}{}", point.prompt, batch, gen, point.spec.text);
}

std::vector<SweepPoint> quick_grid() {
  return parse_grid(R"({"prompt": [128, 512], "batch": [1, 4], "gen": 16,
                        "kv": ["fp16", "int8", "nuq4-1%", "nuq3-1%"]})",
                    "the quick grid");
}

}  // namespace kvquant
