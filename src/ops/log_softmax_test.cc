#include "ops/log_softmax.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace kvquant {
namespace {

std::vector<float> random_logits(size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

double naive_log_sum_exp(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += std::exp(double{v});
  return std::log(sum);
}

TEST(LogSoftmax, SumAgreesWithDoubleForAllSizes) {
  for (const size_t n : {1, 2, 7, 16, 17, 1023, 1024, 1025, 49152}) {
    const auto x = random_logits(n, static_cast<unsigned>(n));
    EXPECT_NEAR(log_sum_exp(x), naive_log_sum_exp(x), 2e-6) << n;
  }
}

TEST(LogSoftmax, HugeLogitsDoNotOverflow) {
  const std::vector<float> x = {1e4f, 1e4f, -1e4f};
  EXPECT_NEAR(log_sum_exp(x), 1e4 + std::log(2.0), 1e-6);
}

TEST(KlDivergence, AgreesWithDouble) {
  for (const size_t n : {1, 3, 16, 1000, 4096}) {
    const auto p = random_logits(n, 1);
    auto q = p;
    const auto noise = random_logits(n, 2);
    for (size_t i = 0; i < n; ++i) q[i] += 0.05f * noise[i];
    const double p_sum = naive_log_sum_exp(p);
    const double q_sum = naive_log_sum_exp(q);
    double expected = 0;
    for (size_t i = 0; i < n; ++i) {
      expected += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
    }
    EXPECT_NEAR(kl_divergence(p, log_sum_exp(p), q, log_sum_exp(q)), expected, 2e-6) << n;
  }
}

TEST(KlDivergence, IsZeroForTheSameDistribution) {
  const auto p = random_logits(5000, 3);
  const double sum = log_sum_exp(p);
  EXPECT_NEAR(kl_divergence(p, sum, p, sum), 0, 1e-9);
}

TEST(Argmax, TakesTheLowestIndexOnTies) { EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1); }

}  // namespace
}  // namespace kvquant
