// kvquant/attention.h: quantize or append, then attention head by head over decoded tiles.
#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <utility>

#include "base/buffer.h"
#include "base/check.h"
#include "base/threads.h"
#include "cache/out_of_memory.h"
#include "cache/quantized_store.h"
#include "kvquant/attention.h"
#include "ops/attend.h"

namespace kvquant {
namespace {

void check_shape(const char* name, BatchView x, BatchView like, int64_t num_heads) {
  check_arg(x.shape[0] == like.shape[0] && x.shape[1] == num_heads && x.shape[2] == like.shape[2] &&
                x.shape[3] == like.shape[3],
            fmt::format("forward: {} [{}, {}, {}, {}] is not [{}, {}, {}, {}]", name, x.shape[0],
                        x.shape[1], x.shape[2], x.shape[3], like.shape[0], num_heads, like.shape[2],
                        like.shape[3]));
  check_batch("forward", x);
}

// Decoded tiles of one head of one sequence, f32 as attend() reads them.
struct DecodedHead {
  Buffer<float> memory;
  std::vector<const void*> tiles;
};

template <class Index>
void decode_head(const QuantizedStore& store, int64_t sequence, int64_t head, Index index,
                 ThreadPool& pool, DecodedHead& out) {
  const int64_t num_tokens = store.sequences[static_cast<size_t>(sequence)].num_tokens;
  const int64_t num_tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
  const int64_t tile_size = kTileTokens * store.head_dim;
  out.memory.reserve_discarding(num_tiles * tile_size);
  const std::vector<float> levels = scaled_levels(store, head);
  pool.parallel_for(num_tiles, [&](int64_t i, int) {
    decode_dense(store, store.tile(sequence, head, i), levels.data(),
                 std::min<int64_t>(kTileTokens, num_tokens - i * kTileTokens), index,
                 out.memory.data() + i * tile_size);
  });
  for_each_outlier(store.outliers(sequence, head), 0, num_tokens,
                   [&](int64_t t, int64_t c, float value) {
                     const int64_t tile = t / kTileTokens * tile_size;
                     out.memory[tile + index(t % kTileTokens, c)] = value;
                   });
  out.tiles.clear();
  for (int64_t i = 0; i < num_tiles; ++i) out.tiles.push_back(out.memory.data() + i * tile_size);
}

}  // namespace

struct PrefillQuantizedAttention::State {
  State(int64_t heads, int64_t dim, std::vector<float> levels, const PrefillAttentionOptions& given)
      : num_heads(heads),
        num_kv_heads(given.num_kv_heads == 0 ? heads : given.num_kv_heads),
        head_dim(dim),
        keys{levels, given.scaling_factors, given.outlier_fraction, given.block_size},
        values{std::move(levels), given.value_scaling_factors, given.outlier_fraction,
               given.block_size},
        pool(given.num_threads, ThreadPool::Pin::kNo) {
    if (values.scaling_factors.scales.empty()) values.scaling_factors = keys.scaling_factors;
    check_quantizer_options(keys);
    check_quantizer_options(values);
    check_scales_fit(keys.scaling_factors, num_kv_heads, head_dim);
    check_scales_fit(values.scaling_factors, num_kv_heads, head_dim);
  }

  LayerScalingFactors estimated(BatchView x, MaskView mask) const {
    const double percent = 100 * (1 - keys.outlier_fraction);
    const MaskView given = mask.data == nullptr ? MaskView{} : mask;
    return {num_kv_heads, head_dim,
            estimate_scaling_factors(x, given, ScaleRule::percentile(percent))};
  }

  void start_caches(BatchView key, BatchView value, MaskView mask, bool has_tokens) {
    if (has_tokens && keys.scaling_factors.scales.empty()) {
      keys.scaling_factors = estimated(key, mask);
    }
    if (has_tokens && values.scaling_factors.scales.empty()) {
      values.scaling_factors = estimated(value, mask);
    }
    key_cache.reset();
    value_cache.reset();
    key_cache = fused_quantize_batch(CacheSide::kKeys, key, mask, keys);
    value_cache = fused_quantize_batch(CacheSide::kValues, value, mask, values);
  }

  const int64_t num_heads, num_kv_heads, head_dim;
  KVQuantizerOptions keys, values;
  ThreadPool pool;
  std::optional<QuantizedKVCache> key_cache, value_cache;

