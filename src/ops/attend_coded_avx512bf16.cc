// Attention of few rows of queries over a coded tile. A key is never built: of each row of codes, a
// pair of channels (a, b) that RoPE rotates together, dot products with (q_a, q_b) and (q_b, -q_a)
// give what cos and sin of the token's angle multiply, where the query was rotated back to the
// middle of 16 tokens. There most angles are small: sin x = x and cos x = 1 (or 1 - x^2 / 2) do for
// them, and their sums over channels are multiplied by the token's number only at the end. For
// several rows the pair is rotated first, once for all.
//
// Outliers are corrections: of a score by (value - what code 0 says) times one rotated query
// channel, of a sum likewise.
#include "ops/attend_coded_avx512bf16.h"

#include "ops/coded_values_avx512bf16_inl.h"
#include "ops/outlier_list_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Keys of one slot of a row as bf16 pairs.
template <int kBits>
__m512bh key_pairs(__m512i table, __m512i codes) {
  const __m512i mask = _mm512_set1_epi16((1 << kBits) - 1);
  const __m512i upper_half = _mm512_set1_epi32(16 << 16);
  const __m512i index = _mm512_ternarylogic_epi32(codes, mask, upper_half, 0xEA);
  return (__m512bh)_mm512_permutexvar_epi16(index, table);
}

inline __m512bh broadcast(uint32_t pair) {
  return (__m512bh)_mm512_set1_epi32(static_cast<int>(pair));
}

struct OneSum {
  __m512 cos[kRowSlots];  // also of angles taken as they are
  __m512 sin[kRowSlots];
  __m512 slope[kRowSlots];   // to be multiplied by the token's number
  __m512 square[kRowSlots];  // and by its square
};

template <int kBits, int kPhase, Turn kTurn>
__attribute__((always_inline)) inline void score_one_row(const KeyPass& pass, int64_t row,
                                                         OneSum& sum) {
  const CodedState& state = *pass.state;
  pass.ahead.step<kBits, kPhase>(row);
  __m512i codes[kRowSlots];
  load_row<kBits, kPhase>(pass.codes, row, codes);
  const __m512i table = _mm512_load_si512(state.key_tables + 32 * row);
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    const __m512bh k = key_pairs<kBits>(table, codes[s]);
    const int64_t at = s * state.half_padded + row;
    const __m512bh along = broadcast(state.pairs[0][at]), across = broadcast(state.pairs[1][at]);
    if constexpr (kTurn == Turn::kFull) {
      const __m512 cos = _mm512_loadu_ps(pass.lane_cos_sin + 32 * row);
      const __m512 sin = _mm512_loadu_ps(pass.lane_cos_sin + 32 * row + 16);
      const __m512 zero = _mm512_setzero_ps();
      sum.cos[s] = _mm512_fmadd_ps(_mm512_dpbf16_ps(zero, k, along), cos, sum.cos[s]);
      sum.sin[s] = _mm512_fmadd_ps(_mm512_dpbf16_ps(zero, k, across), sin, sum.sin[s]);
    } else {
      sum.cos[s] = _mm512_dpbf16_ps(sum.cos[s], k, along);
      sum.slope[s] = _mm512_dpbf16_ps(sum.slope[s], k, across);
      if constexpr (kTurn == Turn::kBent) {
        sum.square[s] = _mm512_dpbf16_ps(sum.square[s], k, broadcast(state.pairs[2][at]));
      }
    }
  }
}

template <int kBits, Turn kTurn>
__attribute__((always_inline)) inline void score_one_rows(const KeyPass& pass, int64_t begin,
                                                          int64_t end, OneSum& sum) {
  for (int64_t row = begin; row < end; row += 4) {
    score_one_row<kBits, 0, kTurn>(pass, row, sum);
    score_one_row<kBits, 1, kTurn>(pass, row + 1, sum);
    score_one_row<kBits, 2, kTurn>(pass, row + 2, sum);
    score_one_row<kBits, 3, kTurn>(pass, row + 3, sum);
  }
}

// scores [64] of a single row.
template <int kBits>
void score_one(const KeyPass& pass, int64_t half, float* scores) {
  OneSum sum;
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    sum.cos[s] = sum.sin[s] = sum.slope[s] = sum.square[s] = _mm512_setzero_ps();
  }
  const int64_t bent = pass.state->num_turned, straight = bent + pass.state->num_bent;
  score_one_rows<kBits, Turn::kFull>(pass, 0, bent, sum);
  score_one_rows<kBits, Turn::kBent>(pass, bent, straight, sum);
  score_one_rows<kBits, Turn::kStraight>(pass, straight, half, sum);
  const __m512 token = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    const __m512 moments = _mm512_fmadd_ps(sum.square[s], token, sum.slope[s]);
    const __m512 full = _mm512_add_ps(sum.cos[s], sum.sin[s]);
    _mm512_storeu_ps(scores + 16 * s, _mm512_fmadd_ps(moments, token, full));
  }
}

