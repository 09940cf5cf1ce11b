#include "base/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace kvquant {
namespace {

TEST(CounterRng, MixingIsSplitMix64) {  // first outputs of the published generator for seed 1234567
  EXPECT_EQ(mix64(1234567 + 0x9E3779B97F4A7C15u), 6457827717110365317u);
  EXPECT_EQ(mix64(1234567 + 2 * 0x9E3779B97F4A7C15u), 3203168211198807973u);
}

TEST(CounterRng, NumbersDependOnSeedStreamAndIndexOnly) {
  EXPECT_EQ(CounterRng(1, 2).bits(3), CounterRng(1, 2).bits(3));
  EXPECT_NE(CounterRng(1, 2).bits(3), CounterRng(1, 2).bits(4));
  EXPECT_NE(CounterRng(1, 2).bits(3), CounterRng(1, 3).bits(3));
  EXPECT_NE(CounterRng(1, 2).bits(3), CounterRng(2, 2).bits(3));
}

TEST(CounterRng, UniformNumbersFillTheUnitInterval) {
  const CounterRng rng(7);
  double sum = 0, low = 1, high = 0;
  constexpr int kCount = 100000;
  std::vector<int> hits(10);
  for (int i = 0; i < kCount; ++i) {
    const double x = rng.uniform(static_cast<uint64_t>(i));
    sum += x;
    low = std::min(low, x);
    high = std::max(high, x);
    ++hits[rng.below(static_cast<uint64_t>(i), 10)];
  }
  EXPECT_NEAR(sum / kCount, 0.5, 0.005);
  EXPECT_GE(low, 0.0);
  EXPECT_LT(low, 0.001);
  EXPECT_GT(high, 0.999);
  EXPECT_LT(high, 1.0);
  for (const int count : hits) EXPECT_NEAR(count, kCount / 10, 500);
}

TEST(CounterRng, NormalsHaveTheMomentsAndTailsOfNormals) {
  const CounterRng rng(11);
  constexpr int kPairs = 500000;
  double sum = 0, sum2 = 0, sum4 = 0, product = 0;
  int beyond_two = 0, beyond_four = 0;
  for (int i = 0; i < kPairs; ++i) {
    const auto [a, b] = rng.normals(static_cast<uint64_t>(i));
    product += double{a} * b;
    for (const double x : {double{a}, double{b}}) {
      sum += x;
      sum2 += x * x;
      sum4 += x * x * x * x;
      beyond_two += std::abs(x) > 2;
      beyond_four += std::abs(x) > 4;
    }
  }
  const double count = 2.0 * kPairs;
  EXPECT_NEAR(sum / count, 0, 0.005);
  EXPECT_NEAR(sum2 / count, 1, 0.01);
  EXPECT_NEAR(sum4 / count, 3, 0.05);
  EXPECT_NEAR(product / kPairs, 0, 0.01);
  EXPECT_NEAR(beyond_two / count, 0.0455, 0.001);
  EXPECT_GT(beyond_four, 30);  // 63 expected
  EXPECT_LT(beyond_four, 110);
}

TEST(CounterRng, TheLogarithmIsAccurate) {
  for (uint64_t k = 1; k <= (1ull << 32); k += 1 + k / 7) {
    const double exact = std::log(static_cast<double>(k) * 0x1p-32);
    EXPECT_NEAR(rng_detail::log_of_fraction(k), exact, 2e-6 * (1 - exact / 4)) << k;
  }
  EXPECT_EQ(rng_detail::log_of_fraction(1ull << 32), 0.0f);
}

}  // namespace
}  // namespace kvquant
