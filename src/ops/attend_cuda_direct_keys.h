// Scores of a tile's coded keys, by one warp: levels are looked up in pairs, made keys of by scale
// and zero point, and multiplied by the cosine and the sine of their angle, in halves. With a pair
// of channels (a, b) of a key, (x, y) of the query and the angle d of the token:
//
//   x (a cos d - b sin d) + y (b cos d + a sin d) = cos d (a x + b y) + sin d (a y - b x)
//
// so that both products are products on tensor cores, with the query as (x, y) and as (y, -x).
// Queries are divided by a power of two and keys by 4, so that neither is too large for halves.
#pragma once

#include <bit>
#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_lookup.h"
#include "ops/attend_cuda_task.h"

namespace kvquant {

inline constexpr float kKeyFraction = 0.25f;
inline constexpr int kTileSlots = kTileTokens / 16;  // a thread's tokens: 16 s + 2 g and the next

// Where a thread's cosines and sines of its four slots are: of channel 16 j + 4 t + row and token
// 16 s + 2 g + odd at word s of 4.
KVQUANT_DEVICE constexpr int turn_index(int j, int row, int odd, int lane) {
  return (((j * 4 + row) * 2 + odd) * kWarpThreads + lane) * kTileSlots;
}

// One part for each thread.
KVQUANT_DEVICE void fill_turns(const CudaRun& run, int64_t head_dim, const DirectShared& shared,
                               int thread) {
  for (int i = thread; i < head_dim / 2 * 8; i += kBlockThreads) {
    const int lane = i % kWarpThreads, row = i / kWarpThreads % 4, j = i / kWarpThreads / 4;
    const int first = (16 * j + lane % 4 * 4 + row) * kTileTokens + lane / 4 * 2;
    Words4 turns[2];
    for (int s = 0; s < kTileSlots; ++s) {
      const float* cos = run.tile_cos + first + 16 * s;
      const float* sin = run.tile_sin + first + 16 * s;
      for (int odd = 0; odd < 2; ++odd) turns[odd].words[s] = half_pair(cos[odd], sin[odd]).bits;
    }
    for (int odd = 0; odd < 2; ++odd) {
      *reinterpret_cast<Words4*>(shared.turns + turn_index(j, row, odd, lane)) = turns[odd];
    }
  }
}

// A power of two above a bound.
KVQUANT_DEVICE float power_above(float bound) {
  const uint32_t bits = std::bit_cast<uint32_t>(std::fmax(bound, 0x1p-60f));
  return std::bit_cast<float>((bits & 0x7F800000u) + 0x00800000u);
}

// Queries over a power of two that is twice as large or more, and that power; one row after the
// other. Rows that are not there are 0.
template <class Warp>
KVQUANT_DEVICE void load_direct_queries(const Warp& warp, const TaskView& view,
                                        const DirectShared& shared) {
  const int64_t dim = view.call->head_dim;
  for (int64_t row = warp.index(); row < kDirectRows; row += kBlockWarps) {
    const bool is_there = row < view.num_rows;
    const float* query = view.query(is_there ? row : 0);
    typename Warp::template Lanes<float> largest;
    warp.each([&](int lane) {
      for (int64_t c = lane; c < dim && is_there; c += kWarpThreads) {
        largest[lane] = std::fmax(largest[lane], std::fabs(query[c]));
      }
    });
    const float scale = power_above(2 * warp.max(largest));
    warp.each([&](int lane) {
      float* to = shared.query + row * shared.layout.query_stride;
      for (int64_t c = lane; c < dim; c += kWarpThreads) to[c] = is_there ? query[c] / scale : 0.0f;
      if (lane == 0) shared.scales[row] = scale;
    });
  }
}

// Scales and zero points of a tile's keys, and the biases of its scores, for one warp. Returns how
// large keys over 4 are that codes stand for.
template <class Warp>
KVQUANT_DEVICE float load_key_params(const Warp& warp, const TaskView& view, const CudaTile& tile,
                                     const DirectWarpShared& own) {
  const int64_t half = view.call->head_dim / 2;
  const CudaSide& keys = tile.run->keys;
  const HalfPair fraction = half_pair(kKeyFraction, kKeyFraction);
  typename Warp::template Lanes<float> sums, largest;
  warp.phase([&](int lane) {
    const Half *scales = tile.keys.scales, *zeros = tile.keys.zeros;
    for (int64_t c = lane; c < half; c += kWarpThreads) {
      const HalfPair scale{scales[c].bits | uint32_t{scales[c + half].bits} << 16};
      const HalfPair zero{zeros[c].bits | uint32_t{zeros[c + half].bits} << 16};
      own.params[c] = {{product(scale, fraction).bits, product(zero, fraction).bits}};
      const float low = std::fabs(low_of(scale)) + std::fabs(low_of(zero));
      const float high = std::fabs(high_of(scale)) + std::fabs(high_of(zero));
      largest[lane] = std::fmax(largest[lane], std::fmax(low, high));
    }
    const int64_t row = lane / 4;
    const float* query = own.query + row * own.layout.query_stride;
    for (int64_t c = lane % 4; c < half && keys.logit_bias != 0; c += 4) {
      const float a = widen(scales[c]), b = widen(scales[c + half]);
      sums[lane] += (query[c] * query[c] + query[c + half] * query[c + half]) * (a * a + b * b);
    }
  });
  for (int step = 1; step < 4; step *= 2) {
    const auto other = warp.exchange(sums, step);
    warp.each([&](int lane) { sums[lane] += other[lane]; });
  }
  warp.phase([&](int lane) {
    const float scale = view.call->log2_scale * own.scales[lane / 4];
    const float factor =
        keys.logit_bias * 0.25f * tile.keys.codebook->noise * scale * scale / kLog2E;
    if (lane % 4 == 0) own.biases[lane / 4] = factor * sums[lane];
  });
  return warp.max(largest) * kKeyFraction;
}

// Queries turned back by the tile's middle, as right factors; words of row g and channel c of
// `exchange` at g (head_dim / 2 + 4) + c if outliers need them.
template <int kSteps, class Warp>
KVQUANT_DEVICE void turn_queries(const Warp& warp, const CudaTile& tile,
                                 const DirectWarpShared& own,
                                 typename Warp::template Lanes<FragmentB> (&query)[kSteps]) {
  constexpr int kHalf = 8 * kSteps;
  const int64_t middle = (tile.index * kTileTokens + RopeTiles::kMiddle) * kHalf;
  warp.phase([&](int lane) {
    const int row = lane / 4, stride = static_cast<int>(own.layout.query_stride);
    const float* middle_cos = tile.run->cos + middle;
    const float* middle_sin = tile.run->sin + middle;
    KVQUANT_UNROLL
    for (int j = 0; j < kSteps / 2; ++j) {
      const int c = 16 * j + lane % 4 * 4;
      const float* from = own.query + row * stride + c;
      const Floats4 a = *reinterpret_cast<const Floats4*>(from);
      const Floats4 b = *reinterpret_cast<const Floats4*>(from + kHalf);
      const Floats4 cos = *reinterpret_cast<const Floats4*>(middle_cos + c);
      const Floats4 sin = *reinterpret_cast<const Floats4*>(middle_sin + c);
      Words4 turned;
      KVQUANT_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float x = a.numbers[r], y = b.numbers[r], co = cos.numbers[r], si = sin.numbers[r];
        turned.words[r] = half_pair(std::fma(x, co, y * si), std::fma(y, co, -(x * si))).bits;
        query[2 * j + r / 2][lane].pairs[r % 2] = turned.words[r];
      }
      if (tile.keys.num_outliers == 0) continue;
      *reinterpret_cast<Words4*>(own.exchange + row * (kHalf + 4) + c) = turned;
    }
  });
}

