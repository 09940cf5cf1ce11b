// Codes of CodeGroup in registers. Included by the AVX-512 BF16 kernels of linear alone.
#pragma once

#include <immintrin.h>

#include <utility>

#include "ops/linear_panel.h"

namespace kvquant::avx512bf16 {
namespace {

// fn(std::integral_constant<int, i>()) for i from 0 to kCount - 1: numbers of quads must be
// constants, because shifts by constants are.
template <int kCount, class Fn>
void unroll(const Fn& fn) {
  [&fn]<int... i>(std::integer_sequence<int, i...>) { (fn(std::integral_constant<int, i>()), ...); }
  (std::make_integer_sequence<int, kCount>());
}

// What a plane has for the inputs 4 kQuad ... 4 kQuad + 3 of 16 outputs from `column` on, a byte
// each, its lowest bit moved to bit kTo of the byte. Other bits are arbitrary.
template <int kQuad, int kTo, int kBits, int64_t kInputs>
__m512i load_plane(const CodePlane<kBits, kInputs>& plane, int column) {
  const __m512i bytes = _mm512_load_si512(plane.rows[plane.row(4 * kQuad)][column]);
  constexpr int kLeft = kTo - CodePlane<kBits, kInputs>::shift(4 * kQuad);
  if constexpr (kLeft > 0) return _mm512_slli_epi16(bytes, kLeft);
  if constexpr (kLeft < 0) return _mm512_srli_epi16(bytes, -kLeft);
  return bytes;
}

// Codes of the inputs 4 kQuad ... 4 kQuad + 3 of 16 outputs from `column` on, a byte each.
template <int kQuad, int kBits, int64_t kInputs>
__m512i load_quad(const CodeGroup<kBits, kInputs>& group, int column) {
  const __m512i low = load_plane<kQuad, 0>(group.low, column);
  if constexpr (kBits == 8) return low;
  if constexpr (kBits == 4) return _mm512_and_si512(low, _mm512_set1_epi8(15));
  if constexpr (kBits == 5 || kBits == 6) {
    // The low nibbles of one, all other bits of the other, without those above kBits.
    constexpr int kSelect = 0xCA;
    const __m512i high = load_plane<kQuad, 4>(group.high, column);
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), low, high, kSelect);
    return _mm512_and_si512(both, _mm512_set1_epi8((1 << kBits) - 1));
  }
}

}  // namespace
}  // namespace kvquant::avx512bf16
