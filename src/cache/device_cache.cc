#include "cache/device_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "cache/kv_cache_impl.h"

namespace kvquant {
namespace {

void check_built(const LayerPlan& plan, int64_t layer) {
  const auto check = [&](bool condition, const char* what) {
    check_arg(condition, fmt::format("cache: layer {}: {} is not built for GPUs yet; use "
                                     "--device cpu",
                                     layer, what));
  };
  check(!plan.has_latent_keys(), "a codec with latents of keys");
}

}  // namespace

DeviceCache::DeviceCache(const KvShape& shape, const CacheSpec& spec, const RopeTable& rope,
                         CudaDevice& device, ThreadPool& pool, const DeviceCacheOptions& options)
    : plans_(shape, spec, options.mode, rope, pool, options.calibration),
      device_(device),
      pool_(pool),
      max_tokens_(options.max_tokens == 0 ? rope.num_positions() : options.max_tokens),
      chunk_tokens_(options.chunk_tokens),
      staging_(device),
      encode_scratch_(device),
      queue_(device, shape.num_kv_heads, shape.head_dim),
      rows_(device),
      kept_(device),
      attention_(device) {
  check_arg(0 < max_tokens_ && max_tokens_ <= rope.num_positions(),
            fmt::format("cache: {} tokens are not in [1, {}], the positions of the model",
                        max_tokens_, rope.num_positions()));
  check_arg(chunk_tokens_ > 0 && options.num_sequences > 0 && options.pool_bytes >= 0,
            "cache: limits must be positive");
  for (size_t i = 0; i < plans_.impl_->plans.size(); ++i) {
    check_built(plans_.impl_->plans[i], static_cast<int64_t>(i));
  }
  upload_rope(rope);
  plan_layers();
  const int64_t bytes = options.pool_bytes == 0 ? default_pool_bytes(options) : options.pool_bytes;
  arena_ = std::make_unique<DeviceArena>(device, bytes);
  staging_.reserve_discarding(2 * chunk_tokens_ * plans_.impl_->plans[0].row_size());
}

DeviceCache::~DeviceCache() = default;

template <class T>
const T* DeviceCache::upload(std::span<const T> items) {
  if (items.empty()) return nullptr;
  const std::span bytes(reinterpret_cast<const std::byte*>(items.data()), items.size_bytes());
  parameters_.emplace_back(device_, bytes);
  return reinterpret_cast<const T*>(parameters_.back().data());
}

// All positions that a sequence may have, and those behind them that its last tile's middle has.
void DeviceCache::upload_rope(const RopeTable& rope) {
  const int64_t half = rope.head_dim() / 2;
  const auto size = static_cast<size_t>((max_tokens_ + kTileTokens) * half);
  const auto tile_size = static_cast<size_t>(kTileTokens * half);
  rope.cos(max_tokens_);  // computes all of them
  rope_.cos = upload(std::span(rope.cos(0), size));
  rope_.sin = upload(std::span(rope.sin(0), size));
  rope_.half = half;
  rope_.tile_cos = upload(std::span(rope.tiles().tile_cos, tile_size));
  rope_.tile_sin = upload(std::span(rope.tiles().tile_sin, tile_size));
}

DeviceNuqPlan DeviceCache::plan_side(const NuqPlan& plan) {
  DeviceNuqPlan out;
  out.host = &plan;
  out.codebooks = upload(plan.codebooks);
  out.half_ranges = upload(plan.ranges);
  std::vector<float> ranges;
  for (const Half x : plan.ranges) ranges.push_back(to_float(x));
  out.ranges = upload(std::span<const float>(ranges));
  std::vector<RoundingFeedback> feedback;
  const auto head_dim = static_cast<size_t>(plan.shape.head_dim);
  for (const RoundingFeedback& of : plan.feedback) {
    feedback.push_back({upload(std::span(of.order, head_dim)),
                        upload(std::span(of.coefficients, head_dim * head_dim))});
  }
  out.feedback = upload(std::span<const RoundingFeedback>(feedback));
  std::vector<CudaLatentMap> maps;
  for (const LatentMap& map : plan.latents) {
    const auto dim = static_cast<size_t>(map.head_dim), rank = static_cast<size_t>(map.rank);
    std::vector<float> transposed(dim * rank);
    for (size_t i = 0; i < dim * rank; ++i) transposed[i] = map.encode[i % rank * dim + i / rank];
    const float* mean = upload(std::span(map.mean, dim));
    maps.push_back(
        {map.rank, map.width, map.head_dim, mean, upload(std::span<const float>(transposed))});
    out.latents.push_back({map.rank, map.width, mean, upload(std::span(map.decode, rank * dim))});
  }
  out.maps = upload(std::span<const CudaLatentMap>(maps));
  if (plan.shape.bands.is_banded()) {
    const NuqCodebook codebooks[] = {make_uniform_codebook(4), make_uniform_codebook(2)};
    out.bands = upload(std::span<const NuqCodebook>(codebooks));
  }
  return out;
}

void DeviceCache::plan_layers() {
  for (const LayerPlan& host : plans_.impl_->plans) {
    DeviceLayerPlan plan;
    plan.host = &host;
    if (host.key.nuq) plan.key = plan_side(*host.key.nuq);
    if (host.value.nuq) plan.value = plan_side(*host.value.nuq);
    layers_.push_back(plan);
  }
}

int64_t DeviceCache::default_pool_bytes(const DeviceCacheOptions& options) const {
  const auto pieces = [](int64_t bytes) {
    return (bytes + DeviceArena::kUnit - 1) / DeviceArena::kUnit * DeviceArena::kUnit;
  };
  int64_t total = 0;
  for (const LayerPlan& plan : plans_.impl_->plans) {
    const int64_t row_bytes = plan.row_size() * static_cast<int64_t>(sizeof(Half));
    for (const SidePlan* side : {&plan.key, &plan.value}) {
      const int64_t num_tiles =
          side->nuq ? side->nuq->shape.num_tiles : side->dense->tiles_per_block;
      const int64_t block_tokens = num_tiles * kTileTokens;
      const int64_t num_blocks = (max_tokens_ + block_tokens - 1) / block_tokens;
      total += 2 * DeviceTable<std::byte>::most_bytes(1, num_blocks);  // old beside new
      if (side->dense) {
        total += num_blocks * pieces(side->dense->block_bytes());
        continue;
      }
      const NuqPlan& nuq = *side->nuq;
      total += num_blocks * pieces(nuq.layout.num_bytes);
      total += pieces(plan.sink * row_bytes) + pieces((plan.recent + kTileTokens) * row_bytes);
      if (side == &plan.key && nuq.ranges.empty()) {  // segments, the old ones beside the new
        const int64_t num_segments = 2 + max_tokens_ / (KeySegments::kMinTiles * kTileTokens);
        total += 2 * pieces(num_segments * 4 * row_bytes);
      }
      if (!nuq.shape.has_outliers) continue;
      const double entries =
          1.5 * nuq.outlier_percent / 100 * static_cast<double>(max_tokens_ * nuq.shape.head_dim);
      const auto num_pages = static_cast<int64_t>(std::ceil(entries / kOutliersPerPage)) + 2;
      total += nuq.shape.num_kv_heads * num_pages * pieces(sizeof(OutlierPage));
      total += 2 * DeviceTable<OutlierPage>::most_bytes(nuq.shape.num_kv_heads, num_pages);
    }
  }
  return total * options.num_sequences;
}

DeviceLayerTools DeviceCache::tools() {
  return {{device_, *arena_, encode_scratch_, pool_}, queue_, rows_, kept_, rope_};
}

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
  queue_.flush();  // into memory that goes
  for (const DeviceLayer& layer : find(id).layers) num_unsettled_ -= layer.is_settled() ? 0 : 1;
  if (num_unsettled_ == 0) staged_tokens_ = 0;
  sequences_.erase(id);
}

