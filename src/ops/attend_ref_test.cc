// The reference attention against results by hand and the algebra of softmax; no other kernel is
// used.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops/attend.h"
#include "ops/attend_test_cache.h"

namespace kvquant {
namespace {

using testing::TestRandom;
using testing::TestTiles;

constexpr int64_t kHeadDim = 8;

std::vector<float> reference(const std::vector<float>& query, int64_t num_queries,
                             int64_t first_position, std::vector<AttendRun> runs, float scale = 1) {
  const int64_t group = static_cast<int64_t>(query.size()) / (num_queries * kHeadDim);
  std::vector<float> out(query.size(), -1.0f);
  const AttendJob job{query.data(), out.data(),     group * kHeadDim,
                      num_queries,  first_position, runs};
  ThreadPool pool(1);
  attend({kHeadDim, group, scale}, {&job, 1}, Precision::kF32, pool, Backend::kReference);
  return out;
}

// Token t has key (log t', 0...) with the given weights t', and value (t, t + 1, ...).
TestTiles weighted_tiles(const std::vector<float>& weights) {
  TestTiles tiles(DenseType::kF32, static_cast<int64_t>(weights.size()), kHeadDim);
  for (size_t t = 0; t < weights.size(); ++t) {
    tiles.set_key(static_cast<int64_t>(t), 0, std::log(weights[t]));
    for (int64_t c = 0; c < kHeadDim; ++c) {
      tiles.set_value(static_cast<int64_t>(t), c, static_cast<float>(t) + static_cast<float>(c));
    }
  }
  return tiles;
}

std::vector<float> unit_query(int64_t num_rows) {
  std::vector<float> query(static_cast<size_t>(num_rows * kHeadDim), 0.0f);
  for (int64_t r = 0; r < num_rows; ++r) query[static_cast<size_t>(r * kHeadDim)] = 1;
  return query;
}

TEST(AttendReference, WeightsAreExponentialsOfScaledProducts) {
  const TestTiles tiles = weighted_tiles({1, 3});
  const auto out = reference(unit_query(1), 1, 10, {tiles.run()});
  for (int64_t c = 0; c < kHeadDim; ++c) {
    EXPECT_NEAR(out[static_cast<size_t>(c)], 0.75 + static_cast<double>(c), 1e-6);  // (0 + 3) / 4
  }
  const auto squared = reference(unit_query(1), 1, 10, {tiles.run()}, 2);
  EXPECT_NEAR(squared[0], 0.9, 1e-6);  // weights 1 and 9
}

TEST(AttendReference, EqualScoresAverageTheValuesForEveryHeadOfTheGroup) {
  const TestTiles tiles = weighted_tiles({5, 5, 5});
  const auto out = reference(std::vector<float>(3 * kHeadDim, 0.0f), 1, 2, {tiles.run()});
  for (size_t i = 0; i < out.size(); ++i) EXPECT_FLOAT_EQ(out[i], 1.0f + i % kHeadDim);
}

TEST(AttendReference, AQuerySeesItselfAndWhatIsBeforeIt) {
  const TestTiles tiles = weighted_tiles({1, 1, 1, 1});
  const auto out = reference(unit_query(4), 4, 0, {tiles.run()});
  EXPECT_FLOAT_EQ(out[0 * kHeadDim], 0.0f);
  EXPECT_FLOAT_EQ(out[1 * kHeadDim], 0.5f);
  EXPECT_FLOAT_EQ(out[2 * kHeadDim], 1.0f);
  EXPECT_FLOAT_EQ(out[3 * kHeadDim], 1.5f);
}

TEST(AttendReference, AWindowKeepsTheLastKeysAndMinLagDropsThem) {
  const TestTiles tiles = weighted_tiles({1, 1, 1, 1});
  AttendRun recent = tiles.run(100);
  recent.max_lag = 2;  // positions 102 and 103
  EXPECT_FLOAT_EQ(reference(unit_query(1), 1, 103, {recent})[0], 2.5f);
  AttendRun old = tiles.run(100);
  old.min_lag = 2;  // positions 100 and 101
  EXPECT_FLOAT_EQ(reference(unit_query(1), 1, 103, {old})[0], 0.5f);
}

TEST(AttendReference, AQueryThatSeesNothingGetsZeros) {
  const TestTiles tiles = weighted_tiles({1, 1});
  EXPECT_EQ(reference(unit_query(1), 1, 4, {tiles.run(5)}), std::vector<float>(kHeadDim, 0.0f));
  EXPECT_EQ(reference(unit_query(1), 1, 4, {}), std::vector<float>(kHeadDim, 0.0f));
}

TEST(AttendReference, ARunCutInTwoGivesTheSameResult) {
  TestRandom random(1);
  TestTiles whole(DenseType::kF32, 150, kHeadDim);
  TestTiles left(DenseType::kF32, 100, kHeadDim);
  TestTiles right(DenseType::kF32, 50, kHeadDim);
  for (int64_t t = 0; t < 150; ++t) {
    for (int64_t c = 0; c < kHeadDim; ++c) {
      const float key = random.heavy_tailed();
      const float value = random.heavy_tailed();
      whole.set_key(t, c, key);
      whole.set_value(t, c, value);
      TestTiles& part = t < 100 ? left : right;
      part.set_key(t < 100 ? t : t - 100, c, key);
      part.set_value(t < 100 ? t : t - 100, c, value);
    }
  }
  std::vector<float> query(2 * kHeadDim);
  for (float& x : query) x = random.heavy_tailed();
  EXPECT_EQ(reference(query, 2, 148, {whole.run()}),
            reference(query, 2, 148, {left.run(), right.run(100)}));
}

TEST(AttendReference, AddingTheSameVectorToAllKeysChangesNothing) {
  TestRandom random(2);
  TestTiles plain(DenseType::kF32, 70, kHeadDim);
  TestTiles shifted(DenseType::kF32, 70, kHeadDim);
  for (int64_t t = 0; t < 70; ++t) {
    for (int64_t c = 0; c < kHeadDim; ++c) {
      const float key = static_cast<float>(random.below(17)) / 4;
      const float value = random.heavy_tailed();
      plain.set_key(t, c, key);
      shifted.set_key(t, c, key + 32);
      plain.set_value(t, c, value);
      shifted.set_value(t, c, value);
    }
  }
  std::vector<float> query(kHeadDim);
  for (float& x : query) x = static_cast<float>(random.below(9)) / 4 - 1;  // sums are exact
  EXPECT_EQ(reference(query, 1, 70, {plain.run()}), reference(query, 1, 70, {shifted.run()}));
}

TEST(AttendReference, ConstantValuesComeOutUnchanged) {
  TestRandom random(3);
  TestTiles tiles(DenseType::kF16, 90, kHeadDim);
  tiles.fill(random);
  for (int64_t t = 0; t < 90; ++t) {
    for (int64_t c = 0; c < kHeadDim; ++c) tiles.set_value(t, c, 0.5f);
  }
  std::vector<float> query(kHeadDim);
  for (float& x : query) x = random.heavy_tailed();
  for (float x : reference(query, 1, 90, {tiles.run()})) EXPECT_FLOAT_EQ(x, 0.5f);
}

}  // namespace
}  // namespace kvquant
