#include "base/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/check.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

std::string version_name(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string range_name(size_t count) {
  return count == 1 ? "there is only cuda:0"
                    : fmt::format("there are cuda:0 to cuda:{}", count - 1);
}

// What is wrong with the machine or the program, whatever device is asked for.
std::string describe_fault(const DeviceProbe& probe) {
  if (probe.built_version == 0) {
    return "this program was built without CUDA; configure it with -DKVQUANT_CUDA=ON where nvcc is";
  }
  if (probe.driver_version == 0) return "no NVIDIA driver was found";
  if (probe.driver_version / 1000 < probe.built_version / 1000) {
    return fmt::format("the NVIDIA driver knows CUDA {}, this program needs {}; update the driver",
                       version_name(probe.driver_version), version_name(probe.built_version));
  }
  if (!probe.fault.empty()) return "the NVIDIA driver says: " + probe.fault;
  return probe.devices.empty() ? "no NVIDIA GPU was found" : "";
}

}  // namespace

const DeviceInfo& check_device(const DeviceProbe& probe, int index) {
  const std::string fault = describe_fault(probe);
  if (!fault.empty()) throw DeviceError(fmt::format("device cuda:{}: {}", index, fault));
  if (index < 0 || static_cast<size_t>(index) >= probe.devices.size()) {
    throw DeviceError(
        fmt::format("device cuda:{} is out of range: {}", index, range_name(probe.devices.size())));
  }
  const DeviceInfo& device = probe.devices[static_cast<size_t>(index)];
  if (device.major < kLeastDeviceMajor) {
    throw DeviceError(
        fmt::format("device cuda:{} ({}) has compute capability {}.{}, kernels need "
                    "{}.0 or more",
                    index, device.name, device.major, device.minor, kLeastDeviceMajor));
  }
  return device;
}

std::vector<int> parse_devices(std::string_view text) {
  if (text == "cpu") return {};
  if (text == "cuda") return {0};
  constexpr std::string_view kPrefix = "cuda:";
  const auto check = [&](bool condition) {
    check_arg(condition, fmt::format("--device {} is unknown: cpu, cuda, cuda:N or, for layers on "
                                     "several, cuda:N,M",
                                     text));
  };
  check(text.starts_with(kPrefix));
  std::vector<int> indices;
  const char *next = text.data() + kPrefix.size() - 1, *end = text.data() + text.size();
  while (next != end) {
    int index = 0;
    const auto [stop, error] = std::from_chars(next + 1, end, index);  // behind a colon or comma
    check(error == std::errc() && index >= 0 && (stop == end || *stop == ','));
    check_arg(std::find(indices.begin(), indices.end(), index) == indices.end(),
              fmt::format("--device {}: cuda:{} is there twice", text, index));
    indices.push_back(index);
    next = stop;
  }
  return indices;
}

bool has_usable_device() {
  static const bool usable = [] {
    try {
      check_device(probe_devices(), 0);
      return true;
    } catch (const DeviceError&) {
      return false;
    }
  }();
  return usable;
}

}  // namespace kvquant
