// What the files of the AVX-512 BF16 kernel of attention share. Included by them alone: everything
// is compiled for that instruction set.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// False alarm of GCC 12 about the "undefined" operands of its own intrinsics (GCC PR 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "ops/attend_kernels.h"

#if defined(__clang__)
#define KVQUANT_UNROLL _Pragma("unroll")
#else
#define KVQUANT_UNROLL _Pragma("GCC unroll 32")
#endif

namespace kvquant::avx512bf16 {
namespace {

inline constexpr int kTileVectors = 4;  // registers of 16 tokens in a tile

inline __m512bh broadcast_pair(const uint16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// exp2 for x <= 0, with a relative error below 3e-7; 0 for x <= -126.
inline __m512 exp2_nonpositive(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_GT_OQ);
  const __m512 shifter = _mm512_set1_ps(0x1.8p23f);  // its low mantissa bits become round(x)
  const __m512 shifted = _mm512_add_ps(x, shifter);
  const __m512 fraction = _mm512_sub_ps(x, _mm512_sub_ps(shifted, shifter));
  __m512 p = _mm512_set1_ps(1.326472717e-3f);  // minimax on [-1/2, 1/2] with exp2(0) = 1
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(9.671512669e-3f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(5.550733744e-2f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(2.402224208e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(6.931469776e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(normal, _mm512_castps_si512(p), exponent));
}

inline void scale_row(float* acc, int64_t size, __m512 factor) {
  for (int64_t c = 0; c < size; c += 16) {
    _mm512_storeu_ps(acc + c, _mm512_mul_ps(_mm512_loadu_ps(acc + c), factor));
  }
}

inline __mmask16 token_mask(TokenRange seen, int v) {
  const uint64_t upto_end = seen.end >= 64 ? ~uint64_t{0} : (uint64_t{1} << seen.end) - 1;
  const uint64_t upto_begin = (uint64_t{1} << seen.begin) - 1;  // begin < end <= 64
  return static_cast<__mmask16>((upto_end & ~upto_begin) >> (16 * v));
}

// Takes the largest of a row's next scores, lane by lane, into account: if the row's running max
// grows, what it has summed so far is rescaled.
inline void raise_max(const AttendBlock& block, int64_t row, __m512 largest) {
  SoftmaxState& state = block.states[row];
  if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(state.max), _CMP_GT_OQ) == 0) return;
  const float new_max = _mm512_reduce_max_ps(largest);
  const __m512 factor = exp2_nonpositive(_mm512_set1_ps(state.max - new_max));
  state.max = new_max;
  scale_row(block.acc + row * block.padded_dim, block.padded_dim, factor);
  scale_row(block.workspace.sums + row * 16, 16, factor);
}

inline void store_weights(const __m512 (&s)[kTileVectors], uint16_t* p) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(s[1], s[0]));
  _mm512_storeu_si512(p + 32, (__m512i)_mm512_cvtne2ps_pbh(s[3], s[2]));
}

// Turns the scores of one row into weights relative to its running max, as bf16.
inline void soften_row(const AttendBlock& block, int64_t row, TokenRange seen, float bias,
                       const float* scores, uint16_t* p) {
  if (seen.begin >= seen.end) {
    _mm512_storeu_si512(p, _mm512_setzero_si512());
    _mm512_storeu_si512(p + 32, _mm512_setzero_si512());
    return;
  }
  __m512 s[kTileVectors];
  const __m512 scale = _mm512_set1_ps(block.log2_scale);
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    s[v] = _mm512_fmadd_ps(_mm512_loadu_ps(scores + 16 * v), scale, _mm512_set1_ps(bias));
  }
  if (seen.begin > 0 || seen.end < kTileTokens) {
    const __m512 none = _mm512_set1_ps(-__builtin_inff());
    KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      s[v] = _mm512_mask_mov_ps(none, token_mask(seen, v), s[v]);
    }
  }
  raise_max(block, row, _mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3])));
  const __m512 max = _mm512_set1_ps(block.states[row].max);
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    s[v] = exp2_nonpositive(_mm512_sub_ps(s[v], max));
  }
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3]));
  float* sums = block.workspace.sums + row * 16;
  _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), sum));
  store_weights(s, p);
}

}  // namespace
}  // namespace kvquant::avx512bf16
