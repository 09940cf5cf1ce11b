// Attention with the matrix registers of Intel AMX: a tile of 64 tokens against 32 rows at a time,
// 2 x 2 registers of 16 x 16 sums. The layout of tiles is already the one of the right operand.
//
// Weights are computed while matrix products run: those of a group of rows take turns with the
// products of the group before it (its weighted sum) and behind it (its scores), row by row.
#include "ops/attend_amxbf16.h"

#include "ops/amx_tiles_inl.h"
#include "ops/attend_avx512bf16_inl.h"

namespace kvquant::amxbf16 {
namespace {

using avx512bf16::soften_row;

constexpr int64_t kDepth = 32;  // bf16 numbers in a register's row; it has kHalfRows of them

// Rows [first, end) of the block, their scores of the tile and what these become.
struct RowGroup {
  int64_t first = 0;
  int64_t end = 0;
  int64_t next = 0;  // the first row whose weights are not computed yet
  float* scores;     // [32, 64]
  uint16_t* p;       // [32, 64]
};

// Computes weights of up to `count` more rows.
void soften(const AttendBlock& block, const TileWork& work, RowGroup& group, int64_t count) {
  for (; count > 0 && group.next < group.end; --count, ++group.next) {
    const int64_t row = group.next, at = (row - group.first) * kTileTokens;
    soften_row(block, row, visible_tokens(work, row / block.group), bias_of(block, work, row),
               group.scores + at, group.p + at);
  }
}

// scores [32, 64] of rows of bf16 queries; `step` is called for each 32 channels of 32 tokens.
template <class Step>
void score(const uint16_t* queries, int64_t stride, const uint16_t* keys, int64_t head_dim,
           float* scores, Step step) {
  constexpr int kScoreBytes = kTileTokens * sizeof(float);
  constexpr int kKeyBytes = 2 * kTileTokens * sizeof(uint16_t);
  const auto query_bytes = static_cast<size_t>(stride) * sizeof(uint16_t);
  for (int64_t token = 0; token < kTileTokens; token += 32) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < head_dim; c += kDepth) {
      const uint16_t* k = keys + c / 2 * (2 * kTileTokens) + 2 * token;
      _tile_loadd(4, queries + c, query_bytes);
      _tile_loadd(6, k, kKeyBytes);
      _tile_loadd(7, k + 32, kKeyBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, queries + kHalfRows * stride + c, query_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      step();
    }
    float* below = scores + kHalfRows * kTileTokens;
    _tile_stored(0, scores + token, kScoreBytes);
    _tile_stored(1, scores + token + 16, kScoreBytes);
    _tile_stored(2, below + token, kScoreBytes);
    _tile_stored(3, below + token + 16, kScoreBytes);
  }
}

// acc [32, stride] += p [32, 64] times values [32][dim][2]; `step` is called for each 32 tokens of
// 32 channels. dim is a multiple of 16.
template <class Step>
void add_values(const uint16_t* p, const uint16_t* values, int64_t dim, float* acc, int64_t stride,
                Step step) {
  constexpr int kWeightBytes = kTileTokens * sizeof(uint16_t);
  const auto acc_bytes = static_cast<size_t>(stride) * sizeof(float);
  const auto value_bytes = static_cast<size_t>(dim) * 2 * sizeof(uint16_t);
  for (int64_t c = 0; c < dim; c += 32) {
    const bool is_wide = c + 16 < dim;
    float* below = acc + kHalfRows * stride;
    _tile_loadd(0, acc + c, acc_bytes);
    _tile_loadd(2, below + c, acc_bytes);
    if (is_wide) {
      _tile_loadd(1, acc + c + 16, acc_bytes);
      _tile_loadd(3, below + c + 16, acc_bytes);
    }
    for (int64_t token = 0; token < kTileTokens; token += kDepth) {
      const uint16_t* v = values + token * dim + 2 * c;
      _tile_loadd(4, p + token, kWeightBytes);
      _tile_loadd(5, p + kHalfRows * kTileTokens + token, kWeightBytes);
      _tile_loadd(6, v, value_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      if (is_wide) {
        _tile_loadd(7, v + 32, value_bytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      step();
    }
    _tile_stored(0, acc + c, acc_bytes);
    _tile_stored(2, below + c, acc_bytes);
    if (is_wide) {
      _tile_stored(1, acc + c + 16, acc_bytes);
      _tile_stored(3, below + c + 16, acc_bytes);
    }
  }
}

bool sees_something(const AttendBlock& block, const TileWork& work, int64_t first, int64_t end) {
  for (int64_t query = first / block.group; query <= (end - 1) / block.group; ++query) {
    const TokenRange seen = visible_tokens(work, query);
    if (seen.begin < seen.end) return true;
  }
  return false;
}

// Whole registers are multiplied: values behind the last token may not be NaN, whatever their
// weights of 0. Tiles that are read in place have zeros there.
void clear_unused(const AttendBlock& block, const TileWork& work, const PairTile& tile) {
  if (tile.values != block.workspace.values) return;
  const int64_t pair_size = 2 * ((block.value_dim + 15) / 16 * 16);
  const int64_t used = (work.num_tokens + 1) / 2 * pair_size;
  auto* values = static_cast<uint16_t*>(block.workspace.values);
  for (int64_t i = used; i < kTileTokens / 2 * pair_size; ++i) values[i] = 0;
}

class Tile {
 public:
  Tile(const AttendBlock& block, const TileWork& work, const PairTile& tile)
      : block_(block),
        work_(work),
        tile_(tile),
        value_dim_((block.value_dim + 15) / 16 * 16),
        rows_per_step_((kGroupRows + num_steps() - 1) / num_steps()) {}

  void score_rows(RowGroup& group, RowGroup* before) {
    score(tile_.queries + group.first * block_.padded_dim, block_.padded_dim, tile_.keys,
          block_.head_dim, group.scores, [&] { soften_some(before); });
  }

  // `behind`: the group whose scores are known already.
  void add_rows(RowGroup& group, RowGroup* behind) {
    soften(block_, work_, group, kGroupRows);
    const int64_t num_rows = group.end - group.first;
    for (int64_t i = num_rows * kTileTokens; i < kGroupRows * kTileTokens; ++i) group.p[i] = 0;
    float* acc = block_.acc + group.first * block_.padded_dim;
    const auto step = [&] { soften_some(behind); };
    if (num_rows == kGroupRows) {
      return add_values(group.p, tile_.values, value_dim_, acc, block_.padded_dim, step);
    }
    // Rows behind the last are not ours: sums of whole registers go to a copy.
    alignas(64) float sums[kGroupRows * kMaxNuqHeadDim];
    copy_rows(acc, block_.padded_dim, num_rows, sums, value_dim_);
    add_values(group.p, tile_.values, value_dim_, sums, value_dim_, step);
    copy_rows(sums, value_dim_, num_rows, acc, block_.padded_dim);
  }

 private:
  // Products of a group between which the rows of another are softened.
  int64_t num_steps() const {
    return kTileTokens / 32 * (block_.head_dim / kDepth + (value_dim_ + 31) / 32);
  }
  void soften_some(RowGroup* group) {
    if (group != nullptr) soften(block_, work_, *group, rows_per_step_);
  }
  void copy_rows(const float* from, int64_t from_stride, int64_t num_rows, float* to,
                 int64_t to_stride) const {
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t c = 0; c < value_dim_; c += 16) {
        _mm512_storeu_ps(to + row * to_stride + c, _mm512_loadu_ps(from + row * from_stride + c));
      }
    }
  }

  const AttendBlock& block_;
  const TileWork& work_;
  const PairTile& tile_;
  int64_t value_dim_;
  int64_t rows_per_step_;
};

}  // namespace

void attend_tile(const AttendBlock& block, const TileWork& work, const PairTile& tile) noexcept {
  const TileRegisters registers(kAllOf16Rows);
  clear_unused(block, work, tile);
  alignas(64) float scores[2][kGroupRows * kTileTokens];
  alignas(64) uint16_t p[2][kGroupRows * kTileTokens];
  RowGroup groups[2];
  for (int i = 0; i < 2; ++i) {
    groups[i].scores = scores[i];
    groups[i].p = p[i];
  }
  Tile products(block, work, tile);
  RowGroup* before = nullptr;  // scored, not summed
  for (int64_t first = 0; first < block.num_rows; first += kGroupRows) {
    const int64_t end = first + kGroupRows < block.num_rows ? first + kGroupRows : block.num_rows;
    if (!sees_something(block, work, first, end)) continue;
    RowGroup& group = before == &groups[0] ? groups[1] : groups[0];
    group.first = group.next = first;
    group.end = end;
    products.score_rows(group, before);
    if (before != nullptr) products.add_rows(*before, &group);
    before = &group;
  }
  if (before != nullptr) products.add_rows(*before, nullptr);
}

}  // namespace kvquant::amxbf16
