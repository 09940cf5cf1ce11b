// Decode steps whose codes are never decoded to memory (attend_cuda_direct.h), where the tests of
// all backends are thin: windows that begin within tiles, several runs, heads of 96 channels, many
// outliers. Beside them what decides whether this path is taken.
#include "ops/attend_cuda_direct.h"

#include <gtest/gtest.h>

#include "ops/attend_coded_test_data.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::ErrorCheck;
using testing::MixedJob;
using testing::only;
using testing::shape_of;
using testing::TestCodec;
using testing::TestCodedRun;
using testing::TestRandom;
using testing::TestTiles;
using testing::Variant;

constexpr TestCodec kCodecs[] = {{2, 2, 1, 1}, {3, 3, 1, 1}, {4, 4, 1, 1}, {4, 2}, {2, 3}, {3, 4}};

std::vector<Variant> cuda_variants() {
  std::vector<Variant> variants;
  for (const Backend backend : cuda_backends()) variants.push_back({backend, Precision::kBF16});
  return variants;
}

CudaAttendCall pack(const MixedJob& job, const AttendShape& shape, int64_t num_queries,
                    TestRandom& random, Precision precision = Precision::kBF16) {
  std::vector<float> out;
  const auto test = job.test(shape, num_queries, 100, random);
  const AttendJob packed = test.job(out);
  CudaImage image;
  return pack_attend(shape, {&packed, 1}, precision, image);
}

TEST(AttendCudaDirect, WindowsBeginAndEndAnywhere) {
  TestRandom random(31);
  for (const TestCodec& codec : kCodecs) {
    for (const int64_t head_dim : {64, 96, 128}) {
      const RopeTable rope(head_dim, 500, 10000);
      const TestCodedRun run(codec, rope, 300, 7, random);
      for (const int64_t group : {1, 3}) {
        ErrorCheck check(shape_of(head_dim, group), cuda_variants());
        for (const int64_t window : {5, 63, 100, 200}) {
          MixedJob job;
          job.add(run);
          job.limit_last(window % 7, window);
          check.add(job.test(shape_of(head_dim, group), 2, 302, random));
        }
        check.expect_within_twice_naive(codec.name() + ", head_dim " + std::to_string(head_dim));
      }
    }
  }
}

TEST(AttendCudaDirect, RunsOfOtherKindsAndCodebooksAreMixedIn) {
  TestRandom random(32);
  for (const TestCodec& codec : kCodecs) {
    const RopeTable rope(96, 900, 10000), other_rope(96, 900, 500000);
    TestTiles sinks(DenseType::kF16, 4, 96), tail(DenseType::kF16, 100, 96);
    sinks.fill(random);
    tail.fill(random);
    const TestCodedRun first(codec, rope, 200, 4, random);
    const TestCodedRun bytes({8, 8, 1, 1}, rope, 100, 204, random);
    const TestCodedRun second({4, 3, 1, 0}, other_rope, 330, 304, random);
    MixedJob job;
    job.add(sinks.run());
    job.add(first);
    job.add(bytes);
    job.add(second);
    job.add(tail.run(634));
    ErrorCheck check(shape_of(96, 4), cuda_variants());
    for (const int64_t queries : {1, 2, 1, 2}) {
      check.add(job.test(shape_of(96, 4), queries, 734 - queries, random));
    }
    check.expect_within_twice_naive(codec.name());
  }
}

// More than a page's and a warp's in each tile, and several in a token.
TEST(AttendCudaDirect, ManyOutliersAreCorrected) {
  TestRandom random(33);
  const RopeTable rope(128, 300, 10000);
  for (const int bits : {2, 3, 4}) {
    const TestCodedRun run({bits, bits, 20, 20}, rope, 200, 0, random);
    for (const int64_t group : {1, 8}) {
      ErrorCheck check(shape_of(128, group), cuda_variants());
      for (int repeat = 0; repeat < 4; ++repeat) {
        check.add(only(run).test(shape_of(128, group), 1, 199, random));
      }
      check.expect_within_twice_naive(std::to_string(bits) + " bits");
    }
  }
}

TEST(AttendCudaDirect, IsTakenForFewRowsOfNarrowCodes) {
  TestRandom random(34);
  const RopeTable rope(64, 200, 10000), wide_rope(80, 200, 10000);
  const TestCodedRun codes({3, 2}, rope, 100, 0, random), bytes({8, 4}, rope, 100, 0, random);
  const TestCodedRun wide({3, 2}, wide_rope, 100, 0, random);
  EXPECT_EQ(pack(only(codes), shape_of(64, 8), 1, random).direct_bits, 3);
  EXPECT_EQ(pack(only(codes), shape_of(64, 8), 2, random).direct_bits, 0);
  EXPECT_EQ(pack(only(codes), shape_of(64, 8), 1, random, Precision::kF32).direct_bits, 0);
  EXPECT_EQ(pack(only(bytes), shape_of(64, 1), 1, random).direct_bits, 0);
  EXPECT_EQ(pack(only(wide), shape_of(80, 1), 1, random).direct_bits, 0);
}

// Two of the widest on a GPU of compute capability 9.0, which has 228 KiB and takes 1 of each.
TEST(AttendCudaDirect, SharedMemoryFitsEveryGpuAndTwiceTheLargest) {
  for (const int64_t head_dim : {64, 96, 128}) {
    ASSERT_TRUE(has_direct_kernel(head_dim));
    for (const int bits : {2, 3, 4}) {
      const DirectLayout layout = direct_layout(head_dim, bits);
      EXPECT_LE(layout.num_bytes, kMostSharedBytes);
      EXPECT_LE(2 * (layout.num_bytes + 1024), int64_t{228} << 10) << head_dim << ", " << bits;
    }
  }
}

TEST(AttendCudaDirect, PartsOfSharedMemoryDoNotOverlapAndAreAligned) {
  for (const int64_t head_dim : {64, 96, 128}) {
    const DirectLayout x = direct_layout(head_dim, 3);
    EXPECT_GE(x.scales - x.query, kDirectRows * x.query_stride * 4);
    EXPECT_GE(x.rest - x.states, 2 * kDirectRows * 4);
    // Sums of each warp lie over turns.
    EXPECT_GE(x.warps - x.turns, head_dim / 2 * 64 * 4);
    EXPECT_GE(x.warps - x.turns, kBlockWarps * kDirectRows * head_dim * 4);
    // Words of queries, then weights, then states, in the same place.
    EXPECT_GE(x.corrections - x.exchange, kDirectRows * (head_dim / 2 + 4) * 4);
    EXPECT_GE(x.corrections - x.exchange, 2 * kDirectRows * kPairStride * 4);
    EXPECT_GE(x.biases - x.corrections, kDirectRows * kCorrectionStride * 4);
    EXPECT_GE(x.biases - x.corrections, kDirectRows * head_dim * 4);
    EXPECT_EQ(x.num_bytes - x.pairs, 64 * kPairEntryBytes);
    for (const int64_t offset : {x.query_stride * 4, x.scales, x.rest, x.turns, x.warps,
                                 x.warp_bytes, x.exchange, x.corrections, x.tiles, x.pairs}) {
      EXPECT_EQ(offset % 16, 0);
    }
  }
}

}  // namespace
}  // namespace kvquant
