// Attention of new queries over cached keys and values: prefill and decode step. Tokens are in
// dense tiles, or in rows or codes that are read as they lie, never expanded beyond one tile.
// Softmax is streamed over tiles (arXiv 1805.02867, 2205.14135).
//
//   attend.cc               checks, running the plan, merging of partial results
//   attend_plan.cc          cutting into tasks, a pure function of the shapes
//   latent_queries.cc       queries as keys that are latents need them
//   attend_ref.cc           plain loops, sums in double: the definition of correct
//   attend_simd.cc          Highway, f32 arithmetic; decodes a coded tile to scratch
//   attend_avx512bf16.cc    bf16 dot products; the only one that rounds q, k, p, v to bf16
//   attend_amxbf16.cc       its products of many rows, in matrix registers
//
// Values may be latents (latent.h). Their weighted sums stay latents, apart from those of other
// values, until all of a query's parts are merged; then they are expanded, once per query head, or
// handed out as they are. Keys after RoPE may be latents, too: k' = mean + sum_r z_r D_r is never
// made, as <q, k'> = <q, mean> + sum_r <q, D_r> z_r, where <q, mean> and <q, D_r> are found once
// per query.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "base/backend.h"
#include "base/threads.h"
#include "formats/dense_tile.h"
#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"
#include "formats/outlier_page.h"
#include "formats/precision.h"
#include "ops/latent.h"
#include "ops/rope.h"

namespace kvquant {

// The coded keys or values of one (sequence, KV head): tile i is tile i % shape.num_tiles of block
// i / shape.num_tiles. What a code and an outlier mean is in decode.h; codes under outliers are 0.
struct CodedSide {
  const NuqCodebook* codebook = nullptr;
  KvBlockShape shape{};
  KvBlockLayout layout{};
  int64_t head = 0;
  std::span<std::byte* const> blocks{};
  const Half* scales = nullptr;  // keys: [head_dim]; values have theirs in the blocks
  const Half* zeros = nullptr;
  // Keys: tiles where further segments begin, ascending; segment i has its scales and zeros
  // i * segment_stride behind the first's.
  std::span<const int32_t> segment_starts{};
  int64_t segment_stride = 0;
  std::span<const OutlierPage* const> pages{};  // with outliers: of this head
  bool hadamard = false;                        // values: decoded rows are rotated, see hadamard.h
  // What is coded are latents of this map, and shape.head_dim is its width. They may be fp16
  // numbers (kLatentBits), which have no codebook and lie in dense tiles of their side. Codes of
  // latents of keys after RoPE lie as those of values do, shape.side says so; scales and zeros are
  // in the blocks, and there is no logit_bias.
  const LatentMap* latents = nullptr;
  // Keys: this times half the variance that rounding is expected to put into a score is added to
  // it. With s[c] the scale of channel c, sums over the pairs of channels a, b that RoPE rotates
  // together, and `scale` of AttendShape:
  //   variance = scale^2 * codebook->noise * sum (q[a]^2 + q[b]^2) * (s[a]^2 + s[b]^2) / 2
  float logit_bias = 0;

  // Of keys: from the first segment's scales and zeros to those of a tile.
  int64_t segment_offset(int64_t tile) const {
    int64_t segment = 0;
    for (const int32_t start : segment_starts) segment += tile >= start ? 1 : 0;
    return segment * segment_stride;
  }
};

// A run of consecutive tokens of one (sequence, KV head): dense, coded, rows of fp16, or dense keys
// with coded values. Query i sees key j of the run if min_lag <= i - j < max_lag, i and
// j being absolute positions: causal is min_lag 0; a sliding window of W is max_lag W; "all but the
// last R tokens" is min_lag R.
struct AttendRun {
  DenseType type = DenseType::kF16;
  std::span<const void* const> key_tiles;    // [ceil(num_tokens / 64)], keys already rotated
  std::span<const void* const> value_tiles;  // the same number
  // Instead of value tiles: coded_values. Token 0 then has its key behind those of key_offset
  // tokens, at most 63, of the first key tile; there are as many key tiles as that takes.
  int64_t key_offset = 0;
  // Instead of tiles: both sides coded, keys before RoPE, token 0 at first_position. Keys that are
  // latents may stand beside coded values or value tiles of `type`; token 0 then has its value
  // behind those of value_offset tokens, at most 63, of the first value tile.
  int64_t value_offset = 0;
  const CodedSide* coded_keys = nullptr;
  const CodedSide* coded_values = nullptr;
  // Instead of tiles: rows of head_dim fp16 numbers, row_stride apart, keys before RoPE.
  const Half* key_rows = nullptr;
  const Half* value_rows = nullptr;
  int64_t row_stride = 0;
  const RopeTable* rope = nullptr;  // of keys before RoPE
  int64_t num_tokens = 0;
  int64_t first_position = 0;  // of token 0 of tile 0
  int64_t min_lag = 0;
  int64_t max_lag = std::numeric_limits<int64_t>::max();

  bool is_coded() const { return coded_keys != nullptr; }
  bool is_rows() const { return key_rows != nullptr; }
  bool is_half_coded() const { return coded_keys == nullptr && coded_values != nullptr; }
  const LatentMap* latents() const { return coded_values ? coded_values->latents : nullptr; }
  const LatentMap* key_latents() const { return coded_keys ? coded_keys->latents : nullptr; }
  bool is_low_rank() const { return latents() != nullptr || key_latents() != nullptr; }
};

// Where weighted sums of latents go that are not to be expanded. width 0: they are.
struct LatentSums {
  float* data = nullptr;  // [num_queries, group, width]
  int64_t stride = 0;     // floats between tokens
  int64_t width = 0;      // of the job's LatentMap, if it has one
};

// The new queries of one sequence that read one KV head: `group` query heads.
struct AttendJob {
  const float* query = nullptr;  // [num_queries, group, head_dim], rotated, not scaled
  float* out = nullptr;          // [num_queries, group, head_dim]
  int64_t query_stride = 0;      // floats between tokens, for query and out alike
  int64_t num_queries = 0;
  int64_t first_position = 0;  // of query 0; query i is at first_position + i
  std::span<const AttendRun> runs;
  // Of queries that see no latents: zeros. `out` then has the other values' part and the mean's.
  LatentSums latent_sums{};
};

struct AttendShape {
  int64_t head_dim = 0;  // multiple of 8
  int64_t group = 0;     // query heads per KV head
  float scale = 0;       // of the scores, 1 / sqrt(head_dim) as a rule
};

// out = softmax(scale * q k^T) v per query head; with latent_sums it is out + D latent_sums. A
// query that sees no key gets zeros. Results are the same at any number of threads. With kBF16 the
// factors of products are rounded to bf16 where the CPU has bf16 dot products and that is faster,
// else they are f32. All runs of a job with latents of keys, of values or of both have them of the
// same sides and maps.
// Requires: tiles and blocks are 64-byte aligned; RoPE tables cover the positions of their runs;
// scale > 0; positions are in [0, 2^60]; queries are finite. Scratch is kept by the calling thread
// from call to call and grows to the largest need. Throws std::invalid_argument on bad shapes.
void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision,
            ThreadPool& pool, Backend backend = best_backend());

}  // namespace kvquant
