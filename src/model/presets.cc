#include "model/presets.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/quote.h"
#include "formats/codec_table.h"
#include "kvquant/error.h"
#include "model/model.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr double kFp16Bits = 16;

bool is_of(const Preset& preset, const PresetModel& model) {
  return preset.model == model.name ||
         (!preset.model_fingerprint.empty() && preset.model_fingerprint == model.fingerprint);
}

std::vector<std::string> preset_files(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    if (it->path().extension() == ".json") files.push_back(it->path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Marginal bits per value of a side, averaged over layers; nominal ones for codecs that the table
// of codecs does not know yet.
double side_bits(const CacheSpec& spec, bool of_keys, const PresetModel& model) {
  double sum = 0;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const Codec& codec = of_keys ? spec.key_of(layer) : spec.value_of(layer);
    double bits = of_keys ? marginal_key_bits(codec, model.head_dim)
                          : marginal_value_bits(codec, model.head_dim, model.num_kv_heads);
    if (bits == 0) {
      const int stored = code_bits(codec.quantizer);
      const double share = static_cast<double>(latent_rank(codec, model.head_dim)) /
                           static_cast<double>(model.head_dim);
      bits = codec.quantizer == Quantizer::kWaterfill ? codec.waterfill_bits
                                                      : (stored == 0 ? kFp16Bits : stored) * share;
    }
    sum += bits;
  }
  return sum / static_cast<double>(model.num_layers);
}

std::string names_of(const std::vector<Preset>& presets, const Checkpoint& checkpoint) {
  std::vector<std::string> names;
  for (const Preset& preset : presets) {
    if (is_of(preset, preset_model(checkpoint))) names.push_back(preset.name);
  }
  return names.empty() ? "it has none" : fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

std::vector<Preset> list_presets() {
  std::vector<Preset> presets;
  for (const std::string& root : data_roots()) {
    for (const std::string& file : preset_files(fs::path(root) / "presets")) {
      Preset preset = load_preset(file);
      const bool is_known = std::any_of(presets.begin(), presets.end(), [&](const Preset& other) {
        return other.name == preset.name && other.model == preset.model;
      });
      if (!is_known) presets.push_back(std::move(preset));
    }
  }
  return presets;
}

Preset get_preset_info(const std::string& model, const std::string& preset) {
  if (fs::is_regular_file(preset)) return load_preset(preset);
  const bool is_path = preset.find('/') != std::string::npos || preset.ends_with(".json");
  if (is_path || preset.empty()) {
    throw IoError("preset " + quote(preset) +
                  " does not exist: give a file that kvquant tune has written, or a name that "
                  "kvquant presets lists");
  }
  const auto checkpoint = open_checkpoint(find_model(model));
  const auto presets = list_presets();
  for (const Preset& known : presets) {
    if (known.name == preset && is_of(known, preset_model(*checkpoint))) return known;
  }
  if (const auto spec = spec_of_preset_name(preset)) {
    Preset out;
    out.name = preset;
    out.spec = spec->text;
    describe_preset(out, preset_model(*checkpoint));
    return out;
  }
  throw IoError(
      fmt::format("preset {} is neither a file nor a preset of model {} ({}), nor a name "
                  "such as r120-vonly or r96-kv-int8",
                  quote(preset), quote(checkpoint->config().name), names_of(presets, *checkpoint)));
}

PresetModel preset_model(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  return {config.name, checkpoint.fingerprint(), config.num_layers, config.num_kv_heads,
          config.head_dim};
}

void check_preset_fits(const Preset& preset, const PresetModel& model) {
  const std::string where =
      "preset " + (preset.path.empty() ? preset.name : preset.path) + " was made for ";
  const auto expect = [&](const char* what, int64_t made_for, int64_t have) {
    check_arg(made_for == have,
              fmt::format("{}a model with {} {}, model {} has {}: choose a preset of this model "
                          "(kvquant presets) or tune one",
                          where, what, made_for, quote(model.name), have));
  };
  expect("head_dim", preset.head_dim, model.head_dim);
  expect("num_layers", preset.num_layers, model.num_layers);
  check_arg(
      is_of(preset, model),
      fmt::format("{}model {}, not for {}: choose a preset of this model (kvquant presets) or "
                  "tune one",
                  where, quote(preset.model), quote(model.name)));
}

void describe_preset(Preset& preset, const PresetModel& model) {
  const CacheSpec spec = parse_spec(preset.spec);
  check_spec_fits(spec, static_cast<int>(model.num_layers), static_cast<int>(model.head_dim));
  preset.model = model.name;
  preset.model_fingerprint = model.fingerprint;
  preset.head_dim = model.head_dim;
  preset.num_layers = model.num_layers;
  const SpecSummary summary = summarise_spec(spec, model.num_layers, model.head_dim);
  preset.rank = summary.rank;
  preset.target = summary.target;
  preset.bits = summary.bits;
  const double keys = side_bits(spec, true, model), values = side_bits(spec, false, model);
  preset.compression_ratio = 2 * kFp16Bits / (keys + values);
  switch (summary.target) {
    case PresetTarget::kKeys: preset.side_compression = kFp16Bits / keys; break;
    case PresetTarget::kValues: preset.side_compression = kFp16Bits / values; break;
    case PresetTarget::kBoth: preset.side_compression = preset.compression_ratio; break;
  }
}

}  // namespace kvquant
