// Rows of fp16 numbers that lie in two pieces of memory, one behind the other: what leaves a window
// and the chunk behind it are encoded without being copied together first.
#pragma once

#include <cstdint>
#include <span>

#include "base/half.h"
#include "ops/rows.h"

namespace kvquant {

struct HalfRows {
  std::span<const Half> first;  // [n, row_size]
  std::span<const Half> rest;   // [num_rows - n, row_size]
  int64_t row_size = 0;

  int64_t num_rows() const { return static_cast<int64_t>(first.size() + rest.size()) / row_size; }
  std::span<const Half> row(int64_t i) const {
    const auto at = static_cast<size_t>(i * row_size), size = static_cast<size_t>(row_size);
    return at < first.size() ? first.subspan(at, size) : rest.subspan(at - first.size(), size);
  }
  HalfRows head(int64_t num_rows) const {
    const auto size = static_cast<size_t>(num_rows * row_size);
    const size_t from_first = size < first.size() ? size : first.size();
    return {first.first(from_first), rest.first(size - from_first), row_size};
  }
  HalfRows behind(int64_t num_rows) const {
    const auto size = static_cast<size_t>(num_rows * row_size);
    const size_t from_first = size < first.size() ? size : first.size();
    return {first.subspan(from_first), rest.subspan(size - from_first), row_size};
  }

  // Columns [column, column + width) of rows [first_row, first_row + count) as f32, [count, width].
  void widen_block(int64_t first_row, int64_t count, int64_t column, int64_t width,
                   float* out) const {
    for (int64_t i = 0; i < count; ++i) {
      widen(row(first_row + i).subspan(static_cast<size_t>(column), static_cast<size_t>(width)),
            out + i * width);
    }
  }
};

}  // namespace kvquant
