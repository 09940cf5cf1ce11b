// Formulas by hand; those of transformers are compared in model/rope_json_test.cc.
#include "ops/rope_scaling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>

namespace kvquant {
namespace {

using Type = RopeScalingType;

TEST(RopeScaling, WithoutItFrequenciesArePowersOfTheta) {
  const auto f = rope_frequencies(8, 10000, {}, 100);
  ASSERT_EQ(f.size(), 4u);
  for (size_t c = 0; c < 4; ++c) EXPECT_NEAR(f[c], std::pow(10.0, -static_cast<double>(c)), 1e-15);
  const auto divided = rope_frequencies(8, 10000, {.divisors = {1, 2, 4, 8}}, 100);
  for (size_t c = 0; c < 4; ++c) EXPECT_DOUBLE_EQ(divided[c], f[c] / (1 << c));
}

TEST(RopeScaling, LinearDividesAllFrequencies) {
  const auto f = rope_frequencies(8, 10000, {.type = Type::kLinear, .factor = 4}, 100);
  for (size_t c = 0; c < 4; ++c)
    EXPECT_NEAR(f[c], std::pow(10.0, -static_cast<double>(c)) / 4, 1e-15);
}

TEST(RopeScaling, DynamicIsPlainUpToTheOriginalContext) {
  const RopeScaling scaling{.type = Type::kDynamic, .factor = 2, .original_context = 100};
  EXPECT_EQ(rope_frequencies(8, 10000, scaling, 1), rope_frequencies(8, 10000, {}, 1));
  EXPECT_EQ(rope_frequencies(8, 10000, scaling, 100), rope_frequencies(8, 10000, {}, 1));
  const auto f = rope_frequencies(8, 10000, scaling, 250);  // 2 * 2.5 - 1 = 4
  const double theta = 10000 * std::pow(4.0, 8.0 / 6);
  for (size_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(f[c], std::pow(theta, -static_cast<double>(c) / 4), 1e-15);
  }
}

TEST(RopeScaling, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const RopeScaling scaling{.type = Type::kLlama3,
                            .factor = 8,
                            .original_context = 628,  // wavelengths are 6.28, 62.8, 628, 6283
                            .low_freq_factor = 2,
                            .high_freq_factor = 20};
  const auto f = rope_frequencies(8, 10000, scaling, 100);
  EXPECT_DOUBLE_EQ(f[0], 1);
  const double kept = (628 / (20 * std::numbers::pi) - 2) / 18;
  EXPECT_NEAR(f[1], 0.1 * (kept + (1 - kept) / 8), 1e-15);
  EXPECT_NEAR(f[2], 0.01 / 8, 1e-15);
  EXPECT_NEAR(f[3], 0.001 / 8, 1e-15);
}

TEST(RopeScaling, YarnBlendsBetweenTwoPairs) {
  // beta turns of 2 pi 10^(p / 2) tokens each: pair p.
  const double original = 20000 * std::numbers::pi;
  const RopeScaling scaling{.type = Type::kYarn,
                            .factor = 4,
                            .original_context = static_cast<int64_t>(original),
                            .beta_fast = 10000,
                            .beta_slow = 10,
                            .truncate = true};
  const auto f = rope_frequencies(16, 10000, scaling, 100);  // 10^(-c / 2), from pair 0 to 6
  for (size_t c = 0; c < 8; ++c) {
    const double stretched = std::min(1.0, static_cast<double>(c) / 6);
    const double plain = std::pow(10.0, -static_cast<double>(c) / 2);
    EXPECT_NEAR(f[c], plain * (1 - stretched + stretched / 4), 1e-12) << c;
  }
}

TEST(RopeScaling, FrequenciesFall) {
  for (const Type type : {Type::kNone, Type::kLinear, Type::kDynamic, Type::kLlama3, Type::kYarn}) {
    for (const double factor : {1.0, 1.5, 8.0, 1000.0}) {
      for (const int64_t original : {2048, 8192, 262144}) {
        const RopeScaling scaling{.type = type, .factor = factor, .original_context = original};
        const auto f = rope_frequencies(128, 500000, scaling, 100000);
        EXPECT_TRUE(std::is_sorted(f.rbegin(), f.rend())) << rope_scaling_name(type) << factor;
        EXPECT_GT(f.back(), 0);
        EXPECT_LE(f.front(), 1);
      }
    }
  }
}

TEST(RopeScaling, YarnsAttentionFactorIsThatOfItsAuthors) {
  EXPECT_EQ(yarn_attention_factor(1), 1);
  EXPECT_EQ(yarn_attention_factor(0.5), 1);
  EXPECT_DOUBLE_EQ(yarn_attention_factor(4), 0.1 * std::log(4.0) + 1);
  EXPECT_DOUBLE_EQ(yarn_attention_factor(40, 1, 1), 1);
  EXPECT_DOUBLE_EQ(yarn_attention_factor(40, 0.7, 0), 0.1 * std::log(40.0) + 1);
  EXPECT_DOUBLE_EQ(yarn_attention_factor(40, 2, 1),
                   (0.2 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1));
}

TEST(RopeScaling, FaultsAreNamed) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const auto expect_fault = [](const RopeScaling& scaling, double theta, const std::string& part) {
    const std::string fault = rope_scaling_fault(scaling, theta, 16);
    EXPECT_NE(fault.find(part), std::string::npos) << part << ": " << fault;
    EXPECT_THROW(rope_frequencies(16, theta, scaling, 10), std::invalid_argument);
  };
  EXPECT_EQ(rope_scaling_fault({}, 10000, 16), "");
  expect_fault({}, 0, "theta 0");
  expect_fault({}, kNan, "theta");
  expect_fault({.factor = 0}, 10, "factor 0");
  expect_fault({.factor = kNan}, 10, "factor");
  for (const Type type : {Type::kDynamic, Type::kLlama3, Type::kYarn}) {
    expect_fault({.type = type}, 10, "original_max_position_embeddings 0");
  }
  const RopeScaling llama3{.type = Type::kLlama3, .original_context = 10};
  RopeScaling scaling = llama3;
  scaling.low_freq_factor = 0;
  expect_fault(scaling, 10, "low_freq_factor 0");
  scaling = llama3;
  scaling.high_freq_factor = kNan;
  expect_fault(scaling, 10, "high_freq_factor nan");
  const RopeScaling yarn{.type = Type::kYarn, .original_context = 10};
  EXPECT_EQ(rope_scaling_fault(yarn, 10, 16), "");
  expect_fault(yarn, 1, "theta 1");
  scaling = yarn;
  scaling.beta_slow = 64;
  expect_fault(scaling, 10, "beta_slow 64");
  scaling = yarn;
  scaling.attention_factor = -1;
  expect_fault(scaling, 10, "attention_factor -1");
  expect_fault({.divisors = {1, 2}}, 10, "2 divisors of frequencies, not 8");
  expect_fault({.divisors = std::vector<double>(8, 0.0)}, 10, "divisor 0");
}

}  // namespace
}  // namespace kvquant
