#include "cache/layer_store.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <utility>

#include "ops/rows.h"

namespace kvquant {
int64_t num_seen_compressed(const LayerPlan& plan, int64_t length, int64_t num_compressed) {
  const int64_t num_sinks = std::min(length, plan.sink);
  const int64_t num_unseen = std::max<int64_t>(0, length - plan.max_lag - num_sinks);
  return std::max<int64_t>(0, num_compressed - num_unseen);
}

std::vector<RunPlan> plan_runs(const LayerPlan& plan, const LayerState& state) {
  if (!plan.is_compressed()) return {{.num_tokens = state.length, .max_lag = plan.max_lag}};
  const int64_t sinks = std::min(state.length, plan.sink), encoded = state.num_encoded;
  const bool strict = plan.mode == CacheMode::kStrict;
  std::vector<RunPlan> runs;
  runs.push_back({.num_tokens = sinks, .max_lag = plan.max_lag});
  runs.push_back({.kind = RunKind::kEncoded,
                  .first_position = sinks,
                  .num_tokens = encoded,
                  .min_lag = strict ? plan.recent : 0,
                  .max_lag = plan.max_lag});
  const int64_t oldest_needed = state.length - state.last_chunk - plan.recent + 1;
  const int64_t tail = strict ? std::max(sinks, oldest_needed) : sinks + encoded;
  if (!strict || plan.recent > 0) {
    const int64_t max_lag = strict ? std::min(plan.recent, plan.max_lag) : plan.max_lag;
    const int64_t staged = std::max(tail, state.length - state.pending);
    for (const auto& [first, end] : {std::pair(tail, staged), std::pair(staged, state.length)}) {
      runs.push_back({.first_position = first, .num_tokens = end - first, .max_lag = max_lag});
    }
  }
  std::erase_if(runs, [](const RunPlan& run) { return run.num_tokens == 0; });
  return runs;
}

LayerStore::LayerStore(const LayerPlan& plan) : plan_(&plan) {
  if (plan.key.dense) key_.dense.emplace(*plan.key.dense);
  if (plan.key.nuq) key_.nuq.emplace(*plan.key.nuq);
  if (plan.value.dense) value_.dense.emplace(*plan.value.dense);
  if (plan.value.nuq) value_.nuq.emplace(*plan.value.nuq);
}

std::unique_ptr<LayerStore> LayerStore::fork() const {
  assert(pending_ == 0);
  auto out = std::make_unique<LayerStore>(*plan_);
  for (const auto& [to, from] : {std::pair(&out->key_, &key_), std::pair(&out->value_, &value_)}) {
    if (from->dense) to->dense.emplace(from->dense->fork());
    if (from->nuq) to->nuq.emplace(from->nuq->fork());
    to->sinks = from->sinks;
    to->window = from->window;
  }
  out->length_ = length_;
  out->read_compressed_ = read_compressed_;
  out->last_chunk_ = last_chunk_;
  out->window_rows_ = window_rows_;
  return out;
}

int64_t LayerStore::num_encoded() const {
  const auto& nuq = key_.nuq ? key_.nuq : value_.nuq;
  return nuq ? nuq->num_tokens() : 0;
}

// Rounds a chunk to fp16, which holds its numbers (KvCache checks them): sinks to their place, the
// rest to staging.
void LayerStore::stage(Side& side, TensorView<const float, 3> x, Buffer<Half>& staging,
                       ThreadPool& pool) {
  const int64_t size = plan_->row_size(), num_new = x.shape[0];
  const int64_t num_to_sinks = std::clamp<int64_t>(plan_->sink - length_, 0, num_new);
  Half* sinks = nullptr;
  if (num_to_sinks > 0) {
    sinks = side.sinks.own(plan_->sink * size, /*first=*/0, length_ * size, *plan_->account);
  }
  staging.reserve_discarding((num_new - num_to_sinks) * size);
  for_row_ranges(num_new, pool, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) {
      Half* out = t < num_to_sinks ? sinks + (length_ + t) * size
                                   : staging.data() + (t - num_to_sinks) * size;
      for (int64_t h = 0; h < plan_->num_kv_heads; ++h) {
        narrow(x.row(t, h), out + h * plan_->head_dim);
      }
    }
  });
}

