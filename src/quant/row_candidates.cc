#include "quant/row_candidates.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/row_candidates.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kColumns = 64;
using FloatTag = hn::CappedTag<float, 16>;

// Largest and smallest value of every column: values i, i + 64, i + 128, ... of the row.
// Columns without values are -inf and inf.
struct Columns {
  alignas(64) float high[kColumns];
  alignas(64) float low[kColumns];
};

// In the order of the row: it may come from memory.
void find_column_extremes(const float* HWY_RESTRICT row, int64_t size, Columns& columns) {
  const FloatTag d;
  constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));
  constexpr int64_t kVectors = kColumns / kLanes;
  const int64_t whole = size / kColumns * kColumns;
  hn::Vec<FloatTag> high[kVectors], low[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) {
    high[v] = hn::Set(d, -HUGE_VALF);
    low[v] = hn::Set(d, HUGE_VALF);
  }
  for (int64_t i = 0; i < whole; i += kColumns) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const auto x = hn::LoadU(d, row + i + v * kLanes);
      high[v] = hn::Max(high[v], x);
      low[v] = hn::Min(low[v], x);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    hn::Store(high[v], d, columns.high + v * kLanes);
    hn::Store(low[v], d, columns.low + v * kLanes);
  }
  for (int64_t i = whole; i < size; ++i) {
    float& highest = columns.high[i - whole];
    float& lowest = columns.low[i - whole];
    highest = row[i] > highest ? row[i] : highest;
    lowest = row[i] < lowest ? row[i] : lowest;
  }
}

RowExtremes row_extremes(const float* row, int64_t size) {
  Columns columns;
  find_column_extremes(row, size, columns);
  RowExtremes out{columns.low[0], columns.high[0]};
  for (int64_t c = 1; c < kColumns; ++c) {
    out.low = columns.low[c] < out.low ? columns.low[c] : out.low;
    out.high = columns.high[c] > out.high ? columns.high[c] : out.high;
  }
  return out;
}

// A number that at least `count` of the columns reach: the smallest with fewer than `count` larger
// ones. With kSign -1 everything is mirrored.
float bound_of(const float* columns, int64_t num_columns, int count, float sign) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto bound = hn::Set(d, HUGE_VALF);
  const auto mirror = hn::Set(d, sign);
  for (int64_t c = 0; c < num_columns; c += lanes) {
    const auto mine = hn::Mul(hn::LoadU(d, columns + c), mirror);
    auto num_larger = hn::Zero(d);
    for (int64_t other = 0; other < num_columns; ++other) {
      const auto larger = hn::Gt(hn::Set(d, sign * columns[other]), mine);
      num_larger = hn::Add(num_larger, hn::IfThenElseZero(larger, hn::Set(d, 1)));
    }
    const auto is_sought = hn::Lt(num_larger, hn::Set(d, static_cast<float>(count)));
    bound = hn::Min(bound, hn::IfThenElse(is_sought, mine, hn::Set(d, HUGE_VALF)));
  }
  return sign * hn::GetLane(hn::MinOfLanes(d, bound));
}

// Halves the columns, so that fewer are compared where few values are sought.
int64_t fold(int count, Columns& columns) {
  int64_t num_columns = kColumns;
  while (num_columns > 16 && num_columns / 4 >= count) {
    num_columns /= 2;
    for (int64_t c = 0; c < num_columns; ++c) {
      const float high = columns.high[c + num_columns], low = columns.low[c + num_columns];
      columns.high[c] = high > columns.high[c] ? high : columns.high[c];
      columns.low[c] = low < columns.low[c] ? low : columns.low[c];
    }
  }
  return num_columns;
}

template <class Mask>
uint64_t bits_of(Mask mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(FloatTag(), mask, bytes);
  uint64_t bits = 0;
  std::memcpy(&bits, bytes, 8);
  return bits;
}

bool list(uint64_t bits, int64_t first, int32_t* out, int& count) {
  for (; bits != 0; bits &= bits - 1) {
    if (count == RowCandidates::kMaxListed) return false;
    out[count++] = static_cast<int32_t>(first + static_cast<int64_t>(__builtin_ctzll(bits)));
  }
  return true;
}

bool find_candidates(const float* row, int64_t size, int count, RowCandidates& out) {
  if (count > RowCandidates::kMaxSought) return false;
  Columns columns;
  find_column_extremes(row, size, columns);
  const int64_t num_columns = fold(count, columns);
  const float high = bound_of(columns.high, num_columns, count, 1.0f);
  const float low = bound_of(columns.low, num_columns, count, -1.0f);
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  out.num_top = out.num_bottom = 0;
  const int64_t whole = size / kColumns * kColumns;
  for (int64_t i = 0; i < size; i += kColumns) {
    uint64_t top = 0, bottom = 0;
    if (i < whole) {
      for (int64_t k = 0; k < kColumns; k += lanes) {
        const auto x = hn::LoadU(d, row + i + k);
        top |= bits_of(hn::Ge(x, hn::Set(d, high))) << k;
        bottom |= bits_of(hn::Le(x, hn::Set(d, low))) << k;
      }
    } else {
      for (int64_t k = 0; i + k < size; ++k) {
        top |= uint64_t{row[i + k] >= high ? 1u : 0u} << k;
        bottom |= uint64_t{row[i + k] <= low ? 1u : 0u} << k;
      }
    }
    if (!list(top, i, out.top, out.num_top)) return false;
    if (!list(bottom, i, out.bottom, out.num_bottom)) return false;
  }
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(row_extremes);
HWY_EXPORT(find_candidates);

RowExtremes row_extremes(std::span<const float> row) noexcept {
  return HWY_DYNAMIC_DISPATCH(row_extremes)(row.data(), static_cast<int64_t>(row.size()));
}

bool find_candidates(std::span<const float> row, int count, RowCandidates& out) noexcept {
  return HWY_DYNAMIC_DISPATCH(find_candidates)(row.data(), static_cast<int64_t>(row.size()), count,
                                               out);
}

}  // namespace kvquant
#endif
