#include "cache/device_place.h"

#include <algorithm>
#include <cmath>

namespace kvquant {

DevicePlace::DevicePlace(CudaDevice& device, const LayerPlan& any_layer, const RopeTable& rope,
                         int64_t max_tokens)
    : device_(device),
      row_size_(any_layer.row_size()),
      staging_(device),
      encode_scratch_(device),
      queue_(device, any_layer.num_kv_heads, any_layer.head_dim),
      pending_(device, any_layer.num_kv_heads, any_layer.head_dim),
      rows_(device),
      kept_(device),
      attention_(device) {
  upload_rope(rope, max_tokens);
}

void DevicePlace::set_aside(int64_t pool_bytes, int64_t chunk_tokens, int64_t num_pending_rows) {
  arena_ = std::make_unique<DeviceArena>(device_, pool_bytes);
  chunk_tokens_ = chunk_tokens;
  staging_.reserve_discarding(2 * chunk_tokens * row_size_);
  pending_.reserve(num_pending_rows);
}

DeviceLayer::Staging DevicePlace::staging(int64_t first) const {
  Half* keys = staging_.data() + first * row_size_;
  return {keys, keys + chunk_tokens_ * row_size_};
}

DeviceLayerTools DevicePlace::tools(ThreadPool& pool) {
  return {{device_, *arena_, encode_scratch_, pool}, queue_, pending_, rows_, kept_, rope_};
}

int64_t DevicePlace::num_bytes() const {
  int64_t bytes = arena_->num_bytes() + staging_.num_bytes() + encode_scratch_.num_bytes() +
                  queue_.num_bytes() + pending_.num_bytes() + rows_.num_bytes() +
                  kept_.num_bytes() + attention_.num_bytes();
  for (const auto& parameter : parameters_) bytes += parameter.num_bytes();
  return bytes;
}

template <class T>
const T* DevicePlace::upload(std::span<const T> items) {
  if (items.empty()) return nullptr;
  const std::span bytes(reinterpret_cast<const std::byte*>(items.data()), items.size_bytes());
  parameters_.emplace_back(device_, bytes);
  return reinterpret_cast<const T*>(parameters_.back().data());
}

// All positions that a sequence may have, and those behind them that its last tile's middle has.
void DevicePlace::upload_rope(const RopeTable& rope, int64_t max_tokens) {
  const int64_t half = rope.head_dim() / 2;
  const auto size = static_cast<size_t>((max_tokens + kTileTokens) * half);
  const auto tile_size = static_cast<size_t>(kTileTokens * half);
  rope.cos(max_tokens);  // computes all of them
  rope_.cos = upload(std::span(rope.cos(0), size));
  rope_.sin = upload(std::span(rope.sin(0), size));
  rope_.half = half;
  rope_.tile_cos = upload(std::span(rope.tiles().tile_cos, tile_size));
  rope_.tile_sin = upload(std::span(rope.tiles().tile_sin, tile_size));
}

void DevicePlace::upload_latents(const NuqPlan& plan, DeviceNuqPlan& out) {
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
}

DeviceNuqPlan DevicePlace::upload_side(const NuqPlan& plan) {
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
  upload_latents(plan, out);
  out.cos = rope_.cos;
  out.sin = rope_.sin;
  return out;
}

DeviceLayerPlan DevicePlace::add_layer(const LayerPlan& plan) {
  DeviceLayerPlan out;
  out.host = &plan;
  if (plan.key.nuq) out.key = upload_side(*plan.key.nuq);
  if (plan.value.nuq) out.value = upload_side(*plan.value.nuq);
  return out;
}

int64_t default_pool_bytes(const LayerPlan& plan, int64_t own_tokens, int64_t max_tokens) {
  const auto pieces = [](int64_t bytes) {
    return (bytes + DeviceArena::kUnit - 1) / DeviceArena::kUnit * DeviceArena::kUnit;
  };
  int64_t total = 0;
  const int64_t row_bytes = plan.row_size() * static_cast<int64_t>(sizeof(Half));
  for (const SidePlan* side : {&plan.key, &plan.value}) {
    const int64_t num_tiles = side->nuq ? side->nuq->shape.num_tiles : side->dense->tiles_per_block;
    const int64_t block_tokens = num_tiles * kTileTokens;
    const auto blocks_of = [&](int64_t tokens) {
      return (tokens + block_tokens - 1) / block_tokens;
    };
    const int64_t num_blocks = blocks_of(own_tokens);
    total += 2 * DeviceTable<std::byte>::most_bytes(1, blocks_of(max_tokens));  // old beside new
    if (side->dense) {
      total += num_blocks * pieces(side->dense->block_bytes());
      continue;
    }
    const NuqPlan& nuq = *side->nuq;
    total += num_blocks * pieces(nuq.layout.num_bytes);
    total += pieces(plan.sink * row_bytes) + pieces((plan.recent + kTileTokens) * row_bytes);
    if (nuq.side == KvSide::kKey && nuq.ranges.empty()) {  // segments, the old ones beside the new
      const int64_t num_segments = 2 + max_tokens / (KeySegments::kMinTiles * kTileTokens);
      total += 2 * pieces(num_segments * 4 * row_bytes);
    }
    if (!nuq.shape.has_outliers) continue;
    const auto pages_of = [&](int64_t tokens) {
      const double entries =
          1.5 * nuq.outlier_percent / 100 * static_cast<double>(tokens * nuq.shape.head_dim);
      return static_cast<int64_t>(std::ceil(entries / kOutliersPerPage)) + 2;
    };
    const int64_t num_heads = nuq.shape.num_kv_heads;
    total += num_heads * pages_of(own_tokens) * pieces(sizeof(OutlierPage));
    total += 2 * DeviceTable<OutlierPage>::most_bytes(num_heads, pages_of(max_tokens));
  }
  return total;
}

}  // namespace kvquant
