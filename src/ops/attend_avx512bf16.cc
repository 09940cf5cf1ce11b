// Attention with bf16 dot products (AVX-512 BF16): q, k, p and v are rounded to bf16, sums are in
// f32. Rows are taken six at a time, so that 24 accumulators, four tile registers and a broadcast
// fill the register file; the tile, converted once per block, stays in L2 and mostly in L1.
#include "ops/attend_amxbf16.h"
#include "ops/attend_avx512bf16_inl.h"
#include "ops/attend_coded_avx512bf16.h"
#include "ops/attend_half_coded_avx512bf16.h"
#include "ops/attend_latent_keys_avx512bf16.h"
#include "ops/attend_rows_avx512bf16.h"
#include "ops/dense_scores_avx512bf16_inl.h"
#include "ops/hadamard.h"

namespace kvquant::avx512bf16 {
namespace {

// Up to this many rows values are read in wide sweeps, which the hardware prefetcher follows; up to
// the next number, blocks wait for memory more than they compute.
constexpr int64_t kSweepRows = 2;
constexpr int64_t kPrefetchRows = 16;

constexpr int kRows = 6;  // rows of a register block

// With more rows than this, f16 tiles are converted into scratch first.
constexpr int64_t kConvertInRegistersRows = 2 * kRows;

// Registers of 16 channels in a block of weighted sums. Few rows can have more of them, and then
// read values of head_dim 128 from memory in one sweep.
constexpr int num_value_vectors(int num_rows) { return num_rows <= kSweepRows ? 8 : 4; }

__m512 load_floats(const void* from, DenseType type, int64_t i) {
  if (type == DenseType::kF32) return _mm512_loadu_ps(static_cast<const float*>(from) + i);
  return _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(from) + i)));
}

// `size` elements of f16 or f32, a multiple of 16, to bf16.
void convert(const void* from, DenseType type, int64_t size, uint16_t* to) {
  int64_t i = 0;
  for (; i + 32 <= size; i += 32) {  // 4.3 cycles on Zen 4, 6.0 as two halves
    const __m512bh x =
        _mm512_cvtne2ps_pbh(load_floats(from, type, i + 16), load_floats(from, type, i));
    _mm512_storeu_si512(to + i, (__m512i)x);
  }
  if (i < size) {
    const __m256bh x = _mm512_cvtneps_pbh(load_floats(from, type, i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)x);
  }
}

void pack_queries(const AttendBlock& block, uint16_t* to) {
  for (int64_t row = 0; row < block.num_rows; ++row) {
    const float* q =
        block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
    for (int64_t c = 0; c < block.head_dim; c += 16) {
      const __mmask16 mask = block.head_dim - c >= 16 ? 0xFFFF : 0xFF;
      const __m512 x = _mm512_maskz_loadu_ps(mask, q + c);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * block.padded_dim + c),
                          (__m256i)_mm512_cvtneps_pbh(x));
    }
  }
}

// The tile itself where it can be read in place, else a converted copy.
const uint16_t* bfloat_keys(const AttendBlock& block, const TileWork& tile, Prefetcher& ahead) {
  if (tile.type == DenseType::kBF16) return static_cast<const uint16_t*>(tile.keys);
  auto* keys = static_cast<uint16_t*>(block.workspace.keys);
  const auto* from = static_cast<const char*>(tile.keys);
  constexpr int64_t kRowSize = 2 * kTileTokens;
  const int64_t row_bytes = kRowSize * (tile.type == DenseType::kF32 ? 4 : 2);
  for (int64_t pair = 0; pair < block.head_dim / 2; ++pair) {
    ahead.step();
    convert(from + pair * row_bytes, tile.type, kRowSize, keys + pair * kRowSize);
  }
  return keys;
}

// Padded with zero channels to whole registers.
const uint16_t* bfloat_values(const AttendBlock& block, const TileWork& tile, Prefetcher& ahead) {
  const bool padded = block.padded_dim != block.head_dim;
  if (tile.type == DenseType::kBF16 && !padded) return static_cast<const uint16_t*>(tile.values);
  auto* values = static_cast<uint16_t*>(block.workspace.values);
  const int64_t row_size = 2 * block.head_dim;
  const int64_t row_bytes = row_size * (tile.type == DenseType::kF32 ? 4 : 2);
  for (int64_t pair = 0; pair < kTileTokens / 2; ++pair) {
    ahead.step();
    const char* from = static_cast<const char*>(tile.values) + pair * row_bytes;
    uint16_t* to = values + pair * 2 * block.padded_dim;
    if (tile.type == DenseType::kBF16) {
      __builtin_memcpy(to, from, static_cast<size_t>(row_bytes));
    } else {
      convert(from, tile.type, row_size, to);
    }
    if (padded) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row_size), __m256i{});
  }
  return values;
}

