// The steps of encoding that are the same whatever is done between them: transposing rows, finding
// the level of a number, packing codes. Included once per instruction set (Highway); only those
// with fused multiply-add and vectors of 8 or 16 floats have it.
#if defined(KVQUANT_OPS_ENCODE_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVQUANT_OPS_ENCODE_STEPS_INL_H_
#undef KVQUANT_OPS_ENCODE_STEPS_INL_H_
#else
#define KVQUANT_OPS_ENCODE_STEPS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"
#include "ops/code_rows_inl.h"

#undef KVQUANT_HAS_ENCODE_STEPS
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define KVQUANT_HAS_ENCODE_STEPS 1
#else
#define KVQUANT_HAS_ENCODE_STEPS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if KVQUANT_HAS_ENCODE_STEPS

using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using FloatVec = hn::Vec<FloatTag>;
using IntVec = hn::Vec<IntTag>;
constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));
constexpr bool kTableInRegister = kLanes >= kMaxLevels;
constexpr int kGroup = 4;                               // vectors of tokens that are coded together
constexpr int64_t kPackedStride = kMaxNuqHeadDim + 16;  // floats, no power of two

// 4 channels of one vector's tokens, rows[k] those of token k.
HWY_INLINE void transpose_quad(const FloatVec (&in)[4], FloatVec (&out)[4]) {
  const FloatTag d;
  const hn::Repartition<double, FloatTag> dd;
  const auto low01 = hn::BitCast(dd, hn::InterleaveLower(d, in[0], in[1]));
  const auto low23 = hn::BitCast(dd, hn::InterleaveLower(d, in[2], in[3]));
  const auto high01 = hn::BitCast(dd, hn::InterleaveUpper(d, in[0], in[1]));
  const auto high23 = hn::BitCast(dd, hn::InterleaveUpper(d, in[2], in[3]));
  out[0] = hn::BitCast(d, hn::InterleaveLower(dd, low01, low23));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(dd, low01, low23));
  out[2] = hn::BitCast(d, hn::InterleaveLower(dd, high01, high23));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(dd, high01, high23));
}

// 4 channels of tokens 0, 4, 8, ... of `packed` [kLanes][kMaxNuqHeadDim], from the first one's on.
HWY_INLINE FloatVec load_blocks(const float* packed) {
  constexpr int64_t kNext = 4 * kPackedStride;
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<float, 8> d8;
  const auto low = hn::Combine(d8, hn::Load(d4, packed + kNext), hn::Load(d4, packed));
#if HWY_TARGET == HWY_AVX2
  return low;
#else
  const auto high =
      hn::Combine(d8, hn::Load(d4, packed + 3 * kNext), hn::Load(d4, packed + 2 * kNext));
  return hn::Combine(FloatTag(), high, low);
#endif
}

// The tokens of one vector, rows[0, kLanes) of head_dim channels, to lines slots[0, head_dim) of 64
// tokens each. Rows are often a multiple of 4 KiB apart, so that their lines displace each other in
// a cache: they are copied one after the other first.
HWY_INLINE void transpose_rows(const float* const* rows, int64_t head_dim, const uint8_t* slots,
                               float* lines) {
  const hn::FixedTag<float, 8> d8;
  alignas(64) float packed[kLanes * kPackedStride];
  for (int64_t t = 0; t < kLanes; ++t) {
    for (int64_t c = 0; c < head_dim; c += 8) {
      hn::Store(hn::LoadU(d8, rows[t] + c), d8, packed + t * kPackedStride + c);
    }
  }
  for (int64_t c = 0; c < head_dim; c += 4) {
    FloatVec in[4], out[4];
    for (int k = 0; k < 4; ++k) in[k] = load_blocks(packed + k * kPackedStride + c);
    transpose_quad(in, out);
    for (int k = 0; k < 4; ++k) {
      hn::Store(out[k], FloatTag(), lines + slots[c + k] * kTileTokens);
    }
  }
}

