// Keys of a tile into shared memory, decoded and turned: keys before RoPE by their place relative
// to the tile's token RopeTiles::kMiddle, the same angles for every tile, and queries back by that
// token's angle.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "formats/code_words.h"
#include "ops/attend_cuda_shared.h"
#include "ops/attend_cuda_tile.h"
#include "ops/cuda_fragments.h"
#include "ops/cuda_numbers.h"

namespace kvquant {

template <int kBits>
KVQUANT_DEVICE float level_at(const float* levels, uint32_t code) {
  if constexpr (kBits == kByteCodeBits) {
    return (static_cast<float>(code) - 127.5f) * (1 / 127.5f);
  } else {
    return levels[code];
  }
}

KVQUANT_DEVICE float level_at(const float* levels, int bits, int code) {
  return bits == kByteCodeBits ? level_at<kByteCodeBits>(levels, static_cast<uint32_t>(code))
                               : levels[code];
}

// Scales, zero points and levels of a tile. Those of tokens that are not there count as 0.
template <class Pair>
KVQUANT_DEVICE void load_params(const CudaTile& tile, const AttendShared<Pair>& shared,
                                int thread) {
  const CudaSide& keys = tile.run->keys;
  const CudaSide& values = tile.run->values;
  const auto load_tokens = [&](const CudaCodes& codes, float* scales, float* zeros) {
    if (thread >= kTileTokens) return;
    const bool is_there = thread < tile.tokens.num_tokens;
    scales[thread] = is_there ? widen(codes.scales[thread]) : 0.0f;
    zeros[thread] = is_there ? widen(codes.zeros[thread]) : 0.0f;
  };
  if (keys.source == TileSource::kCoded && keys.shape.has_codes()) {
    if (keys.shape.has_latents) load_tokens(tile.keys, shared.key_scales, shared.key_zeros);
    for (int64_t c = thread; c < shared.head_dim && !keys.shape.has_latents; c += kBlockThreads) {
      shared.key_scales[c] = widen(tile.keys.scales[c]);
      shared.key_zeros[c] = widen(tile.keys.zeros[c]);
    }
    if (thread < kMaxLevels) shared.key_levels[thread] = tile.keys.codebook->levels[thread];
  }
  if (values.source == TileSource::kCoded && values.shape.has_codes()) {
    load_tokens(tile.values, shared.value_scales, shared.value_zeros);
    if (thread < kMaxLevels) shared.value_levels[thread] = tile.values.codebook->levels[thread];
  }
}

// The four numbers of channels c, c + 1 and their partners, turned, to their two pairs.
template <class Pair>
KVQUANT_DEVICE void store_turned(const CudaTile& tile, const AttendShared<Pair>& shared, int64_t c,
                                 int64_t token, const float (&x)[4]) {
  const int64_t half = shared.head_dim / 2, stride = shared.layout.key_stride;
  const float* cos = tile.run->tile_cos + c * kTileTokens + token;
  const float* sin = tile.run->tile_sin + c * kTileTokens + token;
  const float cos0 = cos[0], sin0 = sin[0], cos1 = cos[kTileTokens], sin1 = sin[kTileTokens];
  set_pair(shared.keys[c / 2 * stride + token], std::fma(x[0], cos0, -(x[2] * sin0)),
           std::fma(x[1], cos1, -(x[3] * sin1)));
  set_pair(shared.keys[(c + half) / 2 * stride + token], std::fma(x[2], cos0, x[0] * sin0),
           std::fma(x[3], cos1, x[1] * sin1));
}

template <int kBits, class Pair>
KVQUANT_DEVICE void decode_keys(const CudaTile& tile, const AttendShared<Pair>& shared,
                                int thread) {
  const int64_t half = shared.head_dim / 2;
  const int lane = thread % 16;
  for (int64_t c = thread / 16 * 2; c < half; c += kBlockThreads / 16 * 2) {
    const LaneWords<kBits> words[2] = {load_lane<kBits>(tile.keys.words, c, lane),
                                       load_lane<kBits>(tile.keys.words, c + 1, lane)};
    KVQUANT_UNROLL
    for (int slot = 0; slot < kRowSlots; ++slot) {
      float x[4];
      KVQUANT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t pair = slot_pair<kBits>(words[i], c + i, slot);
        const float low = level_at<kBits>(shared.key_levels, pair & 0xFFFF);
        const float high = level_at<kBits>(shared.key_levels, pair >> 16);
        x[i] = std::fma(low, shared.key_scales[c + i], shared.key_zeros[c + i]);
        x[2 + i] = std::fma(high, shared.key_scales[c + half + i], shared.key_zeros[c + half + i]);
      }
      store_turned(tile, shared, c, slot * 16 + lane, x);
    }
  }
}

