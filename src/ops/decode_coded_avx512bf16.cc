// A coded tile as bf16, keys rotated: what many rows of queries read.
#include "formats/code_bands_inl.h"
#include "ops/attend_coded_avx512bf16.h"
#include "ops/coded_rows_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

inline float bf16_to_float(uint16_t x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16);
}
inline uint16_t to_bf16(float x) {
  const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
  return static_cast<uint16_t>(_mm_extract_epi16((__m128i)rounded, 0));
}

// cos and sin of the middles of the four groups of 16 tokens, [4][half_padded] each.
void turn_middles(const CodedTile& tile, int64_t half, int64_t stride, float* cos, float* sin) {
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const auto load = [&](const float* p) { return _mm512_maskz_loadu_ps(mask, p + c); };
    const __m512 middle_cos = load(tile.middle_cos), middle_sin = load(tile.middle_sin);
    for (int slot = 0; slot < kRowSlots; ++slot) {  // at -24, -8, 8, 24 tokens
      const int near = slot == 0 || slot == 3 ? 1 : 0;
      const __m512 near_cos = load(tile.rope->near_cos[near]),
                   sine = load(tile.rope->near_sin[near]);
      const __m512 near_sin = slot < 2 ? _mm512_sub_ps(_mm512_setzero_ps(), sine) : sine;
      _mm512_storeu_ps(cos + slot * stride + c,
                       _mm512_fmsub_ps(middle_cos, near_cos, _mm512_mul_ps(middle_sin, near_sin)));
      _mm512_storeu_ps(sin + slot * stride + c,
                       _mm512_fmadd_ps(middle_sin, near_cos, _mm512_mul_ps(middle_cos, near_sin)));
    }
  }
}

struct KeyDecoder {
  const CodedState* state;
  int64_t half;  // of head_dim
  const uint8_t* codes;
  const float* lane_cos_sin;
  const float* cos;  // of middles
  const float* sin;
  uint16_t* out;
};

template <int kBits, int kPhase>
void decode_key_row(const KeyDecoder& decoder, int64_t row) {
  const CodedState& state = *decoder.state;
  __m512i codes[kRowSlots];
  load_row<kBits, kPhase>(decoder.codes, row, codes);
  const __m512 lane_cos = _mm512_loadu_ps(decoder.lane_cos_sin + 32 * row);
  const __m512 lane_sin = _mm512_loadu_ps(decoder.lane_cos_sin + 32 * row + 16);
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    __m512 a, b;
    if constexpr (kBits == 8) {
      const float *steps = state.key_steps + row, *bases = state.key_bases + row;
      a = _mm512_fmadd_ps(low_floats(codes[s]), _mm512_set1_ps(steps[0]), _mm512_set1_ps(bases[0]));
      b = _mm512_fmadd_ps(high_floats(codes[s]), _mm512_set1_ps(steps[decoder.half]),
                          _mm512_set1_ps(bases[decoder.half]));
    } else {
      a = _mm512_permutexvar_ps(codes[s], _mm512_load_ps(state.float_tables + 32 * row));
      b = _mm512_permutexvar_ps(_mm512_srli_epi32(codes[s], 16),
                                _mm512_load_ps(state.float_tables + 32 * row + 16));
    }
    const __m512 middle_cos = _mm512_set1_ps(decoder.cos[s * state.half_padded + row]);
    const __m512 middle_sin = _mm512_set1_ps(decoder.sin[s * state.half_padded + row]);
    const __m512 cos = _mm512_fmsub_ps(middle_cos, lane_cos, _mm512_mul_ps(middle_sin, lane_sin));
    const __m512 sin = _mm512_fmadd_ps(middle_sin, lane_cos, _mm512_mul_ps(middle_cos, lane_sin));
    const __m512i pairs = pack_pairs(_mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)),
                                     _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)));
    _mm512_store_si512(decoder.out + 2 * (row * kTileTokens + 16 * s), pairs);
  }
}

template <int kBits>
void decode_keys(const KeyDecoder& decoder, int64_t half) {
  for (int64_t row = 0; row < half; row += 4) {
    decode_key_row<kBits, 0>(decoder, row);
    decode_key_row<kBits, 1>(decoder, row + 1);
    decode_key_row<kBits, 2>(decoder, row + 2);
    decode_key_row<kBits, 3>(decoder, row + 3);
  }
}

// Rotated with its channel's partner, an outlier changes both.
void correct_keys(const CodedTile& tile, int64_t half, const KeyDecoder& decoder) {
  const CodedState& state = *decoder.state;
  for_each_outlier(tile.keys, [&](int64_t token, int64_t channel, float value) {
    const bool is_second = channel >= half;
    const int64_t row = is_second ? channel - half : channel, slot = token / 16;
    const bool is_byte = tile.keys.codebook->bits == 8;
    const float base =
        is_byte ? state.key_bases[channel] : state.float_tables[32 * row + (is_second ? 16 : 0)];
    const float change = value - base;
    const float middle_cos = decoder.cos[slot * state.half_padded + row];
    const float middle_sin = decoder.sin[slot * state.half_padded + row];
    const float lane_cos = decoder.lane_cos_sin[32 * row + token % 16];
    const float lane_sin = decoder.lane_cos_sin[32 * row + 16 + token % 16];
    const float cos = middle_cos * lane_cos - middle_sin * lane_sin;
    const float sin = middle_sin * lane_cos + middle_cos * lane_sin;
    uint16_t* pair = decoder.out + 2 * (row * kTileTokens + token);
    const float of_a = is_second ? -change * sin : change * cos;
    const float of_b = is_second ? change * cos : change * sin;
    pair[0] = to_bf16(bf16_to_float(pair[0]) + of_a);
    pair[1] = to_bf16(bf16_to_float(pair[1]) + of_b);
  });
}

