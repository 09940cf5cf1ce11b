// From scores of a group of coded tiles to the weights of their values. Included by the AVX-512
// BF16 kernels alone.
#pragma once

#include "ops/attend_coded_avx512bf16.h"
#include "ops/coded_rows_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Weights of R rows and a tile of values.
template <int R>
struct Weights {
  // Times the tokens' scales: bf16, or for 8 bits 16-bit integers of which 127.5 times integer_step
  // is a unit.
  alignas(64) uint16_t scaled[R][kTileTokens];
  alignas(64) float plain[R][kTileTokens];    // for outliers
  alignas(64) float dropped[R][kTileTokens];  // what the dense codes add under an outlier
  float integer_step[R];
  float zero[R];  // of all channels: sum of weights times zero points
};

// Weights rounded to integers, relative to the largest, which are stored; returns what they are.
inline float round_to_integers(__m512 (&scaled)[kTileVectors], uint16_t* to) {
  const float largest = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(scaled[0], scaled[1]), _mm512_max_ps(scaled[2], scaled[3])));
  constexpr float kLargest = 32766;
  const float step = largest / kLargest;
  const __m512 unit = _mm512_set1_ps(largest > 0 ? kLargest / largest : 0);
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(scaled[v], unit));
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * v), _mm512_cvtepi32_epi16(integers));
    scaled[v] = _mm512_mul_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(step));
  }
  return step;
}

// What the codes' weights are as rounded to bf16.
inline void read_rounded(const uint16_t* weights, __m512 (&scaled)[kTileVectors]) {
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    const __m512i words = _mm512_cvtepu16_epi32(
        _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 16 * v)));
    scaled[v] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
}

inline __m512 sum_of(const __m512 (&x)[kTileVectors]) {
  return _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
}

// Weights of one row and tile from p [64].
template <int R>
void weigh(const CodedPart& values, const __m512 (&p)[kTileVectors], int r, Weights<R>& weights) {
  const bool has_bytes = values.codebook->bits == 8;
  __m512 scaled[kTileVectors], of_zero[kTileVectors];
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    of_zero[v] = _mm512_mul_ps(p[v], load_halves(values.zeros + 16 * v));
    scaled[v] = _mm512_mul_ps(p[v], load_halves(values.scales + 16 * v));
  }
  __m512 zero = sum_of(of_zero);
  if (has_bytes) {  // code 0 is -1, a code more 1 / 127.5
    weights.integer_step[r] = round_to_integers(scaled, weights.scaled[r]) / 127.5f;
    zero = _mm512_sub_ps(zero, sum_of(scaled));
  } else {
    store_weights(scaled, weights.scaled[r]);
  }
  weights.zero[r] = _mm512_reduce_add_ps(zero);
  if (values.num_outliers == 0) return;
  if (!has_bytes) read_rounded(weights.scaled[r], scaled);
  const __m512 base = _mm512_set1_ps(has_bytes ? -1.0f : round_to_bf16(values.codebook->levels[0]));
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    _mm512_store_ps(weights.plain[r] + 16 * v, p[v]);
    _mm512_store_ps(weights.dropped[r] + 16 * v, _mm512_fmadd_ps(scaled[v], base, of_zero[v]));
  }
}

// Some tiles, and what R rows make of them.
template <int R>
struct Group {
  const TileWork* tiles;
  int64_t num_tiles;
  TokenRange seen[kGroupTiles][R];
  alignas(64) float scores[kGroupTiles][R * kTileTokens];
  Weights<R> weights[kGroupTiles];
};

// Scores of row r plus bias in units of log2, -infinity for tokens not seen; returns the largest,
// lane by lane.
template <int R>
__m512 mask_scores(const AttendBlock& block, float row_bias, int r, Group<R>& group) {
  const __m512 bias = _mm512_set1_ps(row_bias);
  const __m512 none = _mm512_set1_ps(-__builtin_inff()), scale = _mm512_set1_ps(block.log2_scale);
  __m512 largest = none;
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    const TokenRange seen = group.seen[i][r];
    const bool sees_none = seen.begin >= seen.end;
    float* scores = group.scores[i] + r * kTileTokens;
    KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      const __mmask16 mask = sees_none ? 0 : token_mask(seen, v);
      const __m512 all = _mm512_fmadd_ps(_mm512_load_ps(scores + 16 * v), scale, bias);
      const __m512 s = _mm512_mask_mov_ps(none, mask, all);
      _mm512_store_ps(scores + 16 * v, s);
      largest = _mm512_max_ps(largest, s);
    }
  }
  return largest;
}

// Scores of one row become weights relative to its running max.
template <int R>
void weigh_row(const AttendBlock& block, int64_t row, int r, Group<R>& group) {
  raise_max(block, row, mask_scores(block, block.workspace.biases[row], r, group));
  const float largest = block.states[row].max;
  float* sums = block.workspace.sums + row * 16;
  // A row that has seen nothing yet has only scores of -infinity: any number serves as its max.
  const __m512 max = _mm512_set1_ps(largest == -__builtin_inff() ? 0 : largest);
  __m512 sum = _mm512_loadu_ps(sums);
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    __m512 p[kTileVectors];
    KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      const __m512 s = _mm512_load_ps(group.scores[i] + r * kTileTokens + 16 * v);
      p[v] = exp2_nonpositive(_mm512_sub_ps(s, max));
    }
    sum = _mm512_add_ps(sum, _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3])));
    weigh(group.tiles[i].coded.values, p, r, group.weights[i]);
  }
  _mm512_storeu_ps(sums, sum);
}

}  // namespace
}  // namespace kvquant::avx512bf16
