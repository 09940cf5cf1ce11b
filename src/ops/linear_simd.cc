// Panel kernels in Google Highway: weights are widened to f32 in registers, four inputs at a time,
// and multiplied with broadcast inputs. A lane is an output, so there are no horizontal sums.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_simd.cc"
// Arrays of vectors need a size known to the compiler, which these don't have.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

#include "ops/linear_panel.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;
using Vec = hn::Vec<F32>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(F32()));
constexpr int kVectors = static_cast<int>(kPanelOutputs) / kLanes;  // to a panel's outputs

struct Quad {
  Vec input[4];  // weights of inputs 4i ... 4i + 3
};

template <WeightType kType>
HWY_INLINE const GroupOf<kType>& group_of(const PanelView& w, int64_t in) {
  return reinterpret_cast<const GroupOf<kType>*>(w.data)[in / group_inputs(kType)];
}

// Scales and offsets of one group; nothing for types without.
struct Affine {
  Vec scale, offset;
};

// Of the group that begins with input `in`.
template <WeightType kType>
HWY_INLINE Affine load_affine(const PanelView& w, int64_t in, int column) {
  if constexpr (!has_groups(kType)) return {hn::Zero(F32()), hn::Zero(F32())};
  const hn::Rebind<hwy::float16_t, F32> f16;
  const auto& group = group_of<kType>(w, in);
  const auto* scales = reinterpret_cast<const hwy::float16_t*>(group.scales);
  const auto* offsets = reinterpret_cast<const hwy::float16_t*>(group.offsets);
  return {hn::PromoteTo(F32(), hn::Load(f16, scales + column)),
          hn::PromoteTo(F32(), hn::Load(f16, offsets + column))};
}

// A lane's four bytes of a plane with inputs in ... in + 3, their bits in the low bits of the
// bytes.
template <int kBits, int64_t kInputs>
HWY_INLINE auto load_plane(const CodePlane<kBits, kInputs>& plane, int64_t in, int column) {
  const hn::RebindToUnsigned<F32> u32;
  const uint8_t* at = plane.rows[plane.row(in)][column];
  const auto bytes = hn::Load(u32, reinterpret_cast<const uint32_t*>(at));
  if constexpr (kBits == 8) return bytes;
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x01010101u;
  return hn::And(hn::ShiftRightSame(bytes, plane.shift(in)), hn::Set(u32, kMask));
}

// The codes of inputs in ... in + 3 as floats.
template <WeightType kType>
HWY_INLINE Quad load_codes(const PanelView& w, int64_t in, int column) {
  const hn::RebindToUnsigned<F32> u32;
  const hn::RebindToSigned<F32> i32;
  const auto& group = group_of<kType>(w, in);
  auto all = load_plane(group.low, in % group_inputs(kType), column);
  if constexpr (GroupOf<kType>::kHighBits > 0) {
    const auto high = load_plane(group.high, in % group_inputs(kType), column);
    all = hn::Or(all, hn::ShiftLeft<GroupOf<kType>::kLowBits>(high));
  }
  const auto byte = hn::Set(u32, 0xFF);
  return {{hn::ConvertTo(F32(), hn::BitCast(i32, hn::And(all, byte))),
           hn::ConvertTo(F32(), hn::BitCast(i32, hn::And(hn::ShiftRight<8>(all), byte))),
           hn::ConvertTo(F32(), hn::BitCast(i32, hn::And(hn::ShiftRight<16>(all), byte))),
           hn::ConvertTo(F32(), hn::BitCast(i32, hn::ShiftRight<24>(all)))}};
}

