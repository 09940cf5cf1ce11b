// CUDA devices: what there is, and one clear line for what is missing. Nothing here falls back on
// the CPU: who asks for a GPU gets it or a DeviceError.
//
//   device.cc         the lines, pure functions of what was found
//   device_cuda.cu    finding it
//   device_nocuda.cc  in its place in a program without CUDA
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

struct DeviceInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int num_multiprocessors = 0;
  int64_t memory_bytes = 0;
  friend bool operator==(const DeviceInfo&, const DeviceInfo&) = default;
};

// What a program finds. Versions are 1000 * major + 10 * minor, 0 where there is none.
struct DeviceProbe {
  int built_version = 0;   // of CUDA that the program was built with
  int driver_version = 0;  // newest CUDA that the driver knows
  std::vector<DeviceInfo> devices;
  std::string fault;  // of the driver, in its words; empty: none
};

// The least compute capability that kernels are compiled for: 8.0.
inline constexpr int kLeastDeviceMajor = 8;

DeviceProbe probe_devices();

// Throws DeviceError, in one line: built without CUDA, no driver, driver too old, no GPU, index out
// of range, unsupported architecture.
const DeviceInfo& check_device(const DeviceProbe& probe, int index);

// The indices of "cuda" (0), "cuda:N" and "cuda:N,M,...", each once; none for "cpu". Throws
// std::invalid_argument for everything else.
std::vector<int> parse_devices(std::string_view text);

// Copies from memory of a device that another library has there, once all work of the device is
// done; the thread's current device stays what it was. Throws DeviceError.
void copy_from_device(int index, void* to, const void* from, int64_t num_bytes);

// Whether there is a first device that kernels can run on. Asked once.
bool has_usable_device();

}  // namespace kvquant
