#include "bench/model_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "base/check.h"
#include "base/timer.h"
#include "bench/result.h"
#include "cache/kv_cache.h"

namespace kvquant {
namespace {

struct Test {
  int64_t n_prompt, n_gen, n_depth, batch;
};

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (auto& token : tokens) {
    token = static_cast<int32_t>(rng() % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

// A cache with `batch` equal sequences of n_depth tokens.
class Bed {
 public:
  Bed(Model& model, const CacheSpec& spec, const ModelBenchOptions& options, int64_t batch)
      : model_(model),
        ubatch_(options.ubatch),
        cache_(model.transformer().kv_shape(), spec, CacheMode::kAsServed,
               model.transformer().rope_table(), model.pool()),
        logits_(batch * model.config().vocab_size) {
    for (int64_t i = 0; i < batch; ++i) ids_.push_back(cache_.add_sequence());
  }

  void prefill(const std::vector<int32_t>& tokens) {
    const auto count = static_cast<int64_t>(tokens.size());
    for (const auto id : ids_) {
      for (int64_t begin = 0; begin < count; begin += ubatch_) {
        const int64_t size = std::min(ubatch_, count - begin);
        const ForwardChunk chunk{
            id, std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
        const auto hidden = model_.transformer().forward({&chunk, 1}, cache_);
        if (begin + size == count) last_logits(hidden, size - 1, 1);
      }
    }
  }

  void decode(const std::vector<int32_t>& tokens) {
    for (const int32_t token : tokens) {
      std::vector<ForwardChunk> chunks;
      for (const auto id : ids_) chunks.push_back({id, {&token, 1}});
      const auto hidden = model_.transformer().forward(chunks, cache_);
      last_logits(hidden, 0, static_cast<int64_t>(ids_.size()));
    }
  }

  int64_t cache_bytes() const { return cache_.memory_bytes(); }

 private:
  void last_logits(TensorView<const float, 2> hidden, int64_t row, int64_t count) {
    const int64_t width = hidden.shape[1];
    model_.transformer().logits(
        row_major<const float, 2>(hidden.data + row * width, {count, width}),
        row_major(logits_.data(), {count, model_.config().vocab_size}));
  }

  Model& model_;
  int64_t ubatch_;
  KvCache cache_;
  std::vector<KvCache::SequenceId> ids_;
  Buffer<float> logits_;
};

std::vector<Test> list_tests(const ModelBenchOptions& options) {
  std::vector<Test> tests;
  for (const int64_t batch : options.batches) {
    for (const int64_t depth : options.depths) {
      for (const int64_t n : options.prompt_sizes) {
        if (n > 0) tests.push_back({n, 0, depth, batch});
      }
      for (const int64_t n : options.gen_sizes) {
        if (n > 0) tests.push_back({0, n, depth, batch});
      }
    }
  }
  return tests;
}

void check_options(const Model& model, const ModelBenchOptions& options) {
  check_arg(options.repetitions > 0, "bench: at least one repetition is needed");
  const auto tests = list_tests(options);
  check_arg(!tests.empty(), "bench: nothing to time: no prompt, no generated tokens");
  const int64_t most = model.config().max_context;
  for (const Test& test : tests) {
    check_arg(test.n_depth >= 0 && test.batch >= 1, "bench: a negative depth or an empty batch");
    const int64_t size = test.n_prompt + test.n_gen;  // one of them is 0
    check_arg(test.n_depth <= most && size <= most - test.n_depth,
              "bench: a depth of " + std::to_string(test.n_depth) + " and a test of " +
                  std::to_string(size) + " tokens are more than the context of " +
                  std::to_string(most));
  }
}

// One repetition: a fresh cache, filled to the depth, then the timed part.
double run_once(Model& model, const ModelBenchOptions& options, const Test& test,
                ModelBenchRow& row) {
  Bed bed(model, row.spec, options, test.batch);
  const int64_t vocab = model.config().vocab_size;
  if (test.n_depth > 0) bed.prefill(random_tokens(test.n_depth, vocab, options.seed));
  const auto tokens = random_tokens(test.n_prompt + test.n_gen, vocab, options.seed + 1);
  const Timer timer;
  if (test.n_prompt > 0) {
    bed.prefill(tokens);
  } else {
    bed.decode(tokens);
  }
  const double seconds = timer.seconds();
  row.cache_bytes = bed.cache_bytes();
  return seconds;
}

void summarise(ModelBenchRow& row) {
  const auto tokens = static_cast<double>((row.n_prompt + row.n_gen) * row.batch);
  std::vector<double> rates;
  for (const double s : row.samples_s) rates.push_back(tokens / s);
  const auto count = static_cast<double>(rates.size());
  row.tokens_per_s_mean = std::accumulate(rates.begin(), rates.end(), 0.0) / count;
  double squares = 0;
  for (const double r : rates) squares += std::pow(r - row.tokens_per_s_mean, 2);
  row.tokens_per_s_sd = rates.size() > 1 ? std::sqrt(squares / (count - 1)) : 0;
}

}  // namespace

std::vector<ModelBenchRow> bench_model(Model& model, const std::vector<CacheSpec>& specs,
                                       const ModelBenchOptions& options, const Progress& progress) {
  check_options(model, options);
  const auto tests = list_tests(options);
  std::vector<ModelBenchRow> rows;
  const auto total = static_cast<int64_t>(tests.size() * specs.size()) * (options.repetitions + 1);
  int64_t done = 0;
  for (const Test& test : tests) {
    const size_t first = rows.size();
    for (const CacheSpec& spec : specs) {
      rows.push_back({.spec = spec,
                      .n_prompt = test.n_prompt,
                      .n_gen = test.n_gen,
                      .n_depth = test.n_depth,
                      .batch = test.batch,
                      .samples_s = {}});
    }
    for (int repetition = -1; repetition < options.repetitions; ++repetition) {  // -1 warms up
      for (size_t r = first; r < rows.size(); ++r) {
        const double seconds = run_once(model, options, test, rows[r]);
        if (repetition >= 0) rows[r].samples_s.push_back(seconds);
        rows[r].peak_rss_bytes = peak_rss_bytes();
        report(progress, ++done, total);
      }
    }
    for (size_t r = first; r < rows.size(); ++r) summarise(rows[r]);
  }
  return rows;
}

}  // namespace kvquant
