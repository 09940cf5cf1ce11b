// The tables that coded tiles are read with, and queries turned to meet them.
#include "ops/attend_coded_avx512bf16.h"
#include "ops/coded_rows_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Angles x of at most X within 16 tokens. Up to the first, cos x is taken as 1 - X^2 / 4 and sin x
// as x: off by 5e-4 at most. Up to the second cos x is 1 - x^2 / 2 and sin x is (1 - X^2 / 8) x:
// off by 7e-4. A bf16 number is off by 4e-3.
constexpr float kStraightAngle = 1.0f / 22, kBentAngle = 0.26f;

template <class T>
T* take(std::byte*& memory, int64_t size) {
  auto* result = reinterpret_cast<T*>(memory);
  memory += (size * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  return result;
}

void place_state(const AttendBlock& block, CodedState& state) {
  const int64_t half = block.head_dim / 2, rows = kRegisterRows;
  state.half_padded = (half + 15) / 16 * 16;
  auto* memory = reinterpret_cast<std::byte*>(block.workspace.planar);
  state.key_tables = take<uint16_t>(memory, half * 32);
  state.float_tables = take<float>(memory, half * 32);
  state.key_bases = take<float>(memory, (2 * half + 31) / 32 * 32);
  state.key_steps = take<float>(memory, 2 * half);
  state.value_table = take<uint16_t>(memory, 32);
  for (auto& turns : state.turns) turns = take<uint32_t>(memory, half * 16);
  state.turned = take<float>(memory, rows * kRowSlots * 3 * half);
  for (auto* table : {&state.level, &state.slope, &state.bend}) {
    *table = take<float>(memory, state.half_padded);
  }
  for (auto* table : {&state.far_cos, &state.far_sin}) {
    *table = take<float>(memory, (kGroupTiles - 1) * state.half_padded);
  }
  for (auto* table : {&state.middle_cos, &state.middle_sin}) {
    *table = take<float>(memory, kGroupTiles * state.half_padded);
  }
  for (auto& pairs : state.pairs)
    pairs = take<uint32_t>(memory, rows * kRowSlots * state.half_padded);
  state.integer_step = take<float>(memory, kFusedRows);
  state.integer_unit = take<float>(memory, kFusedRows);
  for (auto& parts : state.zero_parts) {
    parts = take<int32_t>(memory, rows * kRowSlots * state.half_padded);
  }
  state.zero_sums = take<float>(memory, rows * kRowSlots * 3);
  state.byte_factors = take<float>(memory, 12 * state.half_padded);
}

// Keys of all codes; levels beyond the codebook's repeat, so that bits above a code do no harm.
void make_key_tables(const AttendBlock& block, const CodedPart& keys, CodedState& state) {
  const int64_t half = block.head_dim / 2;
  const NuqCodebook& book = *keys.codebook;
  alignas(64) float level_list[16];
  for (int i = 0; i < 16 && book.bits < 8; ++i) level_list[i] = book.levels[i % book.num_levels];
  const __m512 levels = _mm512_load_ps(level_list);
  for (int64_t channel = 0; channel < block.head_dim; ++channel) {
    const int64_t side = channel < half ? 0 : 1, c = channel - side * half;
    const float scale = half_to_float(keys.scales[channel]);
    const float zero = half_to_float(keys.zeros[channel]);
    if (book.bits == 8) {
      state.key_steps[channel] = scale / 127.5f;
      state.key_bases[channel] = zero - scale;
      continue;
    }
    const int64_t at = 32 * c + 16 * side;
    const __m512 all = _mm512_fmadd_ps(levels, _mm512_set1_ps(scale), _mm512_set1_ps(zero));
    const auto rounded = (__m256i)_mm512_cvtneps_pbh(all);
    _mm256_store_si256(reinterpret_cast<__m256i*>(state.key_tables + at), rounded);
    const int first = _mm_cvtsi128_si32(_mm256_castsi256_si128(rounded));
    state.key_bases[channel] = __builtin_bit_cast(float, first << 16);
    if (!has_few_rows(block, kFusedRows)) _mm512_store_ps(state.float_tables + at, all);
  }
}

// Rows of codes up to the last, rounded up to 4, whose largest angle within 16 tokens is above
// `angle`. Frequencies fall as a rule, but a file may hold any.
int64_t num_rows_above(const CodedTile& tile, int64_t half, float angle) {
  int64_t rows = half;
  while (rows > 0 && RopeTiles::kLaneMiddle * tile.rope->frequencies[rows - 1] <= angle) --rows;
  return (rows + 3) / 4 * 4;
}

void make_turns(const CodedTile& tile, int64_t half, CodedState& state) {
  for (int64_t c = 0; c < half; ++c) {
    const __m512 cos = _mm512_loadu_ps(tile.rope->lane_cos_sin + 32 * c);
    const __m512 sin = _mm512_loadu_ps(tile.rope->lane_cos_sin + 32 * c + 16);
    const __m512 minus_sin = _mm512_sub_ps(_mm512_setzero_ps(), sin);
    _mm512_storeu_si512(state.turns[0] + 16 * c, pack_pairs(cos, minus_sin));
    _mm512_storeu_si512(state.turns[1] + 16 * c, pack_pairs(sin, cos));
  }
}

void pack_queries_in_halves(const AttendBlock& block, uint16_t* to) {
  const int64_t half = block.head_dim / 2;
  for (int64_t row = 0; row < block.num_rows; ++row) {
    const float* q =
        block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
    for (int64_t c = 0; c < half; c += 16) {
      const __mmask16 mask = lanes_below(half - c);
      const __m512 a = _mm512_maskz_loadu_ps(mask, q + c);
      const __m512 b = _mm512_maskz_loadu_ps(mask, q + half + c);
      _mm512_mask_storeu_epi32(to + row * block.padded_dim + 2 * c, mask, pack_pairs(a, b));
    }
  }
}

// As find_biases does, with vectors: tasks are short, and each pays for it.
void make_biases(const AttendBlock& block, const CodedTile& tile) {
  float* biases = block.workspace.biases;
  __builtin_memset(biases, 0, static_cast<size_t>(block.num_rows) * sizeof(float));
  if (tile.logit_bias == 0) return;
  const int64_t half = block.head_dim / 2;
  alignas(64) float squares[kMaxNuqHeadDim / 2];
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const auto load = [&](const Half* p) {
      return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
    };
    const __m512 a = load(tile.keys.scales + c), b = load(tile.keys.scales + half + c);
    _mm512_store_ps(squares + c, _mm512_fmadd_ps(a, a, _mm512_mul_ps(b, b)));
  }
  const float unit = bias_unit(tile, block.log2_scale);
  for (int64_t row = 0; row < block.num_rows; ++row) {
    const float* q =
        block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < half; c += 16) {
      const __mmask16 mask = lanes_below(half - c);
      const __m512 a = _mm512_maskz_loadu_ps(mask, q + c);
      const __m512 b = _mm512_maskz_loadu_ps(mask, q + half + c);
      const __m512 square = _mm512_fmadd_ps(a, a, _mm512_mul_ps(b, b));
      sum = _mm512_fmadd_ps(square, _mm512_load_ps(squares + c), sum);
    }
    biases[row] = unit * _mm512_reduce_add_ps(sum);
  }
}

