#include "quant/waterfill.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

namespace kvquant {
namespace {

std::vector<double> falling(int64_t rank, double factor) {
  std::vector<double> out;
  for (int64_t i = 0; i < rank; ++i) out.push_back(std::pow(factor, static_cast<double>(i)));
  return out;
}

CodeBands bands_of(const std::vector<double>& energies, double bits) {
  return choose_bands({energies, energies}, bits);
}

TEST(Waterfill, EqualComponentsGetEqualBits) {
  const std::vector<double> flat(64, 1.0);
  EXPECT_EQ(bands_of(flat, 8), (CodeBands{{64, 0, 0}}));
  EXPECT_EQ(bands_of(flat, 4), (CodeBands{{0, 64, 0}}));
  EXPECT_EQ(bands_of(flat, 2), (CodeBands{{0, 0, 64}}));
  EXPECT_EQ(bands_of(flat, 3), (CodeBands{{0, 32, 32}}));
}

TEST(Waterfill, LargeComponentsGetMoreAndTinyOnesNone) {
  const CodeBands steep = bands_of(falling(64, 0.8), 4);
  EXPECT_GT(steep.channels[0], 0);
  EXPECT_LT(steep.num_channels(), 64);
  std::vector<double> two_steps(64, 1e-9);
  for (size_t i = 0; i < 16; ++i) two_steps[i] = 1;
  EXPECT_EQ(bands_of(two_steps, 2), (CodeBands{{16, 0, 0}}));
}

TEST(Waterfill, WhatAttentionLosesWithAComponentCountsNotItsNoise) {
  const std::vector<double> noise = falling(64, 0.8), dropped(64, 100.0);
  EXPECT_EQ(choose_bands({dropped, noise}, 4).num_channels(), 64);
}

TEST(Waterfill, TheBudgetIsOfComponentsAndTheLastGroupMayBeSmaller) {
  const std::vector<double> flat(41, 1.0);
  EXPECT_EQ(bands_of(flat, 8), (CodeBands{{48, 0, 0}}));  // zeros behind the last component
  EXPECT_EQ(bands_of(flat, 4), (CodeBands{{0, 48, 0}}));
  EXPECT_EQ(bands_of({1, 1, 1}, 2.5), (CodeBands{{0, 0, 8}}));
  for (const double bits : {0.9, 1.3, 2.2, 3.1, 4.7, 6.6}) {
    const CodeBands bands = bands_of(falling(41, 0.97), bits);
    const int64_t behind = std::max<int64_t>(0, bands.num_channels() - 41);
    const auto taken = 8 * bands.channels[0] + 4 * bands.channels[1] + 2 * bands.channels[2];
    EXPECT_LE(static_cast<double>(taken - 8 * behind), bits * 41) << bits;
    EXPECT_EQ(bands.channels[0] % 16 * (bands.channels[1] + bands.channels[2]), 0);
  }
}

TEST(Waterfill, TooFewBitsAreRefused) {
  EXPECT_THROW(bands_of(std::vector<double>(64, 1.0), 0.49), std::invalid_argument);
  EXPECT_NO_THROW(bands_of(std::vector<double>(64, 1.0), 0.5));
  EXPECT_THROW(bands_of(std::vector<double>(10, 1.0), 1.9), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
