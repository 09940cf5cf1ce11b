#include "bench/attend_timing_cache.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "cache/nuq_side.h"
#include "formats/codec_table.h"
#include "formats/kv_block.h"
#include "quant/waterfill.h"

namespace kvquant {
namespace {

constexpr int kNumPatterns = 16;  // different tiles of codes; the others repeat them

int64_t tiles_of(int64_t num_tokens) { return (num_tokens + kTileTokens - 1) / kTileTokens; }

DenseType dense_type(const Codec& codec) {
  switch (codec.quantizer) {
    case Quantizer::kF32: return DenseType::kF32;
    case Quantizer::kBF16: return DenseType::kBF16;
    default: return DenseType::kF16;
  }
}

NuqCodebook codebook_of(const Codec& codec) {
  if (code_bits(codec.quantizer) == 0) return {};  // latents of fp16
  if (nuq_bits(codec.quantizer) == 0) {
    return make_uniform_codebook(code_bits(codec.quantizer));
  }
  std::vector<float> levels;
  const int count = 1 << code_bits(codec.quantizer);
  for (int i = 0; i < count; ++i) {
    const float x = 2 * static_cast<float>(i) / static_cast<float>(count - 1) - 1;
    levels.push_back(x * (0.7f + 0.3f * std::abs(x)));
  }
  return make_codebook(levels);
}

// As of components that are all alike.
CodeBands bands_of(const Codec& codec, int64_t head_dim) {
  if (codec.quantizer != Quantizer::kWaterfill) return {};
  const std::vector<double> energies(static_cast<size_t>(latent_rank(codec, head_dim)), 1);
  return choose_bands({energies, energies}, codec.waterfill_bits);
}

void store(std::byte* memory, DenseType type, int64_t i, float x) {
  switch (type) {
    case DenseType::kF16: reinterpret_cast<Half*>(memory)[i] = to_half(x); break;
    case DenseType::kBF16: reinterpret_cast<BFloat16*>(memory)[i] = to_bfloat16(x); break;
    case DenseType::kF32: reinterpret_cast<float*>(memory)[i] = x; break;
  }
}

}  // namespace

// A map of latents that nobody has fitted, the same for all heads.
struct TimingCache::Latents {
  Latents(int64_t rank, int64_t head_dim)
      : mean(static_cast<size_t>(head_dim), 0.25f), decode(static_cast<size_t>(rank * head_dim)) {
    for (size_t i = 0; i < decode.size(); ++i) {
      decode[i] = std::sin(static_cast<float>(i) * 0.7f) * 0.2f;
    }
    map = {rank, latent_width(rank), head_dim, mean.data(), decode.data(), decode.data()};
  }
  std::vector<float> mean, decode;
  LatentMap map;
};

// One side of all layers, [layer][block], and outliers as [layer][KV head] lists of pages.
struct TimingCache::CodedTokens {
  // Of latents, the shape's head_dim is their width.
  CodedTokens(KvSide side, const Codec& codec, int64_t block_tiles, const TimingCacheShape& shape,
              const LatentMap* map);
  const CodedSide& view(int64_t layer, int64_t head) const {
    return views[static_cast<size_t>(layer * size.num_kv_heads + head)];
  }
  int64_t num_bytes() const;

  void make_patterns();
  void fill_codes(int64_t layer);
  void fill_token_params(int64_t layer);
  void fill_outliers(int64_t layer, int64_t head);
  void make_view(int64_t layer, int64_t head);
  std::byte* block_of(int64_t layer, int64_t tile) {
    return blocks[static_cast<size_t>(layer * num_blocks + tile / shape.num_tiles)];
  }
  uint8_t* codes_of(int64_t layer, int64_t tile, int64_t head) {
    return reinterpret_cast<uint8_t*>(block_of(layer, tile)) +
           layout.codes(head, tile % shape.num_tiles);
  }
  Half random_param(double low, double high) {
    return to_half(static_cast<float>(low + (high - low) * rng.uniform(next++)));
  }

