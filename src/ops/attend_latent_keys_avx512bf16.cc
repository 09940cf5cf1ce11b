#include "ops/attend_latent_keys_avx512bf16.h"

#include "ops/attend_avx512bf16_inl.h"
#include "ops/attend_coded_avx512bf16.h"

namespace kvquant::avx512bf16 {
namespace {

constexpr int64_t kTilePairs = kTileTokens / 2;

// A transposed matrix of 8 x 8 numbers of 64 bits.
void transpose(__m512i (&x)[8]) {
  __m512i pairs[8];  // columns 2i and 2i + 1 of rows 2k and 2k + 1, i = 0 to 3, at k and 4 + k
  KVQUANT_UNROLL for (int k = 0; k < 4; ++k) {
    pairs[k] = _mm512_unpacklo_epi64(x[2 * k], x[2 * k + 1]);
    pairs[4 + k] = _mm512_unpackhi_epi64(x[2 * k], x[2 * k + 1]);
  }
  KVQUANT_UNROLL for (int odd = 0; odd < 2; ++odd) {
    const __m512i* p = pairs + 4 * odd;
    const __m512i a = _mm512_shuffle_i64x2(p[0], p[1], 0x44);  // columns 0 and 2, or 1 and 3
    const __m512i b = _mm512_shuffle_i64x2(p[0], p[1], 0xEE);
    const __m512i c = _mm512_shuffle_i64x2(p[2], p[3], 0x44);
    const __m512i d = _mm512_shuffle_i64x2(p[2], p[3], 0xEE);
    x[odd] = _mm512_shuffle_i64x2(a, c, 0x88);
    x[2 + odd] = _mm512_shuffle_i64x2(a, c, 0xDD);
    x[4 + odd] = _mm512_shuffle_i64x2(b, d, 0x88);
    x[6 + odd] = _mm512_shuffle_i64x2(b, d, 0xDD);
  }
}

// 16 channels from c on of a row of token pairs, as pairs of bf16; zeros behind dim.
__m512i load_pairs_at(const TileWork& tile, int64_t row, int64_t dim, int64_t c) {
  const bool is_next = row >= kTilePairs;
  const void* values = is_next ? tile.next_values : tile.values;
  if (values == nullptr) return _mm512_setzero_si512();
  const int64_t first = ((is_next ? row - kTilePairs : row) * dim + c) * 2;
  const bool is_whole = dim - c >= 16;  // else 8 channels, 16 numbers
  if (tile.type == DenseType::kF32) {
    const float* from = static_cast<const float*>(values) + first;
    const __m512 low = _mm512_loadu_ps(from);
    const __m512 high = is_whole ? _mm512_loadu_ps(from + 16) : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }
  const auto* from = static_cast<const uint16_t*>(values) + first;
  const __mmask32 mask = is_whole ? 0xFFFFFFFF : 0xFFFF;
  const __m512i x = _mm512_maskz_loadu_epi16(mask, from);
  if (tile.type == DenseType::kBF16) return x;
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)),
                                      _mm512_cvtph_ps(_mm512_castsi512_si256(x)));
}

// Codes as keys of `width` channels, [width / 2][64][2]; scratch [64 * width rounded up to 16].
void latent_keys_to_bf16(const CodedPart& part, int64_t width, uint16_t* scratch, uint16_t* keys) {
  decode_values_to_bf16(part, width, scratch);
  const int64_t padded = (width + 15) / 16 * 16;
  // In 64 bits, channels 2i and 2i + 1 of two tokens: from token by token to channel by channel.
  const __m512i swap =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  for (int64_t c = 0; c < width; c += 16) {
    const int64_t num_rows = width - c >= 16 ? 8 : (width - c) / 2;
    for (int64_t pair = 0; pair < kTilePairs; pair += 8) {
      __m512i x[8];
      KVQUANT_UNROLL for (int i = 0; i < 8; ++i) {
        x[i] =
            _mm512_shuffle_epi8(_mm512_loadu_si512(scratch + ((pair + i) * padded + c) * 2), swap);
      }
      transpose(x);
      for (int64_t i = 0; i < num_rows; ++i) {
        _mm512_storeu_si512(keys + (c / 2 + i) * 2 * kTileTokens + 4 * pair, x[i]);
      }
    }
  }
}

