#include "bench/encode_passes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/encode_passes.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>

#include "ops/encode_steps_inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if KVQUANT_HAS_ENCODE_STEPS

// Keys to [head_dim][64].
void normalise_keys(const EncodeJob& job, float* normalised) {
  const FloatTag d;
  const float* rows[kTileTokens];
  uint8_t channels[kMaxNuqHeadDim];
  alignas(64) float lines[kMaxNuqHeadDim * kTileTokens];
  for (int64_t t = 0; t < kTileTokens; ++t) rows[t] = job.rows + t * job.row_stride;
  for (int64_t c = 0; c < job.head_dim; ++c) channels[c] = static_cast<uint8_t>(c);
  for (int64_t t = 0; t < kTileTokens; t += kLanes) {
    transpose_rows(rows + t, job.head_dim, channels, lines + t);
  }
  for (int64_t c = 0; c < job.head_dim; ++c) {
    const auto zero = hn::Set(d, job.zeros[c]);
    const auto inv_scale = hn::Set(d, job.scales[c] > 0 ? 1 / job.scales[c] : 0);
    for (int64_t t = 0; t < kTileTokens; t += kLanes) {
      const auto x = hn::Load(d, lines + c * kTileTokens + t);
      hn::Store(hn::Mul(hn::Sub(x, zero), inv_scale), d, normalised + c * kTileTokens + t);
    }
  }
}

// Values to [64][head_dim].
void normalise_values(const EncodeJob& job, float* normalised) {
  const FloatTag d;
  for (int64_t t = 0; t < kTileTokens; ++t) {
    const auto zero = hn::Set(d, job.zeros[t]);
    const auto inv_scale = hn::Set(d, job.scales[t] > 0 ? 1 / job.scales[t] : 0);
    for (int64_t c = 0; c < job.head_dim; c += kLanes) {
      const auto x = hn::LoadU(d, job.rows + t * job.row_stride + c);
      hn::Store(hn::Mul(hn::Sub(x, zero), inv_scale), d, normalised + t * job.head_dim + c);
    }
  }
}

// Thresholds are compared where a row lies; bits of 16 tokens of a channel are gathered by columns.
void find_outliers(const EncodeJob& job) {
  const FloatTag d;
  const IntTag di;
  std::fill(job.outliers, job.outliers + job.head_dim, uint64_t{0});
  for (int64_t c = 0; c < job.head_dim; c += kLanes) {
    const auto low = hn::LoadU(d, job.low + c), high = hn::LoadU(d, job.high + c);
    for (int64_t t = 0; t < kTileTokens; t += 32) {
      auto bits = hn::Zero(di);
      for (int64_t k = 0; k < 32; ++k) {
        const auto x = hn::LoadU(d, job.rows + (t + k) * job.row_stride + c);
        const auto outside = hn::RebindMask(di, hn::Or(hn::Lt(x, low), hn::Gt(x, high)));
        const auto bit = hn::Set(di, static_cast<int32_t>(uint32_t{1} << k));
        bits = hn::Or(bits, hn::IfThenElseZero(outside, bit));
      }
      alignas(64) int32_t words[kLanes];
      hn::Store(bits, di, words);
      for (int64_t k = 0; k < kLanes; ++k) {
        job.outliers[c + k] |= uint64_t{static_cast<uint32_t>(words[k])} << t;
      }
    }
  }
}

template <int kBits>
void find_piece_codes(const NuqCodebook& book, const float* normalised, int64_t size,
                      uint8_t* codes) {
  Search search;
  start_search(book, search);
  for (int64_t i = 0; i < size; i += kLanes) {
    const auto code = find_codes<kBits>(search, hn::Load(FloatTag(), normalised + i));
    const auto bytes = hn::U8FromU32(hn::BitCast(hn::RebindToUnsigned<FloatTag>(), code));
    hn::StoreU(bytes, hn::Rebind<uint8_t, FloatTag>(), codes + i);
  }
}

HWY_INLINE IntVec load_codes(const uint8_t* codes) {
  return hn::PromoteTo(IntTag(), hn::LoadU(hn::Rebind<uint8_t, IntTag>(), codes));
}