// Weights of inputs in ... in + 3 (a multiple of 4), kLanes outputs from `column` on.
template <WeightType kType>
HWY_INLINE Quad load_quad(const PanelView& w, int64_t in, int column, const Affine& affine) {
  if constexpr (kType == WeightType::kF32) {
    const float* at = reinterpret_cast<const float*>(w.data) + in * kPanelOutputs + column;
    return {{hn::Load(F32(), at), hn::Load(F32(), at + kPanelOutputs),
             hn::Load(F32(), at + 2 * kPanelOutputs), hn::Load(F32(), at + 3 * kPanelOutputs)}};
  } else if constexpr (kType == WeightType::kBF16) {
    const hn::RebindToUnsigned<F32> u32;
    const auto* at = reinterpret_cast<const uint32_t*>(w.data) + in / 2 * kPanelOutputs + column;
    const auto first = hn::Load(u32, at);
    const auto second = hn::Load(u32, at + kPanelOutputs);
    const auto high = hn::Set(u32, 0xFFFF0000u);
    return {{hn::BitCast(F32(), hn::ShiftLeft<16>(first)), hn::BitCast(F32(), hn::And(first, high)),
             hn::BitCast(F32(), hn::ShiftLeft<16>(second)),
             hn::BitCast(F32(), hn::And(second, high))}};
  } else {
    Quad quad = load_codes<kType>(w, in, column);
    for (Vec& v : quad.input) v = hn::MulAdd(v, affine.scale, affine.offset);
    return quad;
  }
}

// Asks for the row of a plane that begins with input `in`, if one does, `ahead` bytes further.
template <int kBits, int64_t kInputs>
HWY_INLINE void prefetch_row(const CodePlane<kBits, kInputs>& plane, int64_t in, int64_t ahead) {
  if (plane.shift(in) != 0) return;
  const uint8_t* row = plane.rows[plane.row(in)][0] + ahead;
  for (int64_t i = 0; i < 4 * kPanelOutputs; i += 64) hwy::Prefetch(row + i);
}

// Asks for the codes of inputs that begin with `in`, two groups ahead. Decoding them keeps the core
// too busy for the hardware to run far enough ahead by itself; the other types gain nothing.
template <WeightType kType>
HWY_INLINE void prefetch_codes(const PanelView& w, int64_t in) {
  if constexpr (has_groups(kType)) {
    constexpr auto kTwoGroups = 2 * static_cast<int64_t>(sizeof(GroupOf<kType>));
    const auto& group = group_of<kType>(w, in);
    prefetch_row(group.low, in % group_inputs(kType), kTwoGroups);
    if constexpr (GroupOf<kType>::kHighBits > 0) {
      prefetch_row(group.high, in % group_inputs(kType), kTwoGroups);
    }
  }
}

// As many vectors of outputs as have room for kRows sums each in half the registers.
constexpr int block_vectors(int num_rows) {
  const int room = (HWY_TARGET <= HWY_AVX3 ? 16 : 8) / num_rows;
  int vectors = kVectors;
  while (vectors > 1 && vectors > room) vectors /= 2;
  return vectors;
}

