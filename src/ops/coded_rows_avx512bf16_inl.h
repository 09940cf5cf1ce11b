// Rows of codes (code_planes.h) in registers. Included by the AVX-512 BF16 kernels alone.
#pragma once

#include "ops/attend_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

template <int kShift>
__m512i shift_words(__m512i x) {
  if constexpr (kShift > 0) return _mm512_srli_epi16(x, kShift);
  return x;
}

// Keeps a loaded register a register: the compilers would rather load it again for each use, and a
// row of codes has more loads than the CPU takes in the time of its dot products.
inline __m512i load_once(const uint8_t* p) {
  __m512i x = _mm512_loadu_si512(p);
  asm("" : "+v"(x));
  return x;
}

// (a & mask) | (b & ~mask)
inline __m512i select(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(a, b, mask, 0xE4);
}

// The pairs of codes of the four slots of a row with row % 4 == kPhase, a pair in the two halves of
// each 32-bit lane; what is above the code's bits is to be ignored, but for 8 bits it is zero.
template <int kBits, int kPhase>
void load_row(const uint8_t* codes, int64_t row, __m512i (&slots)[kRowSlots]) {
  if constexpr (kBits == 8) {
    const __m512i first = load_once(codes + row * 128);
    const __m512i second = load_once(codes + row * 128 + 64);
    const __m512i low = _mm512_set1_epi16(255);
    slots[0] = _mm512_and_si512(first, low);
    slots[1] = _mm512_srli_epi16(first, 8);
    slots[2] = _mm512_and_si512(second, low);
    slots[3] = _mm512_srli_epi16(second, 8);
  } else if constexpr (kBits == 4) {
    const __m512i x = load_once(codes + row * 64);
    slots[0] = x;
    slots[1] = shift_words<4>(x);
    slots[2] = shift_words<8>(x);
    slots[3] = shift_words<12>(x);
  } else if constexpr (kBits == 2) {
    const __m512i x = load_once(codes + row / 2 * 64);
    constexpr int kFirst = 8 * (kPhase % 2);
    slots[0] = shift_words<kFirst>(x);
    slots[1] = shift_words<kFirst + 2>(x);
    slots[2] = shift_words<kFirst + 4>(x);
    slots[3] = shift_words<kFirst + 6>(x);
  } else if constexpr (kPhase < 3) {
    const __m512i x = load_once(codes + row / 4 * 192 + kPhase * 64);
    slots[0] = x;
    slots[1] = shift_words<3>(x);
    slots[2] = shift_words<6>(x);
    slots[3] = shift_words<9>(x);
  } else {
    const uint8_t* group = codes + row / 4 * 192;
    const __m512i x = load_once(group), y = load_once(group + 64), z = load_once(group + 128);
    slots[0] = shift_words<12>(x);
    slots[1] = shift_words<12>(y);
    slots[2] = shift_words<12>(z);
    const __m512i low = select(_mm512_set1_epi16(1), shift_words<15>(x), shift_words<14>(y));
    slots[3] = select(_mm512_set1_epi16(3), low, shift_words<13>(z));
  }
}

// The 16 lanes of a and of b as bf16 pairs (a, b).
inline __m512i pack_pairs(__m512 a, __m512 b) {
  alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both);
}

inline __m512 low_floats(__m512i codes) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(0xFFFF)));
}
inline __m512 high_floats(__m512i codes) {
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(codes, 16));
}

inline float half_to_float(Half x) { return _cvtsh_ss(__builtin_bit_cast(uint16_t, x)); }

inline __m512 load_halves(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline float round_to_bf16(float x) {
  const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32((__m128i)rounded), 16)));
}

inline __mmask16 lanes_below(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFF : count <= 0 ? 0 : (1u << count) - 1);
}

// Calls fn(entries, count) for stretches of the outliers of one side of a tile, each in one page.
template <class Fn>
inline void for_each_stretch(const CodedPart& part, Fn&& fn) {
  int64_t entry = part.first_outlier;
  const int64_t end = entry + part.num_outliers;
  while (entry < end) {
    const OutlierEntry* entries = part.pages[entry / kOutliersPerPage]->entries;
    const int64_t first = entry % kOutliersPerPage;
    const int64_t left = end - entry, fits = kOutliersPerPage - first;
    const int64_t count = left < fits ? left : fits;
    fn(entries + first, count);
    entry += count;
  }
}

// Calls fn(token, channel, value) for the outliers of one side of a tile.
template <class Fn>
inline void for_each_outlier(const CodedPart& part, Fn&& fn) {
  for_each_stretch(part, [&](const OutlierEntry* entries, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t place = entries[i].place;
      fn(place % kTileTokens, place / kTileTokens, half_to_float(entries[i].value));
    }
  });
}

}  // namespace
}  // namespace kvquant::avx512bf16
