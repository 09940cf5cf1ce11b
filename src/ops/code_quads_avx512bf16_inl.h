// Codes of CodeGroup in registers. Included by the AVX-512 BF16 kernels of linear alone.
#pragma once

#include <immintrin.h>

#include "ops/linear_panel.h"

namespace kvquant::avx512bf16 {
namespace {

// Codes of the inputs 4 quad ... 4 quad + 3 of 16 outputs from `column` on, a byte each.
template <int kBits, int kParts>
__m512i load_quad(const CodeGroup<kBits, kParts>& group, int quad, int column) {
  if constexpr (kBits == 8) return _mm512_load_si512(group.codes[quad][column]);
  const __m512i both = _mm512_load_si512(group.codes[quad / 2][column]);
  return _mm512_and_si512(quad % 2 == 0 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
}

}  // namespace
}  // namespace kvquant::avx512bf16