// Token pairs [begin, end) of a tile.
struct PairRange {
  int64_t begin;
  int64_t end;
};

// Some token pairs of a tile of values and their weights.
struct WeightedValues {
  const uint16_t* values;  // [32][dim][2]
  int64_t dim;
  const uint16_t* p;  // [R][64]
  PairRange pairs;
  int64_t acc_stride;
};

// acc [R, 16 V] += p v for the channels from `first` on.
template <DenseType kType, int R, int V>
void add_values(const WeightedValues& in, int64_t first, Prefetcher& ahead, float* acc) {
  __m512 sum[R][V];
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
      sum[r][v] = _mm512_loadu_ps(acc + r * in.acc_stride + 16 * v);
    }
  }
  for (int64_t pair = in.pairs.begin; pair < in.pairs.end; ++pair) {
    ahead.step();
    __m512bh x[V];
    KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
      x[v] = load_pairs<kType>(in.values + 2 * (pair * in.dim + first) + 32 * v);
    }
    KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
      const __m512bh weight = broadcast_pair(in.p + r * kTileTokens + 2 * pair);
      KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x[v], weight);
      }
    }
  }
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < V; ++v) {
      _mm512_storeu_ps(acc + r * in.acc_stride + 16 * v, sum[r][v]);
    }
  }
}

// All channels from `first` on, widest blocks first.
template <DenseType kType, int R, int V>
void add_all_values(const WeightedValues& in, int64_t first, Prefetcher& ahead, float* acc) {
  for (; first + 16 * V <= in.dim; first += 16 * V) {
    add_values<kType, R, V>(in, first, ahead, acc + first);
  }
  if constexpr (V > 1) add_all_values<kType, R, V / 2>(in, first, ahead, acc);
}

// R rows against one tile.
template <DenseType kKeys, DenseType kValues, int R>
void attend_rows(const AttendBlock& block, const TileWork& work, const PairTile& tile, int64_t row,
                 Prefetcher& ahead) {
  TokenRange seen[R];
  TokenRange any{kTileTokens, 0};  // seen by at least one of the rows
  for (int r = 0; r < R; ++r) {
    seen[r] = visible_tokens(work, (row + r) / block.group);
    if (seen[r].begin >= seen[r].end) continue;
    if (seen[r].begin < any.begin) any.begin = seen[r].begin;
    if (seen[r].end > any.end) any.end = seen[r].end;
  }
  if (any.begin >= any.end) return;

  alignas(64) float scores[R * kTileTokens];
  alignas(64) uint16_t p[R * kTileTokens];
  const int64_t dim = block.padded_dim;
  score_rows<kKeys, R>(tile.keys, tile.queries + row * dim, dim, block.head_dim / 2, ahead, scores);
  for (int r = 0; r < R; ++r) {
    soften_row(block, row + r, seen[r], bias_of(block, work, row + r), scores + r * kTileTokens,
               p + r * kTileTokens);
  }
  const WeightedValues values{
      tile.values, (block.value_dim + 15) / 16 * 16, p, {any.begin / 2, (any.end + 1) / 2}, dim};
  add_all_values<kValues, R, num_value_vectors(R)>(values, 0, ahead, block.acc + row * dim);
}

template <DenseType kKeys, DenseType kValues = kKeys>
void attend_all_rows(const AttendBlock& block, const TileWork& work, const PairTile& tile,
                     Prefetcher& ahead) {
  if constexpr (kKeys == DenseType::kBF16 && kValues == DenseType::kBF16) {
    if (block.has_amx) return amxbf16::attend_tile(block, work, tile);
  }
  const int64_t num_blocks = (block.num_rows + kRows - 1) / kRows;
  for (int64_t i = 0; i < num_blocks; ++i) {  // of even size: 8 rows are 4 + 4, not 6 + 2
    const int64_t row = i * block.num_rows / num_blocks;
    switch ((i + 1) * block.num_rows / num_blocks - row) {
      case 1: attend_rows<kKeys, kValues, 1>(block, work, tile, row, ahead); break;
      case 2: attend_rows<kKeys, kValues, 2>(block, work, tile, row, ahead); break;
      case 3: attend_rows<kKeys, kValues, 3>(block, work, tile, row, ahead); break;
      case 4: attend_rows<kKeys, kValues, 4>(block, work, tile, row, ahead); break;
      case 5: attend_rows<kKeys, kValues, 5>(block, work, tile, row, ahead); break;
      default: attend_rows<kKeys, kValues, 6>(block, work, tile, row, ahead); break;
    }
  }
}

