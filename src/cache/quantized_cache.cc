// Views of a QuantizedKVCache, and decoding.
#include <fmt/format.h>

#include <utility>

#include "base/check.h"
#include "cache/out_of_memory.h"
#include "cache/quantized_store.h"

namespace kvquant {
namespace {

// A padded tensor [batch, num_heads, seq_len, head_dim] of zeros.
template <class T>
std::vector<T> padded_zeros(const QuantizedStore& store) {
  const int64_t row = store.num_heads * store.head_dim;  // what is checked is below 2^48
  const int64_t positions = store.batch() * store.seq_len;
  return or_out_of_memory("QuantizedKVCache", [&] {
    if (positions > (int64_t{1} << 60) / row) throw std::bad_alloc();
    return std::vector<T>(static_cast<size_t>(positions * row));
  });
}

// Calls visit(sequence, head, run's first token, rows of the run in the padded tensor, its length).
template <class Visit>
void for_each_head_run(const QuantizedStore& store, Visit visit) {
  for (int64_t b = 0; b < store.batch(); ++b) {
    for (int64_t h = 0; h < store.num_heads; ++h) {
      for_each_run(store.sequences[static_cast<size_t>(b)], [&](int64_t token, int64_t position,
                                                                int64_t count) {
        visit(b, h, token, (b * store.num_heads + h) * store.seq_len + position, count);
      });
    }
  }
}

// Calls visit(index in the padded tensor, value) for every outlier.
template <class Visit>
void for_each_padded_outlier(const QuantizedStore& store, Visit visit) {
  for_each_head_run(store, [&](int64_t b, int64_t h, int64_t first, int64_t row, int64_t count) {
    for_each_outlier(store.outliers(b, h), first, first + count,
                     [&](int64_t t, int64_t c, float value) {
                       visit(static_cast<size_t>((row + t - first) * store.head_dim + c), value);
                     });
  });
}

// Tokens of the sequence that are both in a tile and in [first, first + count).
struct TileRows {
  int64_t begin, end;
};
TileRows overlap(int64_t tile, int64_t first, int64_t count) {
  return {std::max(first, tile * kTileTokens), std::min(first + count, (tile + 1) * kTileTokens)};
}

// Fills a padded tensor; decode(head, tile, rows) writes the 64 rows of a tile.
template <class Decode, class T>
void decode_runs(const QuantizedStore& store, std::vector<T>& out, Decode decode) {
  std::vector<T> tile_rows(static_cast<size_t>(kTileTokens * store.head_dim));
  for_each_head_run(store, [&](int64_t b, int64_t h, int64_t first, int64_t row, int64_t count) {
    for (int64_t i = first / kTileTokens; i * kTileTokens < first + count; ++i) {
      decode(h, store.tile(b, h, i), tile_rows.data());
      const TileRows rows = overlap(i, first, count);
      std::copy_n(tile_rows.begin() + (rows.begin - i * kTileTokens) * store.head_dim,
                  (rows.end - rows.begin) * store.head_dim,
                  out.begin() + (row + rows.begin - first) * store.head_dim);
    }
  });
}

template <class T>
int64_t heap_bytes(const std::vector<T>& v) {
  return static_cast<int64_t>(v.capacity() * sizeof(T));
}

int64_t buffer_bytes(int64_t size) {
  constexpr int64_t kUnit = kBufferAlignment;
  return (size + kUnit - 1) / kUnit * kUnit;
}

}  // namespace

QuantizedKVCache::QuantizedKVCache(std::unique_ptr<QuantizedStore> store)
    : store_(std::move(store)) {}
QuantizedKVCache::QuantizedKVCache(QuantizedKVCache&&) noexcept = default;
QuantizedKVCache& QuantizedKVCache::operator=(QuantizedKVCache&&) noexcept = default;
QuantizedKVCache::~QuantizedKVCache() = default;

CacheSide QuantizedKVCache::side() const { return store_->side; }
int64_t QuantizedKVCache::batch() const { return store_->batch(); }
int64_t QuantizedKVCache::num_heads() const { return store_->num_heads; }
int64_t QuantizedKVCache::seq_len() const { return store_->seq_len; }
int64_t QuantizedKVCache::head_dim() const { return store_->head_dim; }
int QuantizedKVCache::bits() const { return store_->book.bits; }
const KVQuantizerOptions& QuantizedKVCache::options() const { return store_->options; }
const KeyThresholds& QuantizedKVCache::key_thresholds() const { return store_->thresholds; }
std::span<const float> QuantizedKVCache::codebook() const { return store_->options.codebook; }

std::vector<int64_t> QuantizedKVCache::seq_lengths() const {
  std::vector<int64_t> lengths;
  for (const QuantizedSequence& s : store_->sequences) lengths.push_back(s.num_tokens);
  return lengths;
}

std::vector<float> QuantizedKVCache::scaling_factors() const {
  const auto& scales = store_->options.scaling_factors.scales;
  if (!scales.empty()) return scales;
  return std::vector<float>(static_cast<size_t>(num_heads() * head_dim()), 1.0f);
}

std::vector<uint8_t> QuantizedKVCache::quantized_indices() const {
  auto out = padded_zeros<uint8_t>(*store_);
  std::vector<uint8_t> codes(static_cast<size_t>(head_dim() * kTileTokens));
  decode_runs(*store_, out, [&](int64_t, const uint8_t* tile, uint8_t* rows) {
    read_codes(tile, kStoreLayout, bits(), head_dim(), codes.data());
    for (int64_t c = 0; c < head_dim(); ++c) {
      for (int64_t t = 0; t < kTileTokens; ++t) {
        rows[t * head_dim() + c] = codes[c * kTileTokens + t];
      }
    }
  });
  return out;
}

std::vector<uint8_t> QuantizedKVCache::outlier_mask() const {
  auto out = padded_zeros<uint8_t>(*store_);
  for_each_padded_outlier(*store_, [&](size_t i, float) { out[i] = 1; });
  return out;
}

std::vector<float> QuantizedKVCache::outlier_values() const {
  auto out = padded_zeros<float>(*store_);
  for_each_padded_outlier(*store_, [&](size_t i, float value) { out[i] = value; });
  return out;
}

std::span<const uint8_t> QuantizedKVCache::code_tile(int64_t sequence, int64_t head,
                                                     int64_t tile) const {
  const bool is_head = 0 <= sequence && sequence < batch() && 0 <= head && head < num_heads();
  check_arg(is_head && 0 <= tile &&
                tile * kTileTokens < store_->sequences[static_cast<size_t>(sequence)].num_tokens,
            fmt::format("QuantizedKVCache: there is no tile {} of sequence {}, head {}", tile,
                        sequence, head));
  return {std::as_const(*store_).tile(sequence, head, tile),
          static_cast<size_t>(store_->tile_bytes())};
}

const BlockedTokens& QuantizedKVCache::outliers(int64_t sequence, int64_t head) const {
  check_arg(0 <= sequence && sequence < batch() && 0 <= head && head < num_heads(),
            fmt::format("QuantizedKVCache: there is no sequence {}, head {}", sequence, head));
  return std::as_const(*store_).outliers(sequence, head);
}

int64_t QuantizedKVCache::memory_bytes() const {
  const QuantizedStore& s = *store_;
  auto bytes = static_cast<int64_t>(sizeof(*this) + sizeof(s));
  bytes += heap_bytes(s.options.codebook) + heap_bytes(s.options.scaling_factors.scales);
  bytes += heap_bytes(s.thresholds.magnitudes) + heap_bytes(s.thresholds.ties);
  bytes += heap_bytes(s.ties_left) + heap_bytes(s.sequences) + heap_bytes(s.blocks);
  bytes += heap_bytes(s.key_outliers) + heap_bytes(s.value_outliers);
  for (const QuantizedSequence& sequence : s.sequences) bytes += heap_bytes(sequence.positions);
  for (const auto& blocks : s.blocks) {
    bytes += blocks.num_bytes();
    bytes += blocks.size() * buffer_bytes(s.tiles_per_block() * s.tile_bytes());
  }
  for (const auto& outliers : s.key_outliers) bytes += outliers.memory_footprint().total_bytes;
  for (const auto& outliers : s.value_outliers) bytes += outliers.memory_footprint().total_bytes;
  return bytes;
}

std::vector<float> fused_dequantize_batch(const QuantizedKVCache& cache) {
  const QuantizedStore& store = cache.store();
  std::vector<std::vector<float>> levels;
  for (int64_t h = 0; h < store.num_heads; ++h) levels.push_back(scaled_levels(store, h));
  auto out = padded_zeros<float>(store);
  const auto index = [&](int64_t t, int64_t c) { return t * store.head_dim + c; };
  decode_runs(store, out, [&](int64_t head, const uint8_t* tile, float* rows) {
    decode_dense(store, tile, levels[static_cast<size_t>(head)].data(), kTileTokens, index, rows);
  });
  for_each_padded_outlier(store, [&](size_t i, float value) { out[i] = value; });
  return out;
}

std::vector<float> fused_dequantize(const QuantizedKVCache& cache) {
  check_arg(cache.batch() == 1,
            fmt::format("fused_dequantize: one sequence is needed, there are {}", cache.batch()));
  return fused_dequantize_batch(cache);
}

}  // namespace kvquant
