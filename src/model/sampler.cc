#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"
#include "ops/log_softmax.h"

namespace kvquant {

void check_sampler_options(const SamplerOptions& options) {
  const auto check = [](bool ok, const char* name, double value, const char* range) {
    check_arg(ok, std::string("--") + name + " is " + std::to_string(value) + ", not in " + range);
  };
  check(options.temperature >= 0 && std::isfinite(options.temperature), "temp", options.temperature,
        "[0, inf)");
  check(options.top_k >= 0, "top-k", options.top_k, "[0, inf)");
  check(options.top_p > 0 && options.top_p <= 1, "top-p", options.top_p, "(0, 1]");
  check(options.min_p >= 0 && options.min_p < 1, "min-p", options.min_p, "[0, 1)");
  check(options.repeat_penalty > 0 && std::isfinite(options.repeat_penalty), "repeat-penalty",
        options.repeat_penalty, "(0, inf)");
  check(options.repeat_last >= 0, "repeat-last-n", options.repeat_last, "[0, inf)");
}

Sampler::Sampler(const SamplerOptions& options) : options_(options), rng_(options.seed) {
  check_sampler_options(options);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  check_arg(!logits.empty(), "sample: no logits");
  logits_.assign(logits.begin(), logits.end());
  for (const int32_t id : penalised(history, std::ssize(logits_))) {
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
  }
  if (options_.temperature == 0) return argmax(logits_);
  std::vector<TokenLogit> all;
  for (size_t i = 0; i < logits_.size(); ++i) all.push_back({static_cast<int32_t>(i), logits_[i]});
  size_t count = all.size();
  if (options_.top_k > 0) count = std::min<size_t>(count, static_cast<size_t>(options_.top_k));
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count), all.end(),
                    [](const TokenLogit& a, const TokenLogit& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
                    });
  return pick(std::span(all).first(count));
}

std::vector<int32_t> Sampler::penalised(std::span<const int32_t> history,
                                        int64_t num_tokens) const {
  if (options_.repeat_penalty == 1) return {};
  const size_t count = std::min<size_t>(history.size(), static_cast<size_t>(options_.repeat_last));
  std::vector<int32_t> recent(history.end() - static_cast<std::ptrdiff_t>(count), history.end());
  std::sort(recent.begin(), recent.end());
  recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
  std::erase_if(recent, [&](int32_t id) { return id < 0 || id >= num_tokens; });
  return recent;
}

int32_t Sampler::pick(std::span<const TokenLogit> most_likely) {
  check_arg(!most_likely.empty(), "sample: no tokens");
  if (options_.temperature == 0) return most_likely[0].id;
  candidates_.clear();
  for (const TokenLogit& token : most_likely) candidates_.push_back({token.id, token.logit, 0});
  cut_candidates();
  return draw();
}

// Leaves what top-p and min-p leave of candidates_, at least one.
void Sampler::cut_candidates() {
  const size_t count = candidates_.size();
  double sum = 0;
  for (auto& c : candidates_) {
    c.probability = std::exp(double{c.logit} - candidates_[0].logit);
    sum += c.probability;
  }
  double cumulative = 0;
  size_t keep = 0;
  while (keep < count && cumulative < options_.top_p * sum) {
    cumulative += candidates_[keep++].probability;
  }
  const double least = options_.min_p * candidates_[0].probability;
  while (keep > 1 && candidates_[keep - 1].probability < least) --keep;
  candidates_.resize(std::max<size_t>(keep, 1));
}

int32_t Sampler::draw() {
  double sum = 0;
  for (auto& c : candidates_) {
    c.probability = std::exp((double{c.logit} - candidates_[0].logit) / options_.temperature);
    sum += c.probability;
  }
  // 53 random bits as [0, 1): std::uniform_real_distribution differs between standard libraries.
  double left = static_cast<double>(rng_() >> 11) * 0x1p-53 * sum;
  for (const auto& c : candidates_) {
    left -= c.probability;
    if (left < 0) return c.id;
  }
  return candidates_.back().id;
}

}  // namespace kvquant
