// Matrix products on a GPU through cuBLASLt, whose library is looked for when products are asked
// for: a program without it starts all the same.
#pragma once

#include <memory>

#include "base/device_memory.h"
#include "ops/cuda_device.h"

namespace kvquant::cuda {

class Products {
 public:
  Products();
  ~Products();

  // Opens the library. Throws DeviceError, in one line: built without cuBLASLt, its library is
  // missing, or what it says.
  void prepare(CudaDevice& device);
  // Queues it. Throws as prepare does.
  void multiply(CudaDevice& device, const CudaProduct& product, const DeviceStream& stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvquant::cuda
