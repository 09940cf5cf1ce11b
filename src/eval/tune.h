// Tuning: the smallest cache within a budget of perplexity. Candidates are scored window by window
// of a selection text, all that are left in one pass; those that are clearly above the budget are
// dropped. The best and what no other beats are then measured once on a test text.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "eval/perplexity.h"
#include "eval/tune_log.h"
#include "kvquant/spec.h"
#include "model/model.h"

namespace kvquant {

struct TuneOptions {
  double target_ppl_delta = 0.05;  // relative; infinite: nothing is dropped
  int64_t window = 2048;           // tokens, BOS included where the tokenizer adds one
  int64_t ubatch = 512;
  int64_t specs_at_once = 8;  // caches in memory beside that of fp16
  std::string program{};      // version; scores of another one are not used
  std::string run{};          // what else decides figures: precision, storage of weights
};

// Means over all windows that were scored; the interval is a paired one of 95%.
struct CandidateScore {
  CacheSpec spec;
  int64_t windows = 0;  // scored; fewer than there are: dropped
  int64_t tokens = 0;
  double perplexity = 0, baseline = 0;
  double ppl_delta = 0, ppl_delta_low = 0, ppl_delta_high = 0;  // relative
  double kl_mean = 0, top1_agreement = 0;
  double true_bits = 0;  // at a full window
  int64_t cache_bytes = 0;
  bool is_dropped = false;
};

// What runs the model: the engine (engine_runtime), or another program with the engine's caches.
struct TuneRuntime {
  std::string fingerprint{};  // of the model
  std::string calibration{};  // hash; empty: none
  int64_t num_bos = 0;        // tokens before the text of every window
  // Scores of the specs, in their order, strict, with the calibration, on one window of text.
  // Throws what evaluate_perplexity does.
  std::function<std::vector<WindowScore>(std::span<const int32_t> text,
                                         std::span<const CacheSpec> specs,
                                         const TuneOptions& options, const Progress& progress)>
      score_window{};
};
// The model must outlive it and keep its calibration.
TuneRuntime engine_runtime(Model& model);

WindowScore window_score(const PerplexityResult& result);  // of one window

// How scores of windows add up.
CandidateScore combine_windows(const CacheSpec& spec, std::span<const WindowScore> windows);

// On whole windows of `text`. What the log has is not run again, each new score is added to it;
// what is thrown (by progress, for instance) leaves what is done in the log. In the order of the
// specs. Throws what the runtime and TuneLog do.
std::vector<CandidateScore> score_candidates(const TuneRuntime& runtime,
                                             std::span<const int32_t> text,
                                             std::span<const CacheSpec> specs,
                                             const TuneOptions& options, TuneLog& log,
                                             const Progress& progress = {});

// The loss that a budget is about: the relative rise of perplexity, or half of what the KL stands
// for, exp(KL) - 1, if that is more. On text that the model itself would write the two are equal
// but for that half; on text that is foreign to it perplexity may fall while nothing is predicted
// as before (by half, at a KL of 0.4, in docs/presets.md).
double loss_of(const CandidateScore& candidate);

// The candidate with the fewest true bits among those with a loss within the budget that are
// smaller than fp16 and were not dropped; of equal ones that with the lower KL. Nothing when there
// is none.
std::optional<size_t> smallest_within(std::span<const CandidateScore> candidates, double budget);

// Those that no other beats in both bits and KL, by bits, ascending; dropped ones and those not
// smaller than fp16 are left out.
std::vector<size_t> pareto_set(std::span<const CandidateScore> candidates);

struct TuneResult {
  std::vector<CandidateScore> candidates;  // on the selection text
  std::vector<CandidateScore> measured;    // on the test text: by bits, ascending
  std::optional<size_t> winner;            // of measured; nothing: none is within the budget
  int64_t num_refused = 0;                 // within the budget on the selection text, but not here
};

struct TuneTokens {
  std::span<const int32_t> selection, test;  // whole windows
};
struct TuneProgress {
  Progress selection{}, test{};
};
// The Pareto set and smaller ones within the budget are measured on the test text; the winner is
// the smallest that is within the budget on both. Throws std::invalid_argument for a budget that is
// negative or not a number, and what score_candidates does.
TuneResult tune(const TuneRuntime& runtime, const TuneTokens& texts,
                std::span<const CacheSpec> specs, const TuneOptions& options, TuneLog& log,
                const TuneProgress& progress = {});

}  // namespace kvquant