  TimingCacheShape size;
  const LatentMap* latents;
  NuqCodebook book;
  KvBlockShape shape;
  KvBlockLayout layout;
  bool hadamard = false;
  double outlier_rate = 0;
  int64_t num_tiles = 0;
  int64_t num_blocks = 0;       // of a layer
  int64_t entries_of_head = 0;  // outliers of a layer and head
  int64_t pages_of_head = 0;
  CounterRng rng;
  uint64_t next = 0;
  std::vector<std::vector<uint8_t>> patterns;
  std::vector<uint8_t> last_pattern;  // of the last tile, which may be partly filled
  Buffer<std::byte> memory;
  std::vector<std::byte*> blocks;
  Buffer<Half> scales, zeros;  // keys: [layer][head][head_dim]
  Buffer<OutlierPage> page_memory;
  std::vector<const OutlierPage*> pages;
  std::vector<CodedSide> views;  // [layer][head]
};

TimingCache::CodedTokens::CodedTokens(KvSide side, const Codec& codec, int64_t block_tiles,
                                      const TimingCacheShape& cache, const LatentMap* map)
    : size(cache), latents(map), book(codebook_of(codec)), rng(side == KvSide::kKey ? 1 : 2) {
  shape = {.side = side,
           .bits = book.bits == 0 ? kLatentBits : book.bits,
           .has_outliers = codec.outlier_percent > 0,
           .num_kv_heads = size.num_kv_heads,
           .head_dim = size.head_dim,
           .num_tiles = block_tiles,
           .has_latents = map != nullptr};
  if (map != nullptr) shape.bands = bands_of(codec, map->head_dim);
  layout = kv_block_layout(shape);
  hadamard = !codec.transforms.empty() && map == nullptr;
  num_tiles = tiles_of(size.num_tokens);
  num_blocks = (num_tiles + block_tiles - 1) / block_tiles;
  memory = Buffer<std::byte>(size.num_layers * num_blocks * layout.num_bytes);
  for (int64_t i = 0; i < size.num_layers * num_blocks; ++i) {
    blocks.push_back(memory.data() + i * layout.num_bytes);
  }
  if (side == KvSide::kKey) {
    scales = Buffer<Half>(size.num_layers * size.num_kv_heads * size.head_dim);
    zeros = Buffer<Half>(scales.size());
    for (Half& scale : scales.span()) scale = random_param(0.5, 1.5);
    for (Half& zero : zeros.span()) zero = random_param(-0.5, 0.5);
  }
  if (shape.has_outliers) {
    const int64_t row = map != nullptr ? size.head_dim : size.num_kv_heads * size.head_dim;
    const int64_t num_outliers = map != nullptr
                                     ? num_latent_outliers(map->rank, codec.outlier_percent)
                                     : num_value_outliers(row, codec.outlier_percent);
    outlier_rate = side == KvSide::kKey
                       ? codec.outlier_percent / 100
                       : 2.0 * static_cast<double>(num_outliers) / static_cast<double>(row);
    entries_of_head =
        static_cast<int64_t>(outlier_rate * static_cast<double>(size.num_tokens * size.head_dim));
    pages_of_head = (entries_of_head + kOutliersPerPage - 1) / kOutliersPerPage;
    page_memory = Buffer<OutlierPage>(size.num_layers * size.num_kv_heads * pages_of_head);
    for (const OutlierPage& page : page_memory.span()) pages.push_back(&page);
  }
  make_patterns();
  for (int64_t layer = 0; layer < size.num_layers; ++layer) {
    fill_codes(layer);
    if (side == KvSide::kValue) fill_token_params(layer);
    for (int64_t head = 0; head < size.num_kv_heads; ++head) {
      if (shape.has_outliers) fill_outliers(layer, head);
      make_view(layer, head);
    }
  }
}

void TimingCache::CodedTokens::make_patterns() {
  const int64_t last_tokens = size.num_tokens - (num_tiles - 1) * kTileTokens;
  std::vector<uint8_t> planar(static_cast<size_t>(size.head_dim * kTileTokens));
  for (int i = 0; i <= kNumPatterns; ++i) {
    std::vector<uint8_t> tile(static_cast<size_t>(layout.code_tile));
    for (size_t at = 0; at < tile.size() && !shape.has_codes(); at += 2) {  // up to 2
      tile[at] = static_cast<uint8_t>(rng.below(next++, 256));
      tile[at + 1] = static_cast<uint8_t>(rng.below(next++, 64));
    }
    const auto add_random = [&](int bits, int64_t num_channels, uint8_t* to) {
      for (size_t at = 0; at < static_cast<size_t>(num_channels * kTileTokens); ++at) {
        const auto token = static_cast<int64_t>(at % kTileTokens);
        const bool is_used = i < kNumPatterns || token < last_tokens;
        planar[at] = static_cast<uint8_t>(is_used ? rng.below(next++, 1u << bits) : 0);
      }
      add_codes(to, shape.side, bits, num_channels, planar.data());
    };
    if (shape.bands.is_banded()) {
      for_each_band(shape.bands, [&](const CodeBand& band) {
        add_random(band.bits, band.num_channels, tile.data() + band.offset);
      });
    } else if (shape.has_codes()) {
      add_random(book.bits, size.head_dim, tile.data());
    }
    (i < kNumPatterns ? patterns.emplace_back() : last_pattern) = std::move(tile);
  }
}

void TimingCache::CodedTokens::fill_codes(int64_t layer) {
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    for (int64_t head = 0; head < size.num_kv_heads; ++head) {
      const auto& pattern =
          tile == num_tiles - 1 ? last_pattern : patterns[rng.below(next++, kNumPatterns)];
      std::copy(pattern.begin(), pattern.end(), codes_of(layer, tile, head));
    }
  }
}

