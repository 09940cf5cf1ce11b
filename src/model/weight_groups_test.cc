#include "model/weight_groups.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvquant {
namespace {

struct Groups {
  std::vector<uint8_t> codes;
  std::vector<Half> scales, offsets;

  explicit Groups(const std::vector<float>& row)
      : codes(row.size(), 77), scales(row.size() / 32), offsets(row.size() / 32) {
    quantize_to_groups(row, {codes, scales, offsets});
  }
  float weight(size_t i) const {
    return to_float(scales[i / 32]) * static_cast<float>(codes[i]) + to_float(offsets[i / 32]);
  }
};

TEST(WeightGroups, RoundToTheNearestOf256Steps) {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  for (const float size : {1e-2f, 1.0f, 1000.0f}) {
    std::vector<float> row(320);
    for (float& w : row) w = size * normal(rng);
    const Groups groups(row);
    for (size_t group = 0; group < row.size(); group += 32) {
      const auto begin = row.begin() + static_cast<int64_t>(group);
      const auto [least, largest] = std::minmax_element(begin, begin + 32);
      const float bound = 0.51f * (*largest - *least) / 255 + std::abs(*least) / 2048;
      for (size_t i = group; i < group + 32; ++i) {
        EXPECT_NEAR(groups.weight(i), row[i], bound) << size;
      }
    }
  }
}

TEST(WeightGroups, SpreadCodesOverTheRangeOfAGroup) {
  std::vector<float> row(32);
  for (size_t i = 0; i < row.size(); ++i) row[i] = -1.0f + static_cast<float>(i) / 16;
  const Groups groups(row);
  EXPECT_EQ(groups.codes.front(), 0);
  EXPECT_EQ(groups.codes.back(), 255);
  EXPECT_EQ(groups.codes[16], 132);  // 255 * 16 / 31, rounded
}

TEST(WeightGroups, KeepWhatIsConstant) {
  for (const float value : {0.0f, -0.5f, 3.0f}) {
    const Groups groups(std::vector<float>(32, value));
    EXPECT_EQ(groups.weight(7), value);
  }
}

TEST(WeightGroups, ShowWhatIsNotFiniteOrTooLarge) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float value :
       {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 1e8f, -1e6f}) {
    std::vector<float> row(64, 0.25f);
    row[40] = value;
    const Groups groups(row);
    EXPECT_EQ(groups.weight(0), 0.25f) << value;
    EXPECT_TRUE(std::isnan(groups.weight(40))) << value;
  }
}

}  // namespace
}  // namespace kvquant
