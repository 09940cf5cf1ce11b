// What every number of a chunk goes through on its way into a cache: is it within range, its fp16
// form, and f32 again. Vectorised; the bits are those of base/half.h.
#pragma once

#include <cstdint>
#include <span>

#include "base/half.h"
#include "base/threads.h"

namespace kvquant {

// Tasks of chunks are so many rows.
inline constexpr int64_t kRowsPerTask = 16;

// Calls fn(first, end) for ranges of rows that together are [0, num_rows); on any thread.
template <class Fn>
void for_row_ranges(int64_t num_rows, ThreadPool& pool, const Fn& fn) {
  pool.parallel_for((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t first = task * kRowsPerTask, end = first + kRowsPerTask;
    fn(first, end < num_rows ? end : num_rows);
  });
}

// Whether |x| <= largest everywhere; NaN is not.
bool are_within(std::span<const float> x, float largest);

// How many x[i] are below low[i] or above high[i]; low, high [x.size()].
int64_t num_outside(std::span<const float> x, const float* low, const float* high);

// out [x.size()]. Requires |x| <= 65504 after rounding (to nearest even).
void narrow(std::span<const float> x, Half* out);

// out [x.size()]. Requires finite numbers. Exact.
void widen(std::span<const Half> x, float* out);

}  // namespace kvquant
