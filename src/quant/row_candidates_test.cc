#include "quant/row_candidates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

namespace kvquant {
namespace {

TEST(RowCandidates, HoldTheSoughtValuesAndFewOthers) {
  std::mt19937 rng(2);
  std::normal_distribution<float> normal;
  for (const int size : {1, 7, 64, 100, 1024, 4096, 5000}) {
    for (const int count : {1, 2, 7, 20, 48}) {
      if (count > size) continue;
      std::vector<float> row(size);
      for (float& x : row) x = normal(rng);
      std::vector<float> sorted = row;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      RowCandidates found;
      ASSERT_TRUE(find_candidates(row, count, found));
      for (int i = 0; i < size; ++i) {
        const std::vector<int32_t> top(found.top, found.top + found.num_top);
        const std::vector<int32_t> bottom(found.bottom, found.bottom + found.num_bottom);
        if (row[i] >= sorted[count - 1]) {
          EXPECT_TRUE(std::binary_search(top.begin(), top.end(), i));
        }
        if (row[i] <= sorted[size - count]) {
          EXPECT_TRUE(std::binary_search(bottom.begin(), bottom.end(), i));
        }
      }
      EXPECT_LE(found.num_top, 5 * count + 40);
      const RowExtremes extremes = row_extremes(row);
      EXPECT_EQ(extremes.high, sorted.front());
      EXPECT_EQ(extremes.low, sorted.back());
    }
  }
}

TEST(RowCandidates, GiveUpWhenTooManyAreTied) {
  RowCandidates found;
  EXPECT_FALSE(find_candidates(std::vector<float>(257, 1.0f), 1, found));
  EXPECT_TRUE(find_candidates(std::vector<float>(256, 1.0f), 1, found));
  EXPECT_EQ(found.num_top, 256);
  EXPECT_EQ(found.bottom[255], 255);
  EXPECT_FALSE(find_candidates(std::vector<float>(100, 1.0f), 49, found));
}

}  // namespace
}  // namespace kvquant