void attend_tile(const AttendBlock& block, const TileWork& work, const TileWork* next) {
  const int64_t num_steps = (block.num_rows + kRows - 1) / kRows * block.head_dim;
  const bool converts_in_registers = work.type == DenseType::kF16 &&
                                     has_few_rows(block, kConvertInRegistersRows) &&
                                     block.padded_dim == block.head_dim;
  const auto* queries = static_cast<const uint16_t*>(block.workspace.query);
  Prefetcher ahead;
  if (next != nullptr) {
    const bool converts = work.type != DenseType::kBF16 && !converts_in_registers;
    ahead.start(*next, block.head_dim,
                num_steps + (converts ? block.head_dim / 2 + kTileTokens / 2 : 0));
  }
  if (converts_in_registers) {
    const PairTile tile{queries, static_cast<const uint16_t*>(work.keys),
                        static_cast<const uint16_t*>(work.values)};
    return attend_all_rows<DenseType::kF16>(block, work, tile, ahead);
  }
  const PairTile tile{queries, bfloat_keys(block, work, ahead), bfloat_values(block, work, ahead)};
  attend_all_rows<DenseType::kBF16>(block, work, tile, ahead);
}

// 16 elements from 2 * key_offset + i on of a row of 128 and, behind it, the same row of the next
// tile, as floats.
__m512 load_shifted(const TileWork& tile, int64_t row, int64_t i) {
  constexpr int64_t kRowSize = 2 * kTileTokens;
  const int64_t at = 2 * tile.key_offset + i, left = kRowSize - at;
  const __mmask16 here = left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1u << left) - 1;
  const __mmask16 there = tile.next_keys == nullptr ? 0 : (__mmask16)~here;
  const int64_t size = tile.type == DenseType::kF32 ? 4 : 2;
  // What is masked is not read, wherever it would be.
  const auto place = [&](const void* keys, int64_t element) {
    return reinterpret_cast<uintptr_t>(keys) + (row * kRowSize + element) * size;
  };
  const auto* first = reinterpret_cast<const void*>(place(tile.keys, at));
  const auto* second = reinterpret_cast<const void*>(place(tile.next_keys, at - kRowSize));
  if (size == 4) {
    return _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(here, first), there, second);
  }
  const __m256i x = _mm256_mask_loadu_epi16(_mm256_maskz_loadu_epi16(here, first), there, second);
  if (tile.type == DenseType::kF16) return _mm512_cvtph_ps(x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

const uint16_t* shifted_keys(const AttendBlock& block, const TileWork& tile) {
  auto* keys = static_cast<uint16_t*>(block.workspace.keys);
  for (int64_t row = 0; row < block.head_dim / 2; ++row) {
    for (int64_t i = 0; i < 2 * kTileTokens; i += 32) {
      const __m512bh x =
          _mm512_cvtne2ps_pbh(load_shifted(tile, row, i + 16), load_shifted(tile, row, i));
      _mm512_storeu_si512(keys + row * 2 * kTileTokens + i, (__m512i)x);
    }
  }
  return keys;
}

// Padded with zeros to whole registers.
const uint16_t* mixed_values(const AttendBlock& block, const TileWork& work) {
  auto* values = static_cast<uint16_t*>(block.workspace.values);
  if (work.values == nullptr) {
    decode_values_to_bf16(work.coded.values, block.value_dim, values);
    return values;
  }
  const int64_t row_size = 2 * block.value_dim, padded = (block.value_dim + 15) / 16 * 32;
  const auto* from = static_cast<const uint16_t*>(work.values);
  for (int64_t pair = 0; pair < kTileTokens / 2; ++pair) {
    uint16_t* to = values + pair * padded;
    convert(from + pair * row_size, DenseType::kF16, row_size, to);
    if (padded > row_size)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row_size), __m256i{});
  }
  return values;
}

