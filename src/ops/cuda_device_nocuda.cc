// In place of cuda_device.cu in a program without CUDA.
#include "base/device.h"
#include "ops/cuda_device.h"

namespace kvquant::cuda {

std::unique_ptr<CudaDevice> open_device(int index) {
  check_device(probe_devices(), index);  // says so
  return nullptr;
}

}  // namespace kvquant::cuda
