// Values of a tile into shared memory, decoded.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "formats/code_words.h"
#include "ops/attend_cuda_keys.h"

namespace kvquant {

template <int kBits, class Pair>
KVQUANT_DEVICE void decode_values(const CudaTile& tile, const AttendShared<Pair>& shared,
                                  int thread) {
  const int64_t stride = shared.layout.value_stride;
  int64_t channel = thread;
  for (int octet = 0; octet < kTileTokens / 8;) {
    if (channel >= shared.head_dim) {  // neighbouring threads have neighbouring channels
      channel -= shared.head_dim;
      ++octet;
      continue;
    }
    const int64_t row = channel / 16 * 8 + octet;
    const auto words = load_lane<kBits>(tile.values.words, row, static_cast<int>(channel % 16));
    KVQUANT_UNROLL
    for (int slot = 0; slot < kRowSlots; ++slot) {
      const int line = octet * 4 + slot;
      const uint32_t pair = slot_pair<kBits>(words, row, slot);
      const float first = level_at<kBits>(shared.value_levels, pair & 0xFFFF);
      const float second = level_at<kBits>(shared.value_levels, pair >> 16);
      set_pair(
          shared.values[line * stride + channel],
          std::fma(first, shared.value_scales[2 * line], shared.value_zeros[2 * line]),
          std::fma(second, shared.value_scales[2 * line + 1], shared.value_zeros[2 * line + 1]));
    }
    channel += kBlockThreads;
  }
}

// fn(line, channel) for every pair of a tile, neighbouring threads at neighbouring channels.
template <class Pair, class Fn>
KVQUANT_DEVICE void each_value_pair(const AttendShared<Pair>& shared, int thread, Fn&& fn) {
  int64_t line = 0, channel = thread;
  while (true) {
    while (channel >= shared.head_dim) {
      channel -= shared.head_dim;
      ++line;
    }
    if (line >= kTileTokens / 2) return;
    fn(line, channel);
    channel += kBlockThreads;
  }
}

template <class Pair>
KVQUANT_DEVICE void load_value_rows(const CudaTile& tile, const AttendShared<Pair>& shared,
                                    int thread) {
  const CudaSide& side = tile.run->values;
  const Half* rows = side.rows + tile.index * kTileTokens * side.row_stride;
  each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
    const Half* row = rows + 2 * line * side.row_stride + channel;
    const bool has_first = 2 * line < tile.tokens.num_tokens;
    const bool has_second = 2 * line + 1 < tile.tokens.num_tokens;
    set_pair(shared.values[line * shared.layout.value_stride + channel],
             has_first ? widen(row[0]) : 0.0f, has_second ? widen(row[side.row_stride]) : 0.0f);
  });
}

template <class Pair>
KVQUANT_DEVICE void load_dense_values(const CudaTile& tile, const AttendShared<Pair>& shared,
                                      int thread) {
  const CudaSide& side = tile.run->values;
  const void* dense = side.tiles[tile.index];
  each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
    const FloatPair pair =
        dense_pair(dense, side.type, value_index(2 * line, channel, shared.head_dim));
    set_pair(shared.values[line * shared.layout.value_stride + channel], pair.first, pair.second);
  });
}

template <class Pair>
KVQUANT_DEVICE void load_values(const CudaTile& tile, const AttendShared<Pair>& shared,
                                int thread) {
  const CudaSide& side = tile.run->values;
  if (side.source == TileSource::kDense) return load_dense_values(tile, shared, thread);
  if (side.source == TileSource::kRows) return load_value_rows(tile, shared, thread);
  switch (side.shape.bits) {
    case 2: return decode_values<2>(tile, shared, thread);
    case 3: return decode_values<3>(tile, shared, thread);
    case 4: return decode_values<4>(tile, shared, thread);
    default: return decode_values<8>(tile, shared, thread);
  }
}

template <class Pair>
KVQUANT_DEVICE void place_value_outliers(const CudaTile& tile, const AttendShared<Pair>& shared,
                                         int thread) {
  for (int64_t i = thread; i < tile.values.num_outliers; i += kBlockThreads) {
    const OutlierEntry entry = outlier_at(tile.run->values, tile.values, i);
    const int64_t token = entry.place % kTileTokens, channel = entry.place / kTileTokens;
    set_half(shared.values[token / 2 * shared.layout.value_stride + channel],
             static_cast<int>(token % 2), widen(entry.value));
  }
}

// Rotates values back (hadamard.h), one span after the other. For f32 alone.
template <class Block>
KVQUANT_DEVICE void rotate_values_back(const Block& block, const AttendShared<FloatPair>& shared) {
  const int64_t dim = shared.head_dim;
  for (int64_t span = 1; span < dim; span *= 2) {
    block.phase([&](int thread) {
      each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
        if ((channel & span) != 0) return;  // its partner's thread does both
        FloatPair& a = shared.values[line * shared.layout.value_stride + channel];
        FloatPair& b = shared.values[line * shared.layout.value_stride + channel + span];
        const FloatPair x = a, y = b;
        a = {x.first + y.first, x.second + y.second};
        b = {x.first - y.first, x.second - y.second};
      });
    });
  }
  const float norm = 1 / std::sqrt(static_cast<float>(dim));
  block.phase([&](int thread) {
    each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
      FloatPair& x = shared.values[line * shared.layout.value_stride + channel];
      x = {x.first * norm, x.second * norm};
    });
  });
}

}  // namespace kvquant
