// One layer of one sequence in the memory of a device: what LayerStore is on the CPU, step by step
// the same.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/device_dense.h"
#include "cache/device_pending.h"
#include "cache/device_side.h"
#include "cache/layer_store.h"

namespace kvquant {

// What all sequences share of a layer.
struct DeviceLayerPlan {
  const LayerPlan* host = nullptr;
  std::optional<DeviceNuqPlan> key, value;  // of compressed layers
};

// A chunk's keys (before RoPE) and values on the device: rows of num_kv_heads * head_dim floats,
// `stride` apart.
struct DeviceChunk {
  const float* keys = nullptr;
  const float* values = nullptr;
  int64_t stride = 0;
  int64_t num_rows = 0;
};

// With what a layer works; scratch is shared by all.
struct DeviceLayerTools {
  DeviceEncoder encoder;
  DeviceRowQueue& queue;
  DevicePending& pending;
  DeviceArray<float>& rows;  // that are encoded
  DeviceArray<Half>& kept;   // of a window that moves
  DeviceRope rope;
};

class DeviceLayer {
 public:
  explicit DeviceLayer(const DeviceLayerPlan& plan);

  int64_t length() const { return length_; }
  int64_t num_encoded() const {
    const auto& nuq = key_.nuq ? key_.nuq : value_.nuq;
    return nuq ? nuq->num_tokens() : 0;
  }
  int64_t num_read_compressed() const { return read_compressed_; }

  // staging: room for the chunk's fp16 keys and values, [num_rows, row_size] each, that stays until
  // settle. The chunk is read when the queue is flushed. Requires a settled layer. Throws
  // OutOfMemory; then the layer can only be destroyed.
  struct Staging {
    Half* key = nullptr;
    Half* value = nullptr;
  };
  void append(const DeviceChunk& chunk, const Staging& staging, const DeviceLayerTools& tools);
  // Ends a chunk, see LayerStore::settle: rows that leave the window are left to tools.pending,
  // which must have room for them, until whose encode() nothing else is asked of the layer. Throws
  // OutOfMemory as append does.
  void settle(int64_t sequence, const DeviceLayerTools& tools);
  // Rows that settle() would leave there, of both sides.
  int64_t num_pending_rows() const;
  bool is_settled() const { return pending_ == 0; }

  // Copies share memory until they write, or own(). Throws OutOfMemory as append does. Requires a
  // settled layer.
  void own(CudaDevice& device, DeviceArena& arena);
  int64_t held_bytes() const;  // whoever shares them

  // Requires a settled layer.
  bool can_truncate(int64_t length) const;
  void truncate(int64_t length);

  // What queries of the last chunk read, for kernels: runs of all heads, appended. The rows must
  // have been flushed. Valid until the layer changes.
  void list_runs(const DeviceRope& rope, std::vector<CudaRun>& runs) const;
  // Of values that are latents, one per KV head; else empty. And of keys.
  std::span<const CudaLatents> latents() const { return latents_of(plan_->value); }
  std::span<const CudaLatents> key_latents() const { return latents_of(plan_->key); }

  // The same with tables on the host, for tests.
  struct View {
    int64_t num_runs = 0;
    std::vector<AttendRun> runs;                      // [num_kv_heads][num_runs]
    std::vector<CodedSide> coded;                     // [num_kv_heads][2], of compressed sides
    std::vector<const void*> key_tiles, value_tiles;  // [num_kv_heads][tiles], of dense sides
    std::span<const AttendRun> of_head(int64_t head) const {
      return std::span(runs).subspan(static_cast<size_t>(head * num_runs),
                                     static_cast<size_t>(num_runs));
    }
  };
  View view() const;

 private:
  static std::span<const CudaLatents> latents_of(const std::optional<DeviceNuqPlan>& plan) {
    return plan ? std::span<const CudaLatents>(plan->latents) : std::span<const CudaLatents>();
  }
  struct Side {
    std::optional<DeviceDenseSide> dense;
    std::optional<DeviceNuqSide> nuq;
    ArenaPiece<Half> sinks, window;  // [tokens, row_size]
    Half* staging = nullptr;
  };
  void stage(Side& side, const float* rows, const DeviceChunk& chunk,
             const DeviceLayerTools& tools) const;
  void encode(Side& side, const DeviceLayerTools& tools) const;
  int64_t num_leaving() const;
  void defer(Side& side, int64_t sequence, const DeviceLayerTools& tools) const;
  void move_window(Side& side, int64_t num_leaving, const DeviceLayerTools& tools) const;
  const Half* exact_row(const Side& side, int64_t position) const;
  std::vector<RunPlan> plan_runs() const;
  CudaSide cuda_side(const Side& side, const RunPlan& run) const;
  // What a run reads of one side of a head.
  struct Source {
    std::span<const void* const> tiles{};
    int64_t offset = 0;  // of its first token in the first tile
    const CodedSide* coded = nullptr;
    const Half* rows = nullptr;
  };
  Source source_of(const Side& side, const View& view, const RunPlan& run, int64_t head) const;
  void list_memory(View& view) const;
  int64_t num_sinks() const { return std::min(length_, plan_->host->sink); }
  int64_t window_capacity() const;

  const DeviceLayerPlan* plan_;
  Side key_, value_;
  int64_t length_ = 0;
  int64_t read_compressed_ = 0;
  int64_t last_chunk_ = 0;
  int64_t pending_ = 0;      // tokens in staging, the last ones
  int64_t window_rows_ = 0;  // tokens in the window, right before them
};

}  // namespace kvquant
