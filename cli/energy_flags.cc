#include "cli/energy_flags.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace kvquant::cli {

CLI::Validator amount() {
  return {[](std::string& text) {
            double value = 0;
            const char* end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            const bool ok =
                error == std::errc() && stop == end && std::isfinite(value) && value >= 0;
            return ok ? std::string() : fmt::format("'{}' is not a number of at least 0", text);
          },
          "NUMBER>=0"};
}

void add_energy_flags(CLI::App& command, EnergyFlags& flags) {
  command
      .add_option("--assume-power", flags.assume_power_watts,
                  "watts to assume where there is no counter; results say so")
      ->check(amount());
  command
      .add_option("--region", flags.region,
                  "whose electricity: world or a country, e.g. DE (for CO2)")
      ->capture_default_str();
  command
      .add_option("--carbon-intensity", flags.carbon_kg_per_kwh,
                  "kg of CO2 per kWh, in place of the region's")
      ->check(amount());
  command.add_option("--powercap", flags.sources.powercap, "folder of RAPL's counters")
      ->capture_default_str();
  command.add_option("--nvml", flags.sources.nvml, "library of NVIDIA's counters")
      ->capture_default_str();
}

EnergyOptions energy_options(const EnergyFlags& flags) {
  const double of_region = carbon_region(flags.region).kg_per_kwh;
  return {.sources = flags.sources,
          .assume_power_watts = flags.assume_power_watts,
          .carbon_kg_per_kwh = flags.carbon_kg_per_kwh.value_or(of_region)};
}

}  // namespace kvquant::cli
