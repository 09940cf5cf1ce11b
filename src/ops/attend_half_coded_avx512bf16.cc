#include "ops/attend_half_coded_avx512bf16.h"

#include "ops/attend_coded_avx512bf16.h"
#include "ops/coded_values_avx512bf16_inl.h"
#include "ops/dense_scores_avx512bf16_inl.h"

namespace kvquant::avx512bf16 {
namespace {

// Keys to ask for while others are read. One row or two sweep through them so fast that the CPU
// follows by itself, and better.
template <int R>
Prefetcher ask_for_keys(const AttendBlock& block, const TileWork* next) {
  Prefetcher ahead;
  if (next == nullptr || R <= 2) return ahead;
  const int64_t bytes = kTileTokens * block.head_dim * (next->type == DenseType::kF32 ? 4 : 2);
  const int64_t num_steps = block.head_dim / 2 / num_score_sums(R);
  ahead.line = static_cast<const char*>(next->keys);
  ahead.end = ahead.line + bytes;
  ahead.bytes = bytes;
  ahead.step_bytes = (bytes / num_steps + 63) / 64 * 64;
  return ahead;
}

// scores [R][64] of R rows and the keys of a tile.
template <int R>
void score_keys(const AttendBlock& block, const void* keys, DenseType type, int64_t row,
                const TileWork* next, float* scores) {
  const auto* queries =
      static_cast<const uint16_t*>(block.workspace.query) + row * block.padded_dim;
  const auto* from = static_cast<const uint16_t*>(keys);
  const int64_t stride = block.padded_dim, num_pairs = block.head_dim / 2;
  Prefetcher ahead = ask_for_keys<R>(block, next);
  if (type == DenseType::kF16) {
    return score_rows<DenseType::kF16, R>(from, queries, stride, num_pairs, ahead, scores);
  }
  score_rows<DenseType::kBF16, R>(from, queries, stride, num_pairs, ahead, scores);
}

// Of rows of 64 scores each, those from `offset` on and, behind them, those of the tile after it.
template <int R>
void shift_scores(const float* here, const float* there, int64_t offset, float* scores) {
  const auto left = static_cast<size_t>(kTileTokens - offset);
  for (int r = 0; r < R; ++r) {
    const int64_t row = r * kTileTokens;
    __builtin_memcpy(scores + row, here + row + offset, left * sizeof(float));
    __builtin_memcpy(scores + row + left, there + row, static_cast<size_t>(offset) * sizeof(float));
  }
}

// Scores of a group's tiles, whose first token may have its key anywhere in the key tile.
template <int R>
void score_group(const AttendBlock& block, int64_t row, const TileWork* const* next,
                 Group<R>& group) {
  const int64_t offset = group.tiles[0].key_offset;
  alignas(64) float here[R * kTileTokens], there[R * kTileTokens];
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    const TileWork& tile = group.tiles[i];
    if (offset == 0) {
      score_keys<R>(block, tile.keys, tile.type, row, next[i], group.scores[i]);
      continue;
    }
    if (i == 0) score_keys<R>(block, tile.keys, tile.type, row, nullptr, here);
    if (tile.next_keys != nullptr) {
      score_keys<R>(block, tile.next_keys, tile.type, row, next[i], there);
    } else {
      __builtin_memset(there, 0, sizeof there);  // nobody sees them
    }
    shift_scores<R>(here, there, offset, group.scores[i]);
    __builtin_memcpy(here, there, sizeof here);
  }
}

template <int R>
void attend_rows(const AttendBlock& block, const uint16_t* value_table, int64_t row,
                 const TileWork* const* next, Group<R>& group) {
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    for (int r = 0; r < R; ++r) {
      group.seen[i][r] = visible_tokens(group.tiles[i], (row + r) / block.group);
    }
  }
  score_group(block, row, next, group);
  for (int r = 0; r < R; ++r) weigh_row(block, row + r, r, group);
  float* acc = block.acc + row * block.padded_dim;
  for (int64_t i = 0; i < group.num_tiles; ++i) {
    const TileWork& ahead = next[i] == nullptr ? group.tiles[i] : *next[i];
    add_tile<R>(block, group.tiles[i].coded.values, value_table, ahead.coded.values.codes,
                group.weights[i], acc);
  }
}

template <int R>
void attend_group(const AttendBlock& block, const uint16_t* value_table, const TileWork* tiles,
                  int64_t num_tiles, int64_t row, const TileWork* const* next) {
  Group<R> group;
  group.tiles = tiles;
  group.num_tiles = num_tiles;
  attend_rows(block, value_table, row, next, group);
}

}  // namespace

void attend_half_coded(const AttendBlock& block, const TileWork* tiles, int64_t num_tiles) {
  alignas(64) uint16_t value_table[32];
  make_value_table(*tiles[0].coded.values.codebook, value_table);
  __builtin_memset(block.workspace.biases, 0, static_cast<size_t>(block.num_rows) * sizeof(float));
  const TileWork* end = block.tiles + block.num_tiles + block.num_ahead;
  for (int64_t first = 0; first < num_tiles; first += kGroupTiles) {
    const TileWork* group = tiles + first;
    const int64_t left = num_tiles - first, count = left < kGroupTiles ? left : kGroupTiles;
    const TileWork* next[kGroupTiles];
    for (int64_t i = 0; i < count; ++i) {
      const TileWork* tile = group + i + 1;
      next[i] = tile < end && is_half_coded(*tile) ? tile : nullptr;
    }
    const int64_t num_blocks = (block.num_rows + kRegisterRows - 1) / kRegisterRows;
    for (int64_t i = 0; i < num_blocks; ++i) {  // of even size
      const int64_t row = i * block.num_rows / num_blocks;
      switch ((i + 1) * block.num_rows / num_blocks - row) {
        case 1: attend_group<1>(block, value_table, group, count, row, next); break;
        case 2: attend_group<2>(block, value_table, group, count, row, next); break;
        case 3: attend_group<3>(block, value_table, group, count, row, next); break;
        default: attend_group<4>(block, value_table, group, count, row, next); break;
      }
    }
  }
}

}  // namespace kvquant::avx512bf16
