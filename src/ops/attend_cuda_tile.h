// Which tile a task reads next, and where its parts are.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda.h"

namespace kvquant {

// One side of one tile.
struct CudaCodes {
  int64_t piece_offset = 0;    // kDense
  const Half* rows = nullptr;  // kRows: of the tile
  // kCoded:
  const NuqCodebook* codebook = nullptr;
  const OutlierPage* const* pages = nullptr;
  const uint32_t* words = nullptr;  // code_words.h
  const Half* scales = nullptr;     // keys: [head_dim]; values: [64]
  const Half* zeros = nullptr;
  uint32_t first_outlier = 0;
  int32_t num_outliers = 0;
};

struct CudaTile {
  const CudaRun* run = nullptr;
  int64_t index = 0;  // of the run
  TileTokens tokens{};
  CudaCodes keys, values;
};

KVQUANT_DEVICE CudaCodes find_codes(const CudaSide& side, int64_t tile, int64_t job_head) {
  CudaCodes codes;
  if (side.source == TileSource::kDense) {
    codes.piece_offset = side.piece_offset + job_head * side.head_step;
    return codes;
  }
  if (side.source == TileSource::kRows) {
    codes.rows = side.rows + job_head * side.head_step + tile * kTileTokens * side.row_stride;
    return codes;
  }
  const int64_t head = side.head + job_head;
  codes.codebook = side.codebook + job_head * side.codebook_step;
  const std::byte* block = side.blocks[tile / side.shape.num_tiles];
  const int64_t index = tile % side.shape.num_tiles;
  codes.words = reinterpret_cast<const uint32_t*>(block + side.layout.codes(head, index));
  if (side.shape.side == KvSide::kKey) {
    int64_t segment = 0;
    for (int64_t i = 0; i < side.num_segment_starts; ++i) {
      segment += tile >= side.segment_starts[i] ? 1 : 0;
    }
    const int64_t params = job_head * side.head_step + segment * side.segment_stride;
    codes.scales = side.scales + params;
    codes.zeros = side.zeros + params;
  } else {
    const int64_t first = side.shape.token_params(index, head);
    codes.scales = reinterpret_cast<const Half*>(block + side.layout.scales) + first;
    codes.zeros = reinterpret_cast<const Half*>(block + side.layout.zeros) + first;
  }
  if (side.shape.has_outliers) {
    codes.pages = side.pages + job_head * side.page_step;
    const int64_t of_head = index * side.shape.num_kv_heads + head;
    codes.first_outlier = reinterpret_cast<const uint32_t*>(block + side.layout.starts)[of_head];
    codes.num_outliers = reinterpret_cast<const uint16_t*>(block + side.layout.counts)[of_head];
  }
  return codes;
}

// Tile `index` of a dense side.
KVQUANT_DEVICE const void* dense_tile(const CudaSide& side, const CudaCodes& codes, int64_t index) {
  const int64_t tile = side.first_tile + index;
  return static_cast<const std::byte*>(side.pieces[tile / side.tiles_per_piece]) +
         codes.piece_offset + tile % side.tiles_per_piece * side.tile_stride;
}

// Entry `index` of a tile's outliers.
KVQUANT_DEVICE OutlierEntry outlier_at(const CudaCodes& codes, int64_t index) {
  const uint32_t entry = codes.first_outlier + static_cast<uint32_t>(index);
  return codes.pages[entry / kOutliersPerPage]->entries[entry % kOutliersPerPage];
}

// Consecutive tiles of a run, of those of a task.
struct CudaSpan {
  const CudaRun* run = nullptr;
  TileRange tiles{};
};

// The tiles of a task in the order of attend_plan.h, a run at a time.
class CudaSpans {
 public:
  KVQUANT_DEVICE CudaSpans(const CudaJob& job, const CudaRun* runs, const AttendTask& task)
      : run_(runs + job.first_run),
        end_(run_ + job.num_runs),
        head_(job.head),
        position_(job.first_position + task.first_query),
        num_queries_(task.num_queries),
        kind_(task.values),
        skip_(task.first_tile),
        left_(task.num_tiles) {}

  // Tile `index` of a run.
  KVQUANT_DEVICE CudaTile find(const CudaRun& run, int64_t index) const {
    return {&run, index, tile_tokens(run.window, index, position_),
            find_codes(run.keys, index, head_), find_codes(run.values, index, head_)};
  }

  // The next ones, at least one tile; false when there are none left.
  KVQUANT_DEVICE bool next(CudaSpan& span) {
    for (; left_ > 0 && run_ < end_; ++run_) {
      if (run_->kind != kind_) continue;
      const TileRange range = visible_tiles(run_->window, position_, num_queries_);
      const int64_t count = range.end - range.begin;
      const int64_t skipped = skip_ < count ? skip_ : count;
      const int64_t taken = count - skipped < left_ ? count - skipped : left_;
      skip_ -= skipped;
      left_ -= taken;
      if (taken == 0) continue;
      span = {run_++, {range.begin + skipped, range.begin + skipped + taken}};
      return true;
    }
    return false;
  }

 private:
  const CudaRun* run_;
  const CudaRun* end_;
  int64_t head_, position_, num_queries_;
  ValueKind kind_;
  int64_t skip_, left_;
};

// Whether codes of a side may be looked up where they are multiplied (attend_cuda_direct.h).
KVQUANT_DEVICE constexpr bool is_direct(const CudaSide& side) {
  return side.source == TileSource::kCoded && side.shape.bits <= kMaxCodeBits &&
         !side.shape.has_latents && !side.shape.bands.is_banded() && !side.hadamard;
}
KVQUANT_DEVICE constexpr bool is_direct(const CudaRun& run) {
  return is_direct(run.keys) && is_direct(run.values);
}

// One tile after the other; all, or those of runs that are not direct.
enum class TileChoice { kAll, kNotDirect };

class CudaTiles {
 public:
  KVQUANT_DEVICE CudaTiles(const CudaSpans& spans, TileChoice choice)
      : spans_(spans), choice_(choice) {}

  // The next tile; false when there is none left.
  KVQUANT_DEVICE bool next(CudaTile& tile) {
    while (index_ == span_.tiles.end ||
           (choice_ == TileChoice::kNotDirect && is_direct(*span_.run))) {
      if (!spans_.next(span_)) return false;
      index_ = span_.tiles.begin;
    }
    tile = spans_.find(*span_.run, index_++);
    return true;
  }

 private:
  CudaSpans spans_;
  TileChoice choice_;
  CudaSpan span_{};
  int64_t index_ = 0;
};

}  // namespace kvquant
