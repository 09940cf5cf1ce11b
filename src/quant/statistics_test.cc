#include "quant/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "base/half.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

struct Data {
  int64_t num_rows, num_heads, head_dim;
  std::vector<float> values;

  TensorView<const float, 3> view() const {
    return row_major<const float, 3>(values.data(), {num_rows, num_heads, head_dim});
  }
};

Data normal_data(int64_t num_rows, int64_t num_heads, int64_t head_dim) {
  Data data{num_rows, num_heads, head_dim, {}};
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < num_rows * num_heads * head_dim; ++i) {
    data.values.push_back(normal(random) * static_cast<float>(1 + i % 7) +
                          static_cast<float>(i % head_dim));
  }
  return data;
}

// One channel's values without the rows that are left out.
std::vector<float> channel_of(const Data& data, const SampleRows& rows, int64_t head, int64_t c) {
  std::vector<float> out;
  for (int64_t t = 0; t < data.num_rows; ++t) {
    if (t % rows.seq_len >= rows.num_skipped) out.push_back(data.view()(t, head, c));
  }
  return out;
}

TEST(ChannelStatistics, EqualTheDefinitions) {
  ThreadPool pool(2);
  for (const int64_t head_dim : {8, 16, 24, 80}) {
    const Data data = normal_data(3 * 70, 2, head_dim);
    const SampleRows rows{70, 4};
    const ChannelStatistics s = channel_statistics(data.view(), rows, pool);
    const auto width = static_cast<size_t>(2 * head_dim);
    ASSERT_EQ(s.mean.size(), width);
    ASSERT_EQ(s.quantiles.size(), width * kNumQuantiles);
    for (size_t at = 0; at < width; ++at) {
      const auto x = channel_of(data, rows, static_cast<int64_t>(at) / head_dim,
                                static_cast<int64_t>(at) % head_dim);
      double sum = 0, squares = 0;
      for (const float v : x) sum += v;
      const double mean = sum / static_cast<double>(x.size());
      for (const float v : x) squares += (v - mean) * (v - mean);
      EXPECT_NEAR(s.mean[at], mean, 1e-5);
      EXPECT_NEAR(s.variance[at], squares / static_cast<double>(x.size()), 1e-4);
      std::vector<float> sorted;
      for (const float v : x) sorted.push_back(round_to_half(v));
      std::sort(sorted.begin(), sorted.end());
      EXPECT_EQ(s.minimum[at], sorted.front());
      EXPECT_EQ(s.maximum[at], sorted.back());
      for (int64_t q = 0; q < kNumQuantiles; ++q) {
        const double rank = kQuantiles[q] / 100 * static_cast<double>(sorted.size() - 1);
        EXPECT_EQ(s.quantiles[static_cast<size_t>(q) * width + at],
                  sorted[static_cast<size_t>(std::llround(rank))]);
      }
    }
  }
}

TEST(ChannelStatistics, ShowsEveryChannelSortedOnce) {
  ThreadPool pool(2);
  const Data data = normal_data(100, 2, 24);
  const SampleRows rows{50, 1};
  std::vector<std::vector<float>> seen(48);
  channel_statistics(data.view(), rows, pool, [&](int64_t channel, std::span<const float> sorted) {
    auto& mine = seen[static_cast<size_t>(channel)];
    EXPECT_TRUE(mine.empty());
    mine.assign(sorted.begin(), sorted.end());
  });
  for (int64_t channel = 0; channel < 48; ++channel) {
    auto expected = channel_of(data, rows, channel / 24, channel % 24);
    for (float& x : expected) x = round_to_half(x);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(seen[static_cast<size_t>(channel)], expected);
  }
}

TEST(ChannelStatistics, AreTheSameAtAnyNumberOfThreads) {
  const Data data = normal_data(300, 3, 40);
  ThreadPool one(1), three(3);
  const auto a = channel_statistics(data.view(), {100, 4}, one);
  const auto b = channel_statistics(data.view(), {100, 4}, three);
  EXPECT_EQ(a.mean, b.mean);
  EXPECT_EQ(a.variance, b.variance);
  EXPECT_EQ(a.quantiles, b.quantiles);
  EXPECT_EQ(second_moments(data.view(), {100, 4}, one),
            second_moments(data.view(), {100, 4}, three));
}

TEST(ChannelStatistics, OfConstantsZerosAndExtremeHalves) {
  ThreadPool pool(1);
  Data data{4, 1, 8, std::vector<float>(32, 0.1f)};
  const float first[] = {-0.0f, 0.0f, -65504.0f, 65504.0f};
  for (size_t t = 0; t < 4; ++t) data.values[t * 8] = first[t];
  const auto s = channel_statistics(data.view(), {4, 0}, pool);
  EXPECT_EQ(s.minimum[0], -65504.0f);
  EXPECT_EQ(s.maximum[0], 65504.0f);
  EXPECT_EQ(s.mean[0], 0.0f);
  EXPECT_EQ(s.mean[1], 0.1f);
  EXPECT_EQ(s.variance[1], 0.0f);
  EXPECT_EQ(s.minimum[1], round_to_half(0.1f));
  EXPECT_EQ(s.maximum[1], round_to_half(0.1f));
}

TEST(ChannelStatistics, ValuesThatFp16CannotHoldAreRefusedByName) {
  ThreadPool pool(2);
  for (const float bad : {NAN, INFINITY, -INFINITY, 65520.0f}) {
    Data data = normal_data(40, 2, 8);
    data.values[20 * 16 + 11] = bad;
    try {
      channel_statistics(data.view(), {20, 0}, pool);
      FAIL() << bad;
    } catch (const FormatError& error) {
      EXPECT_STREQ(error.what(), "head 1, channel 3: a value is not finite in fp16");
    }
  }
}

TEST(ChannelStatistics, RowsThatDontFitAreRefused) {
  ThreadPool pool(1);
  const Data data = normal_data(40, 1, 8);
  for (const SampleRows& rows :
       {SampleRows{0, 0}, SampleRows{39, 0}, SampleRows{20, 20}, SampleRows{20, -1}}) {
    EXPECT_THROW(channel_statistics(data.view(), rows, pool), std::invalid_argument);
    EXPECT_THROW(second_moments(data.view(), rows, pool), std::invalid_argument);
  }
}

TEST(SecondMoments, LeaveOutTheFirstRowsOfEverySequence) {
  ThreadPool pool(1);
  const Data data{4, 1, 8, [] {
                    std::vector<float> x(32, 1000.0f);
                    std::fill_n(x.begin() + 8, 8, 3.0f);
                    std::fill_n(x.begin() + 24, 8, 1.0f);
                    return x;
                  }()};
  EXPECT_EQ(second_moments(data.view(), {2, 1}, pool), std::vector<float>(8, 5.0f));
}

}  // namespace
}  // namespace kvquant
