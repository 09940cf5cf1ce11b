// The normalised Hadamard transform of vectors of a power of two of channels, in place:
// H[i][j] = (-1)^popcount(i & j) / sqrt(n), symmetric and its own inverse. A rotation by it spreads
// a large channel over all of them (arXiv 2404.00456). Normative in f32, so that rotated values are
// coded alike by all backends: for spans h = 1, 2, 4, ... below n, pairs (a, b) of channels h apart
// become (fl(a + b), fl(a - b)); then each is multiplied by fl(1 / fl(sqrt(n))).
//
//   hadamard.cc        checks, dispatch, the reference
//   hadamard_simd.cc   Highway
#pragma once

#include <cstdint>

#include "base/backend.h"

namespace kvquant {

// rows [num_rows][head_dim], `stride` elements apart. Throws std::invalid_argument unless head_dim
// is a power of two from 8 to 256.
void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim,
                   Backend backend = best_backend());

// planar [head_dim][64]: every column is a vector.
void hadamard_planar(float* planar, int64_t head_dim, Backend backend = best_backend());

namespace ref {
void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim) noexcept;
void hadamard_planar(float* planar, int64_t head_dim) noexcept;
}  // namespace ref
namespace simd {
void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim) noexcept;
void hadamard_planar(float* planar, int64_t head_dim) noexcept;
}  // namespace simd

}  // namespace kvquant
