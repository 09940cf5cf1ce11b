// Presets by name: those that come with the program, in presets/ of its data folders, one folder
// per model, and names such as "r120-vonly", which need no file.
#pragma once

#include <string>
#include <vector>

#include "kvquant/preset.h"
#include "model/checkpoint.h"

namespace kvquant {

// All of them, sorted by file; those of an earlier data folder hide those of the same name and
// model of later ones. Throws what load_preset does.
std::vector<Preset> list_presets();

// `preset` is a file, or the name of a preset of the model that find_model(model) finds, or a name
// of the grammar of spec_of_preset_name. Throws IoError when it is none of them, FormatError,
// std::invalid_argument for a rank above the model's head_dim.
Preset get_preset_info(const std::string& model, const std::string& preset);

// Of a model that a preset is for, whatever runs it.
struct PresetModel {
  std::string name, fingerprint;
  int64_t num_layers = 0, num_kv_heads = 0, head_dim = 0;
};
PresetModel preset_model(const Checkpoint& checkpoint);

// Throws std::invalid_argument naming what differs: head_dim, layers, or the model's name where the
// fingerprint differs too.
void check_preset_fits(const Preset& preset, const PresetModel& model);

// Fills in what follows from the spec and the model: rank, target, bits, ratios by marginal bits
// (what one more token takes), model and its shape.
void describe_preset(Preset& preset, const PresetModel& model);

}  // namespace kvquant
