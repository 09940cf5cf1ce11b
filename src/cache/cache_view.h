// What attention reads of one layer of one sequence, as runs per KV head:
//
//   both sides dense, of one type   the stored tiles themselves
//   both sides compressed           the codes themselves, and the rows of exact tokens around them
//   dense keys, coded values        the stored key tiles and the codes themselves, and f32 tiles of
//                                   the exact tokens around them
//   latents of keys, dense values   the same the other way round
//   otherwise                       everything as f32 tiles
//
// f32 tiles are made in scratch at every call of prepare; other views need none, and prepare only
// lists pointers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "cache/layer_store.h"
#include "ops/attend.h"

namespace kvquant {

class CacheView {
 public:
  CacheView(int64_t num_kv_heads, int64_t head_dim, ThreadPool& pool);

  // Requires: store.can_view(), not empty, of this shape. Runs are valid until the store changes or
  // the next call.
  void prepare(const LayerStore& store, const Staging& staging);
  std::span<const AttendRun> runs(int64_t kv_head) const {
    return std::span(runs_).subspan(kv_head * num_runs_, num_runs_);
  }
  int64_t scratch_bytes() const { return tiles_.num_bytes() + workers_.num_bytes(); }

 private:
  int64_t tile_size() const { return kTileTokens * head_dim_; }
  void point_at_tiles(const LayerStore& store);
  void point_at_codes(const LayerStore& store);
  void fill_tiles(const LayerStore& store, const Staging& staging);
  void list_tiles(const LayerStore& store, int64_t head);
  // Whether attention reads the tokens of a run where the store has them.
  bool is_stored(const LayerStore& store, const RunPlan& run) const {
    return run.kind == RunKind::kEncoded && store.plan().is_half_coded();
  }
  void make_runs(const LayerStore& store, const Staging& staging);
  size_t point_at_listed(const LayerStore& store, const RunPlan& run_plan, int64_t head,
                         size_t first, AttendRun& run) const;
  void point_at_tokens(const LayerStore& store, const Staging& staging, const RunPlan& run_plan,
                       int64_t head, AttendRun& run) const;

  int64_t num_kv_heads_, head_dim_;
  ThreadPool& pool_;
  std::vector<RunPlan> plans_;  // of the prepared layer
  int64_t num_runs_ = 0;
  std::vector<AttendRun> runs_;  // [num_kv_heads][num_runs]
  // [num_kv_heads][all tiles of the runs]; in place of codes a tile is null
  std::vector<const void*> key_tiles_, value_tiles_;
  std::vector<CodedSide> coded_;  // [num_kv_heads][2], keys first, or empty; dense ones as made
  Buffer<float> tiles_;           // [filled tiles of the runs][num_kv_heads][2][64 * head_dim]
  Buffer<float> workers_;         // [num_threads][2 * 64 * head_dim], see TileScratch
};

}  // namespace kvquant
