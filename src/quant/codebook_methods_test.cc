#include "quant/codebook_methods.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>

#include "formats/nuq_codebook.h"
#include "kvquant/codebook.h"

namespace kvquant {
namespace {

constexpr CodebookMethod kAll[] = {CodebookMethod::kExact, CodebookMethod::kLloyd,
                                   CodebookMethod::kNormalFloat, CodebookMethod::kUniform,
                                   CodebookMethod::kHeuristic};

std::vector<float> skewed_values(size_t size) {
  std::mt19937 rng(11);
  std::gamma_distribution<float> gamma(2, 0.12f);
  std::vector<float> values(size);
  for (float& x : values) x = std::min(gamma(rng), 2.0f) - 1;
  return values;
}

TEST(CodebookMethods, EveryMethodMakesACodebookAndExactCostsLeast) {
  const auto values = skewed_values(3000);
  for (const int bits : {2, 3, 4}) {
    const auto best = fit_codebook(CodebookMethod::kExact, {values, {}}, bits);
    for (const CodebookMethod method : kAll) {
      const auto levels = fit_codebook(method, {values, {}}, bits);
      EXPECT_EQ(make_codebook(levels).bits, bits);
      EXPECT_EQ(fit_codebook(method, {values, {}}, bits), levels);
      EXPECT_LE(codebook_cost({values, {}}, best), codebook_cost({values, {}}, levels));
      EXPECT_THROW(fit_codebook(method, {values, {}}, 5), std::invalid_argument);
      EXPECT_THROW(fit_codebook(method, {}, bits), std::invalid_argument);
    }
  }
}

TEST(CodebookMethods, NamesGoBothWays) {
  for (const CodebookMethod method : kAll) {
    EXPECT_EQ(parse_codebook_method(to_string(method)), method);
  }
  EXPECT_THROW(parse_codebook_method("kmeans"), std::invalid_argument);
}

TEST(CodebookMethods, NormalFloatOfFourBitsIsThePublishedOne) {
  const double published[] = {-1.0,
                              -0.6961928009986877,
                              -0.5250730514526367,
                              -0.39491748809814453,
                              -0.28444138169288635,
                              -0.18477343022823334,
                              -0.09105003625154495,
                              0.0,
                              0.07958029955625534,
                              0.16093020141124725,
                              0.24611230194568634,
                              0.33791524171829224,
                              0.44070982933044434,
                              0.5626170039176941,
                              0.7229568362236023,
                              1.0};
  const auto levels = normal_float_codebook(4);
  for (size_t i = 0; i < levels.size(); ++i) EXPECT_NEAR(levels[i], published[i], 1e-5) << i;
}

TEST(CodebookMethods, UniformLevelsAreEvenlySpaced) {
  const auto levels = uniform_codebook(2);
  EXPECT_EQ(levels.front(), -1);
  EXPECT_EQ(levels.back(), 1);
  EXPECT_FLOAT_EQ(levels[1], -1.0f / 3);
  EXPECT_FLOAT_EQ(levels[2], 1.0f / 3);
}

TEST(CodebookMethods, LloydReachesAFixedPointAndTheSeedMatters) {
  const auto values = skewed_values(2000);
  const auto a = lloyd_codebook({values, {}}, 4, LloydStart::kPlusPlus, 1);
  EXPECT_EQ(lloyd_codebook({values, {}}, 4, LloydStart::kPlusPlus, 1), a);
  EXPECT_NE(lloyd_codebook({values, {}}, 4, LloydStart::kPlusPlus, 2), a);
  EXPECT_LT(codebook_cost({values, {}}, lloyd_codebook({values, {}}, 4, LloydStart::kQuantiles)),
            codebook_cost({values, {}}, uniform_codebook(4)));
}

TEST(CodebookMethods, LloydWithFewDistinctValuesKeepsThem) {
  const std::vector<float> values = {0.25f, 0.25f, -0.75f, 0.25f};
  for (const LloydStart start : {LloydStart::kQuantiles, LloydStart::kPlusPlus}) {
    const auto levels = lloyd_codebook({values, {}}, 3, start);
    EXPECT_NO_THROW(make_codebook(levels));
    EXPECT_EQ(codebook_cost({values, {}}, levels), 0);
  }
}

TEST(CodebookMethods, CostByHand) {
  const std::vector<float> values = {-2, 0, 0.5f, 1}, weights = {1, 2, 4, 8};
  // Nearest of {0, 1}: 0 (error 4), 0, 0 (a tie: 1/4), 1.
  EXPECT_DOUBLE_EQ(codebook_cost({values, weights}, std::vector<float>{0, 1}), 4 + 4 * 0.25);
}

}  // namespace
}  // namespace kvquant
