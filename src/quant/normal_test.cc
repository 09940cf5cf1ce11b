#include "quant/normal.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

TEST(Normal, QuantilesAreThoseOfTheTables) {
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(normal_quantile(0.995), 2.5758293035489004, 1e-12);
  EXPECT_NEAR(normal_quantile(0.5), 0, 1e-12);
}

TEST(Normal, QuantileInvertsTheDistribution) {
  for (const double x : {-5.0, -1.5, 0.25, 3.0})
    EXPECT_NEAR(normal_quantile(normal_cdf(x)), x, 1e-9);
}

}  // namespace
}  // namespace kvquant
