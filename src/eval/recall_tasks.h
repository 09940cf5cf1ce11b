// Recall that small models are capable of: what a context says is asked for in the words it was
// said in.
#pragma once

#include "eval/sample_maker.h"

namespace kvquant {

// Errors: std::invalid_argument, see make_eval_samples.
std::vector<EvalSample> make_recall_story(const SampleMaker& maker);  // facts of one text

}  // namespace kvquant
