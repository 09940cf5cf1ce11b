#include "ops/attend_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>

#include "ops/attend_test_cache.h"

namespace kvquant {
namespace {

using testing::TestRandom;

// Runs whose tile pointers are only numbers: the plan never follows them.
struct FakeRun {
  explicit FakeRun(AttendRun shape) : run(shape) {
    const auto num_tiles = static_cast<size_t>((run.num_tokens + kTileTokens - 1) / kTileTokens);
    for (size_t i = 0; i < num_tiles; ++i) tiles.push_back(reinterpret_cast<void*>(i + 1));
    run.key_tiles = tiles;
    run.value_tiles = tiles;
  }
  std::vector<const void*> tiles;
  AttendRun run;
};

AttendRun shape_of(int64_t num_tokens, int64_t first_position, int64_t min_lag, int64_t max_lag) {
  AttendRun run;
  run.num_tokens = num_tokens;
  run.first_position = first_position;
  run.min_lag = min_lag;
  run.max_lag = max_lag;
  return run;
}

AttendJob job_of(int64_t num_queries, int64_t first_position, std::span<const AttendRun> runs) {
  AttendJob job;
  job.num_queries = num_queries;
  job.first_position = first_position;
  job.runs = runs;
  return job;
}

constexpr int64_t kForever = std::numeric_limits<int64_t>::max();

TEST(VisibleTiles, ByHand) {
  const auto range = [](const AttendRun& run, int64_t position, int64_t num_queries) {
    const TileRange tiles = visible_tiles(run, position, num_queries);
    return std::pair(tiles.begin, tiles.end);
  };
  const AttendRun causal = shape_of(200, 0, 0, kForever);
  EXPECT_EQ(range(causal, 63, 1), std::pair(int64_t{0}, int64_t{1}));
  EXPECT_EQ(range(causal, 63, 2), std::pair(int64_t{0}, int64_t{2}));
  EXPECT_EQ(range(causal, 1000, 1), std::pair(int64_t{0}, int64_t{4}));
  const AttendRun window = shape_of(200, 0, 0, 64);
  EXPECT_EQ(range(window, 127, 1), std::pair(int64_t{1}, int64_t{2}));
  EXPECT_EQ(range(window, 126, 2), std::pair(int64_t{0}, int64_t{2}));
  const AttendRun old = shape_of(200, 64, 100, kForever);
  EXPECT_EQ(range(old, 163, 1).second - range(old, 163, 1).first, 0);
  EXPECT_EQ(range(old, 164, 1), std::pair(int64_t{0}, int64_t{1}));
  const AttendRun gone = shape_of(64, 0, 0, 10);
  EXPECT_EQ(range(gone, 1000, 5).second - range(gone, 1000, 5).first, 0);
}

TEST(AttendPlan, ADecodeStepIsCutIntoSpansWhosePartsAreMerged) {
  const FakeRun run(shape_of(64 * 40 + 1, 0, 0, kForever));
  const AttendJob jobs[] = {job_of(1, 64 * 40, {&run.run, 1})};
  AttendPlan plan;
  plan_attend(4, {}, jobs, plan);
  ASSERT_EQ(plan.tasks.size(), 3u);  // 16 + 16 + 9 tiles
  EXPECT_EQ(plan.tasks[2].first_tile, 32);
  EXPECT_EQ(plan.tasks[2].num_tiles, 9);
  EXPECT_EQ(plan.tasks[2].partial_row, 8);
  ASSERT_EQ(plan.merges.size(), 1u);
  EXPECT_EQ(plan.merges[0].num_parts, 3);
  EXPECT_EQ(plan.num_partial_rows, 12);
  EXPECT_EQ(plan.max_tiles, 16);
}

TEST(AttendPlan, PrefillIsCutIntoBlocksOfQueriesWithFinalResults) {
  const FakeRun run(shape_of(5000, 0, 0, kForever));
  const AttendJob jobs[] = {job_of(512, 4488, {&run.run, 1})};
  AttendPlan plan;
  plan_attend(3, {}, jobs, plan);
  EXPECT_EQ(plan.tasks.size(), 13u);  // 42 queries are 126 rows
  EXPECT_TRUE(plan.merges.empty());
  for (const AttendTask& task : plan.tasks) EXPECT_EQ(task.partial_row, -1);
  EXPECT_EQ(plan.max_rows, 126);
}

TEST(AttendPlan, ABlockThatSeesNothingIsAMergeOfNoParts) {
  const AttendJob jobs[] = {job_of(2, 5, {})};
  AttendPlan plan;
  plan_attend(1, {}, jobs, plan);
  EXPECT_TRUE(plan.tasks.empty());
  ASSERT_EQ(plan.merges.size(), 1u);
  EXPECT_EQ(plan.merges[0].num_parts, 0);
}

// Every (query, token) pair that may be seen is in exactly one task, and no other is.
void expect_exact_cover(const AttendJob& job, int64_t group) {
  AttendPlan plan;
  plan_attend(group, {}, {&job, 1}, plan);
  std::map<std::tuple<int64_t, const void*, int64_t>, int> covered;  // query, tile, token
  for (const AttendTask& task : plan.tasks) {
    std::vector<TileWork> tiles(static_cast<size_t>(task.num_tiles));
    list_tiles(job, task, tiles.data());
    for (const TileWork& tile : tiles) {
      for (int64_t q = 0; q < task.num_queries; ++q) {
        const auto [begin, end] = visible_tokens(tile, q);
        for (int64_t t = begin; t < end; ++t) ++covered[{task.first_query + q, tile.keys, t}];
      }
    }
  }
  std::map<std::tuple<int64_t, const void*, int64_t>, int> expected;
  for (const AttendRun& run : job.runs) {
    for (int64_t q = 0; q < job.num_queries; ++q) {
      for (int64_t t = 0; t < run.num_tokens; ++t) {
        const int64_t lag = job.first_position + q - run.first_position - t;
        const void* tile = run.key_tiles[static_cast<size_t>(t / kTileTokens)];
        if (run.min_lag <= lag && lag < run.max_lag) ++expected[{q, tile, t % kTileTokens}];
      }
    }
  }
  ASSERT_EQ(covered, expected);
}

TEST(AttendPlan, RandomRunsAreCoveredExactlyOnce) {
  TestRandom random(7);
  for (int repeat = 0; repeat < 60; ++repeat) {
    std::vector<FakeRun> fakes;
    for (int64_t i = random.below(4); i > 0; --i) {
      const int64_t min_lag = random.below(3) == 0 ? random.below(200) - 20 : 0;
      const int64_t max_lag = random.below(2) == 0 ? kForever : min_lag + random.below(300);
      fakes.emplace_back(shape_of(random.below(400), random.below(500), min_lag, max_lag));
      // Tiles of different runs need different addresses to be told apart.
      for (auto& tile : fakes.back().tiles) {
        tile = static_cast<const char*>(tile) + 1000 * fakes.size();
      }
    }
    std::vector<AttendRun> runs;
    for (FakeRun& fake : fakes) {
      fake.run.key_tiles = fake.run.value_tiles = fake.tiles;
      runs.push_back(fake.run);
    }
    const int64_t num_queries = 1 + random.below(repeat % 2 == 0 ? 4 : 200);
    expect_exact_cover(job_of(num_queries, random.below(900), runs), 1 + random.below(9));
  }
}

TEST(AttendPlan, HugePositionsAndLagsDoNotOverflow) {
  const int64_t far = kMaxPosition - 1000;
  const FakeRun run(shape_of(100, far, std::numeric_limits<int64_t>::min(), kForever));
  const AttendJob job = job_of(1, 0, {&run.run, 1});
  AttendPlan plan;
  plan_attend(1, {}, {&job, 1}, plan);
  ASSERT_EQ(plan.tasks.size(), 1u);
  std::vector<TileWork> tiles(2);
  list_tiles(job, plan.tasks[0], tiles.data());
  EXPECT_EQ(visible_tokens(tiles[0], 0).end, 64);
  EXPECT_EQ(visible_tokens(tiles[1], 0).end, 36);
}

}  // namespace
}  // namespace kvquant