// Dense keys, values that are codes or fp16 latents.
void attend_mixed_tile(const AttendBlock& block, const TileWork& work, const TileWork* next) {
  const auto* queries = static_cast<const uint16_t*>(block.workspace.query);
  const bool converts_in_registers = has_few_rows(block, kConvertInRegistersRows);
  const bool reads_halves =
      converts_in_registers && work.values != nullptr && block.value_dim % 16 == 0;
  const uint16_t* values =
      reads_halves ? static_cast<const uint16_t*>(work.values) : mixed_values(block, work);
  Prefetcher ahead;
  if (next != nullptr) {  // a single row takes a step for each two pairs of channels
    const int64_t num_steps = (block.num_rows + kRows - 1) / kRows * block.head_dim / 2;
    ahead.start(*next, block.head_dim, num_steps);
    const bool is_half = next->values != nullptr;
    ahead.then = static_cast<const char*>(is_half ? next->values : next->coded.values.codes);
    ahead.bytes = is_half ? kTileTokens * block.value_dim * 2 : next->coded.values.num_bytes;
  }
  constexpr DenseType kF16 = DenseType::kF16, kBF16 = DenseType::kBF16;
  if (work.type == kF16 && work.key_offset == 0 && converts_in_registers) {
    const PairTile tile{queries, static_cast<const uint16_t*>(work.keys), values};
    if (reads_halves) return attend_all_rows<kF16, kF16>(block, work, tile, ahead);
    return attend_all_rows<kF16, kBF16>(block, work, tile, ahead);
  }
  const uint16_t* keys =
      work.key_offset > 0 ? shifted_keys(block, work) : bfloat_keys(block, work, ahead);
  const PairTile tile{queries, keys, values};
  if (reads_halves) return attend_all_rows<kBF16, kF16>(block, work, tile, ahead);
  attend_all_rows<kBF16>(block, work, tile, ahead);
}

// Keys that are latents, any values. Few rows read fp16 tiles in place.
void attend_latent_keys_tile(const AttendBlock& block, const TileWork& work, const TileWork* next) {
  constexpr DenseType kF16 = DenseType::kF16, kBF16 = DenseType::kBF16;
  const LatentTile read =
      read_latent_tile(block, work, has_few_rows(block, kConvertInRegistersRows));
  const PairTile tile{static_cast<const uint16_t*>(block.workspace.query), read.keys, read.values};
  Prefetcher ahead;
  if (next != nullptr) {
    const int64_t num_steps = (block.num_rows + kRows - 1) / kRows * block.head_dim / 4;
    ahead = ask_for_latent_tile(block, *next, num_steps);
  }
  if (read.has_half_keys) {
    return read.has_half_values ? attend_all_rows<kF16>(block, work, tile, ahead)
                                : attend_all_rows<kF16, kBF16>(block, work, tile, ahead);
  }
  if (read.has_half_values) return attend_all_rows<kBF16, kF16>(block, work, tile, ahead);
  attend_all_rows<kBF16>(block, work, tile, ahead);
}

void attend_row_tile(const AttendBlock& block, const TileWork& work) {
  auto* keys = static_cast<uint16_t*>(block.workspace.keys);
  auto* values = static_cast<uint16_t*>(block.workspace.values);
  rows_to_bf16(block, work, keys, values);
  Prefetcher none;
  const auto* queries = static_cast<const uint16_t*>(block.workspace.query);
  attend_all_rows<DenseType::kBF16>(block, work, {queries, keys, values}, none);
}

// Few rows read the codes themselves, more a decoded copy. Tiles behind these, up to num_ahead, are
// asked for ahead.
void attend_coded_run(const AttendBlock& block, const TileWork* tiles, int64_t num_tiles,
                      int64_t num_ahead) {
  CodedState state;
  prepare_coded(block, tiles[0].coded, state);
  if (has_few_rows(block, kFusedRows)) {
    return attend_coded_tiles(block, state, tiles, num_tiles, num_ahead);
  }
  auto* keys = static_cast<uint16_t*>(block.workspace.keys);
  auto* values = static_cast<uint16_t*>(block.workspace.values);
  for (int64_t i = 0; i < num_tiles; ++i) {
    decode_to_bf16(block, state, tiles[i].coded, keys, values);
    Prefetcher none;
    attend_all_rows<DenseType::kBF16>(block, tiles[i], {state.queries, keys, values}, none);
  }
}

// Few rows read the codes themselves.
void attend_half_coded_run(const AttendBlock& block, const TileWork* tiles, int64_t num_tiles) {
  if (has_few_rows(block, kFusedRows) && tiles[0].type != DenseType::kF32) {
    return attend_half_coded(block, tiles, num_tiles);
  }
  for (int64_t i = 0; i < num_tiles; ++i) {
    const bool has_next = block.num_rows <= kPrefetchRows && i + 1 < num_tiles;
    attend_mixed_tile(block, tiles[i], has_next ? &tiles[i + 1] : nullptr);
  }
}

