// Recall that small models are capable of, so that damage shows where RULER is too hard for them:
// what a context says is asked for in the words it was said in, behind examples of such questions.
// Prompts are plain text, whether the model has a chat template or not: they are to be continued,
// not answered. Each context is full of what may be asked, and asked several times.
#pragma once

#include "eval/sample_maker.h"

namespace kvquant {

// Errors: std::invalid_argument, see make_eval_samples.
std::vector<EvalSample> make_recall_story(const SampleMaker& maker);  // facts of one text
// Each has 10 contexts of each length, 8 questions of each.
std::vector<EvalSample> make_recall_table(const SampleMaker& maker);  // "acorn: 48213" in lines
std::vector<EvalSample> make_recall_facts(const SampleMaker& maker);  // "The age of the oak is ..."
// "lamp: 4821 river", "river: 2070 stone", "stone: 9934 end": followed to their end.
std::vector<EvalSample> make_recall_chain(const SampleMaker& maker);
// Lines of the haystack, verbatim: the eight words behind the first four. A haystack is read once.
std::vector<EvalSample> make_recall_copy(const SampleMaker& maker);

}  // namespace kvquant
