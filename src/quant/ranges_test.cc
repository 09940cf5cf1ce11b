#include "quant/ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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

TEST(FitChannels, HaveTheRangesOfTheirColumns) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> few(-2, 2);  // ties, and zeros of both signs
  for (const int64_t num_channels : {1, 7, 8, 16, 30, 96}) {
    for (const int64_t num_rows : {1, 2, 17, 448, 1000}) {
      std::vector<std::vector<Half>> numbers(num_rows);
      std::vector<const Half*> rows;
      for (std::vector<Half>& row : numbers) {
        for (int64_t c = 0; c < num_channels; ++c) {
          const int tied = few(random);
          row.push_back(c % 3 == 0 ? to_half(tied == 0 ? -0.0f : static_cast<float>(tied / 2))
                                   : to_half(normal(random) * (c % 3 == 1 ? 1.0f : 1e-6f)));
        }
        rows.push_back(row.data());
      }
      for (const double percent : {0.0, 0.1, 0.5, 1.0, 2.0, 5.0}) {
        std::vector<ChannelRange> ranges(num_channels);
        fit_channels(rows, percent, ranges);
        for (int64_t c = 0; c < num_channels; ++c) {
          std::vector<float> column;
          for (const Half* row : rows) column.push_back(to_float(row[c]));
          const ChannelRange expected = fit_channel(column, percent);
          ASSERT_EQ(ranges[c].scale.bits, expected.scale.bits) << num_rows << " " << percent;
          ASSERT_EQ(ranges[c].zero.bits, expected.zero.bits);
          ASSERT_EQ(ranges[c].low.bits, expected.low.bits);
          ASSERT_EQ(ranges[c].high.bits, expected.high.bits);
        }
      }
    }
  }
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

// The definition: a stable sort, and the range of what is not marked.
RowRange fit_by_sorting(const std::vector<float>& row, int64_t count, std::vector<uint8_t>& marks) {
  marks.assign(row.size(), 0);
  for (const bool largest : {true, false}) {
    std::vector<size_t> order;
    for (size_t i = 0; i < row.size(); ++i) {
      if (marks[i] == 0) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return largest ? row[a] > row[b] : row[a] < row[b];
    });
    for (int64_t i = 0; i < count; ++i) marks[order[i]] = 1;
  }
  float low = INFINITY, high = -INFINITY;
  for (size_t i = 0; i < row.size(); ++i) {
    if (marks[i] == 0) low = std::min(low, row[i]);
    if (marks[i] == 0) high = std::max(high, row[i]);
  }
  return {to_half(0.5f * (high - low) + 0.0f), to_half(0.5f * (low + high) + 0.0f)};
}

enum class RowKind { kFewNumbers, kHeavyTailed, kZeros, kConstant, kAscending };

TEST(FitRow, EqualsAStableSortForAnyRow) {
  std::mt19937 rng(5);
  std::student_t_distribution<float> heavy_tailed(2);
  for (const int size : {1, 3, 8, 63, 64, 65, 192, 240, 1024, 3000, 8192}) {
    for (const int64_t count : {0, 1, 5, size / 100 + 1, size / 40 + 1, (size - 1) / 2}) {
      if (2 * count >= size) continue;
      for (const RowKind kind : {RowKind::kFewNumbers, RowKind::kHeavyTailed, RowKind::kZeros,
                                 RowKind::kConstant, RowKind::kAscending}) {
        std::vector<float> row(size);
        for (int i = 0; i < size; ++i) {
          switch (kind) {
            case RowKind::kFewNumbers: row[i] = static_cast<float>(rng() % 100) - 50; break;
            case RowKind::kHeavyTailed: row[i] = round_to_half(heavy_tailed(rng)); break;
            case RowKind::kZeros: row[i] = rng() % 2 == 0 ? 0.0f : -0.0f; break;
            case RowKind::kConstant: row[i] = -3; break;
            case RowKind::kAscending: row[i] = static_cast<float>(i); break;
          }
        }
        std::vector<uint8_t> marks(size, 7), expected;
        const RowRange range = fit_row(row, count, marks);
        const RowRange sorted = fit_by_sorting(row, count, expected);
        const auto where = ::testing::Message() << "size " << size << " count " << count << " kind "
                                                << static_cast<int>(kind);
        EXPECT_EQ(marks, expected) << where;
        EXPECT_EQ(range.scale, sorted.scale) << where;
        EXPECT_EQ(range.zero, sorted.zero) << where;
      }
    }
  }
}

}  // namespace
}  // namespace kvquant
