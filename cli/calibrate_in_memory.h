// Calibrating as commands do it: what ran out is said by the error, what to do about it only they
// know.
#pragma once

#include <vector>

#include "base/progress.h"
#include "model/calibrate.h"

namespace kvquant::cli {

// Throws OutOfMemory ("OOM during calibration: ...") with its remedy, and what calibrate does.
Calibration calibrate_in_memory(Model& model, const std::vector<TokenizedText>& texts,
                                const CalibrateOptions& options, const Progress& progress);

}  // namespace kvquant::cli
