// What an evaluation task consists of: samples, each a context and questions about it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "eval/scorers.h"

namespace kvquant {

// A continuation whose likelihood is asked for.
struct EvalChoice {
  std::vector<int32_t> tokens;  // at least one
  int64_t num_characters = 0;   // of its text, that acc_norm divides by
};

struct EvalQuestion {
  std::vector<int32_t> tokens;            // behind the context, at least one
  std::vector<std::string> references{};  // what the answer is compared with
  std::vector<EvalChoice> choices{};      // EvalMetric::kChoice, kLastWord; else none
  int64_t right_choice = 0;               // index
};

// Samples of the same cell are averaged together.
struct EvalCell {
  int64_t length = 0;  // tokens of prompt and answer that were asked for; 0: as the data has it
  double depth = -1;   // of what is sought, share of the context; -1: the task doesn't fix it
  friend bool operator==(const EvalCell&, const EvalCell&) = default;
  friend auto operator<=>(const EvalCell&, const EvalCell&) = default;
};

// What ends an answer beside a stop token of the model and max_new_tokens.
enum class EvalStop { kLine, kNothing };  // kLine: the end of a line that is not blank

struct EvalSample {
  std::string task{};
  std::string group{};  // that the task is averaged in; may be empty
  EvalCell cell{};
  uint64_t seed = 0;               // of the run it belongs to
  std::vector<int32_t> context{};  // read once, at least one token
  std::vector<EvalQuestion> questions{};
  int64_t max_new_tokens = 0;  // per answer; 0 where likelihoods are asked for
  EvalMetric metric = EvalMetric::kContained;
  EvalStop stop = EvalStop::kLine;
};

// Tokens of context, longest question with its longest choice, and answer.
int64_t num_tokens(const EvalSample& sample);

// Are likelihoods of choices asked for, rather than answers?
bool asks_likelihoods(const EvalSample& sample);

// Hash of all that decides its scores: task, tokens, references, choices, how an answer ends.
std::string sample_id(const EvalSample& sample);

// One of each per question.
struct SampleResult {
  std::vector<std::string> answers{};
  std::vector<double> scores{};   // [0, 1]
  int64_t compressed_tokens = 0;  // that an answer's last token read compressed, at most
  // Likelihoods: "nll" of the right choice in nats; of kChoice "acc_norm" too, [0, 1].
  std::map<std::string, std::vector<double>> extra{};
};

}  // namespace kvquant
