// A block: `block` tokens (a multiple of 64) of one side of one layer of one sequence, all KV
// heads, as tiles of 64 tokens. Byte layout of a compressed side, each part right behind the other,
// the whole padded to a multiple of 64 bytes:
//
//   codes   [num_kv_heads][num_tiles][code_tile_bytes]     code_planes.h
//   scales  [num_tiles][64] fp16                           values only: per token, over all heads
//   zeros   [num_tiles][64] fp16                           values only
//           [num_tiles][num_kv_heads][64] each             latents of 2 to 8 bits: per head
//   starts  [num_tiles][num_kv_heads] u32                  with outliers: index of the tile's first
//   counts  [num_tiles][num_kv_heads] u16                  with outliers: how many the tile has
//
// Latents of either side are coded like values, those of different widths in bands (code_bands.h).
// Those of 16 bits are fp16 numbers in tiles of dense_tile.h of their side in place of codes,
// without scales and zeros. A dense side has [num_tiles][num_kv_heads] tiles of dense_tile.h.
#pragma once

#include <cstdint>

#include "formats/code_bands.h"
#include "formats/code_planes.h"

namespace kvquant {

inline constexpr int64_t kMaxNuqHeadDim = 256;

// Latents (ops/latent.h) are stored with zeros behind them, as many channels as tiles need.
inline constexpr int kLatentBits = 16;  // of latents that are not quantized
constexpr int64_t latent_width(int64_t rank) { return (rank + 7) / 8 * 8; }

struct KvBlockShape {
  KvSide side = KvSide::kKey;
  int bits = 4;
  bool has_outliers = false;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t num_tiles = 0;
  bool has_latents = false;  // values: head_dim is their width
  CodeBands bands{};         // latents of different widths: all their channels; bits is 8

  constexpr bool has_codes() const { return bits < kLatentBits; }
  // Of values: where the scales and zero points of a tile of the block begin.
  constexpr int64_t token_params(int64_t tile, int64_t head) const {
    return (has_latents ? tile * num_kv_heads + head : tile) * kTileTokens;
  }
  // Of a tile.
  constexpr int64_t num_token_params() const {
    if (side == KvSide::kKey || !has_codes()) return 0;
    return has_latents ? num_kv_heads * kTileTokens : kTileTokens;
  }
};

struct KvBlockLayout {
  int64_t num_tiles = 0;
  int64_t code_tile = 0;  // bytes
  int64_t scales = 0;     // offsets in bytes from here on
  int64_t zeros = 0;
  int64_t starts = 0;
  int64_t counts = 0;
  int64_t num_bytes = 0;

  // Where the codes of a head and tile are.
  constexpr int64_t codes(int64_t head, int64_t tile) const {
    return (head * num_tiles + tile) * code_tile;
  }
};

constexpr KvBlockLayout kv_block_layout(const KvBlockShape& shape) {
  const int64_t tiles = shape.num_tiles;
  const int64_t token_params = tiles * shape.num_token_params() * 2;
  const int64_t heads_with_outliers = shape.has_outliers ? tiles * shape.num_kv_heads : 0;
  KvBlockLayout layout;
  layout.num_tiles = tiles;
  if (shape.bands.is_banded()) {
    layout.code_tile = band_tile_bytes(shape.bands);
  } else {
    layout.code_tile = shape.has_codes()
                           ? code_tile_bytes(shape.bits, shape.head_dim)
                           : kTileTokens * shape.head_dim * element_bytes(DenseType::kF16);
  }
  layout.scales = tiles * shape.num_kv_heads * layout.code_tile;
  layout.zeros = layout.scales + token_params;
  layout.starts = layout.zeros + token_params;
  layout.counts = layout.starts + heads_with_outliers * 4;
  const int64_t end = layout.counts + heads_with_outliers * 2;
  layout.num_bytes = (end + 63) / 64 * 64;
  return layout;
}

}  // namespace kvquant
