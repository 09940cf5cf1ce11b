#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>

#include "base/check.h"
#include "eval/statistics.h"
#include "model/runner.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

constexpr int64_t kLogitRows = 32;  // rows of logits held at once per spec

// What one spec has collected over all windows, and its cache of the present one.
struct Run {
  CacheSpec spec;
  std::unique_ptr<Runner> runner;
  Buffer<float> hidden;  // [ubatch, hidden], copied: the model's is shared
  Buffer<float> logits;  // [kLogitRows, vocab_size]
  std::vector<double> nll, kl;
  int64_t num_same_top1 = 0;
  int64_t cache_bytes = 0;
  int64_t compressed_tokens = 0;
};

struct Window {
  std::vector<int32_t> tokens;
  int64_t first_scored = 1;  // index of the first token whose likelihood counts
  int64_t end = 0;           // of the window in the text
};

std::vector<Window> cut_windows(const Model& model, std::span<const int32_t> text,
                                const PerplexityOptions& options) {
  const TokenizerData& data = model.tokenizer().data();
  const int64_t bos = data.add_bos && data.bos >= 0 ? 1 : 0;
  const int64_t size = options.window - bos;
  const int64_t stride = options.stride == 0 ? size : std::min(options.stride, size);
  const auto length = static_cast<int64_t>(text.size());
  std::vector<Window> windows;
  int64_t scored_until = 0;
  for (int64_t begin = 0; begin < length; begin += stride) {
    const int64_t end = std::min(begin + size, length);
    if (end - begin < size && begin > 0 && options.stride == 0) break;  // an incomplete last one
    Window window;
    if (bos == 1) window.tokens.push_back(data.bos);
    window.tokens.insert(window.tokens.end(), text.begin() + begin, text.begin() + end);
    window.first_scored = std::max<int64_t>(1, bos + scored_until - begin);
    window.end = end;
    scored_until = end;
    windows.push_back(std::move(window));
    const auto count = static_cast<int64_t>(windows.size());
    if (end == length || (options.max_windows > 0 && count == options.max_windows)) break;
  }
  return windows;
}

class Evaluation {
 public:
  Evaluation(Model& model, std::vector<Run>& runs, const PerplexityOptions& options)
      : model_(model), runs_(runs), options_(options) {}

