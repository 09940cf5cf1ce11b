#include "quant/key_fit.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace kvquant {
namespace {

// Values of a channel outside zero -+ reach.
int64_t num_outside(std::span<const float> sorted, double zero, double reach) {
  const auto below = std::lower_bound(sorted.begin(), sorted.end(), zero - reach);
  const auto above = std::upper_bound(below, sorted.end(), zero + reach);
  return (below - sorted.begin()) + (sorted.end() - above);
}

Half finite_half(double x) {
  constexpr double kMaxHalf = 65504;
  return to_half(static_cast<float>(std::clamp(x, -kMaxHalf, kMaxHalf)));
}

}  // namespace

double key_range_percent(int bits, double outlier_percent) {
  struct Rule {
    double least, factor;
  };
  constexpr Rule kRules[] = {{1, 5}, {0.5, 2}, {0.25, 1}};  // of 2, 3 and 4 bits
  assert(2 <= bits && bits <= 4);
  const Rule& rule = kRules[bits - 2];
  return std::min(std::max(rule.least, rule.factor * outlier_percent), 20.0);
}

std::vector<ChannelRange> fit_key_ranges(
    const std::function<std::span<const float>(int64_t channel)>& sorted,
    std::span<const float> weights, int bits, double outlier_percent) {
  const auto num_channels = static_cast<int64_t>(weights.size());
  std::vector<ChannelRange> ranges(weights.size());
  int64_t num_values = 0;
  for (int64_t c = 0; c < num_channels; ++c) {
    ranges[static_cast<size_t>(c)] =
        fit_sorted_channel(sorted(c), key_range_percent(bits, outlier_percent));
    num_values += static_cast<int64_t>(sorted(c).size());
  }
  // An error of up to `cost` is left to clamping, so the last level plus this reach is the
  // threshold.
  const auto reach = [&](int64_t c, double cost) {
    const auto at = static_cast<size_t>(c);
    return to_float(ranges[at].scale) +
           std::sqrt(cost / std::max(static_cast<double>(weights[at]), 1e-30));
  };
  const auto budget = static_cast<int64_t>(static_cast<double>(num_values) * outlier_percent / 100);
  double low = -80, high = 80;  // powers of two of the cost
  for (int i = 0; i < 40; ++i) {
    const double middle = 0.5 * (low + high);
    int64_t count = 0;
    for (int64_t c = 0; c < num_channels; ++c) {
      const auto zero = static_cast<double>(to_float(ranges[static_cast<size_t>(c)].zero));
      count += num_outside(sorted(c), zero, reach(c, std::exp2(middle)));
    }
    (count > budget ? low : high) = middle;
  }
  for (int64_t c = 0; c < num_channels; ++c) {
    ChannelRange& range = ranges[static_cast<size_t>(c)];
    if (to_float(range.scale) == 0) continue;  // whatever differs from a constant is an outlier
    const double zero = to_float(range.zero), width = reach(c, std::exp2(high));
    range.low = finite_half(zero - width);
    range.high = finite_half(zero + width);
  }
  return ranges;
}

}  // namespace kvquant
