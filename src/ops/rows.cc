#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rows.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "base/finite_half.h"
#include "ops/rows.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;

// Only these targets convert with instructions; what Highway does instead need not have the bits.
#if HWY_TARGET <= HWY_AVX2
constexpr bool kHasHalfs = true;
#else
constexpr bool kHasHalfs = false;
#endif

bool are_within_row(const float* HWY_RESTRICT x, int64_t size, float largest) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto bound = hn::Set(d, largest);
  auto outside = hn::FirstN(d, 0);
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    outside = hn::Or(outside, hn::Not(hn::Le(hn::Abs(hn::LoadU(d, x + i)), bound)));
  }
  bool are_all = hn::AllFalse(d, outside);
  for (; i < size; ++i) are_all = are_all && (x[i] <= largest && -x[i] <= largest);
  return are_all;
}

int64_t num_outside_row(const float* HWY_RESTRICT x, int64_t size, const float* HWY_RESTRICT low,
                        const float* HWY_RESTRICT high) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0, count = 0;
  for (; i + lanes <= size; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    const auto is_low = hn::Lt(v, hn::LoadU(d, low + i));
    const auto is_high = hn::Gt(v, hn::LoadU(d, high + i));
    count += static_cast<int64_t>(hn::CountTrue(d, hn::Or(is_low, is_high)));
  }
  for (; i < size; ++i) count += x[i] < low[i] || x[i] > high[i] ? 1 : 0;
  return count;
}

void narrow_row(const float* HWY_RESTRICT x, int64_t size, Half* HWY_RESTRICT out) {
  int64_t i = 0;
  if constexpr (kHasHalfs) {
    const D d;
    const hn::Rebind<hwy::float16_t, D> halfs;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (; i + lanes <= size; i += lanes) {
      hn::StoreU(hn::DemoteTo(halfs, hn::LoadU(d, x + i)), halfs,
                 reinterpret_cast<hwy::float16_t*>(out + i));
    }
  }
  for (; i < size; ++i) out[i] = finite_to_half(x[i]);
}

void widen_row(const Half* HWY_RESTRICT x, int64_t size, float* HWY_RESTRICT out) {
  int64_t i = 0;
  if constexpr (kHasHalfs) {
    const D d;
    const hn::Rebind<hwy::float16_t, D> halfs;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (; i + lanes <= size; i += lanes) {
      const auto* at = reinterpret_cast<const hwy::float16_t*>(x + i);
      hn::StoreU(hn::PromoteTo(d, hn::LoadU(halfs, at)), d, out + i);
    }
  }
  for (; i < size; ++i) out[i] = finite_to_float(x[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(are_within_row);
HWY_EXPORT(num_outside_row);
HWY_EXPORT(narrow_row);
HWY_EXPORT(widen_row);

bool are_within(std::span<const float> x, float largest) {
  return HWY_DYNAMIC_DISPATCH(are_within_row)(x.data(), static_cast<int64_t>(x.size()), largest);
}

int64_t num_outside(std::span<const float> x, const float* low, const float* high) {
  return HWY_DYNAMIC_DISPATCH(num_outside_row)(x.data(), static_cast<int64_t>(x.size()), low, high);
}

void narrow(std::span<const float> x, Half* out) {
  HWY_DYNAMIC_DISPATCH(narrow_row)(x.data(), static_cast<int64_t>(x.size()), out);
}

void widen(std::span<const Half> x, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_row)(x.data(), static_cast<int64_t>(x.size()), out);
}

}  // namespace kvquant
#endif  // HWY_ONCE
