// What passes over the rows of codes of a tile share. Included by the AVX-512 BF16 kernels alone.
#pragma once

#include "ops/attend_coded_avx512bf16.h"
#include "ops/coded_rows_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Bytes of codes to ask for ahead at each row, so that the next tile is there in time.
struct CodeAhead {
  const uint8_t* codes;
  template <int kBits, int kPhase>
  __attribute__((always_inline)) void step(int64_t row) const {
    if constexpr (kBits == 8) __builtin_prefetch(codes + row * 128 + 64, 0, 2);
    if constexpr (kBits == 8) __builtin_prefetch(codes + row * 128, 0, 2);
    if constexpr (kBits == 4) __builtin_prefetch(codes + row * 64, 0, 2);
    if constexpr (kBits == 3 && kPhase < 3) {
      __builtin_prefetch(codes + row / 4 * 192 + kPhase * 64, 0, 2);
    }
    if constexpr (kBits == 2 && kPhase % 2 == 0) __builtin_prefetch(codes + row / 2 * 64, 0, 2);
  }
};

struct KeyPass {
  const CodedState* state;
  const uint8_t* codes;
  const float* lane_cos_sin;
  CodeAhead ahead;
};

// How keys of a row of codes are rotated within 16 tokens, see attend_coded_avx512bf16.cc.
enum class Turn { kFull, kBent, kStraight };

struct ValuePass {
  const uint8_t* codes;
  __m512i table;
  CodeAhead ahead;
};

// Where weighted values are added up: of each row `num_vectors` times 16 channels, rows `stride`
// apart.
struct Sums {
  float* acc;
  int64_t stride;
  int64_t num_vectors;
};

}  // namespace
}  // namespace kvquant::avx512bf16
