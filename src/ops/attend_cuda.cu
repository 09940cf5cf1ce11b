// Launches the kernels of attention (attend_cuda.h).
#include <cuda_runtime.h>

#include <vector>

#include "base/device_memory.h"
#include "kvquant/error.h"
#include "ops/attend_cuda.h"
#include "ops/attend_cuda_bf16.h"
#include "ops/attend_cuda_direct.h"
#include "ops/attend_cuda_f32.h"
#include "ops/attend_cuda_launch.cuh"
#include "ops/attend_cuda_merge.h"
#include "ops/cuda_block.cuh"

namespace kvquant::cuda {
namespace {

using TaskKernel = void (*)(CudaAttend);

template <int kRowTiles, int kColumnTiles>
__global__ void __launch_bounds__(kBlockThreads) attend_bf16_kernel(CudaAttend call) {
  extern __shared__ __align__(16) std::byte shared[];
  if (!has_task(call, blockIdx.x)) return;
  attend_task_bf16<kRowTiles, kColumnTiles>(Block(shared), call);
}

// Two blocks share a multiprocessor: for three there are too few registers, and with tables of 4
// bits too little memory.
template <int kSteps>
__global__ void __launch_bounds__(kBlockThreads, 2) attend_direct_kernel(CudaAttend call) {
  extern __shared__ __align__(16) std::byte shared[];
  if (!has_task(call, blockIdx.x)) return;
  attend_task_direct<kSteps>(Block(shared), call);
}

__global__ void __launch_bounds__(kBlockThreads) attend_f32_kernel(CudaAttend call) {
  extern __shared__ __align__(16) std::byte shared[];
  if (!has_task(call, blockIdx.x)) return;
  attend_task_f32(Block(shared), call);
}

__global__ void __launch_bounds__(kBlockThreads) merge_kernel(CudaAttend call) {
  __shared__ __align__(16) std::byte shared[kMergeSharedBytes];
  if (!has_merge(call, blockIdx.x)) return;
  merge_task(Block(shared), call);
}

TaskKernel kernel_of(const CudaAttendNode& work) {
  const bool is_wide = work.call.head_dim > kCudaNarrowDim;
  if (!work.is_bf16) return attend_f32_kernel;
  if (work.call.direct_bits > 0) {
    return work.call.head_dim == 64   ? attend_direct_kernel<4>
           : work.call.head_dim == 96 ? attend_direct_kernel<6>
                                      : attend_direct_kernel<8>;
  }
  if (work.num_rows == kCudaFewRows) {
    return is_wide ? attend_bf16_kernel<1, 8> : attend_bf16_kernel<1, 4>;
  }
  return is_wide ? attend_bf16_kernel<2, 8> : attend_bf16_kernel<4, 4>;
}

}  // namespace

void launch_attend(const CudaAttendNode& work, const DeviceStream& stream) {
  auto* queue = static_cast<cudaStream_t>(stream.handle());
  const TaskKernel kernel = kernel_of(work);
  const auto bytes = static_cast<int>(work.shared_bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  check_launch("attend: asking for shared memory");
  if (work.num_tasks > 0) {
    kernel<<<static_cast<unsigned>(work.num_tasks), kBlockThreads, bytes, queue>>>(work.call);
    check_launch("attend: launching tasks");
  }
  if (work.num_merges > 0) {
    merge_kernel<<<static_cast<unsigned>(work.num_merges), kBlockThreads, 0, queue>>>(work.call);
    check_launch("attend: launching merges");
  }
}

namespace {

template <class T>
DeviceBuffer<T> upload(const std::vector<T>& items, const DeviceStream& stream) {
  DeviceBuffer<T> buffer(std::ssize(items));
  if (!items.empty()) stream.copy_to_device(buffer.data(), items.data(), buffer.num_bytes());
  return buffer;
}

// A call whose memory is on the device.
class Prepared {
 public:
  Prepared(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision) {
    pack_attend(shape, jobs, precision, image_);
    image_.place(nullptr);
    memory_ = DeviceBuffer<std::byte>(image_.num_bytes());
    image_.place(memory_.data());
    packed_ = pack_attend(shape, jobs, precision, image_);
    std::vector<std::byte> staging(static_cast<size_t>(image_.first_output()));
    image_.fill(staging.data());
    if (!staging.empty()) {
      stream_.copy_to_device(memory_.data(), staging.data(), std::ssize(staging));
    }
    states_ = DeviceBuffer<SoftmaxState>(packed_.plan.num_partial_rows);
    sums_ = DeviceBuffer<float>(packed_.plan.num_partial_rows * shape.head_dim);
    jobs_ = upload(packed_.jobs, stream_);
    runs_ = upload(packed_.runs, stream_);
    tasks_ = upload(packed_.plan.tasks, stream_);
    merges_ = upload(packed_.plan.merges, stream_);
    call_ = make_call(shape, packed_, states_.data(), sums_.data());
    call_.jobs = jobs_.data();
    call_.runs = runs_.data();
    call_.tasks = tasks_.data();
    call_.merges = merges_.data();
    stream_.wait();
  }

  void launch() const { launch_attend({packed_, call_}, stream_); }

  void read_back() const {
    std::vector<std::byte> outputs(static_cast<size_t>(image_.num_bytes() - image_.first_output()));
    if (!outputs.empty()) {
      stream_.copy_to_host(outputs.data(), memory_.data() + image_.first_output(),
                           std::ssize(outputs));
    }
    stream_.wait();
    image_.read_back(outputs.data());
  }

  const DeviceStream& stream() const { return stream_; }

 private:
  DeviceStream stream_;
  CudaImage image_;
  CudaAttendCall packed_;
  CudaAttend call_;
  DeviceBuffer<std::byte> memory_;
  DeviceBuffer<SoftmaxState> states_;
  DeviceBuffer<float> sums_;
  DeviceBuffer<CudaJob> jobs_;
  DeviceBuffer<CudaRun> runs_;
  DeviceBuffer<AttendTask> tasks_;
  DeviceBuffer<AttendMerge> merges_;
};

}  // namespace

void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision) {
  use_device(0);
  const Prepared prepared(shape, jobs, precision);
  prepared.launch();
  prepared.read_back();
}

std::vector<double> time_attend(const AttendShape& shape, std::span<const AttendJob> jobs,
                                Precision precision, int num_runs) {
  use_device(0);
  const Prepared prepared(shape, jobs, precision);
  constexpr int kWarmUp = 3;
  std::vector<double> ms;
  for (int i = 0; i < kWarmUp + num_runs; ++i) {
    DeviceEvent begin, end;
    begin.record(prepared.stream());
    prepared.launch();
    end.record(prepared.stream());
    const double elapsed = end.ms_since(begin);
    if (i >= kWarmUp) ms.push_back(elapsed);
  }
  prepared.read_back();
  return ms;
}

}  // namespace kvquant::cuda
