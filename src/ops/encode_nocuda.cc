// In place of encode_cuda.cu in a program without CUDA.
#include "base/device.h"
#include "ops/encode_cuda.h"

namespace kvquant::cuda {

void encode_tiles(std::span<const EncodeJob>) {
  check_device(probe_devices(), 0);  // says so
}

}  // namespace kvquant::cuda
