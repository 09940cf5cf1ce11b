// Which range the codes of a key channel span, and which keys are outliers.
//
// The published recipe (arXiv 2401.18079) cuts every channel at the same percentiles: what lies
// outside is an outlier, what remains is the range. Ours spends the same number of outliers of a
// layer where they save most. The range is narrower, so that the few levels are close together
// where most keys are; keys outside it are clamped to the last level; and of the clamped ones those
// are outliers whose overshoot, squared and weighed with what an error in that channel costs, is
// largest. docs/quality.md has what each part gains.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "quant/ranges.h"

namespace kvquant {

// Percent of a channel's values that the range leaves out. `bits` is 2, 3 or 4.
double key_range_percent(int bits, double outlier_percent);

// The ranges of all channels of a layer. sorted(c): the ascending fp16 values of channel c; weights
// [channels]: cost of a squared error. The thresholds low and high leave outlier_percent of all
// values outside.
std::vector<ChannelRange> fit_key_ranges(
    const std::function<std::span<const float>(int64_t channel)>& sorted,
    std::span<const float> weights, int bits, double outlier_percent);

}  // namespace kvquant
