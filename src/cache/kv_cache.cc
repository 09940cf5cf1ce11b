#include "cache/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "base/backend.h"
#include "base/check.h"
#include "cache/layer_store.h"
#include "cache/side_parameters.h"
#include "formats/codec_table.h"
#include "kvquant/codebook.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxRowSize = int64_t{1} << 20;  // values of a token per layer and side
constexpr int64_t kMaxLayers = int64_t{1} << 16;
constexpr int64_t kMaxDenseHeadDim = 1024;

DenseType dense_type(Quantizer quantizer) {
  switch (quantizer) {
    case Quantizer::kF32: return DenseType::kF32;
    case Quantizer::kBF16: return DenseType::kBF16;
    default: return DenseType::kF16;
  }
}

// The largest magnitude that a side stores without becoming infinite. Rotation may make a key
// sqrt(2) times as large before it is rounded.
double largest_value(const SidePlan& plan) {
  constexpr double kMaxHalf = 65504, kMaxBFloat16 = 0x1.FEp127;
  if (plan.nuq) {  // what is rotated may gather in one channel
    return plan.nuq->hadamard ? kMaxHalf / std::sqrt(plan.nuq->shape.head_dim) : kMaxHalf;
  }
  const double largest = plan.dense->type == DenseType::kF16 ? kMaxHalf : kMaxBFloat16;
  return plan.dense->side == KvSide::kKey ? largest / std::sqrt(2.0) : largest;
}

bool all_within(std::span<const float> row, float largest) {
  int outside = 0;  // NaN is outside, too
  for (const float x : row) outside |= std::abs(x) <= largest ? 0 : 1;
  return outside == 0;
}

void check_values(TensorView<const float, 3> x, const SidePlan& plan, int64_t layer,
                  const char* name) {
  const auto largest = static_cast<float>(largest_value(plan));
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      const auto row = x.row(t, h);
      if (all_within(row, largest)) continue;
      const auto bad =
          std::find_if(row.begin(), row.end(), [&](float v) { return !(std::abs(v) <= largest); });
      const std::string rule = std::isfinite(*bad)
                                   ? fmt::format("larger than {} can't be stored", largest)
                                   : std::string("not finite");
      throw FormatError(
          fmt::format("cache: layer {}, KV head {}: {} {} of token {} of the chunk, "
                      "channel {}: {}",
                      layer, h, name, *bad, t, bad - row.begin(), rule));
    }
  }
}

void check_calibration(const Calibration* calibration, const KvShape& shape) {
  if (calibration == nullptr) return;
  const CalibrationShape& fitted = calibration->info.shape;
  check_arg(
      static_cast<int64_t>(calibration->layers.size()) == shape.num_layers &&
          fitted.num_kv_heads == shape.num_kv_heads && fitted.head_dim == shape.head_dim,
      fmt::format("cache: {} layers, {} KV heads, head_dim {}, but the calibration has {}, {}, "
                  "{}",
                  shape.num_layers, shape.num_kv_heads, shape.head_dim, calibration->layers.size(),
                  fitted.num_kv_heads, fitted.head_dim));
}

KvShape checked(const KvShape& shape, const RopeTable& rope) {
  check_arg(shape.num_layers > 0 && shape.num_layers <= kMaxLayers && shape.num_kv_heads > 0 &&
                shape.head_dim > 0 && shape.head_dim <= kMaxDenseHeadDim &&
                shape.head_dim % 8 == 0 && shape.num_kv_heads <= kMaxRowSize / shape.head_dim,
            fmt::format("cache: {} layers, {} KV heads, head_dim {}: sizes must be positive and "
                        "head_dim a multiple of 8 up to {}",
                        shape.num_layers, shape.num_kv_heads, shape.head_dim, kMaxDenseHeadDim));
  check_arg(rope.head_dim() == shape.head_dim,
            fmt::format("cache: head_dim {} differs from the RoPE table's {}", shape.head_dim,
                        rope.head_dim()));
  return shape;
}

}  // namespace