template <int kBits, int kPhase, int R>
__attribute__((always_inline)) inline void score_some_row(const KeyPass& pass, int64_t row,
                                                          const uint32_t* const* queries,
                                                          __m512 (&sum)[R][kRowSlots]) {
  const CodedState& state = *pass.state;
  pass.ahead.step<kBits, kPhase>(row);
  __m512i codes[kRowSlots];
  load_row<kBits, kPhase>(pass.codes, row, codes);
  const __m512i table = _mm512_load_si512(state.key_tables + 32 * row);
  const auto turn_a = (__m512bh)_mm512_load_si512(state.turns[0] + 16 * row);
  const auto turn_b = (__m512bh)_mm512_load_si512(state.turns[1] + 16 * row);
  const __m512 zero = _mm512_setzero_ps();
  KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
    const __m512bh k = key_pairs<kBits>(table, codes[s]);
    const auto turned =
        (__m512bh)pack_pairs(_mm512_dpbf16_ps(zero, k, turn_a), _mm512_dpbf16_ps(zero, k, turn_b));
    KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
      const uint32_t q = queries[r][s * state.half_padded + row];
      sum[r][s] = _mm512_dpbf16_ps(sum[r][s], turned, broadcast(q));
    }
  }
}

// scores [R][64].
template <int kBits, int R>
void score_some(const KeyPass& pass, int64_t half, float* scores) {
  const uint32_t* queries[R];
  __m512 sum[R][kRowSlots];
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    queries[r] = pass.state->pairs[0] + r * kRowSlots * pass.state->half_padded;
    KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) sum[r][s] = _mm512_setzero_ps();
  }
  for (int64_t row = 0; row < half; row += 4) {
    score_some_row<kBits, 0, R>(pass, row, queries, sum);
    score_some_row<kBits, 1, R>(pass, row + 1, queries, sum);
    score_some_row<kBits, 2, R>(pass, row + 2, queries, sum);
    score_some_row<kBits, 3, R>(pass, row + 3, queries, sum);
  }
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int s = 0; s < kRowSlots; ++s) {
      _mm512_storeu_ps(scores + r * kTileTokens + 16 * s, sum[r][s]);
    }
  }
}

// Adds what outliers of keys change in the scores of a single row. Outliers of a token follow each
// other, and a sum that is stored is long in coming back: there are kChains of them, by turns.
__attribute__((noinline)) void add_to_scores(const KeyOutliers& list, const float* turns,
                                             const float* turned, int64_t half, float* scores) {
  constexpr int kChains = 4;
  alignas(64) float sums[kChains * kTileTokens];
  KVQUANT_UNROLL for (int i = 0; i < kChains * kTileTokens; i += 16) {
    _mm512_store_ps(sums + i, _mm512_setzero_ps());
  }
  for (int64_t i = 0; i < list.size; i += kChains) {
    KVQUANT_UNROLL for (int chain = 0; chain < kChains; ++chain) {
      const float* turn = turns + list.turn[i + chain];
      const float* q = turned + list.query[i + chain];
      float& sum = sums[chain * kTileTokens + list.token[i + chain]];
      const float x = __builtin_fmaf(turn[16], q[half], turn[0] * q[0]);
      sum = __builtin_fmaf(list.change[i + chain], x, sum);
    }
  }
  KVQUANT_UNROLL for (int v = 0; v < kTileVectors; ++v) {
    __m512 sum = _mm512_load_ps(scores + 16 * v);
    KVQUANT_UNROLL for (int i = 0; i < kChains; ++i) {
      sum = _mm512_add_ps(sum, _mm512_load_ps(sums + i * kTileTokens + 16 * v));
    }
    _mm512_store_ps(scores + 16 * v, sum);
  }
}

// The same for R rows, which have chains enough.
template <int R>
__attribute__((noinline)) void add_to_scores(const KeyOutliers& list, const float* turns,
                                             const float* turned, int64_t half, float* scores) {
  for (int64_t i = 0; i < list.size; ++i) {
    const float* turn = turns + list.turn[i];
    const float* q = turned + list.query[i];
    const float along = list.change[i] * turn[0], across = list.change[i] * turn[16];
    float* score = scores + list.token[i];
    KVQUANT_UNROLL for (int r = 0; r < R; ++r, q += kRowSlots * 3 * half) {
      score[r * kTileTokens] =
          __builtin_fmaf(along, q[0], __builtin_fmaf(across, q[half], score[r * kTileTokens]));
    }
  }
}

