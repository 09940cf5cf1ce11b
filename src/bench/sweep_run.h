// Measures one configuration of a sweep: prefill and decoding apart, in this process.
#pragma once

#include <optional>
#include <string>

#include "bench/model_bench.h"
#include "bench/result.h"
#include "bench/sweep_grid.h"

namespace kvquant {

struct SweepLimits {
  RepetitionLimits repetitions = {
      .warmups = 5, .target_error = 0.02, .max_repetitions = 50, .max_seconds = 60};
  int min_repetitions = 5;
  int64_t memory_budget = 0;  // bytes of caches; 0: none
};

// The repetitions of --quick.
SweepLimits quick_limits();

// What decides a result besides the configuration's name and the model.
Json limits_fields(const SweepLimits& limits);

// What a result says of its configuration: name, spec, mode, n_prompt, batch (null: the largest),
// n_gen.
Json point_fields(const SweepPoint& point);

// With "status": "ok" and the figures, or "out_of_memory" with the "reason". Beyond the budget
// nothing is run that a forecast shows not to fit; what only proves too large is reported so too.
// A batch of 0 becomes the largest that the budget allows. Throws std::invalid_argument for what
// doesn't fit the model, or a batch of 0 without a budget.
Json run_point(Model& model, const SweepPoint& point, const SweepLimits& limits,
               const ModelBenchOptions& base, const Progress& progress = {});

Json out_of_memory_fields(const std::string& reason);

}  // namespace kvquant
