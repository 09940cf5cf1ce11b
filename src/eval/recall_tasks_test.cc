#include "eval/recall_tasks.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "eval/test_tokenizer.h"

namespace kvquant {
namespace {

using test::embedded_tokenizer;

constexpr const char* kTasks[] = {"recall_table", "recall_facts", "recall_chain", "recall_copy"};

EvalTaskOptions options_of(int64_t length, uint64_t seed) {
  return {.max_context = 8192,
          .context_lengths = {length},
          .num_samples = 2,
          .seed = seed,
          .haystack = test::source_text("assets/sample.txt")};
}

RC_GTEST_PROP(RecallTasks, AnswersFollowTheirQuestionInTheText, ()) {
  const auto options =
      options_of(*rc::gen::inRange<int64_t>(300, 4000), *rc::gen::arbitrary<uint64_t>());
  const std::string task = kTasks[*rc::gen::inRange<size_t>(0, 4)];
  const auto samples = make_eval_samples(task, embedded_tokenizer(), options);
  RC_ASSERT(samples.size() == 2u);
  for (const EvalSample& sample : samples) {
    RC_ASSERT(num_tokens(sample) <= options.context_lengths[0]);
    RC_ASSERT(sample.questions.size() >= 1u);
    RC_ASSERT(sample.questions.size() <= 8u);
    const std::string text = embedded_tokenizer().decode(sample.context);
    const std::string body = text.substr(0, text.rfind("\n\nSome of "));
    for (const EvalQuestion& question : sample.questions) {
      const std::string cue = embedded_tokenizer().decode(question.tokens);
      const std::string words = cue.substr(cue.find_first_not_of("\n"));
      size_t at = std::min(body.find("\n" + words), body.find(" " + words));
      RC_ASSERT(at != std::string::npos);
      for (const std::string& reference : question.references) {  // in this order
        const size_t next = body.find(reference, at);
        RC_ASSERT(next != std::string::npos);
        RC_ASSERT(next - at < 120u);
        at = next;
      }
      RC_ASSERT(text.find(cue, body.size()) == std::string::npos);  // no example gives it away
    }
  }
}

TEST(RecallTasks, FillTheContext) {
  for (const char* task : kTasks) {
    const auto samples = make_eval_samples(task, embedded_tokenizer(), options_of(2048, 42));
    for (const EvalSample& sample : samples) {
      EXPECT_GT(num_tokens(sample), 2048 - 200) << task;
      EXPECT_EQ(sample.questions.size(), 8u) << task;
    }
  }
  try {
    make_eval_samples("recall_table", embedded_tokenizer(), options_of(64, 42));
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "recall_table: a context of 64 tokens is too small: less than 2 things to ask for "
                 "fit");
  }
}

}  // namespace
}  // namespace kvquant
