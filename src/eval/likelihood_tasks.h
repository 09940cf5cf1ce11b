// Tasks whose answers are likelihoods rather than text: LAMBADA (arXiv 1606.06031), HellaSwag
// (arXiv 1905.07830), PIQA (arXiv 1911.11641), ARC (arXiv 1803.05457), from JSON lines as their
// authors or the data-set hubs publish them. Prompts are plain text in the wording of lm-eval; the
// first --num_fewshot lines are examples before all others, and aren't asked for themselves.
#pragma once

#include "eval/jsonl.h"
#include "eval/sample_maker.h"

namespace kvquant {

// A question as text. The continuations begin with the space between them and the context.
struct ChoiceText {
  std::string context;
  std::vector<std::string> choices;
  size_t right = 0;
};

// {"text": ...}: the last word is asked for.
ChoiceText read_lambada(const JsonLine& line);
// {"activity_label", "ctx_a", "ctx_b", "endings": [...], "label"}; "ctx" instead of the two parts.
ChoiceText read_hellaswag(const JsonLine& line);
// {"goal", "sol1", "sol2", "label"}. Labels may be in a file beside it, see make_likelihood.
ChoiceText read_piqa(const JsonLine& line);
// {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}, or "question" as text with
// "choices": {"text": [...], "label": [...]}.
ChoiceText read_arc(const JsonLine& line);

// All samples of a file. Where piqa's lines have no "label", FILE-labels.lst beside FILE.jsonl has
// them, one a line. Throws IoError, FormatError naming the line: also of one that is longer than
// the context.
std::vector<EvalSample> make_likelihood(const SampleMaker& maker, const std::string& task);

}  // namespace kvquant