template <WeightType kType, int kRows>
HWY_INLINE void block_product(const PanelView& w, const PanelInput<float>& x, int column,
                              float* HWY_RESTRICT y) {
  constexpr int kWidth = block_vectors(kRows);
  Vec sum[kRows][kWidth];
  for (auto& row : sum) {
    for (Vec& v : row) v = hn::Zero(F32());
  }
  Affine affines[kWidth];
  for (int64_t first = 0; first < w.padded_in; first += group_inputs(kType)) {
    for (int i = 0; i < kWidth; ++i) {
      affines[i] = load_affine<kType>(w, first, column + i * kLanes);
    }
    for (int64_t in = first; in < first + group_inputs(kType); in += 4) {
      prefetch_codes<kType>(w, in);
      for (int i = 0; i < kWidth; ++i) {
        const Quad weights = load_quad<kType>(w, in, column + i * kLanes, affines[i]);
        for (int row = 0; row < kRows; ++row) {
          const float* at = x.data + row * x.stride + in;
          for (int j = 0; j < 4; ++j) {
            sum[row][i] = hn::MulAdd(weights.input[j], hn::Set(F32(), at[j]), sum[row][i]);
          }
        }
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kWidth; ++i) {
      hn::StoreU(sum[row][i], F32(), y + row * kPanelOutputs + column + i * kLanes);
    }
  }
}

// As block_product for one row of a panel of codes, with scale and offset applied to the sums
// of a group: an operation less for each weight, which is what bounds this kernel.
template <WeightType kType>
HWY_INLINE void block_product_codes(const PanelView& w, const float* x, int column,
                                    float* HWY_RESTRICT y) {
  constexpr int kWidth = block_vectors(2);
  Vec sum[kWidth];
  for (Vec& v : sum) v = hn::Zero(F32());
  for (int64_t first = 0; first < w.padded_in; first += group_inputs(kType)) {
    Vec group_sum[kWidth];
    for (Vec& v : group_sum) v = hn::Zero(F32());
    for (int64_t in = first; in < first + group_inputs(kType); in += 4) {
      prefetch_codes<kType>(w, in);
      for (int i = 0; i < kWidth; ++i) {
        const Quad codes = load_codes<kType>(w, in, column + i * kLanes);
        for (int j = 0; j < 4; ++j) {
          group_sum[i] = hn::MulAdd(codes.input[j], hn::Set(F32(), x[in + j]), group_sum[i]);
        }
      }
    }
    Vec inputs = hn::Zero(F32());
    for (int i = 0; i < group_inputs(kType); i += kLanes) {
      inputs = hn::Add(inputs, hn::LoadU(F32(), x + first + i));
    }
    inputs = hn::SumOfLanes(F32(), inputs);
    for (int i = 0; i < kWidth; ++i) {
      const Affine affine = load_affine<kType>(w, first, column + i * kLanes);
      sum[i] = hn::MulAdd(affine.offset, inputs, hn::MulAdd(affine.scale, group_sum[i], sum[i]));
    }
  }
  for (int i = 0; i < kWidth; ++i) hn::StoreU(sum[i], F32(), y + column + i * kLanes);
}

template <WeightType kType, int kRows>
void rows_product(const PanelView& w, const PanelInput<float>& x, float* y) {
  if constexpr (has_groups(kType) && kRows == 1) {
    for (int i = 0; i < kVectors; i += block_vectors(2)) {
      block_product_codes<kType>(w, x.data, i * kLanes, y);
    }
  } else {
    for (int i = 0; i < kVectors; i += block_vectors(kRows)) {
      block_product<kType, kRows>(w, x, i * kLanes, y);
    }
  }
}

template <WeightType kType>
void typed_product(const PanelView& w, PanelInput<float> x, float* y) {
  while (x.num_rows > 0) {
    const int64_t num_rows = x.num_rows < 4 ? x.num_rows : 4;
    switch (num_rows) {
      case 1: rows_product<kType, 1>(w, x, y); break;
      case 2: rows_product<kType, 2>(w, x, y); break;
      case 3: rows_product<kType, 3>(w, x, y); break;
      default: rows_product<kType, 4>(w, x, y); break;
    }
    x.num_rows -= num_rows;
    x.data += num_rows * x.stride;
    y += num_rows * kPanelOutputs;
  }
}

void panel_product(const PanelView& w, const PanelInput<float>& x, float* y) {
  switch (w.type) {
    case WeightType::kF32: return typed_product<WeightType::kF32>(w, x, y);
    case WeightType::kBF16: return typed_product<WeightType::kBF16>(w, x, y);
    case WeightType::kInt8: return typed_product<WeightType::kInt8>(w, x, y);
    case WeightType::kInt8x2: return typed_product<WeightType::kInt8x2>(w, x, y);
    case WeightType::kInt6x2: return typed_product<WeightType::kInt6x2>(w, x, y);
    case WeightType::kInt5: return typed_product<WeightType::kInt5>(w, x, y);
    case WeightType::kInt4: return typed_product<WeightType::kInt4>(w, x, y);
  }
}

template <WeightType kType>
void typed_unpack(const PanelView& w, float* HWY_RESTRICT out) {
  for (int64_t first = 0; first < w.padded_in; first += group_inputs(kType)) {
    for (int column = 0; column < kPanelOutputs; column += kLanes) {
      const Affine affine = load_affine<kType>(w, first, column);
      for (int64_t in = first; in < first + group_inputs(kType); in += 4) {
        const Quad weights = load_quad<kType>(w, in, column, affine);
        for (int j = 0; j < 4; ++j) {
          hn::Store(weights.input[j], F32(), out + (in + j) * kPanelOutputs + column);
        }
      }
    }
  }
}

void unpack_panel(const PanelView& w, float* out) {
  switch (w.type) {
    case WeightType::kF32: return typed_unpack<WeightType::kF32>(w, out);
    case WeightType::kBF16: return typed_unpack<WeightType::kBF16>(w, out);
    case WeightType::kInt8: return typed_unpack<WeightType::kInt8>(w, out);
    case WeightType::kInt8x2: return typed_unpack<WeightType::kInt8x2>(w, out);
    case WeightType::kInt6x2: return typed_unpack<WeightType::kInt6x2>(w, out);
    case WeightType::kInt5: return typed_unpack<WeightType::kInt5>(w, out);
    case WeightType::kInt4: return typed_unpack<WeightType::kInt4>(w, out);
  }
}

// Stores fn(index into a panel of results, where it goes) for all columns, whole vectors first.
template <class Fn>
HWY_INLINE void store_columns(const PanelOutput& out, Fn fn) {
  HWY_ALIGN float last[kLanes];
  for (int64_t row = 0; row < out.num_rows; ++row) {
    float* target = out.data + row * out.stride;
    int64_t i = 0;
    for (; i + kLanes <= out.num_columns; i += kLanes) {
      hn::StoreU(fn(row * kPanelOutputs + i, target + i), F32(), target + i);
    }
    const int64_t rest = out.num_columns - i;
    if (rest == 0) continue;
    for (int64_t j = 0; j < rest; ++j) last[j] = target[i + j];
    for (int64_t j = rest; j < kLanes; ++j) last[j] = 0;
    hn::Store(fn(row * kPanelOutputs + i, last), F32(), last);
    for (int64_t j = 0; j < rest; ++j) target[i + j] = last[j];
  }
}

void store_panel(const float* y, const PanelOutput& out, Epilogue epilogue) {
  if (epilogue == Epilogue::kAdd) {
    store_columns(out, [y](int64_t i, const float* old) {
      return hn::Add(hn::LoadU(F32(), old), hn::LoadU(F32(), y + i));
    });
  } else {
    store_columns(out, [y](int64_t i, const float*) { return hn::LoadU(F32(), y + i); });
  }
}

void store_swiglu(const float* gate, const float* up, const PanelOutput& out) {
  store_columns(out, [gate, up](int64_t i, const float*) {
    const Vec g = hn::LoadU(F32(), gate + i);
    // Beyond 88 exp overflows; there silu is zero to f32's precision anyway.
    const Vec e = hn::Exp(F32(), hn::Min(hn::Neg(g), hn::Set(F32(), 88.0f)));
    const Vec silu = hn::Div(g, hn::Add(hn::Set(F32(), 1.0f), e));
    return hn::Mul(silu, hn::LoadU(F32(), up + i));
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(panel_product);
HWY_EXPORT(unpack_panel);
HWY_EXPORT(store_panel);
HWY_EXPORT(store_swiglu);

namespace simd {

void panel_product(const PanelView& w, const PanelInput<float>& x, float* y) noexcept {
  HWY_DYNAMIC_DISPATCH(panel_product)(w, x, y);
}

void unpack_panel(const PanelView& w, float* out) noexcept {
  HWY_DYNAMIC_DISPATCH(unpack_panel)(w, out);
}

void store_panel(const float* y, const PanelOutput& out, Epilogue epilogue) noexcept {
  HWY_DYNAMIC_DISPATCH(store_panel)(y, out, epilogue);
}

void store_swiglu(const float* gate, const float* up, const PanelOutput& out) noexcept {
  HWY_DYNAMIC_DISPATCH(store_swiglu)(gate, up, out);
}

}  // namespace simd
}  // namespace kvquant
#endif  // HWY_ONCE
