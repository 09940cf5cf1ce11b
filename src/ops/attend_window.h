// Which tokens of a run queries may see, as arithmetic on positions: shared by the plan and by
// kernels, on the CPU and on the GPU.
#pragma once

#include <cstdint>

#include "formats/dense_tile.h"

namespace kvquant {

// Positions and lags are limited so that their differences can't overflow.
inline constexpr int64_t kMaxPosition = int64_t{1} << 60;

// Of AttendRun: query i sees token j if min_lag <= i - j < max_lag.
struct RunWindow {
  int64_t num_tokens;
  int64_t first_position;
  int64_t min_lag;
  int64_t max_lag;
};

// Tiles [begin, end) of a run.
struct TileRange {
  int64_t begin;
  int64_t end;
};

// Query q of a block sees tokens [max(0, first + q), min(num_tokens, end + q)) of a tile.
struct TileTokens {
  int32_t num_tokens;
  int32_t first;  // may be negative
  int32_t end;    // may be negative, or beyond the tile
};

constexpr int64_t clamp_to(int64_t x, int64_t least, int64_t most) {
  return x < least ? least : x > most ? most : x;
}
constexpr int64_t clamp_lag(int64_t lag) {
  return clamp_to(lag, -2 * kMaxPosition, 2 * kMaxPosition);
}

// Those that a query among [first_position, first_position + num_queries) may see.
constexpr TileRange visible_tiles(const RunWindow& run, int64_t first_position,
                                  int64_t num_queries) {
  const int64_t last_position = first_position + num_queries - 1;
  const int64_t min_lag = clamp_lag(run.min_lag), max_lag = clamp_lag(run.max_lag);
  // Tokens the first query no longer sees, and one past the last token the last query sees.
  const int64_t first = first_position - max_lag + 1 - run.first_position;
  const int64_t last_end = last_position - min_lag + 1 - run.first_position;
  const int64_t end = last_end < run.num_tokens ? last_end : run.num_tokens;
  const int64_t begin_tile = first < 0 ? 0 : first / kTileTokens;
  const int64_t end_tile = end <= 0 ? 0 : (end + kTileTokens - 1) / kTileTokens;
  const bool none = min_lag >= max_lag || num_queries <= 0 || end_tile < begin_tile;
  return {begin_tile, none ? begin_tile : end_tile};
}

// Of a tile of the run; `position` is that of query 0.
constexpr TileTokens tile_tokens(const RunWindow& run, int64_t tile, int64_t position) {
  // Beyond a tile all values are alike, as long as adding the number of a query (below 2^30 in a
  // block) changes nothing about that.
  constexpr int64_t kFar = int64_t{1} << 30;
  const int64_t before = tile * kTileTokens;
  const int64_t offset = position - run.first_position - before;
  return {static_cast<int32_t>(clamp_to(run.num_tokens - before, 0, kTileTokens)),
          static_cast<int32_t>(clamp_to(offset - clamp_lag(run.max_lag) + 1, -kFar, kFar)),
          static_cast<int32_t>(clamp_to(offset - clamp_lag(run.min_lag) + 1, -kFar, kFar))};
}

}  // namespace kvquant
