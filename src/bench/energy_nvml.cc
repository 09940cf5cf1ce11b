// NVML, opened when it is asked for: neither its headers nor a GPU are needed to build.
#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <optional>

#include "bench/energy_counter.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

// nvml.h's, which is stable by its own promise.
using Status = int;  // 0: done
using Device = struct NvmlDevice*;

constexpr Status kDone = 0;

// The functions of an open library, which is shut down with this.
class Nvml {
 public:
  // Throws DeviceError saying what is missing.
  explicit Nvml(const std::string& library)
      : handle_(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw DeviceError(dlerror());
    try {
      load("nvmlInit_v2", init_);
      load("nvmlShutdown", shutdown_);
      load("nvmlErrorString", error_string_);
      load("nvmlDeviceGetHandleByIndex_v2", device_by_index_);
      load("nvmlDeviceGetName", device_name_);
      load("nvmlDeviceGetTotalEnergyConsumption", total_energy_);
      check(init_(), "nvmlInit_v2");
    } catch (const DeviceError&) {
      dlclose(handle_);
      throw;
    }
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml() {
    shutdown_();
    dlclose(handle_);
  }

  Device device(int index) const {
    Device device = nullptr;
    check(device_by_index_(static_cast<unsigned>(index), &device),
          fmt::format("GPU {}", index).c_str());
    return device;
  }
  std::string name(Device device) const {
    std::array<char, 97> text{};
    const Status status = device_name_(device, text.data(), text.size() - 1);
    return status == kDone ? text.data() : "unknown";
  }
  int64_t millijoules(Device device) const {
    unsigned long long value = 0;
    check(total_energy_(device, &value), "total energy");
    return static_cast<int64_t>(value);
  }

 private:
  template <class Fn>
  void load(const char* name, Fn*& function) {
    void* symbol = dlsym(handle_, name);
    if (symbol == nullptr) throw DeviceError(fmt::format("it has no {}", name));
    function = reinterpret_cast<Fn*>(symbol);
  }
  void check(Status status, const char* what) const {
    if (status != kDone) throw DeviceError(fmt::format("{}: {}", what, error_string_(status)));
  }

  void* handle_;
  Status (*init_)() = nullptr;
  Status (*shutdown_)() = nullptr;
  const char* (*error_string_)(Status) = nullptr;
  Status (*device_by_index_)(unsigned, Device*) = nullptr;
  Status (*device_name_)(Device, char*, unsigned) = nullptr;
  Status (*total_energy_)(Device, unsigned long long*) = nullptr;
};

class NvmlCounter final : public EnergyCounter {
 public:
  NvmlCounter(const std::string& library, int index)
      : nvml_(library),
        device_(nvml_.device(index)),
        name_(fmt::format("nvml {} ({})", index, nvml_.name(device_))),
        first_(nvml_.millijoules(device_)) {}

  std::string name() const override { return name_; }
  EnergyPart part() const override { return EnergyPart::kGpu; }
  double joules() override {
    return static_cast<double>(nvml_.millijoules(device_) - first_) * 1e-3;
  }

 private:
  Nvml nvml_;
  Device device_;
  std::string name_;
  int64_t first_;  // millijoules
};

}  // namespace

EnergyCounters find_nvml(const std::string& library, int gpu_id) {
  EnergyCounters found;
  try {
    found.counters.push_back(std::make_unique<NvmlCounter>(library, gpu_id));
  } catch (const DeviceError& error) {
    found.missing.push_back(fmt::format("nvml: {}", error.what()));
  }
  return found;
}

}  // namespace kvquant
