// Matrix products on a GPU through cuBLASLt, whose library is looked for when the first product is
// asked for: a program without it starts all the same.
#pragma once

#include <memory>

#include "base/device_memory.h"
#include "ops/cuda_device.h"

namespace kvquant::cuda {

class Products {
 public:
  Products();
  ~Products();

  // Queues it. Throws DeviceError, in one line: built without cuBLASLt, its library is missing, or
  // what it says.
  void multiply(CudaDevice& device, const CudaProduct& product, const DeviceStream& stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvquant::cuda
