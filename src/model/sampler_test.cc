#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace kvquant {
namespace {

SamplerOptions plain(float temperature) {
  return {.temperature = temperature, .top_k = 0, .top_p = 1, .min_p = 0};
}

TEST(Sampler, TemperatureZeroIsGreedy) {
  Sampler sampler(plain(0));
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 2, 1}, {}), 1);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f};
  Sampler sampler(plain(0.5f));
  std::map<int32_t, int> counts;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.sample(logits, {})];
  const double z = 1 + std::exp(2) + std::exp(4);
  EXPECT_NEAR(counts[0] / double{kDraws}, 1 / z, 0.01);
  EXPECT_NEAR(counts[1] / double{kDraws}, std::exp(2) / z, 0.01);
  EXPECT_NEAR(counts[2] / double{kDraws}, std::exp(4) / z, 0.01);
}

TEST(Sampler, TheSameSeedGivesTheSameTokens) {
  const std::vector<float> logits(50, 0.0f);
  Sampler a(plain(1)), b(plain(1));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.sample(logits, {}), b.sample(logits, {}));
}

TEST(Sampler, CutsLeaveOnlyTheLikely) {
  const std::vector<float> logits = {3, 2, 1, 0};  // probabilities .64 .24 .09 .03
  auto options = plain(1);
  const auto largest = [&] {
    Sampler sampler(options);
    int32_t max = 0;
    for (int i = 0; i < 2000; ++i) max = std::max(max, sampler.sample(logits, {}));
    return max;
  };
  EXPECT_EQ(largest(), 3);
  options.top_k = 2;
  EXPECT_EQ(largest(), 1);
  options = plain(1);
  options.top_p = 0.8f;
  EXPECT_EQ(largest(), 1);
  options = plain(1);
  options.min_p = 0.1f;
  EXPECT_EQ(largest(), 2);
}

TEST(Sampler, RepetitionsArePenalisedWithinTheWindowOnly) {
  auto options = plain(0);
  options.repeat_penalty = 2;
  options.repeat_last = 2;
  Sampler sampler(options);
  const std::vector<float> logits = {2.0f, 1.5f, -1.0f};
  EXPECT_EQ(sampler.sample(logits, std::vector<int32_t>{0, 0}), 1);
  EXPECT_EQ(sampler.sample(logits, std::vector<int32_t>{0, 2, 2}), 0);
}

TEST(Sampler, OptionsOutOfRangeAreRefusedByName) {
  auto options = plain(1);
  options.top_p = 0;
  EXPECT_THROW(Sampler{options}, std::invalid_argument);
  options = plain(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THROW(Sampler{options}, std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
