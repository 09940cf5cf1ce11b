#include "cache/key_segments.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "formats/dense_tile.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr int64_t kChannelsPerTask = 64, kRowsPerTask = 32;

int64_t num_tasks(int64_t count, int64_t size) { return (count + size - 1) / size; }

std::vector<float> to_floats(std::span<const Half> from) {
  std::vector<float> out(from.size());
  std::transform(from.begin(), from.end(), out.begin(), [](Half x) { return to_float(x); });
  return out;
}

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

void KeySegments::begin(int64_t tile, std::span<const float> rows, ThreadPool& pool) {
  const auto num_rows = static_cast<int64_t>(rows.size()) / row_size_;
  assert(num_rows > 0);
  const std::span<Half> ranges = add(tile);
  std::vector<float> columns(rows.size());
  pool.parallel_for(num_tasks(row_size_, kChannelsPerTask), [&](int64_t task, int) {
    const int64_t end = std::min(row_size_, (task + 1) * kChannelsPerTask);
    for (int64_t c = task * kChannelsPerTask; c < end; ++c) {
      const std::span column = std::span(columns).subspan(c * num_rows, num_rows);
      for (int64_t t = 0; t < num_rows; ++t) column[t] = rows[t * row_size_ + c];
      const ChannelRange range = fit_channel(column, outlier_percent_);
      ranges[c] = range.scale;
      ranges[row_size_ + c] = range.zero;
      if (outlier_percent_ == 0) continue;
      ranges[2 * row_size_ + c] = range.low;
      ranges[3 * row_size_ + c] = range.high;
    }
  });
}

bool KeySegments::have_drifted(int64_t tile, std::span<const float> rows, ThreadPool& pool) const {
  const auto num_rows = static_cast<int64_t>(rows.size()) / row_size_;
  if (num_rows < kMinFitRows || tile - start(num_segments() - 1) < kMinTiles) return false;
  const std::vector<float> last = to_floats(std::span(ranges_).last(stride()));
  const float *scale = last.data(), *zero = scale + row_size_;
  const int64_t count = num_tasks(num_rows, kRowsPerTask);
  std::vector<int64_t> outside(count);
  pool.parallel_for(count, [&](int64_t task, int) {
    int64_t sum = 0;
    const int64_t end = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < end; ++t) {
      const float* row = rows.data() + t * row_size_;
      int32_t of_row = 0;
      for (int64_t c = 0; c < row_size_; ++c) {
        of_row += (row[c] > zero[c] + scale[c] ? 1 : 0) + (row[c] < zero[c] - scale[c] ? 1 : 0);
      }
      sum += of_row;
    }
    outside[task] = sum;
  });
  const auto total = std::accumulate(outside.begin(), outside.end(), int64_t{0});
  const double allowed = 1.5 * outlier_percent_ / 100 + 1.0 / 200;
  return static_cast<double>(total) > allowed * static_cast<double>(rows.size());
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
