// What the attention kernels compute, as plain data: a block of query rows against a list of tiles,
// giving unnormalised weighted sums. Internal to attend. Kernels see no std types, since some are
// compiled for instruction sets that other code must not inherit.
//
// A row is one query head of one token: row r is head r % group of query r / group of the block.
#pragma once

#include <cstdint>

#include "formats/dense_tile.h"
#include "ops/attend.h"
#include "ops/softmax_state.h"

namespace kvquant {

// One side of a coded tile.
struct CodedPart {
  const NuqCodebook* codebook;
  const uint8_t* codes;
  const Half* scales;  // keys: [head_dim]; values: [64]
  const Half* zeros;
  const OutlierPage* const* pages;
  int64_t first_outlier;
  int64_t num_outliers;
  int64_t num_bytes;       // of codes
  const CodeBands* bands;  // null: all codes have the codebook's bits
};

struct CodedTile {
  CodedPart keys;
  CodedPart values;
  bool hadamard;            // of values
  const float* middle_cos;  // [head_dim / 2], of the tile's token RopeTiles::kMiddle
  const float* middle_sin;
  const RopeTiles* rope;
  float logit_bias;  // of CodedSide
};

// Up to 64 rows of fp16, keys before RoPE.
struct TileRows {
  int64_t stride = 0;          // numbers between rows; 0: not rows
  const float* cos = nullptr;  // of token 0's position, those of the others behind it, each
  const float* sin = nullptr;  // [head_dim / 2]
  const RopeTiles* rope = nullptr;
};

// One tile and who sees it: query q of the block (not row) sees tokens
// [max(0, first_token + q), min(num_tokens, end_token + q)) of the tile.
struct TileWork {
  const void* keys;    // a dense tile or the first row; null: coded
  const void* values;  // likewise; of latents a tile of fp16
  DenseType type;      // of keys and values in tiles that are no latents
  int32_t num_tokens;
  int32_t first_token;  // may be negative
  int32_t end_token;    // may be negative, or beyond the tile
  CodedTile coded;
  TileRows rows;
  const void* next_keys;  // with latents: the dense tile behind, or null
  int32_t key_offset;     // with latents: of AttendRun
  int32_t value_offset;   // the same of values beside keys that are latents
  const void* next_values;
};

static inline bool is_dense(const TileWork& tile) {
  return tile.keys != nullptr && tile.values != nullptr && tile.rows.stride == 0;
}
static inline bool is_coded(const TileWork& tile) { return tile.keys == nullptr; }
// Dense keys, coded values.
static inline bool is_half_coded(const TileWork& tile) {
  return tile.keys != nullptr && tile.values == nullptr;
}
static inline bool have_same_biases(const CodedTile& a, const CodedTile& b) {
  return a.keys.scales == b.keys.scales && a.keys.codebook == b.keys.codebook &&
         a.logit_bias == b.logit_bias;
}

// Decodes a coded tile to f32 in the layout of dense_tile.h: what dense kernels read instead.
// scratch [3 * 64 * head_dim].
void decode_coded_tile(const CodedTile& tile, int64_t head_dim, int32_t num_tokens, float* scratch,
                       float* keys, float* values) noexcept;
// One side of it. Latents have their width for a head_dim.
void decode_coded_keys(const CodedTile& tile, int64_t head_dim, int32_t num_tokens, float* scratch,
                       float* keys) noexcept;
void decode_coded_values(const CodedTile& tile, int64_t head_dim, int32_t num_tokens,
                         float* scratch, float* values) noexcept;
// Keys that are latents, of this width.
void decode_latent_keys(const CodedTile& tile, int64_t width, int32_t num_tokens, float* scratch,
                        float* keys) noexcept;
// Values in tiles of `type`, 64 tokens from tile.value_offset on. Requires dim <= kMaxNuqHeadDim.
void widen_tile_values(const TileWork& tile, DenseType type, int64_t dim, float* values) noexcept;
// The same of rows.
void widen_rows(const TileWork& tile, int64_t head_dim, float* scratch, float* keys,
                float* values) noexcept;

struct TokenRange {
  int32_t begin;
  int32_t end;  // begin >= end: sees nothing
};

// `static`: each kernel file has its own copy, compiled for its instruction set.
static inline TokenRange visible_tokens(const TileWork& tile, int64_t query) {
  const int64_t begin = tile.first_token + query;
  const int64_t end = tile.end_token + query;
  return {static_cast<int32_t>(begin < 0             ? 0
                               : begin > kTileTokens ? kTileTokens
                                                     : begin),
          static_cast<int32_t>(end < 0                 ? 0
                               : end > tile.num_tokens ? tile.num_tokens
                                                       : end)};
}

// Asks for the next tile, from memory to L2, a few cache lines at each step of the loops over the
// current one: in step with the arithmetic, since bursts stall it. For blocks whose loads don't
// sweep through tiles in order, where the hardware prefetcher fails.
struct Prefetcher {
  const char* line = nullptr;
  const char* end = nullptr;
  const char* then = nullptr;  // a second piece of as many bytes
  int64_t bytes = 0;
  int64_t step_bytes = 0;

