// What must hold of attention in matrix registers beyond what holds of every backend. Skipped where
// there are none.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/attend.h"
#include "ops/attend_coded_test_data.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::ErrorCheck;
using testing::expect_same_bits_at_any_threads;
using testing::MixedJob;
using testing::run_job;
using testing::shape_of;
using testing::TestCodedRun;
using testing::TestJob;
using testing::TestRandom;
using testing::TestTiles;
using testing::Variant;

class AttendAmx : public ::testing::Test {
 protected:
  void SetUp() override {
    if (available_backends().back() != Backend::kAmxBf16) GTEST_SKIP() << "no AMX here";
  }
  static constexpr Variant kVariant{Backend::kAmxBf16, Precision::kBF16};
};

TEST_F(AttendAmx, AnyNumberOfRowsIsAsAccurateAsThePlainLoop) {
  for (const int64_t head_dim : {64, 96, 256}) {
    for (const int64_t group : {1, 3}) {
      TestRandom random(static_cast<uint64_t>(head_dim));
      ErrorCheck check(shape_of(head_dim, group), {kVariant});
      TestTiles dense(DenseType::kF16, 150, head_dim);
      dense.fill(random);
      const RopeTable rope(head_dim, 700, 10000);
      const TestCodedRun coded({4, 3, 1, 1}, rope, 100, 150, random);
      MixedJob job;
      job.add(dense.run());
      job.add(coded);
      for (const int64_t queries : {5, 16, 17, 33, 65}) {
        check.add(job.test(shape_of(head_dim, group), queries, 250 - queries, random));
      }
      check.expect_within_twice_naive("head_dim " + std::to_string(head_dim));
    }
  }
}

// One thread is given larger blocks of rows than three, which end elsewhere.
TEST_F(AttendAmx, RowsDoNotDependOnThoseOfTheirBlock) {
  TestRandom random(41);
  const AttendShape shape = shape_of(64, 3);
  const RopeTable rope(64, 1300, 10000);
  TestTiles dense(DenseType::kF16, 100, 64);
  dense.fill(random);
  const TestCodedRun coded({4, 3, 1, 1}, rope, 600, 100, random);
  MixedJob job;
  job.add(dense.run());
  job.add(coded);
  for (const int64_t queries : {341, 512, 514}) {
    expect_same_bits_at_any_threads(shape, job.test(shape, queries, 700 - queries, random));
  }
}

// Scratch is kept from call to call: what a tile has left there must not meet a shorter one.
TEST_F(AttendAmx, InfiniteValuesOfOtherCallsLeaveNothingBehind) {
  constexpr int64_t kDim = 64;
  const AttendShape shape = shape_of(kDim, 1);
  const RopeTable rope(kDim, 300, 10000);
  const Half infinity{0x7C00};
  const std::vector<Half> keys(64 * kDim, Half{0}), values(64 * kDim, infinity);
  const auto attend_rows = [&](const std::vector<Half>& from, int64_t num_tokens) {
    AttendRun run;
    run.key_rows = keys.data();
    run.value_rows = from.data();
    run.row_stride = kDim;
    run.rope = &rope;
    run.num_tokens = num_tokens;
    TestRandom random(42);
    return run_job(shape, TestJob(shape, 40, 100, {run}, random), kVariant);
  };
  attend_rows(values, 64);
  const std::vector<Half> ones(64 * kDim, Half{0x3C00});
  const auto out = attend_rows(ones, 5);
  for (size_t i = 0; i < out.size(); ++i) {
    if (i % (kDim + testing::kGap) < kDim) {
      ASSERT_NEAR(out[i], 1.0f, 1e-2f) << i;
    }
  }
}

}  // namespace
}  // namespace kvquant
