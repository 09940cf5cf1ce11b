// The keys (after RoPE) or values of one layer of one sequence in fp16, bf16 or fp32 in the memory
// of a device: the tiles of DenseSide, written by kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/dense_side.h"
#include "cache/device_rows.h"
#include "cache/device_table.h"

namespace kvquant {

// The table of a RopeTable on a device: rows of head_dim / 2 numbers.
struct DeviceRope {
  const float* cos = nullptr;
  const float* sin = nullptr;
  const float* tile_cos = nullptr;  // of RopeTiles
  const float* tile_sin = nullptr;
  int64_t half = 0;
};

// [num_rows, num_kv_heads, head_dim] on the device, `stride` floats apart.
struct DeviceDenseRows {
  const float* rows = nullptr;
  int64_t stride = 0;
  int64_t num_rows = 0;
};

class DeviceDenseSide {
 public:
  explicit DeviceDenseSide(const DensePlan& plan) : plan_(&plan) {}

  // Rows are read when `queue` is flushed. Throws OutOfMemory; then the side can only be destroyed.
  void append(const DeviceDenseRows& x, const DeviceRope& rope, CudaDevice& device,
              DeviceArena& arena, DeviceRowQueue& queue);
  void truncate(int64_t num_tokens);
  // Copies of a side share its blocks until they write, or this.
  void own(CudaDevice& device, DeviceArena& arena);
  int64_t held_bytes() const;  // of its blocks and their table, whoever shares them
  int64_t num_tokens() const { return num_tokens_; }
  const std::byte* tile(int64_t index, int64_t head) const;  // an address of the device
  // All heads, for kernels, from the tile of token `first` on.
  CudaSide cuda_side(int64_t first) const;

 private:
  void keep_table(CudaDevice& device, DeviceArena& arena);

  const DensePlan* plan_;
  int64_t num_tokens_ = 0;
  std::vector<ArenaPiece<std::byte>> blocks_;
  DeviceTable<std::byte> table_;
};

}  // namespace kvquant
