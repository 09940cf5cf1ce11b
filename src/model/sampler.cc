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
  penalise(history);
  if (options_.temperature == 0) return argmax(logits_);
  cut_candidates();
  return draw();
}

void Sampler::penalise(std::span<const int32_t> history) {
  if (options_.repeat_penalty == 1) return;
  const size_t count = std::min<size_t>(history.size(), static_cast<size_t>(options_.repeat_last));
  std::vector<int32_t> recent(history.end() - static_cast<std::ptrdiff_t>(count), history.end());
  std::sort(recent.begin(), recent.end());
  recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
  for (const int32_t id : recent) {
    if (id < 0 || static_cast<size_t>(id) >= logits_.size()) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
  }
}

// Fills candidates_ with what top-k, top-p and min-p leave, most likely first, at least one.
void Sampler::cut_candidates() {
  candidates_.clear();
  for (size_t i = 0; i < logits_.size(); ++i) {
    candidates_.push_back({static_cast<int32_t>(i), logits_[i], 0});
  }
  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  size_t count = candidates_.size();
  if (options_.top_k > 0) count = std::min<size_t>(count, static_cast<size_t>(options_.top_k));
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count),
                    candidates_.end(), more_likely);
  candidates_.resize(count);

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
