// Choosing the next token from logits: repetition penalty (arXiv 1909.05858), top-k, top-p (arXiv
// 1904.09751), min-p (arXiv 2407.01082), temperature, in this order, as llama.cpp's users expect.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace kvquant {

struct SamplerOptions {
  float temperature = 0;     // 0: greedy
  int top_k = 40;            // 0: all
  float top_p = 0.95f;       // 1: all
  float min_p = 0.05f;       // 0: all
  float repeat_penalty = 1;  // 1: none
  int repeat_last = 64;      // tokens that the penalty looks back on
  uint64_t seed = 42;
};

// Throws std::invalid_argument naming the option and its range.
void check_sampler_options(const SamplerOptions& options);

struct TokenLogit {
  int32_t id = 0;
  float logit = 0;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);

  // sample() in two halves, for logits that lie elsewhere: those of these tokens, each named once,
  // are divided by the penalty if positive, else multiplied with it. Then pick() needs the most
  // likely num_candidates() tokens (0: all), in order, ties to the lower id, at least one.
  float repeat_penalty() const { return options_.repeat_penalty; }
  std::vector<int32_t> penalised(std::span<const int32_t> history, int64_t num_tokens) const;
  int64_t num_candidates() const { return options_.temperature == 0 ? 1 : options_.top_k; }
  int32_t pick(std::span<const TokenLogit> most_likely);

  // `history`: the tokens so far, oldest first. The same calls after the same seed give the same
  // tokens.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

 private:
  struct Candidate {
    int32_t id;
    float logit;
    double probability;
  };
  void cut_candidates();
  int32_t draw();

  SamplerOptions options_;
  std::mt19937_64 rng_;
  std::vector<float> logits_;
  std::vector<Candidate> candidates_;
};

}  // namespace kvquant
