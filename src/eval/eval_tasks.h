// The evaluation tasks by name, and the samples they ask. Samples are a function of the options and
// the tokenizer alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/eval_sample.h"
#include "eval/recall.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace kvquant {

struct EvalTaskOptions {
  ChatFormat format{};  // without name: prompts are plain text
  ChatTokens chat_tokens{};
  int64_t max_context = 0;                    // tokens of the longest sample, > 0
  std::vector<int64_t> context_lengths = {};  // empty: 2048, 4096, ... 32768 up to max_context
  int64_t num_samples = 50;                   // passkey: of each length
  int64_t num_trials = 10;                    // needle: of each length and depth
  int64_t limit = 0;                          // samples of each cell at most; 0: all
  uint64_t seed = 42;
  std::string haystack{};            // text that needles are hidden in
  std::string recall_text{};         // recall: a text
  std::vector<Fact> recall_facts{};  // and what to ask about it
};

// "needle", "passkey", ... in alphabetical order.
std::vector<std::string> eval_task_names();

// Throws std::invalid_argument for a name that is none (listing them), lengths above max_context or
// too small for the task's wording, and texts that don't fit the task.
std::vector<EvalSample> make_eval_samples(const std::string& task, const Tokenizer& tokenizer,
                                          const EvalTaskOptions& options);

}  // namespace kvquant
