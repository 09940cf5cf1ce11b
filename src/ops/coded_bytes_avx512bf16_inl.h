// Codes of 8 bits as they are: products of integers, exact, in place of keys and values that would
// have to be made. Queries times steps of the codes, and weights times scales, become 16-bit
// integers, relative to the largest: finer than bf16, which has 8 bits. What code 0 stands for is
// added apart. Included by the AVX-512 BF16 kernels alone.
#pragma once

#include "ops/coded_pass_avx512bf16_inl.h"
#include "ops/coded_weights_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

struct ByteSum {
  __m512 turned[kRowSlots];
  __m512i level[kRowSlots];
  __m512i slope[kRowSlots];   // to be multiplied by the token's number, in eighths
  __m512i square[kRowSlots];  // and by its square
};

// One row of queries, whose angles and places begin at `first`, against one row of codes.
template <int kPhase, Turn kTurn, bool kAsksAhead>
__attribute__((always_inline)) inline void score_byte_row(const KeyPass& pass, int64_t first,
                                                          int64_t row, ByteSum& sum) {
  const CodedState& state = *pass.state;
  if constexpr (kAsksAhead) pass.ahead.step<8, kPhase>(row);
  __m512i codes[kRowSlots];
  load_row<8, kPhase>(pass.codes, row, codes);
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    const int64_t at = first + s * state.half_padded + row;
    const auto pair = [&](int i) {
      return _mm512_set1_epi32(static_cast<int>(state.pairs[i][at]));
    };
    if constexpr (kTurn == Turn::kFull) {
      const auto of_zero = [&](int i) { return _mm512_set1_epi32(state.zero_parts[i][at]); };
      const __m512i along = _mm512_dpwssd_epi32(of_zero(0), codes[s], pair(0));
      const __m512i across = _mm512_dpwssd_epi32(of_zero(1), codes[s], pair(1));
      const __m512 cos = _mm512_loadu_ps(pass.lane_cos_sin + 32 * row);
      const __m512 sin = _mm512_loadu_ps(pass.lane_cos_sin + 32 * row + 16);
      sum.turned[s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(along), cos, sum.turned[s]);
      sum.turned[s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(across), sin, sum.turned[s]);
    } else {
      sum.level[s] = _mm512_dpwssd_epi32(sum.level[s], codes[s], pair(0));
      sum.slope[s] = _mm512_dpwssd_epi32(sum.slope[s], codes[s], pair(1));
      if constexpr (kTurn == Turn::kBent) {
        sum.square[s] = _mm512_dpwssd_epi32(sum.square[s], codes[s], pair(2));
      }
    }
  }
}

template <Turn kTurn, bool kAsksAhead>
__attribute__((always_inline)) inline void score_byte_rows(const KeyPass& pass, int64_t first,
                                                           TokenRange rows, ByteSum& sum) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    score_byte_row<0, kTurn, kAsksAhead>(pass, first, row, sum);
  }
}

// scores [64] of row r of those in registers, which is `row` of the block.
template <bool kAsksAhead>
void score_one_of_bytes(const KeyPass& pass, int64_t r, int64_t row, int64_t half, float* scores) {
  const CodedState& state = *pass.state;
  ByteSum sum;
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    sum.turned[s] = _mm512_setzero_ps();
    sum.level[s] = sum.slope[s] = sum.square[s] = _mm512_setzero_si512();
  }
  const auto bent = static_cast<int32_t>(state.num_turned);
  const auto straight = static_cast<int32_t>(state.num_turned + state.num_bent);
  const auto end = static_cast<int32_t>(half);
  const int64_t first = r * kRowSlots * state.half_padded;
  score_byte_rows<Turn::kFull, kAsksAhead>(pass, first, {0, bent}, sum);
  score_byte_rows<Turn::kBent, kAsksAhead>(pass, first, {bent, straight}, sum);
  score_byte_rows<Turn::kStraight, kAsksAhead>(pass, first, {straight, end}, sum);
  const __m512 token =
      _mm512_mul_ps(_mm512_set1_ps(0.125f),
                    _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8));
  const __m512 step = _mm512_set1_ps(state.integer_step[row]);
  const float* zeros = state.zero_sums + r * 3 * kRowSlots;
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    const auto part = [&](__m512i x, int i) {
      return _mm512_add_ps(_mm512_cvtepi32_ps(x), _mm512_set1_ps(zeros[i * kRowSlots + s]));
    };
    const __m512 moments = _mm512_fmadd_ps(part(sum.square[s], 2), token, part(sum.slope[s], 1));
    const __m512 all = _mm512_add_ps(sum.turned[s], part(sum.level[s], 0));
    _mm512_storeu_ps(scores + 16 * s, _mm512_mul_ps(_mm512_fmadd_ps(moments, token, all), step));
  }
}

// scores [R][64] of R rows from `row` of the block on.
template <int R>
void score_bytes(const KeyPass& pass, int64_t row, int64_t half, float* scores) {
  score_one_of_bytes<true>(pass, 0, row, half, scores);
  for (int64_t r = 1; r < R; ++r) {
    score_one_of_bytes<false>(pass, r, row + r, half, scores + r * kTileTokens);
  }
}

// acc [R][16] of rows of `stride` += weights times values, for 16 channels: codes are read in the
// order in which they lie, which is how the CPU fetches them ahead.
template <int R>
void add_byte_vector(const ValuePass& pass, int64_t vector, const Weights<R>& weights,
                     int64_t stride, float* acc) {
  __m512i sum[R][kRowSlots];
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) sum[r][s] = _mm512_setzero_si512();
  }
  for (int64_t octet = 0; octet < 8; ++octet) {
    const int64_t row = vector * 8 + octet;
    pass.ahead.step<8, 0>(row);
    __m512i codes[kRowSlots];
    load_row<8, 0>(pass.codes, row, codes);
    KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
        const auto weight = (__m512i)broadcast_pair(weights.scaled[r] + 8 * octet + 2 * s);
        sum[r][s] = _mm512_dpwssd_epi32(sum[r][s], codes[s], weight);
      }
    }
  }
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    const __m512i all = _mm512_add_epi32(_mm512_add_epi32(sum[r][0], sum[r][1]),
                                         _mm512_add_epi32(sum[r][2], sum[r][3]));
    const __m512 before =
        _mm512_add_ps(_mm512_loadu_ps(acc + r * stride), _mm512_set1_ps(weights.zero[r]));
    const __m512 step = _mm512_set1_ps(weights.integer_step[r]);
    _mm512_storeu_ps(acc + r * stride, _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), step, before));
  }
}

template <int R>
void add_bytes(const ValuePass& pass, const Weights<R>& weights, const Sums& to) {
  for (int64_t vector = 0; vector < to.num_vectors; ++vector) {
    add_byte_vector<R>(pass, vector, weights, to.stride, to.acc + 16 * vector);
  }
}

}  // namespace
}  // namespace kvquant::avx512bf16
