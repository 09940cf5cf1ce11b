// Likelihoods of continuations of contexts: what harnesses ask of a model that know its tokens but
// not its caches. Tasks of the program's own go through eval/sample_runner.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/progress.h"
#include "eval/choice_scoring.h"
#include "eval/sample_runner.h"

namespace kvquant {

// Both have a token at least and must outlive the call.
struct Continuation {
  std::span<const int32_t> context, tokens;
};

// One for each request, in their order: the likelihood of the tokens behind the context. Each
// context is read once, and likewise what contexts have in common; the continuations of a context
// are read side by side when they have no more than ubatch tokens together, as a question's choices
// are. options.batch_size is for answers and decides nothing here. Progress counts requests. Throws
// std::invalid_argument when the spec doesn't fit the model, a context or continuation is empty,
// they are longer than the model's context together, or a token is unknown; and what the model
// throws.
std::vector<ChoiceLikelihood> score_continuations(Model& model,
                                                  std::span<const Continuation> requests,
                                                  const SampleRunOptions& options,
                                                  const Progress& progress = {});

}  // namespace kvquant
