// What a cache has on one of its devices: memory of sequences, parameters of the layers that are
// there, scratch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/device_layer.h"
#include "ops/attend_device.h"

namespace kvquant {

class DevicePlace {
 public:
  // Of positions below max_tokens. `device` must outlive it.
  DevicePlace(CudaDevice& device, const LayerPlan& any_layer, const RopeTable& rope,
              int64_t max_tokens);

  // Uploads what all sequences share; `plan` must outlive this.
  DeviceLayerPlan add_layer(const LayerPlan& plan);
  // For blocks, pages, sinks and windows; for staged chunks, and for rows of all layers that wait
  // to be encoded. Throws OutOfMemory.
  void set_aside(int64_t pool_bytes, int64_t chunk_tokens, int64_t num_pending_rows);

  CudaDevice& device() { return device_; }
  DeviceArena& arena() { return *arena_; }
  const DeviceRope& rope() const { return rope_; }
  DeviceRowQueue& queue() { return queue_; }
  DevicePending& pending() { return pending_; }
  DeviceAttention& attention() { return attention_; }
  // Of token `first` of those that are not settled.
  DeviceLayer::Staging staging(int64_t first) const;
  DeviceLayerTools tools(ThreadPool& pool);
  int64_t num_bytes() const;  // allocated

 private:
  void upload_rope(const RopeTable& rope, int64_t max_tokens);
  void upload_latents(const NuqPlan& plan, DeviceNuqPlan& out);
  DeviceNuqPlan upload_side(const NuqPlan& plan);
  template <class T>
  const T* upload(std::span<const T> items);

  CudaDevice& device_;
  int64_t row_size_;
  std::vector<DeviceArray<std::byte>> parameters_;
  DeviceRope rope_;
  std::unique_ptr<DeviceArena> arena_;
  DeviceArray<Half> staging_;  // [2][chunk_tokens, row_size]
  int64_t chunk_tokens_ = 0;
  DeviceEncodeScratch encode_scratch_;
  DeviceRowQueue queue_;
  DevicePending pending_;
  DeviceArray<float> rows_;
  DeviceArray<Half> kept_;
  DeviceAttention attention_;
};

// What a sequence of max_tokens takes in a layer, with as many outliers as normal data has and half
// as many more, when blocks and pages of all but own_tokens are shared with another one.
int64_t default_pool_bytes(const LayerPlan& plan, int64_t own_tokens, int64_t max_tokens);

}  // namespace kvquant
