// Launches the kernels of attention.
#pragma once

#include "base/device_memory.h"
#include "ops/attend_cuda.h"

namespace kvquant::cuda {

// With addresses of the current device.
void launch_attend(const CudaAttendNode& work, const DeviceStream& stream);

}  // namespace kvquant::cuda
