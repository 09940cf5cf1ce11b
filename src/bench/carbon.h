// What energy costs: CO2 by the carbon intensity of electricity, money by its price, and both for a
// load of so many tokens a day.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvquant {

constexpr double kJoulesPerKwh = 3.6e6;

// Life-cycle emissions of the electricity that is generated in a region, in a year.
struct CarbonRegion {
  std::string_view name;  // ISO 3166 code of a country with two letters, or "world"
  std::string_view iso3;  // with three letters; empty: no country
  double kg_per_kwh;      // CO2 equivalents
  int year;               // of the mean
  std::string_view source;
};

std::span<const CarbonRegion> carbon_regions();

// Throws std::invalid_argument listing the regions there are.
const CarbonRegion& carbon_region(const std::string& name);

struct EnergyScenario {
  double kwh_per_year = 0, carbon_kg_per_year = 0, cost_per_year = 0;  // of 365 days
};

struct EnergyPrices {
  double carbon_kg_per_kwh = 0;
  double price_per_kwh = 0;  // in any currency
};

// Throws std::invalid_argument for numbers below 0 or infinite.
EnergyScenario energy_scenario(double tokens_per_day, double joules_per_token,
                               const EnergyPrices& prices);

}  // namespace kvquant