CacheSpec with_windows(const CacheSpec& spec, CacheMode mode) {
  CacheSpec out = spec;
  const bool served = mode == CacheMode::kAsServed;
  if (!out.sink) out.sink = served ? kServedSink : 0;
  if (!out.recent) out.recent = served ? kServedRecent : 0;
  return out;
}

struct KvCache::Impl {
  struct Sequence {
    std::vector<std::unique_ptr<LayerStore>> layers;
    Staging staging;
    LayerStore* unsettled = nullptr;  // the layer whose rows are in staging
  };

  Impl(const KvShape& shape, const CacheSpec& spec, CacheMode mode, const RopeTable& rope,
       ThreadPool& threads, std::shared_ptr<const Calibration> calibration);
  SidePlan plan_side(KvSide side, const Codec& codec, int64_t num_tiles, int layer);
  BlockPool* pool_of(int64_t block_bytes);
  Sequence& find(SequenceId id);
  void check_append(int64_t layer, const Sequence& sequence, TensorView<const float, 3> keys,
                    TensorView<const float, 3> values) const;
  void settle(Sequence& sequence);
  void view_direct(const LayerStore& store);
  void view_decoded(const LayerStore& store, const Staging& staging);
  void point_runs(const std::vector<RunPlan>& plans, DenseType type);

  KvShape shape;
  const RopeTable& rope;
  ThreadPool& threads;
  std::shared_ptr<const Calibration> calibration;  // null: none
  // By layer, side and codec; without a calibration all layers and both sides share them.
  std::map<std::tuple<int, KvSide, std::string>, SideParameters> parameters;
  std::map<int64_t, BlockPool> pools;  // by bytes of a block
  std::vector<LayerPlan> plans;        // per layer; stores point into it
  std::map<SequenceId, Sequence> sequences;
  SequenceId next_id = 0;

  // The prepared view: runs [num_kv_heads][num_runs], tiles [num_kv_heads][all tiles of the runs].
  SequenceId view_sequence = -1;
  int64_t view_layer = -1;
  int64_t num_runs = 0;
  std::vector<AttendRun> runs;
  std::vector<const void*> key_tiles, value_tiles;
  Buffer<float> tiles;    // [all tiles of the runs][num_kv_heads][2][64 * head_dim]
  Buffer<float> workers;  // [num_threads][2 * 64 * head_dim], see TileScratch
};

KvCache::Impl::Impl(const KvShape& cache_shape, const CacheSpec& cache_spec, CacheMode mode,
                    const RopeTable& rope_table, ThreadPool& thread_pool,
                    std::shared_ptr<const Calibration> cache_calibration)
    : shape(checked(cache_shape, rope_table)),
      rope(rope_table),
      threads(thread_pool),
      calibration(std::move(cache_calibration)) {
  check_calibration(calibration.get(), shape);
  check_spec_fits(cache_spec, static_cast<int>(shape.num_layers), static_cast<int>(shape.head_dim));
  check_spec_built(cache_spec);
  best_backend();  // throws here, not on a worker, when the environment names a wrong one
  const CacheSpec spec = with_windows(cache_spec, mode);
  check_arg(spec.block % kTileTokens == 0 && spec.block > 0 && *spec.sink >= 0 && *spec.recent >= 0,
            "cache: the spec's block, sink or recent is out of range");
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    LayerPlan plan;
    plan.key = plan_side(KvSide::kKey, spec.key_of(layer), spec.block / kTileTokens, layer);
    plan.value = plan_side(KvSide::kValue, spec.value_of(layer), spec.block / kTileTokens, layer);
    plan.sink = std::min<int64_t>(*spec.sink, rope.num_positions());
    plan.recent = *spec.recent;
    plan.mode = mode;
    plan.num_kv_heads = shape.num_kv_heads;
    plan.head_dim = shape.head_dim;
    plan.rope = &rope;
    plans.push_back(plan);
  }
  workers = Buffer<float>(threads.num_threads() * 2 * kTileTokens * shape.head_dim);
}

