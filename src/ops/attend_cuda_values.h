// Values of a tile into shared memory, decoded.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "formats/code_words.h"
#include "ops/attend_cuda_keys.h"

namespace kvquant {

// A tile's codes as those of values lie: with a scale and a zero point for each token.
struct TokenCodes {
  const uint32_t* words;
  const float* levels;
  const float* scales;  // [64]
  const float* zeros;
};

// Channels of codes of kBits: store(line, channel, first, second) gets the numbers of tokens 2 line
// and 2 line + 1. Codes of bands mean what the codes of 8 bits mean that they widen to.
template <int kBits, bool kIsBand, class Store>
KVQUANT_DEVICE void decode_tokens(const TokenCodes& codes, int64_t num_channels, int thread,
                                  Store&& store) {
  constexpr uint32_t kWiden = 255 / ((1u << kBits) - 1);
  const auto level = [&](uint32_t code) {
    if constexpr (kIsBand) return level_at<kByteCodeBits>(nullptr, code * kWiden);
    return level_at<kBits>(codes.levels, code);
  };
  int64_t channel = thread;
  for (int octet = 0; octet < kTileTokens / 8;) {
    if (channel >= num_channels) {  // neighbouring threads have neighbouring channels
      channel -= num_channels;
      ++octet;
      continue;
    }
    const int64_t row = channel / 16 * 8 + octet;
    const auto words = load_lane<kBits>(codes.words, row, static_cast<int>(channel % 16));
    KVQUANT_UNROLL
    for (int slot = 0; slot < kRowSlots; ++slot) {
      const int line = octet * 4 + slot;
      const uint32_t pair = slot_pair<kBits>(words, row, slot);
      store(line, channel,
            std::fma(level(pair & 0xFFFF), codes.scales[2 * line], codes.zeros[2 * line]),
            std::fma(level(pair >> 16), codes.scales[2 * line + 1], codes.zeros[2 * line + 1]));
    }
    channel += kBlockThreads;
  }
}

// Latents of 8, 4 and 2 bits (code_bands.h).
template <class Store>
KVQUANT_DEVICE void decode_bands(TokenCodes codes, const CodeBands& bands, int thread,
                                 Store&& store) {
  const int32_t* sizes = bands.channels;
  int64_t first = 0;
  const auto behind = [&](int bits, int64_t size) {
    codes.words += code_tile_bytes(bits, size) / 4;
    first += size;
  };
  const auto shifted = [&](int64_t line, int64_t channel, float a, float b) {
    store(line, first + channel, a, b);
  };
  if (sizes[0] > 0) decode_tokens<8, true>(codes, sizes[0], thread, shifted);
  behind(8, sizes[0]);
  if (sizes[1] > 0) decode_tokens<4, true>(codes, sizes[1], thread, shifted);
  behind(4, sizes[1]);
  if (sizes[2] > 0) decode_tokens<2, true>(codes, sizes[2], thread, shifted);
}

template <class Store>
KVQUANT_DEVICE void decode_tokens(const TokenCodes& codes, const KvBlockShape& shape, int thread,
                                  Store&& store) {
  const int64_t dim = shape.head_dim;
  if (shape.bands.is_banded()) return decode_bands(codes, shape.bands, thread, store);
  switch (shape.bits) {
    case 2: return decode_tokens<2, false>(codes, dim, thread, store);
    case 3: return decode_tokens<3, false>(codes, dim, thread, store);
    case 4: return decode_tokens<4, false>(codes, dim, thread, store);
    default: return decode_tokens<8, false>(codes, dim, thread, store);
  }
}

// fn(line, channel) for every pair of a tile, neighbouring threads at neighbouring channels.
template <class Pair, class Fn>
KVQUANT_DEVICE void each_value_pair(const AttendShared<Pair>& shared, int thread, Fn&& fn) {
  int64_t line = 0, channel = thread;
  while (true) {
    while (channel >= shared.value_dim) {
      channel -= shared.value_dim;
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
  each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
    const Half* row = tile.values.rows + 2 * line * side.row_stride + channel;
    const bool has_first = 2 * line < tile.tokens.num_tokens;
    const bool has_second = 2 * line + 1 < tile.tokens.num_tokens;
    set_pair(shared.values[line * shared.layout.value_stride + channel],
             has_first ? widen(row[0]) : 0.0f, has_second ? widen(row[side.row_stride]) : 0.0f);
  });
}

// Of a side whose token 0 is not the first of its tile: tokens of a pair may be in two tiles.
template <class Pair>
KVQUANT_DEVICE void load_shifted_values(const CudaTile& tile, const AttendShared<Pair>& shared,
                                        int thread) {
  const CudaSide& side = tile.run->values;
  const auto number = [&](int64_t token, int64_t channel) {
    if (token >= tile.tokens.num_tokens) return 0.0f;
    const int64_t place = side.offset + tile.index * kTileTokens + token;
    return dense_number(dense_tile(side, tile.values, place / kTileTokens), side.type,
                        value_index(place % kTileTokens, channel, shared.value_dim));
  };
  each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
    set_pair(shared.values[line * shared.layout.value_stride + channel], number(2 * line, channel),
             number(2 * line + 1, channel));
  });
}

template <class Pair>
KVQUANT_DEVICE void load_dense_values(const void* dense, DenseType type,
                                      const AttendShared<Pair>& shared, int thread) {
  each_value_pair(shared, thread, [&](int64_t line, int64_t channel) {
    const FloatPair pair =
        dense_pair(dense, type, value_index(2 * line, channel, shared.value_dim));
    set_pair(shared.values[line * shared.layout.value_stride + channel], pair.first, pair.second);
  });
}

template <class Pair>
KVQUANT_DEVICE void load_values(const CudaTile& tile, const AttendShared<Pair>& shared,
                                int thread) {
  const CudaSide& side = tile.run->values;
  const uint32_t* words = tile.values.words;
  if (side.source == TileSource::kDense && side.offset != 0) {
    return load_shifted_values(tile, shared, thread);
  }
  if (side.source == TileSource::kDense) {
    return load_dense_values(dense_tile(side, tile.values, tile.index), side.type, shared, thread);
  }
  if (side.source == TileSource::kRows) return load_value_rows(tile, shared, thread);
  if (!side.shape.has_codes()) return load_dense_values(words, DenseType::kF16, shared, thread);
  const TokenCodes codes{words, shared.value_levels, shared.value_scales, shared.value_zeros};
  decode_tokens(codes, side.shape, thread, [&](int64_t line, int64_t channel, float a, float b) {
    set_pair(shared.values[line * shared.layout.value_stride + channel], a, b);
  });
}

template <class Pair>
KVQUANT_DEVICE void place_value_outliers(const CudaTile& tile, const AttendShared<Pair>& shared,
                                         int thread) {
  for (int64_t i = thread; i < tile.values.num_outliers; i += kBlockThreads) {
    const OutlierEntry entry = outlier_at(tile.values, i);
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
