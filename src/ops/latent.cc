#include "ops/latent.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace kvquant {
namespace {

void check_map(const LatentMap& map) {
  check_arg(map.head_dim > 0 && map.head_dim % 8 == 0 && map.head_dim <= kMaxNuqHeadDim &&
                map.rank > 0 && map.rank <= map.head_dim && map.width == latent_width(map.rank),
            fmt::format("latents: rank {} stored as {} of vectors of {} channels: a rank is at "
                        "most the channels, and they are a multiple of 8 up to {}",
                        map.rank, map.width, map.head_dim, kMaxNuqHeadDim));
}

}  // namespace

void encode_latents(const LatentMap& map, const LatentRows& job, Backend backend) {
  check_map(map);
  if (backend != Backend::kReference && simd::encode_latents(map, job)) return;
  ref::encode_latents(map, job);
}

void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out, Backend backend) {
  check_map(map);
  backend == Backend::kReference ? ref::expand_latents(map, latents, weight, factor, out)
                                 : simd::expand_latents(map, latents, weight, factor, out);
}

namespace ref {

void encode_latents(const LatentMap& map, const LatentRows& job) noexcept {
  for (int64_t i = 0; i < job.num_rows; ++i) {
    const float* row = job.rows + i * job.row_stride;
    float* out = job.latents + i * job.latent_stride;
    std::fill_n(out, map.width, 0.0f);
    for (int64_t r = 0; r < map.rank; ++r) {
      for (int64_t c = 0; c < map.head_dim; ++c) {
        out[r] = std::fma(map.encode[r * map.head_dim + c], row[c] - map.mean[c], out[r]);
      }
    }
  }
}

void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out) noexcept {
  for (int64_t c = 0; c < map.head_dim; ++c) {
    double sum = double{weight} * map.mean[c];
    for (int64_t r = 0; r < map.rank; ++r) {
      sum += double{latents[r]} * map.decode[r * map.head_dim + c];
    }
    out[c] += static_cast<float>(factor * sum);
  }
}

}  // namespace ref
}  // namespace kvquant
