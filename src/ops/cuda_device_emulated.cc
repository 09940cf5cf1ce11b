// A device played by the CPU: memory of the host, kernels block after block. Half of the blocks run
// their threads backwards: results must not depend on it. For tests and for looking into; slow.
#include <fmt/format.h>

#include <cstring>
#include <map>

#include "base/buffer.h"
#include "kvquant/error.h"
#include "ops/attend_cuda_bf16.h"
#include "ops/attend_cuda_f32.h"
#include "ops/attend_cuda_merge.h"
#include "ops/cuda_block.h"
#include "ops/cuda_device.h"
#include "ops/cuda_rows_kernels.h"
#include "ops/cuda_store_kernels.h"

namespace kvquant::emulated {
namespace {

constexpr int64_t kLanes = 16;  // sums of a product that run side by side

void attend_task(const CudaAttendCall& packed, const CudaAttend& call, const Block& block) {
  const bool is_wide = call.head_dim > kCudaNarrowDim;
  if (!packed.is_bf16) return attend_task_f32(block, call);
  if (packed.num_rows == kCudaFewRows) {
    return is_wide ? attend_task_bf16<1, 8>(block, call) : attend_task_bf16<1, 4>(block, call);
  }
  return is_wide ? attend_task_bf16<2, 8>(block, call) : attend_task_bf16<4, 4>(block, call);
}

float dot(const float* a, const float* b, int64_t size) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) sums[k] += a[i + k] * b[i + k];
  }
  float sum = 0;
  for (const float x : sums) sum += x;
  for (; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

class Device final : public CudaDevice {
 public:
  Device(ThreadPool& pool, int64_t max_bytes) : pool_(pool), max_bytes_(max_bytes) {}

  void copy_in(void* to, const void* from, int64_t num_bytes) override {
    std::memcpy(to, from, static_cast<size_t>(num_bytes));
  }
  void copy_out(void* to, const void* from, int64_t num_bytes) override {
    std::memcpy(to, from, static_cast<size_t>(num_bytes));
  }
  void copy(void* to, const void* from, int64_t num_bytes) override {
    std::memcpy(to, from, static_cast<size_t>(num_bytes));
  }
  void clear(void* to, int64_t num_bytes) override {
    std::memset(to, 0, static_cast<size_t>(num_bytes));
  }

  void run(const CudaCall& call) override {
    std::visit(
        [&](const auto& x) {
          run_blocks(x.num_blocks(), x.shared_bytes(),
                     [&](const Block& block) { run_call(block, x); });
        },
        call);
  }

  void attend(const CudaAttendCall& packed, const CudaAttend& call) override {
    run_blocks(std::ssize(packed.plan.tasks), packed.shared_bytes(call.head_dim),
               [&](const Block& block) { attend_task(packed, call, block); });
    run_blocks(std::ssize(packed.plan.merges), kMergeSharedBytes,
               [&](const Block& block) { merge_task(block, call); });
  }

  void multiply(const CudaProduct& product) override {
    const int64_t num_in = product.num_in;
    Buffer<float> x(product.num_rows * num_in);
    for (int64_t i = 0; i < x.size(); ++i) {
      const float factor = product.x[i / num_in * product.x_stride + i % num_in];
      x[i] = product.weights != nullptr ? factor : round_to_bfloat16(factor);
    }
    Buffer<float> weights(pool_.num_threads() * num_in);  // a row of each worker
    pool_.parallel_for(product.num_out, [&](int64_t out, int worker) {
      float* widened = weights.data() + worker * num_in;
      for (int64_t i = 0; product.weights == nullptr && i < num_in; ++i) {
        widened[i] = to_float(product.bf16_weights[out * num_in + i]);
      }
      const float* row = product.weights != nullptr ? product.weights + out * num_in : widened;
      for (int64_t i = 0; i < product.num_rows; ++i) {
        float& to = product.out[i * product.out_stride + out];
        const float sum = dot(row, x.data() + i * num_in, num_in);
        to = product.epilogue == Epilogue::kAdd ? to + sum : sum;
      }
    });
  }

 private:
  template <class Fn>
  void run_blocks(int64_t num_blocks, int64_t shared_bytes, const Fn& fn) {
    const int64_t size = (shared_bytes + 63) / 64 * 64;
    Buffer<std::byte> shared(size * pool_.num_threads());
    pool_.parallel_for(num_blocks, [&](int64_t i, int worker) {
      const ThreadOrder order = i % 2 == 0 ? ThreadOrder::kForward : ThreadOrder::kBackward;
      fn(Block(i, shared.data() + worker * size, order));
    });
  }

  // Filled with NaN: what is read before it is written shows.
  void* take(int64_t num_bytes) override {
    if (max_bytes_ > 0 && num_bytes > max_bytes_ - allocated_bytes()) {
      throw OutOfMemory(fmt::format("out of device memory: {} bytes were asked for", num_bytes));
    }
    Buffer<std::byte> memory(num_bytes);
    std::memset(memory.data(), 0xFF, static_cast<size_t>(num_bytes));
    std::byte* data = memory.data();
    memory_.emplace(data, std::move(memory));
    return data;
  }
  void give(void* data) noexcept override { memory_.erase(static_cast<std::byte*>(data)); }

  ThreadPool& pool_;
  int64_t max_bytes_;
  std::map<std::byte*, Buffer<std::byte>> memory_;
};

}  // namespace

std::unique_ptr<CudaDevice> open_device(ThreadPool& pool, int64_t max_bytes) {
  return std::make_unique<Device>(pool, max_bytes);
}

}  // namespace kvquant::emulated
