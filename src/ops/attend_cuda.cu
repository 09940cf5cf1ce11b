// Launches the kernels of attention (attend_cuda.h).
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

#include "base/device_memory.h"
#include "kvquant/error.h"
#include "ops/attend_cuda.h"
#include "ops/attend_cuda_bf16.h"
#include "ops/attend_cuda_f32.h"
#include "ops/attend_cuda_merge.h"
#include "ops/cuda_block.cuh"

namespace kvquant::cuda {
namespace {

using TaskKernel = void (*)(CudaAttend);

template <int kRowTiles, int kColumnTiles>
__global__ void __launch_bounds__(kBlockThreads) attend_bf16_kernel(CudaAttend call) {
  extern __shared__ __align__(16) std::byte shared[];
  attend_task_bf16<kRowTiles, kColumnTiles>(Block(shared), call);
}

__global__ void __launch_bounds__(kBlockThreads) attend_f32_kernel(CudaAttend call) {
  extern __shared__ __align__(16) std::byte shared[];
  attend_task_f32(Block(shared), call);
}

__global__ void __launch_bounds__(kBlockThreads) merge_kernel(CudaAttend call) {
  merge_task(Block(nullptr), call);
}

TaskKernel kernel_of(const CudaAttendCall& packed, int64_t head_dim) {
  const bool is_wide = head_dim > kCudaNarrowDim;
  if (!packed.is_bf16) return attend_f32_kernel;
  if (packed.num_rows == kCudaFewRows) {
    return is_wide ? attend_bf16_kernel<1, 8> : attend_bf16_kernel<1, 4>;
  }
  return is_wide ? attend_bf16_kernel<2, 8> : attend_bf16_kernel<4, 4>;
}

template <class T>
DeviceBuffer<T> upload(const std::vector<T>& items, const DeviceStream& stream) {
  DeviceBuffer<T> buffer(std::ssize(items));
  if (!items.empty()) stream.copy_to_device(buffer.data(), items.data(), buffer.num_bytes());
  return buffer;
}

void launch(const CudaAttendCall& packed, const CudaAttend& call, const DeviceStream& stream) {
  auto* queue = static_cast<cudaStream_t>(stream.handle());
  const TaskKernel kernel = kernel_of(packed, call.head_dim);
  const auto bytes = static_cast<int>(packed.shared_bytes(call.head_dim));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  check_launch("attend: asking for shared memory");
  if (!packed.plan.tasks.empty()) {
    kernel<<<static_cast<unsigned>(packed.plan.tasks.size()), kBlockThreads, bytes, queue>>>(call);
    check_launch("attend: launching tasks");
  }
  if (!packed.plan.merges.empty()) {
    merge_kernel<<<static_cast<unsigned>(packed.plan.merges.size()), kBlockThreads, 0, queue>>>(
        call);
    check_launch("attend: launching merges");
  }
}

}  // namespace

void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision) {
  use_device(0);
  CudaImage image;
  pack_attend(shape, jobs, precision, image);
  image.place(nullptr);
  const DeviceBuffer<std::byte> memory(image.num_bytes());
  image.place(memory.data());
  const CudaAttendCall packed = pack_attend(shape, jobs, precision, image);
  std::vector<std::byte> staging(static_cast<size_t>(image.num_bytes()));
  image.fill(staging.data());

  const DeviceStream stream;
  if (memory.data() != nullptr) {
    stream.copy_to_device(memory.data(), staging.data(), image.first_output());
  }
  const DeviceBuffer<SoftmaxState> states(packed.plan.num_partial_rows);
  const DeviceBuffer<float> sums(packed.plan.num_partial_rows * shape.head_dim);
  CudaAttend call = make_call(shape, packed, states.data(), sums.data());
  const auto device_jobs = upload(packed.jobs, stream);
  const auto runs = upload(packed.runs, stream);
  const auto tasks = upload(packed.plan.tasks, stream);
  const auto merges = upload(packed.plan.merges, stream);
  call.jobs = device_jobs.data();
  call.runs = runs.data();
  call.tasks = tasks.data();
  call.merges = merges.data();
  launch(packed, call, stream);
  const int64_t output_bytes = image.num_bytes() - image.first_output();
  if (output_bytes > 0) {
    stream.copy_to_host(staging.data(), memory.data() + image.first_output(), output_bytes);
  }
  stream.wait();
  image.read_back(staging.data());
}

}  // namespace kvquant::cuda