void TimingCache::CodedTokens::fill_token_params(int64_t layer) {
  const int64_t num_parts = shape.num_token_params() / kTileTokens;
  for (int64_t token = 0; token < size.num_tokens; ++token) {
    std::byte* block = block_of(layer, token / kTileTokens);
    const int64_t tile = token / kTileTokens % shape.num_tiles;
    for (int64_t part = 0; part < num_parts; ++part) {
      const int64_t at = shape.token_params(tile, part) + token % kTileTokens;
      reinterpret_cast<Half*>(block + layout.scales)[at] = random_param(0.5, 1.5);
      reinterpret_cast<Half*>(block + layout.zeros)[at] = random_param(-0.5, 0.5);
    }
  }
}

// One in every 1 / rate values, in the order of the list: tokens, then channels.
void TimingCache::CodedTokens::fill_outliers(int64_t layer, int64_t head) {
  const int64_t first_page = (layer * size.num_kv_heads + head) * pages_of_head;
  OutlierEntry* entries = page_memory.data()[first_page].entries;
  int64_t num_entries = 0;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const int64_t start = num_entries;
    uint8_t* codes = codes_of(layer, tile, head);
    for (; num_entries < entries_of_head; ++num_entries) {
      const double index = (static_cast<double>(num_entries) + rng.uniform(next)) / outlier_rate;
      const auto place = static_cast<int64_t>(index);
      const int64_t token = place / size.head_dim - tile * kTileTokens;
      if (token >= kTileTokens) break;
      ++next;
      const int64_t channel = place % size.head_dim;
      entries[num_entries] = {outlier_place(token, channel), random_param(-2, 2)};
      clear_code(codes, book.bits, code_place(shape.side, size.head_dim, token, channel));
    }
    const int64_t at = tile % shape.num_tiles * shape.num_kv_heads + head;
    std::byte* block = block_of(layer, tile);
    reinterpret_cast<uint32_t*>(block + layout.starts)[at] = static_cast<uint32_t>(start);
    reinterpret_cast<uint16_t*>(block + layout.counts)[at] =
        static_cast<uint16_t>(num_entries - start);
  }
}

void TimingCache::CodedTokens::make_view(int64_t layer, int64_t head) {
  const int64_t index = layer * size.num_kv_heads + head;
  CodedSide side;
  side.codebook = shape.has_codes() ? &book : nullptr;
  side.latents = latents;
  side.shape = shape;
  side.layout = layout;
  side.head = head;
  side.blocks = std::span(blocks).subspan(static_cast<size_t>(layer * num_blocks),
                                          static_cast<size_t>(num_blocks));
  if (shape.side == KvSide::kKey) {
    side.logit_bias = kLogitBias;
    side.scales = scales.data() + index * size.head_dim;
    side.zeros = zeros.data() + index * size.head_dim;
  }
  side.pages = std::span(pages).subspan(static_cast<size_t>(index * pages_of_head),
                                        static_cast<size_t>(pages_of_head));
  side.hadamard = hadamard;
  views.push_back(side);
}

int64_t TimingCache::CodedTokens::num_bytes() const {
  KvBlockShape all = shape;
  all.num_tiles = num_tiles;
  const int64_t entries = size.num_layers * size.num_kv_heads * entries_of_head;
  return size.num_layers * kv_block_layout(all).num_bytes + scales.num_bytes() + zeros.num_bytes() +
         entries * static_cast<int64_t>(sizeof(OutlierEntry));
}

