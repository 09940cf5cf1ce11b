// Vectors of one KV head as latents, their coordinates in a subspace: with the matrices A (encode)
// and D (decode) of a calibration
//
//   z = A (v - mean)      v' = mean + D z
//
// Sums of vectors are expanded once: sum of a_t v'_t = D (sum of a_t z_t) + mean (sum of a_t).
// Encoding is normative in f32, so that latents are coded alike by all backends: z_r starts at 0
// and becomes fma(A[r][c], fl(v_c - mean_c), z_r) for c = 0, 1, ...
//
//   latent.cc        checks, dispatch, the reference
//   latent_simd.cc   Highway
#pragma once

#include <cstdint>

#include "base/backend.h"
#include "formats/kv_block.h"

namespace kvquant {

struct LatentMap {
  int64_t rank = 0;               // components, 1 to head_dim
  int64_t width = 0;              // of stored latents: latent_width(rank)
  int64_t head_dim = 0;           // a multiple of 8, at most 256
  const float* mean = nullptr;    // [head_dim]
  const float* encode = nullptr;  // A [rank, head_dim]
  const float* decode = nullptr;  // D transposed [rank, head_dim]; may be A
};

struct LatentRows {
  const float* rows = nullptr;  // [num_rows, head_dim]
  int64_t row_stride = 0;       // elements from a row to the next
  int64_t num_rows = 0;
  float* latents = nullptr;  // [num_rows, width], zeros behind the rank
  int64_t latent_stride = 0;
};

// All backends write the same bits. Throws std::invalid_argument when the map's sizes don't fit
// together.
void encode_latents(const LatentMap& map, const LatentRows& job, Backend backend = best_backend());

// out [head_dim] += factor (D latents + weight mean).
void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out, Backend backend = best_backend());

namespace ref {
void encode_latents(const LatentMap& map, const LatentRows& job) noexcept;
void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out) noexcept;
}  // namespace ref
namespace simd {
// False on instruction sets without fused multiply-add: nothing was done.
bool encode_latents(const LatentMap& map, const LatentRows& job) noexcept;
void expand_latents(const LatentMap& map, const float* latents, float weight, float factor,
                    float* out) noexcept;
}  // namespace simd

}  // namespace kvquant
