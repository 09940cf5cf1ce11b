// The functions and the class of kvquant/quantizer.h: checks, then quantized_store.h.
#include "kvquant/quantizer.h"

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>
#include <utility>

#include "base/check.h"
#include "cache/out_of_memory.h"
#include "cache/quantized_store.h"

namespace kvquant {
namespace {

void check_thresholds(const KeyThresholds& thresholds, CacheSide side, size_t num_channels) {
  if (thresholds.magnitudes.empty() && thresholds.ties.empty()) return;
  check_arg(side == CacheSide::kKeys, "fused_quantize: thresholds are for keys only");
  check_arg(thresholds.magnitudes.size() == num_channels && thresholds.ties.size() == num_channels,
            fmt::format("fused_quantize: {} thresholds and {} ties for {} channels of the batch",
                        thresholds.magnitudes.size(), thresholds.ties.size(), num_channels));
  for (size_t i = 0; i < num_channels; ++i) {
    if (thresholds.magnitudes[i] >= 0 && thresholds.ties[i] >= -1) continue;
    throw std::invalid_argument(
        fmt::format("fused_quantize: threshold {} is {} with {} ties, not >= 0 with -1 or more", i,
                    thresholds.magnitudes[i], thresholds.ties[i]));
  }
}

void check_unset_together(const KeyThresholds& thresholds, size_t channels_of_sequence) {
  for (size_t i = 0; i < thresholds.ties.size(); ++i) {
    const int32_t first = thresholds.ties[i / channels_of_sequence * channels_of_sequence];
    check_arg((thresholds.ties[i] < 0) == (first < 0),
              fmt::format("fused_quantize: sequence {} has thresholds for some channels only",
                          i / channels_of_sequence));
  }
}

std::unique_ptr<QuantizedStore> empty_store(CacheSide side, BatchView x,
                                            const KVQuantizerOptions& options,
                                            const KeyThresholds& thresholds) {
  auto store = std::make_unique<QuantizedStore>();
  store->side = side;
  store->options = options;
  store->book = make_codebook(options.codebook);
  store->num_heads = x.shape[1];
  store->head_dim = x.shape[3];
  store->sequences.resize(static_cast<size_t>(x.shape[0]));
  const auto num_heads = static_cast<size_t>(x.shape[0] * x.shape[1]);
  store->blocks = std::vector<SegmentedArray<Buffer<uint8_t>>>(num_heads);
  if (side == CacheSide::kKeys) {
    store->key_outliers.reserve(num_heads);
    for (size_t i = 0; i < num_heads; ++i) {
      store->key_outliers.emplace_back(store->head_dim, options.block_size);
    }
    const size_t num_channels = num_heads * static_cast<size_t>(store->head_dim);
    store->thresholds = thresholds;
    store->thresholds.magnitudes.resize(num_channels);
    store->thresholds.ties.resize(num_channels, -1);
    store->ties_left = store->thresholds.ties;
  } else {
    store->value_outliers.reserve(num_heads);
    for (size_t i = 0; i < num_heads; ++i) {
      store->value_outliers.emplace_back(store->head_dim, options.block_size);
    }
  }
  return store;
}

KVQuantizerOptions checked(KVQuantizerOptions options) {
  check_quantizer_options(options);
  return options;
}

void check_append(const char* op, const QuantizedKVCache& cache, CacheSide side,
                  const KVQuantizerOptions& options) {
  check_arg(cache.side() == side, fmt::format("{}: the cache holds the other side", op));
  check_arg(cache.options() == options,
            fmt::format("{}: the cache was made with other options", op));
}

// Copies of a head's outliers, for each sequence.
template <class Matrix, class ToStandard>
std::vector<Matrix> extracted(const std::vector<Matrix>& outliers, const QuantizedStore& store,
                              int64_t head, ToStandard to_standard) {
  check_arg(0 <= head && head < store.num_heads,
            fmt::format("extract outliers: head_idx {} of {} heads", head, store.num_heads));
  std::vector<Matrix> matrices;
  matrices.reserve(static_cast<size_t>(store.batch()));
  for (int64_t b = 0; b < store.batch(); ++b) {
    const StandardSparse from = to_standard(outliers[store.head_index(b, head)]);
    matrices.emplace_back(store.head_dim, store.options.block_size);
    matrices.back().append_batch(from.offsets, from.indices, from.values);
  }
  return matrices;
}

}  // namespace

std::vector<int64_t> get_sequence_lengths(MaskView attention_mask) {
  std::vector<int64_t> lengths;
  for (const TokenRange& range : token_ranges(attention_mask)) lengths.push_back(range.count);
  return lengths;
}

QuantizedKVCache fused_quantize_batch(CacheSide side, BatchView x, MaskView attention_mask,
                                      const KVQuantizerOptions& options,
                                      const KeyThresholds& thresholds) {
  constexpr const char* kOp = "fused_quantize";
  check_quantizer_options(options);
  check_batch(kOp, x);
  check_scales_fit(options.scaling_factors, x.shape[1], x.shape[3]);
  const auto channels = static_cast<size_t>(x.shape[1] * x.shape[3]);
  check_thresholds(thresholds, side, static_cast<size_t>(x.shape[0]) * channels);
  check_unset_together(thresholds, channels);
  const auto ranges = token_ranges(kOp, x, attention_mask);
  check_finite(kOp, x, ranges);
  return or_out_of_memory(kOp, [&] {
    auto store = empty_store(side, x, options, thresholds);
    append_quantized(*store, x, ranges);
    return QuantizedKVCache(std::move(store));
  });
}

QuantizedKVCache fused_quantize(CacheSide side, TensorView<const float, 3> x,
                                const KVQuantizerOptions& options,
                                const KeyThresholds& thresholds) {
  const BatchView batch{
      x.data, {1, x.shape[0], x.shape[1], x.shape[2]}, {0, x.stride[0], x.stride[1], x.stride[2]}};
  return fused_quantize_batch(side, batch, {}, options, thresholds);
}

void fused_append_batch(QuantizedKVCache& cache, BatchView x, MaskView attention_mask) {
  constexpr const char* kOp = "fused_append_batch";
  check_batch(kOp, x);
  check_arg(x.shape[0] == cache.batch() && x.shape[1] == cache.num_heads() &&
                x.shape[3] == cache.head_dim(),
            fmt::format("{}: [{}, {}, {}, {}] does not fit a cache of [{}, {}, .., {}]", kOp,
                        x.shape[0], x.shape[1], x.shape[2], x.shape[3], cache.batch(),
                        cache.num_heads(), cache.head_dim()));
  const auto ranges = token_ranges(kOp, x, attention_mask);
  check_finite(kOp, x, ranges);
  or_out_of_memory(kOp, [&] { append_quantized(cache.store(), x, ranges); });
}

BatchedKVQuantizer::BatchedKVQuantizer(std::string_view codebook,
                                       LayerScalingFactors scaling_factors, double outlier_fraction,
                                       int64_t block_size)
    : BatchedKVQuantizer(get_cached_codebook(codebook), std::move(scaling_factors),
                         outlier_fraction, block_size) {}

BatchedKVQuantizer::BatchedKVQuantizer(std::vector<float> codebook,
                                       LayerScalingFactors scaling_factors, double outlier_fraction,
                                       int64_t block_size)
    : options_(checked(
          {std::move(codebook), std::move(scaling_factors), outlier_fraction, block_size})) {}

QuantizedKVCache BatchedKVQuantizer::quantize_keys(BatchView x, MaskView attention_mask,
                                                   const KeyThresholds& thresholds) const {
  return fused_quantize_batch(CacheSide::kKeys, x, attention_mask, options_, thresholds);
}

QuantizedKVCache BatchedKVQuantizer::quantize_values(BatchView x, MaskView attention_mask) const {
  return fused_quantize_batch(CacheSide::kValues, x, attention_mask, options_);
}

void BatchedKVQuantizer::append_keys(QuantizedKVCache& cache, BatchView x,
                                     MaskView attention_mask) const {
  check_append("append_keys", cache, CacheSide::kKeys, options_);
  fused_append_batch(cache, x, attention_mask);
}

void BatchedKVQuantizer::append_values(QuantizedKVCache& cache, BatchView x,
                                       MaskView attention_mask) const {
  check_append("append_values", cache, CacheSide::kValues, options_);
  fused_append_batch(cache, x, attention_mask);
}

std::vector<BlockedCSCMatrix> BatchedKVQuantizer::extract_key_outliers_to_sparse(
    const QuantizedKVCache& cache, int64_t head_idx) const {
  check_arg(cache.side() == CacheSide::kKeys,
            "extract_key_outliers_to_sparse: the cache holds values");
  return extracted(cache.store().key_outliers, cache.store(), head_idx,
                   [](const BlockedCSCMatrix& m) { return m.to_standard_csc(); });
}

std::vector<BlockedCSRMatrix> BatchedKVQuantizer::extract_value_outliers_to_sparse(
    const QuantizedKVCache& cache, int64_t head_idx) const {
  check_arg(cache.side() == CacheSide::kValues,
            "extract_value_outliers_to_sparse: the cache holds keys");
  return extracted(cache.store().value_outliers, cache.store(), head_idx,
                   [](const BlockedCSRMatrix& m) { return m.to_standard_csr(); });
}

}  // namespace kvquant
