// Lanes are rows when encoding, channels when expanding: so both read the matrices as they lie. A
// lane's sum has the reference's order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/latent_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "ops/latent.h"

#if defined(__clang__)
#define KVQUANT_UNROLL _Pragma("unroll")
#else
#define KVQUANT_UNROLL _Pragma("GCC unroll 32")
#endif

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 8>;  // head_dim is a multiple of 8
using V = hn::Vec<D>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(D()));

#if HWY_NATIVE_FMA

using Lines = hn::CappedTag<float, 16>;  // of encoding
constexpr auto kLineRows = static_cast<int64_t>(hn::MaxLanes(Lines()));
constexpr int kComponents = 8;  // of independent sums

// Centred rows, channel by channel; rows beyond the job's are zeros.
void transpose(const LatentMap& map, const LatentRows& job, int64_t first, float* lines) {
  const int64_t count = HWY_MIN(kLineRows, job.num_rows - first);
  for (int64_t i = 0; i < kLineRows; ++i) {
    const float* row = job.rows + (first + i) * job.row_stride;
    for (int64_t c = 0; c < map.head_dim; ++c) {
      lines[c * kLineRows + i] = i < count ? row[c] - map.mean[c] : 0;
    }
  }
}

// N components from r on.
template <int N>
void encode_components(const LatentMap& map, const LatentRows& job, int64_t first, int64_t r,
                       const float* lines) {
  const Lines d;
  hn::Vec<Lines> sum[N];
  KVQUANT_UNROLL for (int i = 0; i < N; ++i) sum[i] = hn::Zero(d);
  for (int64_t c = 0; c < map.head_dim; ++c) {
    const auto x = hn::Load(d, lines + c * kLineRows);
    KVQUANT_UNROLL for (int i = 0; i < N; ++i) {
      sum[i] = hn::MulAdd(hn::Set(d, map.encode[(r + i) * map.head_dim + c]), x, sum[i]);
    }
  }
  HWY_ALIGN float z[N * kLineRows];
  KVQUANT_UNROLL for (int i = 0; i < N; ++i) hn::Store(sum[i], d, z + i * kLineRows);
  const int64_t count = HWY_MIN(kLineRows, job.num_rows - first);
  for (int64_t row = 0; row < count; ++row) {
    float* out = job.latents + (first + row) * job.latent_stride + r;
    for (int64_t i = 0; i < N; ++i) out[i] = z[i * kLineRows + row];
  }
}

bool encode_latents(const LatentMap& map, const LatentRows& job) {
  HWY_ALIGN float lines[kMaxNuqHeadDim * kLineRows];
  for (int64_t first = 0; first < job.num_rows; first += kLineRows) {
    transpose(map, job, first, lines);
    int64_t r = 0;
    for (; r + kComponents <= map.rank; r += kComponents) {
      encode_components<kComponents>(map, job, first, r, lines);
    }
    for (; r < map.rank; ++r) encode_components<1>(map, job, first, r, lines);
  }
  for (int64_t i = 0; i < job.num_rows; ++i) {
    for (int64_t r = map.rank; r < map.width; ++r) job.latents[i * job.latent_stride + r] = 0;
  }
  return true;
}

#else

bool encode_latents(const LatentMap&, const LatentRows&) { return false; }

#endif

template <int kVectors>
void expand_vectors(const LatentMap& map, const float* latents, float weight, float factor,
                    int64_t first, float* out) {
  const D d;
  V sum[kVectors];
  KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
    sum[v] = hn::Mul(hn::Set(d, weight), hn::LoadU(d, map.mean + first + v * kLanes));
  }
  for (int64_t r = 0; r < map.rank; ++r) {
    const V x = hn::Set(d, latents[r]);
    KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
      const V row = hn::LoadU(d, map.decode + r * map.head_dim + first + v * kLanes);
      sum[v] = hn::MulAdd(x, row, sum[v]);
    }
  }
  KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
    float* to = out + first + v * kLanes;
    hn::StoreU(hn::MulAdd(sum[v], hn::Set(d, factor), hn::LoadU(d, to)), d, to);
  }
}

void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out) {
  int64_t first = 0;
  for (; first + 8 * kLanes <= map.head_dim; first += 8 * kLanes) {
    expand_vectors<8>(map, latents, weight, factor, first, out);
  }
  for (; first < map.head_dim; first += kLanes) {
    expand_vectors<1>(map, latents, weight, factor, first, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::simd {

HWY_EXPORT(encode_latents);
HWY_EXPORT(expand_latents);

bool encode_latents(const LatentMap& map, const LatentRows& job) noexcept {
  return HWY_DYNAMIC_DISPATCH(encode_latents)(map, job);
}

void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out) noexcept {
  HWY_DYNAMIC_DISPATCH(expand_latents)(map, latents, weight, factor, out);
}

}  // namespace kvquant::simd
#endif
