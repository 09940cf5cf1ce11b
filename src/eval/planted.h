// A sentence planted in a long text, and a question about it: what passkey and needle samples are.
#pragma once

#include <cstdint>
#include <string>

#include "eval/sample_maker.h"

namespace kvquant {

struct PlantedText {
  std::string instruction;    // before the text
  std::string needle;         // begins with a space
  std::string question;       // behind the text
  std::string answer_prefix;  // what the answer begins with
  std::string answer;
};

struct PlantedPlace {
  EvalCell cell;              // length: tokens of prompt and answer at most
  double depth = 0;           // where the needle goes: share of the text's tokens
  size_t first_sentence = 0;  // that the text begins with
  int64_t max_new_tokens = 16;
};

// The sample is at most cell.length tokens long, and longer than that minus the longest sentence.
// The needle stands at the border of two sentences nearest to the depth, once in the context's
// tokens, and the answer nowhere else in its text. Throws std::invalid_argument when the length
// is too small for it, or the text already has the answer in it.
EvalSample plant(const SampleMaker& maker, const Sentences& sentences, const PlantedText& text,
                 const PlantedPlace& place);

}  // namespace kvquant
