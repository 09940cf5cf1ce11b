#include "quant/codec_parameters.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace kvquant {
namespace {

// A place between two neighbours of kOutlierPercents.
struct Between {
  size_t below = 0;
  float share = 0;  // of the next one
};

Between place_of(double percent) {
  const auto next = std::upper_bound(kOutlierPercents.begin(), kOutlierPercents.end(), percent);
  const auto below = static_cast<size_t>(next - kOutlierPercents.begin()) - 1;
  if (next == kOutlierPercents.end()) return {below, 0.0f};
  const double width = *next - kOutlierPercents[below];
  return {below, static_cast<float>((percent - kOutlierPercents[below]) / width)};
}

float mix(float a, float b, float share) { return a + (b - a) * share; }

}  // namespace

int64_t key_range_index(int bits, double outlier_percent) {
  assert(outlier_percent >= 0 && outlier_percent <= kOutlierPercents.back());
  if (bits == 8) return 0;
  // By bits: the range when there are few outliers, and the least distance from their share.
  struct Rule {
    double least;   // percent
    double factor;  // of the outlier percent
  };
  constexpr Rule kRules[] = {{5, 8}, {1, 2}, {0.25, 1}};
  const Rule& rule = kRules[bits - 2];
  const double wanted = std::max(rule.least, rule.factor * outlier_percent);
  const auto found = std::lower_bound(kRangePercents.begin(), kRangePercents.end(), wanted);
  return found == kRangePercents.end() ? kNumRangePercents - 1 : found - kRangePercents.begin();
}

std::vector<Half> key_ranges(const KeyCalibration& key, int bits, double outlier_percent) {
  const size_t width = key.low.size() / kNumOutlierPercents;
  const auto range = static_cast<size_t>(key_range_index(bits, outlier_percent));
  const Between place = place_of(outlier_percent);
  std::vector<Half> out(4 * width);
  for (size_t c = 0; c < width; ++c) {
    out[c] = key.scale[range * width + c];
    out[width + c] = key.zero[range * width + c];
    for (const auto& [field, part] : {std::pair{&key.low, 2}, std::pair{&key.high, 3}}) {
      const size_t at = place.below * width + c;
      const float below = to_float((*field)[at]);
      out[static_cast<size_t>(part) * width + c] =
          place.share == 0 ? (*field)[at]
                           : to_half(mix(below, to_float((*field)[at + width]), place.share));
    }
  }
  return out;
}

std::vector<float> calibrated_levels(std::span<const float> set, int bits, double outlier_percent) {
  const size_t num_levels = size_t{1} << bits;
  const Between place = place_of(outlier_percent);
  std::vector<float> levels(num_levels);
  for (size_t i = 0; i < num_levels; ++i) {
    const size_t at = place.below * num_levels + i;
    levels[i] = place.share == 0 ? set[at] : mix(set[at], set[at + num_levels], place.share);
  }
  return levels;
}

}  // namespace kvquant
