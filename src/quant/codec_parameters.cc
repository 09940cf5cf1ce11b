#include "quant/codec_parameters.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace kvquant {
namespace {

float mix(float a, float b, float share) { return a + (b - a) * share; }

}  // namespace

OutlierPlace outlier_place(double percent) {
  const auto next = std::upper_bound(kOutlierPercents.begin(), kOutlierPercents.end(), percent);
  const auto below = static_cast<size_t>(next - kOutlierPercents.begin()) - 1;
  if (next == kOutlierPercents.end()) return {below, 0.0f};
  const double width = *next - kOutlierPercents[below];
  return {below, static_cast<float>((percent - kOutlierPercents[below]) / width)};
}

std::vector<Half> uniform_key_ranges(const KeyCalibration& key, int bits) {
  assert(bits == 4 || bits == 8);
  const auto width = static_cast<std::ptrdiff_t>(key.uniform_scale.size() / 2);
  const std::ptrdiff_t begin = bits == 8 ? width : 0;
  std::vector<Half> out(static_cast<size_t>(4 * width));
  std::copy_n(key.uniform_scale.begin() + begin, width, out.begin());
  std::copy_n(key.uniform_zero.begin() + begin, width, out.begin() + width);
  return out;
}

std::vector<Half> nuq_key_ranges(const KeyCalibration& key, int bits, double outlier_percent) {
  const size_t width = key.uniform_scale.size() / 2;
  std::vector<Half> out(4 * width);
  const OutlierPlace place = outlier_place(outlier_percent);
  const auto i = static_cast<size_t>(bits - 2);
  const std::vector<Half>* const fields[] = {&key.scale[i], &key.zero[i], &key.low[i],
                                             &key.high[i]};
  for (size_t f = 0; f < 4; ++f) {
    for (size_t c = 0; c < width; ++c) {
      const size_t at = place.below * width + c;
      const Half below = (*fields[f])[at];
      out[f * width + c] =
          place.share == 0
              ? below
              : to_half(mix(to_float(below), to_float((*fields[f])[at + width]), place.share));
    }
  }
  return out;
}

std::vector<float> calibrated_levels(std::span<const float> set, double outlier_percent) {
  const size_t num_levels = set.size() / kNumOutlierPercents;
  const OutlierPlace place = outlier_place(outlier_percent);
  std::vector<float> levels(num_levels);
  for (size_t i = 0; i < num_levels; ++i) {
    const size_t at = place.below * num_levels + i;
    levels[i] = place.share == 0 ? set[at] : mix(set[at], set[at + num_levels], place.share);
  }
  return levels;
}

}  // namespace kvquant
