// Where CUDA kernels run and the memory that they read: a GPU, or the CPU that plays one for tests.
// Work is queued and done in the order of the calls. Not thread-safe.
//
//   cuda_device.cu           a GPU
//   cuda_device_nocuda.cc    in its place in a program without CUDA
//   cuda_device_emulated.cc  the CPU
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/device.h"
#include "base/threads.h"
#include "ops/attend_cuda.h"
#include "ops/cuda_latents.h"
#include "ops/cuda_rows.h"
#include "ops/cuda_sampling.h"
#include "ops/cuda_store.h"
#include "ops/linear.h"

namespace kvquant {

using CudaCall =
    std::variant<CudaNorm, CudaRope, CudaGate, CudaAdd, CudaEmbed, CudaFinite, CudaNarrow, CudaMove,
                 CudaWiden, CudaRound, CudaHadamard, CudaOutside, CudaFit, CudaEncode, CudaOutliers,
                 CudaDense, CudaEncodeLatents, CudaPenalise, CudaBest>;

// out (+)= x W^T, as linear() does it. Weights and x are floats or bf16 both; sums are f32.
struct CudaProduct {
  const float* weights = nullptr;  // [num_out, num_in]; one of the two is null
  const BFloat16* bf16_weights = nullptr;
  int64_t num_out = 0;
  int64_t num_in = 0;
  const float* x = nullptr;  // [num_rows, num_in]; one of the two is null
  const BFloat16* bf16_x = nullptr;
  int64_t x_stride = 0;  // numbers, here and below
  float* out = nullptr;  // [num_rows, num_out]
  int64_t out_stride = 0;
  int64_t num_rows = 0;
  Epilogue epilogue = Epilogue::kStore;

  bool operator==(const CudaProduct&) const = default;
};

using CudaNode = std::variant<CudaCall, CudaAttendNode, CudaProduct>;

class CudaDevice {
 public:
  CudaDevice() = default;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  virtual ~CudaDevice() = default;

  // Not cleared, aligned to 256 bytes; null for none. Throws OutOfMemory naming the size.
  std::byte* allocate(int64_t num_bytes);
  // num_bytes: as it was allocated.
  void release(std::byte* data, int64_t num_bytes) noexcept;
  int64_t allocated_bytes() const { return allocated_bytes_; }

  // `from` may change when it returns.
  virtual void copy_in(void* to, const void* from, int64_t num_bytes) = 0;
  // Waits for all that was queued.
  virtual void copy_out(void* to, const void* from, int64_t num_bytes) = 0;
  virtual void copy(void* to, const void* from, int64_t num_bytes) = 0;  // they don't overlap
  virtual void clear(void* to, int64_t num_bytes) = 0;

  virtual void run(const CudaCall& call) = 0;
  virtual void attend(const CudaAttendNode& work) = 0;
  virtual void multiply(const CudaProduct& product) = 0;
  // One after the other. A list that comes again may be run as a graph.
  virtual void run_nodes(std::span<const CudaNode> nodes) = 0;

  // What is queued in between may be gathered and then run as a graph (cuda_step.h): a step that
  // will come again with other numbers in the same places.
  virtual void begin_step() {}
  virtual void end_step() {}
  virtual int64_t step() const { return 0; }         // which one; 0: none
  virtual int64_t num_replays() const { return 0; }  // lists that ran as graphs
  // Memory of the device with these bytes until the step ends; null: there is none.
  virtual const void* stage(const void* from, int64_t num_bytes);
  // Loads now what the first product would load. Throws DeviceError naming what is missing.
  virtual void prepare_products() {}

 private:
  virtual void* take(int64_t num_bytes) = 0;
  virtual void give(void* data, int64_t num_bytes) noexcept = 0;

  int64_t allocated_bytes_ = 0;
};

namespace cuda {
// Throws DeviceError as check_device() does.
std::unique_ptr<CudaDevice> open_device(int index);
}  // namespace cuda
namespace emulated {
// max_bytes: of its memory; 0: what there is. `pool` must outlive it.
std::unique_ptr<CudaDevice> open_device(ThreadPool& pool, int64_t max_bytes = 0);
}  // namespace emulated

// What plays cuda:index for a model: the GPU or, with KVQUANT_BACKEND=cuda-emulated, the CPU, which
// tests ask for and nobody gets without asking. Throws DeviceError in one line as check_device()
// does; open_model_device() also where the GPU can't multiply matrices, as cuBLASLt is missing.
DeviceInfo find_model_device(int index);
std::unique_ptr<CudaDevice> open_model_device(int index, ThreadPool& pool);
bool is_device_emulated();

// Memory of a device, owned. Not cleared.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit DeviceArray(CudaDevice& device) : device_(&device) {}
  DeviceArray(CudaDevice& device, int64_t size) : device_(&device) { resize(size); }
  DeviceArray(CudaDevice& device, std::span<const T> items) : device_(&device) { assign(items); }
  DeviceArray(DeviceArray&& other) noexcept
      : device_(other.device_),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() { release(); }

  T* data() const { return reinterpret_cast<T*>(data_); }
  int64_t size() const { return size_; }
  int64_t num_bytes() const { return size_ * kItemBytes; }

  // Room for `size` elements; what was in it is lost when it grows, which is by half at least.
  void reserve_discarding(int64_t size) {
    if (size > size_) resize(std::max(size, size_ + size_ / 2));
  }
  // The first elements become these.
  void assign(std::span<const T> items) {
    reserve_discarding(std::ssize(items));
    if (!items.empty()) {
      device_->copy_in(data_, items.data(), static_cast<int64_t>(items.size_bytes()));
    }
  }
  // The first `size` elements. Waits.
  std::vector<T> read(int64_t size) const {
    std::vector<T> out(static_cast<size_t>(size));
    if (size > 0) device_->copy_out(out.data(), data_, size * kItemBytes);
    return out;
  }

 private:
  // T may be a pointer, whose own size is meant.
  static constexpr int64_t kItemBytes = sizeof(T);  // NOLINT(bugprone-sizeof-expression)

  void resize(int64_t size) {
    release();
    data_ = device_->allocate(size * kItemBytes);
    size_ = size;
  }
  void release() noexcept {
    if (data_ != nullptr) device_->release(data_, num_bytes());
    data_ = nullptr;
    size_ = 0;
  }

  CudaDevice* device_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// The items on the device, until the step ends or, out of steps, `scratch` is given others.
template <class T>
const T* staged(CudaDevice& device, std::span<const T> items, DeviceArray<T>& scratch) {
  const void* in_step = device.stage(items.data(), static_cast<int64_t>(items.size_bytes()));
  if (in_step != nullptr) return static_cast<const T*>(in_step);
  scratch.assign(items);
  return scratch.data();
}

// Between the calls that make up a step.
class StepOf {
 public:
  StepOf(CudaDevice& device, bool is_step) : device_(is_step ? &device : nullptr) {
    if (device_ != nullptr) device_->begin_step();
  }
  StepOf(const StepOf&) = delete;
  StepOf& operator=(const StepOf&) = delete;
  ~StepOf() {  // something was thrown: what came before it is done all the same
    try {
      end();
    } catch (...) {
      device_ = nullptr;
    }
  }
  void end() {
    CudaDevice* device = std::exchange(device_, nullptr);
    if (device != nullptr) device->end_step();
  }

 private:
  CudaDevice* device_;
};

}  // namespace kvquant
