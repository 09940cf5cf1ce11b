// A sensitivity table as a JSON file, so that a measurement that was stopped goes on, and one
// measurement serves many budgets:
//
//   {"format": "kvquant sensitivity", "version": 1, "key": "…", "rows":
//    [{"layer": 0, "side": "k", "codec": "nuq3-1%", "kl_mean": 0.0012, "bytes": 155648}, …]}
//
// `key` is sensitivity_key(): rows of another model, calibration or text are refused.
#pragma once

#include <string>
#include <vector>

#include "eval/sensitivity.h"

namespace kvquant {

// Writes atomically. Throws what write_file_atomic throws.
void save_sensitivity(const SensitivityTable& table, const std::string& key,
                      const std::string& path);

// Empty when there is no file. Throws FormatError naming the path and the field, also when `key` is
// not the file's or a row is not of a layer in [0, num_layers) or there twice; IoError.
std::vector<Sensitivity> load_sensitivity(const std::string& path, const std::string& key,
                                          int64_t num_layers);

}  // namespace kvquant
