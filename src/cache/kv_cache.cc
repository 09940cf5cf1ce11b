#include "cache/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "base/backend.h"
#include "base/check.h"
#include "cache/check_values.h"
#include "cache/kv_cache_impl.h"
#include "cache/out_of_memory.h"
#include "formats/codec_table.h"
#include "kvquant/codebook.h"
#include "kvquant/error.h"
#include "quant/compact_calibration.h"

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
  check_arg(shape.layer_windows.empty() || std::ssize(shape.layer_windows) == shape.num_layers,
            fmt::format("cache: {} sliding windows for {} layers", shape.layer_windows.size(),
                        shape.num_layers));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    check_arg(shape.window_of(layer) >= 0,
              fmt::format("cache: a sliding window of {} tokens", shape.window_of(layer)));
  }
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

int64_t num_expanded_layers(const CacheSpec& spec, int64_t num_layers) {
  int64_t count = 0;
  for (int layer = 0; layer < num_layers; ++layer) {
    const Codec &key = spec.key_of(layer), &value = spec.value_of(layer);
    const bool are_dense = !is_compressed(key) && !is_compressed(value);
    const bool is_read =
        is_compressed(value) || has_latents(key) || (are_dense && key.quantizer == value.quantizer);
    if (!is_read) ++count;
  }
  return count;
}

KvCache::Impl::Impl(const KvShape& cache_shape, const CacheSpec& cache_spec, CacheMode cache_mode,
                    const RopeTable& rope_table, ThreadPool& thread_pool,
                    std::shared_ptr<const Calibration> cache_calibration)
    : shape(checked(cache_shape, rope_table)),
      spec(with_windows(cache_spec, cache_mode)),
      mode(cache_mode),
      rope(rope_table),
      threads(thread_pool),
      calibration(std::move(cache_calibration)),
      view(shape.num_kv_heads, shape.head_dim, threads) {
  check_calibration(calibration.get(), shape);
  check_spec_fits(cache_spec, static_cast<int>(shape.num_layers), static_cast<int>(shape.head_dim));
  check_spec_built(cache_spec);
  if (calibration) check_calibration_holds(*calibration, cache_spec);
  best_backend();  // throws here, not on a worker, when the environment names a wrong one
  check_arg(spec.block % kTileTokens == 0 && spec.block > 0 && *spec.sink >= 0 && *spec.recent >= 0,
            "cache: the spec's block, sink or recent is out of range");
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    LayerPlan plan;
    plan.key = plan_side(KvSide::kKey, spec.key_of(layer), spec.block / kTileTokens, layer);
    plan.value = plan_side(KvSide::kValue, spec.value_of(layer), spec.block / kTileTokens, layer);
    plan.sink = std::min<int64_t>(*spec.sink, rope.num_positions());
    plan.recent = *spec.recent;
    plan.mode = mode;
    if (shape.window_of(layer) > 0) plan.max_lag = shape.window_of(layer);
    plan.num_kv_heads = shape.num_kv_heads;
    plan.head_dim = shape.head_dim;
    plan.rope = &rope;
    plan.account = &account;
    plans.push_back(plan);
  }
}

BlockPool* KvCache::Impl::pool_of(int64_t block_bytes) {
  return &pools.try_emplace(block_bytes, block_bytes, &account).first->second;
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
  const bool is_latent = has_latents(codec), is_latent_key = is_latent && side == KvSide::kKey;
  const KvSide coded_like = is_latent ? KvSide::kValue : side;
  const SideParameters& found = parameters_of(side, codec, layer);
  NuqPlan nuq{.side = coded_like,
              .outlier_percent = codec.outlier_percent,
              .hadamard = !codec.transforms.empty() && !is_latent,
              .latents = found.latents,
              .rope = is_latent_key ? &rope : nullptr,
              .first_position = std::min<int64_t>(*spec.sink, rope.num_positions()),
              .largest_value = is_latent ? found.basis.largest_value : NuqPlan{}.largest_value,
              .codebooks = found.codebooks,
              .ranges = found.ranges,
              .feedback = found.feedback,
              .shape = {.side = coded_like,
                        .bits = codec.quantizer == Quantizer::kF16 ? kLatentBits
                                                                   : code_bits(codec.quantizer),
                        .has_outliers = codec.outlier_percent > 0,
                        .num_kv_heads = shape.num_kv_heads,
                        .head_dim = is_latent ? latent_width(found.basis.rank) : shape.head_dim,
                        .num_tiles = num_tiles,
                        .has_latents = is_latent,
                        .bands = found.basis.bands}};
  nuq.layout = kv_block_layout(nuq.shape);
  nuq.pool = pool_of(nuq.layout.num_bytes);
  nuq.pages = pool_of(sizeof(OutlierPage));
  plan.nuq = nuq;
  return plan;
}

