// A device played by the CPU: memory of the host, kernels block after block. Half of the blocks run
// their threads backwards: results must not depend on it. For tests and for looking into; slow.
#include <fmt/format.h>

#include <cstring>
#include <map>

#include "base/buffer.h"
#include "kvquant/error.h"
#include "ops/attend_cuda_bf16.h"
#include "ops/attend_cuda_direct.h"
#include "ops/attend_cuda_f32.h"
#include "ops/attend_cuda_merge.h"
#include "ops/cuda_block.h"
#include "ops/cuda_device.h"
#include "ops/cuda_move_kernels.h"
#include "ops/cuda_rows_kernels.h"
#include "ops/cuda_step.h"
#include "ops/cuda_store_kernels.h"

namespace kvquant::emulated {
namespace {

constexpr int64_t kLanes = 16;  // sums of a product that run side by side

void attend_task(const CudaAttendNode& work, const Block& block) {
  const CudaAttend& call = work.call;
  if (!has_task(call, block.index())) return;
  const bool is_wide = call.head_dim > kCudaNarrowDim;
  if (!work.is_bf16) return attend_task_f32(block, call);
  if (call.direct_bits > 0) {
    return call.head_dim == 64   ? attend_task_direct<4>(block, call)
           : call.head_dim == 96 ? attend_task_direct<6>(block, call)
                                 : attend_task_direct<8>(block, call);
  }
  if (work.num_rows == kCudaFewRows) {
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
    copy(to, from, num_bytes);
  }
  void copy_out(void* to, const void* from, int64_t num_bytes) override {
    copy(to, from, num_bytes);
  }
  void copy(void* to, const void* from, int64_t num_bytes) override {
    if (num_bytes > 0) std::memcpy(to, from, static_cast<size_t>(num_bytes));  // null: of nothing
  }
  void clear(void* to, int64_t num_bytes) override {
    if (num_bytes > 0) std::memset(to, 0, static_cast<size_t>(num_bytes));
  }

  void run(const CudaCall& call) override {
    std::visit(
        [&](const auto& x) {
          run_blocks(x.num_blocks(), x.shared_bytes(),
                     [&](const Block& block) { run_call(block, x); });
        },
        call);
  }

  void attend(const CudaAttendNode& work) override {
    run_blocks(work.num_tasks, work.shared_bytes,
               [&](const Block& block) { attend_task(work, block); });
    run_blocks(work.num_merges, kMergeSharedBytes, [&](const Block& block) {
      if (has_merge(work.call, block.index())) merge_task(block, work.call);
    });
  }

  int64_t num_replays() const override { return num_replays_; }
  // What a GPU keeps as a graph are here the nodes as they were the first time, so that whatever
  // differs without being noticed shows.
  void run_nodes(std::span<const CudaNode> nodes) override {
    const std::vector<CudaNode>* graph = graphs_.find(nodes);
    if (graph == nullptr && graphs_.came_before(nodes)) {
      graph = &graphs_.keep(nodes, {nodes.begin(), nodes.end()});
    }
    num_replays_ += graph != nullptr ? 1 : 0;
    for (const CudaNode& node : graph != nullptr ? std::span<const CudaNode>(*graph) : nodes) {
      if (const auto* call = std::get_if<CudaCall>(&node)) run(*call);
      if (const auto* work = std::get_if<CudaAttendNode>(&node)) attend(*work);
      if (const auto* product = std::get_if<CudaProduct>(&node)) multiply(*product);
    }
  }

  void multiply(const CudaProduct& product) override {
    const int64_t num_in = product.num_in;
    Buffer<float> x(product.num_rows * num_in);
    for (int64_t i = 0; i < x.size(); ++i) {
      const int64_t at = i / num_in * product.x_stride + i % num_in;
      x[i] = product.x != nullptr ? product.x[at] : to_float(product.bf16_x[at]);
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
  void give(void* data, int64_t) noexcept override { memory_.erase(static_cast<std::byte*>(data)); }

  ThreadPool& pool_;
  int64_t max_bytes_;
  std::map<std::byte*, Buffer<std::byte>> memory_;
  CudaGraphs<std::vector<CudaNode>> graphs_;
  int64_t num_replays_ = 0;
};

}  // namespace

std::unique_ptr<CudaDevice> open_device(ThreadPool& pool, int64_t max_bytes) {
  return std::make_unique<Device>(pool, max_bytes);
}

}  // namespace kvquant::emulated
