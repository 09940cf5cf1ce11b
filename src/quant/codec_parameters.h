// From a calibration to what one side of one layer needs to encode and decode: which range, which
// codebook. Percents between those of the file are interpolated.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/half.h"
#include "quant/calibration.h"

namespace kvquant {

// Index into kRangePercents: how much of a key channel's distribution is left outside the range.
// The fewer the levels, the more the bulk gains from a narrower range, although the squared error
// grows: a few keys that are far off cost less than all keys being less exact. 4-bit uniform codes
// are `bits` 4 too; 8 bits cover everything. Measured on SmolLM2, docs/quality.md.
int64_t key_range_index(int bits, double outlier_percent);

// [4, H, D]: scale, zero, low and high of every channel. `bits` is 2, 3, 4 or 8.
std::vector<Half> key_ranges(const KeyCalibration& key, int bits, double outlier_percent);

// [2^bits] levels of the set [P, 2^bits], `bits` 2-4.
std::vector<float> calibrated_levels(std::span<const float> set, int bits, double outlier_percent);

}  // namespace kvquant
