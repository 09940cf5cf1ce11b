#include "eval/eval_sample.h"

#include <algorithm>
#include <cctype>

#include "base/hash.h"

namespace kvquant {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

void add_tokens(Hash64& hash, const std::vector<int32_t>& tokens) {
  hash.add_integer(static_cast<int64_t>(tokens.size()));
  for (const int32_t token : tokens) hash.add_integer(token);
}

}  // namespace

int64_t num_tokens(const EvalSample& sample) {
  size_t longest = 0;
  for (const EvalQuestion& question : sample.questions) {
    longest = std::max(longest, question.tokens.size());
  }
  return static_cast<int64_t>(sample.context.size() + longest) + sample.max_new_tokens;
}

std::string sample_id(const EvalSample& sample) {
  Hash64 hash;
  hash.add_text(sample.task);
  add_tokens(hash, sample.context);
  for (const EvalQuestion& question : sample.questions) {
    add_tokens(hash, question.tokens);
    hash.add_integer(static_cast<int64_t>(question.references.size()));
    for (const auto& reference : question.references) hash.add_text(reference);
  }
  hash.add_integer(sample.max_new_tokens);
  return hash.hex();
}

double contained_share(const std::string& answer, const std::vector<std::string>& references) {
  if (references.empty()) return 0;
  const std::string text = lower(answer);
  const auto found = std::count_if(references.begin(), references.end(), [&](const std::string& r) {
    return text.find(lower(r)) != std::string::npos;
  });
  return static_cast<double>(found) / static_cast<double>(references.size());
}

}  // namespace kvquant
