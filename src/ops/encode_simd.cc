// Of keys tokens are lanes: rows are transposed into a scratch of one line of 64 tokens per
// channel, in coding order, where with feedback a channel's errors take the place of its values
// once it is coded. Of values channels are lanes, rows are read as they lie. Either way the lanes
// are those of the rows of codes, so that codes are packed where they are found.
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

#include "formats/kv_block.h"
#include "ops/encode.h"
#include "ops/encode_steps_inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if KVQUANT_HAS_ENCODE_STEPS

constexpr int kSteps = 4;  // of feedback at a time

// What all channels of a job of keys share.
struct Pass {
  const EncodeJob* job;
  Search search;
  const float* rows[kTileTokens];  // zeros outside the job
  uint8_t steps[kMaxNuqHeadDim];   // of channels
  alignas(64) float inv_scales[kMaxNuqHeadDim];
  alignas(64) int32_t keep[kTileTokens];  // all ones where a token is in the job
  // [head_dim][64]: values in the order of coding. With feedback the errors of a channel take the
  // place of its values once it is coded.
  alignas(64) float lines[kMaxNuqHeadDim * kTileTokens];
};

alignas(64) constexpr float kNoRow[kMaxNuqHeadDim] = {};

HWY_INLINE float inverse_of(float scale) { return scale > 0 ? 1 / scale : 0.0f; }

void start_pass(const EncodeJob& job, Pass& pass) {
  pass.job = &job;
  const int64_t first = job.first_token, end = first + job.num_tokens;
  for (int64_t t = 0; t < kTileTokens; ++t) {
    const bool inside = first <= t && t < end;
    pass.rows[t] = inside ? job.rows + (t - first) * job.row_stride : kNoRow;
    pass.keep[t] = inside ? -1 : 0;
  }
  for (int64_t c = 0; c < job.head_dim; ++c) pass.inv_scales[c] = inverse_of(job.scales[c]);
  for (int64_t i = 0; i < job.head_dim; ++i) {
    const int64_t c = job.feedback != nullptr ? job.feedback->order[i] : i;
    pass.steps[c] = static_cast<uint8_t>(i);
  }
  start_search(*job.codebook, pass.search);
}

// What codes of a channel stand for.
template <int kBits>
struct Decoder {
  HWY_INLINE Decoder(const NuqCodebook& book, float scale, float zero)
      : levels(book.levels),
        table(hn::Zero(FloatTag())),
        scale(hn::Set(FloatTag(), scale)),
        zero(hn::Set(FloatTag(), zero)) {
    if constexpr (kBits < 8 && kTableInRegister) table = scaled(hn::Load(FloatTag(), levels));
  }

  HWY_INLINE FloatVec scaled(FloatVec level) const { return hn::Add(hn::Mul(level, scale), zero); }

  HWY_INLINE FloatVec decode(IntVec code) const {
    const FloatTag d;
    if constexpr (kBits == 8) {
      const auto centred = hn::Sub(hn::ConvertTo(d, code), hn::Set(d, 127.5f));
      return scaled(hn::Mul(centred, hn::Set(d, 1 / 127.5f)));
    } else if constexpr (kTableInRegister) {
      return hn::TableLookupLanes(table, hn::IndicesFromVec(d, code));
    } else {
      return scaled(hn::GatherIndex(d, levels, code));
    }
  }

  const float* levels;
  FloatVec table;  // of all codes, where a vector holds it
  FloatVec scale, zero;
};

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
  const Decoder<kBits> decoder(*job.codebook, job.scales[c], job.zeros[c]);
  const auto inv_scale = hn::Set(d, pass.inv_scales[c]);
  for (int g = 0; g < kVectors; ++g) {
    const int64_t token = (v + g) * kLanes;
    const auto code =
        find_codes<kBits>(pass.search, hn::Mul(hn::Sub(t[g], decoder.zero), inv_scale));
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
      t[g] = hn::IfThenZeroElse(is_outlier, hn::Sub(exact, decoder.decode(code)));
      hn::Store(t[g], d, x + token);
    }
  }
  add_channel<kBits>(c, v, codes, job.head_dim, job.codes);
  if (job.low != nullptr) {
    const uint64_t inside = (job.num_tokens == 64 ? 0 : uint64_t{1} << job.num_tokens) - 1;
    job.outliers[c] |= outlier_bits & inside << job.first_token;
  }
}

