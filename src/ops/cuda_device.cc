#include "ops/cuda_device.h"

namespace kvquant {

std::byte* CudaDevice::allocate(int64_t num_bytes) {
  if (num_bytes <= 0) return nullptr;
  auto* data = static_cast<std::byte*>(take(num_bytes));
  allocated_bytes_ += num_bytes;
  return data;
}

void CudaDevice::release(std::byte* data, int64_t num_bytes) noexcept {
  if (data == nullptr) return;
  give(data);
  allocated_bytes_ -= num_bytes;
}

}  // namespace kvquant
