#include "quant/ranges.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <vector>

#include "base/finite_half.h"
#include "quant/column_ends.h"
#include "quant/row_candidates.h"

namespace kvquant {
namespace {

// Adding 0 makes -0 a 0: which of the two a row's extreme is depends on the order of comparison.
RowRange range_of(float low, float high) {
  return {.scale = to_half(0.5f * (high - low) + 0.0f),
          .zero = to_half(0.5f * (low + high) + 0.0f)};
}

// Marks the `count` candidates that come first by (sign * value descending, index ascending) among
// those not marked. `next` becomes the value of the one after them. False if there are too few.
bool mark_first(std::span<const float> row, std::span<const int32_t> candidates, float sign,
                int count, std::span<uint8_t> marks, float& next) {
  float best[RowCandidates::kMaxSought];
  int32_t at[RowCandidates::kMaxSought];
  int size = 0;
  const int wanted = count + 1;
  for (const int32_t i : candidates) {
    const float x = sign * row[i];
    if (marks[i] != 0 || (size == wanted && !(x > best[size - 1]))) continue;
    int place = size < wanted ? size++ : size - 1;
    for (; place > 0 && x > best[place - 1]; --place) {
      best[place] = best[place - 1];
      at[place] = at[place - 1];
    }
    best[place] = x;
    at[place] = i;
  }
  if (size < wanted) return false;
  for (int i = 0; i < count; ++i) marks[at[i]] = 1;
  next = sign * best[count];
  return true;
}

// What is left of a row without `count` values on either end begins with the next ones on either
// end: as 2 * count < row.size(), the two ends do not overlap.
bool fit_few(std::span<const float> row, int64_t count, std::span<uint8_t> marks, RowRange& range) {
  RowCandidates found;
  if (count >= RowCandidates::kMaxSought ||
      !find_candidates(row, static_cast<int>(count) + 1, found)) {
    return false;
  }
  const std::span top(found.top, static_cast<size_t>(found.num_top));
  const std::span bottom(found.bottom, static_cast<size_t>(found.num_bottom));
  float low = 0, high = 0;
  if (!mark_first(row, top, 1.0f, static_cast<int>(count), marks, high)) return false;
  if (!mark_first(row, bottom, -1.0f, static_cast<int>(count), marks, low)) return false;
  range = range_of(low, high);
  return true;
}

// Values left out on either end.
int64_t num_left_out(size_t size, double percent) {
  return static_cast<int64_t>(size) * std::llround(percent * 1e6) / 200'000'000;
}

ChannelRange channel_range(float lowest, float highest) {
  const RowRange range = range_of(lowest, highest);
  return {range.scale, range.zero, to_half(lowest + 0.0f), to_half(highest + 0.0f)};
}

// Marks the `count` values that come first by (sign * value descending, index ascending) among
// those not marked, whatever the row.
void mark_largest(std::span<const float> row, float sign, int64_t count, std::span<uint8_t> marks) {
  std::vector<int32_t> left;
  for (size_t i = 0; i < row.size(); ++i) {
    if (marks[i] == 0) left.push_back(static_cast<int32_t>(i));
  }
  const auto end = left.begin() + count;
  std::nth_element(left.begin(), end, left.end(), [&](int32_t a, int32_t b) {
    const float x = sign * row[static_cast<size_t>(a)], y = sign * row[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  std::for_each(left.begin(), end, [&](int32_t i) { marks[static_cast<size_t>(i)] = 1; });
}

// The value that `count` candidates come before by sign * value, descending.
float value_after(std::span<const float> values, std::span<const int32_t> candidates, float sign,
                  int64_t count) {
  float best[RowCandidates::kMaxSought];
  int64_t size = 0;
  for (const int32_t i : candidates) {
    const float x = sign * values[i];
    if (size > count && !(x > best[count])) continue;
    int64_t place = size <= count ? size++ : count;
    for (; place > 0 && x > best[place - 1]; --place) best[place] = best[place - 1];
    best[place] = x;
  }
  return sign * best[count];
}

}  // namespace

ChannelRange fit_channel(std::span<float> values, double percent) {
  assert(!values.empty());
  const auto size = static_cast<int64_t>(values.size());
  const int64_t left_out = num_left_out(values.size(), percent);
  RowCandidates found;
  if (left_out < RowCandidates::kMaxSought &&
      find_candidates(values, static_cast<int>(left_out) + 1, found)) {
    const std::span bottom(found.bottom, static_cast<size_t>(found.num_bottom));
    const std::span top(found.top, static_cast<size_t>(found.num_top));
    return channel_range(value_after(values, bottom, -1.0f, left_out),
                         value_after(values, top, 1.0f, left_out));
  }
  const auto low = values.begin() + left_out;
  const auto high = values.begin() + (size - 1 - left_out);
  std::nth_element(values.begin(), low, values.end());
  const float lowest = *low;  // the next call moves it
  std::nth_element(low, high, values.end());
  return channel_range(lowest, *high);
}

ChannelRange fit_sorted_channel(std::span<const float> values, double percent) {
  assert(!values.empty() && std::is_sorted(values.begin(), values.end()));
  const auto left_out = static_cast<size_t>(num_left_out(values.size(), percent));
  return channel_range(values[left_out], values[values.size() - 1 - left_out]);
}

void fit_channels(std::span<const Half* const> rows, double percent,
                  std::span<ChannelRange> ranges) {
  assert(!rows.empty());
  const auto num_channels = static_cast<int64_t>(ranges.size());
  const int64_t left_out = num_left_out(rows.size(), percent);
  int64_t done = 0;
  if (left_out <= kMostLeftOut) {
    std::vector<float> low(ranges.size()), high(ranges.size());
    done = find_column_ends(rows, num_channels, left_out, low.data(), high.data());
    for (int64_t c = 0; c < done; ++c) ranges[c] = channel_range(low[c], high[c]);
  }
  std::vector<float> column(rows.size());
  for (; done < num_channels; ++done) {
    for (size_t i = 0; i < rows.size(); ++i) column[i] = finite_to_float(rows[i][done]);
    ranges[done] = fit_channel(column, percent);
  }
}

RowRange fit_row(std::span<const float> row, int64_t num_outliers, std::span<uint8_t> outliers) {
  assert(static_cast<int64_t>(row.size()) > 2 * num_outliers);
  std::fill(outliers.begin(), outliers.end(), uint8_t{0});
  if (num_outliers == 0) {
    const RowExtremes extremes = row_extremes(row);
    return range_of(extremes.low, extremes.high);
  }
  assert(row.size() == outliers.size());
  RowRange range;
  if (fit_few(row, num_outliers, outliers, range)) return range;
  std::fill(outliers.begin(), outliers.end(), uint8_t{0});
  mark_largest(row, 1.0f, num_outliers, outliers);
  mark_largest(row, -1.0f, num_outliers, outliers);
  float low = INFINITY, high = -INFINITY;
  for (size_t i = 0; i < row.size(); ++i) {
    low = outliers[i] == 0 && row[i] < low ? row[i] : low;
    high = outliers[i] == 0 && row[i] > high ? row[i] : high;
  }
  return range_of(low, high);
}

}  // namespace kvquant
