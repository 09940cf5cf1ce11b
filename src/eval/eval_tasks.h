// The evaluation tasks by name, and the samples they ask. Samples are a function of the options and
// the tokenizer alone.
#pragma once

#include <cstdint>
#include <map>
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
  int64_t num_samples = 0;                    // of each length; 0: what the task has by itself
  int64_t num_trials = 10;                    // needle: of each length and depth
  int64_t limit = 0;                          // samples of each cell at most; 0: all
  int64_t num_fewshot = 0;  // likelihood tasks: the first lines of the data are examples
  uint64_t seed = 42;
  std::string haystack{};                        // text that needles are hidden in
  std::string recall_text{};                     // recall_story: a text
  std::vector<Fact> recall_facts{};              // and what to ask about it
  std::map<std::string, std::string> data{};     // task -> file
  std::map<std::string, std::string> prompts{};  // longbench, leval: task -> prompt
};

// What data a task has to be given.
enum class TaskData { kNone, kOptional, kRequired };

struct EvalTaskInfo {
  std::string name;
  std::string group;  // "ruler", ...; empty: none
  TaskData data = TaskData::kNone;
  bool uses_seed = true;
  int64_t num_runs = 1;  // where the user doesn't say
};
const std::vector<EvalTaskInfo>& eval_tasks();  // group by group, in the order of their papers

// Names of tasks and groups as a user gives them, groups taken apart. Throws std::invalid_argument
// for a name that is none (listing them), or one that comes twice.
std::vector<EvalTaskInfo> expand_tasks(const std::vector<std::string>& names);
std::vector<std::string> eval_task_names();  // tasks without group, then groups

// Throws std::invalid_argument for a name that is no task, lengths above max_context or too small
// for the task's wording, and texts that don't fit the task; IoError and FormatError of data, with
// the number of the line.
std::vector<EvalSample> make_eval_samples(const std::string& task, const Tokenizer& tokenizer,
                                          const EvalTaskOptions& options);

}  // namespace kvquant