  // Scratch of one head.
  DecodedHead decoded_keys, decoded_values;
  std::vector<float> query, out;  // [num_tokens, group, head_dim]

  void attend_head(BatchView all_queries, int64_t sequence, int64_t kv_head, TokenRange range,
                   float* all_out);
};

// The queries of the range's tokens that read one KV head. all_out is [batch, num_heads, seq_len,
// head_dim].
void PrefillQuantizedAttention::State::attend_head(BatchView all_queries, int64_t sequence,
                                                   int64_t kv_head, TokenRange range,
                                                   float* all_out) {
  const int64_t dim = head_dim, group = num_heads / num_kv_heads;
  decode_head(key_cache->store(), sequence, kv_head, key_index, pool, decoded_keys);
  decode_head(
      value_cache->store(), sequence, kv_head,
      [dim](int64_t t, int64_t c) { return value_index(t, c, dim); }, pool, decoded_values);
  query.resize(static_cast<size_t>(range.count * group * dim));
  out.resize(query.size());
  for (int64_t t = 0; t < range.count; ++t) {
    for (int64_t g = 0; g < group; ++g) {
      const auto row = all_queries.row(sequence, kv_head * group + g, range.first + t);
      std::copy(row.begin(), row.end(), query.begin() + (t * group + g) * dim);
    }
  }
  const int64_t num_tokens = key_cache->store().sequences[static_cast<size_t>(sequence)].num_tokens;
  const AttendRun run{.type = DenseType::kF32,
                      .key_tiles = decoded_keys.tiles,
                      .value_tiles = decoded_values.tiles,
                      .num_tokens = num_tokens};
  const AttendJob job{.query = query.data(),
                      .out = out.data(),
                      .query_stride = group * dim,
                      .num_queries = range.count,
                      .first_position = num_tokens - range.count,
                      .runs = {&run, 1}};
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
  attend({dim, group, scale}, {&job, 1}, Precision::kF32, pool);
  const int64_t seq_len = all_queries.shape[2];
  for (int64_t t = 0; t < range.count; ++t) {
    for (int64_t g = 0; g < group; ++g) {
      const int64_t head = sequence * num_heads + kv_head * group + g;
      std::copy_n(out.begin() + (t * group + g) * dim, dim,
                  all_out + (head * seq_len + range.first + t) * dim);
    }
  }
}

PrefillQuantizedAttention::PrefillQuantizedAttention(int64_t num_heads, int64_t head_dim,
                                                     std::string_view codebook,
                                                     const PrefillAttentionOptions& options)
    : PrefillQuantizedAttention(num_heads, head_dim, get_cached_codebook(codebook), options) {}

PrefillQuantizedAttention::PrefillQuantizedAttention(int64_t num_heads, int64_t head_dim,
                                                     std::vector<float> codebook,
                                                     const PrefillAttentionOptions& options) {
  constexpr const char* kName = "PrefillQuantizedAttention";
  check_arg(num_heads > 0, fmt::format("{}: num_heads is {}, not positive", kName, num_heads));
  check_arg(head_dim > 0 && head_dim % 8 == 0 && head_dim <= 1 << 16,
            fmt::format("{}: head_dim {} is not a positive multiple of 8", kName, head_dim));
  check_arg(options.num_kv_heads >= 0 &&
                (options.num_kv_heads == 0 || num_heads % options.num_kv_heads == 0),
            fmt::format("{}: num_kv_heads {} does not divide {} heads", kName, options.num_kv_heads,
                        num_heads));
  check_arg(0 <= options.num_threads && options.num_threads <= 1024,
            fmt::format("{}: num_threads is {}, not 0 to 1024", kName, options.num_threads));
  state_ = std::make_unique<State>(num_heads, head_dim, std::move(codebook), options);
}

PrefillQuantizedAttention::PrefillQuantizedAttention(PrefillQuantizedAttention&&) noexcept =
    default;
PrefillQuantizedAttention& PrefillQuantizedAttention::operator=(
    PrefillQuantizedAttention&&) noexcept = default;
PrefillQuantizedAttention::~PrefillQuantizedAttention() = default;

std::vector<float> PrefillQuantizedAttention::forward(BatchView query, BatchView key,
                                                      BatchView value, MaskView attention_mask,
                                                      bool is_prefill) {
  State& s = *state_;
  check_arg(query.shape[3] == s.head_dim,
            fmt::format("forward: query has head_dim {}, not {}", query.shape[3], s.head_dim));
  check_shape("query", query, query, s.num_heads);
  check_shape("key", key, query, s.num_kv_heads);
  check_shape("value", value, query, s.num_kv_heads);
  const auto ranges = token_ranges("forward", query, attention_mask);
  check_finite("forward: query", query, ranges);
  check_finite("forward: key", key, ranges);
  check_finite("forward: value", value, ranges);
  if (is_prefill) {
    const bool has_tokens = std::any_of(ranges.begin(), ranges.end(),
                                        [](const TokenRange& range) { return range.count > 0; });
    s.start_caches(key, value, attention_mask, has_tokens);
  } else {
    check_arg(s.key_cache.has_value() && s.value_cache.has_value(),
              "forward: the first call must be a prefill");
    check_arg(s.key_cache->batch() == query.shape[0],
              fmt::format("forward: a batch of {} does not fit caches of {}", query.shape[0],
                          s.key_cache->batch()));
    fused_append_batch(*s.key_cache, key, attention_mask);
    fused_append_batch(*s.value_cache, value, attention_mask);
  }
  return or_out_of_memory("forward", [&] {
    std::vector<float> out(
        static_cast<size_t>(query.shape[0] * s.num_heads * query.shape[2] * s.head_dim));
    for (int64_t b = 0; b < query.shape[0]; ++b) {
      const TokenRange range = ranges[static_cast<size_t>(b)];
      for (int64_t h = 0; h < s.num_kv_heads && range.count > 0; ++h) {
        s.attend_head(query, b, h, range, out.data());
      }
    }
    return out;
  });
}

const QuantizedKVCache& PrefillQuantizedAttention::key_cache() const {
  check_arg(state_->key_cache.has_value(), "key_cache: there was no prefill yet");
  return *state_->key_cache;
}

const QuantizedKVCache& PrefillQuantizedAttention::value_cache() const {
  check_arg(state_->value_cache.has_value(), "value_cache: there was no prefill yet");
  return *state_->value_cache;
}

RoundTripError PrefillQuantizedAttention::compute_round_trip_error(BatchView keys,
                                                                   MaskView attention_mask) const {
  const State& s = *state_;
  constexpr const char* kOp = "compute_round_trip_error";
  check_batch(kOp, keys);
  check_arg(keys.shape[1] == s.num_kv_heads && keys.shape[3] == s.head_dim,
            fmt::format("{}: keys of {} heads of {} channels, not {} of {}", kOp, keys.shape[1],
                        keys.shape[3], s.num_kv_heads, s.head_dim));
  const auto ranges = token_ranges(kOp, keys, attention_mask);
  check_finite(kOp, keys, ranges);
  int64_t num_tokens = 0;
  for (const TokenRange& range : ranges) num_tokens += range.count;
  if (num_tokens == 0) return {};
  KVQuantizerOptions options = s.keys;
  if (options.scaling_factors.scales.empty()) {
    options.scaling_factors = s.estimated(keys, attention_mask);
  }
  const auto decoded =
      fused_dequantize_batch(fused_quantize_batch(CacheSide::kKeys, keys, attention_mask, options));
  const auto& shape = keys.shape;
  const auto decoded_view = row_major(decoded.data(), {shape[0], shape[1], shape[2], shape[3]});
  RoundTripError error;
  double squares = 0, error_squares = 0;
  for (int64_t b = 0; b < shape[0]; ++b) {
    const TokenRange range = ranges[static_cast<size_t>(b)];
    for (int64_t h = 0; h < shape[1]; ++h) {
      for (int64_t t = range.first; t < range.first + range.count; ++t) {
        const auto x = keys.row(b, h, t), y = decoded_view.row(b, h, t);
        for (size_t c = 0; c < x.size(); ++c) {
          const double difference = double{x[c]} - y[c];
          squares += double{x[c]} * x[c];
          error_squares += difference * difference;
          error.max_abs_error = std::max(error.max_abs_error, std::fabs(difference));
        }
      }
    }
  }
  error.mse = error_squares / static_cast<double>(num_tokens * shape[1] * shape[3]);
  error.relative_error = squares > 0 ? std::sqrt(error_squares / squares) : 0;
  return error;
}

}  // namespace kvquant
