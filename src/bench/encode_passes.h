// Encoding without feedback as separate passes over a chunk, each as fast as the same instructions
// allow: what encode_tile's single pass is measured against. Not part of the engine.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "ops/encode.h"

namespace kvquant {

// A chunk of whole tiles of one side.
struct EncodeChunk {
  const NuqCodebook* codebook = nullptr;
  const float* rows = nullptr;    // [num_tokens, num_kv_heads, head_dim]
  const float* scales = nullptr;  // keys: [num_kv_heads * head_dim]; values: [num_tokens]
  const float* zeros = nullptr;
  ScaleAxis axis = ScaleAxis::kChannel;
  const float* low = nullptr;  // keys: [num_kv_heads * head_dim]; null: no outliers are sought
  const float* high = nullptr;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;          // a multiple of 16
  int64_t num_tokens = 0;        // a multiple of 64
  uint8_t* codes = nullptr;      // zeroed tiles [num_tokens / 64, num_kv_heads]
  uint64_t* outliers = nullptr;  // [num_tokens / 64, num_kv_heads, head_dim], see EncodeJob

  int64_t row_size() const { return num_kv_heads * head_dim; }
  int64_t num_pieces() const { return num_tokens / kTileTokens * num_kv_heads; }
  EncodeJob job(int64_t piece) const;  // piece = tile * num_kv_heads + head
};

struct PassBuffers {
  float* normalised = nullptr;  // [pieces][head_dim * 64]
  uint8_t* codes = nullptr;     // as large
};

// Normalise, find outliers, find codes, pack: each over the whole chunk. False where the
// instruction set is not one that encode_tile has vectors for.
bool encode_in_passes(const EncodeChunk& chunk, const PassBuffers& buffers, ThreadPool& pool);

}  // namespace kvquant
