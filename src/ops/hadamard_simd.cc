// Rows: spans below 4 are shuffles within blocks of 4 channels, the others pairs of vectors.
// Planar: tokens are lanes and every span is a pair of vectors.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/hadamard_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <cmath>

#include "formats/dense_tile.h"
#include "ops/hadamard.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Replaces vectors at a and b by sum and difference.
template <class D>
HWY_INLINE void butterfly(D d, float* a, float* b) {
  const auto x = hn::LoadU(d, a), y = hn::LoadU(d, b);
  hn::StoreU(hn::Add(x, y), d, a);
  hn::StoreU(hn::Sub(x, y), d, b);
}

#if HWY_TARGET != HWY_SCALAR

// Spans 1 and 2: sums in the lower places of a pair, differences in the upper ones.
template <class D>
HWY_INLINE void butterflies_in_block(D d, float* row) {
  const hn::Repartition<double, D> dd;
  auto x = hn::LoadU(d, row);
  auto swapped = hn::Reverse2(d, x);
  x = hn::OddEven(hn::Sub(swapped, x), hn::Add(x, swapped));
  swapped = hn::Shuffle1032(x);
  const auto sums = hn::BitCast(dd, hn::Add(x, swapped));
  const auto differences = hn::BitCast(dd, hn::Sub(swapped, x));
  hn::StoreU(hn::BitCast(d, hn::OddEven(differences, sums)), d, row);
}

// A span of at least d's lanes.
template <class D>
HWY_INLINE void butterflies(D d, int64_t span, int64_t head_dim, float* row) {
  for (int64_t first = 0; first < head_dim; first += 2 * span) {
    for (int64_t c = first; c < first + span; c += static_cast<int64_t>(hn::Lanes(d))) {
      butterfly(d, row + c, row + c + span);
    }
  }
}

void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim) {
  const hn::CappedTag<float, 8> d;  // head_dim is a multiple of 8
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto norm = hn::Set(d, 1 / std::sqrt(static_cast<float>(head_dim)));
  for (int64_t i = 0; i < num_rows; ++i) {
    float* HWY_RESTRICT row = rows + i * stride;
    for (int64_t c = 0; c < head_dim; c += lanes) butterflies_in_block(d, row + c);
    butterflies(hn::CappedTag<float, 4>(), 4, head_dim, row);
    for (int64_t span = 8; span < head_dim; span *= 2) butterflies(d, span, head_dim, row);
    for (int64_t c = 0; c < head_dim; c += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, row + c), norm), d, row + c);
    }
  }
}

#else

void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim) {
  ref::hadamard_rows(rows, stride, num_rows, head_dim);
}

#endif

void hadamard_planar(float* HWY_RESTRICT planar, int64_t head_dim) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto norm = hn::Set(d, 1 / std::sqrt(static_cast<float>(head_dim)));
  for (int64_t span = 1; span < head_dim; span *= 2) {
    for (int64_t c = 0; c < head_dim; ++c) {
      if ((c & span) != 0) continue;
      float* a = planar + c * kTileTokens;
      for (int64_t t = 0; t < kTileTokens; t += lanes) {
        butterfly(d, a + t, a + span * kTileTokens + t);
      }
    }
  }
  for (int64_t i = 0; i < head_dim * kTileTokens; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, planar + i), norm), d, planar + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::simd {

HWY_EXPORT(hadamard_rows);
HWY_EXPORT(hadamard_planar);

void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim) noexcept {
  HWY_DYNAMIC_DISPATCH(hadamard_rows)(rows, stride, num_rows, head_dim);
}

void hadamard_planar(float* planar, int64_t head_dim) noexcept {
  HWY_DYNAMIC_DISPATCH(hadamard_planar)(planar, head_dim);
}

}  // namespace kvquant::simd
#endif
