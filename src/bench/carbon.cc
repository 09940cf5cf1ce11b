#include "bench/carbon.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr std::array kRegions = {
    CarbonRegion{"world", 0.481, 2023}, CarbonRegion{"AR", 0.354, 2023},
    CarbonRegion{"AT", 0.111, 2023},    CarbonRegion{"AU", 0.549, 2023},
    CarbonRegion{"BE", 0.138, 2023},    CarbonRegion{"BR", 0.098, 2023},
    CarbonRegion{"CA", 0.170, 2023},    CarbonRegion{"CL", 0.291, 2023},
    CarbonRegion{"CN", 0.582, 2023},    CarbonRegion{"CZ", 0.450, 2023},
    CarbonRegion{"DE", 0.381, 2023},    CarbonRegion{"DK", 0.152, 2023},
    CarbonRegion{"FI", 0.079, 2023},    CarbonRegion{"FR", 0.056, 2023},
    CarbonRegion{"GR", 0.337, 2023},    CarbonRegion{"HU", 0.204, 2023},
    CarbonRegion{"IE", 0.291, 2023},    CarbonRegion{"IN", 0.713, 2023},
    CarbonRegion{"NO", 0.030, 2023},
};

bool is_amount(double value) { return std::isfinite(value) && value >= 0; }

}  // namespace

const char* const kCarbonSource =
    "Ember (2024) and Energy Institute (2024), processed by Our World in Data: carbon intensity of "
    "electricity generation";

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