BlockPool* KvCache::Impl::pool_of(int64_t block_bytes) {
  return &pools.try_emplace(block_bytes, block_bytes).first->second;
}

SidePlan KvCache::Impl::plan_side(KvSide side, const Codec& codec, int64_t num_tiles, int layer) {
  SidePlan plan;
  if (!kvquant::is_compressed(codec)) {
    plan.dense = DensePlan{.side = side,
                           .type = dense_type(codec.quantizer),
                           .num_kv_heads = shape.num_kv_heads,
                           .head_dim = shape.head_dim,
                           .tiles_per_block = num_tiles};
    plan.dense->pool = pool_of(plan.dense->block_bytes());
    return plan;
  }
  check_arg(shape.head_dim <= kMaxNuqHeadDim,
            fmt::format("codec '{}': head_dim {} is larger than {}", to_string(codec),
                        shape.head_dim, kMaxNuqHeadDim));
  const int bits = code_bits(codec.quantizer);
  const LayerCalibration* fitted =
      calibration ? &calibration->layers[static_cast<size_t>(layer)] : nullptr;
  Codec plain;  // what codecs without a calibration differ by
  plain.quantizer = codec.quantizer;
  const std::tuple owner(fitted != nullptr ? layer : -1, fitted != nullptr ? side : KvSide::kKey,
                         to_string(fitted != nullptr ? codec : plain));
  const SideParameters& found = parameters.try_emplace(owner, side, codec, fitted).first->second;
  NuqPlan nuq{.side = side,
              .outlier_percent = codec.outlier_percent,
              .hadamard = !codec.transforms.empty(),
              .codebooks = {&found.codebook, 1},
              .ranges = found.ranges,
              .feedback = found.feedback,
              .shape = {side, bits, codec.outlier_percent > 0, shape.num_kv_heads, shape.head_dim,
                        num_tiles}};
  nuq.layout = kv_block_layout(nuq.shape);
  nuq.pool = pool_of(nuq.layout.num_bytes);
  nuq.pages = pool_of(sizeof(OutlierPage));
  plan.nuq = nuq;
  return plan;
}

KvCache::Impl::Sequence& KvCache::Impl::find(SequenceId id) {
  const auto found = sequences.find(id);
  check_arg(found != sequences.end(), fmt::format("cache: there is no sequence {}", id));
  return found->second;
}

void KvCache::Impl::check_append(int64_t layer, const Sequence& sequence,
                                 TensorView<const float, 3> keys,
                                 TensorView<const float, 3> values) const {
  check_arg(0 <= layer && layer < shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, shape.num_layers));
  const int64_t num_new = keys.shape[0];
  for (const auto& x : {keys, values}) {
    check_arg(x.shape[0] == num_new && num_new >= 1 && x.shape[1] == shape.num_kv_heads &&
                  x.shape[2] == shape.head_dim && x.stride[2] == 1,
              fmt::format("cache: a chunk of keys or values is [{}, {}, {}], not [tokens, {}, {}]",
                          x.shape[0], x.shape[1], x.shape[2], shape.num_kv_heads, shape.head_dim));
  }
  const int64_t length = sequence.layers[layer]->length();
  check_arg(length + num_new <= rope.num_positions(),
            fmt::format("cache: {} + {} tokens are more than the {} positions of the model", length,
                        num_new, rope.num_positions()));
  const int64_t before = sequence.layers[layer > 0 ? layer - 1 : shape.num_layers - 1]->length();
  check_arg(before == (layer > 0 ? length + num_new : length),
            fmt::format("cache: layer {} would hold {} tokens, out of step with the layer before "
                        "it, which holds {}",
                        layer, length + num_new, before));
  check_values(keys, plans[layer].key, layer, "key");
  check_values(values, plans[layer].value, layer, "value");
}

