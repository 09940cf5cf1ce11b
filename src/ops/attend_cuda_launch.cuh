// Launches the kernels of attention.
#pragma once

#include "base/device_memory.h"
#include "ops/attend_cuda.h"

namespace kvquant::cuda {

// Of what pack_attend made; `call` has addresses of the current device.
void launch_attend(const CudaAttendCall& packed, const CudaAttend& call,
                   const DeviceStream& stream);

}  // namespace kvquant::cuda
