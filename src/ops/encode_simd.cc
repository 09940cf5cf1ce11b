// Tokens are lanes. Rows are transposed into a scratch of one line of 64 tokens per channel, with
// feedback in coding order, where a channel's errors take the place of its values once it is coded.
// From there codes go to a planar tile of bytes, which is packed at the end.
//
// The sums of feedback run over the steps in order, so they can't be split; but the lines of a
// group of 4 tokens' vectors and of kSteps steps are independent chains, and each error that is
// loaded meets kSteps coefficients. Codes of 2 to 4 bits are found by binary search in registers
// where a vector holds all midpoints, else by counting.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/encode_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "formats/kv_block.h"
#include "ops/encode.h"
#include "ops/encode_steps_inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if KVQUANT_HAS_ENCODE_STEPS

// What all channels of a job share.
struct Pass {
  const EncodeJob* job;
  Search search;
  bool by_token;
  const float* rows[kTileTokens];  // zeros outside the job
  alignas(64) float scales[kMaxNuqHeadDim];
  alignas(64) float inv_scales[kMaxNuqHeadDim];
  alignas(64) float zeros[kMaxNuqHeadDim];
  alignas(64) int32_t keep[kTileTokens];                     // all ones where a token is in the job
  alignas(64) uint8_t planar[kMaxNuqHeadDim * kTileTokens];  // codes, [head_dim][64]
};

alignas(64) constexpr float kNoRow[kMaxNuqHeadDim] = {};

void start_pass(const EncodeJob& job, Pass& pass) {
  pass.job = &job;
  pass.by_token = job.axis == ScaleAxis::kToken;
  const int64_t first = job.first_token, end = first + job.num_tokens;
  for (int64_t t = 0; t < kTileTokens; ++t) {
    const bool inside = first <= t && t < end;
    pass.rows[t] = inside ? job.rows + (t - first) * job.row_stride : kNoRow;
    pass.keep[t] = inside ? -1 : 0;
    if (pass.by_token) pass.scales[t] = inside ? job.scales[t] : 0;
    if (pass.by_token) pass.zeros[t] = inside ? job.zeros[t] : 0;
  }
  const int64_t num_scales = pass.by_token ? int64_t{kTileTokens} : job.head_dim;
  if (!pass.by_token) std::copy(job.scales, job.scales + num_scales, pass.scales);
  if (!pass.by_token) std::copy(job.zeros, job.zeros + num_scales, pass.zeros);
  for (int64_t i = 0; i < num_scales; ++i) {
    const float inverse = 1 / pass.scales[i];
    pass.inv_scales[i] = pass.scales[i] > 0 ? inverse : 0.0f;
  }
  start_search(*job.codebook, pass.search);
}

template <int kBits>
HWY_INLINE FloatVec levels_of(const Pass& pass, IntVec code) {
  const FloatTag d;
  if constexpr (kBits == 8) {
    const auto centred = hn::Sub(hn::ConvertTo(d, code), hn::Set(d, 127.5f));
    return hn::Mul(centred, hn::Set(d, 1 / 127.5f));
  } else if constexpr (kTableInRegister) {
    return hn::TableLookupLanes(hn::Load(d, pass.job->codebook->levels),
                                hn::IndicesFromVec(d, code));
  } else {
    return hn::GatherIndex(d, pass.job->codebook->levels, code);
  }
}

HWY_INLINE hn::Mask<FloatTag> outliers_of(const EncodeJob& job, FloatVec x, int64_t c) {
  const FloatTag d;
  return hn::Or(hn::Lt(x, hn::Set(d, job.low[c])), hn::Gt(x, hn::Set(d, job.high[c])));
}

// Codes channel c of the tokens of vectors v, v + 1, ...: t is what is rounded, x (a line of 64
// tokens) what it stands for. With feedback x becomes the errors, which are returned, too.
template <int kBits, int kVectors, bool kFeedback>
HWY_INLINE void code_channel(Pass& pass, int64_t c, int64_t v, FloatVec (&t)[kVectors],
                             float* HWY_RESTRICT x) {
  const FloatTag d;
  const EncodeJob& job = *pass.job;
  IntVec codes[kVectors];
  uint64_t outlier_bits = 0;
  for (int g = 0; g < kVectors; ++g) {
    const int64_t token = (v + g) * kLanes;
    const auto zero = pass.by_token ? hn::Load(d, pass.zeros + token) : hn::Set(d, pass.zeros[c]);
    const auto inv_scale =
        pass.by_token ? hn::Load(d, pass.inv_scales + token) : hn::Set(d, pass.inv_scales[c]);
    const auto code = find_codes<kBits>(pass.search, hn::Mul(hn::Sub(t[g], zero), inv_scale));
    codes[g] = hn::And(code, hn::Load(IntTag(), pass.keep + token));
    auto is_outlier = hn::MaskFromVec(hn::Zero(d));
    const auto exact = kFeedback ? hn::Load(d, x + token) : t[g];
    if (job.low != nullptr) {
      is_outlier = outliers_of(job, exact, c);
      outlier_bits |= bits_of(is_outlier) << token;
    }
    if constexpr (kFeedback) {
      if (job.low == nullptr && job.outliers != nullptr) {
        const uint64_t bits = job.outliers[c] >> token;
        is_outlier = hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(&bits));
      }
      const auto scale =
          pass.by_token ? hn::Load(d, pass.scales + token) : hn::Set(d, pass.scales[c]);
      const auto decoded = hn::Add(hn::Mul(levels_of<kBits>(pass, code), scale), zero);
      t[g] = hn::IfThenZeroElse(is_outlier, hn::Sub(exact, decoded));
      hn::Store(t[g], d, x + token);
    }
  }
  put_codes(c, v, codes, pass.planar);
  if (job.low != nullptr) {
    const uint64_t inside = (job.num_tokens == 64 ? 0 : uint64_t{1} << job.num_tokens) - 1;
    job.outliers[c] |= outlier_bits & inside << job.first_token;
  }
}

