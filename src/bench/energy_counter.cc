#include "bench/energy_counter.h"

#include <utility>

namespace kvquant {

EnergyCounters find_energy_counters(const EnergySources& sources) {
  EnergyCounters found;
  if (!sources.powercap.empty()) found = find_rapl(sources.powercap);
  if (sources.gpu_id < 0) return found;
  EnergyCounters gpu = find_nvml(sources.nvml, sources.gpu_id);
  for (auto& counter : gpu.counters) found.counters.push_back(std::move(counter));
  for (auto& why : gpu.missing) found.missing.push_back(std::move(why));
  return found;
}

const char* part_name(EnergyPart part) {
  switch (part) {
    case EnergyPart::kCpu: return "cpu";
    case EnergyPart::kMemory: return "memory";
    case EnergyPart::kGpu: return "gpu";
  }
  return "";
}

}  // namespace kvquant
