// What tuning has found as a preset, with the calibration that it needs beside it.
#pragma once

#include <string>

#include "eval/disjoint_texts.h"
#include "eval/tune.h"
#include "kvquant/preset.h"
#include "model/presets.h"
#include "quant/calibration.h"

namespace kvquant {

struct TunePresetOptions {
  PresetModel model;
  std::string name{};  // of the preset
  double target_ppl_delta = 0.05;
  int64_t window = 2048;
  std::string program{};  // version
};

// Requires a winner. Reads the test text for its hash; throws what read_text does.
Preset tuned_preset(const TuneResult& result, const TuneTexts& texts,
                    const TunePresetOptions& options);

// The preset, and beside it, with the extension .safetensors, what its spec reads of the
// calibration (null: none). The calibration first: a preset that can be read has all it names.
// Fills in preset.calibration_file. Throws what compact_calibration, save_calibration and
// save_preset do.
void save_tuned_preset(Preset& preset, const Calibration* calibration, const std::string& path);

// On text that the model itself would write, perplexity rises by exp(KL) - 1; where text is foreign
// to it, noise may even lower it. Says so where that rise is above the budget; else empty.
std::string divergence_warning(const CandidateScore& winner, double target_ppl_delta);

// Of a result without a winner: how close it came, and what to try.
std::string describe_failure(const TuneResult& result, double target_ppl_delta);

}  // namespace kvquant
