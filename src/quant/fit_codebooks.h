// Codebooks of a layer from its activations: for every width and every outlier percent of the
// calibration, the exact weighted k-means (codebook_fit.h) of what the encoder will normalise, with
// weights scale^2, so that what is minimised is the error of keys and values, not of codes.
#pragma once

#include <array>
#include <vector>

#include "base/threads.h"
#include "quant/calibration.h"
#include "quant/layer_activations.h"

namespace kvquant {

using CodebookSet = std::array<std::vector<float>, kNumCodebooks>;  // [P, 2^bits] each

// Of keys: outliers and ranges are those of `key`, which holds them already. Deterministic at any
// number of threads, as are all here.
CodebookSet fit_key_codebooks(const LayerActivations& activations, const KeyCalibration& key,
                              ThreadPool& pool);

enum class ValueRotation { kNone, kHadamard };

// Of values: rows, their outliers and ranges as online (ranges.h). Requires a power of two as
// head_dim for kHadamard.
CodebookSet fit_value_codebooks(const LayerActivations& activations, ValueRotation rotation,
                                ThreadPool& pool);

}  // namespace kvquant
