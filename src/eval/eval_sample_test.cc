#include "eval/eval_sample.h"

#include <gtest/gtest.h>

#include <set>

namespace kvquant {
namespace {

TEST(SampleId, TellsSamplesApartByAllThatDecidesAnswers) {
  const EvalSample sample{.task = "a",
                          .context = {1, 2, 3},
                          .questions = {{{4}, {"x"}}, {{5, 6, 7}, {"y"}}},
                          .max_new_tokens = 8};
  EXPECT_EQ(num_tokens(sample), 3 + 3 + 8);
  std::vector<EvalSample> others(12, sample);
  others[1].task.push_back('b');
  others[2].context = {1, 2};
  others[3].questions[0].tokens = {3};
  others[4].questions[1].references = {"z"};
  others[5].max_new_tokens = 9;
  others[6].questions.pop_back();
  others[7].metric = EvalMetric::kQaF1;
  others[8].stop = EvalStop::kNothing;
  others[9].questions[0].choices = {{{9, 9}, 5}};
  others[10].questions[0].choices = {{{9, 9}, 6}};
  others[11].questions[1].right_choice = 1;
  EXPECT_EQ(num_tokens(others[9]), 3 + 3 + 8);
  EXPECT_EQ(num_tokens({.context = {1}, .questions = {{{2}, {}, {{{3, 4}, 1}, {{5}, 1}}}}}), 4);
  std::set<std::string> ids;
  for (const auto& other : others) ids.insert(sample_id(other));
  EXPECT_EQ(ids.size(), others.size());
  others[0].cell.length = 2048;  // where it is counted
  others[0].seed = 1;
  EXPECT_EQ(sample_id(others[0]), sample_id(sample));
}

}  // namespace
}  // namespace kvquant
