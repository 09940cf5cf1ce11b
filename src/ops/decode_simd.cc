// 32-bit lanes of a register are lanes of a row of codes: a shift and a mask give the codes of one
// slot and half. The codebook is a table in registers where the vector is long enough, else in
// memory. Lanes of keys are tokens; of values they are channels, which are transposed.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/decode_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "formats/kv_block.h"
#include "ops/decode.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;

#if HWY_TARGET != HWY_SCALAR

using IntTag = hn::RebindToSigned<FloatTag>;
using FloatVec = hn::Vec<FloatTag>;
using IntVec = hn::Vec<IntTag>;

HWY_INLINE IntVec load_lanes(const uint8_t* at, int64_t shift) {
  const hn::Repartition<uint8_t, IntTag> bytes;
  const hn::RebindToUnsigned<IntTag> du;
  const auto words = hn::BitCast(du, hn::LoadU(bytes, at));
  return hn::BitCast(IntTag(), hn::ShiftRightSame(words, static_cast<int>(shift)));
}

// Codes of the lanes from `first` on, of one slot and half.
template <int kBits>
HWY_INLINE IntVec load_codes(const uint8_t* tile, CodePlace first) {
  const IntTag di;
  const int64_t in_row = 4 * (first.word / 2), half = 16 * (first.word % 2), row = first.row;
  if constexpr (kBits == 8) {
    const uint8_t* at = tile + 128 * row + first.slot / 2 * 64 + in_row;
    return hn::And(load_lanes(at, half + first.slot % 2 * 8), hn::Set(di, 255));
  } else if constexpr (kBits == 4) {
    return hn::And(load_lanes(tile + 64 * row + in_row, half + 4 * first.slot), hn::Set(di, 15));
  } else if constexpr (kBits == 2) {
    const int64_t shift = half + row % 2 * 8 + 2 * first.slot;
    return hn::And(load_lanes(tile + row / 2 * 64 + in_row, shift), hn::Set(di, 3));
  } else {
    const uint8_t* at = tile + row / 4 * 192 + in_row;
    const int64_t phase = row % 4;
    if (phase < 3) {
      return hn::And(load_lanes(at + 64 * phase, half + 3 * first.slot), hn::Set(di, 7));
    }
    if (first.slot < 3) {
      return hn::And(load_lanes(at + 64 * first.slot, half + 12), hn::Set(di, 7));
    }
    const auto bit = [&](int k) {
      return hn::And(load_lanes(at + 64 * k, half + 15 - k), hn::Set(di, 1 << k));
    };
    return hn::Or(bit(0), hn::Or(bit(1), bit(2)));
  }
}

template <int kBits>
HWY_INLINE FloatVec look_up(const float* levels, IntVec code) {
  const FloatTag d;
  if constexpr (kBits == kByteCodeBits) {
    const auto centred = hn::Sub(hn::ConvertTo(d, code), hn::Set(d, 127.5f));
    return hn::Mul(centred, hn::Set(d, 1 / 127.5f));
  }
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return hn::TableLookupLanes(hn::LoadU(d, levels), hn::IndicesFromVec(d, code));
#else
  return hn::GatherIndex(d, levels, code);
#endif
}

template <int kBits>
void unpack_keys(const DecodeJob& job, float* HWY_RESTRICT planar) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t half = job.head_dim / 2;
  for (int64_t c = 0; c < job.head_dim; ++c) {
    const int64_t row = c < half ? c : c - half;
    const auto scale = hn::Set(d, job.scales[c]), zero = hn::Set(d, job.zeros[c]);
    for (int64_t t = 0; t < kTileTokens; t += lanes) {
      const CodePlace first{row, static_cast<int>(t / 16), static_cast<int>(t % 16 * 2 + c / half)};
      const auto code = load_codes<kBits>(job.codes, first);
      const auto level = look_up<kBits>(job.codebook->levels, code);
      hn::StoreU(hn::Add(hn::Mul(level, scale), zero), d, planar + c * kTileTokens + t);
    }
  }
}

// 4 tokens of the channels of a vector at a time.
template <int kBits>
void unpack_values(const DecodeJob& job, float* HWY_RESTRICT planar) {
  const FloatTag d;
  const hn::FixedTag<float, 4> d4;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t c = 0; c < job.head_dim; c += lanes) {
    const int64_t num_channels = job.head_dim - c < lanes ? job.head_dim - c : lanes;
    for (int64_t t = 0; t < kTileTokens; t += 4) {
      FloatVec x[4];
      for (int64_t k = 0; k < 4; ++k) {
        const CodePlace first = code_place(KvSide::kValue, job.head_dim, t + k, c);
        const auto code = load_codes<kBits>(job.codes, first);
        const auto level = look_up<kBits>(job.codebook->levels, code);
        const auto scale = hn::Set(d, job.scales[t + k]), zero = hn::Set(d, job.zeros[t + k]);
        x[k] = hn::Add(hn::Mul(level, scale), zero);
      }
      HWY_ALIGN float fours[4 * hn::MaxLanes(d)];
      hn::StoreInterleaved4(x[0], x[1], x[2], x[3], d, fours);
      for (int64_t k = 0; k < num_channels; ++k) {
        hn::StoreU(hn::Load(d4, fours + 4 * k), d4, planar + (c + k) * kTileTokens + t);
      }
    }
  }
}