TimingCache::TimingCache(const TimingCacheShape& shape, const CacheSpec& spec) : shape_(shape) {
  const bool has_keys = is_compressed(spec.key), has_values = is_compressed(spec.value);
  if (has_keys && has_values) {
    make_coded(spec);
    return;
  }
  make_dense(dense_type(has_keys ? spec.value : spec.key), has_keys || has_values ? 1 : 2);
  if (has_keys || has_values) make_half_coded(spec);
}

TimingCache::~TimingCache() = default;

// Numbers in [-1, 1) that look random enough for scores to differ.
void TimingCache::make_dense(DenseType type, int64_t num_sides) {
  const int64_t num_tiles = tiles_of(shape_.num_tokens);
  const int64_t num_heads = shape_.num_layers * shape_.num_kv_heads;
  const int64_t tile_size = kTileTokens * shape_.head_dim;
  const int64_t tile_bytes = tile_size * element_bytes(type);
  dense_ = Buffer<std::byte>(num_heads * num_tiles * num_sides * tile_bytes);
  uint32_t state = 1;
  for (int64_t i = 0; i < num_heads * num_tiles * num_sides * tile_size; ++i) {
    state = state * 1664525u + 1013904223u;
    store(dense_.data(), type, i, static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
  }
  for (int64_t i = 0; i < num_heads * num_tiles; ++i) {
    key_tiles_.push_back(dense_.data() + num_sides * i * tile_bytes);
    value_tiles_.push_back(dense_.data() + (num_sides * i + num_sides - 1) * tile_bytes);
  }
  for (int64_t i = 0; i < num_heads; ++i) {
    const auto first = static_cast<size_t>(i * num_tiles), count = static_cast<size_t>(num_tiles);
    AttendRun run;
    run.type = type;
    run.key_tiles = std::span(key_tiles_).subspan(first, count);
    run.value_tiles = std::span(value_tiles_).subspan(first, count);
    run.num_tokens = shape_.num_tokens;
    runs_.push_back(run);
  }
  num_bytes_ = dense_.num_bytes();
}

// Of latents of either side, codes are like those of values.
std::unique_ptr<TimingCache::CodedTokens> TimingCache::make_side(
    KvSide side, const CacheSpec& spec, std::unique_ptr<Latents>& latents) const {
  const Codec& codec = side == KvSide::kKey ? spec.key : spec.value;
  TimingCacheShape shape = shape_;
  if (has_latents(codec)) {
    const CodeBands bands = bands_of(codec, shape_.head_dim);
    const int64_t rank = latent_rank(codec, shape_.head_dim);
    latents = std::make_unique<Latents>(
        bands.is_banded() ? std::min(rank, bands.num_channels()) : rank, shape_.head_dim);
    shape.head_dim = latents->map.width;
    side = KvSide::kValue;
  }
  return std::make_unique<CodedTokens>(side, codec, spec.block / kTileTokens, shape,
                                       latents ? &latents->map : nullptr);
}

// Beside the dense other side.
void TimingCache::make_half_coded(const CacheSpec& spec) {
  const bool has_keys = is_compressed(spec.key);
  auto& coded = has_keys ? keys_ : values_;
  coded = has_keys ? make_side(KvSide::kKey, spec, key_latents_)
                   : make_side(KvSide::kValue, spec, value_latents_);
  for (size_t i = 0; i < runs_.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    const CodedSide* side = &coded->view(index / shape_.num_kv_heads, index % shape_.num_kv_heads);
    (has_keys ? runs_[i].coded_keys : runs_[i].coded_values) = side;
    (has_keys ? runs_[i].key_tiles : runs_[i].value_tiles) = {};
  }
  num_bytes_ += coded->num_bytes();
}

void TimingCache::make_coded(const CacheSpec& spec) {
  rope_ = RopeTable(shape_.head_dim, shape_.num_tokens, 10000);
  keys_ = make_side(KvSide::kKey, spec, key_latents_);
  values_ = make_side(KvSide::kValue, spec, value_latents_);
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      AttendRun run;
      run.coded_keys = &keys_->view(layer, head);
      run.coded_values = &values_->view(layer, head);
      run.rope = &rope_;
      run.num_tokens = shape_.num_tokens;
      runs_.push_back(run);
    }
  }
  num_bytes_ = keys_->num_bytes() + values_->num_bytes();
}

}  // namespace kvquant
