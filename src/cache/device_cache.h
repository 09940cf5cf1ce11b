// DeviceCache: what KvCache is, in the memory of a CUDA device (or of the CPU that plays one). The
// same specs mean the same tokens, codes and outliers, to the bit but for keys that are rotated
// before they are stored. All memory is allocated when the cache is made; tokens cost kernels, and
// copies of small tables. The host waits for the device where it must decide: how many pages new
// outliers take, and the ranges of keys without calibration, fitted on the host once per 64 tokens
// and layer at most (as served).
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "cache/device_place.h"
#include "cache/device_split.h"
#include "cache/kv_cache.h"

namespace kvquant {

struct DeviceCacheOptions {
  CacheMode mode = CacheMode::kAsServed;
  int64_t num_sequences = 1;
  int64_t max_tokens = 0;  // of a sequence; 0: the positions of the RoPE table
  int64_t chunk_tokens =
      512;  // appended to a layer before it is settled, by all sequences together
  // Beside those sequences: forks that append up to fork_tokens each.
  int64_t num_forks = 0;
  int64_t fork_tokens = 0;
  // For blocks, pages, sinks and windows; 0: what num_sequences of max_tokens and the forks take,
  // with as many outliers as normal data has and half as many more.
  int64_t pool_bytes = 0;
  std::shared_ptr<const Calibration> calibration = nullptr;  // null: none
};

class DeviceCache {
 public:
  using SequenceId = int64_t;

  // `device`, `rope` and `pool` must outlive the cache. Throws what KvCache throws, OutOfMemory.
  DeviceCache(const KvShape& shape, const CacheSpec& spec, const RopeTable& rope,
              CudaDevice& device, ThreadPool& pool, const DeviceCacheOptions& options);
  // Each layer on its device; all of them must outlive the cache.
  DeviceCache(const KvShape& shape, const CacheSpec& spec, const RopeTable& rope,
              const DeviceSplit& split, ThreadPool& pool, const DeviceCacheOptions& options);
  ~DeviceCache();

  SequenceId add_sequence();
  void drop(SequenceId id);
  // See KvCache. Throw std::invalid_argument between the layers of a chunk.
  SequenceId fork(SequenceId id);
  // A fork that shares no memory. Throws OutOfMemory; there is no new sequence then.
  SequenceId copy(SequenceId id);
  void truncate(SequenceId id, int64_t length);
  bool can_truncate(SequenceId id, int64_t length) const;
  int64_t length(SequenceId id) const;  // tokens that are in all layers
  int64_t num_compressed_tokens(SequenceId id) const;

  // Appends a chunk to one layer; layers in step as in KvCache. Then the layer may be attended, and
  // settle ends its chunk, before the next layer's append. The chunk is read until then. Throws
  // std::invalid_argument, changing nothing, for order, tokens past the limits, or an unsettled
  // layer. OutOfMemory may come amid the work: then the sequence can only be dropped; others are as
  // they were. Numbers are not looked at: what is not finite, or too large for fp16, ends as NaN in
  // what attention returns.
  void append(int64_t layer, SequenceId id, const DeviceChunk& chunk);
  void settle(int64_t layer, SequenceId id);

  // Attention of new queries, [tokens, num_q_heads * head_dim] on the device, rotated, of chunks
  // that were appended to the layer and are not settled, in their order.
  struct Queries {
    SequenceId id = 0;
    const float* query = nullptr;
    float* out = nullptr;    // of the same shape
    int64_t stride = 0;      // floats between tokens of both
    int64_t num_tokens = 0;  // of the chunk
  };
  void attend(int64_t layer, std::span<const Queries> queries, const AttendShape& shape,
              Precision precision);

  const DeviceRope& rope(int64_t layer) const { return places_[split_.place_of(layer)]->rope(); }
  // Of everything the cache has allocated on devices.
  int64_t memory_bytes() const;
  // Of blocks, pages, sinks and windows of sequences, within the pool; what forks share and
  // parameters of codecs count once, as in KvCache.
  int64_t held_bytes() const;
  // What held_bytes() would be if there were these sequences only and they shared nothing.
  int64_t held_bytes(std::span<const SequenceId> ids) const;

  // For tests and comparisons: the runs of one KV head, see KvCache::view.
  DeviceLayer::View view(int64_t layer, SequenceId id);

 private:
  struct Sequence {
    std::vector<DeviceLayer> layers;
    int64_t length = 0;
    bool is_broken = false;
  };
  Sequence& find(SequenceId id);
  Sequence& find_whole(SequenceId id);
  Sequence& find_between_chunks(SequenceId id, const char* what);
  DevicePlace& place_of(int64_t layer) { return *places_[split_.place_of(layer)]; }
  void set_aside(const RopeTable& rope, const DeviceCacheOptions& options);
  // Whatever is not where it belongs yet: rows that wait, tiles that wait to be encoded.
  void encode_pending();
  void check_append(int64_t layer, const Sequence& sequence, const DeviceChunk& chunk) const;

  KvCache plans_;  // without sequences
  DeviceSplit split_;
  ThreadPool& pool_;
  int64_t max_tokens_, chunk_tokens_;
  std::vector<DeviceLayerPlan> layers_;
  std::vector<std::unique_ptr<DevicePlace>> places_;
  std::vector<CudaRun> runs_;  // of a call
  int64_t staged_tokens_ = 0;  // of chunks that are not settled
  int64_t num_unsettled_ = 0;
  std::map<SequenceId, Sequence> sequences_;
  SequenceId next_id_ = 0;
};

}  // namespace kvquant
