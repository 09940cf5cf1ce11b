#include "eval/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/math/distributions/binomial.hpp>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr double kPower = 0.8;  // of `detectable`

void check_confidence(double confidence) {
  check_arg(0 < confidence && confidence < 1, "statistics: a confidence lies between 0 and 1");
}

bool is_right_or_wrong(std::span<const double> scores) {
  return std::all_of(scores.begin(), scores.end(), [](double x) { return x == 0 || x == 1; });
}

}  // namespace

double Moments::standard_error() const {
  return count < 2 ? 0 : sd / std::sqrt(static_cast<double>(count));
}

Moments moments(std::span<const double> values) {
  Moments out;
  out.count = static_cast<int64_t>(values.size());
  if (values.empty()) return out;
  double sum = 0;
  for (const double x : values) sum += x;
  out.mean = sum / static_cast<double>(values.size());
  if (values.size() < 2) return out;
  double squares = 0;
  for (const double x : values) squares += (x - out.mean) * (x - out.mean);
  out.sd = std::sqrt(squares / static_cast<double>(values.size() - 1));
  return out;
}

Interval wilson_interval(double num_right, int64_t count, double confidence) {
  check_confidence(confidence);
  check_arg(count >= 1 && num_right >= 0 && num_right <= static_cast<double>(count),
            "wilson_interval: the right ones must be among at least one sample");
  const double z = boost::math::quantile(boost::math::normal(), 0.5 + confidence / 2);
  const auto n = static_cast<double>(count);
  const double share = num_right / n;
  const double scale = 1 / (1 + z * z / n);
  const double middle = scale * (share + z * z / (2 * n));
  const double half = scale * z * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n));
  // Rounding must not push the ends of "none" and "all" past 0 and 1.
  return {num_right == 0 ? 0 : middle - half, share == 1 ? 1 : middle + half};
}

PairedTest paired_t_test(std::span<const double> scores, std::span<const double> baseline,
                         double confidence) {
  check_confidence(confidence);
  check_arg(scores.size() == baseline.size() && scores.size() >= 2,
            "paired_t_test: needs two pairs at least");
  std::vector<double> differences(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) differences[i] = scores[i] - baseline[i];
  const Moments m = moments(differences);
  PairedTest out;
  out.count = m.count;
  out.mean = m.mean;
  out.sd = m.sd;
  const boost::math::students_t student(static_cast<double>(m.count - 1));
  const double alpha = 1 - confidence;
  const double error = m.standard_error();
  // Sums of equal differences may be off by an ulp: that is no spread.
  if (error <= std::abs(m.mean) * 1e-12) {
    out.sd = 0;
    out.confidence = {m.mean, m.mean};
    if (m.mean == 0) {
      out.detectable = 1 - std::pow(alpha, 1 / static_cast<double>(m.count));
    } else {
      out.t = std::copysign(std::numeric_limits<double>::infinity(), m.mean);
      out.p = 0;
    }
    return out;
  }
  out.t = m.mean / error;
  out.p = 2 * boost::math::cdf(boost::math::complement(student, std::abs(out.t)));
  const double quantile = boost::math::quantile(boost::math::complement(student, alpha / 2));
  out.confidence = {m.mean - quantile * error, m.mean + quantile * error};
  out.detectable = (quantile + boost::math::quantile(student, kPower)) * error;
  return out;
}

McNemarTest mcnemar_test(int64_t num_lost, int64_t num_gained) {
  check_arg(num_lost >= 0 && num_gained >= 0, "mcnemar_test: counts can't be negative");
  McNemarTest out{num_lost, num_gained, 1};
  const int64_t count = num_lost + num_gained;
  if (count == 0) return out;
  const boost::math::binomial fair(static_cast<double>(count), 0.5);
  const auto fewer = static_cast<double>(std::min(num_lost, num_gained));
  out.p = std::min(1.0, 2 * boost::math::cdf(fair, fewer));
  return out;
}

Comparison compare_scores(std::span<const double> scores, std::span<const double> baseline,
                          double confidence) {
  check_confidence(confidence);
  check_arg(scores.size() == baseline.size(),
            fmt::format("compare_scores: {} scores, but {} of the baseline", scores.size(),
                        baseline.size()));
  Comparison out;
  out.confidence_level = confidence;
  out.baseline_mean = moments(baseline).mean;
  out.is_right_or_wrong = is_right_or_wrong(scores) && is_right_or_wrong(baseline);
  out.is_tested = scores.size() >= 2;
  if (!out.is_tested) {
    if (scores.size() == 1) out.paired.mean = scores[0] - baseline[0];
    out.paired.count = static_cast<int64_t>(scores.size());
    return out;
  }
  out.paired = paired_t_test(scores, baseline, confidence);
  out.p = out.paired.p;
  if (out.is_right_or_wrong) {
    int64_t lost = 0, gained = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      lost += scores[i] < baseline[i];
      gained += scores[i] > baseline[i];
    }
    out.mcnemar = mcnemar_test(lost, gained);
    out.p = out.mcnemar.p;
    const double least = std::floor(std::log2(2 / (1 - confidence))) + 1;  // 2^(1-k) < alpha
    out.paired.detectable =
        std::max(out.paired.detectable, least / static_cast<double>(scores.size()));
  }
  const bool is_significant = out.p < 1 - confidence;
  out.is_loss = is_significant && out.paired.mean < 0;
  out.is_gain = is_significant && out.paired.mean > 0;
  return out;
}

std::string verdict(const Comparison& comparison) {
  const PairedTest& paired = comparison.paired;
  if (!comparison.is_tested) {
    return fmt::format("{:+.1f} points, but {} sample{} can't be tested", 100 * paired.mean,
                       paired.count, paired.count == 1 ? "" : "s");
  }
  if (comparison.baseline_mean == 0 && !comparison.is_gain) {
    return "no result: the baseline scores 0, so nothing can be lost";
  }
  const double half = (paired.confidence.high - paired.confidence.low) / 2;
  std::string head = "no significant loss";
  if (comparison.is_loss) head = "significant loss";
  if (comparison.is_gain) head = "significant gain";
  std::string out = fmt::format(
      "{} at {:g}%: {:+.1f} ± {:.1f} points, p {}", head, 100 * comparison.confidence_level,
      // "-0.0" would say that there was a loss
      std::abs(paired.mean) < 0.0005 ? 0.0 : 100 * paired.mean, 100 * half,
      comparison.p < 0.001 ? "< 0.001" : fmt::format("= {:.2g}", comparison.p));
  if (!comparison.is_loss && !comparison.is_gain) {
    out += paired.detectable > 1
               ? "; too few samples to tell"
               : fmt::format("; the test could have seen {:.1f} points", 100 * paired.detectable);
  }
  return out;
}

}  // namespace kvquant
