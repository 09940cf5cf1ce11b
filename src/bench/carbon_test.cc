#include "bench/carbon.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

namespace kvquant {
namespace {

TEST(Carbon, RegionsHaveAFigureAYearASourceAndOneEntry) {
  for (const CarbonRegion& region : carbon_regions()) {
    EXPECT_GT(region.kg_per_kwh, 0) << region.name;
    EXPECT_LT(region.kg_per_kwh, 1) << region.name;
    EXPECT_EQ(region.iso3.size(), region.name == "world" ? 0u : 3u) << region.name;
    EXPECT_GE(region.year, 2021) << region.name;
    EXPECT_NE(region.source.find(std::to_string(region.year)), std::string_view::npos)
        << region.name;
    EXPECT_EQ(&carbon_region(std::string(region.name)), &region);
  }
  EXPECT_EQ(carbon_region("US").year, 2021);
  EXPECT_THROW(carbon_region("atlantis"), std::invalid_argument);
}

TEST(Carbon, AScenarioIsOfAYear) {
  // A million tokens a day at 3.6 J are 1 kWh a day.
  const EnergyScenario year =
      energy_scenario(1e6, 3.6, {.carbon_kg_per_kwh = 0.5, .price_per_kwh = 0.2});
  EXPECT_DOUBLE_EQ(year.kwh_per_year, 365);
  EXPECT_DOUBLE_EQ(year.carbon_kg_per_year, 182.5);
  EXPECT_DOUBLE_EQ(year.cost_per_year, 73);
  EXPECT_EQ(energy_scenario(0, 1, {}).kwh_per_year, 0);
  EXPECT_THROW(energy_scenario(-1, 1, {}), std::invalid_argument);
  EXPECT_THROW(energy_scenario(1, INFINITY, {}), std::invalid_argument);
  EXPECT_THROW(energy_scenario(1, 1, {.carbon_kg_per_kwh = NAN}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
