// What an evaluation task consists of: samples, each a context and questions about it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvquant {

struct EvalQuestion {
  std::vector<int32_t> tokens;          // behind the context, at least one
  std::vector<std::string> references;  // the score is the share of them that the answer contains
};

// Samples of the same cell are averaged together.
struct EvalCell {
  int64_t length = 0;  // tokens of prompt and answer that were asked for
  double depth = -1;   // of what is sought, share of the context; -1: the task doesn't fix it
  friend bool operator==(const EvalCell&, const EvalCell&) = default;
  friend auto operator<=>(const EvalCell&, const EvalCell&) = default;
};

struct EvalSample {
  std::string task{};
  EvalCell cell{};
  uint64_t seed = 0;               // of the run it belongs to
  std::vector<int32_t> context{};  // read once, at least one token
  std::vector<EvalQuestion> questions{};
  int64_t max_new_tokens = 0;  // per answer
};

// Tokens of context, longest question and answer.
int64_t num_tokens(const EvalSample& sample);

// Hash of all that decides its answers: task, tokens, references, length of the answer.
std::string sample_id(const EvalSample& sample);

struct SampleResult {
  std::vector<std::string> answers{};  // one per question
  std::vector<double> scores{};        // [0, 1], one per question
  int64_t compressed_tokens = 0;       // that an answer's last token read compressed, at most
};

// The share of references that the answer contains, whatever the case of letters. 0 without
// references.
double contained_share(const std::string& answer, const std::vector<std::string>& references);

}  // namespace kvquant