// Tiles from `first` on of dense keys that lie one behind the other and values of the same
// codebook.
int64_t half_coded_run_size(const AttendBlock& block, int64_t first) {
  int64_t end = first + 1;
  while (end < block.num_tiles && is_half_coded(block.tiles[end]) &&
         block.tiles[end - 1].next_keys == block.tiles[end].keys &&
         block.tiles[end].coded.values.codebook == block.tiles[first].coded.values.codebook) {
    ++end;
  }
  return end - first;
}

bool have_same_tables(const CodedTile& a, const CodedTile& b) {
  return have_same_biases(a, b) && a.keys.zeros == b.keys.zeros &&
         a.values.codebook == b.values.codebook && a.hadamard == b.hadamard && a.rope == b.rope;
}

// Tiles from `first` on that are coded with the same tables.
int64_t coded_run_size(const AttendBlock& block, int64_t first) {
  int64_t end = first;
  while (end < block.num_tiles && is_coded(block.tiles[end]) &&
         have_same_tables(block.tiles[end].coded, block.tiles[first].coded)) {
    ++end;
  }
  return end - first;
}

int64_t num_coded_ahead(const AttendBlock& block, int64_t first) {
  int64_t end = first;
  while (end < block.num_tiles + block.num_ahead && is_coded(block.tiles[end])) ++end;
  return end - first;
}

// Weighted sums of values that are rotated are rotated, too; Hadamard rotations undo themselves.
void rotate_sums(const AttendBlock& block) {
  hadamard_rows(block.acc, block.padded_dim, block.num_rows, block.value_dim);
}

// All tiles, whose keys are latents.
void attend_latent_keys(const AttendBlock& block) {
  bool is_rotated = false;  // the sums
  for (int64_t i = 0; i < block.num_tiles; ++i) {
    const TileWork& tile = block.tiles[i];
    if (tile.coded.hadamard != is_rotated) rotate_sums(block);
    is_rotated = tile.coded.hadamard;
    const bool has_next = block.num_rows <= kPrefetchRows && i + 1 < block.num_tiles;
    attend_latent_keys_tile(block, tile, has_next ? &tile + 1 : nullptr);
  }
  if (is_rotated) rotate_sums(block);
}

}  // namespace

void attend_block(const AttendBlock& block) noexcept {
  pack_queries(block, static_cast<uint16_t*>(block.workspace.query));
  const size_t acc_bytes = static_cast<size_t>(block.num_rows * block.padded_dim) * sizeof(float);
  __builtin_memset(block.acc, 0, acc_bytes);
  __builtin_memset(block.workspace.sums, 0, static_cast<size_t>(block.num_rows) * 64);
  for (int64_t row = 0; row < block.num_rows; ++row) {
    block.states[row].max = -__builtin_inff();
  }
  const bool prefetches = block.num_rows > kSweepRows && block.num_rows <= kPrefetchRows;
  const bool has_latent_keys = block.key_biases != nullptr;
  if (has_latent_keys) attend_latent_keys(block);
  for (int64_t i = has_latent_keys ? block.num_tiles : 0; i < block.num_tiles;) {
    const TileWork& tile = block.tiles[i];
    if (is_half_coded(tile)) {
      const int64_t count = half_coded_run_size(block, i);
      if (tile.coded.hadamard) rotate_sums(block);
      attend_half_coded_run(block, &tile, count);
      if (tile.coded.hadamard) rotate_sums(block);
      i += count;
      continue;
    }
    if (is_coded(tile)) {
      const int64_t count = coded_run_size(block, i);
      if (tile.coded.hadamard) rotate_sums(block);
      attend_coded_run(block, &tile, count, num_coded_ahead(block, i + count));
      if (tile.coded.hadamard) rotate_sums(block);
      i += count;
      continue;
    }
    ++i;
    if (block.has_latents) {
      const bool has_next = block.num_rows <= kPrefetchRows && i < block.num_tiles;
      attend_mixed_tile(block, tile, has_next ? &block.tiles[i] : nullptr);
      continue;
    }
    if (!is_dense(tile)) {
      attend_row_tile(block, tile);
      continue;
    }
    const bool asks_ahead = prefetches && i < block.num_tiles && is_dense(block.tiles[i]);
    attend_tile(block, tile, asks_ahead ? &block.tiles[i] : nullptr);
  }
  for (int64_t row = 0; row < block.num_rows; ++row) {
    block.states[row].sum = _mm512_reduce_add_ps(_mm512_loadu_ps(block.workspace.sums + row * 16));
  }
}

}  // namespace kvquant::avx512bf16
