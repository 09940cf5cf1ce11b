// A GPU: launches the kernels.
#include <cuda_runtime.h>

#include "base/device_memory.h"
#include "ops/attend_cuda_launch.cuh"
#include "ops/cuda_block.cuh"
#include "ops/cuda_device.h"
#include "ops/cuda_move_kernels.h"
#include "ops/cuda_products.cuh"
#include "ops/cuda_rows_kernels.h"
#include "ops/cuda_step.h"
#include "ops/cuda_store_kernels.h"

namespace kvquant::cuda {
namespace {

template <class Call>
__global__ void __launch_bounds__(kBlockThreads) call_kernel(Call call) {
  extern __shared__ __align__(16) std::byte shared[];
  run_call(Block(shared), call);
}

// Kernels that were queued once, to be launched together.
class Graph {
 public:
  template <class Fn>
  Graph(const DeviceStream& stream, Fn&& queue) {
    auto* handle = static_cast<cudaStream_t>(stream.handle());
    // Relaxed: libraries may do what is of no stream meanwhile.
    check_cuda(cudaStreamBeginCapture(handle, cudaStreamCaptureModeRelaxed), "a graph");
    cudaGraph_t graph = nullptr;
    try {
      queue();
    } catch (...) {
      cudaStreamEndCapture(handle, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check_cuda(cudaStreamEndCapture(handle, &graph), "the end of a graph");
    const cudaError_t error = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(error, "making a graph");
  }
  Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~Graph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  void launch(const DeviceStream& stream) const {
    check_cuda(cudaGraphLaunch(graph_, static_cast<cudaStream_t>(stream.handle())),
               "launching a graph");
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

class Device final : public CudaDevice {
 public:
  explicit Device(int index) : index_(index) { use(); }

  void copy_in(void* to, const void* from, int64_t num_bytes) override {
    use();
    pinned_.copy_in(to, from, num_bytes, stream_);
  }
  void copy_out(void* to, const void* from, int64_t num_bytes) override {
    use();
    pinned_.copy_out(to, from, num_bytes, stream_);
  }
  void copy(void* to, const void* from, int64_t num_bytes) override {
    use();
    stream_.copy_on_device(to, from, num_bytes);
  }
  void clear(void* to, int64_t num_bytes) override {
    use();
    stream_.clear(to, num_bytes);
  }

  void run(const CudaCall& call) override {
    use();
    std::visit([&](const auto& x) { launch_call(x); }, call);
  }
  void attend(const CudaAttendNode& work) override {
    use();
    launch_attend(work, stream_);
  }
  void multiply(const CudaProduct& product) override {
    use();
    products_.multiply(*this, product, stream_);
  }
  int64_t num_replays() const override { return num_replays_; }
  void run_nodes(std::span<const CudaNode> nodes) override {
    use();
    const Graph* graph = graphs_.find(nodes);
    if (graph == nullptr && graphs_.came_before(nodes)) {
      graph = &graphs_.keep(nodes, Graph(stream_, [&] { queue(nodes); }));
    }
    if (graph == nullptr) return queue(nodes);
    graph->launch(stream_);
    ++num_replays_;
  }
  void prepare_products() override {
    use();
    products_.prepare(*this);
  }

 private:
  void use() const { use_device(index_); }

  void queue(std::span<const CudaNode> nodes) {
    for (const CudaNode& node : nodes) {
      if (const auto* call = std::get_if<CudaCall>(&node)) run(*call);
      if (const auto* work = std::get_if<CudaAttendNode>(&node)) attend(*work);
      if (const auto* product = std::get_if<CudaProduct>(&node)) multiply(*product);
    }
  }

  template <class Call>
  void launch_call(const Call& call) {
    if (call.num_blocks() == 0) return;
    const auto bytes = static_cast<int>(call.shared_bytes());
    constexpr int kWithoutAsking = 48 << 10;
    if (bytes > kWithoutAsking) {
      cudaFuncSetAttribute(call_kernel<Call>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      check_launch("asking for shared memory");
    }
    call_kernel<<<static_cast<unsigned>(call.num_blocks()), kBlockThreads, bytes,
                  static_cast<cudaStream_t>(stream_.handle())>>>(call);
    check_launch("launching a kernel");
  }

  void* take(int64_t num_bytes) override {
    use();
    return device_allocate(num_bytes);
  }
  void give(void* data, int64_t) noexcept override {
    // Whatever still reads it ends first: freeing waits for the device.
    device_free(data);
  }

  int index_;
  DeviceStream stream_;
  PinnedStaging pinned_;
  Products products_;
  CudaGraphs<Graph> graphs_;
  int64_t num_replays_ = 0;
};

}  // namespace

std::unique_ptr<CudaDevice> open_device(int index) {
  use_device(index);
  return std::make_unique<Device>(index);
}

}  // namespace kvquant::cuda
