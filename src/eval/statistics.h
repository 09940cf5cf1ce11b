// What can be said about a score from a sample of it: intervals, and tests of two scores taken on
// the same samples. Quantiles are Boost.Math's.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace kvquant {

// Mean and sample standard deviation (n - 1; 0 for fewer than two values).
struct Moments {
  int64_t count = 0;
  double mean = 0, sd = 0;
  double standard_error() const;  // of the mean; 0 for fewer than two values
};
Moments moments(std::span<const double> values);

struct Interval {
  double low = 0, high = 0;
};

// Wilson's score interval of a share (JASA 22, 1927), of `num_right` out of `count` >= 1. Requires
// 0 <= num_right <= count; a fraction is allowed: scores between right and wrong.
Interval wilson_interval(double num_right, int64_t count, double confidence = 0.95);

// Student's t-test of paired differences (this minus baseline), two-sided.
struct PairedTest {
  int64_t count = 0;  // pairs
  double mean = 0;    // of the differences
  double sd = 0;
  double t = 0;  // infinite where all pairs differ by the same amount
  double p = 1;
  Interval confidence;    // of the mean
  double detectable = 0;  // the loss that this test finds in four of five cases, see below
};
// Requires spans of the same size, at least 2. `detectable` is (t(1 - alpha/2) + t(0.8)) standard
// errors; where no pair differs, the largest share of lost samples that would show none in one of
// twenty such samples: 1 - 0.05^(1/n).
PairedTest paired_t_test(std::span<const double> scores, std::span<const double> baseline,
                         double confidence = 0.95);

// McNemar's exact test of right and wrong on the same samples (Psychometrika 12, 1947): among the
// samples where the two disagree, each is as likely to be right. Two-sided.
struct McNemarTest {
  int64_t num_lost = 0;    // the baseline was right, this is wrong
  int64_t num_gained = 0;  // the other way round
  double p = 1;
};
McNemarTest mcnemar_test(int64_t num_lost, int64_t num_gained);

// Scores against a baseline's, on the same samples. Where all scores are 0 or 1, McNemar's p
// decides, else the t-test's; and no loss is detectable below the one that McNemar's test finds
// when nothing was gained (6 samples at 95%).
struct Comparison {
  PairedTest paired;
  double baseline_mean = 0;
  bool is_right_or_wrong = false;
  McNemarTest mcnemar;                    // is_right_or_wrong
  double p = 1;                           // what decides
  bool is_loss = false, is_gain = false;  // significant at the confidence
  bool is_tested = false;                 // there were two samples at least
  double confidence_level = 0.95;
};
// Throws std::invalid_argument when there are not as many scores of each.
Comparison compare_scores(std::span<const double> scores, std::span<const double> baseline,
                          double confidence = 0.95);

// One plain sentence; points are hundredths: "no significant loss at 95%: -0.2 ± 0.4 points,
// p = 0.31; the test could have seen 0.9 points". Where the baseline scores 0, nothing can be lost,
// and it says that.
std::string verdict(const Comparison& comparison);

}  // namespace kvquant