// Rotates a pair by minus the angle whose cos and sin these are.
struct Pair {
  __m512 a, b;
};
inline Pair turn_back(Pair x, __m512 cos, __m512 sin) {
  return {_mm512_fmadd_ps(x.a, cos, _mm512_mul_ps(x.b, sin)),
          _mm512_fmsub_ps(x.b, cos, _mm512_mul_ps(x.a, sin))};
}

struct Angle {
  __m512 cos, sin;
};
inline Angle operator+(Angle x, Angle y) {
  return {_mm512_fmsub_ps(x.cos, y.cos, _mm512_mul_ps(x.sin, y.sin)),
          _mm512_fmadd_ps(x.sin, y.cos, _mm512_mul_ps(x.cos, y.sin))};
}

// The largest integer that a query becomes: a sum of 256 products with codes fits 32 bits.
constexpr float kLargestInteger = 32766;

// Of each row, so that a and b times their channels' steps are at most kLargestInteger however they
// are rotated, and times keys of code 0 at most 2^30.
void make_integer_steps(const AttendBlock& block, CodedState& state) {
  const int64_t half = block.head_dim / 2;
  const __m512 base_share = _mm512_set1_ps(kLargestInteger / 0x1p29f);
  for (int64_t row = 0; row < block.num_rows; ++row) {
    const float* q =
        block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
    __m512 largest = _mm512_setzero_ps();
    for (int64_t c = 0; c < half; c += 16) {
      const __mmask16 mask = lanes_below(half - c);
      const auto load = [&](const float* p) { return _mm512_maskz_loadu_ps(mask, p + c); };
      const __m512 a = load(q), b = load(q + half);
      const __m512 length = _mm512_sqrt_ps(_mm512_fmadd_ps(a, a, _mm512_mul_ps(b, b)));
      const __m512 step = _mm512_max_ps(load(state.key_steps), load(state.key_steps + half));
      const __m512 base = _mm512_max_ps(_mm512_abs_ps(load(state.key_bases)),
                                        _mm512_abs_ps(load(state.key_bases + half)));
      const __m512 factor = _mm512_max_ps(step, _mm512_mul_ps(base, base_share));
      largest = _mm512_max_ps(largest, _mm512_mul_ps(length, factor));
    }
    const float bound = _mm512_reduce_max_ps(largest);
    state.integer_step[row] = bound / kLargestInteger;
    state.integer_unit[row] = bound > 0 ? kLargestInteger / bound : 0;
  }
}

