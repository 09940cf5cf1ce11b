// Codes of CodeGroup in registers. Included by the AVX-512 BF16 kernels of linear alone.
#pragma once

#include <immintrin.h>

#include "ops/linear_panel.h"

namespace kvquant::avx512bf16 {
namespace {

// What a plane has for the inputs 4 quad ... 4 quad + 3 of 16 outputs from `column` on, a byte
// each, its lowest bit moved to bit `to` of the byte. Other bits are arbitrary.
template <int kBits>
__m512i load_plane(const CodePlane<kBits>& plane, int quad, int column, int to) {
  const int input = 4 * quad;
  const __m512i bytes = _mm512_load_si512(plane.rows[plane.row(input)][column]);
  const int left = to - plane.shift(input);
  if (left == 0) return bytes;
  return left > 0 ? _mm512_slli_epi16(bytes, static_cast<unsigned>(left))
                  : _mm512_srli_epi16(bytes, static_cast<unsigned>(-left));
}

// Codes of the inputs 4 quad ... 4 quad + 3 of 16 outputs from `column` on, a byte each.
template <int kBits, int kParts>
__m512i load_quad(const CodeGroup<kBits, kParts>& group, int quad, int column) {
  const __m512i low = load_plane(group.low, quad, column, 0);
  if constexpr (kBits == 8) return low;
  if constexpr (kBits == 4) return _mm512_and_si512(low, _mm512_set1_epi8(15));
  if constexpr (kBits == 5 || kBits == 6) {
    // The low nibbles of one, all other bits of the other, without those above kBits.
    constexpr int kSelect = 0xCA;
    const __m512i high = load_plane(group.high, quad, column, 4);
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), low, high, kSelect);
    return _mm512_and_si512(both, _mm512_set1_epi8((1 << kBits) - 1));
  }
}

}  // namespace
}  // namespace kvquant::avx512bf16
