#include "eval/evaluate.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/hash.h"
#include "model/calibration_source.h"
#include "model/runner.h"

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

// The samples of one mode under one spec.
struct SpecRun {
  size_t out = 0;  // index of its results
  CacheMode mode = CacheMode::kAsServed;
  std::string resolved_spec;
  SampleBatches pending;
};

CacheMode mode_of(const EvalSample& sample, CacheMode mode_of_answers) {
  return asks_likelihoods(sample) ? CacheMode::kStrict : mode_of_answers;
}

// What the log has goes into `results`; what it doesn't have stays pending, in whole batches.
void take_from_log(SpecRun& run, std::span<const EvalSample> samples, const SampleLog& log,
                   const std::string& key, std::vector<SampleResult>& results) {
  std::erase_if(run.pending, [&](const std::vector<size_t>& batch) {
    bool complete = true;
    for (const size_t i : batch) {
      const SampleResult* known = log.find(key, run.resolved_spec, samples[i]);
      complete = complete && known != nullptr;
      if (known != nullptr) results[i] = *known;
    }
    return complete;
  });
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
    // What a calibration has to hold, and what devices have, is known to the cache alone.
    make_runner(model, {.spec = spec, .mode = options.mode, .max_tokens = 1, .chunk_tokens = 1});
  }
}

std::vector<SpecResults> evaluate_samples(Model& model, std::span<const EvalSample> samples,
                                          const EvaluationOptions& options, SampleLog& log,
                                          const Progress& progress) {
  check_arg(!samples.empty(), "eval: there are no samples");
  check_evaluation(model, options);
  std::vector<SpecResults> out = {{parse_spec("fp16"), options.mode, {}}};
  for (const CacheSpec& spec : options.specs) {
    if (resolved(spec) != resolved(out[0].spec)) out.push_back({spec, options.mode, {}});
  }
  const std::string key = run_key(model, options);
  const SampleBatches batches = make_batches(samples, options.batch_size);
  std::vector<SpecRun> runs;
  int64_t total = 0, done = 0;
  for (size_t s = 0; s < out.size(); ++s) {
    out[s].results.resize(samples.size());
    for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
      SpecRun run{s, mode, resolved(with_windows(out[s].spec, mode)), {}};
      for (const auto& batch : batches) {
        if (mode_of(samples[batch[0]], options.mode) == mode) run.pending.push_back(batch);
      }
      take_from_log(run, samples, log, key, out[s].results);
      total += pending_tokens(run, samples);
      if (!run.pending.empty()) runs.push_back(std::move(run));
    }
  }
  for (const SpecRun& run : runs) {
    const auto keep = [&](size_t i, SampleResult result) {
      log.add(key, run.resolved_spec, samples[i], result,
              options.logs_prompts ? &model.tokenizer() : nullptr);
      out[run.out].results[i] = std::move(result);
    };
    run_samples(model, samples, run.pending,
                {out[run.out].spec, run.mode, options.ubatch, options.batch_size}, keep,
                [&](int64_t now, int64_t) { report(progress, done + now, total); });
    done += pending_tokens(run, samples);
  }
  return out;
}

namespace {

// Scores of the samples of a task or a group, question by question.
class TaskScores {
 public:
  TaskScores(CacheMode mode, std::string name, bool is_group) : mode_(mode) {
    out_.task = std::move(name);
    out_.is_group = is_group;
  }

  void add(const EvalSample& sample, const SampleResult& result, const SampleResult& baseline) {
    const std::string metric = metric_name(sample.metric);
    out_.metric = out_.metric.empty() || out_.metric == metric ? metric : "mean";
    out_.mode = mode_of(sample, mode_);
    out_.compressed_tokens = std::max(out_.compressed_tokens, result.compressed_tokens);
    for (size_t q = 0; q < result.scores.size(); ++q) {
      scores_.add(result.scores[q], baseline.scores.at(q));
      cells_[sample.cell].push_back(result.scores[q]);
      seeds_[sample.seed].add(result.scores[q], baseline.scores[q]);
    }
    if (out_.is_group) return;  // of different kinds
    for (const auto& [name, values] : result.extra) {
      const auto& others = baseline.extra.at(name);
      for (size_t q = 0; q < values.size(); ++q) extra_[name].add(values[q], others.at(q));
    }
  }

  TaskSummary summary() {
    out_.scores = moments(scores_.scores);
    out_.wilson = wilson(scores_.scores);
    for (const auto& [cell, values] : cells_) {
      out_.cells.push_back(
          {cell, static_cast<int64_t>(values.size()), mean_of(values), wilson(values)});
    }
    Pairs means;
    for (const auto& [seed, pairs] : seeds_) {
      out_.seeds.push_back(seed);
      means.add(mean_of(pairs.scores), mean_of(pairs.baseline));
    }
    out_.runs = moments(means.scores);
    if (means.scores.size() > 1) {
      out_.runs_versus_baseline = paired_t_test(means.scores, means.baseline);
    }
    out_.versus_baseline = compare_scores(scores_.scores, scores_.baseline);
    for (const auto& [name, pairs] : extra_) {
      out_.extra[name] = {moments(pairs.scores), compare_scores(pairs.scores, pairs.baseline)};
    }
    return std::move(out_);
  }

 private:
  struct Pairs {
    std::vector<double> scores, baseline;
    void add(double score, double base) {
      scores.push_back(score);
      baseline.push_back(base);
    }
  };

  static Interval wilson(const std::vector<double>& values) {
    const auto count = static_cast<int64_t>(values.size());
    // Means times counts may be off by an ulp.
    return wilson_interval(std::min(mean_of(values), 1.0) * static_cast<double>(count), count);
  }

  CacheMode mode_;
  TaskSummary out_;
  Pairs scores_;
  std::map<EvalCell, std::vector<double>> cells_;
  std::map<uint64_t, Pairs> seeds_;
  std::map<std::string, Pairs> extra_;
};

}  // namespace

std::vector<TaskSummary> summarise(std::span<const EvalSample> samples, const SpecResults& results,
                                   const SpecResults& baseline) {
  check_arg(samples.size() == results.results.size() && samples.size() == baseline.results.size(),
            "summarise: as many results as samples are needed");
  std::vector<std::pair<std::string, std::string>> tasks;  // name, group
  for (const EvalSample& sample : samples) {
    const std::pair task(sample.task, sample.group);
    if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) tasks.push_back(task);
  }
  const auto summary_of = [&](const std::string& name, bool is_group) {
    TaskScores scores(results.mode, name, is_group);
    for (size_t i = 0; i < samples.size(); ++i) {
      if ((is_group ? samples[i].group : samples[i].task) != name) continue;
      scores.add(samples[i], results.results[i], baseline.results[i]);
    }
    return scores.summary();
  };
  std::vector<TaskSummary> out;
  for (auto task = tasks.begin(); task != tasks.end(); ++task) {
    const std::string& group = task->second;
    const auto is_member = [&](const auto& other) { return other.second == group; };
    out.push_back(summary_of(task->first, false));
    const bool is_last = std::none_of(task + 1, tasks.end(), is_member);
    if (!group.empty() && is_last && std::count_if(tasks.begin(), tasks.end(), is_member) > 1) {
      out.push_back(summary_of(group, true));
    }
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