template <int kBits>
void unpack_bits(const DecodeJob& job, float* planar) {
  if (job.axis == ScaleAxis::kChannel) {
    unpack_keys<kBits>(job, planar);
  } else {
    unpack_values<kBits>(job, planar);
  }
}

void unpack_tile(const DecodeJob& job, float* planar) {
  switch (job.codebook->bits) {
    case 2: unpack_bits<2>(job, planar); break;
    case 3: unpack_bits<3>(job, planar); break;
    case 4: unpack_bits<4>(job, planar); break;
    default: unpack_bits<8>(job, planar); break;
  }
}

#else

void unpack_tile(const DecodeJob& job, float* planar) {
  DecodeJob dense = job;
  dense.outliers = {};
  ref::decode_tile(dense, planar);
}

#endif

// Channels c, c + 1 and their partners c + half, c + half + 1 at once: both are pairs of the tile.
// head_dim / 2 is a multiple of 4, so pairs never straddle the halves.
void rotate_to_key_tile(const float* HWY_RESTRICT planar, const float* HWY_RESTRICT cos,
                        const float* HWY_RESTRICT sin, int64_t head_dim, float* HWY_RESTRICT tile) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t half = head_dim / 2;
  for (int64_t c = 0; c < half; c += 2) {
    for (int64_t t = 0; t < kTileTokens; t += lanes) {
      const int64_t at0 = c * kTileTokens + t, at1 = at0 + kTileTokens;
      const int64_t partner = half * kTileTokens;
      const auto a0 = hn::LoadU(d, planar + at0), a1 = hn::LoadU(d, planar + at1);
      const auto b0 = hn::LoadU(d, planar + at0 + partner);
      const auto b1 = hn::LoadU(d, planar + at1 + partner);
      const auto cos0 = hn::LoadU(d, cos + at0), cos1 = hn::LoadU(d, cos + at1);
      const auto sin0 = hn::LoadU(d, sin + at0), sin1 = hn::LoadU(d, sin + at1);
      hn::StoreInterleaved2(hn::Sub(hn::Mul(a0, cos0), hn::Mul(b0, sin0)),
                            hn::Sub(hn::Mul(a1, cos1), hn::Mul(b1, sin1)), d,
                            tile + key_index(t, c));
      hn::StoreInterleaved2(hn::Add(hn::Mul(b0, cos0), hn::Mul(a0, sin0)),
                            hn::Add(hn::Mul(b1, cos1), hn::Mul(a1, sin1)), d,
                            tile + key_index(t, c + half));
    }
  }
}

// Rows of 16 tokens at a time become floats, then columns.
void rows_to_planar(const Half* rows, int64_t stride, int64_t head_dim, int64_t first_token,
                    int64_t num_tokens, float* HWY_RESTRICT planar) {
  constexpr int64_t kRows = 16;
  const FloatTag d;
  const hn::Rebind<hwy::float16_t, FloatTag> half;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float block[kRows * kMaxNuqHeadDim];
  for (int64_t first = 0; first < num_tokens; first += kRows) {
    const int64_t count = HWY_MIN(kRows, num_tokens - first);
    for (int64_t from = 0; from < head_dim; from += kMaxNuqHeadDim) {
      const int64_t size = HWY_MIN(int64_t{kMaxNuqHeadDim}, head_dim - from);
      for (int64_t t = 0; t < count; ++t) {
        const auto* row =
            reinterpret_cast<const hwy::float16_t*>(rows + (first + t) * stride + from);
        int64_t c = 0;
        for (; c + lanes <= size; c += lanes) {
          hn::StoreU(hn::PromoteTo(d, hn::LoadU(half, row + c)), d, block + t * kMaxNuqHeadDim + c);
        }
        for (; c < size; ++c) {
          block[t * kMaxNuqHeadDim + c] = to_float(rows[(first + t) * stride + from + c]);
        }
      }
      for (int64_t c = 0; c < size; ++c) {
        float* out = planar + (from + c) * kTileTokens + first_token + first;
        for (int64_t t = 0; t < count; ++t) out[t] = block[t * kMaxNuqHeadDim + c];
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::simd {

HWY_EXPORT(unpack_tile);
HWY_EXPORT(rotate_to_key_tile);
HWY_EXPORT(rows_to_planar);

void unpack_tile(const DecodeJob& job, float* planar) {
  HWY_DYNAMIC_DISPATCH(unpack_tile)(job, planar);
}

void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile) {
  HWY_DYNAMIC_DISPATCH(rotate_to_key_tile)(planar, cos, sin, head_dim, tile);
}

void rows_to_planar(const Half* rows, int64_t stride, int64_t head_dim, int64_t first_token,
                    int64_t num_tokens, float* planar) {
  HWY_DYNAMIC_DISPATCH(rows_to_planar)(rows, stride, head_dim, first_token, num_tokens, planar);
}

}  // namespace kvquant::simd
#endif