void LayerStore::append(TensorView<const float, 3> keys, TensorView<const float, 3> values,
                        Staging& staging, ThreadPool& pool) {
  assert(pending_ == 0);
  const int64_t num_new = keys.shape[0];
  if (key_.dense) key_.dense->append(keys, *plan_->rope, pool);
  if (value_.dense) value_.dense->append(values, *plan_->rope, pool);
  if (key_.nuq) stage(key_, keys, staging.key, pool);
  if (value_.nuq) stage(value_, values, staging.value, pool);
  const int64_t first_exact = std::max(length_, plan_->sink);
  length_ += num_new;
  last_chunk_ = num_new;
  set_read_compressed(num_encoded());
  if (!plan_->is_compressed() || first_exact >= length_) return;
  pending_ = length_ - first_exact;
  if (plan_->mode == CacheMode::kAsServed) return;
  for (Side* side : {&key_, &value_}) {
    if (!side->nuq) continue;
    const Buffer<Half>& staged = side == &key_ ? staging.key : staging.value;
    const int64_t size = plan_->row_size();
    const HalfRows rows{{}, staged.span().first(pending_ * size), size};
    if (!side->nuq->is_fitted()) side->nuq->fit(rows, pool);
    side->nuq->append(rows, pool);
  }
  set_read_compressed(std::clamp<int64_t>(length_ - plan_->recent - plan_->sink, 0, num_encoded()));
}

// Makes room for num_rows rows in a window that nobody else sees; its rows [first, first +
// num_kept) come to the front.
Half* LayerStore::own_window(Side& side, int64_t first, int64_t num_kept, int64_t num_rows) {
  if (num_rows == 0) return nullptr;
  const int64_t size = plan_->row_size();
  int64_t capacity = side.window.size() / size;
  if (num_rows > capacity) {
    const int64_t most =
        plan_->mode == CacheMode::kStrict ? plan_->recent : plan_->recent + kTileTokens;
    // The same however the tokens came, in chunks or one by one: forecasts rely on it.
    const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_rows)));
    capacity = std::min(most, std::max<int64_t>(power, kTileTokens));
  }
  return side.window.own(capacity * size, first * size, num_kept * size, *plan_->account);
}

// The first num_leaving rows of window and staging leave (as served: are encoded); the others
// become the window.
void LayerStore::settle_side(Side& side, const Buffer<Half>& staging, int64_t num_leaving,
                             ThreadPool& pool) {
  const int64_t size = plan_->row_size();
  const int64_t from_window = std::min(num_leaving, window_rows_);
  const int64_t from_staging = num_leaving - from_window;
  if (plan_->mode == CacheMode::kAsServed && num_leaving > 0) {
    const bool fits = !side.nuq->is_fitted();  // to all: a first chunk of few tokens says little
    const int64_t num_rows = fits ? window_rows_ + pending_ : num_leaving;
    const int64_t in_window = std::min(num_rows, window_rows_);
    const HalfRows rows{std::span(side.window.data(), static_cast<size_t>(in_window * size)),
                        staging.span().first((num_rows - in_window) * size), size};
    if (fits) side.nuq->fit(rows, pool);
    side.nuq->append(rows.head(num_leaving), pool);
  }
  const int64_t kept = window_rows_ - from_window, added = pending_ - from_staging;
  Half* window = own_window(side, from_window, kept, kept + added);
  if (added > 0) {
    std::copy_n(staging.data() + from_staging * size, added * size, window + kept * size);
  }
}

void LayerStore::settle(const Staging& staging, ThreadPool& pool) {
  if (pending_ == 0) return;
  const int64_t total = window_rows_ + pending_;
  int64_t num_leaving = std::max<int64_t>(0, total - plan_->recent);
  if (plan_->mode == CacheMode::kAsServed) num_leaving = num_leaving / kTileTokens * kTileTokens;
  if (key_.nuq) settle_side(key_, staging.key, num_leaving, pool);
  if (value_.nuq) settle_side(value_, staging.value, num_leaving, pool);
  window_rows_ = total - num_leaving;
  pending_ = 0;
}