struct ValueDecoder {
  const uint8_t* codes;
  __m512 levels;
  const float* scales;  // [64]
  const float* zeros;
  int64_t dim;
  uint16_t* out;
};

template <int kBits, int kPhase>
void decode_octet(const ValueDecoder& decoder, int64_t vector, int64_t octet) {
  __m512i codes[kRowSlots];
  load_row<kBits, kPhase>(decoder.codes, vector * 8 + octet, codes);
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    __m512 even, odd;
    if constexpr (kBits == 8) {
      const __m512 step = _mm512_set1_ps(1 / 127.5f), first = _mm512_set1_ps(-1);
      even = _mm512_fmadd_ps(low_floats(codes[s]), step, first);
      odd = _mm512_fmadd_ps(high_floats(codes[s]), step, first);
    } else {
      even = _mm512_permutexvar_ps(codes[s], decoder.levels);
      odd = _mm512_permutexvar_ps(_mm512_srli_epi32(codes[s], 16), decoder.levels);
    }
    const int64_t token = 8 * octet + 2 * s;
    const float* scale = decoder.scales + token;
    const float* zero = decoder.zeros + token;
    const __m512i pairs =
        pack_pairs(_mm512_fmadd_ps(even, _mm512_set1_ps(scale[0]), _mm512_set1_ps(zero[0])),
                   _mm512_fmadd_ps(odd, _mm512_set1_ps(scale[1]), _mm512_set1_ps(zero[1])));
    _mm512_store_si512(decoder.out + token * decoder.dim + 32 * vector, pairs);
  }
}

template <int kBits>
void decode_values(const ValueDecoder& decoder) {
  for (int64_t vector = 0; vector < decoder.dim / 16; ++vector) {
    for (int64_t octet = 0; octet < 8; octet += 4) {
      decode_octet<kBits, 0>(decoder, vector, octet);
      decode_octet<kBits, 1>(decoder, vector, octet + 1);
      decode_octet<kBits, 2>(decoder, vector, octet + 2);
      decode_octet<kBits, 3>(decoder, vector, octet + 3);
    }
  }
}

template <class Fn>
void for_bits(int bits, Fn&& fn) {
  switch (bits) {
    case 2: return fn.template operator()<2>();
    case 3: return fn.template operator()<3>();
    case 4: return fn.template operator()<4>();
    default: return fn.template operator()<8>();
  }
}

}  // namespace

void decode_values_to_bf16(const CodedPart& part, int64_t channels, uint16_t* values) {
  const int64_t dim = (channels + 15) / 16 * 16;
  alignas(64) float scales[kTileTokens], zeros[kTileTokens], levels[16];
  for (int64_t t = 0; t < kTileTokens; t += 16) {
    _mm512_store_ps(scales + t, load_halves(part.scales + t));
    _mm512_store_ps(zeros + t, load_halves(part.zeros + t));
  }
  const NuqCodebook& book = *part.codebook;
  for (int i = 0; i < 16; ++i) levels[i] = book.bits == 8 ? 0 : book.levels[i % book.num_levels];
  alignas(64) uint8_t wide[code_tile_bytes(kByteCodeBits, kMaxNuqHeadDim)];
  if (part.bands != nullptr) widen_codes(part.codes, *part.bands, wide);
  const uint8_t* codes = part.bands != nullptr ? wide : part.codes;
  const ValueDecoder decoder{codes, _mm512_load_ps(levels), scales, zeros, dim, values};
  for_bits(book.bits, [&]<int kBits>() { decode_values<kBits>(decoder); });
  for_each_outlier(part, [&](int64_t token, int64_t channel, float value) {
    values[token / 2 * 2 * dim + 2 * channel + token % 2] = to_bf16(value);
  });
}

void decode_to_bf16(const AttendBlock& block, const CodedState& state, const CodedTile& tile,
                    uint16_t* keys, uint16_t* values) {
  const int64_t half = block.head_dim / 2;
  constexpr int64_t kMostPairs = kMaxNuqHeadDim / 2;
  alignas(64) float cos[kRowSlots * kMostPairs], sin[kRowSlots * kMostPairs];
  turn_middles(tile, half, state.half_padded, cos, sin);
  const KeyDecoder key_decoder{&state, half, tile.keys.codes, tile.rope->lane_cos_sin, cos,
                               sin,    keys};
  for_bits(tile.keys.codebook->bits, [&]<int kBits>() { decode_keys<kBits>(key_decoder, half); });
  correct_keys(tile, half, key_decoder);
  decode_values_to_bf16(tile.values, block.value_dim, values);
}

}  // namespace kvquant::avx512bf16
