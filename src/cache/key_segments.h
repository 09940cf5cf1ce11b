// Ranges of key channels that are fitted to a sequence as it comes, for lack of a calibration: to
// its first tokens and, where a later chunk no longer lies within them, anew to that chunk. Encoded
// tokens keep what they were encoded with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/half.h"
#include "base/threads.h"
#include "cache/half_rows.h"

namespace kvquant {

class KeySegments {
 public:
  // Fewer rows say too little to fit ranges to again, and a segment is at least so long that its
  // two or four halves per channel are at most 1/8 bit per key.
  static constexpr int64_t kMinFitRows = 256;
  static constexpr int64_t kMinTiles = 8;

  // outlier_percent as fit_channel takes it; with 0 there are no thresholds.
  KeySegments(int64_t row_size, double outlier_percent)
      : row_size_(row_size), outlier_percent_(outlier_percent) {}
  int64_t stride() const { return row_size_ * (outlier_percent_ > 0 ? 4 : 2); }

  bool is_empty() const { return ranges_.empty(); }
  // Fits a segment from `tile` on to rows, of which there are some.
  void begin(int64_t tile, const HalfRows& rows, ThreadPool& pool);
  // Rows that would begin at `tile` are enough to fit a segment to and lie outside the last one's
  // ranges so often that it pays: more than 1.5 times as many as are to be outliers, and one in
  // 200.
  bool have_drifted(int64_t tile, const HalfRows& rows, ThreadPool& pool) const;
  // The two halves of it: whether so many rows would be looked at, and what follows from how many
  // of their numbers are outside.
  bool can_drift(int64_t tile, int64_t num_rows) const;
  bool have_drifted(int64_t num_outside, int64_t num_rows) const;
  // Tiles [first_tile, first_tile + num_tiles) of another one's, or of this, come here as from
  // `tile` on, the end of what there is.
  void append(const KeySegments& from, int64_t first_tile, int64_t num_tiles, int64_t tile);

  // [segments][scale, zero and, with outliers, low, high][row_size]
  std::span<const Half> ranges() const { return ranges_; }
  // Those of a tile.
  std::span<const Half> ranges(int64_t tile) const {
    return std::span(ranges_).subspan(static_cast<size_t>(segment_of(tile) * stride()));
  }
  // First tiles of all segments but the first.
  std::span<const int32_t> starts() const { return starts_; }
  int64_t memory_bytes() const;

  // From numbers that are checked; empty sets are for a side without tokens.
  void restore(std::vector<Half> ranges, std::vector<int32_t> starts);

 private:
  int64_t num_segments() const { return static_cast<int64_t>(ranges_.size()) / stride(); }
  int64_t start(int64_t segment) const { return segment == 0 ? 0 : starts_[segment - 1]; }
  int64_t segment_of(int64_t tile) const;
  std::span<Half> add(int64_t tile);

  int64_t row_size_;
  double outlier_percent_;
  std::vector<Half> ranges_;
  std::vector<int32_t> starts_;
};

}  // namespace kvquant
