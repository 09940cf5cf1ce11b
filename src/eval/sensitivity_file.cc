#include "eval/sensitivity_file.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <stdexcept>

#include "base/file.h"
#include "base/quote.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr const char* kFormat = "kvquant sensitivity";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxFileBytes = int64_t{1} << 28;
constexpr int64_t kMaxBytes = int64_t{1} << 44;  // of one side of one layer

class RowReader {
 public:
  RowReader(const std::string& path, int64_t num_layers) : path_(path), num_layers_(num_layers) {}

  Sensitivity read(const Json& object, size_t index) const {
    const std::string place = fmt::format("{}: row {}", path_, index);
    if (!object.is_object()) throw FormatError(place + " is not an object");
    Sensitivity row;
    row.layer = require_integer(object, "layer", place);
    if (row.layer < 0 || row.layer >= num_layers_) {
      throw FormatError(
          fmt::format("{}: layer {} is not in [0, {})", place, row.layer, num_layers_));
    }
    const std::string side = json_text(object, "side", place).value_or("");
    if (side != "k" && side != "v") {
      throw FormatError(fmt::format("{}: side {} is neither k nor v", place, quote(side)));
    }
    row.side = side == "k" ? KvSide::kKey : KvSide::kValue;
    row.codec = codec_of(json_text(object, "codec", place).value_or(""), place);
    row.kl_mean = json_number(object, "kl_mean", place).value_or(-1);
    if (!std::isfinite(row.kl_mean) || row.kl_mean < 0) {
      throw FormatError(place + ": kl_mean is missing, negative or not finite");
    }
    row.bytes = require_integer(object, "bytes", place);
    if (row.bytes < 1 || row.bytes > kMaxBytes) {
      throw FormatError(fmt::format("{}: bytes {} is not in [1, {}]", place, row.bytes, kMaxBytes));
    }
    return row;
  }

 private:
  static Codec codec_of(const std::string& text, const std::string& place) {
    try {
      const CacheSpec spec = parse_spec(text);
      if (to_string(spec.key) == text) return spec.key;
    } catch (const std::invalid_argument&) {
      // said below
    }
    throw FormatError(fmt::format("{}: {} is not the name of a codec", place, quote(text)));
  }

  const std::string& path_;
  int64_t num_layers_;
};

}  // namespace

void save_sensitivity(const SensitivityTable& table, const std::string& key,
                      const std::string& path) {
  auto rows = nlohmann::ordered_json::array();
  for (const Sensitivity& row : table.rows) {
    rows.push_back({{"layer", row.layer},
                    {"side", row.side == KvSide::kKey ? "k" : "v"},
                    {"codec", to_string(row.codec)},
                    {"kl_mean", row.kl_mean},
                    {"bytes", row.bytes}});
  }
  const nlohmann::ordered_json document = {
      {"format", kFormat}, {"version", kVersion}, {"key", key}, {"rows", rows}};
  write_file_atomic(path, document.dump(1) + "\n");
}

std::vector<Sensitivity> load_sensitivity(const std::string& path, const std::string& key,
                                          int64_t num_layers) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return {};
  const Json document = parse_json_object(read_text(path, kMaxFileBytes), path);
  if (json_text(document, "format", path) != kFormat) {
    throw FormatError(path + ": not a sensitivity table of kvquant");
  }
  const int64_t version = require_integer(document, "version", path);
  if (version != kVersion) {
    throw FormatError(
        fmt::format("{}: version {}, this program reads {}", path, version, kVersion));
  }
  if (json_text(document, "key", path) != key) {
    throw FormatError(path +
                      ": measured with another model, calibration, text, window or precision: "
                      "name another file");
  }
  const auto rows = document.find("rows");
  if (rows == document.end() || !rows->is_array()) throw FormatError(path + ": rows is no list");
  const RowReader reader(path, num_layers);
  SensitivityTable table;
  for (size_t i = 0; i < rows->size(); ++i) {
    const Sensitivity row = reader.read((*rows)[i], i);
    if (table.find(row.layer, row.side, row.codec) != nullptr) {
      throw FormatError(fmt::format("{}: row {}: layer {} has {} twice", path, i, row.layer,
                                    to_string(row.codec)));
    }
    table.rows.push_back(row);
  }
  return table.rows;
}

}  // namespace kvquant
