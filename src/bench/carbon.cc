#include "bench/carbon.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr const char* kOurWorldInData2023 =
    "Ember (2024) and Energy Institute (2024), processed by Our World in Data: carbon intensity of "
    "electricity generation, 2023";
constexpr const char* kOurWorldInData2021 =
    "Our World in Data, as in CodeCarbon's global_energy_mix.json: carbon intensity of electricity "
    "generation, 2021";
constexpr const char* kStatista2023 =
    "Statista: carbon intensity of the power sector in the European Union, life cycle, 2023";

constexpr CarbonRegion in_2023(std::string_view name, std::string_view iso3, double kg_per_kwh) {
  return {name, iso3, kg_per_kwh, 2023, kOurWorldInData2023};
}
constexpr CarbonRegion in_2021(std::string_view name, std::string_view iso3, double kg_per_kwh) {
  return {name, iso3, kg_per_kwh, 2021, kOurWorldInData2021};
}

constexpr std::array kRegions = {
    in_2023("world", "", 0.481),
    in_2023("AR", "ARG", 0.354),
    in_2023("AT", "AUT", 0.111),
    in_2023("AU", "AUS", 0.549),
    in_2023("BE", "BEL", 0.138),
    in_2023("BR", "BRA", 0.098),
    in_2023("CA", "CAN", 0.170),
    in_2023("CL", "CHL", 0.291),
    in_2023("CN", "CHN", 0.582),
    in_2023("CZ", "CZE", 0.450),
    in_2023("DE", "DEU", 0.381),
    in_2023("DK", "DNK", 0.152),
    in_2021("ES", "ESP", 0.194),
    in_2023("FI", "FIN", 0.079),
    in_2023("FR", "FRA", 0.056),
    in_2021("GB", "GBR", 0.268),
    in_2023("GR", "GRC", 0.337),
    in_2023("HU", "HUN", 0.204),
    in_2023("IE", "IRL", 0.291),
    in_2023("IN", "IND", 0.713),
    in_2021("IS", "ISL", 0.029),
    in_2021("IT", "ITA", 0.341),
    in_2021("JP", "JPN", 0.479),
    in_2021("KR", "KOR", 0.458),
    in_2023("NO", "NOR", 0.030),
    CarbonRegion{"PL", "POL", 0.662, 2023, kStatista2023},
    CarbonRegion{"SE", "SWE", 0.041, 2023, kStatista2023},
    in_2021("TR", "TUR", 0.430),
    in_2021("TW", "TWN", 0.573),
    in_2021("US", "USA", 0.379),
    in_2021("ZA", "ZAF", 0.716),
};

bool is_amount(double value) { return std::isfinite(value) && value >= 0; }

}  // namespace

std::span<const CarbonRegion> carbon_regions() { return kRegions; }

const CarbonRegion& carbon_region(const std::string& name) {
  std::vector<std::string_view> names;
  for (const CarbonRegion& region : kRegions) {
    if (region.name == name) return region;
    names.push_back(region.name);
  }
  throw std::invalid_argument(fmt::format(
      "no carbon intensity is known of region '{}': give it in kg per kWh, or one of {}", name,
      fmt::join(names, ", ")));
}

EnergyScenario energy_scenario(double tokens_per_day, double joules_per_token,
                               const EnergyPrices& prices) {
  for (const double value :
       {tokens_per_day, joules_per_token, prices.carbon_kg_per_kwh, prices.price_per_kwh}) {
    check_arg(is_amount(value), fmt::format("energy scenario: {} is no amount", value));
  }
  const double kwh = 365 * tokens_per_day * joules_per_token / kJoulesPerKwh;
  return {kwh, kwh * prices.carbon_kg_per_kwh, kwh * prices.price_per_kwh};
}

}  // namespace kvquant
