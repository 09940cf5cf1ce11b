// The few values of a row that can be among its largest or smallest, found in two passes over it
// instead of sorting: the extremes of 64 interleaved columns bound the sought values, then what is
// not within the bounds is listed.
#pragma once

#include <cstdint>
#include <span>

namespace kvquant {

struct RowExtremes {
  float low;
  float high;
};
RowExtremes row_extremes(std::span<const float> row) noexcept;  // requires finite values, not none

struct RowCandidates {
  static constexpr int kMaxSought = 48;
  static constexpr int kMaxListed = 256;
  int num_top = 0;
  int num_bottom = 0;
  int32_t top[kMaxListed];  // indices, ascending
  int32_t bottom[kMaxListed];
};

// Lists all values that are as large as the `count`-th largest, and those as small as the
// `count`-th smallest, and some more. False if they are too many, or count > kMaxSought.
// Requires finite values and 0 < count <= row.size() < 2^31.
bool find_candidates(std::span<const float> row, int count, RowCandidates& out) noexcept;

}  // namespace kvquant
