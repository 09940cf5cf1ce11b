// Scales of key channels that are given from outside, in the form that caches take parameters in.
#pragma once

#include <cstdint>
#include <span>

#include "kvquant/codebook.h"
#include "kvquant/spec.h"
#include "quant/calibration.h"

namespace kvquant {

// A calibration, for caches in memory, whose key ranges are the factors: before RoPE, around zero
// points of 0, rounded to fp16. With outliers, keys of a larger magnitude than their factor are
// kept exactly, whatever the codec's percent; without, they get the first or last level. Codebooks
// are the heuristic ones, rounding has no feedback: all but the ranges is as without a calibration.
//
// `layers`: one [num_kv_heads, head_dim] per layer. Throws std::invalid_argument naming the place
// for other shapes and for factors that are negative or no finite fp16 number; also for specs that
// need more of a calibration, or whose keys have no ranges in any layer.
Calibration scaling_calibration(std::span<const LayerScalingFactors> layers,
                                const CalibrationShape& shape, const CacheSpec& spec);

}  // namespace kvquant
