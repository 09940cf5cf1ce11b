// Encodes one tile (or part of it) of one KV head: normalise, find the nearest level, pack.
// Normative in f32, so that all backends write the same bytes:
//
//   y = fl(fl(x - zero) * inv_scale), inv_scale = fl(1 / scale), 0 when scale is 0, no contraction
//   code = number of midpoints m with m < y                      ties go to the lower index
//
//   encode.cc       checks, dispatch, and loops that compilers vectorise
//   encode_ref.cc   value by value, bit by bit: the definition of correct
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

struct EncodeJob {
  const NuqCodebook* codebook = nullptr;
  const float* planar = nullptr;  // [head_dim][64], finite; only tokens of the job are read
  const float* scales = nullptr;  // fp16 numbers, >= 0
  const float* zeros = nullptr;   // fp16 numbers
  ScaleAxis axis = ScaleAxis::kChannel;
  int64_t head_dim = 0;
  int64_t first_token = 0;  // within the tile
  int64_t num_tokens = 0;
  uint8_t* codes = nullptr;  // a tile of code_planes.h; codes of these tokens are zero so far
};

// Throws std::invalid_argument when the tokens don't fit the tile.
void encode_tile(const EncodeJob& job, Backend backend = best_backend());

namespace ref {
void encode_tile(const EncodeJob& job) noexcept;
}

}  // namespace kvquant
