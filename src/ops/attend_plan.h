// How attention is cut into tasks: a pure function of the shapes, never of the number of threads,
// so that results are the same at any number of them.
//
// A block is some consecutive queries of a job with all heads of the group; it reads the tiles that
// at least one of its queries sees. Small blocks (decode steps) are cut into spans of tiles that
// run in parallel and are merged in order; large ones (prefill) are one task each.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/attend.h"
#include "ops/attend_kernels.h"
#include "ops/attend_window.h"

namespace kvquant {

// Rows (queries times group) of a block. A tile is converted once per block, so more rows amortise
// more: converting f16 to bf16 costs as much as the products of four rows (Zen 4), of 30 with the
// matrix registers of AMX, which are therefore given blocks of kAmxBlockRows as long as there are
// enough of these for all threads. Rows don't depend on those beside them.
inline constexpr int64_t kBlockRows = 128;
inline constexpr int64_t kAmxBlockRows = 512;
// A job of at most this many rows is one block, cut into spans of tiles.
inline constexpr int64_t kSplitRows = 64;
inline constexpr int64_t kSpanTiles = 16;

// What a task reads: tokens without latents, or those whose keys, values or both are latents. Never
// both kinds: their queries and sums have other sizes.
enum class ValueKind { kPlain, kLatents };

struct AttendTask {
  int64_t job;
  int64_t first_query;
  int64_t num_queries;
  ValueKind values;
  int64_t first_tile;  // of the tiles of this kind the block sees, in the order of the runs
  int64_t num_tiles;
  int64_t partial_row;  // where its rows of partial results are; -1: its result is final
};

// A block whose result is put together from num_parts tasks, the last num_latent_parts of them
// latents; zeros if there are none.
struct AttendMerge {
  int64_t job;
  int64_t first_query;
  int64_t num_queries;
  int64_t first_partial_row;  // part p, row r is at first_partial_row + p * rows + r
  int64_t num_parts;
  int64_t num_latent_parts;
};

struct AttendPlan {
  std::vector<AttendTask> tasks;
  std::vector<AttendMerge> merges;
  int64_t num_partial_rows = 0;
  int64_t max_rows = 0;   // of a task
  int64_t max_tiles = 0;  // of a task
};

// How large blocks and parts are.
struct AttendCut {
  int64_t block_rows = kBlockRows;
  int64_t split_rows = kSplitRows;  // a job of at most as many rows is cut into spans
  int64_t span_tiles = kSpanTiles;
};

// All of a job that the plan depends on.
struct PlannedRun {
  RunWindow window{};
  ValueKind kind = ValueKind::kPlain;
};
struct PlannedJob {
  int64_t num_queries = 0;
  int64_t first_position = 0;
  std::span<const PlannedRun> runs;
};

// Fills `plan`, whose memory is reused. A block has the rows of one query at least.
void plan_attend(int64_t group, const AttendCut& cut, std::span<const AttendJob> jobs,
                 AttendPlan& plan);
void plan_attend(int64_t group, const AttendCut& cut, std::span<const PlannedJob> jobs,
                 AttendPlan& plan);

inline RunWindow window_of(const AttendRun& run) {
  return {run.num_tokens, run.first_position, run.min_lag, run.max_lag};
}

// Tiles of a run that a query among [first_position, first_position + num_queries) may see.
inline TileRange visible_tiles(const AttendRun& run, int64_t first_position, int64_t num_queries) {
  return visible_tiles(window_of(run), first_position, num_queries);
}

// Writes the tiles of a task to `out`, which has room for task.num_tiles.
void list_tiles(const AttendJob& job, const AttendTask& task, TileWork* out) noexcept;

// Asks for where the task's outliers are listed, which list_tiles reads: that is far apart in
// memory, a block each. For the task after the one at hand.
void prefetch_lists(const AttendJob& job, const AttendTask& task) noexcept;

}  // namespace kvquant
