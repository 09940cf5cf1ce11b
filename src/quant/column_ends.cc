#include "quant/column_ends.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/column_ends.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;

#if HWY_TARGET <= HWY_AVX2  // only these convert with instructions
// Every value goes down the sorted lists of the column's kKept largest and smallest so far, each
// place keeping one of two.
template <int kKept>
int64_t find_ends(const Half* const* rows, int64_t num_rows, int64_t num_columns, float* low,
                  float* high) {
  const FloatTag d;
  const hn::Rebind<hwy::float16_t, FloatTag> halfs;
  constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));
  int64_t column = 0;
  for (; column + kLanes <= num_columns; column += kLanes) {
    hn::Vec<FloatTag> largest[kKept], smallest[kKept];
    for (int k = 0; k < kKept; ++k) {
      largest[k] = hn::Set(d, -HUGE_VALF);
      smallest[k] = hn::Set(d, HUGE_VALF);
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      const auto* at = reinterpret_cast<const hwy::float16_t*>(rows[i] + column);
      auto up = hn::PromoteTo(d, hn::LoadU(halfs, at)), down = up;
      for (int k = 0; k < kKept; ++k) {
        const auto above = hn::Max(largest[k], up), below = hn::Min(smallest[k], down);
        up = hn::Min(largest[k], up);
        down = hn::Max(smallest[k], down);
        largest[k] = above;
        smallest[k] = below;
      }
    }
    hn::StoreU(largest[kKept - 1], d, high + column);
    hn::StoreU(smallest[kKept - 1], d, low + column);
  }
  return column;
}
#else
template <int kKept>
int64_t find_ends(const Half* const*, int64_t, int64_t, float*, float*) {
  return 0;
}
#endif

int64_t find_ends_of(const Half* const* rows, int64_t num_rows, int64_t num_columns,
                     int64_t left_out, float* low, float* high) {
  switch (left_out) {
    case 0: return find_ends<1>(rows, num_rows, num_columns, low, high);
    case 1: return find_ends<2>(rows, num_rows, num_columns, low, high);
    case 2: return find_ends<3>(rows, num_rows, num_columns, low, high);
    case 3: return find_ends<4>(rows, num_rows, num_columns, low, high);
    case 4: return find_ends<5>(rows, num_rows, num_columns, low, high);
    case 5: return find_ends<6>(rows, num_rows, num_columns, low, high);
    case 6: return find_ends<7>(rows, num_rows, num_columns, low, high);
    default: return find_ends<8>(rows, num_rows, num_columns, low, high);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(find_ends_of);

int64_t find_column_ends(std::span<const Half* const> rows, int64_t num_columns, int64_t left_out,
                         float* low, float* high) noexcept {
  return HWY_DYNAMIC_DISPATCH(find_ends_of)(rows.data(), static_cast<int64_t>(rows.size()),
                                            num_columns, left_out, low, high);
}

}  // namespace kvquant
#endif  // HWY_ONCE
