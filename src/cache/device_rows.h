// Rows on their way into a cache of a device, gathered over the sequences of a batch: one kernel
// moves them all.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/cuda_device.h"

namespace kvquant {

class DeviceRowQueue {
 public:
  // Rows of num_heads * head_dim numbers. `device` must outlive the queue.
  DeviceRowQueue(CudaDevice& device, int64_t num_heads, int64_t head_dim);

  // Rows to fp16 without gaps, `stride` floats apart.
  void narrow(const float* rows, int64_t stride, int64_t num_rows, Half* to);
  void store(DenseType type, std::span<const CudaDenseTarget> targets);
  // fp16 rows without gaps, which don't overlap others that wait.
  void move(const Half* from, int64_t num_rows, Half* to);
  // Whatever else reads or writes rows, or gives their memory back, does this before.
  void flush();
  void flush_rows();  // all but moves

  int64_t num_bytes() const;  // of scratch on the device

 private:
  static constexpr int kNumTypes = 3;
  struct Stored {
    std::vector<CudaDenseTarget> waiting;
    DeviceArray<CudaDenseTarget> targets;
  };
  int64_t row_size() const { return num_heads_ * head_dim_; }
  void flush_moves();

  CudaDevice& device_;
  int64_t num_heads_, head_dim_;
  std::vector<CudaNarrowTarget> narrow_;
  std::vector<CudaMoveTarget> move_;
  DeviceArray<CudaNarrowTarget> narrow_targets_;
  DeviceArray<CudaMoveTarget> move_targets_;
  std::array<Stored, kNumTypes> stored_;  // by type
};

}  // namespace kvquant
