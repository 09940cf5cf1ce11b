// The CUDA kernels of attention, run by the CPU on a copy of all that they read. For tests and for
// looking into; slow.
#include "base/buffer.h"
#include "ops/attend_cuda.h"
#include "ops/cuda_device.h"

namespace kvquant::emulated {

void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision,
            ThreadPool& pool) {
  CudaImage image;
  pack_attend(shape, jobs, precision, image);
  image.place(nullptr);
  Buffer<std::byte> memory(image.num_bytes());
  image.place(memory.data());
  const CudaAttendCall packed = pack_attend(shape, jobs, precision, image);
  image.fill(memory.data());

  Buffer<SoftmaxState> states(packed.plan.num_partial_rows);
  Buffer<float> sums(packed.plan.num_partial_rows * shape.head_dim);
  open_device(pool)->attend({packed, make_call(shape, packed, states.data(), sums.data())});
  image.read_back(memory.data() + image.first_output());
}

}  // namespace kvquant::emulated
