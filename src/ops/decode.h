// Decodes one tile of one KV head into the tiles of dense_tile.h as f32, keys rotated: the plain
// path to attention over compressed keys and values. On the way a tile is planar: [head_dim][64].
//
//   planar[c][t] = fl(fl(level[code] * scale) + zero), then outliers in their places; no
//   contraction
//
//   decode.cc        checks, dispatch
//   decode_ref.cc    value by value, rotation in double
//   decode_simd.cc   Highway; the planar values are the reference's bits
#pragma once

#include <cstdint>
#include <span>

#include "base/backend.h"
#include "base/half.h"
#include "formats/nuq_codebook.h"
#include "formats/outlier_page.h"
#include "ops/encode.h"
#include "ops/rope.h"

namespace kvquant {

// Outliers of one tile of one head.
struct OutlierList {
  int64_t first = 0;  // entry of the list where the tile begins
  int64_t count = 0;
  std::span<const OutlierPage* const> pages{};
};

struct DecodeJob {
  const NuqCodebook* codebook = nullptr;
  const uint8_t* codes = nullptr;  // code_planes.h
  const float* scales = nullptr;
  const float* zeros = nullptr;
  ScaleAxis axis = ScaleAxis::kChannel;
  int64_t head_dim = 0;
  int64_t num_tokens = 0;  // in use; planar columns of the others become zero
  OutlierList outliers{};
};

// planar [head_dim][64]. All backends write the same bits.
void decode_tile(const DecodeJob& job, float* planar, Backend backend = best_backend());

// cos and sin of a tile's positions, [head_dim / 2][64] each. Requires: the table has the first.
void fill_rope_tile(const RopeTable& table, int64_t first_position, float* cos, float* sin);

// Rotates a planar tile into a key tile: token t with column t of cos and sin.
void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile, Backend backend = best_backend());
void planar_to_value_tile(const float* planar, int64_t head_dim, float* tile);
void planar_to_key_tile(const float* planar, int64_t head_dim, float* tile);

// Rows of fp16, num_tokens of them `stride` elements apart, as a planar tile: columns
// [first_token, first_token + num_tokens).
void rows_to_planar(const Half* rows, int64_t stride, int64_t head_dim, int64_t first_token,
                    int64_t num_tokens, float* planar);

// Puts outliers into their places in a planar tile.
void place_outliers(const OutlierList& outliers, float* planar) noexcept;

namespace ref {
void decode_tile(const DecodeJob& job, float* planar) noexcept;
void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile) noexcept;
}  // namespace ref

namespace simd {
void unpack_tile(const DecodeJob& job, float* planar);  // without outliers
void rotate_to_key_tile(const float* planar, const float* cos, const float* sin, int64_t head_dim,
                        float* tile);
void rows_to_planar(const Half* rows, int64_t stride, int64_t head_dim, int64_t first_token,
                    int64_t num_tokens, float* planar);
}  // namespace simd

}  // namespace kvquant
