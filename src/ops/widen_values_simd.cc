// Dense values beside latents as f32: converted, and moved up where token 0 is not the first of its
// tile.
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/widen_values_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "base/half.h"
#include "ops/attend_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;  // 2 dim is a multiple of 16
constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(D()));

void convert(const hwy::float16_t* from, int64_t size, float* to) {
  const hn::Rebind<hwy::float16_t, D> half;
  for (int64_t i = 0; i < size; i += kLanes) {
    hn::StoreU(hn::PromoteTo(D(), hn::LoadU(half, from + i)), D(), to + i);
  }
}
void convert(const hwy::bfloat16_t* from, int64_t size, float* to) {
  const hn::Rebind<hwy::bfloat16_t, D> half;
  for (int64_t i = 0; i < size; i += kLanes) {
    hn::StoreU(hn::PromoteTo(D(), hn::LoadU(half, from + i)), D(), to + i);
  }
}
void convert(const float* from, int64_t size, float* to) {
  std::memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
}

// Row i of token pairs of the tile and the one behind it, [2 dim]; zeros if there is none.
template <class T>
void convert_row(const TileWork& tile, int64_t i, int64_t dim, float* to) {
  const bool is_next = i >= kTileTokens / 2;
  const auto* from = static_cast<const T*>(is_next ? tile.next_values : tile.values);
  if (from == nullptr) {
    std::memset(to, 0, 2 * static_cast<size_t>(dim) * sizeof(float));
  } else {
    convert(from + (is_next ? i - kTileTokens / 2 : i) * 2 * dim, 2 * dim, to);
  }
}

// The second tokens of the pairs of a row and the first of those of the next.
void join_rows(const float* row, const float* next, int64_t dim, float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t c = 0; c < 2 * dim; c += 2) {
    to[c] = row[c + 1];
    to[c + 1] = next[c];
  }
#else
  const D d;
  for (int64_t c = 0; c < 2 * dim; c += kLanes) {
    const auto second = hn::DupOdd(hn::LoadU(d, row + c));
    const auto first = hn::DupEven(hn::LoadU(d, next + c));
    hn::StoreU(hn::OddEven(first, second), d, to + c);
  }
#endif
}

template <class T>
void widen(const TileWork& tile, int64_t dim, float* values) {
  const int64_t first = tile.value_offset / 2;
  if (tile.value_offset % 2 == 0) {
    for (int64_t i = 0; i < kTileTokens / 2; ++i) {
      convert_row<T>(tile, first + i, dim, values + i * 2 * dim);
    }
    return;
  }
  HWY_ALIGN float rows[2][2 * kMaxNuqHeadDim];
  convert_row<T>(tile, first, dim, rows[0]);
  for (int64_t i = 0; i < kTileTokens / 2; ++i) {
    convert_row<T>(tile, first + i + 1, dim, rows[(i + 1) % 2]);
    join_rows(rows[i % 2], rows[(i + 1) % 2], dim, values + i * 2 * dim);
  }
}

void widen_tile_values(const TileWork& tile, DenseType type, int64_t dim, float* values) {
  switch (type) {
    case DenseType::kF16: return widen<hwy::float16_t>(tile, dim, values);
    case DenseType::kBF16: return widen<hwy::bfloat16_t>(tile, dim, values);
    case DenseType::kF32: return widen<float>(tile, dim, values);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(widen_tile_values);

void widen_tile_values(const TileWork& tile, DenseType type, int64_t dim, float* values) noexcept {
  HWY_DYNAMIC_DISPATCH(widen_tile_values)(tile, type, dim, values);
}

}  // namespace kvquant
#endif
