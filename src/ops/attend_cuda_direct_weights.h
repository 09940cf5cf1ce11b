// Weights of a tile's tokens, by one warp whose threads each have scores of rows 2t and 2t + 1.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "base/device_code.h"
#include "ops/attend_cuda_direct_outliers.h"

namespace kvquant {

// Scales and zero points of tokens 16 s + 2 g and the next at place s. Of tokens that are not
// there: 0.
struct ThreadTokens {
  uint32_t scales[kTileSlots] = {};
  uint32_t zeros[kTileSlots] = {};
};

KVQUANT_DEVICE void fetch_tokens(const CudaTile& tile, int lane, ThreadTokens& tokens) {
  KVQUANT_UNROLL
  for (int s = 0; s < kTileSlots; ++s) {
    const int token = 16 * s + lane / 4 * 2, left = tile.tokens.num_tokens - token;
    const uint32_t mask = left > 1 ? ~0u : left == 1 ? 0xFFFFu : 0u;
    tokens.scales[s] = *reinterpret_cast<const uint32_t*>(tile.values.scales + token) & mask;
    tokens.zeros[s] = *reinterpret_cast<const uint32_t*>(tile.values.zeros + token) & mask;
  }
}

// How large the values of a thread's tokens are that codes stand for.
KVQUANT_DEVICE float bound_of(const ThreadTokens& tokens) {
  float bound = 0;
  KVQUANT_UNROLL
  for (int s = 0; s < kTileSlots; ++s) {
    const HalfPair scale{tokens.scales[s]}, zero{tokens.zeros[s]};
    bound = std::fmax(bound, std::fabs(low_of(scale)) + std::fabs(low_of(zero)));
    bound = std::fmax(bound, std::fabs(high_of(scale)) + std::fabs(high_of(zero)));
  }
  return bound;
}

// States of rows 2t and 2t + 1 as a thread has them: sums are of its own tokens.
struct ThreadRows {
  float max[2] = {-std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()};
  float sum[2] = {};
  float zeros[2] = {};    // the sums of p z
  float factors[2] = {};  // what all sums so far are to be multiplied by
  float largest[2] = {};  // score of the tile at hand
};

// Corrections of scores, of `step` each.
template <class Warp>
KVQUANT_DEVICE void add_score_corrections(
    const Warp& warp, const DirectWarpShared& own, float step,
    typename Warp::template Lanes<FragmentC> (&scores)[kTileSlots]) {
  warp.phase([&](int lane) {
    KVQUANT_UNROLL
    for (int i = 0; i < 2 * kTileSlots; ++i) {
      const int row = lane % 4 * 2 + i % 2, token = i / 2 * 16 + lane / 4 * 2;
      const int32_t* from = own.corrections + row * kCorrectionStride + token;
      const Words2 steps = *reinterpret_cast<const Words2*>(from);
      KVQUANT_UNROLL
      for (int k = 0; k < 2; ++k) {
        float& x = scores[i / 2][lane].sums[2 * k + i % 2];
        x = std::fma(static_cast<float>(static_cast<int32_t>(steps.words[k])), step, x);
      }
    }
  });
}

// Scores in units of log2 of what products and corrections make of them; of tokens that are not
// seen -infinity. Finds the largest ones.
template <class Warp>
KVQUANT_DEVICE void finish_scores(const Warp& warp, const TaskView& view, const CudaTile& tile,
                                  const DirectWarpShared& own,
                                  typename Warp::template Lanes<FragmentC> (&scores)[kTileSlots],
                                  typename Warp::template Lanes<ThreadRows>& rows) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  typename Warp::template Lanes<float> largest[2];
  warp.each([&](int lane) {
    const int first = lane / 4 * 2, group = view.call->group;
    const auto num_rows = static_cast<int>(view.num_rows);
    KVQUANT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = lane % 4 * 2 + i, query = row / group;
      const int end = tile.tokens.end + query, here = tile.tokens.num_tokens;
      const int seen_begin = tile.tokens.first + query - first;
      const int seen_end = row >= num_rows ? -kTileTokens : (end < here ? end : here) - first;
      const float factor = view.call->log2_scale * own.scales[row] / kKeyFraction;
      const float bias = own.biases[row];
      largest[i][lane] = kNever;
      KVQUANT_UNROLL
      for (int s = 0; s < kTileSlots; ++s) {
        KVQUANT_UNROLL
        for (int k = 0; k < 2; ++k) {
          const int token = 16 * s + k;  // behind `first`
          float& x = scores[s][lane].sums[2 * k + i];
          const bool is_seen = seen_begin <= token && token < seen_end;
          x = is_seen ? std::fma(x, factor, bias) : kNever;
          largest[i][lane] = std::fmax(largest[i][lane], x);
        }
      }
    }
  });
  for (int mask = 4; mask < kWarpThreads; mask *= 2) {
    for (auto& x : largest) {
      const auto other = warp.exchange(x, mask);
      warp.each([&](int lane) { x[lane] = std::fmax(x[lane], other[lane]); });
    }
  }
  warp.each([&](int lane) {
    for (int i = 0; i < 2; ++i) rows[lane].largest[i] = largest[i][lane];
  });
}

// Weights, and states of rows. Of rows of `exchange` the first eight get weights times scales, the
// others, where outliers need them, weights.
template <class Warp>
KVQUANT_DEVICE void find_direct_weights(
    const Warp& warp, const CudaTile& tile, const DirectWarpShared& own,
    const typename Warp::template Lanes<ThreadTokens>& tokens,
    const typename Warp::template Lanes<FragmentC> (&scores)[kTileSlots],
    typename Warp::template Lanes<ThreadRows>& rows) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  warp.phase([&](int lane) {
    ThreadRows& state = rows[lane];
    KVQUANT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float max = std::fmax(state.max[i], state.largest[i]);
      const bool is_empty = max == kNever;
      state.factors[i] = is_empty ? 1.0f : weight_of(state.max[i] - max);
      state.max[i] = max;
      state.sum[i] *= state.factors[i];
      state.zeros[i] *= state.factors[i];
      const int at = (lane % 4 * 2 + i) * kPairStride + lane / 4;
      KVQUANT_UNROLL
      for (int s = 0; s < kTileSlots; ++s) {
        const HalfPair scale{tokens[lane].scales[s]}, zero{tokens[lane].zeros[s]};
        const float* x = scores[s][lane].sums;
        const float first = is_empty ? 0.0f : weight_of(x[i] - max);
        const float second = is_empty ? 0.0f : weight_of(x[2 + i] - max);
        state.sum[i] += first + second;
        state.zeros[i] = std::fma(first, low_of(zero), state.zeros[i]);
        state.zeros[i] = std::fma(second, high_of(zero), state.zeros[i]);
        Bf16Pair pair;
        set_pair(pair, first * low_of(scale), second * high_of(scale));
        own.exchange[at + 8 * s] = pair.bits;
        if (tile.values.num_outliers == 0) continue;
        set_pair(pair, first, second);
        own.exchange[at + kDirectRows * kPairStride + 8 * s] = pair.bits;
      }
    }
  });
}

}  // namespace kvquant
