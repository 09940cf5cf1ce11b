// What the CUDA kernels of attention are given: descriptors and shared memory. Their
// results are tested with those of all backends, run by the CPU where there is no GPU.
#include "ops/attend_cuda.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "kvquant/error.h"
#include "ops/attend_coded_test_data.h"
#include "ops/attend_cuda_shared.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::only;
using testing::shape_of;
using testing::TestCodec;
using testing::TestCodedRun;
using testing::TestRandom;

TEST(AttendCuda, SharedMemoryFitsEveryGpuThatKernelsAreCompiledFor) {
  for (int64_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    const auto bytes = [&](int64_t rows, int64_t pair, bool has_sums) {
      return attend_shared_layout(head_dim, rows, pair, has_sums).num_bytes;
    };
    EXPECT_LE(bytes(kCudaFewRows, sizeof(Bf16Pair), false), kMostSharedBytes) << head_dim;
    EXPECT_LE(bytes(cuda_rows(head_dim), sizeof(Bf16Pair), false), kMostSharedBytes) << head_dim;
    EXPECT_LE(bytes(kCudaF32Rows, sizeof(FloatPair), true), kMostSharedBytes) << head_dim;
  }
}

TEST(AttendCuda, PartsOfSharedMemoryDoNotOverlap) {
  for (const int64_t head_dim : {8, 24, 80, 128, 256}) {
    const auto x = attend_shared_layout(head_dim, 16, 4, true);
    EXPECT_GE(x.values - x.keys, x.num_pairs * x.key_stride * 4);
    EXPECT_GE(x.query - x.values, 32 * x.value_stride * 4);
    EXPECT_GE(x.weights - x.query_rest, 0);
    EXPECT_GE(x.scores - x.weights, 16 * x.weight_stride * 4);
    EXPECT_GE(x.params - x.scores, 16 * x.score_stride * 4);
    EXPECT_GE(x.rows - x.params, (2 * head_dim + 2 * 64 + 2 * 16) * 4);
    EXPECT_GE(x.sums - x.rows, 6 * 16 * 4);
    EXPECT_EQ(x.num_bytes - x.sums, 16 * head_dim * 4);
  }
}

TEST(AttendCuda, DecodeStepsAreCutIntoSpansAndPrefillIntoBlocks) {
  TestRandom random(1);
  const RopeTable rope(64, 2200, 10000);
  const TestCodedRun run({4, 4, 1, 1}, rope, 2000, 0, random);
  const auto pack = [&](int64_t group, int64_t queries, Precision precision) {
    std::vector<float> out;
    const auto test = only(run).test(shape_of(64, group), queries, 2000, random);
    const AttendJob job = test.job(out);
    CudaImage image;
    return pack_attend(shape_of(64, group), {&job, 1}, precision, image);
  };
  const CudaAttendCall step = pack(4, 1, Precision::kBF16);
  EXPECT_EQ(std::ssize(step.plan.tasks), 2);  // 32 tiles, 16 a span
  EXPECT_EQ(step.num_rows, kCudaFewRows);
  EXPECT_EQ(step.plan.merges.size(), 1u);
  const CudaAttendCall prefill = pack(4, 100, Precision::kBF16);
  EXPECT_EQ(std::ssize(prefill.plan.tasks), 7);  // 16 queries a block
  EXPECT_EQ(prefill.num_rows, 64);
  EXPECT_TRUE(prefill.plan.merges.empty());
  EXPECT_EQ(pack(8, 3, Precision::kF32).plan.max_rows, kCudaF32Rows);
}

TEST(AttendCuda, CodesAreStagedWhereSharedMemoryHasRoom) {
  TestRandom random(3);
  const auto pack = [&](int64_t head_dim, TestCodec codec, Precision precision) {
    const RopeTable rope(head_dim, 200, 10000);
    const TestCodedRun run(codec, rope, 100, 0, random);
    std::vector<float> out;
    const auto test = only(run).test(shape_of(head_dim, 1), 1, 100, random);
    const AttendJob job = test.job(out);
    CudaImage image;
    const CudaAttendCall call = pack_attend(shape_of(head_dim, 1), {&job, 1}, precision, image);
    EXPECT_LE(call.shared_bytes(head_dim), kMostSharedBytes);
    return call;
  };
  const CudaAttendCall narrow = pack(80, {4, 2}, Precision::kBF16);
  EXPECT_EQ(narrow.staged_key_bytes, 64 * 80 / 2);
  EXPECT_EQ(narrow.staged_value_bytes, 64 * 80 / 4);
  const CudaAttendCall wide = pack(256, {8, 8}, Precision::kF32);
  EXPECT_EQ(wide.staged_key_bytes + wide.staged_value_bytes, 0);
}

TEST(AttendCuda, WhatKernelsDoNotReadIsRefused) {
  TestRandom random(2);
  const RopeTable rope(16, 200, 10000);
  const TestCodedRun run({4, 4}, rope, 100, 0, random);
  const AttendShape shape = shape_of(16, 9);
  std::vector<float> out;
  const auto test = only(run).test(shape, 1, 100, random);
  const AttendJob job = test.job(out);
  CudaImage image;
  EXPECT_THROW(pack_attend(shape, {&job, 1}, Precision::kF32, image), std::invalid_argument);
}

TEST(AttendCuda, WithoutAGpuItIsADeviceError) {
  if (cuda_backends().back() == Backend::kCuda) GTEST_SKIP() << "there is a GPU";
  EXPECT_THROW(cuda::attend(shape_of(16, 1), {}, Precision::kF32), DeviceError);
}

}  // namespace
}  // namespace kvquant
