#include "ops/cuda_step.h"

#include <gtest/gtest.h>

#include <vector>

#include "ops/cuda_device_test.h"

namespace kvquant {
namespace {

using testing::random_floats;

CudaNode node(int64_t num_rows) { return CudaCall(CudaAdd{nullptr, 0, nullptr, 0, num_rows, 1}); }

TEST(CudaGraphs, AListIsKnownWhenItComesAgain) {
  CudaGraphs<int> graphs;
  const std::vector<CudaNode> a{node(1), node(2)}, b{node(1), node(3)}, part{node(1)};
  EXPECT_FALSE(graphs.came_before(a));
  EXPECT_FALSE(graphs.came_before(b));
  EXPECT_FALSE(graphs.came_before(part));
  EXPECT_EQ(graphs.find(a), nullptr);
  EXPECT_TRUE(graphs.came_before(a));
  EXPECT_EQ(graphs.keep(a, 7), 7);
  ASSERT_NE(graphs.find(a), nullptr);
  EXPECT_EQ(*graphs.find(a), 7);
  EXPECT_EQ(graphs.find(b), nullptr);
}

TEST(CudaGraphs, TheLeastRecentlyUsedListGoes) {
  CudaGraphs<int> graphs;
  const auto most = static_cast<int64_t>(CudaGraphs<int>::kMost);
  for (int64_t i = 0; i < most; ++i) graphs.came_before(std::vector<CudaNode>{node(i)});
  EXPECT_TRUE(graphs.came_before(std::vector<CudaNode>{node(0)}));
  graphs.came_before(std::vector<CudaNode>{node(most)});
  EXPECT_TRUE(graphs.came_before(std::vector<CudaNode>{node(0)}));
  EXPECT_FALSE(graphs.came_before(std::vector<CudaNode>{node(1)}));
}

TEST(CudaSteps, LeaveRoomForAFewMoreButNotMuch) {
  for (int64_t count = 1; count < 100000; count += 1 + count / 50) {
    const int64_t room = step_room(count);
    EXPECT_GE(room, count);
    EXPECT_LE(room - count, std::max<int64_t>(15, count / 8)) << count;
    EXPECT_EQ(step_room(room), room);
  }
  EXPECT_EQ(step_room(0), 0);
}

class CudaSteps : public testing::OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CudaSteps, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

// Sums of what is staged, step after step, into the same row.
TEST_P(CudaSteps, RunAsGraphsWhoseNumbersAreThoseOfTheStep) {
  constexpr int64_t kWidth = 100;
  const auto device = gather_steps(open());
  DeviceArray<float> sum(*device, std::vector<float>(kWidth)), scratch(*device);
  std::vector<float> expected(kWidth);
  for (unsigned i = 0; i < 6; ++i) {
    const auto x = random_floats(kWidth, i);
    StepOf step(*device, true);
    EXPECT_NE(device->step(), 0);
    const float* there = staged(*device, std::span<const float>(x), scratch);
    device->run(CudaAdd{there, 0, sum.data(), kWidth, 1, kWidth});
    if (i == 3) device->copy_in(sum.data(), expected.data(), 4);  // two lists instead of one
    device->run(CudaAdd{there, 0, sum.data(), kWidth, 1, kWidth});
    step.end();
    for (size_t c = 0; c < x.size(); ++c) {
      if (i == 3 && c == 0) {
        expected[c] += x[c];
        continue;
      }
      expected[c] = (expected[c] + x[c]) + x[c];
    }
  }
  EXPECT_EQ(sum.read(kWidth), expected);
  EXPECT_EQ(device->num_replays(), 5) << "lists 1, 2, 4, 5 and the second half of 3";
  EXPECT_EQ(scratch.size(), 0) << "staged bytes need none";
}

TEST_P(CudaSteps, WhatIsThrownInThemLeavesNothingBehind) {
  const auto device = gather_steps(open());
  const std::vector<float> one{1};
  DeviceArray<float> x(*device, one), sum(*device, one);
  EXPECT_THROW(
      {
        const StepOf step(*device, true);
        device->run(CudaAdd{x.data(), 0, sum.data(), 1, 1, 1});
        throw std::runtime_error("out of something");
      },
      std::runtime_error);
  EXPECT_EQ(device->step(), 0);
  EXPECT_EQ(sum.read(1)[0], 2);
}

TEST_P(CudaSteps, StageMoreThanTheirMemoryHoldsElsewhere) {
  constexpr int64_t kMany = 400000;
  const auto device = gather_steps(open());
  DeviceArray<float> sum(*device, std::vector<float>(kMany)), scratch(*device);
  const auto x = random_floats(kMany, 1);
  for (int i = 0; i < 2; ++i) {
    StepOf step(*device, true);
    const float* there = staged(*device, std::span<const float>(x), scratch);
    EXPECT_EQ(there == scratch.data(), i == 0) << "the second step has room";
    device->run(CudaAdd{there, 0, sum.data(), kMany, 1, kMany});
    step.end();
  }
  const auto found = sum.read(kMany);
  for (size_t c = 0; c < x.size(); ++c) ASSERT_EQ(found[c], 2 * x[c]);
}

}  // namespace
}  // namespace kvquant
