// Rows of fp16 as a tile of bf16, in the AVX-512 BF16 kernel of attention.
#pragma once

#include "ops/attend_kernels.h"

namespace kvquant::avx512bf16 {

// keys [head_dim / 2][64][2], rotated, channels in order; values [32][padded_dim][2], padded with
// zeros. Of tokens past the last, keys are unspecified, a value is zero where its pair is in use,
// and others are unspecified. Requires head_dim <= kMaxNuqHeadDim.
void rows_to_bf16(const AttendBlock& block, const TileWork& tile, uint16_t* keys, uint16_t* values);

}  // namespace kvquant::avx512bf16
