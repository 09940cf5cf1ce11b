// Recall of facts hidden in a long prompt: the simplest test that a compressed cache still knows
// what it was told.
#pragma once

#include <string>
#include <vector>

#include "base/progress.h"
#include "model/session.h"

namespace kvquant {

struct Fact {
  std::string question;
  std::string answer;  // one word or name, matched without regard to case
  std::string cue;     // how the answer begins; small models need the push. May be empty
};

// The facts of a JSON list of {"question", "answer"} objects with an optional "cue". Throws
// FormatError.
std::vector<Fact> facts_from_json(const std::string& text, const std::string& path);

struct RecallResult {
  std::vector<std::string> answers;  // as generated
  int num_correct = 0;               // answers that contain the expected one
  double prompt_s = 0;
  int64_t num_prompt_tokens = 0;
  double decode_s = 0;  // of all answers
  int64_t num_decoded_tokens = 0;
  int64_t cache_bytes = 0;        // after the prompt
  int64_t compressed_tokens = 0;  // after the prompt
};

// Feeds the text once, then asks each question behind it and forgets question and answer again.
// The prompt is laid out as prose, then "Question: …\nAnswer: cue". Greedy, at most 16 tokens or
// one line per answer.
RecallResult evaluate_recall(Model& model, const SessionOptions& options, const std::string& text,
                             const std::vector<Fact>& facts, const Progress& progress = {});

}  // namespace kvquant