void LayerStore::append_tiles(const LayerStore& from, int64_t first_tile, int64_t num_tiles) {
  assert(ends_with_tile());
  key_.nuq->append_tiles(*from.key_.nuq, first_tile, num_tiles);
  value_.nuq->append_tiles(*from.value_.nuq, first_tile, num_tiles);
  length_ += num_tiles * kTileTokens;
  last_chunk_ = 0;
}

int64_t LayerStore::first_forgettable() const {
  return num_encoded() == 0 ? 0 : num_sinks() + num_encoded();
}

void LayerStore::prepare_truncate(int64_t length) {
  if (key_.dense) key_.dense->prepare_truncate(length);
  if (value_.dense) value_.dense->prepare_truncate(length);
}

void LayerStore::truncate(int64_t length) {
  assert(pending_ == 0 && can_truncate(length) && length <= length_);
  if (key_.dense) key_.dense->truncate(length);
  if (value_.dense) value_.dense->truncate(length);
  window_rows_ = std::max<int64_t>(0, window_rows_ - (length_ - length));
  length_ = length;
  last_chunk_ = 0;
}

bool LayerStore::can_view() const {
  if (!plan_->is_compressed()) return true;
  const int64_t chunk_first = length_ - last_chunk_;
  if (plan_->mode == CacheMode::kAsServed) {
    return num_encoded() == 0 || plan_->sink + num_encoded() <= chunk_first;
  }
  return plan_->recent == 0 || length_ <= plan_->sink ||
         window_first() <= std::max(plan_->sink, chunk_first - plan_->recent + 1);
}

const Half* LayerStore::exact_row(const Side& side, const Buffer<Half>& staging,
                                  int64_t position) const {
  const int64_t size = plan_->row_size();
  if (position < plan_->sink) return side.sinks.data() + position * size;
  if (position >= staging_first()) return staging.data() + (position - staging_first()) * size;
  assert(position >= window_first());
  return side.window.data() + (position - window_first()) * size;
}

void LayerStore::fill_tile(const RunPlan& run, int64_t tile, const Staging& staging,
                           const TileScratch& scratch, float* out) const {
  const int64_t head_dim = plan_->head_dim, tile_size = kTileTokens * head_dim;
  const int64_t first = run.first_position + tile * kTileTokens;
  const int64_t num_tokens = std::min<int64_t>(kTileTokens, run.num_tokens - tile * kTileTokens);
  if (key_.nuq) fill_rope_tile(*plan_->rope, first, scratch.cos, scratch.sin);
  for (int64_t head = 0; head < plan_->num_kv_heads; ++head) {
    for (const Side* side : {&key_, &value_}) {
      float* target = out + (2 * head + (side == &key_ ? 0 : 1)) * tile_size;
      if (side->dense) {
        side->dense->read_tile(first, num_tokens, head, target);
        continue;
      }
      if (run.kind == RunKind::kEncoded) {
        side->nuq->decode(tile, head, scratch.planar);
      } else {
        std::fill_n(scratch.planar, tile_size, 0.0f);
        const Half* rows = exact_row(*side, side == &key_ ? staging.key : staging.value, first);
        rows_to_planar(rows + head * head_dim, plan_->row_size(), head_dim, /*first_token=*/0,
                       num_tokens, scratch.planar);
      }
      const bool is_rotated = run.kind == RunKind::kEncoded && side->nuq->has_rotated_latents();
      if (side == &key_ && is_rotated) {
        planar_to_key_tile(scratch.planar, head_dim, target);
      } else if (side == &key_) {
        rotate_to_key_tile(scratch.planar, scratch.cos, scratch.sin, head_dim, target);
      } else {
        planar_to_value_tile(scratch.planar, head_dim, target);
      }
    }
  }
}

int64_t LayerStore::counted_bytes() const {
  int64_t bytes = 0;
  for (const Side* side : {&key_, &value_}) {
    if (side->dense) bytes += side->dense->block_bytes();
    if (side->nuq) bytes += side->nuq->block_bytes();
    bytes += side->sinks.num_bytes() + side->window.num_bytes();
  }
  return bytes;
}

int64_t LayerStore::table_bytes() const {
  int64_t bytes = 0;
  for (const Side* side : {&key_, &value_}) {
    if (side->dense) bytes += side->dense->table_bytes();
    if (side->nuq) bytes += side->nuq->table_bytes();
  }
  return bytes;
}

}  // namespace kvquant
