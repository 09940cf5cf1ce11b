#include "eval/eval_sample.h"

#include <algorithm>

#include "base/hash.h"

namespace kvquant {
namespace {

void add_tokens(Hash64& hash, const std::vector<int32_t>& tokens) {
  hash.add_integer(static_cast<int64_t>(tokens.size()));
  for (const int32_t token : tokens) hash.add_integer(token);
}

}  // namespace

int64_t num_tokens(const EvalSample& sample) {
  size_t longest = 0;
  for (const EvalQuestion& question : sample.questions) {
    longest = std::max(longest, question.tokens.size());
    for (const EvalChoice& choice : question.choices) {
      longest = std::max(longest, question.tokens.size() + choice.tokens.size());
    }
  }
  return static_cast<int64_t>(sample.context.size() + longest) + sample.max_new_tokens;
}

bool asks_likelihoods(const EvalSample& sample) {
  return sample.metric == EvalMetric::kChoice || sample.metric == EvalMetric::kLastWord;
}

std::string sample_id(const EvalSample& sample) {
  Hash64 hash;
  hash.add_text(sample.task);
  add_tokens(hash, sample.context);
  for (const EvalQuestion& question : sample.questions) {
    add_tokens(hash, question.tokens);
    hash.add_integer(static_cast<int64_t>(question.references.size()));
    for (const auto& reference : question.references) hash.add_text(reference);
    for (const auto& choice : question.choices) {
      add_tokens(hash, choice.tokens);
      hash.add_integer(choice.num_characters);
    }
    hash.add_integer(question.right_choice);
  }
  hash.add_integer(sample.max_new_tokens);
  hash.add_integer(static_cast<int64_t>(sample.metric));
  hash.add_integer(static_cast<int64_t>(sample.stop));
  return hash.hex();
}

}  // namespace kvquant
