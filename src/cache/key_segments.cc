#include "cache/key_segments.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <utility>

#include "formats/dense_tile.h"
#include "ops/rows.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr int64_t kChannelsPerTask = 16;  // of a cache line of a row

}  // namespace

int64_t KeySegments::segment_of(int64_t tile) const {
  return std::upper_bound(starts_.begin(), starts_.end(), tile) - starts_.begin();
}

// Room for the ranges of a segment from `tile` on, in place of one that has no tiles.
std::span<Half> KeySegments::add(int64_t tile) {
  const auto size = static_cast<size_t>(stride());
  const bool replaces = !ranges_.empty() && start(num_segments() - 1) == tile;
  if (!replaces) {
    if (!ranges_.empty()) starts_.push_back(static_cast<int32_t>(tile));
    ranges_.reserve(ranges_.size() + size);  // no more
    ranges_.resize(ranges_.size() + size);
  }
  return std::span(ranges_).last(size);
}

void KeySegments::begin(int64_t tile, const HalfRows& rows, ThreadPool& pool) {
  const int64_t num_rows = rows.num_rows();
  assert(num_rows > 0);
  const std::span<Half> ranges = add(tile);
  const int64_t num_tasks = (row_size_ + kChannelsPerTask - 1) / kChannelsPerTask;
  pool.parallel_for(num_tasks, [&](int64_t task, int) {
    const int64_t first = task * kChannelsPerTask;
    const int64_t end = std::min(row_size_, first + kChannelsPerTask);
    std::vector<float> columns(static_cast<size_t>((end - first) * num_rows));
    float row[kChannelsPerTask];
    for (int64_t t = 0; t < num_rows; ++t) {
      rows.widen_block(t, 1, first, end - first, row);
      for (int64_t c = 0; c < end - first; ++c) columns[c * num_rows + t] = row[c];
    }
    for (int64_t c = first; c < end; ++c) {
      const std::span column = std::span(columns).subspan((c - first) * num_rows, num_rows);
      const ChannelRange range = fit_channel(column, outlier_percent_);
      ranges[c] = range.scale;
      ranges[row_size_ + c] = range.zero;
      if (outlier_percent_ == 0) continue;
      ranges[2 * row_size_ + c] = range.low;
      ranges[3 * row_size_ + c] = range.high;
    }
  });
}

bool KeySegments::have_drifted(int64_t tile, const HalfRows& rows, ThreadPool& pool) const {
  const int64_t num_rows = rows.num_rows();
  if (num_rows < kMinFitRows || tile - start(num_segments() - 1) < kMinTiles) return false;
  const std::span last = std::span(ranges_).last(stride());
  std::vector<float> low(row_size_), high(row_size_);
  for (int64_t c = 0; c < row_size_; ++c) {
    const float scale = to_float(last[c]), zero = to_float(last[row_size_ + c]);
    low[c] = zero - scale;
    high[c] = zero + scale;
  }
  std::atomic<int64_t> total = 0;
  for_row_ranges(num_rows, pool, [&](int64_t first, int64_t end) {
    std::vector<float> row(row_size_);
    int64_t sum = 0;
    for (int64_t t = first; t < end; ++t) {
      widen(rows.row(t), row.data());
      sum += num_outside(row, low.data(), high.data());
    }
    total += sum;
  });
  const double allowed = 1.5 * outlier_percent_ / 100 + 1.0 / 200;
  return static_cast<double>(total.load()) > allowed * static_cast<double>(num_rows * row_size_);
}

void KeySegments::append(const KeySegments& from, int64_t first_tile, int64_t num_tiles,
                         int64_t tile) {
  const int64_t last = from.segment_of(first_tile + num_tiles - 1);
  for (int64_t s = from.segment_of(first_tile); s <= last; ++s) {
    const auto source = from.ranges_.begin() + s * stride();
    const std::vector<Half> ranges(source, source + stride());  // `from` may be this one
    if (!ranges_.empty() && std::equal(ranges.begin(), ranges.end(), ranges_.end() - stride())) {
      continue;
    }
    const int64_t offset = std::max<int64_t>(0, from.start(s) - first_tile);
    std::copy(ranges.begin(), ranges.end(), add(tile + offset).begin());
  }
}

int64_t KeySegments::memory_bytes() const {
  return static_cast<int64_t>(ranges_.size() * sizeof(Half) + starts_.size() * sizeof(int32_t));
}

void KeySegments::restore(std::vector<Half> ranges, std::vector<int32_t> starts) {
  ranges_ = std::move(ranges);
  starts_ = std::move(starts);
}

}  // namespace kvquant
