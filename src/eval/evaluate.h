// Specs against fp16 on the same samples: scores, their spread, and whether what is lost is more
// than chance.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "eval/sample_log.h"
#include "eval/sample_runner.h"
#include "eval/statistics.h"

namespace kvquant {

struct EvaluationOptions {
  std::vector<CacheSpec> specs{};
  CacheMode mode = CacheMode::kAsServed;  // of answers; likelihoods are strict in any case
  int64_t ubatch = 512;
  int64_t batch_size = 1;
  std::string program{};      // version; results of another one are not gone on with
  std::string run{};          // what else decides answers: precision, storage of weights
  bool logs_prompts = false;  // with their text
};

// The results of one spec, as many as samples.
struct SpecResults {
  CacheSpec spec;
  CacheMode mode = CacheMode::kAsServed;  // of answers
  std::vector<SampleResult> results;
};

// Throws std::invalid_argument when a cache of one of the specs can't be made for the model, with
// its calibration: before fp16 has been run for an hour, and anything written.
void check_evaluation(Model& model, const EvaluationOptions& options);

// fp16 first, whether listed or not, then the other specs in their order. Samples that are in the
// log are not run again, unless others of their batch have to be; each new one is added to it. What
// is thrown (by progress, for instance) leaves what is done in the log. Throws what
// check_evaluation, run_samples and SampleLog do.
std::vector<SpecResults> evaluate_samples(Model& model, std::span<const EvalSample> samples,
                                          const EvaluationOptions& options, SampleLog& log,
                                          const Progress& progress = {});

// What the results of a task say, or of a group of tasks together.
struct CellScore {
  EvalCell cell;
  int64_t count = 0;  // questions
  double mean = 0;
  Interval wilson;
};
struct ExtraScore {  // of SampleResult::extra
  Moments scores;
  Comparison versus_baseline;
};
struct TaskSummary {
  std::string task;
  std::string metric;  // metric_name; "mean" for groups of different ones
  bool is_group = false;
  CacheMode mode = CacheMode::kAsServed;
  int64_t compressed_tokens = 0;  // the most of a sample
  Moments scores;                 // over questions
  Interval wilson;
  std::vector<CellScore> cells;             // ascending
  std::vector<uint64_t> seeds;              // of the runs
  Moments runs;                             // over the means of each seed's samples
  PairedTest runs_versus_baseline;          // of these means; at least two runs
  Comparison versus_baseline;               // question by question
  std::map<std::string, ExtraScore> extra;  // by name
};

// Summaries of the tasks, in the order in which the samples have them, each group of more than one
// task behind its last one.
std::vector<TaskSummary> summarise(std::span<const EvalSample> samples, const SpecResults& results,
                                   const SpecResults& baseline);

// "Seeds 5": 42, 123, 456, 789, 101112, then on from there; `first` takes the place of 42.
std::vector<uint64_t> run_seeds(uint64_t first, int64_t count);

}  // namespace kvquant