// What single rows of queries are multiplied by, where angles within 16 tokens are small and where
// they are not, see score_one_row.
void make_slopes(const RopeTiles& rope, int64_t half, CodedState& state) {
  const __m512 one = _mm512_set1_ps(1);
  for (int64_t c = 0; c < half; c += 16) {
    const __m512 frequency = _mm512_maskz_loadu_ps(lanes_below(half - c), rope.frequencies + c);
    const __m512 angle = _mm512_mul_ps(frequency, _mm512_set1_ps(RopeTiles::kLaneMiddle));
    const __m512 square = _mm512_mul_ps(angle, angle);
    const __mmask16 turned = lanes_below(state.num_turned - c);
    const __mmask16 not_straight = lanes_below(state.num_turned + state.num_bent - c);
    const __m512 straight_level = _mm512_fnmadd_ps(square, _mm512_set1_ps(0.25f), one);
    const __m512 bent_slope =
        _mm512_mul_ps(frequency, _mm512_fnmadd_ps(square, _mm512_set1_ps(0.125f), one));
    const __m512 slope = _mm512_mask_mov_ps(frequency, not_straight, bent_slope);
    _mm512_store_ps(state.level + c, _mm512_mask_mov_ps(straight_level, not_straight, one));
    _mm512_store_ps(state.slope + c, _mm512_mask_mov_ps(slope, turned, one));
    _mm512_store_ps(state.bend + c,
                    _mm512_mul_ps(_mm512_mul_ps(frequency, frequency), _mm512_set1_ps(-0.5f)));
  }
}