template <int R>
void correct_scores(const AttendBlock& block, const CodedTile& tile, const CodedState& state,
                    float* scores) {
  KeyOutliers list;
  for_each_stretch(tile.keys, [&](const OutlierEntry* entries, int64_t count) {
    take_apart(state, block.head_dim, entries, count, list);
    if constexpr (R == 1) {
      add_to_scores(list, tile.rope->lane_cos_sin, state.turned, block.head_dim / 2, scores);
    } else {
      add_to_scores<R>(list, tile.rope->lane_cos_sin, state.turned, block.head_dim / 2, scores);
    }
  });
}

template <int R>
void score(const AttendBlock& block, const KeyPass& pass, int bits, int64_t row, float* scores) {
  const int64_t half = block.head_dim / 2;
  const auto run = [&]<int kBits>() {
    if constexpr (kBits == 8) {
      score_bytes<R>(pass, row, half, scores);
    } else if constexpr (R == 1) {
      score_one<kBits>(pass, half, scores);
    } else {
      score_some<kBits, R>(pass, half, scores);
    }
  };
  switch (bits) {
    case 2: return run.template operator()<2>();
    case 3: return run.template operator()<3>();
    case 4: return run.template operator()<4>();
    default: return run.template operator()<8>();
  }
}

// What is read besides codes.
void prefetch_rest(const CodedPart& keys, const CodedPart& values) {
  for (const CodedPart* part : {&keys, &values}) {
    const int64_t end = part->first_outlier + part->num_outliers;
    for (int64_t e = part->first_outlier; e < end; e += 16) {
      __builtin_prefetch(&part->pages[e / kOutliersPerPage]->entries[e % kOutliersPerPage], 0, 2);
    }
  }
  for (int64_t t = 0; t < kTileTokens; t += 32) {
    __builtin_prefetch(values.scales + t, 0, 2);
    __builtin_prefetch(values.zeros + t, 0, 2);
  }
}

// R rows from `row` on against a group of tiles; next[i] is asked for with tile i, unless it is
// that tile.
template <int R>
void attend_group(const AttendBlock& block, CodedState& state, const TileWork* const* next,
                  int64_t row, Group<R>& group) {
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    const TileWork& work = group.tiles[i];
    const CodedTile& tile = work.coded;
    for (int r = 0; r < R; ++r) group.seen[i][r] = visible_tokens(work, (row + r) / block.group);
    if (next[i] != &work) prefetch_rest(next[i]->coded.keys, next[i]->coded.values);
    turn_queries(block, tile, i, {row, R}, state);
    const KeyPass keys{
        &state, tile.keys.codes, tile.rope->lane_cos_sin, {next[i]->coded.keys.codes}};
    score<R>(block, keys, tile.keys.codebook->bits, row, group.scores[i]);
    if (tile.keys.num_outliers > 0) correct_scores<R>(block, tile, state, group.scores[i]);
  }
  for (int r = 0; r < R; ++r) weigh_row(block, row + r, r, group);
  float* acc = block.acc + row * block.padded_dim;
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    add_tile<R>(block, group.tiles[i].coded.values, state.value_table, next[i]->coded.values.codes,
                group.weights[i], acc);
  }
}

template <int R>
void attend_rows(const AttendBlock& block, CodedState& state, const TileWork* tiles,
                 int64_t num_tiles, const TileWork* const* next, int64_t row) {
  Group<R> group;
  group.tiles = tiles;
  group.num_tiles = num_tiles;
  attend_group(block, state, next, row, group);
}

}  // namespace

void attend_coded_tiles(const AttendBlock& block, CodedState& state, const TileWork* tiles,
                        int64_t num_tiles, int64_t num_ahead) {
  for (int64_t first = 0; first < num_tiles; first += kGroupTiles) {
    const TileWork* group = tiles + first;
    const int64_t left = num_tiles - first, count = left < kGroupTiles ? left : kGroupTiles;
    const TileWork* next[kGroupTiles];
    for (int64_t i = 0; i < count; ++i) {
      next[i] = group + i + (i + kAheadTiles < left + num_ahead ? kAheadTiles : 0);
    }
    turn_group_middles(group->coded, count, block.head_dim, state);
    const int64_t num_blocks = (block.num_rows + kRegisterRows - 1) / kRegisterRows;
    for (int64_t i = 0; i < num_blocks; ++i) {  // of even size
      const int64_t row = i * block.num_rows / num_blocks;
      switch ((i + 1) * block.num_rows / num_blocks - row) {
        case 1: attend_rows<1>(block, state, group, count, next, row); break;
        case 2: attend_rows<2>(block, state, group, count, next, row); break;
        case 3: attend_rows<3>(block, state, group, count, next, row); break;
        default: attend_rows<4>(block, state, group, count, next, row); break;
      }
    }
  }
}

}  // namespace kvquant::avx512bf16
