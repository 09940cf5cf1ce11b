#include "ops/cuda_block.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "ops/cuda_numbers.h"

namespace kvquant::emulated {
namespace {

// Small whole numbers, which are exact in bf16.
float element(int row, int column) { return static_cast<float>((row * 7 + column * 5) % 11 - 5); }

uint32_t pair_of(float first, float second) {
  return to_bfloat16(first).bits | uint32_t{to_bfloat16(second).bits} << 16;
}

// Fragments by the table of the instruction set's manual for m16n8k16, written out once more.
TEST(CudaBlock, AProductOfFragmentsIsThatOfTheMatrices) {
  Warp warp(0, ThreadOrder::kForward);
  Lanes<FragmentA> a;
  Lanes<FragmentB> b;
  Lanes<FragmentC> c;
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 8; i += 2) {  // a0 ... a7
      const int row = i == 0 || i == 1 || i == 4 || i == 5 ? g : g + 8;
      const int k = t * 2 + (i >= 4 ? 8 : 0);
      a[lane].pairs[i / 2] = pair_of(element(row, k), element(row, k + 1));
    }
    for (int i = 0; i < 4; i += 2) {  // b0 ... b3
      const int k = t * 2 + (i >= 2 ? 8 : 0);
      b[lane].pairs[i / 2] = pair_of(element(k + 20, g), element(k + 21, g));
    }
    for (float& sum : c[lane].sums) sum = 100;
  }
  warp.multiply(a, b, c);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {  // c0 ... c3
      const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = (lane & 3) * 2 + (i & 1);
      float expected = 100;
      for (int k = 0; k < 16; ++k) expected += element(row, k) * element(k + 20, column);
      EXPECT_EQ(c[lane].sums[i], expected) << "lane " << lane << ", sum " << i;
    }
  }
}

TEST(CudaBlock, ProductsOfHalvesTakeTheirBitsForHalves) {
  const Warp warp(0, ThreadOrder::kForward);
  Lanes<FragmentA> a;
  Lanes<FragmentB> b;
  Lanes<FragmentC> c;
  for (int lane = 0; lane < 32; ++lane) {
    for (uint32_t& pair : a[lane].pairs) pair = half_pair(0.5f, 1).bits;
    const int column = lane / 4;
    for (uint32_t& pair : b[lane].pairs) pair = half_pair(3, static_cast<float>(column)).bits;
  }
  warp.multiply_halves(a, b, c);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int column = lane % 4 * 2 + i % 2;
      EXPECT_EQ(c[lane].sums[i], 8 * (1.5f + static_cast<float>(column)));
    }
  }
}

TEST(CudaBlock, ThreadsExchangeWithTheOneOfTheOtherBit) {
  Lanes<int> x;
  for (int lane = 0; lane < 32; ++lane) x[lane] = 3 * lane;
  const Lanes<int> out = Warp(0, ThreadOrder::kForward).exchange(x, 4);
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(out[lane], 3 * (lane ^ 4));
}

TEST(CudaBlock, BytesArePermutedByDigits) {
  EXPECT_EQ(byte_permute(0x33221100, 0x77665544, 0x3210), 0x33221100u);
  EXPECT_EQ(byte_permute(0x33221100, 0x77665544, 0x7604), 0x77660044u);
  EXPECT_EQ(lower_halves(0x22221111, 0x44443333), 0x33331111u);
  EXPECT_EQ(upper_halves(0x22221111, 0x44443333), 0x44442222u);
}

TEST(CudaBlock, PairsOfHalvesAreTwoNumbers) {
  const HalfPair x = half_pair(2, -3), y = half_pair(5, 7);
  EXPECT_EQ(low_of(fused(x, y, half_pair(1, 2))), 11);
  EXPECT_EQ(high_of(fused(x, y, half_pair(1, 2))), -19);
  EXPECT_EQ(product(x, y).bits, half_pair(10, -21).bits);
  EXPECT_EQ(product_by_low(x, y).bits, half_pair(10, -15).bits);
  EXPECT_EQ(product_by_high(x, y).bits, half_pair(14, -21).bits);
}

TEST(CudaBlock, EveryThreadRunsOncePerPhaseInEitherOrder) {
  for (const ThreadOrder order : {ThreadOrder::kForward, ThreadOrder::kBackward}) {
    const Block block(7, nullptr, order);
    EXPECT_EQ(block.index(), 7);
    std::vector<int> threads(kBlockThreads), lanes(kBlockThreads);
    block.phase([&](int thread) { ++threads[static_cast<size_t>(thread)]; });
    block.warp_phase([&](const Warp& warp) {
      warp.each([&](int lane) { ++lanes[static_cast<size_t>(warp.index() * 32 + lane)]; });
    });
    EXPECT_EQ(threads, std::vector<int>(kBlockThreads, 1));
    EXPECT_EQ(lanes, std::vector<int>(kBlockThreads, 1));
  }
}

// What each order sees shows that a barrier is missing.
TEST(CudaBlock, ReadingWhatOtherThreadsWriteDependsOnTheOrder) {
  const auto shifted = [](ThreadOrder order) {
    std::vector<int> x(kBlockThreads + 1, 1);
    Block(0, nullptr, order).phase([&](int thread) {
      const auto i = static_cast<size_t>(thread);
      x[i + 1] = x[i] + 1;
    });
    return x;
  };
  EXPECT_NE(shifted(ThreadOrder::kForward), shifted(ThreadOrder::kBackward));
}

TEST(CudaBlock, CopiesArriveBehindTheBarrierOfThePhaseInWhichAllThreadsAwaitThem) {
  const Block block(0, nullptr, ThreadOrder::kForward);
  std::vector<int> from(4 * kBlockThreads, 7), to(4 * kBlockThreads, 1);
  block.each([&](int thread) {
    const auto i = static_cast<size_t>(4 * thread);
    block.copy_ahead(reinterpret_cast<std::byte*>(&to[i]), reinterpret_cast<std::byte*>(&from[i]));
  });
  block.phase([&](int thread) {
    if (thread > 0) block.await_copies();  // one forgets
  });
  EXPECT_EQ(to, std::vector<int>(to.size(), 1));
  block.phase([&](int thread) {
    block.await_copies();
    EXPECT_EQ(to[static_cast<size_t>(thread)], 1);
  });
  EXPECT_EQ(to, from);
}

TEST(CudaBlock, WarpsReduceAllTheirThreads) {
  Lanes<float> x;
  for (int lane = 0; lane < 32; ++lane) x[lane] = static_cast<float>((lane * 13) % 32);
  const Warp warp(0, ThreadOrder::kForward);
  EXPECT_EQ(warp.max(x), 31);
  EXPECT_EQ(warp.sum(x), 496);
}

}  // namespace
}  // namespace kvquant::emulated
