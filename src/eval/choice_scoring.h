// Likelihoods of continuations: each choice of a question is read behind a fork of its context, all
// choices of the question side by side.
#pragma once

#include <vector>

#include "eval/eval_sample.h"
#include "model/model.h"
#include "model/runner.h"

namespace kvquant {

struct ChoiceLikelihood {
  double log_likelihood = 0;      // nats, sum over its tokens
  bool is_greedy = true;          // each token was the most likely one
  int64_t compressed_tokens = 0;  // that its last one was read behind
};

// Reads question and choices behind `context` in chunks of at most `ubatch` tokens, then forgets
// them. Independent of what else the runner, the model's, holds. Throws what Runner::forward
// does.
std::vector<ChoiceLikelihood> score_choices(Model& model, Runner& runner,
                                            Runner::SequenceId context,
                                            const EvalQuestion& question, int64_t ubatch);

// What they say of the metric (kChoice, kLastWord), into question `q` of the result. acc_norm
// compares likelihoods per character.
void keep_choice_scores(const EvalSample& sample, size_t q,
                        const std::vector<ChoiceLikelihood>& likelihoods, SampleResult& result);

}  // namespace kvquant
