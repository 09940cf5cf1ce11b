// Runs samples through a model over one kind of cache: a context is read once, its questions are
// answered side by side on forks of it, and samples whose contexts begin alike share that
// beginning.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/progress.h"
#include "cache/kv_cache.h"
#include "eval/eval_sample.h"
#include "model/model.h"

namespace kvquant {

struct SampleRunOptions {
  CacheSpec spec;
  CacheMode mode = CacheMode::kAsServed;
  int64_t ubatch = 512;    // tokens that go through the layers at once
  int64_t batch_size = 1;  // samples whose answers are generated side by side
};

// A batch's samples answer in one loop; an index is into `samples`.
using SampleBatches = std::vector<std::vector<size_t>>;

// The order in which contexts share most, cut into batches, each of samples that ask for answers or
// of samples that ask for likelihoods. A function of the samples alone, so that a run that goes on
// where another stopped has the same batches.
SampleBatches make_batches(std::span<const EvalSample> samples, int64_t batch_size);

// Answers are greedy, until a stop token of the model, what EvalStop says, or max_new_tokens.
// Answers don't depend on which samples were run before, nor on the number of threads. `done` is
// called batch by batch for each of its samples. Progress counts tokens (num_tokens). Throws
// std::invalid_argument when the spec doesn't fit the model or a sample not its context, and what
// the model and `done` throw.
using SampleSink = std::function<void(size_t index, SampleResult result)>;
void run_samples(Model& model, std::span<const EvalSample> samples, const SampleBatches& batches,
                 const SampleRunOptions& options, const SampleSink& done,
                 const Progress& progress = {});

}  // namespace kvquant
