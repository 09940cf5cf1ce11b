#include "cache/cache_view.h"

namespace kvquant {
CacheView::CacheView(int64_t num_kv_heads, int64_t head_dim, ThreadPool& pool)
    : num_kv_heads_(num_kv_heads), head_dim_(head_dim), pool_(pool) {}

void CacheView::prepare(const LayerStore& store, const Staging& staging) {
  const LayerPlan& plan = store.plan();
  plans_ = store.runs();
  key_tiles_.clear();
  value_tiles_.clear();
  coded_.clear();
  const bool reads_codes = plan.is_coded() || plan.is_half_coded();
  if (reads_codes && store.num_encoded() > 0) point_at_codes(store);
  if (plan.is_direct()) {
    point_at_tiles(store);
  } else if (!plan.is_coded()) {
    fill_tiles(store, staging);
  }
  make_runs(store, staging);
}

void CacheView::point_at_tiles(const LayerStore& store) {
  const int64_t num_tiles = plans_.front().num_tiles();
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      key_tiles_.push_back(store.dense_key().tile(tile, head));
      value_tiles_.push_back(store.dense_value().tile(tile, head));
    }
  }
}

void CacheView::point_at_codes(const LayerStore& store) {
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    const LayerPlan& plan = store.plan();
    coded_.push_back(plan.key.nuq ? store.coded_key().coded_side(head) : CodedSide{});
    coded_.push_back(plan.value.nuq ? store.coded_value().coded_side(head) : CodedSide{});
  }
}

void CacheView::fill_tiles(const LayerStore& store, const Staging& staging) {
  struct Task {
    const RunPlan* run;
    int64_t tile;
  };
  std::vector<Task> tasks;
  for (const RunPlan& run : plans_) {
    if (is_stored(store, run)) continue;
    for (int64_t tile = 0; tile < run.num_tiles(); ++tile) tasks.push_back({&run, tile});
  }
  const int64_t task_size = num_kv_heads_ * 2 * tile_size();
  const auto num_tasks = static_cast<int64_t>(tasks.size());
  if (num_tasks * task_size > tiles_.size()) {  // by half more, so that decode steps rarely grow it
    tiles_.reserve_discarding((num_tasks + num_tasks / 2) * task_size);
  }
  workers_.reserve_discarding(pool_.num_threads() * 2 * tile_size());
  pool_.parallel_for(num_tasks, [&](int64_t task, int worker) {
    float* planar = workers_.data() + worker * 2 * tile_size();
    const TileScratch scratch{planar, planar + tile_size(), planar + tile_size() + tile_size() / 2};
    store.fill_tile(*tasks[task].run, tasks[task].tile, staging, scratch,
                    tiles_.data() + task * task_size);
  });
  for (int64_t head = 0; head < num_kv_heads_; ++head) list_tiles(store, head);
}

// Tiles of all runs of a head: those that were filled, and stored ones of the dense side.
void CacheView::list_tiles(const LayerStore& store, int64_t head) {
  const float* filled = tiles_.data() + 2 * head * tile_size();
  for (const RunPlan& run : plans_) {
    if (is_stored(store, run)) {
      const int64_t end = run.first_position + run.num_tokens;
      for (int64_t i = run.first_position / kTileTokens; i * kTileTokens < end; ++i) {
        const LayerPlan& plan = store.plan();
        key_tiles_.push_back(plan.key.dense ? store.dense_key().tile(i, head) : nullptr);
        value_tiles_.push_back(plan.value.dense ? store.dense_value().tile(i, head) : nullptr);
      }
      continue;
    }
    for (int64_t i = 0; i < run.num_tiles(); ++i) {
      key_tiles_.push_back(filled);
      value_tiles_.push_back(filled + tile_size());
      filled += num_kv_heads_ * 2 * tile_size();
    }
  }
}

// Where the tokens of a run of a plan that is_coded are.
void CacheView::point_at_tokens(const LayerStore& store, const Staging& staging,
                                const RunPlan& run_plan, int64_t head, AttendRun& run) const {
  run.rope = store.plan().rope;
  if (run_plan.kind == RunKind::kEncoded) {
    run.coded_keys = &coded_[2 * head];
    run.coded_values = &coded_[2 * head + 1];
    return;
  }
  run.key_rows = store.key_rows(run_plan, staging) + head * head_dim_;
  run.value_rows = store.value_rows(run_plan, staging) + head * head_dim_;
  run.row_stride = store.plan().row_size();
}

// Tiles of a run of a plan that is not is_coded, from tile `first` of those listed on. Returns the
// number of them.
size_t CacheView::point_at_listed(const LayerStore& store, const RunPlan& run_plan, int64_t head,
                                  size_t first, AttendRun& run) const {
  const LayerPlan& plan = store.plan();
  const bool stored = is_stored(store, run_plan), has_keys = !stored || plan.key.dense;
  const bool has_values = !stored || plan.value.dense;
  const int64_t offset = stored ? run_plan.first_position % kTileTokens : 0;
  const auto count =
      static_cast<size_t>((offset + run_plan.num_tokens + kTileTokens - 1) / kTileTokens);
  run.type = DenseType::kF32;
  if (plan.is_direct() || stored)
    run.type = plan.key.dense ? plan.key.dense->type : plan.value.dense->type;
  if (has_keys) run.key_tiles = std::span(key_tiles_).subspan(first, count);
  if (has_values) run.value_tiles = std::span(value_tiles_).subspan(first, count);
  if (!has_values) {
    run.key_offset = offset;
    run.coded_values = &coded_[2 * head + 1];
  }
  if (!has_keys) {
    run.value_offset = offset;
    run.coded_keys = &coded_[2 * head];
  }
  return count;
}

void CacheView::make_runs(const LayerStore& store, const Staging& staging) {
  const LayerPlan& plan = store.plan();
  num_runs_ = static_cast<int64_t>(plans_.size());
  runs_.clear();
  size_t first = 0;
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    for (const RunPlan& run_plan : plans_) {
      AttendRun run;
      run.num_tokens = run_plan.num_tokens;
      run.first_position = run_plan.first_position;
      run.min_lag = run_plan.min_lag;
      run.max_lag = run_plan.max_lag;
      if (plan.is_coded()) {
        point_at_tokens(store, staging, run_plan, head, run);
      } else {
        first += point_at_listed(store, run_plan, head, first, run);
      }
      runs_.push_back(run);
    }
  }
}

}  // namespace kvquant
