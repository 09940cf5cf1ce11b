#include "eval/evaluate.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/hash.h"
#include "cache/kv_cache.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

std::string run_key(Model& model, const EvaluationOptions& options) {
  Hash64 hash;
  hash.add_text(options.program);
  hash.add_text(options.run);
  hash.add_text(model.checkpoint().fingerprint());
  hash.add_text(
      model.calibration() == nullptr ? "" : calibration_fingerprint(model.calibration()->info));
  hash.add_integer(static_cast<int64_t>(options.mode));
  hash.add_integer(options.ubatch);
  hash.add_integer(options.batch_size);
  return hash.hex();
}

struct SpecRun {
  SpecResults out;
  std::string resolved_spec;
  SampleBatches pending;
};

// What the log doesn't have, in whole batches.
void take_from_log(SpecRun& run, const SampleBatches& batches, std::span<const EvalSample> samples,
                   const SampleLog& log, const std::string& key) {
  run.out.results.resize(samples.size());
  for (const auto& batch : batches) {
    bool complete = true;
    for (const size_t i : batch) {
      const SampleResult* known = log.find(key, run.resolved_spec, samples[i]);
      complete = complete && known != nullptr;
      if (known != nullptr) run.out.results[i] = *known;
    }
    if (!complete) run.pending.push_back(batch);
  }
}

int64_t pending_tokens(const SpecRun& run, std::span<const EvalSample> samples) {
  int64_t total = 0;
  for (const auto& batch : run.pending) {
    for (const size_t i : batch) total += num_tokens(samples[i]);
  }
  return total;
}

double mean_of(const std::vector<double>& values) { return moments(values).mean; }

}  // namespace

void check_evaluation(Model& model, const EvaluationOptions& options) {
  for (const CacheSpec& spec : options.specs) {
    check_spec_fits(spec, static_cast<int>(model.config().num_layers),
                    static_cast<int>(model.config().head_dim));
    check_spec_built(spec);
    // What a calibration has to hold is known to the cache alone.
    const KvCache cache(model.transformer().kv_shape(), spec, options.mode,
                        model.transformer().rope_table(), model.pool(), model.calibration());
  }
}

std::vector<SpecResults> evaluate_samples(Model& model, std::span<const EvalSample> samples,
                                          const EvaluationOptions& options, SampleLog& log,
                                          const Progress& progress) {
  check_arg(!samples.empty(), "eval: there are no samples");
  std::vector<SpecRun> runs(1);
  runs[0].out.spec = parse_spec("fp16");
  check_evaluation(model, options);
  for (const CacheSpec& spec : options.specs) {
    if (resolved(spec) == resolved(runs[0].out.spec)) continue;
    runs.emplace_back();
    runs.back().out.spec = spec;
  }
  const std::string key = run_key(model, options);
  const SampleBatches batches = make_batches(samples, options.batch_size);
  int64_t total = 0, done = 0;
  for (SpecRun& run : runs) {
    run.resolved_spec = resolved(with_windows(run.out.spec, options.mode));
    take_from_log(run, batches, samples, log, key);
    total += pending_tokens(run, samples);
  }
  std::vector<SpecResults> out;
  for (SpecRun& run : runs) {
    const auto keep = [&](size_t i, SampleResult result) {
      log.add(key, run.resolved_spec, samples[i], result,
              options.logs_prompts ? &model.tokenizer() : nullptr);
      run.out.results[i] = std::move(result);
    };
    if (!run.pending.empty()) {
      run_samples(model, samples, run.pending,
                  {run.out.spec, options.mode, options.ubatch, options.batch_size}, keep,
                  [&](int64_t now, int64_t) { report(progress, done + now, total); });
      done += pending_tokens(run, samples);
    }
    for (const SampleResult& result : run.out.results) {
      run.out.compressed_tokens = std::max(run.out.compressed_tokens, result.compressed_tokens);
    }
    out.push_back(std::move(run.out));
  }
  return out;
}

std::vector<TaskSummary> summarise(std::span<const EvalSample> samples,
                                   std::span<const SampleResult> results,
                                   std::span<const SampleResult> baseline) {
  check_arg(samples.size() == results.size() && samples.size() == baseline.size(),
            "summarise: as many results as samples are needed");
  std::vector<std::string> tasks;
  for (const EvalSample& sample : samples) {
    if (std::find(tasks.begin(), tasks.end(), sample.task) == tasks.end()) {
      tasks.push_back(sample.task);
    }
  }
  std::vector<TaskSummary> out;
  for (const std::string& task : tasks) {
    std::vector<double> scores, base;
    std::map<EvalCell, std::vector<double>> cells;
    std::map<uint64_t, std::vector<double>> seeds;
    for (size_t i = 0; i < samples.size(); ++i) {
      if (samples[i].task != task) continue;
      for (size_t q = 0; q < results[i].scores.size(); ++q) {
        scores.push_back(results[i].scores[q]);
        base.push_back(baseline[i].scores.at(q));
        cells[samples[i].cell].push_back(scores.back());
        seeds[samples[i].seed].push_back(scores.back());
      }
    }
    const auto wilson = [](const std::vector<double>& values) {
      const auto count = static_cast<int64_t>(values.size());
      // Means times counts may be off by an ulp.
      return wilson_interval(std::min(mean_of(values), 1.0) * static_cast<double>(count), count);
    };
    TaskSummary summary;
    summary.task = task;
    summary.scores = moments(scores);
    summary.wilson = wilson(scores);
    for (const auto& [cell, values] : cells) {
      summary.cells.push_back(
          {cell, static_cast<int64_t>(values.size()), mean_of(values), wilson(values)});
    }
    std::vector<double> means;
    for (const auto& [seed, values] : seeds) {
      summary.seeds.push_back(seed);
      means.push_back(mean_of(values));
    }
    summary.runs = moments(means);
    summary.versus_baseline = compare_scores(scores, base);
    out.push_back(std::move(summary));
  }
  return out;
}

std::vector<uint64_t> run_seeds(uint64_t first, int64_t count) {
  constexpr uint64_t kPublished[] = {42, 123, 456, 789, 101112};
  std::vector<uint64_t> seeds = {first};
  for (uint64_t i = 1; std::ssize(seeds) < count; ++i) {
    const uint64_t next = i < std::size(kPublished) ? kPublished[i] : 101112 + i - 4;
    if (next != first) seeds.push_back(next);
  }
  return seeds;
}

}  // namespace kvquant
