// Presets: a cache spec that was tuned for a model, with the figures that it was chosen by and the
// calibration that it needs, as a JSON file. `kvquant tune` writes them, --preset uses them; the
// fields are listed in docs/presets.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/spec.h"

namespace kvquant {

inline constexpr int64_t kPresetVersion = 1;

// Which sides a spec compresses.
enum class PresetTarget { kValues, kKeys, kBoth };
std::string_view to_string(PresetTarget target);  // "v", "k", "kv"
// Throws std::invalid_argument for other names.
PresetTarget parse_preset_target(std::string_view name);

// What a spec keeps of a side, in the words of presets: of the values where they are compressed,
// else of the keys; the least over the layers.
struct SpecSummary {
  int64_t rank = 0;  // of low-rank latents; head_dim where there are none
  PresetTarget target = PresetTarget::kBoth;
  int64_t bits = 16;  // of a stored number: 16, 8, 4, 3 or 2; of wf the average, rounded
};
SpecSummary summarise_spec(const CacheSpec& spec, int64_t num_layers, int64_t head_dim);

// One of the settings that no other beats in both bytes and KL divergence.
struct ParetoPoint {
  std::string spec;
  double true_bits = 0;  // per key and value
  double ppl_delta = 0;  // relative
  double kl_divergence = 0;
};

// Figures that were not measured are absent. KL is in nats, a mean over tokens.
struct Preset {
  std::string model;  // its name, as its checkpoint says
  std::string model_fingerprint;
  int64_t version = kPresetVersion;
  std::string name;
  std::string spec;
  int64_t head_dim = 0;
  int64_t num_layers = 0;
  int64_t rank = 0;
  PresetTarget target = PresetTarget::kBoth;
  int64_t bits = 16;
  double compression_ratio = 0;  // of fp16 keys and values to what is stored of both
  double side_compression = 0;   // of the sides that are compressed alone
  std::optional<double> baseline_ppl, compressed_ppl;
  std::optional<double> ppl_delta;                              // relative
  std::optional<double> ppl_delta_low, ppl_delta_high;          // 95% confidence, paired
  std::optional<double> kl_divergence, top1_agreement;          // nats; share of tokens
  std::optional<double> true_bits;                              // at a window of `window` tokens
  std::optional<double> target_ppl_delta, selection_ppl_delta;  // budget; where it was chosen
  int64_t window = 0, eval_tokens = 0;                          // 0: not measured
  std::vector<ParetoPoint> pareto;                              // by bits, ascending
  std::string eval_text;  // file name, and its tokens [eval_begin, eval_begin + whole windows)
  int64_t eval_begin = 0;
  std::string eval_text_sha256;  // 64 hex digits, or empty
  std::string calibration_file;  // empty: none; relative to the preset's folder
  std::string made_by;           // version and arguments of the program, for the reader
  std::string path;              // where it was loaded from; not stored
};

// Throws FormatError naming `path` and the field: one that is missing, unknown, of another type or
// out of range, a spec that is none or says something else than rank, target and bits.
Preset parse_preset(const std::string& text, const std::string& path);
// Also throws IoError.
Preset load_preset(const std::string& path);

std::string preset_json(const Preset& preset);  // what save_preset writes
// Atomically. Throws std::invalid_argument when parse_preset would refuse it, and what
// write_file_atomic throws.
void save_preset(const Preset& preset, const std::string& path);

// Where its calibration lies; empty when it has none.
std::string calibration_path(const Preset& preset);

// The spec that a name such as "r120-vonly", "r96-kv-int8" or "r64-konly-int4" stands for; nothing
// when it is no such name: "r" RANK "-" ("vonly" | "konly" | "kv") ["-int8" | "-int4"].
std::optional<CacheSpec> spec_of_preset_name(std::string_view name);

}  // namespace kvquant