// Steps of both channels and keys of code 0, as the three kinds of pairs multiply them. Tokens are
// counted in eighths, so that the integers are of one size.
void make_byte_factors(int64_t half, CodedState& state) {
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const auto load = [&](const float* p) { return _mm512_maskz_loadu_ps(mask, p + c); };
    const __m512 slope = _mm512_load_ps(state.slope + c);
    const __mmask16 small = _knot_mask16(lanes_below(state.num_turned - c));
    const __m512 kinds[3] = {
        _mm512_load_ps(state.level + c), _mm512_mask_mul_ps(slope, small, slope, _mm512_set1_ps(8)),
        _mm512_maskz_mul_ps(small, _mm512_load_ps(state.bend + c), _mm512_set1_ps(64))};
    const __m512 factors[4] = {load(state.key_steps), load(state.key_steps + half),
                               load(state.key_bases), load(state.key_bases + half)};
    for (int kind = 0; kind < 3; ++kind) {
      for (int i = 0; i < 4; ++i) {
        const __m512 minus = _mm512_set1_ps(kind == 1 && i % 2 == 1 ? -1.0f : 1.0f);
        _mm512_store_ps(state.byte_factors + (4 * kind + i) * state.half_padded + c,
                        _mm512_mul_ps(minus, _mm512_mul_ps(kinds[kind], factors[i])));
      }
    }
  }
}

// From a tile to those one, two and three after it: 64 tokens are twice 8 and 24.
void make_far_angles(const RopeTiles& rope, int64_t half, CodedState& state) {
  static_assert(kGroupTiles == 4 && kTileTokens == 64);
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const auto load = [&](const float* p) { return _mm512_maskz_loadu_ps(mask, p + c); };
    const Angle near = Angle{load(rope.near_cos[0]), load(rope.near_sin[0])} +
                       Angle{load(rope.near_cos[1]), load(rope.near_sin[1])};
    const Angle one = near + near, two = one + one, three = two + one;
    for (const auto& [tiles, angle] : {std::pair{1, one}, {2, two}, {3, three}}) {
      _mm512_store_ps(state.far_cos + (tiles - 1) * state.half_padded + c, angle.cos);
      _mm512_store_ps(state.far_sin + (tiles - 1) * state.half_padded + c, angle.sin);
    }
  }
}

}  // namespace

void make_value_table(const NuqCodebook& book, uint16_t* table) {
  if (book.bits == 8) return;
  alignas(64) float levels[32];
  for (int i = 0; i < 32; ++i) levels[i] = book.levels[i % book.num_levels];
  _mm512_storeu_si512(
      table, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(levels + 16), _mm512_load_ps(levels)));
}

void prepare_coded(const AttendBlock& block, const CodedTile& tile, CodedState& state) {
  const int64_t half = block.head_dim / 2;
  place_state(block, state);
  make_key_tables(block, tile.keys, state);
  make_value_table(*tile.values.codebook, state.value_table);
  make_biases(block, tile);
  state.num_turned = num_rows_above(tile, half, kBentAngle);
  state.num_bent = num_rows_above(tile, half, kStraightAngle) - state.num_turned;
  if (has_few_rows(block, kFusedRows)) {
    make_far_angles(*tile.rope, half, state);
    if (block.num_rows > 1) make_turns(tile, half, state);
    make_slopes(*tile.rope, half, state);
    if (tile.keys.codebook->bits == 8) {
      make_integer_steps(block, state);
      make_byte_factors(half, state);
    }
  } else {
    auto* queries =
        static_cast<uint16_t*>(block.workspace.query) + block.num_rows * block.padded_dim;
    pack_queries_in_halves(block, queries);
    state.queries = queries;
  }
}

void turn_group_middles(const CodedTile& first, int64_t num_tiles, int64_t head_dim,
                        CodedState& state) {
  const int64_t half = head_dim / 2;
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const Angle middle{_mm512_maskz_loadu_ps(mask, first.middle_cos + c),
                       _mm512_maskz_loadu_ps(mask, first.middle_sin + c)};
    _mm512_store_ps(state.middle_cos + c, middle.cos);
    _mm512_store_ps(state.middle_sin + c, middle.sin);
    for (int64_t tile = 1; tile < num_tiles; ++tile) {
      const int64_t far = (tile - 1) * state.half_padded + c, at = tile * state.half_padded + c;
      const Angle angle =
          middle + Angle{_mm512_load_ps(state.far_cos + far), _mm512_load_ps(state.far_sin + far)};
      _mm512_store_ps(state.middle_cos + at, angle.cos);
      _mm512_store_ps(state.middle_sin + at, angle.sin);
    }
  }
}

