#include "eval/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/hash.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

constexpr double kFp16Bits = 16;
constexpr double kConfidence = 1.96;  // standard errors of an interval of 95%
// A candidate is dropped only where chance can't explain it; tokens of a window are not
// independent, so twice that of the interval.
constexpr double kClearly = 4;

std::string run_key(const TuneRuntime& runtime, std::span<const int32_t> text,
                    const TuneOptions& options) {
  Hash64 hash;
  hash.add_text(options.program);
  hash.add_text(options.run);
  hash.add_text(runtime.fingerprint);
  hash.add_text(runtime.calibration);
  hash.add_text(hash_of_tokens(text));
  hash.add_integer(options.window);
  hash.add_integer(options.ubatch);
  return hash.hex();
}

// The pooled mean of the deltas, and its standard error.
struct Delta {
  double mean = 0, error = 0;
};
Delta pooled(std::span<const WindowScore> windows) {
  double count = 0, sum = 0, squares = 0;
  for (const WindowScore& window : windows) {
    const auto n = static_cast<double>(window.tokens);
    count += n;
    sum += n * window.delta;
  }
  const double mean = sum / count;
  for (const WindowScore& window : windows) {
    const auto n = static_cast<double>(window.tokens);
    const double off = window.delta - mean;
    squares += (n - 1) * window.delta_sd * window.delta_sd + n * off * off;
  }
  return {mean, count > 1 ? std::sqrt(squares / (count - 1) / count) : 0};
}

bool is_clearly_above(std::span<const WindowScore> windows, double budget) {
  const Delta delta = pooled(windows);
  if (std::expm1(delta.mean - kClearly * delta.error) > budget) return true;
  return loss_of(combine_windows({}, windows)) > kClearly * budget;
}

// Scores the specs that are left, window by window.
class Scoring {
 public:
  Scoring(const TuneRuntime& runtime, std::span<const int32_t> text,
          std::span<const CacheSpec> specs, const TuneOptions& options, TuneLog& log,
          const Progress& progress)
      : runtime_(runtime),
        text_(text),
        specs_(specs),
        options_(options),
        log_(log),
        progress_(progress),
        run_(run_key(runtime, text, options)),
        scores_(specs.size()),
        size_(options.window - runtime.num_bos) {
    check_arg(size_ > 0, fmt::format("tune: a window of {} tokens", options.window));
    num_windows_ = static_cast<int64_t>(text.size()) / size_;
    check_arg(
        num_windows_ > 0 && num_windows_ * size_ == static_cast<int64_t>(text.size()),
        fmt::format("tune: a text of {} tokens is not whole windows of {}", text.size(), size_));
    check_arg(options.specs_at_once > 0, "tune: specs_at_once must be positive");
  }

  std::vector<CandidateScore> all() {
    for (int64_t window = 0; window < num_windows_; ++window) {
      one_window(window);
      for (size_t i = 0; i < specs_.size(); ++i) {
        const bool is_alive = std::ssize(scores_[i]) == window + 1;
        if (is_alive && is_clearly_above(scores_[i], options_.target_ppl_delta)) num_dropped_ += 1;
      }
    }
    report(progress_, 1, 1);
    std::vector<CandidateScore> out;
    for (size_t i = 0; i < specs_.size(); ++i) {
      out.push_back(combine_windows(specs_[i], scores_[i]));
      out.back().is_dropped = is_dropped(i);
    }
    return out;
  }

 private:
  bool is_dropped(size_t i) const {
    return !scores_[i].empty() && is_clearly_above(scores_[i], options_.target_ppl_delta);
  }

  void one_window(int64_t window) {
    std::vector<size_t> pending;
    for (size_t i = 0; i < specs_.size(); ++i) {
      if (is_dropped(i)) continue;
      const WindowScore* known = log_.find(run_, resolved(specs_[i]), window);
      if (known == nullptr) {
        pending.push_back(i);
      } else {
        scores_[i].push_back(*known);
      }
    }
    const auto step = static_cast<size_t>(options_.specs_at_once);
    for (size_t first = 0; first < pending.size(); first += step) {
      const size_t count = std::min(step, pending.size() - first);
      run(std::span(pending).subspan(first, count), window,
          static_cast<double>(first) / static_cast<double>(pending.size()),
          static_cast<double>(count) / static_cast<double>(pending.size()));
    }
  }

