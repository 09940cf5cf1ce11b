#include "cli/bench_energy.h"

#include "base/device.h"
#include "ops/cuda_device.h"

namespace kvquant::cli {

std::unique_ptr<EnergyMeter> gpu_meter(const std::string& device, const std::string& nvml) {
  const auto devices = parse_devices(device);
  if (devices.size() != 1 || (is_device_emulated() && nvml.empty())) return nullptr;
  EnergyOptions options;
  options.sources.powercap.clear();
  if (!nvml.empty()) options.sources.nvml = nvml;
  options.sources.gpu_id = devices[0];
  return std::make_unique<EnergyMeter>(options);
}

Json energy_fields(const ModelBenchRow& row) {
  if (!row.energy) return Json::object();
  const auto& joules = row.energy->energy_joules;
  const auto repetitions = static_cast<double>(row.samples_s.size());
  const auto tokens = static_cast<double>((row.n_prompt + row.n_gen) * row.batch);
  return {{"energy", kind_name(row.energy->kind)},
          {"energy_note", row.energy->note},
          {"joules", joules ? Json(*joules / repetitions) : Json(nullptr)},
          {"joules_per_token", joules ? Json(*joules / repetitions / tokens) : Json(nullptr)},
          {"watts", joules ? Json(*row.energy->avg_power_watts) : Json(nullptr)}};
}

}  // namespace kvquant::cli
