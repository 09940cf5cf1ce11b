// The values at a place from either end of every column's order, without sorting: what ranges of
// channels are fitted to. Vectorised over columns.
#pragma once

#include <cstdint>
#include <span>

#include "base/half.h"

namespace kvquant {

// More values are not left out on either end.
inline constexpr int64_t kMostLeftOut = 7;

// low[c], high[c] become the smallest and the largest value of column c without `left_out` values
// on either end. rows: their first columns, more than 2 * left_out rows of finite numbers.
// Requires left_out <= kMostLeftOut. Returns how many columns were done, the first ones, at most
// num_columns: fewer where they are no multiple of a vector, none where a CPU can't widen fp16.
int64_t find_column_ends(std::span<const Half* const> rows, int64_t num_columns, int64_t left_out,
                         float* low, float* high) noexcept;

}  // namespace kvquant