template <class Pair>
KVQUANT_DEVICE void turn_key_rows(const CudaTile& tile, const AttendShared<Pair>& shared,
                                  int thread) {
  const int64_t half = shared.head_dim / 2, token = thread % kTileTokens;
  const bool is_there = token < tile.tokens.num_tokens;
  const Half* row = tile.keys.rows + (is_there ? token : 0) * tile.run->keys.row_stride;
  for (int64_t c = thread / kTileTokens * 2; c < half; c += kBlockThreads / kTileTokens * 2) {
    float x[4] = {};
    for (int i = 0; i < 2 && is_there; ++i) {
      x[i] = widen(row[c + i]);
      x[2 + i] = widen(row[c + half + i]);
    }
    store_turned(tile, shared, c, token, x);
  }
}

template <class Pair>
KVQUANT_DEVICE void load_dense_keys(const CudaTile& tile, const AttendShared<Pair>& shared,
                                    int thread) {
  const int64_t token = thread % kTileTokens;
  const int64_t place = tile.run->keys.offset + tile.index * kTileTokens + token;
  const bool is_there = token < tile.tokens.num_tokens;
  const void* dense =
      is_there ? dense_tile(tile.run->keys, tile.keys, place / kTileTokens) : nullptr;
  for (int64_t c = thread / kTileTokens * 2; c < shared.head_dim;
       c += kBlockThreads / kTileTokens * 2) {
    FloatPair pair;
    if (is_there) pair = dense_pair(dense, tile.run->keys.type, key_index(place % kTileTokens, c));
    set_pair(shared.keys[c / 2 * shared.layout.key_stride + token], pair.first, pair.second);
  }
}

template <class Pair>
KVQUANT_DEVICE void load_keys(const CudaTile& tile, const AttendShared<Pair>& shared, int thread) {
  const CudaSide& side = tile.run->keys;
  if (side.source == TileSource::kDense) return load_dense_keys(tile, shared, thread);
  if (side.source == TileSource::kRows) return turn_key_rows(tile, shared, thread);
  switch (side.shape.bits) {
    case 2: return decode_keys<2>(tile, shared, thread);
    case 3: return decode_keys<3>(tile, shared, thread);
    case 4: return decode_keys<4>(tile, shared, thread);
    default: return decode_keys<8>(tile, shared, thread);
  }
}

// Another outlier of the token of outlier `index`, by its channel; -1: there is none.
KVQUANT_DEVICE int64_t find_outlier(const CudaTile& tile, int64_t index, int64_t channel) {
  const OutlierEntry own = outlier_at(tile.keys, index);
  const int64_t step = channel > own.place / kTileTokens ? 1 : -1;
  for (int64_t i = index + step; 0 <= i && i < tile.keys.num_outliers; i += step) {
    const OutlierEntry entry = outlier_at(tile.keys, i);
    if (entry.place % kTileTokens != own.place % kTileTokens) break;  // a token's are together
    if (entry.place / kTileTokens == channel) return i;
  }
  return -1;
}

template <class Pair>
KVQUANT_DEVICE float coded_key(const CudaTile& tile, const AttendShared<Pair>& shared,
                               int64_t token, int64_t channel) {
  const int bits = tile.run->keys.shape.bits;
  const int code = word_code_at(tile.keys.words, bits,
                                code_place(KvSide::kKey, shared.head_dim, token, channel));
  return std::fma(level_at(shared.key_levels, bits, code), shared.key_scales[channel],
                  shared.key_zeros[channel]);
}

// Writes outliers and their partners, turned, over what the codes below them gave.
template <class Pair>
KVQUANT_DEVICE void place_key_outliers(const CudaTile& tile, const AttendShared<Pair>& shared,
                                       int thread) {
  const int64_t half = shared.head_dim / 2, stride = shared.layout.key_stride;
  for (int64_t i = thread; i < tile.keys.num_outliers; i += kBlockThreads) {
    const OutlierEntry entry = outlier_at(tile.keys, i);
    const int64_t token = entry.place % kTileTokens, channel = entry.place / kTileTokens;
    const bool is_high = channel >= half;
    const int64_t c = is_high ? channel - half : channel, other = is_high ? c : c + half;
    const int64_t found = find_outlier(tile, i, other);
    if (is_high && found >= 0) continue;  // its partner's thread does both
    const float own = widen(entry.value);
    const float partner = found >= 0 ? widen(outlier_at(tile.keys, found).value)
                                     : coded_key(tile, shared, token, other);
    const float a = is_high ? partner : own, b = is_high ? own : partner;
    const float cos = tile.run->tile_cos[c * kTileTokens + token];
    const float sin = tile.run->tile_sin[c * kTileTokens + token];
    set_half(shared.keys[c / 2 * stride + token], static_cast<int>(c % 2),
             std::fma(a, cos, -(b * sin)));
    set_half(shared.keys[(c + half) / 2 * stride + token], static_cast<int>(c % 2),
             std::fma(b, cos, a * sin));
  }
}

}  // namespace kvquant
