// What a calibration was made from, and whether a text that is to be evaluated has a part in it:
// figures on text that codebooks and ranges were fitted to are too good.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "quant/calibration.h"

namespace kvquant {

// As CalibrationText::hash: 16 hex digits.
std::string hash_of_tokens(std::span<const int32_t> tokens);

// Of model, samples and options, which determine a calibration: equal for equal ones. 16 hex
// digits.
std::string calibration_fingerprint(const CalibrationInfo& info);

// How many samples of the calibration begin in the first num_evaluated tokens of `text`. A sample
// is in the text when the text has the same tokens at the same place, whatever the files are called
// now; a text that was shifted or cut at its beginning is not recognised.
int64_t num_samples_within(const CalibrationInfo& info, std::span<const int32_t> text,
                           int64_t num_evaluated);

}  // namespace kvquant
