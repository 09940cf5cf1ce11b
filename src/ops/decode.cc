#include "ops/decode.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "formats/dense_tile.h"
#include "formats/kv_block.h"

namespace kvquant {

void place_outliers(const OutlierList& outliers, float* planar) noexcept {
  for (int64_t e = outliers.first; e < outliers.first + outliers.count; ++e) {
    const OutlierEntry& entry = outliers.pages[e / kOutliersPerPage]->entries[e % kOutliersPerPage];
    planar[entry.place] = to_float(entry.value);
  }
}

void decode_tile(const DecodeJob& job, float* planar, Backend backend) {
  check_arg(0 <= job.num_tokens && job.num_tokens <= kTileTokens && job.head_dim % 8 == 0,
            fmt::format("decode: {} tokens, head_dim {}", job.num_tokens, job.head_dim));
  if (backend == Backend::kReference) return ref::decode_tile(job, planar);
  simd::unpack_tile(job, planar);
  for (int64_t c = 0; job.num_tokens < kTileTokens && c < job.head_dim; ++c) {
    std::fill(planar + c * kTileTokens + job.num_tokens, planar + (c + 1) * kTileTokens, 0.0f);
  }
  place_outliers(job.outliers, planar);
}

void fill_rope_tile(const RopeTable& table, int64_t first_position, float* cos, float* sin) {
  const int64_t middle = first_position + RopeTiles::kMiddle;
  turn_tile(table.tiles(), table.cos(middle), table.sin(middle), table.head_dim() / 2, cos, sin);
}

void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile, Backend backend) {
  if (backend == Backend::kReference) {
    return ref::rotate_to_key_tile(planar, cos, sin, head_dim, tile);
  }
  simd::rotate_to_key_tile(planar, cos, sin, head_dim, tile);
}

void planar_to_value_tile(const float* planar, int64_t head_dim, float* tile) {
  for (int64_t t = 0; t < kTileTokens; t += 2) {  // the pair of a channel moves as one
    for (int64_t c = 0; c < head_dim; ++c) {
      std::memcpy(tile + value_index(t, c, head_dim), planar + c * kTileTokens + t,
                  2 * sizeof(float));
    }
  }
}

void planar_to_key_tile(const float* planar, int64_t head_dim, float* tile) {
  for (int64_t c = 0; c < head_dim; c += 2) {
    const float *even = planar + c * kTileTokens, *odd = even + kTileTokens;
    float* out = tile + key_index(0, c);
    for (int64_t t = 0; t < kTileTokens; ++t) {
      out[2 * t] = even[t];
      out[2 * t + 1] = odd[t];
    }
  }
}

void rows_to_planar(const Half* rows, int64_t stride, int64_t head_dim, int64_t first_token,
                    int64_t num_tokens, float* planar) {
  simd::rows_to_planar(rows, stride, head_dim, first_token, num_tokens, planar);
}

}  // namespace kvquant
