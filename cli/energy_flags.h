// Flags of the commands that measure energy.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "bench/energy_monitor.h"

namespace kvquant::cli {

struct EnergyFlags {
  EnergySources sources;
  std::optional<double> assume_power_watts;
  std::string region = "world";
  std::optional<double> carbon_kg_per_kwh;  // in place of the region's
};

void add_energy_flags(CLI::App& command, EnergyFlags& flags);

// Throws std::invalid_argument for an unknown region.
EnergyOptions energy_options(const EnergyFlags& flags);

// Finite and at least 0: CLI11's own checks let NaN and overflow pass.
CLI::Validator amount();

}  // namespace kvquant::cli
