// Keys are rotated row by row, by the angles as the RoPE table has them, rounded, and then 16 rows
// of 16 pairs of channels at a time become columns. Only tokens in use cost anything.
#include "ops/attend_rows_avx512bf16.h"

#include "ops/coded_rows_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

constexpr int64_t kGroupRows = 16;                // tokens in a register
constexpr int64_t kStride = kMaxNuqHeadDim + 32;  // bf16 numbers, for whole registers

inline __m512 load_row_part(__mmask16 mask, const Half* p) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

inline void store_bf16(uint16_t* to, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

// One key, rotated and rounded.
void rotate_row(const Half* row, const float* cos, const float* sin, int64_t half, uint16_t* to) {
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const __m512 a = load_row_part(mask, row + c), b = load_row_part(mask, row + half + c);
    const __m512 x = _mm512_maskz_loadu_ps(mask, cos + c);
    const __m512 y = _mm512_maskz_loadu_ps(mask, sin + c);
    store_bf16(to + c, mask, _mm512_fmsub_ps(a, x, _mm512_mul_ps(b, y)));
    store_bf16(to + half + c, mask, _mm512_fmadd_ps(b, x, _mm512_mul_ps(a, y)));
  }
}

// 16 registers of 16 lanes: rows become columns.
void transpose(__m512i (&rows)[16]) {
  __m512i x[16];
  KVQUANT_UNROLL for (int i = 0; i < 16; i += 2) {
    x[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    x[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m512i y[16];  // y[4 g + k]: in each quarter q columns 4 q + k of rows 4 g to 4 g + 3
  KVQUANT_UNROLL for (int i = 0; i < 16; i += 4) {
    y[i] = _mm512_unpacklo_epi64(x[i], x[i + 2]);
    y[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 2]);
    y[i + 2] = _mm512_unpacklo_epi64(x[i + 1], x[i + 3]);
    y[i + 3] = _mm512_unpackhi_epi64(x[i + 1], x[i + 3]);
  }
  constexpr int kEven = 0x88, kOdd = 0xDD;  // of the quarters of both registers
  KVQUANT_UNROLL for (int k = 0; k < 4; ++k) {
    const __m512i even_low = _mm512_shuffle_i32x4(y[k], y[4 + k], kEven);
    const __m512i even_high = _mm512_shuffle_i32x4(y[8 + k], y[12 + k], kEven);
    const __m512i odd_low = _mm512_shuffle_i32x4(y[k], y[4 + k], kOdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(y[8 + k], y[12 + k], kOdd);
    rows[k] = _mm512_shuffle_i32x4(even_low, even_high, kEven);
    rows[4 + k] = _mm512_shuffle_i32x4(odd_low, odd_high, kEven);
    rows[8 + k] = _mm512_shuffle_i32x4(even_low, even_high, kOdd);
    rows[12 + k] = _mm512_shuffle_i32x4(odd_low, odd_high, kOdd);
  }
}

// Up to 16 rotated keys, [count][kStride], to tokens 0 to 15 of a tile. What is behind their last
// channel is read, but not used.
void write_columns(const uint16_t* keys, int64_t count, int64_t num_pairs, uint16_t* tile) {
  for (int64_t first = 0; first < num_pairs; first += 16) {
    __m512i x[16];
    KVQUANT_UNROLL for (int t = 0; t < 16; ++t) {
      x[t] =
          t < count ? _mm512_loadu_si512(keys + t * kStride + 2 * first) : _mm512_setzero_si512();
    }
    transpose(x);
    uint16_t* to = tile + first * 2 * kTileTokens;
    const int64_t left = num_pairs - first;
    if (left >= 16) {
      KVQUANT_UNROLL for (int p = 0; p < 16; ++p)
          _mm512_storeu_si512(to + p * 2 * kTileTokens, x[p]);
    } else {
      KVQUANT_UNROLL for (int p = 0; p < 16; ++p) {
        if (p < left) _mm512_storeu_si512(to + p * 2 * kTileTokens, x[p]);
      }
    }
  }
}

void write_keys(const AttendBlock& block, const TileWork& tile, uint16_t* keys) {
  const int64_t half = block.head_dim / 2;
  const auto* rows = static_cast<const Half*>(tile.keys);
  alignas(64) uint16_t rotated[kGroupRows * kStride];
  for (int64_t first = 0; first < tile.num_tokens; first += kGroupRows) {
    const int64_t left = tile.num_tokens - first, count = left < kGroupRows ? left : kGroupRows;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t token = first + t;
      rotate_row(rows + token * tile.rows.stride, tile.rows.cos + token * half,
                 tile.rows.sin + token * half, half, rotated + t * kStride);
    }
    write_columns(rotated, count, half, keys + 2 * first);
  }
}

void write_values(const AttendBlock& block, const TileWork& tile, uint16_t* values) {
  const auto* rows = static_cast<const Half*>(tile.values);
  for (int64_t t = 0; t < tile.num_tokens; t += 2) {
    const Half* row = rows + t * tile.rows.stride;
    const bool is_pair = t + 1 < tile.num_tokens;
    for (int64_t c = 0; c < block.padded_dim; c += 16) {
      const __mmask16 mask = lanes_below(block.head_dim - c);
      const __m512 first = load_row_part(mask, row + c);
      const __m512 second =
          is_pair ? load_row_part(mask, row + tile.rows.stride + c) : _mm512_setzero_ps();
      _mm512_storeu_si512(values + t * block.padded_dim + 2 * c, pack_pairs(first, second));
    }
  }
}

}  // namespace

void rows_to_bf16(const AttendBlock& block, const TileWork& tile, uint16_t* keys,
                  uint16_t* values) {
  write_keys(block, tile, keys);
  write_values(block, tile, values);
}

}  // namespace kvquant::avx512bf16
