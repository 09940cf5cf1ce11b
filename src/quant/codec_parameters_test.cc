#include "quant/codec_parameters.h"

#include <gtest/gtest.h>

#include "kvquant/codebook.h"

namespace kvquant {
namespace {

KeyCalibration two_channels() {
  KeyCalibration key;
  for (int64_t i = 0; i < kNumRangePercents; ++i) {
    for (const float x : {1.0f, 2.0f}) {
      key.scale.push_back(to_half(x + static_cast<float>(i)));
      key.zero.push_back(to_half(-x));
    }
  }
  for (int64_t i = 0; i < kNumOutlierPercents; ++i) {
    for (const float x : {20.0f, 30.0f}) {
      key.low.push_back(to_half(static_cast<float>(i) - x));
      key.high.push_back(to_half(x - static_cast<float>(i)));
    }
  }
  return key;
}

TEST(CodecParameters, RangesAndThresholdsComeFromTheirOwnPercents) {
  const std::vector<Half> ranges = key_ranges(two_channels(), 4, 1);
  const auto range = static_cast<float>(key_range_index(4, 1));
  EXPECT_EQ(to_float(ranges[0]), 1 + range);
  EXPECT_EQ(to_float(ranges[1]), 2 + range);
  EXPECT_EQ(to_float(ranges[2]), -1.0f);
  EXPECT_EQ(to_float(ranges[4]), -16.0f);  // 1% is the fifth
  EXPECT_EQ(to_float(ranges[7]), 26.0f);
}

TEST(CodecParameters, PercentsBetweenAreInterpolated) {
  const std::vector<Half> ranges = key_ranges(two_channels(), 4, 1.5);
  EXPECT_EQ(to_float(ranges[4]), -15.5f);
  EXPECT_EQ(to_float(key_ranges(two_channels(), 4, 5)[4]), -13.0f);
}

TEST(CodecParameters, EightBitsCoverEverything) {
  EXPECT_EQ(key_range_index(8, 0), 0);
  EXPECT_EQ(kRangePercents[0], 0);
}

TEST(CodecParameters, ARangeIsNeverWiderThanTheOutliersLeave) {
  for (const int bits : {2, 3, 4}) {
    for (const double percent : {0.0, 0.1, 0.3, 0.5, 1.0, 1.7, 2.0, 3.0, 5.0}) {
      const auto index = static_cast<size_t>(key_range_index(bits, percent));
      EXPECT_GE(kRangePercents[index], percent);
      if (bits == 2) continue;
      EXPECT_LE(index, static_cast<size_t>(key_range_index(bits - 1, percent)));
    }
  }
}

TEST(CodecParameters, LevelsBetweenTwoPercentsAreAscending) {
  std::vector<float> set;
  for (int64_t i = 0; i < kNumOutlierPercents; ++i) {
    for (const float x : create_heuristic_codebook("nuq2")) {
      set.push_back(x * (1 - 0.05f * static_cast<float>(i)));
    }
  }
  const std::vector<float> levels = calibrated_levels(set, 2, 0.75);
  const std::vector<float> base = create_heuristic_codebook("nuq2");
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(levels[i], base[i] * 0.825f, 1e-6);
}

}  // namespace
}  // namespace kvquant
