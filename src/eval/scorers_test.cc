#include "eval/scorers.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"

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

TEST(QaF1, IsTheHarmonicMeanOverNormalisedWords) {
  EXPECT_EQ(qa_f1("The Eiffel Tower!", "eiffel tower"), 1);
  EXPECT_EQ(qa_f1("Paris", "London"), 0);
  EXPECT_EQ(qa_f1("", "London"), 0);
  EXPECT_EQ(qa_f1("the", "an"), 0);  // nothing is left
  EXPECT_DOUBLE_EQ(qa_f1("red red blue", "red green"), 2 * (1.0 / 3) * 0.5 / (1.0 / 3 + 0.5));
  EXPECT_EQ(score_answer(EvalMetric::kQaF1, "in 1907", {"never", "1907 in"}), 1);
}

TEST(OptionLetter, IsTheOneInParenthesesOrAlone) {
  EXPECT_EQ(option_letter("I think (B) is right, not A."), 'B');
  EXPECT_EQ(option_letter("A cat. C."), 'C');
  EXPECT_EQ(option_letter(" D"), 'D');
  EXPECT_EQ(option_letter("B\n(x)"), 'B');
  EXPECT_EQ(option_letter("Cats"), 0);
  EXPECT_EQ(option_letter(""), 0);
  EXPECT_EQ(score_answer(EvalMetric::kOption, "(B)", {"(B) a long text"}), 1);
  EXPECT_EQ(score_answer(EvalMetric::kOption, "none", {"no letter"}), 0);
}

TEST(LeadingWordShare, EndsAtTheFirstDifference) {
  EXPECT_EQ(leading_word_share(" one two three four five", "one two three four"), 1);
  EXPECT_EQ(leading_word_share("one two x four", "one two three four"), 0.5);
  EXPECT_EQ(leading_word_share("zero one", "one two"), 0);
  EXPECT_EQ(leading_word_share("one", "one two"), 0.5);
  EXPECT_EQ(leading_word_share("one", ""), 0);
}

// tests/golden/make_scores_golden.py: the same scores written down once more.
TEST(Scorers, AgreeWithTheirReimplementation) {
  const std::string path = KVQUANT_SOURCE_DIR "/tests/golden/scores.json";
  const auto cases = nlohmann::json::parse(read_text(path));
  EXPECT_GE(cases.size(), 300u);
  for (const auto& item : cases) {
    const std::string answer = item.at("answer");
    const std::vector<std::string> references = item.at("references");
    const auto score = [&](EvalMetric metric) { return score_answer(metric, answer, references); };
    EXPECT_NEAR(score(EvalMetric::kContained), item.at("contained"), 1e-12) << answer;
    EXPECT_NEAR(score(EvalMetric::kAnyContained), item.at("any"), 1e-12) << answer;
    EXPECT_NEAR(score(EvalMetric::kQaF1), item.at("f1"), 1e-12) << answer;
    EXPECT_NEAR(score(EvalMetric::kLeadingWords), item.at("leading"), 1e-12) << answer;
    EXPECT_EQ(score(EvalMetric::kOption), item.at("option")) << answer;
  }
}

}  // namespace
}  // namespace kvquant
