#include "quant/rounding_feedback.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

namespace kvquant {
namespace {

std::vector<double> random_gram(int64_t dim, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<double> root(static_cast<size_t>(dim * dim)), gram(root.size(), 0.0);
  for (double& x : root) x = normal(rng);
  for (int64_t i = 0; i < dim; ++i) {
    for (int64_t j = 0; j < dim; ++j) {
      for (int64_t k = 0; k < dim / 4; ++k) {  // of low rank: channels are correlated
        gram[i * dim + j] += root[i * dim + k] * root[j * dim + k];
      }
    }
    gram[i * dim + i] += 0.1;
  }
  return gram;
}

double loss(std::span<const double> metric, std::span<const double> error) {
  double sum = 0;
  for (size_t i = 0; i < error.size(); ++i) {
    for (size_t j = 0; j < error.size(); ++j) {
      sum += error[i] * metric[i * error.size() + j] * error[j];
    }
  }
  return sum;
}

TEST(LagMetric, IsTheAverageOfRotatedGrams) {
  constexpr int64_t kDim = 8, kHalf = 4;
  const std::vector<double> angles = {1, 0.3, 0.05, 0.001};
  const std::vector<double> weights = lag_weights(16);
  const std::vector<double> gram = random_gram(kDim, 1);
  const std::vector<double> metric = LagMetric(angles, weights)(gram);
  std::vector<double> expected(kDim * kDim, 0.0);
  for (size_t lag = 0; lag < weights.size(); ++lag) {
    double rotation[kDim][kDim] = {};
    for (int64_t c = 0; c < kHalf; ++c) {
      const double angle = static_cast<double>(lag) * angles[c];
      rotation[c][c] = rotation[c + kHalf][c + kHalf] = std::cos(angle);
      rotation[c][c + kHalf] = -std::sin(angle);
      rotation[c + kHalf][c] = std::sin(angle);
    }
    for (int64_t i = 0; i < kDim; ++i) {
      for (int64_t j = 0; j < kDim; ++j) {
        for (int64_t k = 0; k < kDim; ++k) {
          for (int64_t l = 0; l < kDim; ++l) {
            expected[i * kDim + j] +=
                weights[lag] * rotation[i][k] * gram[k * kDim + l] * rotation[j][l];
          }
        }
      }
    }
  }
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(metric[i], expected[i], 1e-12);
}

TEST(LagMetric, WeightsSumToOneAndFall) {
  const std::vector<double> weights = lag_weights(100);
  EXPECT_NEAR(std::accumulate(weights.begin(), weights.end(), 0.0), 1.0, 1e-12);
  EXPECT_TRUE(std::is_sorted(weights.rbegin(), weights.rend()));
}

TEST(RoundingSteps, TwoChannelsByHand) {
  // M = [4 2; 2 3], both damped by 5%: 4.2 and 3.15. Channel 0 is dearer and goes first; channel 1
  // makes up for its error with M_01 / M_11.
  const RoundingSteps steps =
      fit_rounding_steps(std::vector<double>{4, 2, 2, 3}, std::vector<float>{1, 1});
  EXPECT_EQ(steps.order, (std::vector<uint8_t>{0, 1}));
  EXPECT_NEAR(steps.coefficients[2], 2 / 3.15, 1e-6);
  EXPECT_EQ(steps.coefficients[0], 0.0f);
  EXPECT_EQ(steps.coefficients[3], 0.0f);
}

TEST(RoundingSteps, LargeScalesComeFirst) {
  const RoundingSteps steps =
      fit_rounding_steps(std::vector<double>{4, 2, 2, 3}, std::vector<float>{1, 2});
  EXPECT_EQ(steps.order, (std::vector<uint8_t>{1, 0}));
}

TEST(RoundingSteps, AZeroMetricHasNoFeedback) {
  const RoundingSteps steps =
      fit_rounding_steps(std::vector<double>(16, 0.0), std::vector<float>(4, 1.0f));
  EXPECT_EQ(steps.order, (std::vector<uint8_t>{0, 1, 2, 3}));
  for (const float x : steps.coefficients) EXPECT_EQ(x, 0.0f);
}

TEST(RoundingSteps, LowerTheLossOfRounding) {
  constexpr int64_t kDim = 32;
  const std::vector<double> metric = random_gram(kDim, 2);
  const RoundingSteps steps = fit_rounding_steps(metric, std::vector<float>(kDim, 1.0f));
  std::mt19937 rng(3);
  std::uniform_real_distribution<double> uniform(-20, 20);
  double plain = 0, with_feedback = 0;
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<double> x(kDim), plain_error(kDim), error(kDim, 0.0);
    for (double& value : x) value = uniform(rng);
    for (int64_t i = 0; i < kDim; ++i) {
      const int64_t c = steps.order[i];
      plain_error[c] = x[c] - std::round(x[c]);
      double target = x[c];
      for (int64_t j = 0; j < i; ++j) {
        target += steps.coefficients[i * kDim + j] * error[steps.order[j]];
      }
      error[c] = x[c] - std::round(target);
    }
    plain += loss(metric, plain_error);
    with_feedback += loss(metric, error);
  }
  EXPECT_LT(with_feedback, 0.5 * plain);
  EXPECT_GT(with_feedback, 0.05 * plain);
}

}  // namespace
}  // namespace kvquant
