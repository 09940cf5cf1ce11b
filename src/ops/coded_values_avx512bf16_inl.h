// Weighted sums of coded values. Included by the AVX-512 BF16 kernels of attention alone.
#pragma once

#include "formats/code_bands_inl.h"
#include "ops/coded_bytes_avx512bf16_inl.h"
#include "ops/coded_pass_avx512bf16_inl.h"
#include "ops/coded_weights_avx512bf16_inl.h"
#include "ops/outlier_list_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Levels of one slot of a row as bf16 pairs of tokens.
inline __m512bh value_pairs(__m512i table, __m512i codes) {
  return (__m512bh)_mm512_permutexvar_epi16(codes, table);
}

// A single row has too few chains to hide the latency of a dot product: two sums of each then.
constexpr int num_value_sums(int num_rows) { return num_rows == 1 ? 2 : 1; }

template <int kBits, int kPhase, int R, int V>
__attribute__((always_inline)) inline void add_octet(const ValuePass& pass, int64_t first_vector,
                                                     int64_t octet, const Weights<R>& weights,
                                                     __m512 (&sum)[R][V][num_value_sums(R)]) {
  KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
    const int64_t row = (first_vector + v) * 8 + octet;
    pass.ahead.step<kBits, kPhase>(row);
    __m512i codes[kRowSlots];
    load_row<kBits, kPhase>(pass.codes, row, codes);
    KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
      const __m512bh x = value_pairs(pass.table, codes[s]);
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
        const __m512bh weight = broadcast_pair(weights.scaled[r] + 8 * octet + 2 * s);
        __m512& to = sum[r][v][s % num_value_sums(R)];
        to = _mm512_dpbf16_ps(to, x, weight);
      }
    }
  }
}

// acc [R][16 V] of rows of padded_dim += weights times values, for 16 V channels.
template <int kBits, int R, int V>
void add_value_vectors(const ValuePass& pass, int64_t first_vector, const Weights<R>& weights,
                       int64_t stride, float* acc) {
  constexpr int kSums = num_value_sums(R);
  __m512 sum[R][V][kSums];
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
      sum[r][v][0] = _mm512_add_ps(_mm512_loadu_ps(acc + r * stride + 16 * v),
                                   _mm512_set1_ps(weights.zero[r]));
      if constexpr (kSums == 2) sum[r][v][1] = _mm512_setzero_ps();
    }
  }
  for (int64_t octet = 0; octet < 8; octet += 4) {
    add_octet<kBits, 0, R, V>(pass, first_vector, octet, weights, sum);
    add_octet<kBits, 1, R, V>(pass, first_vector, octet + 1, weights, sum);
    add_octet<kBits, 2, R, V>(pass, first_vector, octet + 2, weights, sum);
    add_octet<kBits, 3, R, V>(pass, first_vector, octet + 3, weights, sum);
  }
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
      const __m512 all =
          kSums == 2 ? _mm512_add_ps(sum[r][v][0], sum[r][v][kSums - 1]) : sum[r][v][0];
      _mm512_storeu_ps(acc + r * stride + 16 * v, all);
    }
  }
}

template <int kBits, int R, int V>
void add_values(const ValuePass& pass, int64_t first_vector, const Weights<R>& weights,
                const Sums& to) {
  for (; first_vector + V <= to.num_vectors; first_vector += V) {
    add_value_vectors<kBits, R, V>(pass, first_vector, weights, to.stride,
                                   to.acc + 16 * first_vector);
  }
  if constexpr (V > 1) add_values<kBits, R, V / 2>(pass, first_vector, weights, to);
}

// Adds what outliers of values change in the sums.
template <int R>
__attribute__((noinline)) void correct_sums(const CodedPart& values, const Weights<R>& weights,
                                            int64_t dim, float* acc) {
  alignas(64) uint32_t channels[kOutliersPerPage];
  alignas(64) float changes[R][kOutliersPerPage];
  for_each_stretch(values, [&](const OutlierEntry* entries, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
      const OutlierLanes x = load_outliers(entries + i, count - i);
      _mm512_store_si512(channels + i, x.channel);
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
        const __m512 plain = look_up(weights.plain[r], kTileTokens, x.token);
        const __m512 dropped = look_up(weights.dropped[r], kTileTokens, x.token);
        _mm512_store_ps(changes[r] + i, _mm512_fmsub_ps(plain, x.value, dropped));
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) acc[r * dim + channels[i]] += changes[r][i];
    }
  });
}

template <int R>
void add(const AttendBlock& block, const ValuePass& pass, int bits, const Weights<R>& weights,
         float* acc) {
  const Sums to{acc, block.padded_dim, (block.value_dim + 15) / 16};
  switch (bits) {
    case 2: return add_values<2, R, 4>(pass, 0, weights, to);
    case 3: return add_values<3, R, 4>(pass, 0, weights, to);
    case 4: return add_values<4, R, 4>(pass, 0, weights, to);
    default: return add_bytes<R>(pass, weights, to);
  }
}

// Asks for the codes of a banded tile while those of another are widened.
inline void prefetch_codes(const uint8_t* codes, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(codes + i, 0, 2);
}

// acc += the weighted values of a tile; `ahead` are the codes to ask for.
template <int R>
void add_tile(const AttendBlock& block, const CodedPart& part, const uint16_t* value_table,
              const uint8_t* ahead, const Weights<R>& weights, float* acc) {
  const __m512i table = _mm512_load_si512(value_table);
  if (part.bands == nullptr) {
    add<R>(block, ValuePass{part.codes, table, {ahead}}, part.codebook->bits, weights, acc);
  } else {
    alignas(64) uint8_t wide[code_tile_bytes(kByteCodeBits, kMaxNuqHeadDim)];
    prefetch_codes(ahead, part.num_bytes);
    widen_codes(part.codes, *part.bands, wide);
    add<R>(block, ValuePass{wide, table, {wide}}, kByteCodeBits, weights, acc);
  }
  if (part.num_outliers > 0) correct_sums(part, weights, block.padded_dim, acc);
}

}  // namespace
}  // namespace kvquant::avx512bf16
