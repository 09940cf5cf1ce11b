// Perplexity of a text under several cache specs in one pass, and how far each spec's next-token
// distributions are from those of an fp16 cache: KL divergence and top-1 agreement.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "cache/kv_cache.h"
#include "kvquant/spec.h"
#include "model/model.h"

namespace kvquant {

struct PerplexityOptions {
  int64_t window = 2048;    // tokens, BOS included where the tokenizer adds one
  int64_t stride = 0;       // tokens between windows; 0: the window. Only new tokens are scored
  int64_t max_windows = 0;  // 0: all
  CacheMode mode = CacheMode::kStrict;
  int64_t ubatch = 512;
};

// Nats throughout; KL is KL(fp16 || spec) per scored token.
struct PerplexityResult {
  CacheSpec spec;
  double perplexity = 0;
  double ppl_stderr = 0;
  double ppl_delta = 0;      // absolute, against fp16
  double ppl_delta_rel = 0;  // relative
  // Of the negative log-likelihood of a token minus that with fp16: what paired errors come from.
  double nll_delta_mean = 0, nll_delta_sd = 0;
  double kl_mean = 0, kl_median = 0, kl_p99 = 0, kl_max = 0;
  double top1_agreement = 0;      // share of tokens, [0, 1]
  double true_bits = 0;           // 8 * cache_bytes / stored K and V values, at a full window
  int64_t cache_bytes = 0;        // at a full window
  int64_t tokens = 0;             // scored
  int64_t compressed_tokens = 0;  // of a full window, that attention read compressed
};

// One result per spec, in their order. fp16 is run as the baseline whether listed or not. A text
// shorter than a window is one window; the first token of a window is not scored. Throws
// std::invalid_argument on a text of fewer than two tokens, a window beyond the model's context, a
// stride outside [1, window].
std::vector<PerplexityResult> evaluate_perplexity(Model& model, std::span<const int32_t> text,
                                                  std::span<const CacheSpec> specs,
                                                  const PerplexityOptions& options,
                                                  const Progress& progress = {});

// How many tokens from the beginning of the text lie in a window, scored or not: what has to be
// disjoint from the text of a calibration. Throws as evaluate_perplexity does.
int64_t num_evaluated_tokens(const Model& model, std::span<const int32_t> text,
                             const PerplexityOptions& options);

}  // namespace kvquant
