#include "bench/harness_timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace kvquant {
namespace {

double median_of(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return (x[(x.size() - 1) / 2] + x[x.size() / 2]) / 2;
}

// How many of n sorted values may be left out at each end: that the median is beyond k + 1 values
// is as likely as at most k heads in n throws, which has to be 1/40 at most.
size_t num_left_out(size_t n) {
  double probability = std::ldexp(1.0, -static_cast<int>(n));  // of k heads
  double sum = probability;
  size_t k = 0;
  for (; k < n; ++k) {
    probability *= static_cast<double>(n - k) / static_cast<double>(k + 1);
    sum += probability;
    if (sum > 1.0 / 40) break;
  }
  return k;
}

}  // namespace

PhaseTimes time_phases(Model& model, const SweepPoint& point, ModelBenchOptions options) {
  options.batches = {point.batch};
  options.combined_sizes.clear();
  const auto time = [&](int64_t n_prompt, int64_t n_gen, int64_t depth) {
    options.prompt_sizes = {n_prompt};
    options.gen_sizes = {n_gen};
    options.depths = {depth};
    return median_of(bench_model(model, {point.spec}, options).at(0).samples_s);
  };
  const double prefill_s = time(point.prompt, 0, 0);
  return {prefill_s, time(0, point.gen, point.prompt)};
}

RatioEstimate estimate_ratio(std::span<const double> x, std::span<const double> base) {
  check_arg(x.size() == base.size() && x.size() >= kMinRounds && x.size() <= kMaxRounds,
            fmt::format("harness: {} and {} rounds; {} to {} of both are compared", x.size(),
                        base.size(), kMinRounds, kMaxRounds));
  std::vector<double> ratios;
  for (size_t i = 0; i < x.size(); ++i) ratios.push_back(x[i] / base[i]);
  std::sort(ratios.begin(), ratios.end());
  const size_t left_out = num_left_out(ratios.size());
  return {median_of(ratios), ratios[left_out], ratios[ratios.size() - 1 - left_out]};
}

}  // namespace kvquant
