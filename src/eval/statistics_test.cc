#include "eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace kvquant {
namespace {

TEST(Moments, UseTheSampleStandardDeviation) {
  const Moments m = moments(std::vector<double>{2, 4, 4, 4, 5, 5, 7, 9});
  EXPECT_EQ(m.count, 8);
  EXPECT_DOUBLE_EQ(m.mean, 5);
  EXPECT_DOUBLE_EQ(m.sd, std::sqrt(32.0 / 7));
  EXPECT_DOUBLE_EQ(m.standard_error(), std::sqrt(32.0 / 7 / 8));
  EXPECT_EQ(moments({}).count, 0);
  EXPECT_EQ(moments(std::vector<double>{3}).sd, 0);
}

// Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
TEST(Wilson, GivesThePublishedIntervals) {
  const struct {
    double right;
    int64_t count;
    double low, high;
  } kPublished[] = {{81, 263, 0.2553, 0.3662},
                    {15, 148, 0.0624, 0.1605},
                    {0, 20, 0.0000, 0.1611},
                    {1, 29, 0.0061, 0.1718}};
  for (const auto& row : kPublished) {
    const Interval interval = wilson_interval(row.right, row.count);
    EXPECT_NEAR(interval.low, row.low, 5e-5) << row.count;
    EXPECT_NEAR(interval.high, row.high, 5e-5) << row.count;
  }
  EXPECT_EQ(wilson_interval(7, 7).high, 1);
  EXPECT_THROW(wilson_interval(0, 0), std::invalid_argument);
  EXPECT_THROW(wilson_interval(3, 2), std::invalid_argument);
}

// Student's own data, Biometrika 6 (1908): hours of sleep gained under two drugs; t = 4.0621,
// p = 0.002833, and the interval as R's t.test(sleep, paired) prints it.
TEST(PairedTTest, GivesStudentsExample) {
  const std::vector<double> first = {0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0};
  const std::vector<double> second = {1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4};
  const PairedTest test = paired_t_test(second, first);
  EXPECT_NEAR(test.mean, 1.58, 1e-12);
  EXPECT_NEAR(test.t, 4.0621, 5e-5);
  EXPECT_NEAR(test.p, 0.002833, 5e-7);
  EXPECT_NEAR(test.confidence.low, 0.7001142, 5e-8);
  EXPECT_NEAR(test.confidence.high, 2.4598858, 5e-8);
  // (2.2622 + 0.8834) * 1.2300 / sqrt(10): tables of t with 9 degrees of freedom
  EXPECT_NEAR(test.detectable, (2.2622 + 0.8834) * 1.229995 / std::sqrt(10.0), 2e-4);
}

TEST(PairedTTest, KnowsPairsWithoutSpread) {
  const std::vector<double> zero(10, 0.0), one(10, 1.0), tenth(10, 0.1);
  const PairedTest same = paired_t_test(one, one);
  EXPECT_EQ(same.p, 1);
  EXPECT_EQ(same.t, 0);
  EXPECT_NEAR(same.detectable, 0.2589, 5e-5);  // 0.7411^10 = 0.05
  const PairedTest lost = paired_t_test(zero, tenth);
  EXPECT_EQ(lost.p, 0);
  EXPECT_NEAR(lost.mean, -0.1, 1e-12);
  EXPECT_THROW(paired_t_test(std::vector<double>{1}, std::vector<double>{1}),
               std::invalid_argument);
}

TEST(McNemar, IsTheExactBinomialTest) {
  EXPECT_EQ(mcnemar_test(0, 0).p, 1);
  EXPECT_EQ(mcnemar_test(3, 3).p, 1);
  EXPECT_NEAR(mcnemar_test(1, 5).p, 14.0 / 64, 1e-12);  // 2 (1 + 6) / 2^6
  EXPECT_NEAR(mcnemar_test(5, 1).p, 14.0 / 64, 1e-12);
  EXPECT_NEAR(mcnemar_test(6, 0).p, 2.0 / 64, 1e-12);
  EXPECT_THROW(mcnemar_test(-1, 0), std::invalid_argument);
}

TEST(CompareScores, LetsMcNemarDecideOnRightAndWrong) {
  std::vector<double> baseline(20, 1.0), scores(20, 1.0);
  for (size_t i = 0; i < 5; ++i) scores[i] = 0;
  Comparison five = compare_scores(scores, baseline);
  EXPECT_TRUE(five.is_right_or_wrong);
  EXPECT_EQ(five.mcnemar.num_lost, 5);
  EXPECT_LT(five.paired.p, 0.05);  // the normal approximation is too sure of itself
  EXPECT_NEAR(five.p, 2.0 / 32, 1e-12);
  EXPECT_FALSE(five.is_loss);
  scores[5] = 0;
  EXPECT_TRUE(compare_scores(scores, baseline).is_loss);
  EXPECT_TRUE(compare_scores(baseline, scores).is_gain);
  scores[6] = 0.5;
  EXPECT_FALSE(compare_scores(scores, baseline).is_right_or_wrong);
  EXPECT_THROW(compare_scores(scores, std::vector<double>{1}), std::invalid_argument);
}

TEST(Verdict, SaysInWordsWhatWasFound) {
  std::vector<double> baseline(100, 1.0), scores(100, 1.0);
  EXPECT_EQ(verdict(compare_scores(scores, baseline)),
            "no significant loss at 95%: +0.0 ± 0.0 points, p = 1; the test could have seen 6.0 "
            "points");
  scores[0] = scores[1] = 0;
  EXPECT_EQ(verdict(compare_scores(scores, baseline)),
            "no significant loss at 95%: -2.0 ± 2.8 points, p = 0.5; the test could have seen 6.0 "
            "points");
  for (size_t i = 0; i < 30; ++i) scores[i] = 0;
  EXPECT_EQ(verdict(compare_scores(scores, baseline)),
            "significant loss at 95%: -30.0 ± 9.1 points, p < 0.001");
  EXPECT_EQ(verdict(compare_scores(std::vector<double>{0}, std::vector<double>{1})),
            "-100.0 points, but 1 sample can't be tested");
  EXPECT_EQ(verdict(compare_scores(std::vector<double>(4, 0.0), std::vector<double>(4, 1.0))),
            "no significant loss at 95%: -100.0 ± 0.0 points, p = 0.12; too few samples to tell");
  const std::vector<double> none(9, 0.0);
  EXPECT_EQ(verdict(compare_scores(none, none)),
            "no result: the baseline scores 0, so nothing can be lost");
}

}  // namespace
}  // namespace kvquant
