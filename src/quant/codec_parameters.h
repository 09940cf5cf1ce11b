// From a calibration to what one side of one layer needs to encode and decode: which range, which
// codebook. Percents between those of the file are interpolated.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/half.h"
#include "quant/calibration.h"

namespace kvquant {

// A place between two neighbours of kOutlierPercents.
struct OutlierPlace {
  size_t below = 0;
  float share = 0;  // of the next one
};
OutlierPlace outlier_place(double percent);  // in [0, 5]

// [4, H, D]: scale, zero, low and high of every channel, of nuq codes of 2, 3 or 4 bits.
std::vector<Half> nuq_key_ranges(const KeyCalibration& key, int bits, double outlier_percent);
// The same of uniform codes of 4 or 8 bits; low and high are zero, nothing reads them.
std::vector<Half> uniform_key_ranges(const KeyCalibration& key, int bits);

// [G, 2^bits] levels of the set [P, G, 2^bits], 2-4 bits.
std::vector<float> calibrated_levels(std::span<const float> set, double outlier_percent);

}  // namespace kvquant
