// A GPU: launches the kernels.
#include <cuda_runtime.h>

#include "base/device_memory.h"
#include "ops/attend_cuda_launch.cuh"
#include "ops/cuda_block.cuh"
#include "ops/cuda_device.h"
#include "ops/cuda_products.cuh"
#include "ops/cuda_rows_kernels.h"
#include "ops/cuda_store_kernels.h"

namespace kvquant::cuda {
namespace {

template <class Call>
__global__ void __launch_bounds__(kBlockThreads) call_kernel(Call call) {
  extern __shared__ __align__(16) std::byte shared[];
  run_call(Block(shared), call);
}

class Device final : public CudaDevice {
 public:
  explicit Device(int index) : index_(index) { use(); }

  void copy_in(void* to, const void* from, int64_t num_bytes) override {
    use();
    stream_.copy_to_device(to, from, num_bytes);  // of memory that is not pinned: copied at once
  }
  void copy_out(void* to, const void* from, int64_t num_bytes) override {
    use();
    stream_.copy_to_host(to, from, num_bytes);
    stream_.wait();
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
  void attend(const CudaAttendCall& packed, const CudaAttend& call) override {
    use();
    launch_attend(packed, call, stream_);
  }
  void multiply(const CudaProduct& product) override {
    use();
    products_.multiply(*this, product, stream_);
  }
  void prepare_products() override {
    use();
    products_.prepare(*this);
  }

 private:
  void use() const { use_device(index_); }

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
  void give(void* data) noexcept override {
    // Whatever still reads it ends first: freeing waits for the device.
    device_free(data);
  }

  int index_;
  DeviceStream stream_;
  Products products_;
};

}  // namespace

std::unique_ptr<CudaDevice> open_device(int index) {
  use_device(index);
  return std::make_unique<Device>(index);
}

}  // namespace kvquant::cuda