template <int kBits>
void pack_keys(const uint8_t* codes, int64_t head_dim, uint8_t* tile) {
  for (int64_t c = 0; c < head_dim; ++c) {
    for (int64_t v = 0; v < kTileTokens / kLanes; v += kGroup) {
      IntVec group[kGroup];
      for (int g = 0; g < kGroup; ++g) {
        group[g] = load_codes(codes + c * kTileTokens + (v + g) * kLanes);
      }
      add_channel<kBits>(c, v, group, head_dim, tile);
    }
  }
}

template <int kBits>
void pack_values(const uint8_t* codes, int64_t head_dim, uint8_t* tile) {
  for (int64_t t = 0; t < kTileTokens; t += t % 2 == 0 ? 1 : 7) {  // 0, 1, 8, 9, ...
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      SlotCodes<kBits, IntVec> slots;
      for (int64_t s = kRowSlots - 1; s >= 0; --s) {
        slots.add(load_codes(codes + (t + 2 * s) * head_dim + c));
      }
      add_slots(slots, code_place(KvSide::kValue, head_dim, t, c), tile);
    }
  }
}

template <int kBits>
void run_passes(const EncodeChunk& chunk, const PassBuffers& buffers, ThreadPool& pool) {
  const int64_t piece_size = chunk.head_dim * kTileTokens;
  const bool is_key = chunk.axis == ScaleAxis::kChannel;
  const auto normalise = is_key ? normalise_keys : normalise_values;
  const auto pack = is_key ? pack_keys<kBits> : pack_values<kBits>;
  pool.parallel_for(chunk.num_pieces(), [&](int64_t i, int) {
    normalise(chunk.job(i), buffers.normalised + i * piece_size);
  });
  if (chunk.low != nullptr) {
    pool.parallel_for(chunk.num_pieces(), [&](int64_t i, int) { find_outliers(chunk.job(i)); });
  }
  pool.parallel_for(chunk.num_pieces(), [&](int64_t i, int) {
    find_piece_codes<kBits>(*chunk.codebook, buffers.normalised + i * piece_size, piece_size,
                            buffers.codes + i * piece_size);
  });
  pool.parallel_for(chunk.num_pieces(), [&](int64_t i, int) {
    pack(buffers.codes + i * piece_size, chunk.head_dim, chunk.job(i).codes);
  });
}

bool encode_in_passes(const EncodeChunk& chunk, const PassBuffers& buffers, ThreadPool& pool) {
  switch (chunk.codebook->bits) {
    case 2: run_passes<2>(chunk, buffers, pool); return true;
    case 3: run_passes<3>(chunk, buffers, pool); return true;
    case 4: run_passes<4>(chunk, buffers, pool); return true;
    default: run_passes<8>(chunk, buffers, pool); return true;
  }
}

#else

bool encode_in_passes(const EncodeChunk&, const PassBuffers&, ThreadPool&) { return false; }

#endif

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

EncodeJob EncodeChunk::job(int64_t piece) const {
  const int64_t tile = piece / num_kv_heads, head = piece % num_kv_heads;
  const int64_t first_channel = head * head_dim;
  const int64_t first_param = axis == ScaleAxis::kToken ? tile * kTileTokens : first_channel;
  return {.codebook = codebook,
          .rows = rows + tile * kTileTokens * row_size() + first_channel,
          .row_stride = row_size(),
          .scales = scales + first_param,
          .zeros = zeros + first_param,
          .axis = axis,
          .low = low != nullptr ? low + first_channel : nullptr,
          .high = high != nullptr ? high + first_channel : nullptr,
          .head_dim = head_dim,
          .num_tokens = kTileTokens,
          .codes = codes + piece * code_tile_bytes(codebook->bits, head_dim),
          .outliers = low != nullptr ? outliers + piece * head_dim : nullptr};
}

HWY_EXPORT(encode_in_passes);

bool encode_in_passes(const EncodeChunk& chunk, const PassBuffers& buffers, ThreadPool& pool) {
  return HWY_DYNAMIC_DISPATCH(encode_in_passes)(chunk, buffers, pool);
}

}  // namespace kvquant
#endif
