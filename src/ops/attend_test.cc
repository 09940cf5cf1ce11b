// Every backend against the reference: error at most twice that of a plain loop in the same
// precision; and what must hold exactly: determinism, untouched memory, checks.
#include "ops/attend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "hwy/targets.h"
#include "ops/attend_test_cache.h"
#include "ops/attend_test_check.h"

namespace kvquant {
namespace {

using testing::ErrorCheck;
using testing::fast_variants;
using testing::kGap;
using testing::kGuard;
using testing::max_abs;
using testing::max_difference;
using testing::naive;
using testing::shape_of;
using testing::TestJob;
using testing::TestRandom;
using testing::TestTiles;
using testing::Variant;

class AttendSweep : public ::testing::TestWithParam<std::tuple<DenseType, int64_t>> {};

TEST_P(AttendSweep, IsAsAccurateAsThePlainLoop) {
  const auto [type, head_dim] = GetParam();
  TestRandom random(static_cast<uint64_t>(head_dim));
  for (int64_t group : {1, 3, 4, 8}) {
    ErrorCheck check(shape_of(head_dim, group));
    for (int64_t length : {0, 1, 2, 63, 64, 65, 127, 128, 129, 300}) {
      TestTiles tiles(type, length, head_dim);
      tiles.fill(random);
      for (int64_t queries : {1, 2, 64, 65}) {
        if (queries > 2 && (group == 4 || group == 8 || length % 5 != 0)) continue;  // time
        const int64_t position = std::max<int64_t>(0, length - queries);
        check.add({shape_of(head_dim, group), queries, position, {tiles.run()}, random});
      }
    }
    check.expect_within_twice_naive("group " + std::to_string(group));
  }
}

std::string sweep_name(const ::testing::TestParamInfo<AttendSweep::ParamType>& info) {
  const auto [type, head_dim] = info.param;
  const char* name = type == DenseType::kF16 ? "F16" : type == DenseType::kBF16 ? "BF16" : "F32";
  return std::string(name) + "HeadDim" + std::to_string(head_dim);
}

INSTANTIATE_TEST_SUITE_P(
    TypesAndHeadDims, AttendSweep,
    ::testing::Combine(::testing::Values(DenseType::kF16, DenseType::kBF16, DenseType::kF32),
                       ::testing::Values<int64_t>(8, 16, 24, 64, 80, 128, 256)),
    sweep_name);

std::vector<AttendRun> random_runs(const std::vector<TestTiles>& tiles, TestRandom& random) {
  std::vector<AttendRun> runs;
  for (const TestTiles& t : tiles) {
    AttendRun run = t.run(random.below(300));
    if (random.below(2) == 0) run.min_lag = random.below(100) - 10;
    if (random.below(2) == 0) run.max_lag = run.min_lag + random.below(200);
    runs.push_back(run);
  }
  return runs;
}

TEST(Attend, RandomRunsOfAllTypesWithWindowsMatchTheReference) {
  TestRandom random(11);
  for (int repeat = 0; repeat < 12; ++repeat) {
    const AttendShape shape = shape_of(8 * (1 + random.below(12)), 1 + random.below(6));
    ErrorCheck check(shape);
    for (int i = 0; i < 4; ++i) {
      std::vector<TestTiles> tiles;
      for (DenseType type : {DenseType::kF16, DenseType::kBF16, DenseType::kF32}) {
        tiles.emplace_back(type, random.below(250), shape.head_dim);
        tiles.back().fill(random);
      }
      const int64_t queries = 1 + random.below(i % 2 == 0 ? 3 : 90);
      check.add({shape, queries, random.below(500), random_runs(tiles, random), random});
    }
    check.expect_within_twice_naive("repeat " + std::to_string(repeat));
  }
}

TEST(Attend, ExactRecentKeysCanReplaceCompressedOnesOfTheSamePositions) {
  TestRandom random(12);
  const AttendShape shape = shape_of(32, 2);
  ErrorCheck check(shape);
  TestTiles compressed(DenseType::kBF16, 300, 32);
  TestTiles exact(DenseType::kF32, 100, 32);
  compressed.fill(random);
  exact.fill(random);
  AttendRun old = compressed.run();
  old.min_lag = 64;
  AttendRun recent = exact.run(200);
  recent.max_lag = 64;
  for (int64_t queries : {1, 40}) check.add({shape, queries, 300 - queries, {old, recent}, random});
  check.expect_within_twice_naive("min_lag and max_lag 64");
}

TEST(Attend, HugeScoresAndTinyOnesGiveNoNan) {
  TestRandom random(13);
  for (float scale : {1e-6f, 50.0f, 1e4f}) {
    AttendShape shape{64, 2, scale};
    TestTiles tiles(DenseType::kF16, 200, 64);
    tiles.fill(random);
    for (const Variant& variant : fast_variants()) {
      for (int64_t queries : {1, 70}) {
        const TestJob test(shape, queries, 199, {tiles.run()}, random);
        std::vector<float> out;
        const AttendJob job = test.job(out);
        ThreadPool pool(1);
        attend(shape, {&job, 1}, variant.precision, pool, variant.backend);
        EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }))
            << variant.name() << ", scale " << scale;
        EXPECT_LE(max_abs(out), 64) << variant.name();  // a mean of the values
      }
    }
  }
}

