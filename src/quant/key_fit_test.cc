#include "quant/key_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"

namespace kvquant {
namespace {

constexpr double kPercents[] = {0.1, 0.25, 0.5, 1, 2, 3, 5};

// Ascending fp16 normals of different widths and centres.
std::vector<std::vector<float>> draw_channels(int num_channels, int num_values) {
  std::vector<std::vector<float>> channels;
  for (int c = 0; c < num_channels; ++c) {
    const CounterRng rng(5, static_cast<uint64_t>(c));
    std::vector<float> channel;
    for (int i = 0; i < num_values; ++i) {
      const float x = rng.normals(static_cast<uint64_t>(i)).first;
      channel.push_back(round_to_half(x * static_cast<float>(1 + c % 4) + static_cast<float>(c)));
    }
    std::sort(channel.begin(), channel.end());
    channels.push_back(std::move(channel));
  }
  return channels;
}

std::vector<ChannelRange> fit(const std::vector<std::vector<float>>& channels,
                              const std::vector<float>& weights, int bits, double percent) {
  return fit_key_ranges(
      [&](int64_t c) { return std::span<const float>(channels[static_cast<size_t>(c)]); }, weights,
      bits, percent);
}

int64_t num_outliers(const std::vector<float>& channel, const ChannelRange& range) {
  return std::count_if(channel.begin(), channel.end(), [&](float x) {
    return x < to_float(range.low) || x > to_float(range.high);
  });
}

TEST(FitKeyRanges, SpendTheBudgetOfOutliers) {
  const auto channels = draw_channels(12, 2000);
  const std::vector<float> weights = {1, 2, 3, 0.1f, 5, 0.01f, 7, 8, 90, 10, 11, 12};
  for (const int bits : {2, 3, 4}) {
    for (const double percent : kPercents) {
      const auto ranges = fit(channels, weights, bits, percent);
      int64_t count = 0;
      for (size_t c = 0; c < channels.size(); ++c) count += num_outliers(channels[c], ranges[c]);
      EXPECT_NEAR(static_cast<double>(count), 12 * 2000 * percent / 100, 12)
          << bits << " bits, " << percent << "%";
    }
  }
}

TEST(FitKeyRanges, ThresholdsAreOutsideTheRange) {
  const auto channels = draw_channels(8, 1000);
  const std::vector<float> weights(8, 1.0f);
  for (const int bits : {2, 3, 4}) {
    for (const double percent : kPercents) {
      for (const ChannelRange& range : fit(channels, weights, bits, percent)) {
        const float zero = to_float(range.zero), scale = to_float(range.scale);
        EXPECT_LE(to_float(range.low), round_to_half(zero - scale));
        EXPECT_GE(to_float(range.high), round_to_half(zero + scale));
      }
    }
  }
}

TEST(FitKeyRanges, DearerChannelsHaveTighterThresholds) {
  auto channels = draw_channels(1, 20000);
  channels.resize(3, channels[0]);
  for (const int bits : {2, 3, 4}) {
    // Of 4 bits, ranges leave 0.25% out, or with more outliers just them, whatever they cost.
    const auto ranges = fit(channels, {1, 2, 4}, bits, bits == 4 ? 0.15 : 0.5);
    EXPECT_EQ(ranges[0].scale, ranges[1].scale);
    for (size_t c = 1; c < 3; ++c) {
      EXPECT_LT(to_float(ranges[c].high), to_float(ranges[c - 1].high)) << bits;
      EXPECT_GT(to_float(ranges[c].low), to_float(ranges[c - 1].low)) << bits;
      EXPECT_GT(num_outliers(channels[c], ranges[c]), num_outliers(channels[c - 1], ranges[c - 1]));
    }
  }
}

TEST(FitKeyRanges, WithoutOutliersLeaveNothingOutside) {
  const auto channels = draw_channels(8, 2000);
  for (const int bits : {2, 3, 4}) {
    const auto ranges = fit(channels, std::vector<float>(8, 3.0f), bits, 0);
    for (size_t c = 0; c < 8; ++c) {
      EXPECT_EQ(num_outliers(channels[c], ranges[c]), 0) << bits << ", channel " << c;
      const float reach = to_float(ranges[c].scale);  // a part is clamped nevertheless
      EXPECT_LT(reach, 0.5f * (channels[c].back() - channels[c].front()));
    }
  }
}

TEST(FitKeyRanges, OfAConstantChannelAreTheConstant) {
  auto channels = draw_channels(3, 500);
  std::fill(channels[1].begin(), channels[1].end(), 2.5f);
  for (const double percent : {0.0, 1.0, 5.0}) {
    const auto ranges = fit(channels, {1, 1, 0}, 3, percent);  // a weight of 0 harms nothing either
    EXPECT_EQ(to_float(ranges[1].scale), 0);
    EXPECT_EQ(to_float(ranges[1].zero), 2.5f);
    EXPECT_EQ(to_float(ranges[1].low), 2.5f);
    EXPECT_EQ(to_float(ranges[1].high), 2.5f);
    EXPECT_EQ(num_outliers(channels[2], ranges[2]), 0);
  }
}

TEST(KeyRangePercent, GrowsWithOutliersAndFallsWithBits) {
  double previous[] = {0, 0, 0};
  for (double percent = 0; percent <= 5; percent += 0.05) {
    for (int bits = 2; bits <= 4; ++bits) {
      const double now = key_range_percent(bits, percent);
      EXPECT_GE(now, previous[bits - 2]);
      EXPECT_GE(now, percent);
      EXPECT_LE(now, 20);
      EXPECT_LE(now, key_range_percent(std::max(bits - 1, 2), percent));
      previous[bits - 2] = now;
    }
  }
}

}  // namespace
}  // namespace kvquant
