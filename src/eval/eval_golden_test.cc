// The first sample of every task that is made rather than read, as it was when its results were
// published: tests/golden/eval_samples.txt. A change of wording or of random streams is a change of
// the task; then take the file that the test wrote.
#include <gtest/gtest.h>

#include "base/test_path.h"
#include "eval/test_tokenizer.h"

namespace kvquant {
namespace {

std::string first_sample(const std::string& task) {
  const Tokenizer& tokenizer = test::embedded_tokenizer();
  const auto samples = make_eval_samples(
      task, tokenizer,
      {.max_context = 2048,
       .context_lengths = {1100},
       .limit = 1,
       .haystack = test::source_text("assets/sample.txt"),
       .recall_text = test::source_text("assets/sample.txt"),
       .recall_facts = {{"When did the last ferry go?", "October", "It went in"}}});
  std::string out = "==== " + task + "\n" + tokenizer.decode(samples.at(0).context);
  for (const EvalQuestion& question : samples[0].questions) {
    out += "\n---- question" + tokenizer.decode(question.tokens) + "\n---- answer";
    for (const std::string& reference : question.references) out += "\n" + reference;
  }
  return out + "\n";
}

TEST(EvalSamples, AreTheGoldenOnes) {
  std::string all;
  for (const EvalTaskInfo& task : eval_tasks()) {
    if (task.data != TaskData::kRequired) all += first_sample(task.name);
  }
  const std::string written = test::test_path("eval_samples.txt");
  write_file_atomic(written, all);
  EXPECT_TRUE(all == test::source_text("tests/golden/eval_samples.txt"))
      << written << " differs from tests/golden/eval_samples.txt";
}

}  // namespace
}  // namespace kvquant