// Several jobs of different kinds in one call, long enough for several spans of a decode step.
struct ManyJobs {
  explicit ManyJobs(const AttendShape& shape) {
    TestRandom random(14);
    for (int64_t length : {2600, 100, 0, 1500}) {
      tiles.emplace_back(length % 3 == 0 ? DenseType::kBF16 : DenseType::kF16, length,
                         shape.head_dim);
      tiles.back().fill(random);
      for (int64_t queries : {1, 0, 90}) {
        tests.emplace_back(shape, queries, length, std::vector<AttendRun>{tiles.back().run()},
                           random);
      }
    }
  }
  std::vector<std::vector<float>> run(const AttendShape& shape, const Variant& variant,
                                      int num_threads) const {
    std::vector<std::vector<float>> outs(tests.size());
    std::vector<AttendJob> jobs;
    for (size_t i = 0; i < tests.size(); ++i) jobs.push_back(tests[i].job(outs[i]));
    ThreadPool pool(num_threads, ThreadPool::Pin::kNo);
    attend(shape, jobs, variant.precision, pool, variant.backend);
    return outs;
  }

  std::vector<TestTiles> tiles;
  std::vector<TestJob> tests;
};

TEST(Attend, ResultsAreTheSameToTheBitAtAnyNumberOfThreads) {
  const AttendShape shape = shape_of(48, 2);
  const ManyJobs jobs(shape);
  for (const Variant& variant : fast_variants()) {
    const auto one = jobs.run(shape, variant, 1);
    for (int num_threads : {2, 3}) {
      const auto more = jobs.run(shape, variant, num_threads);
      for (size_t i = 0; i < one.size(); ++i) {
        EXPECT_TRUE(std::equal(one[i].begin(), one[i].end(), more[i].begin(),
                               [](float a, float b) {
                                 return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
                               }))
            << variant.name() << ", job " << i << ", threads " << num_threads;
      }
    }
  }
}

TEST(Attend, ManyJobsAtOnceMatchTheReferenceAndGapsAreUntouched) {
  const AttendShape shape = shape_of(48, 2);
  const ManyJobs jobs(shape);
  const auto expected = jobs.run(shape, {Backend::kReference, Precision::kF32}, 1);
  double naive_error[2] = {};
  for (size_t i = 0; i < expected.size(); ++i) {
    for (bool rounds : {false, true}) {
      std::vector<float> out;
      naive(shape, jobs.tests[i], rounds, out);
      naive_error[rounds] = std::max(naive_error[rounds], max_difference(out, expected[i]));
    }
  }
  for (const Variant& variant : fast_variants()) {
    const auto outs = jobs.run(shape, variant, 2);
    for (size_t i = 0; i < outs.size(); ++i) {
      EXPECT_LE(max_difference(outs[i], expected[i]), 2 * naive_error[variant.rounds()])
          << variant.name() << ", job " << i;
      const auto row = static_cast<size_t>(jobs.tests[i].row_size + kGap);
      for (size_t j = 0; j < outs[i].size(); ++j) {
        if (j % row >= row - kGap) {
          ASSERT_EQ(outs[i][j], kGuard) << variant.name() << ", job " << i;
        }
      }
    }
  }
}

TEST(Attend, EveryInstructionSetOfTheSimdBackendMatchesTheReference) {
  const AttendShape shape = shape_of(40, 3);
  TestRandom random(15);
  TestTiles f16(DenseType::kF16, 130, 40);
  TestTiles bf16(DenseType::kBF16, 130, 40);
  f16.fill(random);
  bf16.fill(random);
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    ErrorCheck check(shape);
    for (int64_t queries : {1, 2, 30}) {
      check.add({shape, queries, 129, {f16.run(), bf16.run(7)}, random});
    }
    check.expect_within_twice_naive(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);  // back to what the CPU has
}

TEST(Attend, RefusesShapesThatDoNotFit) {
  ThreadPool pool(1);
  TestRandom random(16);
  const AttendShape good = shape_of(16, 2);
  TestTiles tiles(DenseType::kF16, 70, 16);
  const TestJob test(good, 2, 68, {tiles.run()}, random);
  std::vector<float> out;
  const auto call = [&](AttendShape shape, auto&& change) {
    AttendRun run = tiles.run();
    AttendJob job = test.job(out);
    change(job, run);
    job.runs = {&run, 1};
    attend(shape, {&job, 1}, Precision::kF32, pool);
  };
  const auto as_is = [](AttendJob&, AttendRun&) {};
  EXPECT_NO_THROW(call(good, as_is));
  EXPECT_THROW(call({12, 2, 1}, as_is), std::invalid_argument);
  EXPECT_THROW(call({0, 2, 1}, as_is), std::invalid_argument);
  EXPECT_THROW(call({16, 0, 1}, as_is), std::invalid_argument);
  EXPECT_THROW(call({16, 2, -1}, as_is), std::invalid_argument);
  EXPECT_THROW(call({16, 2, NAN}, as_is), std::invalid_argument);
  const auto refuses = [&](auto&& change) {
    EXPECT_THROW(call(good, change), std::invalid_argument);
  };
  refuses([](AttendJob& job, AttendRun&) { job.query = nullptr; });
  refuses([](AttendJob& job, AttendRun&) { job.out = nullptr; });
  refuses([](AttendJob& job, AttendRun&) { job.query_stride = 31; });
  refuses([](AttendJob& job, AttendRun&) { job.num_queries = -1; });
  refuses([](AttendJob& job, AttendRun&) { job.first_position = -1; });
  refuses([](AttendJob&, AttendRun& run) { run.num_tokens = 129; });
  refuses([](AttendJob&, AttendRun& run) { run.num_tokens = -1; });
  refuses([](AttendJob&, AttendRun& run) { run.first_position = -5; });
  refuses([](AttendJob&, AttendRun& run) { run.value_tiles = run.value_tiles.first(1); });
  refuses([](AttendJob&, AttendRun& run) { run.first_position = INT64_MAX; });
}

}  // namespace
}  // namespace kvquant
