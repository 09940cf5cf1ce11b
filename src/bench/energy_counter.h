// Counters of energy that the machine keeps: RAPL of the processor, read through Linux's powercap
// folder, and the total of NVIDIA GPUs, read through NVML. What is not there is said, not guessed.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace kvquant {

enum class EnergyPart { kCpu, kMemory, kGpu };

// Not thread-safe.
class EnergyCounter {
 public:
  virtual ~EnergyCounter() = default;
  virtual std::string name() const = 0;  // "rapl package-0", "nvml 0 (NVIDIA H200)"
  virtual EnergyPart part() const = 0;
  // Since it was found. A counter that wraps around has to be read at least once a wrap, which
  // takes minutes. Throws DeviceError when it can't be read any more.
  virtual double joules() = 0;
};

struct EnergyCounters {
  std::vector<std::unique_ptr<EnergyCounter>> counters;
  std::vector<std::string> missing;  // what was looked for and why it can't be read, a line each
};

// The packages of /sys/class/powercap and their memory. Cores and graphics are parts of a package
// and not counted again.
EnergyCounters find_rapl(const std::string& powercap);

// The GPU's energy since its driver was loaded, by nvmlDeviceGetTotalEnergyConsumption. `library`:
// as dlopen takes it.
EnergyCounters find_nvml(const std::string& library, int gpu_id);

struct EnergySources {
  std::string powercap = "/sys/class/powercap";  // empty: processors are not asked
  std::string nvml = "libnvidia-ml.so.1";
  int gpu_id = 0;  // below 0: GPUs are not asked
};

EnergyCounters find_energy_counters(const EnergySources& sources);

const char* part_name(EnergyPart part);  // "cpu", "memory", "gpu"

}  // namespace kvquant