void KvCache::Impl::settle(Sequence& sequence) {
  if (sequence.unsettled != nullptr) sequence.unsettled->settle(sequence.staging, threads);
  sequence.unsettled = nullptr;
}

// Spans of tile pointers for every head and run.
void KvCache::Impl::point_runs(const std::vector<RunPlan>& run_plans, DenseType type) {
  num_runs = static_cast<int64_t>(run_plans.size());
  runs.clear();
  size_t first = 0;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    for (const RunPlan& plan : run_plans) {
      const auto count = static_cast<size_t>(plan.num_tiles());
      runs.push_back({.type = type,
                      .key_tiles = std::span(key_tiles).subspan(first, count),
                      .value_tiles = std::span(value_tiles).subspan(first, count),
                      .num_tokens = plan.num_tokens,
                      .first_position = plan.first_position,
                      .min_lag = plan.min_lag,
                      .max_lag = plan.max_lag});
      first += count;
    }
  }
}

void KvCache::Impl::view_direct(const LayerStore& store) {
  const RunPlan whole{.num_tokens = store.length()};
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t tile = 0; tile < whole.num_tiles(); ++tile) {
      key_tiles.push_back(store.dense_key().tile(tile, head));
      value_tiles.push_back(store.dense_value().tile(tile, head));
    }
  }
  point_runs({whole}, plans[view_layer].key.dense->type);
}

void KvCache::Impl::view_decoded(const LayerStore& store, const Staging& staging) {
  const std::vector<RunPlan> run_plans = store.runs();
  struct Task {
    const RunPlan* run;
    int64_t tile;
  };
  std::vector<Task> tasks;
  for (const RunPlan& run : run_plans) {
    for (int64_t tile = 0; tile < run.num_tiles(); ++tile) tasks.push_back({&run, tile});
  }
  const int64_t tile_size = kTileTokens * shape.head_dim;
  const int64_t task_size = shape.num_kv_heads * 2 * tile_size;
  const auto num_tasks = static_cast<int64_t>(tasks.size());
  if (num_tasks * task_size > tiles.size()) {  // by half more, so that decode steps rarely grow it
    tiles.reserve_discarding((num_tasks + num_tasks / 2) * task_size);
  }
  threads.parallel_for(num_tasks, [&](int64_t task, int worker) {
    float* planar = workers.data() + worker * 2 * tile_size;
    const TileScratch scratch{planar, planar + tile_size, planar + tile_size + tile_size / 2};
    store.fill_tile(*tasks[task].run, tasks[task].tile, staging, scratch,
                    tiles.data() + task * task_size);
  });
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t task = 0; task < num_tasks; ++task) {
      const float* keys = tiles.data() + task * task_size + 2 * head * tile_size;
      key_tiles.push_back(keys);
      value_tiles.push_back(keys + tile_size);
    }
  }
  point_runs(run_plans, DenseType::kF32);
}

KvCache::KvCache(const KvShape& shape, const CacheSpec& spec, CacheMode mode, const RopeTable& rope,
                 ThreadPool& pool, std::shared_ptr<const Calibration> calibration)
    : impl_(std::make_unique<Impl>(shape, spec, mode, rope, pool, std::move(calibration))) {}
KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;

KvCache::SequenceId KvCache::add_sequence() {
  Impl::Sequence sequence;
  for (const LayerPlan& plan : impl_->plans) {
    sequence.layers.push_back(std::make_unique<LayerStore>(plan));
  }
  impl_->sequences.emplace(impl_->next_id, std::move(sequence));
  return impl_->next_id++;
}

void KvCache::drop(SequenceId id) {
  impl_->find(id);
  impl_->sequences.erase(id);
  if (impl_->view_sequence == id) impl_->view_sequence = -1;
}

