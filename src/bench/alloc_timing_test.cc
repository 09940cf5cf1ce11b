#include "bench/alloc_timing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bench/growing_arrays.h"

namespace kvquant {
namespace {

TEST(AllocTiming, ReportsFiguresThatBelongTogether) {
  AllocTimingShape shape;
  shape.num_runs = 2;
  const std::vector<int64_t> lengths = {10, 300};
  const auto timings = time_alloc(shape, lengths);
  ASSERT_EQ(timings.size(), 6u);
  for (size_t i = 0; i < timings.size(); ++i) {
    const AllocTiming& t = timings[i];
    EXPECT_EQ(t.num_tokens, lengths[i / 3]);
    EXPECT_EQ(t.variant, kAllocVariants[i % 3]);
    EXPECT_GT(t.total_ms, 0);
    EXPECT_LE(t.median_ns, t.p99_ns);
    EXPECT_LE(t.p99_ns, t.max_ns);
    EXPECT_LE(t.time_p99_ns, t.max_ns);
    EXPECT_GE(t.time_p99_ns, t.p99_ns);
    EXPECT_LE(t.growth_p99_ns, t.max_ns);
    EXPECT_GE(t.peak_bytes, t.final_bytes);
    EXPECT_GE(t.final_bytes, t.num_tokens * (4 + 8 * 4));
  }
  EXPECT_EQ(timings[3].peak_bytes, timings[3].final_bytes);  // blocked never copies
  EXPECT_TRUE(check_alloc(timings).empty());
}

TEST(AllocTiming, RefusesShapesThatDoNotFit) {
  const std::vector<int64_t> lengths = {10};
  AllocTimingShape shape;
  shape.outliers_per_token = shape.num_channels - 1;
  EXPECT_THROW(time_alloc(shape, lengths), std::invalid_argument);
  shape = {};
  shape.num_runs = 0;
  EXPECT_THROW(time_alloc(shape, lengths), std::invalid_argument);
  shape = {};
  shape.block_size = 0;
  EXPECT_THROW(time_alloc(shape, lengths), std::invalid_argument);
  EXPECT_THROW(time_alloc({}, std::vector<int64_t>{9}), std::invalid_argument);
  EXPECT_THROW(time_alloc({}, std::vector<int64_t>{1 << 20}), std::invalid_argument);
}

std::vector<AllocTiming> made_up_timings() {
  std::vector<AllocTiming> timings;
  for (const int64_t num_tokens : {1024, 32768}) {
    AllocTiming blocked{AllocVariant::kBlocked, num_tokens};
    blocked.total_ms = 1;
    blocked.append_ns = 100;
    blocked.time_p99_ns = 10;
    blocked.peak_bytes = 50;
    AllocTiming copy{AllocVariant::kCopy, num_tokens};
    copy.total_ms = 30;
    AllocTiming doubling{AllocVariant::kDoubling, num_tokens};
    doubling.time_p99_ns = 150;
    doubling.peak_bytes = 100;
    timings.insert(timings.end(), {blocked, copy, doubling});
  }
  return timings;
}

int64_t num_failed(const std::vector<AllocTiming>& timings) {
  const auto checks = check_alloc(timings);
  EXPECT_EQ(checks.size(), 6u);
  return std::count_if(checks.begin(), checks.end(), [](const AllocCheck& c) { return !c.passed; });
}

TEST(AllocTiming, EachCheckFailsOnItsOwnFigure) {
  EXPECT_EQ(num_failed(made_up_timings()), 0);
  auto timings = made_up_timings();
  timings[3].append_ns = 121;
  EXPECT_EQ(num_failed(timings), 1);
  timings = made_up_timings();
  timings[4].total_ms = 24.9;
  EXPECT_EQ(num_failed(timings), 1);
  timings = made_up_timings();
  timings[1].total_ms = 1.1;
  EXPECT_EQ(num_failed(timings), 1);
  timings = made_up_timings();
  timings[0].peak_bytes = 61;
  EXPECT_EQ(num_failed(timings), 1);
  timings = made_up_timings();
  timings[5].time_p99_ns = 99;
  EXPECT_EQ(num_failed(timings), 1);
}

TEST(GrowingArrays, HoldWhatTheyAreGiven) {
  const std::vector<int32_t> indices = {3};
  const std::vector<float> values = {1.5f};
  CopyOnAppend copy;
  DoublingVectors doubling;
  for (int t = 0; t < 5; ++t) {
    copy.append_token(indices, values);
    doubling.append_token(indices, values);
  }
  EXPECT_EQ(copy.array_bytes(), (ArrayBytes{5 * 4, 5 * 2, 5 * 2}));
  EXPECT_EQ(doubling.array_bytes(), (ArrayBytes{8 * 2, 8 * 2, 8 * 4}));
  EXPECT_EQ(copy.to_standard_csr().offsets, (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(doubling.to_standard_csr().values, std::vector<float>(5, 1.5f));
}

TEST(GrowingArrays, ThePeakHasTheOldArrayBesideTheNew) {
  EXPECT_EQ(peak_while_replacing({16, 8, 8}, {16, 8, 8}), 32);
  EXPECT_EQ(peak_while_replacing({16, 8, 8}, {16, 16, 8}), 32 + 16);
  EXPECT_EQ(peak_while_replacing({16, 8, 8}, {20, 10, 10}), 16 + 20 + 8 + 8);
  EXPECT_EQ(peak_while_replacing({8, 8, 16}, {16, 16, 32}), 16 + 16 + 16 + 32);
}

}  // namespace
}  // namespace kvquant