// 64 tokens of tile.values and the tile behind it from value_offset on, padded with zeros.
void values_to_bf16(const TileWork& tile, int64_t dim, uint16_t* values) {
  const int64_t padded = (dim + 15) / 16 * 16, first = tile.value_offset / 2;
  const bool is_odd = tile.value_offset % 2 != 0;
  for (int64_t c = 0; c < dim; c += 16) {
    __m512i here = load_pairs_at(tile, first, dim, c);
    for (int64_t pair = 0; pair < kTilePairs; ++pair) {
      __m512i x = here;
      if (pair + 1 < kTilePairs || is_odd) here = load_pairs_at(tile, first + pair + 1, dim, c);
      // The second token of a pair and the first of the next.
      if (is_odd) x = _mm512_or_si512(_mm512_srli_epi32(x, 16), _mm512_slli_epi32(here, 16));
      _mm512_storeu_si512(values + (pair * padded + c) * 2, x);
    }
  }
}

void halves_to_bf16(const void* halves, int64_t size, uint16_t* to) {
  const auto* from = static_cast<const __m256i*>(halves);
  for (int64_t i = 0; i < size / 32; ++i) {
    const __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256(from + 2 * i));
    const __m512 high = _mm512_cvtph_ps(_mm256_loadu_si256(from + 2 * i + 1));
    _mm512_storeu_si512(to + 32 * i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

}  // namespace

Prefetcher ask_for_latent_tile(const AttendBlock& block, const TileWork& next, int64_t num_steps) {
  const auto bytes_of = [](const void* tile, const CodedPart& part, DenseType type, int64_t dim) {
    if (tile == nullptr) return part.num_bytes;
    return kTileTokens * dim * (type == DenseType::kF32 ? 4 : 2);
  };
  const bool has_values = next.values != nullptr, has_keys = next.keys != nullptr;
  Prefetcher ahead;
  const int64_t num_bytes = bytes_of(next.values, next.coded.values, next.type, block.value_dim);
  ahead.bytes = bytes_of(next.keys, next.coded.keys, DenseType::kF16, block.head_dim);
  ahead.line = static_cast<const char*>(has_values ? next.values : next.coded.values.codes);
  ahead.end = ahead.line + num_bytes;
  ahead.then = static_cast<const char*>(has_keys ? next.keys : next.coded.keys.codes);
  ahead.step_bytes = ((num_bytes + ahead.bytes) / num_steps + 63) / 64 * 64;
  return ahead;
}

LatentTile read_latent_tile(const AttendBlock& block, const TileWork& tile, bool in_place) {
  auto* keys = static_cast<uint16_t*>(block.workspace.keys);
  auto* values = static_cast<uint16_t*>(block.workspace.values);
  const bool has_values = tile.values != nullptr, has_keys = tile.keys != nullptr;
  LatentTile out{keys, values, in_place && has_keys,
                 in_place && has_values && tile.type == DenseType::kF16 && tile.value_offset == 0 &&
                     block.value_dim % 16 == 0};
  if (out.has_half_values) {
    out.values = static_cast<const uint16_t*>(tile.values);
  } else if (has_values) {
    values_to_bf16(tile, block.value_dim, values);
  } else {
    decode_values_to_bf16(tile.coded.values, block.value_dim, values);
  }
  if (out.has_half_keys) {
    out.keys = static_cast<const uint16_t*>(tile.keys);
  } else if (has_keys) {
    halves_to_bf16(tile.keys, kTileTokens * block.head_dim, keys);
  } else {
    auto* scratch = reinterpret_cast<uint16_t*>(block.workspace.planar);
    latent_keys_to_bf16(tile.coded.keys, block.head_dim, scratch, keys);
  }
  return out;
}

}  // namespace kvquant::avx512bf16
