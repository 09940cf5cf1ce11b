// Rows of fp16 as a dense tile of f32, for kernels that read nothing else.
#include <cassert>
#include <cstring>

#include "ops/attend_kernels.h"
#include "ops/decode.h"

namespace kvquant {

void widen_rows(const TileWork& tile, int64_t head_dim, float* scratch, float* keys,
                float* values) noexcept {
  assert(head_dim <= kMaxNuqHeadDim);
  const int64_t half = head_dim / 2, middle = RopeTiles::kMiddle * half;
  float* planar = scratch;
  float* cos = planar + kTileTokens * head_dim;
  float* sin = cos + kTileTokens * head_dim;
  const auto spread = [&](const void* rows) {
    std::memset(planar, 0, static_cast<size_t>(kTileTokens * head_dim) * sizeof(float));
    rows_to_planar(static_cast<const Half*>(rows), tile.rows.stride, head_dim, /*first_token=*/0,
                   tile.num_tokens, planar);
  };
  turn_tile(*tile.rows.rope, tile.rows.cos + middle, tile.rows.sin + middle, half, cos, sin);
  spread(tile.keys);
  rotate_to_key_tile(planar, cos, sin, head_dim, keys);
  spread(tile.values);
  planar_to_value_tile(planar, head_dim, values);
}

}  // namespace kvquant
