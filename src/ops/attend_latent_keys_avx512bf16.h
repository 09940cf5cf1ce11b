// Tiles whose keys are latents in the AVX-512 BF16 kernel of attention.
#pragma once

#include "ops/attend_kernels.h"

namespace kvquant::avx512bf16 {

// Keys [head_dim / 2][64][2] and values [32][value_dim rounded up to 16][2]: tiles of bf16 in the
// workspace, or of fp16 where they are stored.
struct LatentTile {
  const uint16_t *keys, *values;
  bool has_half_keys, has_half_values;
};
// Asks for what the block reads of a tile, from its values on, in num_steps steps.
Prefetcher ask_for_latent_tile(const AttendBlock& block, const TileWork& next, int64_t num_steps);

// in_place: whether fp16 tiles may be read where they are.
LatentTile read_latent_tile(const AttendBlock& block, const TileWork& tile, bool in_place);

}  // namespace kvquant::avx512bf16