  __attribute__((always_inline)) void start(const TileWork& tile, int64_t head_dim,
                                            int64_t num_steps) {
    bytes = kTileTokens * head_dim * (tile.type == DenseType::kF32 ? 4 : 2);
    line = static_cast<const char*>(tile.keys);
    end = line + bytes;
    then = static_cast<const char*>(tile.values);
    step_bytes = (2 * bytes / num_steps + 63) / 64 * 64;
  }
  __attribute__((always_inline)) void step() {
    if (line == end) return;
    const char* stop = end - line < step_bytes ? end : line + step_bytes;
    for (; line < stop; line += 64) __builtin_prefetch(line, 0, 2);
    if (stop != end) return;
    line = end = nullptr;
    if (then != nullptr) {
      line = then;
      end = then + bytes;
      then = nullptr;
    }
  }
};

// Scratch of one worker, see attend.cc. Rows are those of the largest block.
struct AttendWorkspace {
  TileWork* tiles;
  void* query;           // [rows, padded_dim], room for floats
  void* keys;            // [64 * padded_dim], a converted tile, likewise
  void* values;          // [64 * padded_dim]
  float* planar;         // [3 * 64 * padded_dim], for decoding
  float* biases;         // [rows], of scores of coded tiles, in units of log2
  float* sums;           // [rows, 16], the lanes of running sums
  float* pairs;          // [rows, padded_dim, 2], weighted sums of even and odd tokens
  float* acc;            // [rows, padded_dim], for blocks whose result is final
  SoftmaxState* states;  // [rows], likewise
};

// What the sums of CodedSide::logit_bias are multiplied by to give biases in units of log2.
static inline float bias_unit(const CodedTile& tile, float log2_scale) {
  return tile.logit_bias * 0.25f * tile.keys.codebook->noise * log2_scale * log2_scale / kLog2E;
}

struct AttendBlock {
  int64_t head_dim = 0;      // of queries and keys; of keys that are latents their width
  int64_t value_dim = 0;     // of values, likewise
  int64_t padded_dim = 0;    // at least both, a multiple of 16: the stride of acc
  bool has_latents = false;  // all tiles have, or none
  // All rows go through matrix registers, however few are left for the last block of a job.
  bool has_amx = false;
  // Of keys that are latents, or null: of each row what is added to its scores, in units of log2.
  const float* key_biases = nullptr;  // [num_rows]
  int64_t group = 0;
  float log2_scale = 0;          // scale * log2(e)
  const float* query = nullptr;  // row 0
  int64_t query_stride = 0;      // floats between tokens
  int64_t num_rows = 0;
  const TileWork* tiles = nullptr;
  int64_t num_tiles = 0;
  int64_t num_ahead = 0;  // tiles behind those that the worker will probably read next
  // Results: the state of each row and sum_t exp2(score_t - max) * value_t.
  SoftmaxState* states = nullptr;  // [num_rows]
  float* acc = nullptr;            // [num_rows, padded_dim], 64-byte aligned
  AttendWorkspace workspace;
};

static inline bool has_few_rows(const AttendBlock& block, int64_t at_most) {
  return block.num_rows <= at_most && !block.has_amx;
}

// What is added to a row's scores of a tile.
static inline float bias_of(const AttendBlock& block, const TileWork& tile, int64_t row) {
  if (block.key_biases != nullptr) return block.key_biases[row];
  return is_coded(tile) ? block.workspace.biases[row] : 0;
}

// Biases of all rows and the tiles that share them with `tile`, into the workspace.
void find_biases(const AttendBlock& block, const CodedTile& tile) noexcept;

// As many tiles of a worker's next task are listed, so that it finds them in its cache.
inline constexpr int64_t kAheadTiles = 4;

using AttendKernel = void (*)(const AttendBlock&) noexcept;

namespace simd {
void attend_block(const AttendBlock& block) noexcept;
}
namespace avx512bf16 {
void attend_block(const AttendBlock& block) noexcept;
}
namespace ref {
// Whole jobs rather than blocks: queries [first_query, end_query) of the job, normalised into out.
void attend_queries(const AttendShape& shape, const AttendJob& job, int64_t first_query,
                    int64_t end_query) noexcept;
}  // namespace ref

}  // namespace kvquant