template <int kBits, int kVectors>
void encode_nearest(Pass& pass, int64_t v) {
  for (int64_t c = 0; c < pass.job->head_dim; ++c) {
    float* line = pass.lines + c * kTileTokens;
    FloatVec t[kVectors];
    for (int g = 0; g < kVectors; ++g) t[g] = hn::Load(FloatTag(), line + (v + g) * kLanes);
    code_channel<kBits, kVectors, false>(pass, c, v, t, line);
  }
}

// Vectors of tokens and the kSteps steps they are at: sums of their values and the earlier errors.
template <int kVectors>
struct Stage {
  int64_t vector;
  int64_t step;
  FloatVec sums[kSteps][kVectors];
};

template <int kVectors>
HWY_INLINE void start_stage(const Pass& pass, int64_t step, Stage<kVectors>& stage) {
  stage.step = step;
  for (int s = 0; s < kSteps; ++s) {
    const float* line = pass.lines + (step + s) * kTileTokens + stage.vector * kLanes;
    for (int g = 0; g < kVectors; ++g) {
      stage.sums[s][g] = hn::Load(FloatTag(), line + g * kLanes);
    }
  }
}

// Adds the errors of all earlier steps.
template <int kVectors>
HWY_INLINE void add_errors(const Pass& pass, Stage<kVectors>& stage) {
  const FloatTag d;
  const int64_t head_dim = pass.job->head_dim;
  const float* weights = pass.job->feedback->coefficients + stage.step * head_dim;
  const float* lines = pass.lines + stage.vector * kLanes;
  for (int64_t j = 0; j < stage.step; ++j) {
    FloatVec error[kVectors];
    for (int g = 0; g < kVectors; ++g) error[g] = hn::Load(d, lines + j * kTileTokens + g * kLanes);
    for (int s = 0; s < kSteps; ++s) {
      const auto weight = hn::Set(d, weights[s * head_dim + j]);
      for (int g = 0; g < kVectors; ++g) {
        stage.sums[s][g] = hn::MulAdd(weight, error[g], stage.sums[s][g]);
      }
    }
  }
}

// Codes the steps of `stage` from kStep on, one after the other. Unrolled by recursion: sums stay
// in registers.
template <int kBits, int kStep = 0, int kVectors>
HWY_INLINE void code_steps(Pass& pass, Stage<kVectors>& stage) {
  if constexpr (kStep < kSteps) {
    const FloatTag d;
    const RoundingFeedback& feedback = *pass.job->feedback;
    const int64_t head_dim = pass.job->head_dim, i = stage.step + kStep;
    code_channel<kBits, kVectors, true>(pass, feedback.order[i], stage.vector, stage.sums[kStep],
                                        pass.lines + i * kTileTokens);
    for (int later = kStep + 1; later < kSteps; ++later) {
      const auto weight = hn::Set(d, feedback.coefficients[(stage.step + later) * head_dim + i]);
      for (int g = 0; g < kVectors; ++g) {
        stage.sums[later][g] = hn::MulAdd(weight, stage.sums[kStep][g], stage.sums[later][g]);
      }
    }
    code_steps<kBits, kStep + 1>(pass, stage);
  }
}

template <int kBits, int kVectors>
void encode_with_feedback(Pass& pass, int64_t v) {
  Stage<kVectors> stage{.vector = v};
  for (int64_t i = 0; i < pass.job->head_dim; i += kSteps) {
    start_stage(pass, i, stage);
    add_errors(pass, stage);
    code_steps<kBits>(pass, stage);
  }
}

