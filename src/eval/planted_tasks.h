// Passkey and needle: one sentence to be found again.
#pragma once

#include "eval/sample_maker.h"

namespace kvquant {

extern const char* const kNoiseText;  // sentences that say nothing

// Errors: std::invalid_argument, see make_eval_samples.
std::vector<EvalSample> make_passkey(const SampleMaker& maker);
std::vector<EvalSample> make_needle(const SampleMaker& maker);

}  // namespace kvquant