// Channel c to line steps[c] of `lines`, [head_dim][64].
void transpose_vectors(const Pass& pass, int64_t first, int64_t num_vectors, const uint8_t* steps,
                       float* lines) {
  for (int64_t v = first; v < first + num_vectors; ++v) {
    transpose_rows(pass.rows + v * kLanes, pass.job->head_dim, steps, lines + v * kLanes);
  }
}

template <int kBits, int kVectors>
void encode_nearest(Pass& pass, int64_t v) {
  alignas(64) float lines[kMaxNuqHeadDim * kTileTokens];
  uint8_t steps[kMaxNuqHeadDim];
  for (int64_t c = 0; c < pass.job->head_dim; ++c) steps[c] = static_cast<uint8_t>(c);
  transpose_vectors(pass, v, kVectors, steps, lines);
  for (int64_t c = 0; c < pass.job->head_dim; ++c) {
    float* line = lines + c * kTileTokens;
    FloatVec t[kVectors];
    for (int g = 0; g < kVectors; ++g) t[g] = hn::Load(FloatTag(), line + (v + g) * kLanes);
    code_channel<kBits, kVectors, false>(pass, c, v, t, line);
  }
}

// kSteps steps at a time: first the errors of all earlier steps, then one after the other.
template <int kBits, int kVectors>
void encode_with_feedback(Pass& pass, int64_t v) {
  constexpr int kSteps = 16 / kVectors < 8 ? 16 / kVectors : 8;
  const FloatTag d;
  const int64_t head_dim = pass.job->head_dim;
  const RoundingFeedback& feedback = *pass.job->feedback;
  alignas(64) float lines[kMaxNuqHeadDim * kTileTokens];  // [step][64]
  uint8_t steps[kMaxNuqHeadDim];                          // of channels
  for (int64_t i = 0; i < head_dim; ++i) steps[feedback.order[i]] = static_cast<uint8_t>(i);
  transpose_vectors(pass, v, kVectors, steps, lines);
  const int64_t token = v * kLanes;
  for (int64_t i = 0; i < head_dim; i += kSteps) {
    const float* weights = feedback.coefficients + i * head_dim;
    FloatVec t[kSteps][kVectors];
    for (int s = 0; s < kSteps; ++s) {
      for (int g = 0; g < kVectors; ++g) {
        t[s][g] = hn::Load(d, lines + (i + s) * kTileTokens + token + g * kLanes);
      }
    }
    for (int64_t j = 0; j < i; ++j) {
      FloatVec error[kVectors];
      for (int g = 0; g < kVectors; ++g) {
        error[g] = hn::Load(d, lines + j * kTileTokens + token + g * kLanes);
      }
      for (int s = 0; s < kSteps; ++s) {
        const auto weight = hn::Set(d, weights[s * head_dim + j]);
        for (int g = 0; g < kVectors; ++g) t[s][g] = hn::MulAdd(weight, error[g], t[s][g]);
      }
    }
    for (int s = 0; s < kSteps; ++s) {
      code_channel<kBits, kVectors, true>(pass, feedback.order[i + s], v, t[s],
                                          lines + (i + s) * kTileTokens);
      for (int later = s + 1; later < kSteps; ++later) {
        const auto weight = hn::Set(d, weights[later * head_dim + i + s]);
        for (int g = 0; g < kVectors; ++g) {
          t[later][g] = hn::MulAdd(weight, t[s][g], t[later][g]);
        }
      }
    }
  }
}

template <int kBits, int kVectors>
void encode_vectors(Pass& pass, int64_t v) {
  if (pass.job->feedback != nullptr) {
    encode_with_feedback<kBits, kVectors>(pass, v);
  } else {
    encode_nearest<kBits, kVectors>(pass, v);
  }
}

template <int kBits>
void encode_bits(const EncodeJob& job) {
  if (job.num_tokens == 0) return;
  Pass pass;
  start_pass(job, pass);
  const int64_t first = job.first_token / kLanes;
  const int64_t last = (job.first_token + job.num_tokens - 1) / kLanes;
  const bool whole = job.num_tokens == kTileTokens;
  if (!whole) std::memset(pass.planar, 0, static_cast<size_t>(job.head_dim * kTileTokens));
  if (first == last) {
    encode_vectors<kBits, 1>(pass, first);
  } else {
    for (int64_t v = first / kGroup * kGroup; v <= last; v += kGroup) {
      encode_vectors<kBits, kGroup>(pass, v);
    }
  }
  add_codes(job.codes, code_side(job.axis), kBits, job.head_dim, pass.planar);
}

bool encode_tile(const EncodeJob& job) {
  if (job.low != nullptr) std::fill(job.outliers, job.outliers + job.head_dim, uint64_t{0});
  switch (job.codebook->bits) {
    case 2: encode_bits<2>(job); return true;
    case 3: encode_bits<3>(job); return true;
    case 4: encode_bits<4>(job); return true;
    default: encode_bits<8>(job); return true;
  }
}

#else

bool encode_tile(const EncodeJob&) { return false; }

#endif

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::simd {

HWY_EXPORT(encode_tile);

bool encode_tile(const EncodeJob& job) noexcept { return HWY_DYNAMIC_DISPATCH(encode_tile)(job); }

}  // namespace kvquant::simd
#endif
