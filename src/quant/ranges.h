// Scales, zero points and outliers without calibration. Keys: per channel, from the values of a
// sequence's first tokens (cache/kv_cache.h says which). Values: per token, over its row. A scale
// is half the range, a zero point its middle, so that normalised values lie in [-1, 1]; both are
// rounded to fp16. A constant has scale 0 and decodes to its zero point.
//
// Ranges from a few tokens are poor: what lies outside later is clamped to the last levels, or kept
// exactly where the codec has outliers.
#pragma once

#include <cstdint>
#include <span>

#include "base/half.h"

namespace kvquant {

struct ChannelRange {
  Half scale{};
  Half zero{};
  Half low{};  // outliers are below low or above high; fp16 values of the channel themselves
  Half high{};
};

// The range between the P/2 and the 100 - P/2 percentile: what is left of the sorted values after
// floor(n * percent / 200) on either end; percent 0: the minimum and the maximum.
// Reorders `values` [n > 0], which must be finite fp16 numbers.
ChannelRange fit_channel(std::span<float> values, double percent);
// The same for values that are ascending already.
ChannelRange fit_sorted_channel(std::span<const float> values, double percent);

// fit_channel for columns: ranges[c] of the rows' numbers c. rows: their first numbers; some,
// finite.
void fit_channels(std::span<const Half* const> rows, double percent,
                  std::span<ChannelRange> ranges);

struct RowRange {
  Half scale{};
  Half zero{};
};

// Marks (1, else 0) the num_outliers largest and as many smallest values of `row`, ties to the
// lower index, the largest chosen first; returns the range of the rest. Requires finite values,
// row.size() > 2 * num_outliers, outliers.size() == row.size(), or none where none is sought.
RowRange fit_row(std::span<const float> row, int64_t num_outliers, std::span<uint8_t> outliers);

}  // namespace kvquant
