#include "bench/model_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>

#include "base/check.h"
#include "base/timer.h"
#include "bench/filled_cache.h"
#include "bench/result.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxBatch = 1 << 16;

struct Test {
  int64_t n_prompt, n_gen;
};

// Tests that start from the same sequences.
struct Start {
  int64_t batch, depth;
};

// That a sequence of any test from there has at its end.
int64_t most_tokens(const Start& start, const std::vector<Test>& tests) {
  int64_t most = 0;
  for (const Test& test : tests) most = std::max(most, test.n_prompt + test.n_gen);
  return start.depth + most;
}

using Caches = std::vector<std::unique_ptr<FilledCache>>;  // one per spec

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (auto& token : tokens) {
    token = static_cast<int32_t>(rng() % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

std::vector<Test> list_tests(const ModelBenchOptions& options) {
  std::vector<Test> tests;
  for (const int64_t n : options.prompt_sizes) {
    if (n != 0) tests.push_back({n, 0});
  }
  for (const int64_t n : options.gen_sizes) {
    if (n != 0) tests.push_back({0, n});
  }
  for (const auto& [n_prompt, n_gen] : options.combined_sizes) tests.push_back({n_prompt, n_gen});
  return tests;
}

std::vector<Start> list_starts(const ModelBenchOptions& options) {
  std::vector<Start> starts;
  for (const int64_t batch : options.batches) {
    for (const int64_t depth : options.depths) starts.push_back({batch, depth});
  }
  return starts;
}

void check_options(const Model& model, const ModelBenchOptions& options) {
  check_arg(options.repetitions > 0, "bench: at least one repetition is needed");
  check_arg(options.limits.warmups > 0, "bench: at least one repetition has to warm up");
  check_arg(options.limits.target_error >= 0 && options.limits.max_seconds >= 0,
            "bench: limits of repetitions below 0");
  check_arg(options.ubatch > 0, fmt::format("bench: a ubatch of {} tokens", options.ubatch));
  const auto tests = list_tests(options);
  check_arg(!tests.empty(), "bench: nothing to time: no prompt, no generated tokens");
  const int64_t most = model.config().max_context;
  for (const auto& [n_prompt, n_gen] : tests) {
    check_arg(n_prompt >= 0 && n_gen >= 0,
              fmt::format("bench: {} prompt and {} generated tokens", n_prompt, n_gen));
    for (const auto& [batch, depth] : list_starts(options)) {
      check_arg(1 <= batch && batch <= kMaxBatch,
                fmt::format("bench: a batch of {} is not in [1, {}]", batch, kMaxBatch));
      check_arg(depth >= 0, fmt::format("bench: a depth of {} tokens", depth));
      const bool fits =
          depth <= most && n_prompt <= most - depth && n_gen <= most - depth - n_prompt;
      check_arg(fits, fmt::format("bench: a depth of {} and {} prompt and {} generated tokens are "
                                  "more than the model's context of {}",
                                  depth, n_prompt, n_gen, most));
    }
  }
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  const size_t half = x.size() / 2;
  return x.size() % 2 == 1 ? x[half] : (x[half - 1] + x[half]) / 2;
}

// Counts fillings and repetitions.
class Steps {
 public:
  Steps(const Progress& progress, int64_t total) : progress_(progress), total_(total) {}
  void add() { report(progress_, ++done_, total_); }
  void wait() const { report(progress_, done_, total_); }  // long work goes on: may be stopped

 private:
  const Progress& progress_;
  int64_t total_, done_ = 0;
};

class Bench {
 public:
  Bench(Model& model, const std::vector<CacheSpec>& specs, const ModelBenchOptions& options)
      : model_(model), specs_(specs), options_(options) {}

  Caches fill(const Start& start, Steps& steps) const {
    const auto tokens = random_tokens(start.depth, model_.config().vocab_size, options_.seed);
    Caches caches;
    for (const CacheSpec& spec : specs_) {
      caches.push_back(std::make_unique<FilledCache>(model_, spec, options_.ubatch, start.batch,
                                                     most_tokens(start, list_tests(options_))));
      caches.back()->fill(tokens, [&] { steps.wait(); });
      steps.add();
    }
    return caches;
  }

  // A row per spec.
  std::vector<ModelBenchRow> time(const Test& test, const Start& start, const Caches& caches,
                                  Steps& steps) const {
    std::vector<ModelBenchRow> rows;
    for (const CacheSpec& spec : specs_) {
      rows.push_back({.spec = spec,
                      .n_prompt = test.n_prompt,
                      .n_gen = test.n_gen,
                      .n_depth = start.depth,
                      .batch = start.batch,
                      .samples_s = {}});
    }
    const RepetitionLimits& limits = options_.limits;
    const Timer since_warmup;
    for (int i = 0; i < limits.warmups && (i == 0 || !is_over(since_warmup)); ++i) {
      for (size_t s = 0; s < rows.size(); ++s) run_once(*caches[s], rows[s]);
      i == 0 ? steps.add() : steps.wait();
    }
    const Timer since_start;
    for (auto& row : rows) row.energy.reset();  // of the warm-up
    for (int i = 0; wants_more(rows, i, since_start); ++i) {
      for (size_t s = 0; s < rows.size(); ++s) {
        rows[s].samples_s.push_back(run_once(*caches[s], rows[s]));
      }
      i < options_.repetitions ? steps.add() : steps.wait();
    }
    for (int i = static_cast<int>(rows[0].samples_s.size()); i < options_.repetitions; ++i) {
      steps.add();  // those that there was no time for
    }
    summarise(rows);
    return rows;
  }

 private:
  bool is_over(const Timer& timer) const {
    return options_.limits.max_seconds > 0 && timer.seconds() >= options_.limits.max_seconds;
  }

  bool wants_more(std::span<const ModelBenchRow> rows, int done, const Timer& timer) const {
    if (done == 0) return true;
    if (is_over(timer)) return false;
    if (done < options_.repetitions) return true;
    const double target = options_.limits.target_error;
    if (target == 0 || done >= options_.limits.max_repetitions) return false;
    return std::any_of(rows.begin(), rows.end(),
                       [&](const ModelBenchRow& row) { return relative_error(row) > target; });
  }

  double run_once(FilledCache& cache, ModelBenchRow& row) const {
    const int64_t vocab_size = model_.config().vocab_size;
    const auto prompt = random_tokens(row.n_prompt, vocab_size, options_.seed + 1);
    const auto generated = random_tokens(row.n_gen, vocab_size, options_.seed + 2);
    cache.start();
    EnergyMeter* const meter = options_.energy;
    const auto begin = meter != nullptr ? meter->now() : EnergyMeter::Moment{};
    const Timer timer;
    cache.prefill(prompt);
    cache.decode(generated);
    const double seconds = timer.seconds();
    if (meter != nullptr) add(row.energy, meter->between(begin, meter->now()));
    row.cache_bytes = cache.cache_bytes();
    row.peak_cache_bytes = std::max(row.peak_cache_bytes, cache.peak_cache_bytes());
    row.peak_rss_bytes = peak_rss_bytes();
    cache.finish();
    return seconds;
  }

  Model& model_;
  const std::vector<CacheSpec>& specs_;
  const ModelBenchOptions& options_;
};

}  // namespace

std::string test_name(const ModelBenchRow& row) {
  std::string name;
  if (row.n_prompt > 0) name = fmt::format("pp{}", row.n_prompt);
  if (row.n_gen > 0) name += fmt::format("{}tg{}", name.empty() ? "" : "+", row.n_gen);
  if (row.n_depth > 0) name += fmt::format(" @ d{}", row.n_depth);
  if (row.batch > 1) name += fmt::format(" x {}", row.batch);
  return name;
}

double relative_error(const ModelBenchRow& row) {
  const auto count = static_cast<double>(row.samples_s.size());
  if (count < 2) return std::numeric_limits<double>::infinity();
  const double mean = std::accumulate(row.samples_s.begin(), row.samples_s.end(), 0.0) / count;
  double squares = 0;
  for (const double s : row.samples_s) squares += std::pow(s - mean, 2);
  return std::sqrt(squares / (count - 1) / count) / mean;
}

void summarise(std::span<ModelBenchRow> rows) {
  for (ModelBenchRow& row : rows) {
    const auto tokens = static_cast<double>((row.n_prompt + row.n_gen) * row.batch);
    std::vector<double> rates, ratios;
    for (size_t i = 0; i < row.samples_s.size(); ++i) {
      rates.push_back(tokens / row.samples_s[i]);
      ratios.push_back(rows[0].samples_s[i] / row.samples_s[i]);
    }
    const auto count = static_cast<double>(rates.size());
    row.tokens_per_s_mean = std::accumulate(rates.begin(), rates.end(), 0.0) / count;
    double squares = 0;
    for (const double r : rates) squares += std::pow(r - row.tokens_per_s_mean, 2);
    row.tokens_per_s_sd = rates.size() > 1 ? std::sqrt(squares / (count - 1)) : 0;
    row.ratio_to_first_spec = median(ratios);
  }
}

std::vector<ModelBenchRow> bench_model(Model& model, const std::vector<CacheSpec>& specs,
                                       const ModelBenchOptions& options, const Progress& progress) {
  check_options(model, options);
  const Bench bench(model, specs, options);
  const auto tests = list_tests(options);
  const auto starts = list_starts(options);
  // Fillings of all specs, and for each test a warm-up and the repetitions.
  const auto fillings = static_cast<int64_t>(specs.size());
  const auto repetitions = static_cast<int64_t>(tests.size()) * (options.repetitions + 1);
  Steps steps(progress, static_cast<int64_t>(starts.size()) * (fillings + repetitions));
  std::vector<ModelBenchRow> rows;
  for (const Start& start : starts) {
    const Caches caches = bench.fill(start, steps);
    for (const Test& test : tests) {
      const auto more = bench.time(test, start, caches, steps);
      rows.insert(rows.end(), more.begin(), more.end());
    }
  }
  return rows;
}

}  // namespace kvquant
