#include "cache/device_layer.h"

#include <algorithm>
#include <cassert>

namespace kvquant {

DeviceLayer::DeviceLayer(const DeviceLayerPlan& plan) : plan_(&plan) {
  if (plan.key) key_.nuq.emplace(*plan.key);
  if (plan.value) value_.nuq.emplace(*plan.value);
  if (plan.host->key.dense) key_.dense.emplace(*plan.host->key.dense);
  if (plan.host->value.dense) value_.dense.emplace(*plan.host->value.dense);
}

int64_t DeviceLayer::window_capacity() const {
  const LayerPlan& plan = *plan_->host;
  return plan.mode == CacheMode::kStrict ? plan.recent : plan.recent + kTileTokens;
}

// Rounds a chunk to fp16: sinks to their place, the rest to staging.
void DeviceLayer::stage(Side& side, const float* rows, const DeviceChunk& chunk,
                        const DeviceLayerTools& tools) const {
  const int64_t size = plan_->host->row_size(), sink = plan_->host->sink;
  const int64_t num_to_sinks = std::clamp<int64_t>(sink - length_, 0, chunk.num_rows);
  if (num_to_sinks > 0) {
    if (side.sinks.data() == nullptr) {
      side.sinks = ArenaPiece<Half>(tools.encoder.arena, sink * size);
    }
    side.sinks.own();
    tools.queue.narrow(rows, chunk.stride, num_to_sinks, side.sinks.data() + length_ * size);
  }
  tools.queue.narrow(rows + num_to_sinks * chunk.stride, chunk.stride,
                     chunk.num_rows - num_to_sinks, side.staging);
}

void DeviceLayer::append(const DeviceChunk& chunk, const Staging& staging,
                         const DeviceLayerTools& tools) {
  assert(is_settled());
  const LayerPlan& plan = *plan_->host;
  key_.staging = staging.key;
  value_.staging = staging.value;
  for (Side* side : {&key_, &value_}) {
    const float* rows = side == &key_ ? chunk.keys : chunk.values;
    if (side->nuq) {
      stage(*side, rows, chunk, tools);
    } else {
      side->dense->append({rows, chunk.stride, chunk.num_rows}, tools.rope, tools.encoder.device,
                          tools.encoder.arena, tools.queue);
    }
  }
  const int64_t first_exact = std::max(length_, plan.sink);
  length_ += chunk.num_rows;
  last_chunk_ = chunk.num_rows;
  read_compressed_ = num_seen_compressed(plan, length_, num_encoded());
  if (!plan.is_compressed() || first_exact >= length_) return;
  pending_ = length_ - first_exact;
  if (plan.mode == CacheMode::kAsServed) return;
  for (Side* side : {&key_, &value_}) {
    if (side->nuq) encode(*side, tools);
  }
  const int64_t num_compressed =
      std::clamp<int64_t>(length_ - plan.recent - plan.sink, 0, num_encoded());
  read_compressed_ = num_seen_compressed(plan, length_, num_compressed);
}

// Strict: all rows of staging.
void DeviceLayer::encode(Side& side, const DeviceLayerTools& tools) const {
  const int64_t size = plan_->host->row_size();
  CudaDevice& device = tools.encoder.device;
  tools.queue.flush();
  tools.rows.reserve_discarding(pending_ * size);
  device.run(CudaWiden{side.staging, tools.rows.data(), pending_, size});
  side.nuq->transform(tools.rows.data(), pending_, side.nuq->num_tokens(), tools.encoder);
  DeviceRows rows{tools.rows.data(), pending_};
  std::vector<Half> host;
  if (side.nuq->needs_host_rows() && (!side.nuq->is_fitted() || side.nuq->can_drift(pending_))) {
    host.resize(static_cast<size_t>(pending_ * size));
    device.copy_out(host.data(), side.staging,
                    pending_ * size * static_cast<int64_t>(sizeof(Half)));
    rows.host = HalfRows{{}, host, size};
    if (!side.nuq->is_fitted()) side.nuq->fit(*rows.host, tools.encoder);
  }
  side.nuq->append(rows, tools.encoder);
}

// As served: whole tiles that are older than the recent tokens. Strict: what is encoded already.
int64_t DeviceLayer::num_leaving() const {
  const LayerPlan& plan = *plan_->host;
  const int64_t count = std::max<int64_t>(0, window_rows_ + pending_ - plan.recent);
  return plan.mode == CacheMode::kAsServed ? count / kTileTokens * kTileTokens : count;
}

int64_t DeviceLayer::num_pending_rows() const {
  if (is_settled() || plan_->host->mode == CacheMode::kStrict) return 0;
  return num_leaving() * ((key_.nuq ? 1 : 0) + (value_.nuq ? 1 : 0));
}

// What leaves the window and staging, before the window changes.
void DeviceLayer::defer(Side& side, int64_t sequence, const DeviceLayerTools& tools) const {
  const int64_t count = num_leaving(), from_window = std::min(count, window_rows_);
  Half* rows = tools.pending.take(count);
  tools.queue.move(side.window.data(), from_window, rows);
  tools.queue.move(side.staging, count - from_window, rows + from_window * plan_->host->row_size());
  tools.queue.flush();
  move_window(side, count, tools);
  tools.pending.add(
      {&*side.nuq, sequence, rows, count, side.window.data(), window_rows_ + pending_ - count});
}

// What does not leave becomes the window.
void DeviceLayer::move_window(Side& side, int64_t num_leaving,
                              const DeviceLayerTools& tools) const {
  const int64_t size = plan_->host->row_size();
  const int64_t from_window = std::min(num_leaving, window_rows_);
  const int64_t from_staging = num_leaving - from_window;
  const int64_t kept = window_rows_ - from_window, added = pending_ - from_staging;
  if (kept + added == 0) return;
  CudaDevice& device = tools.encoder.device;
  const auto bytes = [&](int64_t num_rows) {
    return num_rows * size * static_cast<int64_t>(sizeof(Half));
  };
  if (side.window.data() == nullptr) {
    side.window = ArenaPiece<Half>(tools.encoder.arena, window_capacity() * size);
  }
  side.window.own();
  if (from_window > 0 && kept > 0) {
    tools.queue.flush();
    tools.kept.reserve_discarding(kept * size);
    device.copy(tools.kept.data(), side.window.data() + from_window * size, bytes(kept));
    device.copy(side.window.data(), tools.kept.data(), bytes(kept));
  }
  if (added > 0) {
    tools.queue.move(side.staging + from_staging * size, added, side.window.data() + kept * size);
  }
}

void DeviceLayer::settle(int64_t sequence, const DeviceLayerTools& tools) {
  if (is_settled()) return;
  const int64_t count = num_leaving();
  for (Side* side : {&key_, &value_}) {
    if (!side->nuq) continue;
    const bool defers = plan_->host->mode == CacheMode::kAsServed && count > 0;
    defers ? defer(*side, sequence, tools) : move_window(*side, count, tools);
    side->staging = nullptr;
  }
  window_rows_ += pending_ - count;
  pending_ = 0;
}

void DeviceLayer::own(CudaDevice& device, DeviceArena& arena) {
  assert(is_settled());
  for (Side* side : {&key_, &value_}) {
    if (side->dense) side->dense->own(device, arena);
    if (side->nuq) side->nuq->own(device, arena);
    side->sinks.own();
    side->window.own();
  }
}

int64_t DeviceLayer::held_bytes() const {
  int64_t bytes = 0;
  for (const Side* side : {&key_, &value_}) {
    bytes += (side->dense ? side->dense->held_bytes() : 0) +
             (side->nuq ? side->nuq->held_bytes() : 0) + side->sinks.num_bytes() +
             side->window.num_bytes();
  }
  return bytes;
}

bool DeviceLayer::can_truncate(int64_t length) const {
  const int64_t first = num_encoded() == 0 ? 0 : num_sinks() + num_encoded();
  return first <= length && length <= length_;
}

void DeviceLayer::truncate(int64_t length) {
  assert(is_settled() && can_truncate(length));
  for (Side* side : {&key_, &value_}) {
    if (side->dense) side->dense->truncate(length);
  }
  window_rows_ = std::max<int64_t>(0, window_rows_ - (length_ - length));
  length_ = length;
  last_chunk_ = 0;
}

const Half* DeviceLayer::exact_row(const Side& side, int64_t position) const {
  const int64_t size = plan_->host->row_size(), staged = length_ - pending_;
  if (position < plan_->host->sink) return side.sinks.data() + position * size;
  if (position >= staged) return side.staging + (position - staged) * size;
  return side.window.data() + (position - (staged - window_rows_)) * size;
}

std::vector<RunPlan> DeviceLayer::plan_runs() const {
  return kvquant::plan_runs(*plan_->host, {length_, num_encoded(), last_chunk_, pending_});
}

CudaSide DeviceLayer::cuda_side(const Side& side, const RunPlan& run) const {
  if (side.dense) return side.dense->cuda_side(run.first_position);
  if (run.kind == RunKind::kEncoded) {
    CudaSide coded = side.nuq->cuda_side();
    // Beside dense values scores get no bias, on the CPU either.
    if (!value_.nuq) coded.logit_bias = 0;
    return coded;
  }
  CudaSide rows;
  rows.source = TileSource::kRows;
  rows.rows = exact_row(side, run.first_position);
  rows.row_stride = plan_->host->row_size();
  rows.head_step = plan_->host->head_dim;
  return rows;
}

void DeviceLayer::list_runs(const DeviceRope& rope, std::vector<CudaRun>& runs) const {
  for (const RunPlan& of : plan_runs()) {
    CudaRun run;
    run.keys = cuda_side(key_, of);
    run.values = cuda_side(value_, of);
    const bool is_low_rank = !latents().empty() || !key_latents().empty();
    run.kind =
        of.kind == RunKind::kEncoded && is_low_rank ? ValueKind::kLatents : ValueKind::kPlain;
    run.window = {of.num_tokens, of.first_position, of.min_lag, of.max_lag};
    if (run.is_turned()) {
      run.cos = rope.cos + of.first_position * rope.half;
      run.sin = rope.sin + of.first_position * rope.half;
      run.tile_cos = rope.tile_cos;
      run.tile_sin = rope.tile_sin;
    }
    runs.push_back(run);
  }
}

// Tiles and codes of all heads.
void DeviceLayer::list_memory(View& view) const {
  const int64_t num_tiles = (length_ + kTileTokens - 1) / kTileTokens;
  for (int64_t head = 0; head < plan_->host->num_kv_heads; ++head) {
    for (int64_t i = 0; i < num_tiles; ++i) {
      if (key_.dense) view.key_tiles.push_back(key_.dense->tile(i, head));
      if (value_.dense) view.value_tiles.push_back(value_.dense->tile(i, head));
    }
    if (num_encoded() == 0) continue;
    view.coded.push_back(key_.nuq ? key_.nuq->coded_side(head) : CodedSide{});
    view.coded.push_back(value_.nuq ? value_.nuq->coded_side(head) : CodedSide{});
    // Beside dense values scores get no bias, on the CPU either.
    if (!value_.nuq) view.coded[view.coded.size() - 2].logit_bias = 0;
  }
}

DeviceLayer::Source DeviceLayer::source_of(const Side& side, const View& view, const RunPlan& run,
                                           int64_t head) const {
  Source source;
  if (side.dense) {
    const auto& tiles = &side == &key_ ? view.key_tiles : view.value_tiles;
    const int64_t per_head = std::ssize(tiles) / plan_->host->num_kv_heads;
    const int64_t first = run.first_position / kTileTokens;
    source.offset = run.first_position % kTileTokens;
    const int64_t count = (source.offset + run.num_tokens + kTileTokens - 1) / kTileTokens;
    source.tiles = std::span(tiles).subspan(static_cast<size_t>(head * per_head + first),
                                            static_cast<size_t>(count));
  } else if (run.kind == RunKind::kEncoded) {
    source.coded = &view.coded[static_cast<size_t>(2 * head + (&side == &key_ ? 0 : 1))];
  } else {
    source.rows = exact_row(side, run.first_position) + head * plan_->host->head_dim;
  }
  return source;
}

DeviceLayer::View DeviceLayer::view() const {
  const LayerPlan& plan = *plan_->host;
  const auto plans = plan_runs();
  View view;
  view.num_runs = std::ssize(plans);
  list_memory(view);
  for (int64_t head = 0; head < plan.num_kv_heads; ++head) {
    for (const RunPlan& of : plans) {
      const Source keys = source_of(key_, view, of, head);
      const Source values = source_of(value_, view, of, head);
      AttendRun run;
      if (key_.dense || value_.dense) run.type = (key_.dense ? plan.key : plan.value).dense->type;
      run.key_tiles = keys.tiles;
      run.value_tiles = values.tiles;
      run.key_offset = keys.offset;
      run.value_offset = values.offset;
      run.coded_keys = keys.coded;
      run.coded_values = values.coded;
      run.key_rows = keys.rows;
      run.value_rows = values.rows;
      run.row_stride = plan.row_size();
      if (!key_.dense) run.rope = plan.rope;
      run.num_tokens = of.num_tokens;
      run.first_position = of.first_position;
      run.min_lag = of.min_lag;
      run.max_lag = of.max_lag;
      view.runs.push_back(run);
    }
  }
  return view;
}

}  // namespace kvquant
