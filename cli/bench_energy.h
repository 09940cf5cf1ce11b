// kvquant bench --device: what the GPU takes, by its own counter.
#pragma once

#include <memory>
#include <string>

#include "bench/model_bench.h"
#include "bench/result.h"

namespace kvquant::cli {

// Of the one GPU that `device` names as --device does; null on the CPU and for several GPUs.
// `nvml`: its library, by default the system's; a device that the CPU plays has only a given one.
std::unique_ptr<EnergyMeter> gpu_meter(const std::string& device, const std::string& nvml);

// "energy": how it is known, "energy_note", and, null where there is no figure, "joules" (a
// repetition), "joules_per_token" and "watts". Nothing without a meter.
Json energy_fields(const ModelBenchRow& row);

}  // namespace kvquant::cli
