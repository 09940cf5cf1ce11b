#include "ops/cuda_device.h"

#include "base/backend.h"
#include "ops/cuda_step.h"

namespace kvquant {

std::byte* CudaDevice::allocate(int64_t num_bytes) {
  if (num_bytes <= 0) return nullptr;
  auto* data = static_cast<std::byte*>(take(num_bytes));
  allocated_bytes_ += num_bytes;
  return data;
}

void CudaDevice::release(std::byte* data, int64_t num_bytes) noexcept {
  if (data == nullptr) return;
  give(data, num_bytes);
  allocated_bytes_ -= num_bytes;
}

const void* CudaDevice::stage(const void*, int64_t) { return nullptr; }

bool is_device_emulated() { return best_backend() == Backend::kCudaEmulated; }

DeviceInfo find_model_device(int index) {
  if (!is_device_emulated()) return check_device(probe_devices(), index);
  const DeviceProbe played{
      .built_version = 1000,
      .driver_version = 1000,
      .devices = {4, {.name = "emulated by the CPU", .major = kLeastDeviceMajor}},
      .fault = ""};
  return check_device(played, index);
}

std::unique_ptr<CudaDevice> open_model_device(int index, ThreadPool& pool) {
  find_model_device(index);
  auto device =
      gather_steps(is_device_emulated() ? emulated::open_device(pool) : cuda::open_device(index));
  device->prepare_products();
  return device;
}

}  // namespace kvquant