// A thread's keys of channels 16 j + 4 t + r, where `row` is 4 j + r, and their partners, times
// cosines and sines, as parts of left factors of each slot.
template <int kBits, int kSteps>
KVQUANT_DEVICE void decode_key_row(const ThreadCodes<kSteps>& codes, const DirectWarpShared& own,
                                   int row, int lane, FragmentA (&cos)[kTileSlots],
                                   FragmentA (&sin)[kTileSlots]) {
  const int j = row / 4, r = row % 4;
  const PairTable table = pair_table(own, KvSide::kKey, lane);
  const Words2 params = own.params[16 * j + lane % 4 * 4 + r];
  KVQUANT_UNROLL
  for (int odd = 0; odd < 2; ++odd) {
    const CodeRow from = code_row<kBits>(codes.words + 2 * kBits * j + odd, 2, r);
    const Words4 turns = *reinterpret_cast<const Words4*>(own.turns + turn_index(j, r, odd, lane));
    KVQUANT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int at = from.shift + 2 * kBits * i;
      const uint32_t a = look_up<kBits>(table, from.word, at);
      const uint32_t b = look_up<kBits>(table, from.word, at + 16);
      KVQUANT_UNROLL
      for (int k = 0; k < 2; ++k) {
        const int s = 2 * i + k, place = odd + 2 * (r % 2);
        const HalfPair key = fused({k == 0 ? lower_halves(a, b) : upper_halves(a, b)},
                                   {params.words[0]}, {params.words[1]});
        cos[s].pairs[place] = product_by_low(key, {turns.words[s]}).bits;
        sin[s].pairs[place] = product_by_high(key, {turns.words[s]}).bits;
      }
    }
  }
}

// In slot s sums[i] are of token 16 s + 2 g + i / 2 and query row 2 t + i % 2.
template <int kBits, int kSteps, class Warp>
KVQUANT_DEVICE void add_scores(const Warp& warp, const DirectWarpShared& own,
                               const typename Warp::template Lanes<ThreadCodes<kSteps>>& codes,
                               const typename Warp::template Lanes<FragmentB> (&query)[kSteps],
                               typename Warp::template Lanes<FragmentC> (&scores)[kTileSlots]) {
  KVQUANT_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    typename Warp::template Lanes<FragmentA> cos[kTileSlots], sin[kTileSlots];
    typename Warp::template Lanes<FragmentB> crossed;
    warp.each([&](int lane) {
      FragmentA own_cos[kTileSlots], own_sin[kTileSlots];
      KVQUANT_UNROLL
      for (int i = 0; i < 2; ++i) {
        decode_key_row<kBits>(codes[lane], own, 2 * step + i, lane, own_cos, own_sin);
        const uint32_t pair = query[step][lane].pairs[i];
        crossed[lane].pairs[i] = byte_permute(pair, pair, 0x1032) ^ 0x80000000u;
      }
      KVQUANT_UNROLL
      for (int s = 0; s < kTileSlots; ++s) {
        cos[s][lane] = own_cos[s];
        sin[s][lane] = own_sin[s];
      }
    });
    KVQUANT_UNROLL
    for (int s = 0; s < kTileSlots; ++s) {
      warp.multiply_halves(cos[s], query[step], scores[s]);
      warp.multiply_halves(sin[s], crossed, scores[s]);
    }
  }
}

}  // namespace kvquant