// Without a calibration only latents depend on more than the quantizer.
const SideParameters& KvCache::Impl::parameters_of(KvSide side, const Codec& codec, int layer) {
  const LayerCalibration* fitted =
      calibration ? &calibration->layers[static_cast<size_t>(layer)] : nullptr;
  const bool is_calibrated =
      has_latents(codec) ? needs_calibration(codec) : fitted != nullptr && fitted->has_codebooks();
  if (!is_calibrated) fitted = nullptr;
  Codec plain = codec;
  if (fitted == nullptr) {
    plain = {};
    plain.quantizer = codec.quantizer;
    if (has_latents(codec)) plain.transforms = codec.transforms;
  }
  const bool is_own = fitted != nullptr || has_latents(codec);
  const std::tuple owner(fitted != nullptr ? layer : -1, is_own ? side : KvSide::kKey,
                         to_string(plain));
  const BasisShape basis{shape.num_kv_heads, shape.head_dim};
  return parameters.try_emplace(owner, side, codec, basis, fitted).first->second;
}

KvCache::Impl::Sequence& KvCache::Impl::find(SequenceId id) {
  const auto found = sequences.find(id);
  check_arg(found != sequences.end(), fmt::format("cache: there is no sequence {}", id));
  return found->second;
}

KvCache::Impl::Sequence& KvCache::Impl::find_whole(SequenceId id) {
  Sequence& sequence = find(id);
  check_arg(
      !sequence.is_broken,
      fmt::format("cache: memory ran out while sequence {} changed: it can only be dropped", id));
  return sequence;
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
  check_values(keys, plans[layer].key, {layer, "key"}, threads);
  check_values(values, plans[layer].value, {layer, "value"}, threads);
}

void KvCache::Impl::check_splice(const Sequence& sequence, const Sequence& from,
                                 int64_t first_token, int64_t num_tokens) const {
  for (size_t i = 0; i < plans.size(); ++i) {
    const LayerStore &store = *sequence.layers[i], &source = *from.layers[i];
    const int64_t sink = plans[i].sink;
    const int64_t num_full = source.num_encoded() / kTileTokens * kTileTokens;
    const auto check = [&](bool condition, const std::string& rule) {
      check_arg(condition, fmt::format("cache: splice: layer {}: {}", i, rule));
    };
    check(plans[i].is_coded(), "keys and values must both be compressed");
    check(plans[i].is_relocatable(), "keys that are latents hold their positions");
    check(plans[i].mode == CacheMode::kAsServed || plans[i].recent == 0,
          "tokens that were encoded elsewhere have no exact copy for recent=");
    check(store.length() == sequence.length && source.length() == from.length,
          "a chunk is not through all layers");
    check(num_tokens > 0 && num_tokens % kTileTokens == 0 && first_token >= sink &&
              (first_token - sink) % kTileTokens == 0 && first_token <= sink + num_full &&
              num_tokens <= sink + num_full - first_token,
          fmt::format("{} tokens from {} on are not whole encoded tiles of 64 within [{}, {})",
                      num_tokens, first_token, sink, sink + num_full));
    check(store.ends_with_tile(),
          fmt::format("{} tokens of the sequence are sinks and whole encoded tiles, but it has {}",
                      sink + store.num_encoded() / kTileTokens * kTileTokens, store.length()));
    check(store.length() <= rope.num_positions() - num_tokens,
          fmt::format("{} + {} tokens are more than the {} positions of the model", store.length(),
                      num_tokens, rope.num_positions()));
  }
}

// Runs fn, which changes the sequence; what it leaves half done when it throws is never read.
template <class Fn>
void KvCache::Impl::change(Sequence& sequence, Fn&& fn) {
  sequence.is_broken = true;
  or_out_of_memory("cache", std::forward<Fn>(fn));
  sequence.is_broken = false;
}