DeviceCache::Sequence& DeviceCache::find_between_chunks(SequenceId id, const char* what) {
  Sequence& sequence = find_whole(id);
  queue_.flush();
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
  for (DeviceLayer& layer : copied.layers) layer.own(device_, *arena_);
  sequences_.emplace(next_id_, std::move(copied));
  return next_id_++;
}

bool DeviceCache::can_truncate(SequenceId id, int64_t length) const {
  const auto& layers = const_cast<DeviceCache*>(this)->find(id).layers;
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
  const int64_t size = layers_[0].host->row_size();
  Half* keys = staging_.data() + staged_tokens_ * size;
  const DeviceLayer::Staging staging{keys, keys + chunk_tokens_ * size};
  sequence.is_broken = true;
  to.append(chunk, staging, tools());
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
  queue_.flush_rows();  // of chunks that nobody attended
  if (of.is_settled()) return;
  sequence.is_broken = true;
  of.settle(tools());
  sequence.is_broken = false;
  if (--num_unsettled_ == 0) staged_tokens_ = 0;
}

DeviceLayer::View DeviceCache::view(int64_t layer, SequenceId id) {
  queue_.flush();
  return find_whole(id).layers.at(static_cast<size_t>(layer)).view();
}

void DeviceCache::attend(int64_t layer, std::span<const Queries> queries, const AttendShape& shape,
                         Precision precision) {
  queue_.flush();
  runs_.clear();
  std::vector<DeviceAttendJob> jobs;
  for (const Queries& of : queries) {
    const DeviceLayer& store = find_whole(of.id).layers.at(static_cast<size_t>(layer));
    const int64_t first_run = std::ssize(runs_);
    store.list_runs(rope_, runs_);
    jobs.push_back({of.query, of.out, of.stride, of.num_tokens, store.length() - of.num_tokens,
                    first_run, std::ssize(runs_) - first_run, store.latents()});
  }
  attention_.attend({shape, layers_[0].host->num_kv_heads, jobs, runs_, precision});
}

int64_t DeviceCache::held_bytes() const { return arena_->held_bytes() + plans_.memory_bytes(); }

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
  int64_t bytes = arena_->num_bytes() + staging_.num_bytes() + encode_scratch_.num_bytes() +
                  queue_.num_bytes() + rows_.num_bytes() + kept_.num_bytes() +
                  attention_.num_bytes();
  for (const auto& parameter : parameters_) bytes += parameter.num_bytes();
  return bytes;
}

}  // namespace kvquant
