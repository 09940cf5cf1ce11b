#include "quant/ranges.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace kvquant {
namespace {

RowRange range_of(float low, float high) {
  return {.scale = to_half(0.5f * (high - low)), .zero = to_half(0.5f * (low + high) + 0.0f)};
}

// Values left out on either end.
int64_t num_left_out(size_t size, double percent) {
  return static_cast<int64_t>(size) * std::llround(percent * 1e6) / 200'000'000;
}

ChannelRange channel_range(float lowest, float highest) {
  const RowRange range = range_of(lowest, highest);
  return {range.scale, range.zero, to_half(lowest), to_half(highest)};
}

// Marks the `count` values that come first by (sign * value descending, index ascending) among
// those not marked. Few are sought (5% at most), so a sorted list of candidates does.
void mark_largest(std::span<const float> row, float sign, int64_t count, std::span<uint8_t> marks) {
  constexpr int64_t kMaxListed = 64;
  while (count > 0) {  // in rounds, so that the list stays small
    const int64_t round = std::min(count, kMaxListed);
    float best[kMaxListed];
    size_t at[kMaxListed];
    int64_t size = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      const float x = sign * row[i];
      if (marks[i] != 0 || (size == round && !(x > best[size - 1]))) continue;
      int64_t place = size < round ? size++ : size - 1;
      for (; place > 0 && x > best[place - 1]; --place) {
        best[place] = best[place - 1];
        at[place] = at[place - 1];
      }
      best[place] = x;
      at[place] = i;
    }
    for (int64_t i = 0; i < size; ++i) marks[at[i]] = 1;
    count -= round;
  }
}

}  // namespace

ChannelRange fit_channel(std::span<float> values, double percent) {
  assert(!values.empty());
  const auto size = static_cast<int64_t>(values.size());
  const int64_t left_out = num_left_out(values.size(), percent);
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

RowRange fit_row(std::span<const float> row, int64_t num_outliers, std::span<uint8_t> outliers) {
  assert(row.size() == outliers.size() && static_cast<int64_t>(row.size()) > 2 * num_outliers);
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