int64_t KvCache::Impl::parameter_bytes() const {
  int64_t bytes = 0;
  for (const auto& [owner, found] : parameters) bytes += found.memory_bytes();
  return bytes;
}

void KvCache::Impl::settle(Sequence& sequence) {
  view_sequence = -1;
  if (sequence.unsettled == nullptr) return;
  change(sequence, [&] { sequence.unsettled->settle(sequence.staging, threads); });
  sequence.unsettled = nullptr;
}

KvCache::KvCache(const KvShape& shape, const CacheSpec& spec, CacheMode mode, const RopeTable& rope,
                 ThreadPool& pool, std::shared_ptr<const Calibration> calibration)
    : impl_(std::make_unique<Impl>(shape, spec, mode, rope, pool, std::move(calibration))) {}
KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;

void KvCache::set_max_bytes(int64_t max_bytes) {
  check_arg(max_bytes >= 0, fmt::format("cache: a limit of {} bytes", max_bytes));
  impl_->account.set_max_bytes(max_bytes);
}

const KvShape& KvCache::shape() const { return impl_->shape; }
const CacheSpec& KvCache::spec() const { return impl_->spec; }
CacheMode KvCache::mode() const { return impl_->mode; }
const std::shared_ptr<const Calibration>& KvCache::calibration() const {
  return impl_->calibration;
}

KvCache::SequenceId KvCache::add_sequence() {
  Impl::Sequence sequence;
  for (const LayerPlan& plan : impl_->plans) {
    sequence.layers.push_back(std::make_unique<LayerStore>(plan));
  }
  impl_->sequences.emplace(impl_->next_id, std::move(sequence));
  return impl_->next_id++;
}

KvCache::SequenceId KvCache::fork(SequenceId id) {
  Impl::Sequence& sequence = impl_->find_whole(id);
  for (const auto& layer : sequence.layers) {
    check_arg(layer->length() == sequence.length, "cache: fork between the layers of a chunk");
  }
  impl_->settle(sequence);
  or_out_of_memory("cache", [&] {
    Impl::Sequence copy;
    for (const auto& layer : sequence.layers) copy.layers.push_back(layer->fork());
    copy.length = sequence.length;
    impl_->sequences.emplace(impl_->next_id, std::move(copy));
  });
  return impl_->next_id++;
}

void KvCache::splice(SequenceId id, SequenceId from, int64_t first_token, int64_t num_tokens) {
  Impl::Sequence &sequence = impl_->find_whole(id), &source = impl_->find_whole(from);
  impl_->settle(sequence);
  impl_->settle(source);
  impl_->check_splice(sequence, source, first_token, num_tokens);
  impl_->change(sequence, [&] {
    for (size_t i = 0; i < sequence.layers.size(); ++i) {
      const int64_t first_tile = (first_token - impl_->plans[i].sink) / kTileTokens;
      sequence.layers[i]->append_tiles(*source.layers[i], first_tile, num_tokens / kTileTokens);
    }
  });
  sequence.length += num_tokens;
}

StoredSequence KvCache::store(SequenceId id) {
  Impl::Sequence& sequence = impl_->find_whole(id);
  impl_->settle(sequence);
  StoredSequence out{.origin = "cache", .num_tokens = sequence.length};
  for (size_t i = 0; i < sequence.layers.size(); ++i) {
    const LayerStore& layer = *sequence.layers[i];
    check_arg(layer.length() == sequence.length, "cache: store between the layers of a chunk");
    out.num_encoded = std::max(out.num_encoded, layer.num_encoded());
    layer.add_sections(fmt::format("layers.{}", i), out.sections);
  }
  return out;
}

KvCache::SequenceId KvCache::restore(const StoredSequence& stored) {
  SectionReader in(stored);
  or_out_of_memory("cache", [&] {
    Impl::Sequence sequence;
    sequence.length = stored.num_tokens;
    for (size_t i = 0; i < impl_->plans.size(); ++i) {
      sequence.layers.push_back(std::make_unique<LayerStore>(impl_->plans[i]));
      sequence.layers.back()->restore(fmt::format("layers.{}", i), in);
    }
    in.finish();
    impl_->sequences.emplace(impl_->next_id, std::move(sequence));
  });
  return impl_->next_id++;
}

