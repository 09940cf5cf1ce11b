// Speed of a whole model in the manner of llama-bench: prefill of n_prompt tokens and decoding of
// n_gen tokens at a depth, for several cache specs, with repetitions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "kvquant/spec.h"
#include "model/model.h"

namespace kvquant {

struct ModelBenchOptions {
  std::vector<int64_t> prompt_sizes = {512};  // one prefill test each; 0 is left out
  std::vector<int64_t> gen_sizes = {128};     // one decode test each; 0 is left out
  std::vector<int64_t> depths = {0};          // tokens in the cache before each test
  std::vector<int64_t> batches = {1};         // sequences side by side
  int repetitions = 5;
  int64_t ubatch = 512;
  uint64_t seed = 42;
};

struct ModelBenchRow {
  CacheSpec spec;
  int64_t n_prompt = 0, n_gen = 0, n_depth = 0, batch = 1;
  std::vector<double> samples_s;  // one per repetition
  double tokens_per_s_mean = 0, tokens_per_s_sd = 0;
  int64_t cache_bytes = 0;  // at the end of a repetition
  int64_t peak_rss_bytes = 0;
};

// Specs take turns within a repetition, so that a drifting machine touches all alike. Every
// repetition starts from an equal cache. Rows come test by test, spec by spec.
std::vector<ModelBenchRow> bench_model(Model& model, const std::vector<CacheSpec>& specs,
                                       const ModelBenchOptions& options,
                                       const Progress& progress = {});

}  // namespace kvquant
