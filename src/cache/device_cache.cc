#include "cache/device_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "cache/kv_cache_impl.h"

namespace kvquant {
DeviceCache::DeviceCache(const KvShape& shape, const CacheSpec& spec, const RopeTable& rope,
                         CudaDevice& device, ThreadPool& pool, const DeviceCacheOptions& options)
    : DeviceCache(shape, spec, rope, DeviceSplit{{&device}, {shape.num_layers}}, pool, options) {}

DeviceCache::DeviceCache(const KvShape& shape, const CacheSpec& spec, const RopeTable& rope,
                         const DeviceSplit& split, ThreadPool& pool,
                         const DeviceCacheOptions& options)
    : plans_(shape, spec, options.mode, rope, pool, options.calibration),
      split_(split),
      pool_(pool),
      max_tokens_(options.max_tokens == 0 ? rope.num_positions() : options.max_tokens),
      chunk_tokens_(options.chunk_tokens) {
  check_arg(0 < max_tokens_ && max_tokens_ <= rope.num_positions(),
            fmt::format("cache: {} tokens are not in [1, {}], the positions of the model",
                        max_tokens_, rope.num_positions()));
  check_arg(chunk_tokens_ > 0 && options.num_sequences > 0 && options.pool_bytes >= 0 &&
                options.num_forks >= 0 && options.fork_tokens >= 0,
            "cache: limits must be positive");
  check_arg(split_.num_layers() == shape.num_layers, "cache: devices have other layers");
  set_aside(rope, options);
}

// Of a given pool each device has the share that its layers would take.
void DeviceCache::set_aside(const RopeTable& rope, const DeviceCacheOptions& options) {
  std::vector<int64_t> bytes(split_.devices.size()), pending(bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto& plans = plans_.impl_->plans;
    places_.push_back(
        std::make_unique<DevicePlace>(*split_.devices[i], plans[0], rope, max_tokens_));
    for (int64_t layer = split_.first_layer(i); layer < split_.ends[i]; ++layer) {
      const LayerPlan& plan = plans[static_cast<size_t>(layer)];
      layers_.push_back(places_[i]->add_layer(plan));
      bytes[i] += options.num_sequences * default_pool_bytes(plan, max_tokens_, max_tokens_);
      // A fork copies the block that it goes on in.
      const int64_t own = std::min(max_tokens_, options.fork_tokens + plans_.spec().block);
      bytes[i] += options.num_forks * default_pool_bytes(plan, own, max_tokens_);
      if (plan.mode == CacheMode::kStrict) continue;
      const int64_t num_sides = (plan.key.nuq ? 1 : 0) + (plan.value.nuq ? 1 : 0);
      pending[i] += num_sides * (chunk_tokens_ + kTileTokens);
    }
  }
  const int64_t total = std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  for (size_t i = 0; i < bytes.size(); ++i) {
    const double share = static_cast<double>(bytes[i]) / static_cast<double>(total);
    const bool is_given = options.pool_bytes > 0;
    places_[i]->set_aside(
        is_given ? static_cast<int64_t>(share * static_cast<double>(options.pool_bytes)) : bytes[i],
        chunk_tokens_, pending[i]);
  }
}

DeviceCache::~DeviceCache() = default;

DeviceCache::Sequence& DeviceCache::find(SequenceId id) {
  const auto found = sequences_.find(id);
  check_arg(found != sequences_.end(), fmt::format("cache: there is no sequence {}", id));
  return found->second;
}

DeviceCache::Sequence& DeviceCache::find_whole(SequenceId id) {
  Sequence& sequence = find(id);
  check_arg(
      !sequence.is_broken,
      fmt::format("cache: memory ran out while sequence {} changed: it can only be dropped", id));
  return sequence;
}

DeviceCache::SequenceId DeviceCache::add_sequence() {
  Sequence sequence;
  for (const DeviceLayerPlan& plan : layers_) sequence.layers.emplace_back(plan);
  sequences_.emplace(next_id_, std::move(sequence));
  return next_id_++;
}

void DeviceCache::drop(SequenceId id) {
  encode_pending();  // into memory that goes
  for (const DeviceLayer& layer : find(id).layers) num_unsettled_ -= layer.is_settled() ? 0 : 1;
  if (num_unsettled_ == 0) staged_tokens_ = 0;
  sequences_.erase(id);
}

DeviceCache::Sequence& DeviceCache::find_between_chunks(SequenceId id, const char* what) {
  Sequence& sequence = find_whole(id);
  encode_pending();
  for (const DeviceLayer& layer : sequence.layers) {
    check_arg(layer.length() == sequence.length && layer.is_settled(),
              fmt::format("cache: {} between the layers of a chunk", what));
  }
  return sequence;
}

DeviceCache::SequenceId DeviceCache::fork(SequenceId id) {
  sequences_.emplace(next_id_, find_between_chunks(id, "fork"));
  return next_id_++;
}

DeviceCache::SequenceId DeviceCache::copy(SequenceId id) {
  Sequence copied = find_between_chunks(id, "copy");
  for (size_t i = 0; i < copied.layers.size(); ++i) {
    DevicePlace& place = place_of(static_cast<int64_t>(i));
    copied.layers[i].own(place.device(), place.arena());
  }
  sequences_.emplace(next_id_, std::move(copied));
  return next_id_++;
}

bool DeviceCache::can_truncate(SequenceId id, int64_t length) const {
  auto* self = const_cast<DeviceCache*>(this);
  self->encode_pending();
  const auto& layers = self->find(id).layers;
  return std::all_of(layers.begin(), layers.end(), [&](const DeviceLayer& layer) {
    return layer.is_settled() && layer.can_truncate(length);
  });
}

void DeviceCache::truncate(SequenceId id, int64_t length) {
  Sequence& sequence = find_between_chunks(id, "truncate");
  check_arg(can_truncate(id, length),
            fmt::format("cache: can't go back to {} tokens of {}: what is compressed can't be "
                        "forgotten",
                        length, sequence.length));
  for (DeviceLayer& layer : sequence.layers) layer.truncate(length);
  sequence.length = length;
}

int64_t DeviceCache::length(SequenceId id) const {
  return const_cast<DeviceCache*>(this)->find(id).length;
}

int64_t DeviceCache::num_compressed_tokens(SequenceId id) const {
  int64_t most = 0;
  for (const DeviceLayer& layer : const_cast<DeviceCache*>(this)->find(id).layers) {
    most = std::max(most, layer.num_read_compressed());
  }
  return most;
}

void DeviceCache::check_append(int64_t layer, const Sequence& sequence,
                               const DeviceChunk& chunk) const {
  const auto num_layers = std::ssize(layers_);
  check_arg(0 <= layer && layer < num_layers,
            fmt::format("cache: layer {} of {}", layer, num_layers));
  check_arg(chunk.num_rows >= 1, "cache: a chunk is empty");
  const DeviceLayer& to = sequence.layers[static_cast<size_t>(layer)];
  const int64_t end = to.length() + chunk.num_rows;
  check_arg(to.is_settled(), fmt::format("cache: layer {} is not settled", layer));
  check_arg(end <= max_tokens_, fmt::format("cache: {} + {} tokens are more than the limit of {}",
                                            to.length(), chunk.num_rows, max_tokens_));
  check_arg(staged_tokens_ + chunk.num_rows <= chunk_tokens_,
            fmt::format("cache: chunks of {} + {} tokens are more than the limit of {}",
                        staged_tokens_, chunk.num_rows, chunk_tokens_));
  const auto& before = sequence.layers[static_cast<size_t>(layer > 0 ? layer - 1 : num_layers - 1)];
  check_arg(before.length() == (layer > 0 ? end : to.length()),
            fmt::format("cache: layer {} would hold {} tokens, out of step with the layer before "
                        "it, which holds {}",
                        layer, end, before.length()));
}

void DeviceCache::append(int64_t layer, SequenceId id, const DeviceChunk& chunk) {
  Sequence& sequence = find_whole(id);
  check_append(layer, sequence, chunk);
  DeviceLayer& to = sequence.layers[static_cast<size_t>(layer)];
  if (layer == 0) encode_pending();  // of a chunk that others' layers had not left behind
  DevicePlace& place = place_of(layer);
  sequence.is_broken = true;
  to.append(chunk, place.staging(staged_tokens_), place.tools(pool_));
  sequence.is_broken = false;
  if (!to.is_settled()) {
    ++num_unsettled_;
    staged_tokens_ += chunk.num_rows;
  }
  if (layer + 1 == std::ssize(layers_)) sequence.length = to.length();
}

void DeviceCache::settle(int64_t layer, SequenceId id) {
  Sequence& sequence = find_whole(id);
  DeviceLayer& of = sequence.layers.at(static_cast<size_t>(layer));
  place_of(layer).queue().flush_rows();  // of chunks that nobody attended
  if (of.is_settled()) return;
  DevicePlace& place = place_of(layer);
  const int64_t num_rows = of.num_pending_rows();
  if (!place.pending().has_room(num_rows)) {
    encode_pending();
    place.pending().reserve(num_rows);
  }
  sequence.is_broken = true;
  of.settle(id, place.tools(pool_));
  sequence.is_broken = false;
  if (--num_unsettled_ > 0) return;
  staged_tokens_ = 0;
  if (layer + 1 == std::ssize(layers_)) encode_pending();
}

DeviceLayer::View DeviceCache::view(int64_t layer, SequenceId id) {
  encode_pending();
  return find_whole(id).layers.at(static_cast<size_t>(layer)).view();
}

void DeviceCache::attend(int64_t layer, std::span<const Queries> queries, const AttendShape& shape,
                         Precision precision) {
  DevicePlace& place = place_of(layer);
  place.queue().flush();
  runs_.clear();
  std::vector<DeviceAttendJob> jobs;
  for (const Queries& of : queries) {
    const DeviceLayer& store = find_whole(of.id).layers.at(static_cast<size_t>(layer));
    const int64_t first_run = std::ssize(runs_);
    store.list_runs(place.rope(), runs_);
    jobs.push_back({of.query, of.out, of.stride, of.num_tokens, store.length() - of.num_tokens,
                    first_run, std::ssize(runs_) - first_run, store.latents(),
                    store.key_latents()});
  }
  place.attention().attend({shape, layers_[0].host->num_kv_heads, jobs, runs_, precision});
}

void DeviceCache::encode_pending() {
  for (const auto& place : places_) {
    place->queue().flush();
    const DeviceLayerTools tools = place->tools(pool_);
    place->pending().encode({tools.encoder, tools.rows},
                            [&](int64_t id) { sequences_.at(id).is_broken = true; });
  }
}

int64_t DeviceCache::held_bytes() const {
  int64_t bytes = plans_.memory_bytes();
  for (const auto& place : places_) bytes += place->arena().held_bytes();
  return bytes;
}

int64_t DeviceCache::held_bytes(std::span<const SequenceId> ids) const {
  int64_t bytes = plans_.memory_bytes();
  for (const SequenceId id : ids) {
    for (const DeviceLayer& layer : const_cast<DeviceCache*>(this)->find(id).layers) {
      bytes += layer.held_bytes();
    }
  }
  return bytes;
}

int64_t DeviceCache::memory_bytes() const {
  int64_t bytes = 0;
  for (const auto& place : places_) bytes += place->num_bytes();
  return bytes;
}

}  // namespace kvquant
