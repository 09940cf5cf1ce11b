// Shared memory of a block whose warps multiply codes without a decoded tile in between
// (attend_cuda_direct.h).
//
// A thread finds two levels at a time in a table of all pairs of codes, of which every bank has a
// copy: entry `first | second << bits`, [2 sides][32 lanes]. So a look-up is one load without
// conflicts, whatever the codes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "formats/code_planes.h"
#include "ops/attend_cuda.h"
#include "ops/attend_cuda_tile.h"
#include "ops/cuda_fragments.h"
#include "ops/cuda_numbers.h"

namespace kvquant {

inline constexpr int kDirectRows = 8;  // queries times heads of a task, at most
inline constexpr int kPairEntryBytes = 2 * kWarpThreads * 4;
inline constexpr int kPairStride = 36;        // words between rows of weights: 32 pairs of tokens
inline constexpr int kCorrectionStride = 68;  // between rows of corrections of scores

// Where the parts of a run's tile are, one of kSpanTiles that a block looks for at once.
struct DirectCodes {
  const uint32_t* words;
  const Half* scales;
  const Half* zeros;
  uint32_t first_outlier;
  int32_t num_outliers;
};
struct DirectTile {
  TileTokens tokens;
  DirectCodes keys, values;
};

// Whether there is a kernel for it.
constexpr bool has_direct_kernel(int64_t head_dim) {
  return head_dim == 64 || head_dim == 96 || head_dim == 128;
}

struct DirectLayout {
  int64_t query_stride;           // floats between rows
  int64_t query, scales, states;  // offsets in bytes from here on
  int64_t rest;                   // what is behind here ends before other tiles begin
  int64_t turns;
  int64_t warps, warp_bytes;  // parts of each warp; offsets in them:
  int64_t params, exchange, corrections, biases;
  int64_t tiles, pairs;
  int64_t num_bytes;
};

// bits: of the widest codes.
constexpr DirectLayout direct_layout(int64_t head_dim, int bits) {
  DirectLayout layout{};
  layout.query_stride = head_dim + 16;
  layout.scales = kDirectRows * layout.query_stride * 4;
  layout.states = layout.scales + kDirectRows * 4;
  layout.rest = layout.states + 2 * kDirectRows * 4;
  layout.turns = layout.rest;
  layout.warps = layout.turns + head_dim / 2 * kTileTokens * 4;
  layout.exchange = head_dim / 2 * 8;
  layout.corrections = layout.exchange + 2 * kDirectRows * kPairStride * 4;
  layout.biases = layout.corrections +
                  kDirectRows * (head_dim > kCorrectionStride ? head_dim : kCorrectionStride) * 4;
  layout.warp_bytes = layout.biases + kDirectRows * 4;
  layout.tiles = layout.warps + kBlockWarps * layout.warp_bytes;
  layout.pairs = layout.tiles + kSpanTiles * static_cast<int64_t>(sizeof(DirectTile));
  layout.num_bytes = layout.pairs + (int64_t{1} << 2 * bits) * kPairEntryBytes;
  return layout;
}

struct DirectShared {
  DirectLayout layout;
  std::byte* base;
  float* query;       // [8][query_stride], over `scales`; then sums of all warps
  float* scales;      // [8], powers of two
  float* max;         // [8], of all warps
  float* sum;         // [8]
  uint32_t* turns;    // cos and sin as halves, in the order of fragments; then sums of each warp
  DirectTile* tiles;  // [kSpanTiles]
  std::byte* pairs;
};

// With what a warp has for itself.
struct DirectWarpShared : DirectShared {
  Words2* params;        // [head_dim / 2]: a quarter of scales and zero points of pairs of channels
  uint32_t* exchange;    // queries [8][head_dim / 2 + 4], then weights [2][8][kPairStride]
  int32_t* corrections;  // [8][kCorrectionStride], then [head_dim][8]
  float* biases;         // [8], of scores, in units of log2
};

KVQUANT_DEVICE DirectWarpShared part_of_warp(const DirectShared& shared, int warp) {
  const DirectLayout& layout = shared.layout;
  std::byte* base = shared.base + layout.warps + warp * layout.warp_bytes;
  return {shared, reinterpret_cast<Words2*>(base + layout.params),
          reinterpret_cast<uint32_t*>(base + layout.exchange),
          reinterpret_cast<int32_t*>(base + layout.corrections),
          reinterpret_cast<float*>(base + layout.biases)};
}

KVQUANT_DEVICE DirectShared slice_direct(std::byte* base, int64_t head_dim, int bits) {
  DirectShared out{};
  out.layout = direct_layout(head_dim, bits);
  out.query = reinterpret_cast<float*>(base + out.layout.query);
  out.scales = reinterpret_cast<float*>(base + out.layout.scales);
  out.max = reinterpret_cast<float*>(base + out.layout.states);
  out.sum = out.max + kDirectRows;
  out.turns = reinterpret_cast<uint32_t*>(base + out.layout.turns);
  out.tiles = reinterpret_cast<DirectTile*>(base + out.layout.tiles);
  out.pairs = base + out.layout.pairs;
  out.base = base;
  return out;
}

}  // namespace kvquant
