// Rows of 64 tokens of one channel: 16 codes at a time become lanes, the codebook is a table in
// registers where the vector is long enough, else in memory.
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

// Levels of the codes of one vector's lanes.
template <class D>
hn::Vec<D> look_up(D d, const NuqCodebook& book, const uint8_t* codes) {
  const hn::RebindToSigned<D> di;
  const auto index = hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, D>(), codes));
  if (book.bits == kByteCodeBits) {
    const auto centred = hn::Sub(hn::ConvertTo(d, index), hn::Set(d, 127.5f));
    return hn::Mul(centred, hn::Set(d, 1 / 127.5f));
  }
  const float* levels = book.levels;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return hn::TableLookupLanes(hn::LoadU(d, levels), hn::IndicesFromVec(d, index));
#else
  return hn::GatherIndex(d, levels, index);
#endif
}

void unpack_tile(const DecodeJob& job, float* HWY_RESTRICT planar) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const bool by_token = job.axis == ScaleAxis::kToken;
  HWY_ALIGN uint8_t tile_codes[kMaxNuqHeadDim * kTileTokens];
  read_codes(job.codes, code_side(job.axis), job.codebook->bits, job.head_dim, tile_codes);
  for (int64_t c = 0; c < job.head_dim; ++c) {
    const uint8_t* codes = tile_codes + c * kTileTokens;
    const auto scale = hn::Set(d, by_token ? 0.0f : job.scales[c]);
    const auto zero = hn::Set(d, by_token ? 0.0f : job.zeros[c]);
    for (int64_t t = 0; t < kTileTokens; t += lanes) {
      const auto level = look_up(d, *job.codebook, codes + t);
      const auto s = by_token ? hn::LoadU(d, job.scales + t) : scale;
      const auto z = by_token ? hn::LoadU(d, job.zeros + t) : zero;
      hn::StoreU(hn::Add(hn::Mul(level, s), z), d, planar + c * kTileTokens + t);
    }
  }
}

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

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::simd {

HWY_EXPORT(unpack_tile);
HWY_EXPORT(rotate_to_key_tile);

void unpack_tile(const DecodeJob& job, float* planar) {
  HWY_DYNAMIC_DISPATCH(unpack_tile)(job, planar);
}

void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile) {
  HWY_DYNAMIC_DISPATCH(rotate_to_key_tile)(planar, cos, sin, head_dim, tile);
}

}  // namespace kvquant::simd
#endif