  // `begin` and `share`: of the window's work, for the progress.
  void run(std::span<const size_t> which, int64_t window, double begin, double share) {
    std::vector<CacheSpec> specs;
    for (const size_t i : which) specs.push_back(specs_[i]);
    const auto tokens =
        text_.subspan(static_cast<size_t>(window * size_), static_cast<size_t>(size_));
    const auto scores =
        runtime_.score_window(tokens, specs, options_, [&](int64_t done, int64_t total) {
          const double part = static_cast<double>(done) / static_cast<double>(total);
          tell(window, begin + share * part);
        });
    check_arg(scores.size() == specs.size(),
              fmt::format("tune: {} scores of {} specs", scores.size(), specs.size()));
    for (size_t i = 0; i < which.size(); ++i) {
      log_.add(run_, resolved(specs[i]), window, scores[i]);
      scores_[which[i]].push_back(scores[i]);
    }
  }

  // In candidates times windows, as if no more were dropped.
  void tell(int64_t window, double share) {
    constexpr double kSteps = 1000;
    const auto all = static_cast<double>(specs_.size());
    const auto left = all - static_cast<double>(num_dropped_);
    const double done =
        window == 0 ? share * all : all + left * (static_cast<double>(window - 1) + share);
    const double total = all + left * static_cast<double>(num_windows_ - 1);
    const auto steps = static_cast<int64_t>(kSteps * done / std::max(total, 1.0));
    report(progress_, std::min<int64_t>(steps, 999), static_cast<int64_t>(kSteps));
  }

  const TuneRuntime& runtime_;
  std::span<const int32_t> text_;
  std::span<const CacheSpec> specs_;
  const TuneOptions& options_;
  TuneLog& log_;
  const Progress& progress_;
  std::string run_;
  std::vector<std::vector<WindowScore>> scores_;  // by spec
  int64_t size_ = 0;                              // of the text in a window
  int64_t num_windows_ = 0, num_dropped_ = 0;
};

bool is_usable(const CandidateScore& candidate) {
  return !candidate.is_dropped && candidate.true_bits < kFp16Bits;
}

}  // namespace

TuneRuntime engine_runtime(Model& model) {
  const TokenizerData& data = model.tokenizer().data();
  const auto score = [&model](std::span<const int32_t> text, std::span<const CacheSpec> specs,
                              const TuneOptions& options, const Progress& progress) {
    std::vector<WindowScore> out;
    for (const PerplexityResult& result : evaluate_perplexity(
             model, text, specs, {.window = options.window, .ubatch = options.ubatch}, progress)) {
      out.push_back(window_score(result));
    }
    return out;
  };
  const bool is_calibrated = model.calibration() != nullptr;
  return {.fingerprint = model.checkpoint().fingerprint(),
          .calibration = is_calibrated ? calibration_hash(*model.calibration()) : "",
          .num_bos = data.add_bos && data.bos >= 0 ? 1 : 0,
          .score_window = score};
}

WindowScore window_score(const PerplexityResult& result) {
  const double nll = std::log(result.perplexity);
  return {.tokens = result.tokens,
          .nll = nll,
          .baseline_nll = nll - result.nll_delta_mean,
          .delta = result.nll_delta_mean,
          .delta_sd = result.nll_delta_sd,
          .kl = result.kl_mean,
          .top1 = result.top1_agreement,
          .cache_bytes = result.cache_bytes,
          .true_bits = result.true_bits};
}

