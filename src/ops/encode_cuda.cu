// Launches the kernel that encodes (encode_cuda.h).
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/device_memory.h"
#include "ops/cuda_block.cuh"
#include "ops/cuda_image.h"
#include "ops/encode_cuda_tile.h"

namespace kvquant::cuda {
namespace {

__global__ void __launch_bounds__(kBlockThreads) encode_kernel(const EncodeJob* jobs) {
  extern __shared__ __align__(16) std::byte shared[];
  encode_tile_on(Block(shared), jobs);
}

// Jobs with the addresses of the image. What they write is in it as the host has it, too.
struct PackedJobs {
  std::vector<EncodeJob> jobs;
  std::vector<RoundingFeedback> feedbacks;  // of jobs that have one, to be uploaded
};

template <class T>
T* place(CudaImage& image, T* host, int64_t size) {
  const auto bytes = size * static_cast<int64_t>(sizeof(T));
  return const_cast<T*>(static_cast<const T*>(image.address(host, bytes)));
}

PackedJobs pack(std::span<const EncodeJob> jobs, CudaImage& image) {
  PackedJobs out;
  for (EncodeJob job : jobs) {
    const int64_t dim = job.head_dim;
    const int64_t num_params = job.axis == ScaleAxis::kChannel ? dim : int64_t{kTileTokens};
    job.codes = place(image, job.codes, code_tile_bytes(job.codebook->bits, dim));
    job.codebook = place(image, job.codebook, 1);
    const int64_t row_floats =
        job.num_tokens == 0 ? 0 : (job.num_tokens - 1) * job.row_stride + dim;
    job.rows = place(image, job.rows, row_floats);
    job.scales = place(image, job.scales, num_params);
    job.zeros = place(image, job.zeros, num_params);
    job.low = place(image, job.low, dim);
    job.high = place(image, job.high, dim);
    job.outliers = place(image, job.outliers, dim);
    if (job.feedback != nullptr) {
      out.feedbacks.push_back({place(image, job.feedback->order, dim),
                               place(image, job.feedback->coefficients, dim * dim)});
    }
    out.jobs.push_back(job);
  }
  return out;
}

}  // namespace

void encode_tiles(std::span<const EncodeJob> jobs) {
  use_device(0);
  if (jobs.empty()) return;
  CudaImage image;
  pack(jobs, image);
  image.place(nullptr);
  const DeviceBuffer<std::byte> memory(image.num_bytes());
  image.place(memory.data());
  PackedJobs packed = pack(jobs, image);
  std::vector<std::byte> staging(static_cast<size_t>(image.num_bytes()));
  image.fill(staging.data());

  const DeviceStream stream;
  stream.copy_to_device(memory.data(), staging.data(), image.num_bytes());
  const DeviceBuffer<RoundingFeedback> feedbacks(std::ssize(packed.feedbacks));
  if (feedbacks.size() > 0) {
    stream.copy_to_device(feedbacks.data(), packed.feedbacks.data(), feedbacks.num_bytes());
  }
  int64_t shared_bytes = 0, next = 0;
  for (EncodeJob& job : packed.jobs) {
    const bool has_feedback = job.feedback != nullptr;
    if (has_feedback) job.feedback = feedbacks.data() + next++;
    shared_bytes =
        std::max(shared_bytes, encode_shared_layout(job.head_dim, has_feedback).num_bytes);
  }
  const DeviceBuffer<EncodeJob> device_jobs(std::ssize(packed.jobs));
  stream.copy_to_device(device_jobs.data(), packed.jobs.data(), device_jobs.num_bytes());
  const auto bytes = static_cast<int>(shared_bytes);
  cudaFuncSetAttribute(encode_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  check_launch("encode: asking for shared memory");
  encode_kernel<<<static_cast<unsigned>(jobs.size()), kBlockThreads, bytes,
                  static_cast<cudaStream_t>(stream.handle())>>>(device_jobs.data());
  check_launch("encode: launching");
  stream.copy_to_host(staging.data(), memory.data(), image.num_bytes());
  stream.wait();
  const auto take_back = [&](void* host, const void* device, int64_t num_bytes) {
    const auto offset = static_cast<const std::byte*>(device) - memory.data();
    std::memcpy(host, staging.data() + offset, static_cast<size_t>(num_bytes));
  };
  for (size_t i = 0; i < jobs.size(); ++i) {
    const EncodeJob& job = jobs[i];
    take_back(job.codes, packed.jobs[i].codes, code_tile_bytes(job.codebook->bits, job.head_dim));
    if (job.low != nullptr) take_back(job.outliers, packed.jobs[i].outliers, job.head_dim * 8);
  }
}

}  // namespace kvquant::cuda
