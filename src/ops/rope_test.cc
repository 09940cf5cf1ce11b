#include "ops/rope.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

namespace kvquant {
namespace {

std::vector<float> random_values(size_t size, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(size);
  for (float& v : x) v = normal(rng);
  return x;
}

TEST(Rope, RotatesPairsByHand) {
  const RopeTable table(4, 8, 10000.0);
  std::vector<float> x{1, 2, 3, 4};
  rope(row_major(x.data(), {1, 1, 4}), 2, table);
  // Channel 0 turns with channel 2 by 2 radians, channel 1 with channel 3 by 2 / sqrt(10000).
  EXPECT_NEAR(x[0], std::cos(2.0) - 3 * std::sin(2.0), 1e-6);
  EXPECT_NEAR(x[2], 3 * std::cos(2.0) + std::sin(2.0), 1e-6);
  EXPECT_NEAR(x[1], 2 * std::cos(0.02) - 4 * std::sin(0.02), 1e-6);
  EXPECT_NEAR(x[3], 4 * std::cos(0.02) + 2 * std::sin(0.02), 1e-6);
}

TEST(Rope, TakesFrequenciesOfAnyKind) {
  const std::vector<double> frequencies = {0.5, 0, 2};
  const RopeTable table(10, frequencies);
  EXPECT_EQ(table.head_dim(), 6);
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(table.cos(7)[c], std::cos(7 * frequencies[c]), 1e-7);
    EXPECT_NEAR(table.sin(7)[c], std::sin(7 * frequencies[c]), 1e-7);
    EXPECT_EQ(table.tiles().frequencies[c], static_cast<float>(frequencies[c]));
  }
  EXPECT_THROW(RopeTable(10, std::vector<double>{-1}), std::invalid_argument);
  EXPECT_THROW(RopeTable(10, std::vector<double>{NAN}), std::invalid_argument);
  EXPECT_THROW(RopeTable(10, std::vector<double>{}), std::invalid_argument);
}

TEST(Rope, TablesGrowAsFarAsTheyAreAskedFor) {
  const std::vector<double> frequencies = {1, 0.25};
  constexpr int64_t kPositions = 100'000;
  const RopeTable table(kPositions, frequencies);
  EXPECT_EQ(table.num_rows(), 4096);
  const float* front = table.cos(17);
  const float* back = table.cos(50'000);
  EXPECT_GE(table.num_rows(), 50'064);
  EXPECT_LE(table.num_rows(), 50'064 + 4096);
  EXPECT_EQ(table.cos(17), front);
  for (const int64_t position : {0, 17, 4095, 4096, 49'999, 50'063}) {
    const float* cos = back + (position - 50'000) * 2;
    EXPECT_EQ(cos[0], static_cast<float>(std::cos(static_cast<double>(position))));
    EXPECT_EQ(cos[1], static_cast<float>(std::cos(static_cast<double>(position) * 0.25)));
    EXPECT_EQ(table.sin(position)[1],
              static_cast<float>(std::sin(static_cast<double>(position) * 0.25)));
  }
  const float* last = table.sin(kPositions + 31);  // the middle of a tile that begins inside
  EXPECT_EQ(last[0], static_cast<float>(std::sin(kPositions + 31.0)));
  EXPECT_EQ(table.num_rows(), kPositions + 64);
}

TEST(Rope, TablesAreAskedByManyThreads) {
  const std::vector<double> frequencies = {0.5};
  const RopeTable table(40'000, frequencies);
  std::vector<std::thread> threads;
  std::atomic<int> num_wrong = 0;
  for (int64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int64_t position = thread; position < 40'000; position += 37) {
        const auto expected = static_cast<float>(std::sin(static_cast<double>(position) * 0.5));
        if (*table.sin(position) != expected) ++num_wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, 0);
}

TEST(Rope, LeavesPositionZeroAlone) {
  const RopeTable table(64, 1, 10000.0);
  auto x = random_values(64, 1);
  const auto before = x;
  rope(row_major(x.data(), {1, 1, 64}), 0, table);
  EXPECT_EQ(x, before);
}

TEST(Rope, FollowsTheDefinitionAtAnyHeadDim) {
  constexpr int64_t kTokens = 3, kHeads = 2, kFirst = 1000;
  for (const int64_t head_dim : {2, 6, 16, 64, 80, 128, 256}) {
    const RopeTable table(head_dim, kFirst + kTokens, 500000.0);
    const int64_t stride = head_dim + 7;
    auto x = random_values(static_cast<size_t>(kTokens * kHeads * stride), 2);
    const auto before = x;
    rope({x.data(), {kTokens, kHeads, head_dim}, {kHeads * stride, stride, 1}}, kFirst, table);
    for (int64_t i = 0; i < kTokens * kHeads; ++i) {
      const auto position = static_cast<double>(kFirst + i / kHeads);
      for (int64_t c = 0; c < head_dim / 2; ++c) {
        const double angle = position * std::pow(500000.0, -2.0 * static_cast<double>(c) /
                                                               static_cast<double>(head_dim));
        const auto at = static_cast<size_t>(i * stride + c);
        const auto other = at + static_cast<size_t>(head_dim / 2);
        const double a = before[at], b = before[other];
        EXPECT_NEAR(x[at], a * std::cos(angle) - b * std::sin(angle), 1e-6) << head_dim;
        EXPECT_NEAR(x[other], b * std::cos(angle) + a * std::sin(angle), 1e-6) << head_dim;
      }
      for (int64_t c = head_dim; c < stride; ++c) {
        const auto at = static_cast<size_t>(i * stride + c);
        EXPECT_EQ(x[at], before[at]);
      }
    }
  }
}

// What attention relies on: the product of a rotated query and key depends on their distance only.
TEST(Rope, PreservesProductsAtEqualDistance) {
  constexpr int64_t kHeadDim = 64;
  const RopeTable table(kHeadDim, 600, 10000.0);
  const auto q = random_values(kHeadDim, 3), k = random_values(kHeadDim, 4);
  const auto product = [&](int64_t query_position, int64_t key_position) {
    auto a = q, b = k;
    rope_row(a.data(), table.cos(query_position), table.sin(query_position), kHeadDim);
    rope_row(b.data(), table.cos(key_position), table.sin(key_position), kHeadDim);
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
    return sum;
  };
  EXPECT_NEAR(product(17, 5), product(517, 505), 1e-4);
}

TEST(Rope, RejectsWhatTheTableDoesNotHold) {
  const RopeTable table(16, 10, 10000.0);
  std::vector<float> x(16 * 4);
  EXPECT_THROW(rope(row_major(x.data(), {4, 1, 16}), 7, table), std::invalid_argument);
  EXPECT_THROW(rope(row_major(x.data(), {4, 1, 16}), -1, table), std::invalid_argument);
  EXPECT_THROW(rope(row_major(x.data(), {4, 1, 8}), 0, table), std::invalid_argument);
  EXPECT_THROW(rope(row_major(x.data(), {1, 1, 16}), INT64_MAX, table), std::invalid_argument);
  EXPECT_NO_THROW(rope(row_major(x.data(), {4, 1, 16}), 6, table));
  EXPECT_THROW(RopeTable(15, 10, 10000.0), std::invalid_argument);
  EXPECT_THROW(RopeTable(16, -1, 10000.0), std::invalid_argument);
  EXPECT_THROW(RopeTable(16, 10, 0.0), std::invalid_argument);
  EXPECT_THROW(RopeTable(16, INT64_MAX, 1.0), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