CandidateScore combine_windows(const CacheSpec& spec, std::span<const WindowScore> windows) {
  CandidateScore out;
  out.spec = spec;
  out.windows = std::ssize(windows);
  double nll = 0, baseline = 0;
  for (const WindowScore& window : windows) {
    const auto n = static_cast<double>(window.tokens);
    out.tokens += window.tokens;
    nll += n * window.nll;
    baseline += n * window.baseline_nll;
    out.kl_mean += n * window.kl;
    out.top1_agreement += n * window.top1;
    out.cache_bytes = std::max(out.cache_bytes, window.cache_bytes);
    out.true_bits = std::max(out.true_bits, window.true_bits);
  }
  if (out.tokens == 0) return out;
  const auto count = static_cast<double>(out.tokens);
  out.perplexity = std::exp(nll / count);
  out.baseline = std::exp(baseline / count);
  out.kl_mean /= count;
  out.top1_agreement /= count;
  const Delta delta = pooled(windows);
  out.ppl_delta = std::expm1(delta.mean);
  out.ppl_delta_low = std::expm1(delta.mean - kConfidence * delta.error);
  out.ppl_delta_high = std::expm1(delta.mean + kConfidence * delta.error);
  return out;
}

std::vector<CandidateScore> score_candidates(const TuneRuntime& runtime,
                                             std::span<const int32_t> text,
                                             std::span<const CacheSpec> specs,
                                             const TuneOptions& options, TuneLog& log,
                                             const Progress& progress) {
  return Scoring(runtime, text, specs, options, log, progress).all();
}

double loss_of(const CandidateScore& candidate) {
  return std::max(candidate.ppl_delta, std::expm1(candidate.kl_mean) / 2);
}

std::optional<size_t> smallest_within(std::span<const CandidateScore> candidates, double budget) {
  std::optional<size_t> best;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const CandidateScore& c = candidates[i];
    if (!is_usable(c) || !(loss_of(c) <= budget)) continue;
    const bool is_better =
        !best || c.true_bits < candidates[*best].true_bits ||
        (c.true_bits == candidates[*best].true_bits && c.kl_mean < candidates[*best].kl_mean);
    if (is_better) best = i;
  }
  return best;
}

std::vector<size_t> pareto_set(std::span<const CandidateScore> candidates) {
  std::vector<size_t> order;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (is_usable(candidates[i])) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const CandidateScore &x = candidates[a], &y = candidates[b];
    return x.true_bits != y.true_bits ? x.true_bits < y.true_bits : x.kl_mean < y.kl_mean;
  });
  std::vector<size_t> out;
  double least = std::numeric_limits<double>::infinity();
  for (const size_t i : order) {
    if (candidates[i].kl_mean >= least) continue;
    least = candidates[i].kl_mean;
    out.push_back(i);
  }
  return out;
}

TuneResult tune(const TuneRuntime& runtime, const TuneTokens& texts,
                std::span<const CacheSpec> specs, const TuneOptions& options, TuneLog& log,
                const TuneProgress& progress) {
  const double budget = options.target_ppl_delta;
  check_arg(budget >= 0, fmt::format("tune: a budget of {} is not a number of at least 0", budget));
  TuneResult out;
  out.candidates =
      score_candidates(runtime, texts.selection, specs, options, log, progress.selection);
  const auto best = smallest_within(out.candidates, budget);
  if (!best) return out;
  auto chosen = pareto_set(out.candidates);
  if (std::find(chosen.begin(), chosen.end(), *best) == chosen.end()) chosen.push_back(*best);
  std::sort(chosen.begin(), chosen.end(), [&](size_t a, size_t b) {
    return out.candidates[a].true_bits < out.candidates[b].true_bits;
  });
  std::vector<CacheSpec> measured;
  for (const size_t i : chosen) measured.push_back(out.candidates[i].spec);
  TuneOptions all = options;
  all.target_ppl_delta = std::numeric_limits<double>::infinity();
  out.measured = score_candidates(runtime, texts.test, measured, all, log, progress.test);
  for (size_t i = 0; i < chosen.size() && !out.winner; ++i) {
    if (!(loss_of(out.candidates[chosen[i]]) <= budget)) continue;
    if (loss_of(out.measured[i]) <= budget) {
      out.winner = i;
    } else {
      ++out.num_refused;
    }
  }
  return out;
}

}  // namespace kvquant