void KvCache::drop(SequenceId id) {
  impl_->find(id);
  impl_->sequences.erase(id);
  if (impl_->view_sequence == id) impl_->view_sequence = -1;
}

void KvCache::truncate(SequenceId id, int64_t length) {
  Impl::Sequence& sequence = impl_->find_whole(id);
  impl_->settle(sequence);
  for (const auto& layer : sequence.layers) {
    check_arg(layer->length() == sequence.length, "cache: truncate between the layers of a chunk");
    check_arg(0 <= length && length <= layer->length() && layer->can_truncate(length),
              fmt::format("cache: can't go back to {} tokens: {} are there, those before {} are "
                          "compressed",
                          length, layer->length(), layer->first_forgettable()));
  }
  or_out_of_memory("cache", [&] {
    for (const auto& layer : sequence.layers) layer->prepare_truncate(length);
  });
  for (const auto& layer : sequence.layers) layer->truncate(length);
  sequence.length = length;
}

bool KvCache::can_truncate(SequenceId id, int64_t length) const {
  const auto& layers = impl_->find(id).layers;
  return length >= 0 && std::all_of(layers.begin(), layers.end(), [&](const auto& layer) {
           return length <= layer->length() && layer->can_truncate(length);
         });
}

int64_t KvCache::length(SequenceId id) const { return impl_->find(id).length; }

void KvCache::append(int64_t layer, SequenceId id, TensorView<const float, 3> keys,
                     TensorView<const float, 3> values) {
  Impl::Sequence& sequence = impl_->find_whole(id);
  impl_->check_append(layer, sequence, keys, values);
  impl_->settle(sequence);
  LayerStore& store = *sequence.layers[layer];
  impl_->change(sequence, [&] { store.append(keys, values, sequence.staging, impl_->threads); });
  sequence.unsettled = &store;
  if (layer + 1 == impl_->shape.num_layers) sequence.length = store.length();
}

void KvCache::settle(SequenceId id) { impl_->settle(impl_->find_whole(id)); }

void KvCache::prepare_view(int64_t layer, SequenceId id) {
  Impl& impl = *impl_;
  check_arg(0 <= layer && layer < impl.shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, impl.shape.num_layers));
  const Impl::Sequence& sequence = impl.find_whole(id);
  const LayerStore& store = *sequence.layers[layer];
  check_arg(store.length() > 0, fmt::format("cache: layer {} of sequence {} is empty", layer, id));
  check_arg(store.can_view(), fmt::format("cache: the view of layer {} must be prepared before the "
                                          "next layer is appended",
                                          layer));
  impl.view_layer = layer;
  impl.view_sequence = id;
  impl.view.prepare(store, sequence.staging);
}

std::span<const AttendRun> KvCache::view(int64_t layer, SequenceId id, int64_t kv_head) {
  check_arg(layer == impl_->view_layer && id == impl_->view_sequence,
            fmt::format("cache: the view of layer {} of sequence {} is not prepared", layer, id));
  check_arg(0 <= kv_head && kv_head < impl_->shape.num_kv_heads,
            fmt::format("cache: KV head {} of {}", kv_head, impl_->shape.num_kv_heads));
  return impl_->view.runs(kv_head);
}

bool KvCache::can_splice(int64_t layer) const {
  check_arg(0 <= layer && layer < impl_->shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, impl_->shape.num_layers));
  return impl_->plans[layer].is_relocatable();
}

bool KvCache::reads_codes(int64_t layer) const {
  check_arg(0 <= layer && layer < impl_->shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, impl_->shape.num_layers));
  return impl_->plans[layer].is_coded();
}

std::span<const LatentMap> KvCache::value_latents(int64_t layer) const {
  check_arg(0 <= layer && layer < impl_->shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, impl_->shape.num_layers));
  const auto& values = impl_->plans[layer].value.nuq;
  return values ? values->latents : std::span<const LatentMap>();
}

int64_t KvCache::num_compressed_tokens(SequenceId id) const {
  int64_t most = 0;
  for (const auto& layer : impl_->find(id).layers) {
    most = std::max(most, layer->num_read_compressed());
  }
  return most;
}

}  // namespace kvquant
