#include "eval/eval_sample.h"

#include <gtest/gtest.h>

#include <set>

namespace kvquant {
namespace {

TEST(ContainedShare, IgnoresCaseAndCountsReferences) {
  EXPECT_EQ(contained_share(" 48213.", {"48213"}), 1);
  EXPECT_EQ(contained_share(" 4821", {"48213"}), 0);
  EXPECT_EQ(contained_share("ESPERANCE it was", {"Esperance"}), 1);
  EXPECT_EQ(contained_share("one and two", {"one", "two", "three", "four"}), 0.5);
  EXPECT_EQ(contained_share("", {"x"}), 0);
  EXPECT_EQ(contained_share("anything", {}), 0);
}

TEST(SampleId, TellsSamplesApartByAllThatDecidesAnswers) {
  const EvalSample sample{.task = "a",
                          .context = {1, 2, 3},
                          .questions = {{{4}, {"x"}}, {{5, 6, 7}, {"y"}}},
                          .max_new_tokens = 8};
  EXPECT_EQ(num_tokens(sample), 3 + 3 + 8);
  std::vector<EvalSample> others(7, sample);
  others[1].task.push_back('b');
  others[2].context = {1, 2};
  others[3].questions[0].tokens = {3};
  others[4].questions[1].references = {"z"};
  others[5].max_new_tokens = 9;
  others[6].questions.pop_back();
  std::set<std::string> ids;
  for (const auto& other : others) ids.insert(sample_id(other));
  EXPECT_EQ(ids.size(), others.size());
  others[0].cell.length = 2048;  // where it is counted
  others[0].seed = 1;
  EXPECT_EQ(sample_id(others[0]), sample_id(sample));
}

}  // namespace
}  // namespace kvquant
