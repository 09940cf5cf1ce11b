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

constexpr int64_t kChannelsPerTask = 32;  // a cache line of a row

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
  assert(rows.num_rows() > 0);
  const std::span<Half> out = add(tile);
  std::vector<const Half*> starts;
  for (int64_t t = 0; t < rows.num_rows(); ++t) starts.push_back(rows.row(t).data());
  const int64_t num_tasks = (row_size_ + kChannelsPerTask - 1) / kChannelsPerTask;
  pool.parallel_for(num_tasks, [&](int64_t task, int) {
    const int64_t first = task * kChannelsPerTask;
    const int64_t count = std::min(row_size_ - first, kChannelsPerTask);
    std::vector<const Half*> columns = starts;
    for (const Half*& row : columns) row += first;
    ChannelRange ranges[kChannelsPerTask];
    fit_channels(columns, outlier_percent_, std::span(ranges).first(static_cast<size_t>(count)));
    for (int64_t i = 0; i < count; ++i) {
      out[first + i] = ranges[i].scale;
      out[row_size_ + first + i] = ranges[i].zero;
      if (outlier_percent_ == 0) continue;
      out[2 * row_size_ + first + i] = ranges[i].low;
      out[3 * row_size_ + first + i] = ranges[i].high;
    }
  });
}

bool KeySegments::have_drifted(int64_t tile, const HalfRows& rows, ThreadPool& pool) const {
  const int64_t num_rows = rows.num_rows();
  if (!can_drift(tile, num_rows)) return false;
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
  return have_drifted(total.load(), num_rows);
}

bool KeySegments::can_drift(int64_t tile, int64_t num_rows) const {
  return num_rows >= kMinFitRows && tile - start(num_segments() - 1) >= kMinTiles;
}

bool KeySegments::have_drifted(int64_t num_outside, int64_t num_rows) const {
  const double allowed = 1.5 * outlier_percent_ / 100 + 1.0 / 200;
  return static_cast<double>(num_outside) > allowed * static_cast<double>(num_rows * row_size_);
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
