// Outliers of a coded tile, taken apart 16 at a time: for keys, where in the tables that correct
// scores each one has its numbers. Vectors do all but the sums themselves, which lie anywhere.
// Included by the AVX-512 BF16 kernels alone.
#pragma once

#include "ops/attend_coded_avx512bf16.h"
#include "ops/coded_rows_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Outliers of keys in one page, padded to a multiple of 16 by ones that change nothing. All are
// taken apart before the first is used: a number read right after the vector it is part of was
// stored has to wait for it.
struct KeyOutliers {
  int64_t size = 0;  // without padding
  alignas(64) uint32_t token[kOutliersPerPage];
  alignas(64) uint32_t turn[kOutliersPerPage];   // index into lane_cos_sin
  alignas(64) uint32_t query[kOutliersPerPage];  // index into CodedState::turned
  alignas(64) float change[kOutliersPerPage];    // of the dense key
};

struct OutlierLanes {
  __m512i token, channel;
  __m512 value;  // 0 beyond the last
  __mmask16 used;
};

inline OutlierLanes load_outliers(const OutlierEntry* entries, int64_t count) {
  const __mmask16 used = lanes_below(count);
  const __m512i x = _mm512_maskz_loadu_epi32(used, entries);
  return {_mm512_and_si512(x, _mm512_set1_epi32(kTileTokens - 1)),
          _mm512_srli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(0xFFFF)), 6),
          _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16))), used};
}

// table[index], lane by lane, of a table that is readable up to the next multiple of 32.
inline __m512 look_up(const float* table, int64_t size, __m512i index) {
  const __m512i part = _mm512_srli_epi32(index, 5);
  __m512 result = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 32) {
    const __m512 both =
        _mm512_permutex2var_ps(_mm512_load_ps(table + i), index, _mm512_load_ps(table + i + 16));
    const __m512i here = _mm512_set1_epi32(static_cast<int>(i / 32));
    result = _mm512_mask_mov_ps(result, _mm512_cmpeq_epi32_mask(part, here), both);
  }
  return result;
}

inline void take_apart(const CodedState& state, int64_t head_dim, const OutlierEntry* entries,
                       int64_t count, KeyOutliers& list) {
  static_assert(kTileTokens == 64 && kRowSlots == 4);
  const __m512i half = _mm512_set1_epi32(static_cast<int>(head_dim / 2));
  const __m512i slot_queries = _mm512_set1_epi32(static_cast<int>(3 * (head_dim / 2)));
  list.size = count;
  for (int64_t i = 0; i < count; i += 16) {
    const OutlierLanes x = load_outliers(entries + i, count - i);
    const __m512i row = _mm512_min_epu32(x.channel, _mm512_sub_epi32(x.channel, half));
    const __m512i lane = _mm512_and_si512(x.token, _mm512_set1_epi32(15));
    const __m512i slot = _mm512_srli_epi32(x.token, 4);
    const __m512 base = look_up(state.key_bases, head_dim, x.channel);
    _mm512_store_si512(list.token + i, x.token);
    _mm512_store_si512(list.turn + i, _mm512_add_epi32(_mm512_slli_epi32(row, 5), lane));
    _mm512_store_si512(list.query + i,
                       _mm512_add_epi32(_mm512_mullo_epi32(slot, slot_queries), x.channel));
    _mm512_store_ps(list.change + i, _mm512_maskz_sub_ps(x.used, x.value, base));
  }
}

}  // namespace
}  // namespace kvquant::avx512bf16
