#include "cache/key_segments.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr int64_t kRowSize = 96;

class KeySegmentsTest : public testing::Test {
 protected:
  // Rows as a cache hands them over, cut in two.
  struct Rows {
    std::vector<Half> numbers;
    operator HalfRows() const {  // NOLINT(google-explicit-constructor): stands for them
      const std::span all(numbers);
      const size_t first = all.size() / kRowSize / 3 * kRowSize;
      return {all.first(first), all.subspan(first), kRowSize};
    }
  };
  // Normal numbers around `mean`.
  Rows rows(int64_t num_rows, float size = 1, float mean = 0) {
    std::normal_distribution<float> normal(mean, size);
    Rows out;
    for (int64_t i = 0; i < num_rows * kRowSize; ++i) out.numbers.push_back(to_half(normal(rng)));
    return out;
  }
  // Ranges of channel c of a segment that starts with these rows.
  static ChannelRange range_of(const Rows& rows, int64_t channel, double percent) {
    std::vector<float> column;
    for (auto i = static_cast<size_t>(channel); i < rows.numbers.size(); i += kRowSize) {
      column.push_back(to_float(rows.numbers[i]));
    }
    return fit_channel(column, percent);
  }
  static void expect_ranges(const KeySegments& segments, int64_t tile, const Rows& rows,
                            double percent) {
    const auto ranges = segments.ranges(tile);
    for (int64_t c = 0; c < kRowSize; ++c) {
      const ChannelRange expected = range_of(rows, c, percent);
      ASSERT_EQ(ranges[c].bits, expected.scale.bits) << "tile " << tile << ", channel " << c;
      ASSERT_EQ(ranges[kRowSize + c].bits, expected.zero.bits);
      if (percent == 0) continue;
      ASSERT_EQ(ranges[2 * kRowSize + c].bits, expected.low.bits);
      ASSERT_EQ(ranges[3 * kRowSize + c].bits, expected.high.bits);
    }
  }

  std::mt19937 rng{7};
  ThreadPool pool{2, ThreadPool::Pin::kNo};
};

TEST_F(KeySegmentsTest, EveryTileHasTheRangesOfItsSegment) {
  for (const double percent : {0.0, 1.0}) {
    KeySegments segments(kRowSize, percent);
    EXPECT_TRUE(segments.is_empty());
    const auto first = rows(300), second = rows(256, 3, 1), third = rows(500, 0.5f, -1);
    segments.begin(0, first, pool);
    segments.begin(8, second, pool);
    segments.begin(20, third, pool);
    for (const int64_t tile : {0, 3, 7}) expect_ranges(segments, tile, first, percent);
    for (const int64_t tile : {8, 19}) expect_ranges(segments, tile, second, percent);
    for (const int64_t tile : {20, 1000}) expect_ranges(segments, tile, third, percent);
    EXPECT_EQ(segments.memory_bytes(), 3 * kRowSize * (percent > 0 ? 4 : 2) * 2 + 2 * 4);
  }
}

TEST_F(KeySegmentsTest, RowsDriftWhenTooManyLeaveTheRanges) {
  for (const double percent : {0.0, 1.0, 5.0}) {
    KeySegments segments(kRowSize, percent);
    segments.begin(0, rows(2000), pool);
    EXPECT_FALSE(segments.have_drifted(8, rows(512), pool)) << percent;
    EXPECT_FALSE(segments.have_drifted(8, rows(512, 0.1f), pool)) << percent;
    EXPECT_TRUE(segments.have_drifted(8, rows(512, 2), pool)) << percent;
    EXPECT_TRUE(segments.have_drifted(8, rows(512, 1, 2), pool)) << percent;
    EXPECT_TRUE(segments.have_drifted(8, rows(512, 1, -2), pool)) << percent;
  }
}

TEST_F(KeySegmentsTest, FewRowsAndShortSegmentsAreLeftAlone) {
  KeySegments segments(kRowSize, 1);
  segments.begin(0, rows(512), pool);
  segments.begin(10, rows(512), pool);
  EXPECT_FALSE(segments.have_drifted(30, rows(KeySegments::kMinFitRows - 1, 9), pool));
  EXPECT_TRUE(segments.have_drifted(30, rows(KeySegments::kMinFitRows, 9), pool));
  EXPECT_FALSE(segments.have_drifted(10 + KeySegments::kMinTiles - 1, rows(512, 9), pool));
  EXPECT_TRUE(segments.have_drifted(10 + KeySegments::kMinTiles, rows(512, 9), pool));
}

TEST_F(KeySegmentsTest, TilesComeWithTheirRanges) {
  const auto a = rows(300), b = rows(300, 2), c = rows(300, 3);
  KeySegments from(kRowSize, 1);
  from.begin(0, a, pool);
  from.begin(10, b, pool);
  from.begin(20, c, pool);
  KeySegments empty(kRowSize, 1);
  empty.append(from, 5, 10, 0);  // five tiles of a, five of b
  expect_ranges(empty, 0, a, 1);
  expect_ranges(empty, 4, a, 1);
  expect_ranges(empty, 5, b, 1);
  empty.append(from, 12, 3, 10);  // b goes on
  EXPECT_EQ(empty.starts().size(), 1u);
  empty.append(empty, 0, 7, 13);  // a and b again
  expect_ranges(empty, 12, b, 1);
  expect_ranges(empty, 13, a, 1);
  expect_ranges(empty, 17, a, 1);
  expect_ranges(empty, 18, b, 1);
  EXPECT_EQ(empty.starts().size(), 3u);
}

}  // namespace
}  // namespace kvquant