template <int kBits, int kVectors>
void encode_vectors(Pass& pass, int64_t v) {
  for (int64_t g = v; g < v + kVectors; ++g) {
    transpose_rows(pass.rows + g * kLanes, pass.job->head_dim, pass.steps, pass.lines + g * kLanes);
  }
  if (pass.job->feedback != nullptr) {
    encode_with_feedback<kBits, kVectors>(pass, v);
  } else {
    encode_nearest<kBits, kVectors>(pass, v);
  }
}

template <int kBits>
void encode_keys(const EncodeJob& job) {
  Pass pass;
  start_pass(job, pass);
  const int64_t first = job.first_token / kLanes;
  const int64_t last = (job.first_token + job.num_tokens - 1) / kLanes;
  if (first == last) {
    encode_vectors<kBits, 1>(pass, first);
  } else {
    for (int64_t v = first / kGroup * kGroup; v <= last; v += kGroup) {
      encode_vectors<kBits, kGroup>(pass, v);
    }
  }
}

// What all tokens of a job of values share. Lanes are channels.
struct ValuePass {
  const EncodeJob* job;
  Search search;
  const float* rows[kTileTokens];  // zeros outside the job
  float inv_scales[kTileTokens];
  int32_t keep[kTileTokens];  // all ones where a token is in the job
};

// Codes of tokens first, first + 2, first + 4, first + 6: one half of the pair.
template <int kBits>
HWY_INLINE SlotCodes<kBits, IntVec> code_tokens(const ValuePass& pass, int64_t first, int64_t c,
                                                int64_t num_channels) {
  const FloatTag d;
  SlotCodes<kBits, IntVec> slots;
  for (int s = kRowSlots - 1; s >= 0; --s) {
    const int64_t t = first + 2 * s;
    const auto x =
        num_channels < kLanes
            ? hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(num_channels)), d, pass.rows[t] + c)
            : hn::LoadU(d, pass.rows[t] + c);
    const auto y =
        hn::Mul(hn::Sub(x, hn::Set(d, pass.job->zeros[t])), hn::Set(d, pass.inv_scales[t]));
    slots.add(hn::And(find_codes<kBits>(pass.search, y), hn::Set(IntTag(), pass.keep[t])));
  }
  return slots;
}

template <int kBits>
void encode_values(const EncodeJob& job) {
  ValuePass pass;
  const int64_t end = job.first_token + job.num_tokens, head_dim = job.head_dim;
  const int64_t first_octet = job.first_token / 8 * 8, end_octet = (end + 7) / 8 * 8;
  pass.job = &job;
  for (int64_t t = first_octet; t < end_octet; ++t) {
    const bool inside = job.first_token <= t && t < end;
    pass.rows[t] = inside ? job.rows + (t - job.first_token) * job.row_stride : kNoRow;
    pass.inv_scales[t] = inverse_of(job.scales[t]);
    pass.keep[t] = inside ? -1 : 0;
  }
  start_search(*job.codebook, pass.search);
  for (int64_t first = first_octet; first < end_octet; first += 8) {
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      const int64_t num_channels = head_dim - c < kLanes ? head_dim - c : kLanes;
      for (int half = 0; half < 2; ++half) {
        auto slots = code_tokens<kBits>(pass, first + half, c, num_channels);
        if (num_channels < kLanes) slots.keep_first(num_channels);
        add_slots(slots, code_place(KvSide::kValue, head_dim, first + half, c), job.codes);
      }
    }
  }
}

template <int kBits>
bool encode_bits(const EncodeJob& job) {
  if (job.num_tokens == 0) return true;
  if (job.axis == ScaleAxis::kChannel) {
    encode_keys<kBits>(job);
  } else {
    encode_values<kBits>(job);
  }
  return true;
}

bool encode_tile(const EncodeJob& job) {
  if (job.axis == ScaleAxis::kToken && (job.low != nullptr || job.feedback != nullptr))
    return false;
  if (job.low != nullptr) std::fill(job.outliers, job.outliers + job.head_dim, uint64_t{0});
  switch (job.codebook->bits) {
    case 2: return encode_bits<2>(job);
    case 3: return encode_bits<3>(job);
    case 4: return encode_bits<4>(job);
    default: return encode_bits<8>(job);
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
