#include "ops/attend_plan.h"

#include <algorithm>

namespace kvquant {
namespace {

ValueKind kind_of(const AttendRun& run) {
  return run.is_low_rank() ? ValueKind::kLatents : ValueKind::kPlain;
}

ValueKind kind_of(const PlannedRun& run) { return run.kind; }
const RunWindow& window_of(const PlannedRun& run) { return run.window; }

template <class Job>
int64_t num_visible_tiles(const Job& job, const AttendTask& block, ValueKind kind) {
  int64_t count = 0;
  for (const auto& run : job.runs) {
    if (kind_of(run) != kind) continue;
    const auto [begin, end] =
        visible_tiles(window_of(run), job.first_position + block.first_query, block.num_queries);
    count += end - begin;
  }
  return count;
}

// Tiles of a block by kind of values, and how many of them make a part.
struct Spans {
  int64_t num_plain, num_latents;
  int64_t span_tiles;
};

void add_block(const AttendTask& block, int64_t rows, const Spans& spans, AttendPlan& plan) {
  const auto num_spans = [&](int64_t tiles) {
    return (tiles + spans.span_tiles - 1) / spans.span_tiles;
  };
  const int64_t num_plain = num_spans(spans.num_plain), num_latents = num_spans(spans.num_latents);
  const int64_t num_parts = num_plain + num_latents;
  const bool is_final = num_parts == 1 && num_latents == 0;
  if (!is_final) {
    plan.merges.push_back({block.job, block.first_query, block.num_queries, plan.num_partial_rows,
                           num_parts, num_latents});
  }
  for (int64_t part = 0; part < num_parts; ++part) {
    const bool is_plain = part < num_plain;
    AttendTask task = block;
    task.values = is_plain ? ValueKind::kPlain : ValueKind::kLatents;
    task.first_tile = (is_plain ? part : part - num_plain) * spans.span_tiles;
    const int64_t num_tiles = is_plain ? spans.num_plain : spans.num_latents;
    task.num_tiles = std::min(spans.span_tiles, num_tiles - task.first_tile);
    task.partial_row = is_final ? -1 : plan.num_partial_rows + part * rows;
    plan.tasks.push_back(task);
    plan.max_rows = std::max(plan.max_rows, rows);
    plan.max_tiles = std::max(plan.max_tiles, task.num_tiles);
  }
  if (!is_final) plan.num_partial_rows += num_parts * rows;
}

// Written in place, like everything of a TileWork: a copy right behind its parts would wait for
// each of them.
void point_at(const CodedSide& side, int64_t tile, CodedPart& part) {
  const std::byte* block = side.blocks[tile / side.shape.num_tiles];
  const int64_t index = tile % side.shape.num_tiles;
  const int64_t of_head = index * side.shape.num_kv_heads + side.head;
  part.codebook = side.codebook;
  part.codes = reinterpret_cast<const uint8_t*>(block) + side.layout.codes(side.head, index);
  if (side.shape.side == KvSide::kKey) {
    part.scales = side.scales + side.segment_offset(tile);
    part.zeros = side.zeros + side.segment_offset(tile);
  } else {
    const int64_t first = side.shape.token_params(index, side.head);
    part.scales = reinterpret_cast<const Half*>(block + side.layout.scales) + first;
    part.zeros = reinterpret_cast<const Half*>(block + side.layout.zeros) + first;
  }
  part.pages = side.pages.data();
  part.num_bytes = side.layout.code_tile;
  part.bands = side.shape.bands.is_banded() ? &side.shape.bands : nullptr;
  part.first_outlier = part.num_outliers = 0;
  if (side.shape.has_outliers) {
    part.first_outlier = reinterpret_cast<const uint32_t*>(block + side.layout.starts)[of_head];
    part.num_outliers = reinterpret_cast<const uint16_t*>(block + side.layout.counts)[of_head];
  }
}

void prefetch_lists(const CodedSide& side, int64_t first, int64_t last) {
  if (!side.shape.has_outliers || first >= last) return;
  const int64_t tiles = side.shape.num_tiles;
  for (int64_t i = first / tiles; i <= (last - 1) / tiles; ++i) {
    __builtin_prefetch(side.blocks[i] + side.layout.starts);
    __builtin_prefetch(side.blocks[i] + side.layout.counts);
  }
}

void point_at(const AttendRun& run, int64_t tile, CodedTile& coded) {
  const int64_t middle = run.first_position + tile * kTileTokens + RopeTiles::kMiddle;
  point_at(*run.coded_keys, tile, coded.keys);
  point_at(*run.coded_values, tile, coded.values);
  coded.hadamard = run.coded_values->hadamard;
  coded.middle_cos = run.rope->cos(middle);
  coded.middle_sin = run.rope->sin(middle);
  coded.rope = &run.rope->tiles();
  coded.logit_bias = run.coded_keys->logit_bias;
}

// Of a run whose keys are latents.
void point_at_latent_keys(const AttendRun& run, int64_t tile, TileWork& work) {
  point_at(*run.coded_keys, tile, work.coded.keys);
  if (!run.coded_keys->shape.has_codes()) work.keys = work.coded.keys.codes;
  if (run.coded_values != nullptr) {
    work.coded.hadamard = run.coded_values->hadamard;
    work.type = DenseType::kF16;  // if values are latents without codes
    return point_at(*run.coded_values, tile, work.coded.values);
  }
  const bool has_next = tile + 1 < static_cast<int64_t>(run.value_tiles.size());
  work.values = run.value_tiles[tile];
  work.next_values = has_next ? run.value_tiles[tile + 1] : nullptr;
  work.value_offset = static_cast<int32_t>(run.value_offset);
}

// Keys and values of a tile, how many of its tokens there are, and who sees them.
void describe(const AttendRun& run, int64_t tile, int64_t position, TileWork& work) {
  const int64_t first = tile * kTileTokens;
  work.keys = work.values = work.next_keys = work.next_values = nullptr;
  work.key_offset = work.value_offset = 0;
  work.coded.hadamard = false;
  work.rows = {};
  work.type = run.type;
  const TileTokens tokens = tile_tokens(window_of(run), tile, position);
  work.num_tokens = tokens.num_tokens;
  work.first_token = tokens.first;
  work.end_token = tokens.end;
  if (run.key_latents() != nullptr) {
    point_at_latent_keys(run, tile, work);
  } else if (run.is_coded()) {
    point_at(run, tile, work.coded);
  } else if (run.is_half_coded()) {
    work.coded.hadamard = run.coded_values->hadamard;
    work.keys = run.key_tiles[tile];
    const bool has_next = tile + 1 < static_cast<int64_t>(run.key_tiles.size());
    work.next_keys = has_next ? run.key_tiles[tile + 1] : nullptr;
    work.key_offset = static_cast<int32_t>(run.key_offset);
    point_at(*run.coded_values, tile, work.coded.values);
  } else if (run.is_rows()) {
    work.keys = run.key_rows + first * run.row_stride;
    work.values = run.value_rows + first * run.row_stride;
    work.rows = {run.row_stride, run.rope->cos(run.first_position + first),
                 run.rope->sin(run.first_position + first), &run.rope->tiles()};
  } else {
    work.keys = run.key_tiles[tile];
    work.values = run.value_tiles[tile];
  }
  const bool is_half = run.latents() != nullptr && !run.coded_values->shape.has_codes();
  if (is_half) work.values = work.coded.values.codes;
}

// Calls fn(run, first, last) for the tiles [first, last) of each run that are the task's.
template <class Fn>
void for_each_run(const AttendJob& job, const AttendTask& task, Fn&& fn) {
  const int64_t position = job.first_position + task.first_query;
  int64_t skip = task.first_tile;
  int64_t left = task.num_tiles;
  for (const AttendRun& run : job.runs) {
    if (kind_of(run) != task.values) continue;
    const auto [begin, end] = visible_tiles(run, position, task.num_queries);
    const int64_t first = std::min(end, begin + skip);
    skip -= first - begin;
    const int64_t last = std::min(end, first + left);
    left -= last - first;
    fn(run, first, last);
  }
}

template <class Job>
void plan_jobs(int64_t group, const AttendCut& cut, std::span<const Job> jobs, AttendPlan& plan) {
  plan.tasks.clear();
  plan.merges.clear();
  plan.num_partial_rows = plan.max_rows = plan.max_tiles = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Job& job = jobs[i];
    const bool split = job.num_queries <= cut.split_rows / group;
    const int64_t step = std::max<int64_t>(1, (split ? cut.split_rows : cut.block_rows) / group);
    for (int64_t query = 0; query < job.num_queries; query += step) {
      AttendTask block{};
      block.job = static_cast<int64_t>(i);
      block.first_query = query;
      block.num_queries = std::min(step, job.num_queries - query);
      const int64_t num_plain = num_visible_tiles(job, block, ValueKind::kPlain);
      const int64_t num_latents = num_visible_tiles(job, block, ValueKind::kLatents);
      const int64_t span = split ? cut.span_tiles : std::max<int64_t>(1, num_plain + num_latents);
      add_block(block, block.num_queries * group, {num_plain, num_latents, span}, plan);
    }
  }
}

}  // namespace

void plan_attend(int64_t group, const AttendCut& cut, std::span<const AttendJob> jobs,
                 AttendPlan& plan) {
  plan_jobs(group, cut, jobs, plan);
}

void plan_attend(int64_t group, const AttendCut& cut, std::span<const PlannedJob> jobs,
                 AttendPlan& plan) {
  plan_jobs(group, cut, jobs, plan);
}

void list_tiles(const AttendJob& job, const AttendTask& task, TileWork* out) noexcept {
  const int64_t position = job.first_position + task.first_query;
  for_each_run(job, task, [&](const AttendRun& run, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) describe(run, tile, position, *out++);
  });
}

void prefetch_lists(const AttendJob& job, const AttendTask& task) noexcept {
  for_each_run(job, task, [](const AttendRun& run, int64_t first, int64_t last) {
    if (run.is_coded()) prefetch_lists(*run.coded_keys, first, last);
    if (run.coded_values != nullptr) prefetch_lists(*run.coded_values, first, last);
  });
}

}  // namespace kvquant
