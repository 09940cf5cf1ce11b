// The CUDA kernels of attention, run by the CPU: block after block, each by one thread, on a copy
// of all that they read. For tests and for looking into; slow.
#include "base/buffer.h"
#include "ops/attend_cuda.h"
#include "ops/attend_cuda_bf16.h"
#include "ops/attend_cuda_f32.h"
#include "ops/attend_cuda_merge.h"
#include "ops/cuda_block.h"

namespace kvquant::emulated {
namespace {

void run_task(const CudaAttendCall& packed, const CudaAttend& call, const Block& block) {
  const bool is_wide = call.head_dim > kCudaNarrowDim;
  if (!packed.is_bf16) return attend_task_f32(block, call);
  if (packed.num_rows == kCudaFewRows) {
    return is_wide ? attend_task_bf16<1, 8>(block, call) : attend_task_bf16<1, 4>(block, call);
  }
  return is_wide ? attend_task_bf16<2, 8>(block, call) : attend_task_bf16<4, 4>(block, call);
}

}  // namespace

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
  const CudaAttend call = make_call(shape, packed, states.data(), sums.data());
  const int64_t shared_bytes = packed.shared_bytes(shape.head_dim);
  Buffer<std::byte> shared((shared_bytes + 63) / 64 * 64 * pool.num_threads());
  // Half of the blocks run their threads backwards: results must not depend on it.
  pool.parallel_for(std::ssize(packed.plan.tasks), [&](int64_t i, int worker) {
    const ThreadOrder order = i % 2 == 0 ? ThreadOrder::kForward : ThreadOrder::kBackward;
    std::byte* slice = shared.data() + worker * ((shared_bytes + 63) / 64 * 64);
    run_task(packed, call, Block(i, slice, order));
  });
  pool.parallel_for(std::ssize(packed.plan.merges), [&](int64_t i, int) {
    merge_task(Block(i, nullptr, ThreadOrder::kForward), call);
  });
  image.read_back(memory.data() + image.first_output());
}

}  // namespace kvquant::emulated
