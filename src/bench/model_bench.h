// Speed of a whole model in the manner of llama-bench: prefill of n_prompt tokens and decoding of
// n_gen tokens at a depth, for several cache specs, with repetitions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "bench/energy_monitor.h"
#include "kvquant/spec.h"
#include "model/model.h"

namespace kvquant {

// Of one test.
struct RepetitionLimits {
  int warmups = 1;  // repetitions that don't count
  // More repetitions until the standard error of every spec's mean time is below this share of it;
  // 0: none more.
  double target_error = 0;
  int max_repetitions = 1000;
  // No more of either kind once warming up, or what counts, took so long: one of each is always
  // done. 0: no limit.
  double max_seconds = 0;
};

struct ModelBenchOptions {
  std::vector<int64_t> prompt_sizes = {512};  // one prefill test each; 0 is left out
  std::vector<int64_t> gen_sizes = {128};     // one decode test each; 0 is left out
  // One test each of a prefill with decoding after it: tokens of both.
  std::vector<std::pair<int64_t, int64_t>> combined_sizes = {};
  std::vector<int64_t> depths = {0};   // tokens in the cache before each test
  std::vector<int64_t> batches = {1};  // sequences side by side
  int repetitions = 5;
  RepetitionLimits limits = {};
  int64_t ubatch = 512;
  uint64_t seed = 42;
  EnergyMeter* energy = nullptr;  // read around every repetition that counts; null: not at all
};

struct ModelBenchRow {
  CacheSpec spec;
  int64_t n_prompt = 0, n_gen = 0, n_depth = 0, batch = 1;
  std::vector<double> samples_s;                      // one per repetition
  double tokens_per_s_mean = 0, tokens_per_s_sd = 0;  // of all sequences together
  double ratio_to_first_spec = 1;            // of tokens/s: median over the repetitions' ratios
  int64_t cache_bytes = 0;                   // at the end of a repetition
  int64_t peak_cache_bytes = 0;              // the most during the timed part, scratch included
  int64_t peak_rss_bytes = 0;                // of the process, since its start
  std::optional<EnergyReading> energy = {};  // of all repetitions; unset without a meter
};

// Of the mean of samples_s, as a share of it; infinite for less than two.
double relative_error(const ModelBenchRow& row);

// "pp512", "tg128", "pp512+tg128", then " @ d4096" and " x 8" for a depth and a batch.
std::string test_name(const ModelBenchRow& row);

// Specs take turns within a repetition, so that a drifting machine touches all alike and the ratio
// of two neighbouring samples means something. A depth is filled once per spec and batch, its
// caches stay until the last test at this depth is done. The first repetitions warm up. Rows come
// test by test, spec by spec. Throws std::invalid_argument for what doesn't fit the model.
std::vector<ModelBenchRow> bench_model(Model& model, const std::vector<CacheSpec>& specs,
                                       const ModelBenchOptions& options,
                                       const Progress& progress = {});

// Sets what follows from samples_s in the rows of one test, the first spec's first.
void summarise(std::span<ModelBenchRow> rows);

}  // namespace kvquant
