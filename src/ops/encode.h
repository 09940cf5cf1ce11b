// Encodes one tile (or part of it) of one KV head in one pass over its rows: normalise, find the
// nearest level, outliers, errors, pack. Normative in f32, each operation rounded by itself, so
// that all backends write the same bytes. Of a token, for steps i = 0, 1, ..., with c = order[i]:
//
//   t    = x_c;  for j = 0 ... i - 1:  t = fma(coefficients[i][j], e_j, t)      one rounding each
//   y    = fl(fl(t - zero) * inv_scale), inv_scale = fl(1 / scale), 0 when scale is 0
//   code = code_of(y), xhat = fl(fl(level * scale) + zero)         formats/nuq_codebook.h
//   e_i  = fl(x_c - xhat), 0 where x_c is an outlier: it is stored exactly
//
// Without feedback t = x_c, and the order does not matter. Feedback is the rounding of arXiv
// 2210.17323 and 2307.13304, with the channels of a token as variables: it costs nothing to decode.
//
//   encode.cc        checks, dispatch
//   encode_ref.cc    value by value, bit by bit: the definition of correct
//   encode_simd.cc   Highway: lanes are tokens of keys, channels of values
//   encode_cuda.h    on CUDA devices: a tile a block
#pragma once

#include <cstdint>

#include "base/backend.h"
#include "formats/nuq_codebook.h"

namespace kvquant {

// Which dimension scales and zero points belong to.
enum class ScaleAxis {
  kChannel,  // keys: [head_dim]
  kToken,    // values: [64]
};

// The layout of codes that goes with it.
constexpr KvSide code_side(ScaleAxis axis) {
  return axis == ScaleAxis::kChannel ? KvSide::kKey : KvSide::kValue;
}

// How the errors of the channels of a token that are coded first change those that are coded later.
struct RoundingFeedback {
  const uint8_t* order = nullptr;       // [head_dim]: the channel coded at step i; a permutation
  const float* coefficients = nullptr;  // [head_dim][head_dim], finite; of row i only j < i is read
};

struct EncodeJob {
  const NuqCodebook* codebook = nullptr;
  const float* rows = nullptr;    // [num_tokens][head_dim], finite: fp16 numbers, or rotated values
  int64_t row_stride = 0;         // elements from a token to the next
  const float* scales = nullptr;  // fp16 numbers, >= 0
  const float* zeros = nullptr;   // fp16 numbers
  ScaleAxis axis = ScaleAxis::kChannel;
  const float* low = nullptr;  // [head_dim]: x < low and x > high are outliers; both null: none
  const float* high = nullptr;
  const RoundingFeedback* feedback = nullptr;  // null: every value to its nearest level
  int64_t head_dim = 0;                        // a multiple of 8, at most 256
  int64_t first_token = 0;                     // within the tile; the first of `rows`
  int64_t num_tokens = 0;
  uint8_t* codes = nullptr;  // a tile of code_planes.h; codes of these tokens are zero so far
  // [head_dim]; bit t: token t of the tile is an outlier in this channel. With low and high it is
  // written, bits of tokens outside the job are 0; without them it is read (null: no outliers).
  uint64_t* outliers = nullptr;
};

// Pieces of a tile give the same bytes as the whole. Throws std::invalid_argument when the tokens
// don't fit the tile, or head_dim or the codebook is out of range.
void encode_tile(const EncodeJob& job, Backend backend = best_backend());

namespace ref {
void encode_tile(const EncodeJob& job) noexcept;
}
namespace simd {
// False on instruction sets without fused multiply-add or too narrow, and for values with feedback
// or thresholds, which the cache does not use: nothing was done.
bool encode_tile(const EncodeJob& job) noexcept;
}  // namespace simd

}  // namespace kvquant