  void window(const Window& window, const std::function<void(int64_t)>& tokens_done) {
    std::vector<Runner::SequenceId> ids;
    for (Run& run : runs_) {
      run.runner.reset();  // before memory is set aside for the next one
      run.runner = make_runner(model_, {.spec = run.spec,
                                        .mode = options_.mode,
                                        .max_tokens = std::ssize(window.tokens),
                                        .chunk_tokens = options_.ubatch});
      ids.push_back(run.runner->add_sequence());
    }
    const auto length = static_cast<int64_t>(window.tokens.size());
    for (int64_t begin = 0; begin < length; begin += options_.ubatch) {
      const int64_t size = std::min(options_.ubatch, length - begin);
      for (size_t r = 0; r < runs_.size(); ++r) {
        Run& run = runs_[r];
        const ForwardChunk chunk{
            ids[r], std::span(window.tokens)
                        .subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
        run.runner->forward({&chunk, 1});
        const int64_t width = model_.config().hidden;
        run.hidden.reserve_discarding(options_.ubatch * width);
        run.runner->hidden(0, row_major(run.hidden.data(), {size, width}));
        tokens_done(size);
      }
      score_chunk(window, begin, size);
    }
    for (size_t r = 0; r < runs_.size(); ++r) {
      runs_[r].cache_bytes = std::max(runs_[r].cache_bytes, runs_[r].runner->memory_bytes());
      runs_[r].compressed_tokens =
          std::max(runs_[r].compressed_tokens, runs_[r].runner->num_compressed_tokens(ids[r]));
    }
  }

 private:
  // Scores the tokens that positions [begin, begin + size) predict.
  void score_chunk(const Window& window, int64_t begin, int64_t size) {
    const auto length = static_cast<int64_t>(window.tokens.size());
    const int64_t first = std::max(begin, window.first_scored - 1);
    const int64_t last = std::min(begin + size, length - 1);
    for (int64_t row = first; row < last; row += kLogitRows) {
      score_rows(window, row, std::min(kLogitRows, last - row), begin);
    }
  }

  void score_rows(const Window& window, int64_t first, int64_t count, int64_t chunk_begin) {
    const int64_t hidden = model_.config().hidden;
    const int64_t vocab = model_.config().vocab_size;
    for (Run& run : runs_) {
      run.logits.reserve_discarding(kLogitRows * vocab);
      run.runner->logits(row_major<const float, 2>(
                             run.hidden.data() + (first - chunk_begin) * hidden, {count, hidden}),
                         row_major(run.logits.data(), {count, vocab}));
      run.nll.resize(run.nll.size() + static_cast<size_t>(count));
      run.kl.resize(run.kl.size() + static_cast<size_t>(count));
    }
    int32_t top1[kLogitRows][2] = {};
    const Run& base = runs_[0];
    std::vector<double> base_sums(static_cast<size_t>(count));
    for (size_t r = 0; r < runs_.size(); ++r) {
      Run& run = runs_[r];
      const size_t offset = run.nll.size() - static_cast<size_t>(count);
      model_.pool().parallel_for(count, [&](int64_t i, int) {
        const auto row_of = [&](const Run& which) {
          return std::span(which.logits.data() + i * vocab, static_cast<size_t>(vocab));
        };
        const auto at = static_cast<size_t>(i);
        const auto logits = row_of(run);
        const double sum = log_sum_exp(logits);
        if (r == 0) base_sums[at] = sum;
        const int32_t next = window.tokens[static_cast<size_t>(first + i + 1)];
        run.nll[offset + at] = sum - logits[static_cast<size_t>(next)];
        run.kl[offset + at] = r == 0 ? 0 : kl_divergence(row_of(base), base_sums[at], logits, sum);
        top1[i][r == 0 ? 0 : 1] = argmax(logits);
      });
      for (int64_t i = 0; i < count; ++i) {
        run.num_same_top1 += r == 0 || top1[i][0] == top1[i][1];
      }
    }
  }

  Model& model_;
  std::vector<Run>& runs_;
  const PerplexityOptions& options_;
};

double quantile(const std::vector<double>& sorted, double q) {
  const auto at = static_cast<size_t>(q * static_cast<double>(sorted.size() - 1));
  return sorted[at];
}

PerplexityResult summarise(const Run& run, const Run& base, int64_t num_values) {
  PerplexityResult out;
  out.spec = run.spec;
  out.tokens = static_cast<int64_t>(run.nll.size());
  const auto count = static_cast<double>(out.tokens);
  const auto mean_of = [&](const std::vector<double>& x) {
    return std::accumulate(x.begin(), x.end(), 0.0) / count;
  };
  const double mean = mean_of(run.nll);
  double squares = 0;
  for (const double x : run.nll) squares += (x - mean) * (x - mean);
  out.perplexity = std::exp(mean);
  if (out.tokens > 1) out.ppl_stderr = out.perplexity * std::sqrt(squares / (count - 1) / count);
  const double baseline = std::exp(mean_of(base.nll));
  out.ppl_delta = out.perplexity - baseline;
  out.ppl_delta_rel = out.ppl_delta / baseline;
  std::vector<double> deltas(run.nll.size());
  std::transform(run.nll.begin(), run.nll.end(), base.nll.begin(), deltas.begin(), std::minus<>());
  const Moments delta = moments(deltas);
  out.nll_delta_mean = delta.mean;
  out.nll_delta_sd = delta.sd;
  std::vector<double> sorted = run.kl;
  std::sort(sorted.begin(), sorted.end());
  out.kl_mean = mean_of(run.kl);
  out.kl_median = quantile(sorted, 0.5);
  out.kl_p99 = quantile(sorted, 0.99);
  out.kl_max = sorted.back();
  out.top1_agreement = static_cast<double>(run.num_same_top1) / count;
  out.cache_bytes = run.cache_bytes;
  out.true_bits = 8.0 * static_cast<double>(run.cache_bytes) / static_cast<double>(num_values);
  out.compressed_tokens = run.compressed_tokens;
  return out;
}

void check_options(const Model& model, std::span<const int32_t> text,
                   const PerplexityOptions& options) {
  check_arg(text.size() >= 2, "perplexity: the text has fewer than two tokens");
  check_arg(options.window >= 2 && options.window <= model.config().max_context,
            "perplexity: a window of " + std::to_string(options.window) + " tokens is not in [2, " +
                std::to_string(model.config().max_context) + "], the model's context");
  check_arg(options.stride >= 0 && options.stride <= options.window,
            "perplexity: stride " + std::to_string(options.stride) + " is not in [1, window]");
  check_arg(options.ubatch > 0, "perplexity: ubatch must be positive");
}

}  // namespace

std::vector<PerplexityResult> evaluate_perplexity(Model& model, std::span<const int32_t> text,
                                                  std::span<const CacheSpec> specs,
                                                  const PerplexityOptions& options,
                                                  const Progress& progress) {
  check_options(model, text, options);
  std::vector<Run> runs(1);
  runs[0].spec = parse_spec("fp16");
  std::vector<size_t> run_of;  // fp16 is run once, also when it is listed
  for (const CacheSpec& spec : specs) {
    check_spec_fits(spec, static_cast<int>(model.config().num_layers),
                    static_cast<int>(model.config().head_dim));
    check_spec_built(spec);
    const bool is_baseline = resolved(spec) == resolved(runs[0].spec);
    run_of.push_back(is_baseline ? 0 : runs.size());
    if (is_baseline) continue;
    runs.emplace_back();
    runs.back().spec = spec;
  }
  const auto windows = cut_windows(model, text, options);
  int64_t total = 0;
  for (const Window& window : windows) total += static_cast<int64_t>(window.tokens.size());
  total *= static_cast<int64_t>(runs.size());

  Evaluation evaluation(model, runs, options);
  int64_t done = 0;
  for (const Window& window : windows) {
    evaluation.window(window, [&](int64_t tokens) {
      done += tokens;
      report(progress, done, total);
    });
  }
  const auto& config = model.config();
  const int64_t num_values =
      2 * config.num_layers * config.kv_dim() * static_cast<int64_t>(windows[0].tokens.size());
  std::vector<PerplexityResult> results;
  for (size_t i = 0; i < specs.size(); ++i) {
    results.push_back(summarise(runs[run_of[i]], runs[0], num_values));
    results.back().spec = specs[i];  // as typed
  }
  return results;
}

int64_t num_evaluated_tokens(const Model& model, std::span<const int32_t> text,
                             const PerplexityOptions& options) {
  check_options(model, text, options);
  return cut_windows(model, text, options).back().end;
}

}  // namespace kvquant