// Midpoints as the search reads them.
struct Search {
  alignas(64) float midpoints[4][kMaxLevels];  // of step s, moved to code 0
};

HWY_INLINE void start_search(const NuqCodebook& book, Search& search) {
  // Step s adds 8 >> s: from code k it looks at midpoint k + (8 >> s) - 1.
  for (int s = 0; s < 4; ++s) {
    const int ahead = (8 >> s) - 1;
    for (int k = 0; k < kMaxLevels; ++k) {
      search.midpoints[s][k] = k + ahead < kMaxLevels ? book.midpoints[k + ahead] : 0.0f;
    }
  }
}

// Adds kBit to the codes below y's midpoint in that step of the search.
template <int kBit>
HWY_INLINE IntVec refine(const float* midpoints, FloatVec y, IntVec code) {
  const FloatTag d;
  const IntTag di;
  const auto table = hn::Load(d, midpoints);
  const auto midpoint = hn::TableLookupLanes(table, hn::IndicesFromVec(d, code));
  const auto above = hn::RebindMask(di, hn::Lt(midpoint, y));
  return hn::IfThenElse(above, hn::Or(code, hn::Set(di, kBit)), code);
}

template <int kBits>
HWY_INLINE IntVec find_codes(const Search& search, FloatVec y) {
  const FloatTag d;
  const IntTag di;
  if constexpr (kBits == 8) {
    const auto steps =
        hn::Sub(hn::Mul(hn::Add(y, hn::Set(d, 1)), hn::Set(d, 127.5f)), hn::Set(d, 0.5f));
    const auto clamped = hn::Min(hn::Max(hn::Ceil(steps), hn::Zero(d)), hn::Set(d, 255));
    return hn::ConvertTo(di, clamped);
  } else if constexpr (kTableInRegister) {
    constexpr int kFirst = 4 - kBits;
    const auto middle = hn::Set(d, search.midpoints[kFirst][0]);
    auto code = hn::IfThenElseZero(hn::RebindMask(di, hn::Lt(middle, y)), hn::Set(di, 8 >> kFirst));
    if constexpr (kBits == 4) code = refine<4>(search.midpoints[1], y, code);
    if constexpr (kBits >= 3) code = refine<2>(search.midpoints[2], y, code);
    return refine<1>(search.midpoints[3], y, code);
  } else {
    auto code = hn::Zero(di);
    for (int m = 0; m < (1 << kBits) - 1; ++m) {
      const auto below = hn::Lt(hn::Set(d, search.midpoints[3][m]), y);
      code = hn::Sub(code, hn::BitCast(di, hn::VecFromMask(d, below)));
    }
    return code;
  }
}

HWY_INLINE uint64_t bits_of(hn::Mask<FloatTag> mask) {
  uint8_t bytes[8];
  hn::StoreMaskBits(FloatTag(), mask, bytes);
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, kLanes / 8);
  return bits;
}

// Adds the codes of a channel of keys and of the tokens of vectors v, v + 1, ... to a tile.
template <int kBits, int kVectors>
HWY_INLINE void add_channel(int64_t c, int64_t v, const IntVec (&codes)[kVectors], int64_t head_dim,
                            uint8_t* tile) {
  constexpr int kPerSlot = static_cast<int>(16 / kLanes);
  constexpr int kNumLanes = kVectors < kPerSlot ? kVectors : kPerSlot;
  for (int lanes = 0; lanes < kNumLanes; ++lanes) {
    SlotCodes<kBits, IntVec> slots;
    for (int g = kVectors - kNumLanes + lanes; g >= 0; g -= kNumLanes) slots.add(codes[g]);
    const int64_t token = (v + lanes) * kLanes;
    CodePlace first{
        .row = c, .slot = static_cast<int>(token / 16), .word = static_cast<int>(token % 16 * 2)};
    if (c >= head_dim / 2) {  // code_place() divides
      first.row -= head_dim / 2;
      ++first.word;
    }
    add_slots(slots, first, tile);
  }
}

#endif  // KVQUANT_HAS_ENCODE_STEPS

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#endif
