// Scores of dense keys. Included by the AVX-512 BF16 kernels of attention alone.
#pragma once

#include "ops/attend_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// 32 elements of a tile as bf16.
template <DenseType kType>
__m512bh load_pairs(const uint16_t* p) {
  if constexpr (kType == DenseType::kBF16) return (__m512bh)_mm512_loadu_si512(p);
  const auto* halves = reinterpret_cast<const __m256i*>(p);
  return _mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm256_loadu_si256(halves + 1)),
                             _mm512_cvtph_ps(_mm256_loadu_si256(halves)));
}

// Few rows have too few chains to hide the latency of a dot product: two sums of each then.
constexpr int num_score_sums(int num_rows) { return num_rows <= 2 ? 2 : 1; }

// scores [R, 64] = q k^T for R rows and a tile.
template <DenseType kType, int R>
void score_rows(const uint16_t* keys, const uint16_t* q, int64_t q_stride, int64_t num_pairs,
                Prefetcher& ahead, float* scores) {
  constexpr int kSums = num_score_sums(R);
  __m512 acc[kSums][R][kTileVectors];
  KVQUANT_UNROLL for (int s = 0; s < kSums; ++s) {
    KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
      KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) acc[s][r][v] = _mm512_setzero_ps();
    }
  }
  for (int64_t pair = 0; pair < num_pairs; pair += kSums) {
    ahead.step();
    KVQUANT_UNROLL for (int s = 0; s < kSums; ++s) {
      __m512bh k[kTileVectors];
      KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
        k[v] = load_pairs<kType>(keys + ((pair + s) * kTileTokens + 16 * v) * 2);
      }
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
        const __m512bh x = broadcast_pair(q + r * q_stride + 2 * (pair + s));
        KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
          acc[s][r][v] = _mm512_dpbf16_ps(acc[s][r][v], k[v], x);
        }
      }
    }
  }
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      const __m512 sum =
          kSums == 1 ? acc[0][r][v] : _mm512_add_ps(acc[0][r][v], acc[kSums - 1][r][v]);
      _mm512_storeu_ps(scores + r * kTileTokens + 16 * v, sum);
    }
  }
}

}  // namespace
}  // namespace kvquant::avx512bf16