namespace {

// Pairs of 16-bit integers.
inline __m512i integer_pairs(__m512 a, __m512 b) {
  const __m512i high = _mm512_slli_epi32(_mm512_cvtps_epi32(b), 16);
  return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_cvtps_epi32(a), high);
}

// 16 channels and their partners, from channel c on, of a row at one of its four angles.
struct TurnedQuery {
  int64_t c, row, at;  // row of the block; at: place among the rows and angles in registers
  __m512 a, b;
};

// Sums over channels, lane by lane, of zero_sums.
struct ZeroLanes {
  alignas(64) float lanes[3][kRegisterRows * kRowSlots][16];
};

// Channels from c on: queries times steps as pairs, times keys of code 0 as zeros. kPairs: how many
// of the three kinds are needed; kTurns, kSums: whether there are angles that are not small, and
// small.
template <int kPairs, bool kTurns, bool kSums>
__attribute__((always_inline)) inline void store_integers(const TurnedQuery& q,
                                                          const CodedState& state,
                                                          ZeroLanes& zeros) {
  const __m512 unit = _mm512_set1_ps(state.integer_unit[q.row]);
  const __m512 a = _mm512_mul_ps(q.a, unit), b = _mm512_mul_ps(q.b, unit);
  const int64_t pair = q.at * state.half_padded + q.c;
  KVQUANT_UNROLL for (int kind = 0; kind < kPairs; ++kind) {
    const auto factor = [&](int i) {
      return _mm512_load_ps(state.byte_factors + (4 * kind + i) * state.half_padded + q.c);
    };
    const __m512 x = kind == 1 ? b : a, y = kind == 1 ? a : b;
    _mm512_store_si512(state.pairs[kind] + pair,
                       integer_pairs(_mm512_mul_ps(x, factor(0)), _mm512_mul_ps(y, factor(1))));
    const __m512 zero = _mm512_fmadd_ps(x, factor(2), _mm512_mul_ps(y, factor(3)));
    if (kTurns && kind < 2) {
      _mm512_store_si512(state.zero_parts[kind] + pair, _mm512_cvtps_epi32(zero));
    }
    if constexpr (kSums) {
      const __mmask16 small = _knot_mask16(lanes_below(state.num_turned - q.c));
      const __mmask16 bent = lanes_below(state.num_turned + state.num_bent - q.c);
      float* lanes = zeros.lanes[kind][q.at];
      const __m512 before = _mm512_load_ps(lanes);
      _mm512_store_ps(lanes,
                      _mm512_mask_add_ps(before, kind < 2 ? small : small & bent, before, zero));
    }
  }
}

inline __m512 add_neighbours(__m512 x, __m512 y) {
  return _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
}

// The sums of the lanes of four vectors.
inline __m128 sum_four(const float (*lanes)[16]) {
  const __m512 x = add_neighbours(_mm512_load_ps(lanes[0]), _mm512_load_ps(lanes[2]));
  const __m512 y = add_neighbours(_mm512_load_ps(lanes[1]), _mm512_load_ps(lanes[3]));
  const __m512 z = add_neighbours(x, y);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

void sum_zeros(const ZeroLanes& zeros, int64_t num_rows, const CodedState& state) {
  static_assert(kRowSlots == 4);
  for (int64_t r = 0; r < num_rows; ++r) {
    KVQUANT_UNROLL for (int kind = 0; kind < 3; ++kind) {
      _mm_storeu_ps(state.zero_sums + (3 * r + kind) * kRowSlots,
                    sum_four(zeros.lanes[kind] + r * kRowSlots));
    }
  }
}

}  // namespace

