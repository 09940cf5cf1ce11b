// attend() over memory that lies on a device already: only descriptions of the work are copied.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/attend.h"
#include "ops/cuda_device.h"

namespace kvquant {

// The new queries of one sequence. Addresses, those of runs among them, are the device's.
struct DeviceAttendJob {
  const float* query = nullptr;  // [num_queries, num_kv_heads * group * head_dim], rotated
  float* out = nullptr;          // the same
  int64_t stride = 0;            // floats between tokens, of both
  int64_t num_queries = 0;
  int64_t first_position = 0;
  int64_t first_run = 0;  // of the call's runs
  int64_t num_runs = 0;
  std::span<const CudaLatents> latents{};  // of values, one per KV head; empty: they are none
  std::span<const CudaLatents> key_latents{};
};

struct DeviceAttendCall {
  AttendShape shape;
  int64_t num_kv_heads = 0;
  std::span<const DeviceAttendJob> jobs;
  std::span<const CudaRun> runs;  // of all heads
  Precision precision = Precision::kBF16;
};

// Kept from call to call; grows to the largest need.
class DeviceAttention {
 public:
  explicit DeviceAttention(CudaDevice& device);

  // Queues out = softmax(scale * q k^T) v, see attend(). Throws std::invalid_argument as
  // check_cuda_shape() does.
  void attend(const DeviceAttendCall& call);
  int64_t num_bytes() const;  // on the device

 private:
  // What plans are made for. Layers mostly have the same, so tasks stay where they are.
  struct Planned {
    bool is_bf16 = false;
    int64_t step = 0;  // of the device: what is staged goes with it
    int64_t num_kv_heads = 0, head_dim = 0, group = 0;
    std::vector<int64_t> numbers;
    bool operator==(const Planned&) const = default;
  };
  Planned planned_for(const DeviceAttendCall& call) const;
  void plan(const DeviceAttendCall& call);

  CudaDevice& device_;
  CudaAttendCall call_;  // without runs
  Planned planned_;
  DeviceArray<CudaJob> jobs_;
  DeviceArray<CudaRun> runs_;
  DeviceArray<AttendTask> tasks_;
  DeviceArray<AttendMerge> merges_;
  const AttendTask* tasks_at_ = nullptr;
  const AttendMerge* merges_at_ = nullptr;
  DeviceArray<SoftmaxState> states_;
  DeviceArray<float> sums_;
};

}  // namespace kvquant
