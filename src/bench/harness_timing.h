// What measuring costs what is measured: the same work timed with less or more around it, in turns,
// and compared round by round.
#pragma once

#include <span>

#include "bench/model_bench.h"
#include "bench/sweep_grid.h"

namespace kvquant {

// Of one round: medians over its repetitions, in seconds.
struct PhaseTimes {
  double prefill_s = 0;  // of the whole batch, from empty caches
  double decode_s = 0;   // n_gen steps behind filled ones
};

// As a configuration of a sweep is timed, in this process: options.repetitions after one more, and
// options.energy read around each. Throws as bench_model does.
PhaseTimes time_phases(Model& model, const SweepPoint& point, ModelBenchOptions options);

// Of x[i] / base[i]: the median over the rounds, and between which of the ratios it is in 19 of 20
// cases whatever their distribution (order statistics).
struct RatioEstimate {
  double median = 1, low = 1, high = 1;
};
inline constexpr int kMinRounds = 6, kMaxRounds = 1000;  // fewer can't say so much

// Throws std::invalid_argument for fewer or more rounds, and for lists of different lengths.
RatioEstimate estimate_ratio(std::span<const double> x, std::span<const double> base);

}  // namespace kvquant