void turn_queries(const AttendBlock& block, const CodedTile& tile, int64_t tile_of_group,
                  RowRange rows, const CodedState& shared) {
  const CodedState state =
      shared;  // a copy that no store can change: its pointers stay in registers
  const int64_t half = block.head_dim / 2, middle = tile_of_group * state.half_padded;
  const RopeTiles& rope = *tile.rope;
  const bool has_outliers = tile.keys.num_outliers > 0, has_bytes = tile.keys.codebook->bits == 8;
  ZeroLanes zeros;
  for (int64_t i = 0; has_bytes && i < rows.count * kRowSlots; ++i) {
    for (auto& lanes : zeros.lanes) _mm512_store_ps(lanes[i], _mm512_setzero_ps());
  }
  const __m512 minus_zero = _mm512_set1_ps(-0.0f);
  for (int64_t c = 0; c < half; c += 16) {
    const __mmask16 mask = lanes_below(half - c);
    const auto load = [&](const float* p) { return _mm512_maskz_loadu_ps(mask, p + c); };
    const __m512 middle_cos = _mm512_load_ps(state.middle_cos + middle + c);
    const __m512 middle_sin = _mm512_load_ps(state.middle_sin + middle + c);
    const __m512 near_cos[2] = {load(rope.near_cos[0]), load(rope.near_cos[1])};
    const __m512 near_sin[2] = {load(rope.near_sin[0]), load(rope.near_sin[1])};
    const __m512 level = _mm512_load_ps(state.level + c), slope = _mm512_load_ps(state.slope + c);
    const __m512 bend = _mm512_load_ps(state.bend + c);
    const bool has_bent = c < state.num_turned + state.num_bent && c + 16 > state.num_turned;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t row = rows.first + r;
      const float* q =
          block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
      const Pair at_middle = turn_back({load(q), load(q + half)}, middle_cos, middle_sin);
      KVQUANT_UNROLL for (int slot = 0; slot < kRowSlots; ++slot) {  // at -24, -8, 8, 24 tokens
        const int near = slot == 0 || slot == 3 ? 1 : 0;
        const __m512 sin = slot < 2 ? _mm512_xor_ps(near_sin[near], minus_zero) : near_sin[near];
        const auto [a, b] = turn_back(at_middle, near_cos[near], sin);
        const __m512 minus_a = _mm512_xor_ps(a, minus_zero);
        const int64_t at = r * kRowSlots + slot, pair = at * state.half_padded + c;
        if (has_outliers) {
          float* turned = state.turned + at * 3 * half + c;
          _mm512_mask_storeu_ps(turned, mask, a);
          _mm512_mask_storeu_ps(turned + half, mask, b);
          _mm512_mask_storeu_ps(turned + 2 * half, mask, minus_a);
        }
        if (has_bytes) {
          const TurnedQuery turned{c, row, at, a, b};
          if (c + 16 <= state.num_turned) {
            store_integers<2, true, false>(turned, state, zeros);
          } else if (has_bent) {
            store_integers<3, true, true>(turned, state, zeros);
          } else {
            store_integers<2, false, true>(turned, state, zeros);
          }
          continue;
        }
        if (rows.count > 1) {
          _mm512_store_si512(state.pairs[0] + pair, pack_pairs(a, b));
          continue;
        }
        _mm512_store_si512(state.pairs[0] + pair,
                           pack_pairs(_mm512_mul_ps(a, level), _mm512_mul_ps(b, level)));
        _mm512_store_si512(state.pairs[1] + pair,
                           pack_pairs(_mm512_mul_ps(b, slope), _mm512_mul_ps(minus_a, slope)));
        if (!has_bent) continue;
        _mm512_store_si512(state.pairs[2] + pair,
                           pack_pairs(_mm512_mul_ps(a, bend), _mm512_mul_ps(b, bend)));
      }
    }
  }
  if (has_bytes) sum_zeros(zeros, rows.count, state);
}

}  // namespace kvquant::avx512bf16