void KvCache::truncate(SequenceId id, int64_t length) {
  Impl::Sequence& sequence = impl_->find(id);
  impl_->settle(sequence);
  impl_->view_sequence = -1;
  for (const auto& layer : sequence.layers) {
    check_arg(layer->length() == sequence.layers.back()->length(),
              "cache: truncate between the layers of a chunk");
    check_arg(0 <= length && length <= layer->length() && layer->can_truncate(length),
              fmt::format("cache: can't go back to {} tokens: {} are there, those before {} are "
                          "compressed",
                          length, layer->length(), layer->first_forgettable()));
  }
  for (const auto& layer : sequence.layers) layer->truncate(length);
}

bool KvCache::can_truncate(SequenceId id, int64_t length) const {
  const auto& layers = impl_->find(id).layers;
  return length >= 0 && std::all_of(layers.begin(), layers.end(), [&](const auto& layer) {
           return length <= layer->length() && layer->can_truncate(length);
         });
}

int64_t KvCache::length(SequenceId id) const { return impl_->find(id).layers.back()->length(); }

void KvCache::append(int64_t layer, SequenceId id, TensorView<const float, 3> keys,
                     TensorView<const float, 3> values) {
  Impl::Sequence& sequence = impl_->find(id);
  impl_->check_append(layer, sequence, keys, values);
  impl_->view_sequence = -1;
  impl_->settle(sequence);
  sequence.layers[layer]->append(keys, values, sequence.staging, impl_->threads);
  sequence.unsettled = sequence.layers[layer].get();
}

void KvCache::settle(SequenceId id) {
  impl_->view_sequence = -1;
  impl_->settle(impl_->find(id));
}

void KvCache::prepare_view(int64_t layer, SequenceId id) {
  Impl& impl = *impl_;
  check_arg(0 <= layer && layer < impl.shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, impl.shape.num_layers));
  const Impl::Sequence& sequence = impl.find(id);
  const LayerStore& store = *sequence.layers[layer];
  check_arg(store.length() > 0, fmt::format("cache: layer {} of sequence {} is empty", layer, id));
  check_arg(store.can_view(), fmt::format("cache: the view of layer {} must be prepared before the "
                                          "next layer is appended",
                                          layer));
  impl.view_layer = layer;
  impl.view_sequence = id;
  impl.key_tiles.clear();
  impl.value_tiles.clear();
  if (impl.plans[layer].is_direct()) {
    impl.view_direct(store);
  } else {
    impl.view_decoded(store, sequence.staging);
  }
}

std::span<const AttendRun> KvCache::view(int64_t layer, SequenceId id, int64_t kv_head) {
  check_arg(layer == impl_->view_layer && id == impl_->view_sequence,
            fmt::format("cache: the view of layer {} of sequence {} is not prepared", layer, id));
  check_arg(0 <= kv_head && kv_head < impl_->shape.num_kv_heads,
            fmt::format("cache: KV head {} of {}", kv_head, impl_->shape.num_kv_heads));
  return std::span(impl_->runs).subspan(kv_head * impl_->num_runs, impl_->num_runs);
}

int64_t KvCache::memory_bytes() const {
  int64_t bytes = 0;
  for (const auto& [owner, parameters] : impl_->parameters) bytes += parameters.memory_bytes();
  for (const auto& [id, sequence] : impl_->sequences) {
    if (sequence.unsettled != nullptr) bytes += sequence.staging.memory_bytes();
    for (const auto& layer : sequence.layers) bytes += layer->memory_bytes();
  }
  return bytes;
}

int64_t KvCache::scratch_bytes() const {
  int64_t bytes = impl_->tiles.num_bytes() + impl_->workers.num_bytes();
  for (const auto& [id, sequence] : impl_->sequences) {
    if (sequence.unsettled == nullptr) bytes += sequence.staging.memory_bytes();
  }
  return bytes;
}

int64_t KvCache::num_compressed_tokens(SequenceId id) const {
  int64_t most = 0;
  for (const auto& layer : impl_->find(id).layers) {
    most = std::max(most, layer->num_read_compressed());
  }
  return most;
}

}  // namespace kvquant
