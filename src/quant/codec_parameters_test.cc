#include "quant/codec_parameters.h"

#include <gtest/gtest.h>

#include "kvquant/codebook.h"

namespace kvquant {
namespace {

KeyCalibration two_channels() {
  KeyCalibration key;
  for (size_t width = 0; width < kNumCodebooks; ++width) {
    for (int64_t i = 0; i < kNumOutlierPercents; ++i) {
      for (const float x : {20.0f, 30.0f}) {
        const auto step = static_cast<float>(i);
        key.scale[width].push_back(to_half(x - step + static_cast<float>(width)));
        key.zero[width].push_back(to_half(-x));
        key.low[width].push_back(to_half(step - 2 * x));
        key.high[width].push_back(to_half(2 * x - step));
      }
    }
  }
  for (const float x : {4.0f, 5.0f, 8.0f, 9.0f}) {
    key.uniform_scale.push_back(to_half(x));
    key.uniform_zero.push_back(to_half(-x));
  }
  return key;
}

TEST(CodecParameters, RangesAreThoseOfTheWidthAndPercent) {
  const std::vector<Half> ranges = nuq_key_ranges(two_channels(), 4, 1);  // the fifth percent
  const std::vector<float> expected = {18, 28, -20, -30, -36, -56, 36, 56};
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(to_float(ranges[i]), expected[i]) << i;
  EXPECT_EQ(to_float(nuq_key_ranges(two_channels(), 2, 1)[0]), 16.0f);
}

TEST(CodecParameters, PercentsBetweenAreInterpolated) {
  const std::vector<Half> ranges = nuq_key_ranges(two_channels(), 4, 1.5);
  EXPECT_EQ(to_float(ranges[0]), 17.5f);
  EXPECT_EQ(to_float(ranges[4]), -35.5f);
  EXPECT_EQ(to_float(nuq_key_ranges(two_channels(), 4, 5)[4]), -33.0f);
}

TEST(CodecParameters, UniformCodesHaveRangesOfTheirOwn) {
  EXPECT_EQ(to_float(uniform_key_ranges(two_channels(), 4)[1]), 5.0f);
  EXPECT_EQ(to_float(uniform_key_ranges(two_channels(), 8)[0]), 8.0f);
  EXPECT_EQ(to_float(uniform_key_ranges(two_channels(), 8)[3]), -9.0f);
}

TEST(CodecParameters, LevelsBetweenTwoPercentsAreAscending) {
  std::vector<float> set;
  for (int64_t i = 0; i < kNumOutlierPercents; ++i) {
    for (const float x : create_heuristic_codebook("nuq2")) {
      set.push_back(x * (1 - 0.05f * static_cast<float>(i)));
    }
  }
  const std::vector<float> levels = calibrated_levels(set, 0.75);
  const std::vector<float> base = create_heuristic_codebook("nuq2");
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(levels[i], base[i] * 0.825f, 1e-6);
}

TEST(CodecParameters, LevelsOfHeadsFollowOneAnother) {
  std::vector<float> set;  // [P, 2 heads, 4]
  for (int64_t i = 0; i < kNumOutlierPercents; ++i) {
    for (const float head : {1.0f, 0.5f}) {
      for (const float x : {-0.8f, -0.3f, 0.3f, 0.8f}) {
        set.push_back(x * head * (1 - 0.05f * static_cast<float>(i)));
      }
    }
  }
  const std::vector<float> levels = calibrated_levels(set, 0.75);
  ASSERT_EQ(levels.size(), 8u);
  EXPECT_NEAR(levels[3], 0.8f * 0.825f, 1e-6);
  EXPECT_NEAR(levels[4], -0.4f * 0.825f, 1e-6);
}

}  // namespace
}  // namespace kvquant
