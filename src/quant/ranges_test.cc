#include "quant/ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace kvquant {
namespace {

TEST(FitChannel, LeavesOutTheTailsAndCentresTheRest) {
  std::vector<float> values(400);
  std::iota(values.begin(), values.end(), 0.0f);
  std::shuffle(values.begin(), values.end(), std::mt19937(3));
  const ChannelRange range = fit_channel(values, 1);  // two on either end
  EXPECT_EQ(to_float(range.low), 2);
  EXPECT_EQ(to_float(range.high), 397);
  EXPECT_EQ(to_float(range.scale), 197.5f);
  EXPECT_EQ(to_float(range.zero), 199.5f);
}

TEST(FitChannel, WithoutOutliersTheRangeIsThatOfTheValues) {
  std::vector<float> values = {3, -1, 2, 0.5f};
  const ChannelRange range = fit_channel(values, 0);
  EXPECT_EQ(to_float(range.low), -1);
  EXPECT_EQ(to_float(range.high), 3);
  EXPECT_EQ(to_float(range.scale), 2);
  EXPECT_EQ(to_float(range.zero), 1);
}

TEST(FitChannel, SortedValuesHaveTheSameRange) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const size_t size : {1, 2, 39, 40, 41, 1000}) {
    std::vector<float> values(size);
    for (float& x : values) x = round_to_half(normal(random));
    std::vector<float> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    for (const double percent : {0.0, 0.1, 1.0, 5.0}) {
      const ChannelRange expected = fit_channel(values, percent);
      const ChannelRange range = fit_sorted_channel(sorted, percent);
      EXPECT_EQ(range.scale, expected.scale);
      EXPECT_EQ(range.zero, expected.zero);
      EXPECT_EQ(range.low, expected.low);
      EXPECT_EQ(range.high, expected.high);
    }
  }
}

TEST(FitChannel, AConstantHasScaleZero) {
  std::vector<float> values(5, -2.5f);
  const ChannelRange range = fit_channel(values, 5);
  EXPECT_EQ(range.scale.bits, 0);
  EXPECT_EQ(to_float(range.zero), -2.5f);
}

TEST(FitRow, TakesTheLargestAndSmallestWithTiesToTheLowerIndex) {
  const std::vector<float> row = {1, 5, 5, 5, 0, -3, -3, 2, 1, 0};
  std::vector<uint8_t> marks(row.size());
  const RowRange range = fit_row(row, 2, marks);
  EXPECT_EQ(marks, (std::vector<uint8_t>{0, 1, 1, 0, 0, 1, 1, 0, 0, 0}));
  EXPECT_EQ(to_float(range.scale), 2.5f);  // 0 .. 5
  EXPECT_EQ(to_float(range.zero), 2.5f);
}

TEST(FitRow, AConstantRowMarksTheFirstAndIsExact) {
  const std::vector<float> row(9, 7.0f);
  std::vector<uint8_t> marks(row.size());
  const RowRange range = fit_row(row, 2, marks);
  EXPECT_EQ(marks, (std::vector<uint8_t>{1, 1, 1, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(range.scale.bits, 0);
  EXPECT_EQ(to_float(range.zero), 7.0f);
}

TEST(FitRow, EqualsAStableSortAtAnySize) {
  std::mt19937 rng(5);
  for (const int size : {8, 65, 192, 3000, 8192}) {
    for (const int64_t count : {0, 1, size / 40 + 1}) {
      std::vector<float> row(size);
      for (float& x : row) x = static_cast<float>(rng() % 100) - 50;
      std::vector<uint8_t> marks(size), expected(size, 0);
      fit_row(row, count, marks);
      std::vector<int> order(size);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
      for (int64_t i = 0; i < count; ++i) expected[order[i]] = 1;
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] < row[b]; });
      int64_t taken = 0;
      for (size_t i = 0; taken < count; ++i) {
        if (expected[order[i]] != 0) continue;
        expected[order[i]] = 1;
        ++taken;
      }
      EXPECT_EQ(marks, expected) << "size " << size << " count " << count;
    }
  }
}

}  // namespace
}  // namespace kvquant
